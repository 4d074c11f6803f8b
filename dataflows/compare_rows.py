"""A candidate bundle beside the live one on the rows that a flow has kept: days in minutes.

Features, votes of then and weights stand in the row log (`dataflows.state.row_log`); only the
candidate is asked. What the sample says of rows that nobody flagged are estimates with intervals.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.certify import moment
from dataflows.comparison import EXAMPLES_MAX, Compared, Comparison
from dataflows.control.records import Control
from dataflows.elsewhere import Remotes
from dataflows.opinions import shifts_of
from dataflows.recorded import load_recorded
from dataflows.settings import Settings
from dataflows.shelf import Seat, Shelf, load_scorer
from dataflows.state.row_log import (
    Block,
    Rows,
    between,
    kept_span,
    read_blocks,
    read_verdicts,
    rows_folder,
    stack_rows,
)
from features.batch import FeatureMatrix
from features.catalog import Catalog, catalog
from features.errors import BundleError, ConfigError, StateError
from features.sequence import SCALE
from models.base import Decisions
from models.bundle import Bundle
from models.scoring import Scorer

__all__ = ["compare_rows"]

TOGETHER_ROWS = 8_192
"""Rows of one event type that are scored together. Chosen: what it costs to ask a detector no
longer counts then."""


def compare_rows(
    state_dir: Path,
    config: str | None,
    given: dict[str, Any],
    candidate: Path,
    days: float | None = None,
    from_us: int | None = None,
    until_us: int | None = None,
    examples_max: int = EXAMPLES_MAX,
) -> dict[str, Any]:
    """The candidate beside what was live, over kept rows of a flow; plain data (docs/json.md).

    Parameters
    ----------
    state_dir : of the flow; may be live, nothing in it is touched
    config, given : settings file, and settings of the command line, which win over those recorded
    candidate : folder of the bundle
    days : the last so many, of cut time, as far as they are kept; in place of the two
    from_us, until_us : cut times of the first round and of the one after the last

    Raises
    ------
    WaxwingError : there are no rows of the time or the catalogue, or the bundle cannot be used,
        with the cure
    """
    begun = time.monotonic()
    if from_us is not None and until_us is not None and from_us >= until_us:
        raise ConfigError("--from: must be before --to")
    folder = rows_folder(state_dir)
    kept, recorded = _kept(state_dir)
    if days is not None:
        from_us = kept[1] - round(days * 86_400e6)
    settings = load_recorded(recorded, state_dir, config, given)
    cat = catalog()  # of the features that the settings choose
    models = _Models(settings, cat, candidate)
    verdicts = read_verdicts(folder)
    found = Comparison(cat, {key: said for key, (said, _) in verdicts.items()}, examples_max)
    covered = _Covered()
    blocks = (between(b, from_us, until_us) for b in read_blocks(folder, from_us, until_us))
    for together in _alike(covered.seen(cat, (b for b in blocks if len(b.rounds)))):
        _add(found, models, together)
    covered.check(state_dir, cat, kept)
    return {
        "candidate": models.candidate.bundle.id,
        "live": list(covered.live),
        "from_us": covered.from_us,
        "until_us": covered.until_us,
        "rounds": covered.rounds,
        **found.report(),
        "rows": covered.rows,
        "coverage": covered.told(),
        **_without_row(covered, found, verdicts),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _kept(state_dir: Path) -> tuple[tuple[int, int], dict[str, Any]]:
    """Cut times of the first and the last round with kept rows, and the settings of the latter.

    Raises
    ------
    StateError : there is none
    """
    if not state_dir.is_dir():
        raise StateError(
            f"state_dir {state_dir} does not exist; name the folder of a flow that ran"
            " (`--set state_dir=FOLDER`)"
        )
    found = kept_span(rows_folder(state_dir))
    if found is None:
        raise StateError(
            f"state_dir {state_dir} has no kept rows: no flow ran on it, or with rows_share = 0;"
            " `--exact` replays its journal"
        )
    return found


class _Models:
    """The candidate, and the bundles that were live.

    Parameters
    ----------
    settings : of the flow
    candidate : folder of the bundle
    """

    def __init__(self, settings: Settings, cat: Catalog, candidate: Path) -> None:
        # Nobody is asked elsewhere: what was answered then is not known for other models.
        bundle = Remotes(settings).placed(Bundle.load(settings.bundle, cat))
        base = Scorer(bundle, settings.detectors)
        self.candidate = load_scorer(candidate, cat, base)
        self.seat = Seat(self.candidate.bundle.id, self.candidate, "shadow", 100.0, False)
        self._shelf = Shelf(settings.state_dir, cat, base, settings.bundle)
        self._bundles = {b.id: b for b in (self.candidate.bundle, bundle)}

    def live(self, bundle: str) -> Bundle:
        """A bundle that was live, to say what is usual; the candidate where it is gone."""
        if bundle not in self._bundles:
            try:
                self._bundles[bundle] = self._shelf.scorer(bundle).bundle
            except BundleError:
                self._bundles[bundle] = self.candidate.bundle
        return self._bundles[bundle]


def _alike(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Blocks in a row under one header, with enough rows to be scored together."""
    waiting: list[Block] = []
    for block in blocks:
        if waiting and block.header != waiting[0].header:
            yield waiting
            waiting = []
        waiting.append(block)
        if sum(len(rows) for one in waiting for rows in one.rows) >= TOGETHER_ROWS:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _add(found: Comparison, models: _Models, blocks: list[Block]) -> None:
    """Have the candidate score the rows of some blocks; hold its votes against those of then."""
    header = blocks[0].header
    control = Control(
        thresholds={(kind, detector): value for kind, detector, value in header["thresholds"]},
        stages={name: (stage, percent) for name, (stage, percent) in header["stages"].items()},
        shifts={name: (value, of) for name, (value, of) in header["shifts"].items()},
    )
    scorer, weight_max = models.candidate, 1.0 / header["sample"]
    for name in dict.fromkeys(name for block in blocks for name in block.events):
        events = sum(int(b.events[name].sum()) for b in blocks if name in b.events)
        parts = [rows for block in blocks for rows in block.rows if rows.event_type == name]
        if not parts:
            rules = scorer.voting.of(name) if name in scorer.bundle.models else ()
            found.none_kept((rule.name for rule in rules), events, weight_max)
            continue
        rows = stack_rows(parts)
        features = _features(rows, header["catalog"])
        now = scorer.decide(
            scorer.score(features, control.stages),
            control.thresholds,
            control.stages,
            rows.key,
            shifts_of(control, models.seat),
        )
        compared = Compared(
            name,
            rows.event_id,
            rows.entity,
            rows.time_us,
            rows.truth,
            rows.weight,
            rows.key,
            weight_max,
        )
        live = models.live(header["bundle"])
        found.add(compared, features, (live, _then(rows)), (scorer.bundle, now), events)


