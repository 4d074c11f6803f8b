"""Files that grow by checksummed records: a torn one is found, and ends the file.

A file is `magic, records`, each `length (u32), crc32 (u32), payload`; it is named by its first
round, so that the files of a folder are segments in order.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from features.errors import StateError

__all__ = ["cut_off", "frame", "frames", "new_segment", "said_with_cure", "segment_files"]

_FRAME = struct.Struct("<II")


def frame(payload: bytes) -> bytes:
    """A payload as it stands in a file."""
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def frames(path: Path, magic: bytes) -> Iterator[tuple[bytes, int]]:
    """Each whole payload of a file, and the byte at which it ends; none of a file that is missing
    or begins otherwise."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if file.read(len(magic)) != magic:
            return
        at = len(magic)
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, crc = _FRAME.unpack(head)
            payload = file.read(length)
            # Eight zeros, of which a lost page has many, would be a whole record of nothing.
            if not length or len(payload) != length or zlib.crc32(payload) != crc:
                return
            at += _FRAME.size + length
            yield payload, at


def new_segment(path: Path) -> BinaryIO:
    """A file that grows at its end, unbuffered, whoever else writes it.

    FileExistsError where there is one: whatever is left of a former start was cut off, so another
    flow has made it.
    """

    def appending(name: str, how: int) -> int:
        return os.open(name, how | os.O_APPEND, 0o666)

    return open(path, "xb", buffering=0, opener=appending)


@contextlib.contextmanager
def said_with_cure(what: str, folder: Path, setting: str) -> Iterator[None]:
    """What the disk refuses is a sentence with its cure.

    Parameters
    ----------
    what : is written to the folder
    setting : without which it is not written

    Raises
    ------
    StateError : the disk refuses something
    """
    try:
        yield
    except OSError as error:
        raise StateError(
            f"{what} in {folder} could not be written: {error.strerror}; free space or mend the"
            f" disk and start again, or set {setting} = 0"
        ) from error


def segment_files(folder: Path, suffix: str) -> list[Path]:
    """Files of one kind, oldest first."""
    return sorted(p for p in folder.glob(f"*{suffix}") if p.stem.isdecimal())


def cut_off(
    folder: Path, suffix: str, magic: bytes, after_round: int, last_of: Callable[[bytes], int]
) -> None:
    """Cut off what is newer than a round, and a torn tail before it; an empty segment goes.

    Where the next file begins no later than the round, a file has nothing newer: it is not read, a
    day of them is some gigabytes.

    Parameters
    ----------
    last_of : the last round that a payload is of; the first payload of a file is its header
    """
    files = segment_files(folder, suffix)
    for path, following in zip_longest(files, files[1:]):
        if following is not None and int(following.stem) <= after_round:
            continue
        found = frames(path, magic)
        end = next(found, (b"", 0))[1]
        header_end = end
        for payload, stop in found:
            if last_of(payload) > after_round:
                break
            end = stop
        if end == header_end:
            path.unlink()
        elif end < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(end)
