"""Which scored rows are kept for later comparisons: a sample of the entities, the odd ones whole.

Chosen where a lane's round is scored, so that only what is kept travels on to the commit step. A
share of the entities is sampled by a hash of the primary entity, the same ones always, and each of
their rows stands for 1 / share rows. A row that a bundle flags is kept whatever its entity, and so
is every later row of that entity; likewise from the round on in which somebody called an event of
the entity a fraud. Those stand for themselves. The choice depends on the order of a lane's rows,
not on how they were cut into rounds or spread over workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.state.deltas import read_arrays, write_arrays
from dataflows.state.journal import make_folder
from dataflows.state.row_log import Rows
from features.batch import EventBatch, FeatureMatrix
from features.columns import Columns
from features.errors import StateError
from features.events import event_code, event_type
from features.keys import UInt64, hash_strings
from features.labels import Label
from features.sequence import SCALE

if TYPE_CHECKING:
    from dataflows.opinions import Opinion

__all__ = ["KeptRound", "RowChoice", "WholeEntities", "entity_names", "event_keys", "sampled"]

WHOLE_MAX = 20_000
"""Entities of a lane that are kept whole, those with the newest alerts; the others are sampled
again. Chosen: an alert every 30 s for a week, 0.5 MB a snapshot."""

_SUFFIX = ".whole"

Whole = tuple[int, int]
"""Code of the event type, key of its primary entity."""


@dataclass(frozen=True, slots=True)
class KeptRound:
    """What is kept of a lane's round.

    Parameters
    ----------
    events : event type -> rows that were scored
    rows : of each event type with any
    whole : entities that are kept whole from here on, in order
    """

    events: dict[str, int]
    rows: tuple[Rows, ...]
    whole: tuple[Whole, ...]


def sampled(keys: UInt64, share: float) -> npt.NDArray[np.bool_]:
    """Entities of the sample: the same ones always, and a larger share keeps them.

    Parameters
    ----------
    keys : uint64 (n,)
    share : in [0, 1]

    Returns
    -------
    bool (n,)

    Examples
    --------
    >>> sampled(np.array([1, 2], np.uint64), 1.0).all()
    np.True_
    """
    # Mixed once more: canaries take the low bits of a key, shard groups higher ones.
    mixed = keys * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xC4CEB9FE1A85EC53)
    at = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
    return np.asarray(at < share)


def event_keys(name: str, ids: pl.Series) -> UInt64:
    """uint64 (n,), keys of events by their type and ids, as labels name them."""
    return hash_strings(pl.select(pl.lit(f"{name} ") + ids.cast(pl.String)).to_series())


def entity_names(batch: EventBatch) -> list[str]:
    """(n,) names of the primary entities; one of several columns is written `a|b`."""
    declared = event_type(batch.event_type)
    columns = [batch.frame[c] for c in declared.entities[declared.primary]]
    if len(columns) == 1:
        return [str(value) for value in columns[0].to_list()]
    return ["|".join(map(str, values)) for values in zip(*columns, strict=True)]


@dataclass(slots=True)
class WholeEntities:
    """Entities of one lane that are kept whole, and the cut time of what they are kept for.

    Parameters
    ----------
    keep_us : cut time after which one is sampled again
    """

    keep_us: int
    _known: dict[Whole, int] = field(default_factory=dict)

    def take(self, found: Iterable[Whole], cut_time_us: int) -> None:
        """Keep these; the oldest beyond the bound go."""
        for one in found:
            self._known.pop(one, None)
            self._known[one] = cut_time_us
        while len(self._known) > WHOLE_MAX:
            del self._known[next(iter(self._known))]

    def among(self, code: int, keys: UInt64, cut_time_us: int) -> npt.NDArray[np.bool_]:
        """bool (n,), which entities of an event type are kept whole."""
        if not self._known:
            return np.zeros(len(keys), np.bool_)
        since_us = cut_time_us - self.keep_us
        at_us = (self._known.get((code, key), -1) for key in keys.tolist())
        return np.fromiter((at >= max(since_us, 0) for at in at_us), np.bool_, len(keys))

    def dump(self) -> npt.NDArray[np.uint64]:
        """uint64 (n, 3) of code, key and time, oldest first."""
        rows = [(code, key, at) for (code, key), at in self._known.items()]
        return np.array(rows, np.uint64).reshape(-1, 3)

    def load(self, rows: npt.NDArray[np.uint64]) -> None:
        """Be as in a dump."""
        self._known = {(code, key): at for code, key, at in rows.tolist()}


class RowChoice:
    """Chooses rows of the lanes of a process, or follows the choice of all of them.

    Parameters
    ----------
    folder : of the row log, where the entities that are kept whole are saved
    share : of the entities in the sample
    keep_us : cut time for which rows are kept
    round_ : the manifest's: what was saved later is left alone
    """

    def __init__(self, folder: Path, share: float, keep_us: int, round_: int) -> None:
        self._folder, self._share, self._keep_us = folder, share, keep_us
        self._changed = False
        self._whole = self._load(round_)

    def _lane(self, lane: int) -> WholeEntities:
        """The entities of a lane."""
        return self._whole.setdefault(lane, WholeEntities(self._keep_us))

    def take(self, lane: int, whole: Iterable[Whole], cut_time_us: int) -> None:
        """Keep entities of a lane whole, as another process chose."""
        found = tuple(whole)
        if found:
            self._changed = True
            self._lane(lane).take(found, cut_time_us)

    def choose(
        self,
        lane: int,
        round_: int,
        cut_time_us: int,
        judged: Iterable[tuple[EventBatch, FeatureMatrix, Sequence[Opinion]]],
        labels: Iterable[Label],
    ) -> KeptRound:
        """The rows of a lane's round that are kept.

        Parameters
        ----------
        judged : events, features and what each bundle makes of them, the live one first; by event
            type
        labels : verdicts that became known before them
        """
        known = self._lane(lane)
        whole = dict.fromkeys(_called(labels))
        known.take(whole, cut_time_us)
        events, rows = {}, []
        for batch, features, found in judged:
            name = batch.event_type
            events[name] = len(batch)
            if not len(batch):
                continue
            keys = Columns(batch).key(event_type(name).primary)
            nobody = keys == 0
            if nobody.any():  # each such event stands alone
                keys = np.where(nobody, event_keys(name, batch.frame["event_id"]), keys)
            flagged = np.zeros(len(batch), np.bool_)
            for opinion in found:
                flagged |= opinion.decisions.flagged.any(axis=1)
            code = event_code(name)
            certain = known.among(code, keys, cut_time_us)
            if flagged.any():
                certain |= _since(keys, flagged)
                odd = [(code, key) for key in keys[flagged].tolist()]
                whole.update(dict.fromkeys(odd))
                known.take(odd, cut_time_us)
            kept = np.flatnonzero(certain | sampled(keys, self._share))
            if len(kept):
                weight = np.where(certain[kept], 1.0, 1.0 / self._share)
                rows.append(_rows(batch, features, found[0], round_, lane, keys, kept, weight))
        return KeptRound(events, tuple(rows), tuple(whole))

    def save(self, round_: int) -> None:
        """Write the entities that are kept whole, where they have changed since.

        Raises
        ------
        StateError : the disk refuses it
        """
        if not self._changed:
            return
        self._changed = False
        make_folder(self._folder)
        arrays = {str(lane): known.dump() for lane, known in self._whole.items()}
        write_arrays(self._folder / f"{round_:020d}{_SUFFIX}", arrays, {})

    def forget(self, after: int, before: int) -> None:
        """Remove what was saved after a round, and what no restart from `before` on needs."""
        files = list(self._files())
        needed = max((r for r, _ in files if r <= before), default=0)
        for r, path in files:
            if r > after or r < needed:
                path.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[int, Path]]:
        """(round, path) of each file, oldest first."""
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path.stem.isdecimal():
                yield int(path.stem), path

    def _load(self, round_: int) -> dict[int, WholeEntities]:
        """What was saved up to a round; a damaged file is as none: who was kept whole is sampled
        then, and the weights stay true."""
        for r, path in reversed(list(self._files())):
            if r > round_:
                continue
            try:
                arrays, _ = read_arrays(path)
            except StateError:
                continue
            found = {}
            for lane, rows in arrays.items():
                found[int(lane)] = WholeEntities(self._keep_us)
                found[int(lane)].load(rows)
            return found
        return {}


def _called(labels: Iterable[Label]) -> Iterator[Whole]:
    """Entities of which an event was called a fraud."""
    for label in labels:
        key = dict(label.entities).get(label.primary)
        if label.fraud and key is not None:
            yield label.code, key % 2**64


def _since(keys: UInt64, flagged: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """bool (n,), rows of an entity from its first flagged row on."""
    rows = np.flatnonzero(flagged)
    first, at = np.unique(keys[rows], return_index=True)
    place = np.searchsorted(first, keys).clip(max=len(first) - 1)
    return np.asarray((first[place] == keys) & (np.arange(len(keys)) >= rows[at][place]))


def _rows(
    batch: EventBatch,
    features: FeatureMatrix,
    live: Opinion,
    round_: int,
    lane: int,
    keys: UInt64,
    kept: npt.NDArray[np.intp],
    weight: npt.NDArray[np.float64],
) -> Rows:
    """Some rows of one event type, to be kept."""
    few = batch.take(kept)
    sequence = features.sequence
    made = live.decisions
    arrays: Mapping[str, Any] = {
        "round": np.full(len(kept), round_, np.uint64),
        "lane": np.full(len(kept), lane, np.uint16),
        "row": kept.astype(np.uint32),
        "time_us": few.time_us,
        "truth": np.full(len(kept), -1, np.int16) if few.truth is None else few.truth,
    }
    fixed = None
    if sequence is not None:  # as the engine keeps it: 16-bit fixed point
        fixed = np.rint(sequence[kept] * np.float32(SCALE)).astype(np.int16)
    return Rows(
        batch.event_type,
        weight=weight,
        key=keys[kept],
        event_id=[str(one) for one in few.frame["event_id"].to_list()],
        entity=entity_names(few),
        names=features.names,
        values=features.values[kept],
        sequence=fixed,
        anomaly_types=made.anomaly_types,
        score=made.score[kept],
        flagged=made.flagged[kept],
        **arrays,
    )
