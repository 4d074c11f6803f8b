"""Bundles from elsewhere: archives, and places that fsspec reaches (s3://, gs://, https://).

What comes is brought to a folder of this machine first, bounded in size, and checked there like any
other bundle; an archive cannot write outside of that folder.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import time
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dataflows.addresses import address_fault, file_name, is_archive, is_elsewhere, masked
from features.errors import BundleError
from models.bundle import read_head

__all__ = ["BYTES_MAX", "FETCH_S", "brought", "peeked"]

BYTES_MAX = 4_000_000_000
"""Most bytes of a bundle, packed or not. Chosen: a hundred times the largest we have trained."""

FILES_MAX = 10_000
"""Most files of a bundle. Chosen: one has some dozens."""

FETCH_S = 120.0
"""How long a bundle may take to come. Chosen: the largest we have trained has 40 MB, which come
over a slow line."""

CHUNK_BYTES = 1 << 20
"""Read at once from a URL. Chosen: little memory, and few calls."""

HEADERS_BYTES_MAX = 32_000_000
"""Most bytes of an archive beside what its files hold. Chosen: FILES_MAX headers with long names;
a header is read into memory as a whole."""

_PACKED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
"""How the files of compressed archives begin, and what reads them."""

_UNREADABLE = (
    *(OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile),
    *(zlib.error, lzma.LZMAError, RuntimeError),
)
"""What a damaged archive raises, by its kind; RuntimeError is an encrypted one."""

_CURE = "make it again, or name the folder of the bundle"


def brought(place: str, into: Path) -> Path:
    """The folder of the bundle of a place, below `into` where it had to be brought there.

    Parameters
    ----------
    place : folder, archive (.tar, .tar.gz, .tgz, .zip, ...), or URL of either
    into : an empty folder, which the caller removes

    Raises
    ------
    BundleError : it may not be asked or cannot be reached, is damaged or too large, or holds no
        bundle
    """
    fault = address_fault(place)
    if fault is not None:
        raise BundleError(f"bundle {masked(place)}: {fault}")
    if not is_elsewhere(place):
        return Path(place)
    path = Path(place)
    if "://" in place:
        path = into / "fetched"
        if is_archive(place):
            path = into / file_name(place)
        _fetch(place, path)
    if not is_archive(place):
        return path
    _unpack(path, into / "unpacked")
    heads = sorted((into / "unpacked").rglob("bundle.json"), key=lambda p: len(p.parts))
    if not heads:
        raise BundleError(f"bundle {place}: the archive holds no bundle.json; {_CURE}")
    return heads[0].parent


def peeked(place: str, into: Path) -> Path:
    """A folder with `bundle.json` and `voting.toml` of the bundle at a URL, and no more of it.

    Raises
    ------
    BundleError : it may not be asked or cannot be reached, or has no such files
    """
    if fault := address_fault(place):
        raise BundleError(f"bundle {masked(place)}: {fault}")
    into.mkdir(parents=True)
    _fetch(place, into, ("bundle.json", "voting.toml"))
    return into


def _fetch(place: str, path: Path, names: tuple[str, ...] = ()) -> None:
    """Copy a file, or the files of a bundle, from a URL; `names` are those to copy, where given."""
    import fsspec

    # Whole blocks of a server that knows of none would be kept in memory; a stream is not.
    how = {"block_size": 0} if place.startswith("http") else {}
    budget = _Budget(place)
    try:
        system, root = fsspec.url_to_fs(place)
        for name in names:
            _copied(system, f"{root.rstrip('/')}/{name}", path / name, budget, how)
        if names:
            return
        if path.name != "fetched":
            _copied(system, root, path, budget, how)
            return
        _copied(system, f"{root.rstrip('/')}/bundle.json", path / "bundle.json", budget, how)
        for name in read_head(path)["files"]:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise BundleError(f"bundle {place}: bundle.json names files outside of it")
            _copied(system, f"{root.rstrip('/')}/{name}", path / name, budget, how)
    except BundleError as error:
        raise BundleError(str(error).replace(str(path), place)) from None
    except Exception as error:  # each kind of place raises what its library does
        raise BundleError(
            f"bundle {place} cannot be fetched ({type(error).__name__}: {error}); see that it is"
            " there and may be read, and that the library for its kind of place is installed"
        ) from None


@dataclass(slots=True)
class _Budget:
    """What may still come of a bundle, all of its files together."""

    place: str
    files: int = field(default_factory=lambda: FILES_MAX)
    bytes: int = field(default_factory=lambda: BYTES_MAX)
    until_s: float = field(default_factory=lambda: time.monotonic() + FETCH_S)

    def spend(self, files: int, n_bytes: int) -> None:
        """BundleError where more comes than may, or too slowly."""
        self.files -= files
        self.bytes -= n_bytes
        if self.files < 0 or self.bytes < 0:
            raise BundleError(
                f"bundle {self.place}: more than {FILES_MAX:,} files or {BYTES_MAX:,} bytes;"
                f" {_CURE}"
            )
        if time.monotonic() > self.until_s:
            raise BundleError(
                f"bundle {self.place}: did not come within {FETCH_S:g} s; bring it nearer"
            )


def _copied(system: Any, name: str, path: Path, budget: _Budget, how: dict[str, int]) -> None:
    """Copy one file, whatever its place says of its size, not more of it than may be."""
    budget.spend(1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with system.open(name, "rb", **how) as source, path.open("wb") as target:
        while chunk := source.read(CHUNK_BYTES):
            budget.spend(0, len(chunk))
            target.write(chunk)


def _unpack(path: Path, into: Path) -> None:
    """Unpack an archive; nothing of it can lie outside of `into`."""
    into.mkdir()
    try:
        if path.name.lower().endswith(".zip"):
            with _Modest(io.FileIO(path)) as raw, zipfile.ZipFile(raw) as packed:
                members = packed.infolist()
                budget = _Budget(str(path))
                budget.spend(len(members), sum(m.file_size for m in members))
                packed.extractall(into)
        else:
            _unpack_tar(path, into)
    except _UNREADABLE as error:
        shutil.rmtree(into, ignore_errors=True)
        raise BundleError(
            f"bundle {path}: the archive cannot be read ({type(error).__name__}: {error}); {_CURE}"
        ) from None


def _unpack_tar(path: Path, into: Path) -> None:
    """Unpack a tar file as it is read: nothing behind what may be is read at all."""
    with path.open("rb") as file:
        head = file.read(8)
    how = next((how for magic, how in _PACKED if head.startswith(magic)), io.FileIO)
    budget = _Budget(str(path))
    with how(path) as plain:
        bounded = _Bounded(plain, HEADERS_BYTES_MAX)
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            while (member := archive.next()) is not None:
                if member.size < 0:
                    raise tarfile.ReadError(f"{member.name} of {member.size} bytes")
                budget.spend(1, member.size)
                bounded.left += member.size
                archive.extract(member, into, filter="data")
                archive.members.clear()  # type: ignore[attr-defined]  # else all headers are kept


class _Bounded(io.RawIOBase):
    """A stream of which no more is read than may be."""

    def __init__(self, stream: Any, left: int) -> None:
        self._stream, self.left = stream, left

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        found: bytes = self._stream.read(min(size, self.left) if size >= 0 else self.left)
        self.left -= len(found)
        if not self.left:
            raise tarfile.ReadError(f"headers of more than {HEADERS_BYTES_MAX:,} bytes")
        return found


class _Modest(io.BufferedReader):
    """A zip file whose list of files is not read into memory where it is too long."""

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BufferedReader`."""
        if size is not None and size > HEADERS_BYTES_MAX:
            raise zipfile.BadZipFile(f"a list of files of more than {HEADERS_BYTES_MAX:,} bytes")
        return super().read(size)
