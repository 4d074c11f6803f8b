"""Rows as they were scored, kept for a week: what a candidate is held against without a replay.

Segments in `state_dir/rows`: `ROUND.rows` holds blocks of rounds, `ROUND.labels` the verdicts that
became known in them. A block has the rows that were chosen (`dataflows.row_choice`) with features,
the live bundle's votes and weights, and the events of every round in counts. Blocks end where a
manifest may be written, so that a flow that resumes cuts off whole ones and makes them again. What
holds for all rows of a block stands in its header: bundle, thresholds, stages, catalogue.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataflows.state.frames import (
    cut_off,
    frame,
    frames,
    new_segment,
    said_with_cure,
    segment_files,
)
from dataflows.state.journal import fsync_folder, write_all
from features.batch import Float64, Int64
from features.errors import StateError
from features.keys import UInt64
from features.labels import Label

__all__ = [
    "Block",
    "Rows",
    "RowLog",
    "between",
    "kept_span",
    "read_blocks",
    "read_verdicts",
    "rows_folder",
    "stack_rows",
]

FORMAT = 1
"""Layout of a segment; one with another number is refused."""

SEGMENT_S = 3_600.0
"""Cut time a segment covers at the most; chosen: what is dropped too late is a 168th of a week."""

SEGMENT_ROUNDS = 600
"""Rounds a segment covers at the least: where time runs fast, a minute of rounds, not a file a
round. Chosen."""

BLOCK_ROWS_MAX = 20_000
"""Rows that wait for the end of their block; more are written before it. Chosen: 30 MB."""

_MAGIC = b"WXR1"
_SPAN = struct.Struct("<QQI")
"""First and last round of a payload, length of its header."""

_ROWS, _LABELS = ".rows", ".labels"
_CODEC = "zstd"

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one event type that are kept, n of them, of F features and A anomaly types.

    Parameters
    ----------
    event_type : of all of them
    round, lane, row : uint64, uint16, uint32 (n,), which round and lane, and which row there
    weight : float64 (n,), how many rows each stands for
    key : uint64 (n,), of the primary entity, by which it was chosen
    event_id, entity : (n,) texts, and the name of that entity
    time_us : int64 (n,), event time
    truth : int16 (n,), code of the attack, 0 genuine, -1 not known
    names : (F,), what the features are called
    values : float64 (n, F)
    sequence : int16 (n, 16, 12), see `features.sequence`; None where the event type has none
    anomaly_types : (A,)
    score, flagged : float64 and bool (n, A), the votes of the live bundle
    """

    event_type: str
    round: UInt64
    lane: npt.NDArray[np.uint16]
    row: npt.NDArray[np.uint32]
    weight: Float64
    key: UInt64
    event_id: list[str]
    entity: list[str]
    time_us: Int64
    truth: npt.NDArray[np.int16]
    names: tuple[str, ...]
    values: Float64
    sequence: npt.NDArray[np.int16] | None
    anomaly_types: tuple[str, ...]
    score: Float64
    flagged: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.weight)


_EACH = ("round", "lane", "row", "weight", "key", "time_us", "truth", "values", "score", "flagged")
"""Arrays with a row a row."""


def stack_rows(parts: list[Rows]) -> Rows:
    """The rows of several of one event type, features and anomaly types; at least one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    arrays: dict[str, Any] = {n: np.concatenate([getattr(p, n) for p in parts]) for n in _EACH}
    sequences = [p.sequence for p in parts if p.sequence is not None]
    return Rows(
        first.event_type,
        event_id=[one for p in parts for one in p.event_id],
        entity=[one for p in parts for one in p.entity],
        names=first.names,
        sequence=np.concatenate(sequences) if sequences else None,
        anomaly_types=first.anomaly_types,
        **arrays,
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Some rounds in a row, and what is kept of them.

    Parameters
    ----------
    header : `bundle` (live), `catalog`, `thresholds`, `stages`, `shifts` of the control records in
        force, `sample`
    rounds, cut_time_us : uint64, int64 (R,)
    events : event type -> int64 (R,), rows that were scored
    rows : of each event type with any
    """

    header: dict[str, Any]
    rounds: UInt64
    cut_time_us: Int64
    events: dict[str, Int64]
    rows: tuple[Rows, ...]


def rows_folder(state_dir: Path) -> Path:
    """Where the rows lie."""
    return state_dir / "rows"


# -- bytes ----------------------------------------------------------------------------------------