def _features(rows: Rows, version: str) -> FeatureMatrix:
    """Rows as a model reads them."""
    sequence = None
    if rows.sequence is not None:
        sequence = rows.sequence.astype(np.float32) / np.float32(SCALE)
    return FeatureMatrix(rows.event_type, rows.names, rows.values, sequence, version)


def _then(rows: Rows) -> Decisions:
    """The votes of then; of single detectors nothing is kept."""
    a = len(rows.anomaly_types)
    return Decisions(
        rows.event_type,
        rows.anomaly_types,
        (),
        rows.score,
        rows.flagged,
        np.zeros((len(rows), a, 0), np.bool_),
        np.ones((a, 0)),
    )


@dataclass(slots=True)
class _Covered:
    """Which rounds have been looked at.

    Parameters
    ----------
    stretches : (first and last cut time, next round, share of the entities in the sample, whether
        rounds are missing before it) of rounds in a row
    other : catalogues of rows that cannot be scored
    """

    stretches: list[list[Any]] = field(default_factory=list)
    live: dict[str, None] = field(default_factory=dict)
    other: dict[str, None] = field(default_factory=dict)
    rounds: int = 0
    rows: int = 0

    def seen(self, cat: Catalog, blocks: Iterable[Block]) -> Iterator[Block]:
        """The blocks that can be scored, noted."""
        for block in blocks:
            header, first = block.header, int(block.rounds[0])
            if header["catalog"] != cat.version:
                self.other.setdefault(header["catalog"])
                continue
            begins, ends = int(block.cut_time_us[0]), int(block.cut_time_us[-1])
            following, share = int(block.rounds[-1]) + 1, header["sample"]
            last = self.stretches[-1] if self.stretches else None
            if last is not None and last[2] == first and last[3] == share:
                last[1], last[2] = ends, following
            else:
                gap = last is not None and last[2] != first
                self.stretches.append([begins, ends, following, share, gap])
            self.live.setdefault(header["bundle"])
            self.rounds += len(block.rounds)
            self.rows += sum(map(len, block.rows))
            yield block

    @property
    def from_us(self) -> int:
        """Cut time of the first round."""
        return int(self.stretches[0][0])

    @property
    def until_us(self) -> int:
        """Cut time of the last round."""
        return int(self.stretches[-1][1])

    def check(self, state_dir: Path, cat: Catalog, of: tuple[int, int]) -> None:
        """StateError where nothing could be looked at; `of` is what there is, in cut time."""
        if self.stretches:
            return
        if self.other:
            raise StateError(
                f"state_dir {state_dir}: the kept rows are of catalogue {', '.join(self.other)},"
                f" the candidate reads {cat.version}; `--exact` computes its features from the"
                " journal"
            )
        raise StateError(
            f"state_dir {state_dir}: no rows are kept of rounds cut between the times given; there"
            f" are some from {moment(of[0])} to {moment(of[1])} (cut_time)"
        )

    def told(self) -> list[dict[str, Any]]:
        """The stretches, plain data."""
        return [
            {"from_us": begins, "until_us": ends, "sample": share, "gap": gap}
            for begins, ends, _, share, gap in self.stretches
        ]


def _without_row(
    covered: _Covered, found: Comparison, verdicts: dict[int, tuple[bool, int]]
) -> dict[str, int]:
    """Known frauds of which no row was kept: those of the time that is covered, and those that may
    be of any time, since their labels do not say when the event was."""
    times = [at for key, (fraud, at) in verdicts.items() if fraud and key not in found.met]
    return {
        "frauds_without_row": sum(covered.from_us <= at <= covered.until_us for at in times if at),
        "frauds_without_time": times.count(0),
    }