def _packed(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[list[Any], bytes]:
    """What arrays are, and their bytes: columns one after the other, each byte by byte of its
    numbers, since neighbours then are alike; compressed."""
    heads, parts = [], []
    for name, array in arrays.items():
        n, columns = len(array), int(np.prod(array.shape[1:], dtype=np.int64))
        flat = np.ascontiguousarray(array.reshape(n, columns).T)  # (columns, n)
        planes = flat.view(np.uint8).reshape(columns, n, array.dtype.itemsize)
        data = np.ascontiguousarray(planes.transpose(0, 2, 1)).tobytes()
        packed = pa.compress(data, codec=_CODEC, asbytes=True)
        heads.append([name, array.dtype.str, array.shape, len(data), len(packed)])
        parts.append(packed)
    return heads, b"".join(parts)


def _unpacked(heads: list[Any], data: memoryview) -> Arrays:
    """The arrays that `_packed` packed."""
    found: Arrays = {}
    at = 0
    for name, dtype, shape, size, length in heads:
        kind = np.dtype(dtype)
        plain = pa.decompress(data[at : at + length], size, codec=_CODEC, asbytes=True)
        at += length
        columns = int(np.prod(shape[1:], dtype=np.int64))
        planes = np.frombuffer(plain, np.uint8).reshape(columns, kind.itemsize, shape[0])
        flat = np.ascontiguousarray(planes.transpose(2, 0, 1))  # (n, columns, bytes)
        found[name] = np.frombuffer(flat.tobytes(), kind).reshape(shape)
    return found


def _texts(found: list[str]) -> npt.NDArray[np.uint8]:
    """Texts as bytes."""
    return np.frombuffer(json.dumps(found).encode(), np.uint8)


def _payload(first: int, last: int, header: dict[str, Any], arrays: Arrays) -> bytes:
    """A record of a segment."""
    heads, data = _packed(arrays)
    head = json.dumps(header | {"arrays": heads}).encode()
    return _SPAN.pack(first, last, len(head)) + head + data


def _taken(payload: bytes) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of a record."""
    _, _, length = _SPAN.unpack_from(payload)
    begin = _SPAN.size + length
    header = json.loads(payload[_SPAN.size : begin])
    return header, _unpacked(header.pop("arrays"), memoryview(payload)[begin:])


def _last_of(payload: bytes) -> int:
    """The last round of a record."""
    return int(_SPAN.unpack_from(payload)[1])


def _block_arrays(block: Block) -> tuple[dict[str, Any], Arrays]:
    """What stands in a record: its header and its arrays."""
    arrays: Arrays = {"rounds": block.rounds, "cut_time_us": block.cut_time_us}
    arrays |= {f"events:{name}": counts for name, counts in block.events.items()}
    types = {}
    for rows in block.rows:
        of = rows.event_type
        types[of] = {"names": rows.names, "anomaly_types": rows.anomaly_types}
        for name in _EACH:
            arrays[f"{of}:{name}"] = getattr(rows, name)
        arrays[f"{of}:event_id"], arrays[f"{of}:entity"] = map(_texts, (rows.event_id, rows.entity))
        if rows.sequence is not None:
            arrays[f"{of}:sequence"] = rows.sequence
    return block.header | {"types": types}, arrays


def _block_of(header: dict[str, Any], arrays: Arrays) -> Block:
    """The block that `_block_arrays` took apart."""
    found = []
    for of, told in header.pop("types").items():
        texts = {
            name: json.loads(arrays[f"{of}:{name}"].tobytes()) for name in ("event_id", "entity")
        }
        each: dict[str, Any] = {name: arrays[f"{of}:{name}"] for name in _EACH}
        found.append(
            Rows(
                of,
                names=tuple(told["names"]),
                anomaly_types=tuple(told["anomaly_types"]),
                sequence=arrays.get(f"{of}:sequence"),
                **texts,
                **each,
            )
        )
    events = {
        name.removeprefix("events:"): array
        for name, array in arrays.items()
        if name.startswith("events:")
    }
    return Block(header, arrays["rounds"], arrays["cut_time_us"], events, tuple(found))


# -- reading --------------------------------------------------------------------------------------


def _segments(folder: Path, suffix: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Segments of a kind with their headers, oldest first.

    Raises
    ------
    StateError : one was written in another format
    """
    for path in segment_files(folder, suffix):
        first = next(frames(path, _MAGIC), None)
        if first is None:
            continue
        header, _ = _taken(first[0])
        if header.get("format") != FORMAT:
            raise StateError(
                f"rows {path}: format {header.get('format')}, this version reads {FORMAT}; compare"
                " with the version that wrote them, or with --exact"
            )
        yield path, header


def read_blocks(
    folder: Path, from_us: int | None = None, until_us: int | None = None
) -> Iterator[Block]:
    """Blocks with rounds cut between two times, oldest first, each round once.

    Parameters
    ----------
    from_us, until_us : blocks that have a round cut at or after the one and before the other; they
        may have others too

    Raises
    ------
    StateError : they were written in another format
    """
    known = 0
    segments = list(_segments(folder, _ROWS))
    for (path, _), following in zip_longest(segments, segments[1:]):
        ends_us = None if following is None else int(following[1]["cut_time_us"])
        if from_us is not None and ends_us is not None and ends_us < from_us:
            continue
        found = frames(path, _MAGIC)
        next(found, None)
        behind = 0
        for payload, _ in found:
            first, last, _ = _SPAN.unpack_from(payload)
            # A flow that another has taken over from may have written behind what that one cut off.
            strange = behind and first > behind + 1 and following is not None
            if last <= known or (strange and int(following[0].stem) <= first):
                continue  # two flows wrote them: the round is the same
            block = _block_of(*_taken(payload))
            if first <= known:
                block = _some(block, block.rounds > known)
            known = behind = last
            if until_us is not None and block.cut_time_us[0] >= until_us:
                return
            if from_us is None or block.cut_time_us[-1] >= from_us:
                yield block


def kept_span(folder: Path) -> tuple[tuple[int, int], dict[str, Any]] | None:
    """Cut times of the first and the last round that are kept, and the settings that the latter's
    flow ran with; None where none is.

    Raises
    ------
    StateError : they were written in another format
    """
    segments = list(_segments(folder, _ROWS))
    for path, head in reversed(segments):
        found = frames(path, _MAGIC)
        next(found, None)
        newest = deque(found, maxlen=1)
        if newest:
            last_us = int(_block_of(*_taken(newest[0][0])).cut_time_us[-1])
            return (int(segments[0][1]["cut_time_us"]), last_us), head["settings"]
    return None


def _some(block: Block, kept: npt.NDArray[np.bool_]) -> Block:
    """Some rounds of a block; bool (R,) says which."""
    rounds = block.rounds[kept]
    return Block(
        block.header,
        rounds,
        block.cut_time_us[kept],
        {name: counts[kept] for name, counts in block.events.items()},
        tuple(_those(rows, np.isin(rows.round, rounds)) for rows in block.rows),
    )


def between(block: Block, from_us: int | None, until_us: int | None) -> Block:
    """The rounds of a block that were cut at or after a time and before another."""
    at = block.cut_time_us
    kept = np.ones(len(at), np.bool_)
    if from_us is not None:
        kept &= at >= from_us
    if until_us is not None:
        kept &= at < until_us
    return block if kept.all() else _some(block, kept)


def _those(rows: Rows, kept: npt.NDArray[np.bool_]) -> Rows:
    """Some rows; bool (n,) says which."""
    if kept.all():
        return rows
    each: dict[str, Any] = {name: getattr(rows, name)[kept] for name in _EACH}
    places = np.flatnonzero(kept).tolist()
    return Rows(
        rows.event_type,
        event_id=[rows.event_id[i] for i in places],
        entity=[rows.entity[i] for i in places],
        names=rows.names,
        sequence=None if rows.sequence is None else rows.sequence[kept],
        anomaly_types=rows.anomaly_types,
        **each,
    )


def read_verdicts(folder: Path) -> dict[int, tuple[bool, int]]:
    """Key of an event -> (whether it is a fraud, its event time in us, 0 where not known), the last
    of all that are kept.

    Raises
    ------
    StateError : they were written in another format
    """
    said: dict[int, tuple[bool, int]] = {}
    for path, _ in _segments(folder, _LABELS):
        found = frames(path, _MAGIC)
        next(found, None)
        for payload, _ in found:
            _, arrays = _taken(payload)
            frauds, times = arrays["fraud"].tolist(), arrays["time_us"].tolist()
            told = zip(frauds, times, strict=True)
            said.update(zip(arrays["event"].tolist(), told, strict=True))
    return said


# -- writing --------------------------------------------------------------------------------------


@dataclass(slots=True)
class RowLog:
    """Writes the rows of a flow; one writer.

    Parameters
    ----------
    folder : made where it is missing
    settings : what stands in each segment's header
    after_round : newer blocks are cut off: they are made again
    keep_us : cut time for which rows are kept
    bytes_max : size of all segments above which the oldest go; 0 keeps all

    Raises
    ------
    StateError : the disk refuses it
    """

    folder: Path
    settings: dict[str, Any]
    after_round: int
    keep_us: int
    bytes_max: int
    _open: dict[str, Any] = field(default_factory=dict)
    _first_us: int = 0
    _first_round: int = 0
    _times: dict[str, int] = field(default_factory=dict)
    _sizes: dict[Path, int] = field(default_factory=dict)
    _header: dict[str, Any] = field(default_factory=dict)
    _rounds: list[tuple[int, int, dict[str, int]]] = field(default_factory=list)
    _rows: dict[str, list[Rows]] = field(default_factory=dict)
    _labels: list[tuple[int, bool, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._guarded(self._begin_at)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do something with the disk; a fault says the cure."""
        with said_with_cure("rows", self.folder, "rows_share"):
            act()

    def _begin_at(self) -> None:
        """Cut off what is newer than the manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for suffix in (_ROWS, _LABELS):
            cut_off(self.folder, suffix, _MAGIC, self.after_round, _last_of)
        for path, header in _segments(self.folder, _ROWS):
            self._times[path.stem] = int(header["cut_time_us"])
        for suffix in (_ROWS, _LABELS):
            for path in segment_files(self.folder, suffix):
                self._sizes[path] = path.stat().st_size

    def add(
        self,
        round_: int,
        cut_time_us: int,
        header: dict[str, Any],
        events: dict[str, int],
        rows: Iterable[Rows],
        labels: Iterable[Label],
    ) -> None:
        """Take in a round; it is on its way to the disk with `flush`.

        Parameters
        ----------
        header : what holds for its rows, see `Block`
        events : event type -> rows that were scored
        """
        if header != self._header:
            self.flush()
            self._header = header
        self._rounds.append((round_, cut_time_us, events))
        for one in rows:
            if len(one):
                self._rows.setdefault(one.event_type, []).append(one)
        self._labels += [(label.event, label.fraud, label.time_us) for label in labels]
        waiting = sum(len(one) for parts in self._rows.values() for one in parts)
        if waiting >= BLOCK_ROWS_MAX:
            self.flush()

    def flush(self) -> None:
        """End the block: what was added outlives the process, and with `sync` the machine."""
        if self._rounds:
            self._guarded(self._write)

    def _write(self) -> None:
        """See `flush`."""
        first, last = self._rounds[0][0], self._rounds[-1][0]
        cut_us = np.array([at for _, at, _ in self._rounds], np.int64)
        past = int(cut_us[0]) - self._first_us >= SEGMENT_S * 1e6
        if not self._open or (past and first - self._first_round >= SEGMENT_ROUNDS):
            self._begin(first, int(cut_us[0]))
        names = dict.fromkeys(name for *_, events in self._rounds for name in events)
        block = Block(
            self._header,
            np.array([r for r, *_ in self._rounds], np.uint64),
            cut_us,
            {n: np.array([e.get(n, 0) for *_, e in self._rounds], np.int64) for n in names},
            tuple(stack_rows(parts) for parts in self._rows.values()),
        )
        self._append(_ROWS, _payload(first, last, *_block_arrays(block)))
        if self._labels:
            event, fraud, time_us = zip(*self._labels, strict=True)
            arrays = {
                "event": np.array(event, np.int64),
                "fraud": np.array(fraud, np.bool_),
                "time_us": np.array(time_us, np.int64),
            }
            self._append(_LABELS, _payload(first, last, {}, arrays))
        self._rounds, self._rows, self._labels = [], {}, []

    def _append(self, suffix: str, payload: bytes) -> None:
        """Put a record behind the others."""
        data = frame(payload)
        write_all(self._open[suffix], data)
        path = Path(self._open[suffix].name)
        self._sizes[path] = self._sizes.get(path, 0) + len(data)

    def _begin(self, first: int, cut_us: int) -> None:
        """Begin a segment and let go of what is kept no longer."""
        self.sync()
        self._let_go()
        self._first_us, self._first_round = cut_us, first
        header = {"format": FORMAT, "cut_time_us": cut_us, "settings": self.settings}
        for suffix in (_ROWS, _LABELS):
            path = self.folder / f"{first:020d}{suffix}"
            self._open[suffix] = new_segment(path)
            head = _MAGIC + frame(_payload(first, first, header, {}))
            write_all(self._open[suffix], head)
            self._sizes[path] = len(head)
        self._times[f"{first:020d}"] = cut_us
        fsync_folder(self.folder)
        self._forget(cut_us - self.keep_us)

    def _forget(self, since_us: int) -> None:
        """Remove segments of which all rounds were cut before a time, and the oldest of too many;
        what is being written stays."""
        stems = [path.stem for path in segment_files(self.folder, _ROWS)]
        size = sum(self._sizes.values())
        for stem, following in pairwise(stems):
            ends_us = self._times.get(following, since_us + 1)
            if ends_us > since_us and (not self.bytes_max or size <= self.bytes_max):
                return
            for suffix in (_ROWS, _LABELS):
                path = self.folder / f"{stem}{suffix}"
                path.unlink(missing_ok=True)
                size -= self._sizes.pop(path, 0)
            self._times.pop(stem, None)

    def sync(self) -> None:
        """Return once everything flushed is on the disk."""

        def act() -> None:
            for file in self._open.values():
                os.fdatasync(file.fileno())

        self._guarded(act)

    def _let_go(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open = {}

    def close(self) -> None:
        """Let go of the files; what waits for its block is made again by the next flow."""
        self._let_go()
