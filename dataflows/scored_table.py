"""A table of events in, the same table with scores out: the way of `waxwing score`.

Whoever has no Kafka yet has a file. Its rows go through the features, models and votes of the live
flow, in the order of their times, and come back in their own order, one row each: what each
detector said, what the vote made of it, and why. What is refused comes back with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.arrivals import Arrivals
from dataflows.elsewhere import Remotes
from dataflows.entry import faults_of
from dataflows.evaluation import load_warm
from dataflows.history import Pass, run_history
from dataflows.settings import Settings
from dataflows.sources.base import DeadLetter, LaneReader
from dataflows.sources.files import FileReader
from dataflows.together import Together
from dataflows.warm import COLD, warm_folder
from features.batch import EventBatch, FeatureMatrix, Float64, Int64
from features.catalog import Catalog, catalog
from features.engine import warm_up
from features.errors import ConfigError, WaxwingError
from features.events import event_type, made_types
from models.base import Decisions
from models.bundle import Bundle
from models.calibration import surprises_of
from models.decisions.reasons import reasons
from models.scoring import Scorer, detectors_of
from models.voting import Voting

__all__ = ["SCORED", "ScoredTable", "score_table", "write_table"]

SCORED, REFUSED, DUPLICATE = "scored", "refused", "duplicate"
"""What became of a row."""

REASON_SCORE = 0.99
"""Ensemble score from which a row's top reason is told, flagged or not. Chosen: a sentence costs 60
us, and what one row in a hundred has needs none."""

ABSENCES_MAX = 1_000
"""Most alerts on silent entities that are kept; chosen: a report shows fewer."""

SHOWN: dict[str, str] = {"metric": "value", "payment": "amount", "app_log": "duration_ms"}
"""Event type -> the number a report draws."""


@dataclass(slots=True)
class ScoredTable:
    """What became of a table.

    Parameters
    ----------
    rows : a row for each row of the file, in its order: `row`, `status`, `reason`, `event_id`,
        `time`, `entity`, `warming`, `fitted`, `score`, `together`, `extrapolated`, `alert`,
        `anomaly_type`, `votes`, `top_reason`, `events`, `alerts`, and DETECTOR`_raw`, `_score`,
        `_vote` of each detector; `label` where the mapping has labels
    series : each event: `entity`, `time_us`, `value`, `score`, `alert`, `odd` (labelled as an
        anomaly); empty unless asked for
    silent : alerts on entities that were overdue: `time`, `entity`, `top_reason`
    event_type, bundle : of the rows, id of the models
    detectors : those that ran
    events, absences : scored, and rows made for entities that were overdue
    fit_us : event time up to which the models were fitted on these rows, None where they were not
    warm_us : event time before which rows of the fit only warmed the features up: all was new
    votes : detector -> rows it voted for
    stayed_out : detectors that had nothing to learn from, or nothing to say of any row
    """

    rows: pl.DataFrame
    series: pl.DataFrame
    silent: pl.DataFrame
    event_type: str
    bundle: str
    detectors: tuple[str, ...]
    events: int
    absences: int
    fit_us: int | None = None
    warm_us: int | None = None
    votes: dict[str, int] = field(default_factory=dict)
    stayed_out: tuple[str, ...] = ()


def score_table(
    settings: Settings,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
    *,
    fit_us: int | None = None,
    labelled: bool = False,
    keep_series: bool = False,
) -> ScoredTable:
    """Score every row of the settings' one file.

    Parameters
    ----------
    settings : `file_paths` with one file, `file_mapping`, `bundle`, `detectors`, `voting`
    say : told what is being done, one sentence at a time
    progress : as of `run_history`
    fit_us : event time up to which the bundle was fitted on this very file: then nothing of it is
        known before its first row
    labelled : whether the file's labels are heard of as they would have come (those of the past
        are features), as in the live flow; else only those under way in the warm state are
    keep_series : whether the events are kept for a report

    Raises
    ------
    ConfigError, BundleError, SourceError : with the cure
    """
    if len(settings.file_paths) != 1:
        raise ConfigError("one file is scored at a time; give one --data")
    cat = catalog()
    remotes = Remotes(settings, patient=True)
    scorer, files = _opened(settings, cat, remotes)
    bundle = scorer.bundle
    ((name, n),) = files.rows.items()
    if not n:
        raise ConfigError(f"{settings.file_paths[name]}: has no rows")
    if name not in bundle.models:
        raise ConfigError(
            f"bundle {settings.bundle} has no models for {name} (it has"
            f" {', '.join(bundle.models)}); fit some on the table itself: --fit-until TIME"
        )
    begin = None if fit_us is not None else _begin(settings, files, cat, say)
    warm_up(cat)
    scorer.warm_up()
    taker = _Taker(cat, scorer, name, n, keep_series)
    reader: LaneReader = files
    arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6)) if labelled else None
    try:
        run_history(
            settings, cat, reader, taker, progress, begin, arrivals, taker.refuse
        )  # fmt: skip
    finally:
        files.close()
        remotes.close()
    return taker.table(fit_us)


def _opened(settings: Settings, cat: Catalog, remotes: Remotes) -> tuple[Scorer, FileReader]:
    """The models and the file; what is wrong with either is said at once."""
    faults: list[str] = []
    scorer = files = None
    try:
        bundle = remotes.placed(Bundle.load(settings.bundle, cat))
        voting = None if settings.voting is None else Voting.load(settings.voting)
        scorer = Scorer(bundle, detectors_of(bundle, settings.detectors_asked), voting)
    except WaxwingError as error:
        faults += faults_of(error)
    try:
        files = FileReader(settings)
    except WaxwingError as error:
        faults += faults_of(error)
    if scorer is None or files is None:
        raise ConfigError(faults)
    return scorer, files


def _begin(
    settings: Settings, files: FileReader, cat: Catalog, say: Callable[[str], None]
) -> Pass | None:
    """The warm state beside the bundle where it is the past of the file, as the live flow takes
    it."""
    if settings.warm_state == COLD:
        return None
    folder, begin, why = warm_folder(settings), None, ""
    try:
        begin = load_warm(folder, settings, cat)
    except WaxwingError as error:
        why = str(error)
    if begin is None:
        why = why or f"there is no {folder}"
    elif files.starts_us is not None and begin.until_us > files.starts_us:
        begin, why = None, f"{folder} ends after the file begins"
    if begin is None:
        say(f"starts cold ({why}): expect alerts until entities are known")
    else:
        say(f"starts from the warm state in {folder}")
    return begin


class _Taker:
    """Scores what comes and puts it where the row stands in the file."""

    def __init__(self, cat: Catalog, scorer: Scorer, name: str, n: int, keep_series: bool) -> None:
        d = len(scorer.detectors)
        self._catalog, self._scorer, self._name, self._n = cat, scorer, name, n
        self._keep_series = keep_series
        self._best = np.full(n, -1.0)
        self._events, self._alerts = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self._score = np.full(n, np.nan)
        self._alert, self._beyond = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self._kind = np.zeros(n, np.int16)
        self._kinds: tuple[str, ...] = ()
        self._raw, self._scores = np.full((n, d), np.nan), np.full((n, d), np.nan)
        self._votes = np.zeros((n, d), np.bool_)
        self._together = Together(n)
        self._label: Int64 | None = None
        self._texts: list[pl.DataFrame] = []
        self._told: dict[int, str] = {}
        self._series: list[pl.DataFrame] = []
        self._refused: dict[int, str] = {}
        self._silent: list[tuple[int, str, str]] = []
        self._count = self._absences = 0

    def refuse(self, letters: Sequence[DeadLetter]) -> None:
        """Remember why rows are no events."""
        for letter in letters:
            self._refused.setdefault(letter.offset, f"{letter.reason}: {letter.detail}")

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch and its features."""
        raw = np.empty((len(batch), len(self._scorer.columns(batch.event_type))))
        scores = self._scorer.score(features, {}, raw)
        decisions = self._scorer.decide(scores, {})
        flagged = np.asarray(decisions.flagged.any(axis=1))
        if batch.event_type in made_types():
            self._add_absences(batch, features, flagged)
            return
        self._kinds = decisions.anomaly_types
        score, kind = _strongest(decisions)
        rows = batch.offset
        self._count += len(batch)
        np.add.at(self._events, rows, 1)
        np.add.at(self._alerts, rows, flagged)
        self._together.add(rows, surprises_of(score))
        if batch.truth is not None:
            if self._label is None:
                self._label = np.zeros(self._n, np.int64)
            self._label[rows] = batch.truth
        if self._keep_series:
            self._series.append(_series(batch, score, flagged))
        # Of a wide table's row its strangest cell is shown.
        key = 2.0 * flagged + np.nan_to_num(score)
        order = np.lexsort((-batch.partition, key, rows))
        chosen = order[np.append(rows[order][1:] != rows[order][:-1], True)]
        chosen = chosen[key[chosen] > self._best[rows[chosen]]]
        at = rows[chosen]
        self._best[at], self._score[at], self._alert[at] = key[chosen], score[chosen], False
        self._alert[at], self._kind[at] = flagged[chosen], kind[chosen]
        if self._kinds:
            self._beyond[at] = self._scorer.extrapolated(scores)[chosen, kind[chosen]]
        self._raw[at], self._scores[at] = raw[chosen], scores.scores[chosen]
        self._votes[at] = np.asarray(decisions.votes.any(axis=1))[chosen]
        self._texts.append(_texts(batch, chosen))
        for i in chosen[(score[chosen] >= REASON_SCORE) | flagged[chosen]].tolist():
            self._told[int(rows[i])] = self._why(features, i)

    def _add_absences(
        self, batch: EventBatch, features: FeatureMatrix, flagged: npt.NDArray[np.bool_]
    ) -> None:
        """Count absences, and keep those that are alerts."""
        self._absences += len(batch)
        subject = event_type(batch.event_type).subject or ("", "")
        for i in np.flatnonzero(flagged).tolist():
            if len(self._silent) < ABSENCES_MAX:
                values = batch.frame.row(i, named=True)
                told = self._why(features, i)
                self._silent.append((values["time_us"], str(values[subject[1]]), told))

    def _why(self, features: FeatureMatrix, row: int) -> str:
        """The strongest reason, empty where no feature alone is strange."""
        told = reasons(self._catalog, self._scorer.bundle, features, row)
        return told[0][1] if told else ""

    def table(self, fit_us: int | None) -> ScoredTable:
        """All of it, in the order of the file."""
        bundle = self._scorer.bundle
        left_out = bundle.training.get("left_out", ())
        warm_us = None if fit_us is None else int(bundle.training["sets"][self._name]["from_us"])
        detectors = self._scorer.detectors
        return ScoredTable(
            self._rows(fit_us, warm_us),
            pl.concat(self._series) if self._series else _no_series(),
            pl.DataFrame(
                self._silent,
                schema={"time": pl.Int64, "entity": pl.String, "top_reason": pl.String},
                orient="row",
            ).with_columns(pl.from_epoch("time", "us").dt.replace_time_zone("UTC")),
            self._name,
            bundle.id,
            detectors,
            self._count,
            self._absences,
            fit_us,
            warm_us,
            {d: int(self._votes[:, i].sum()) for i, d in enumerate(detectors)},
            (
                *left_out,
                *(d for i, d in enumerate(detectors) if np.isnan(self._scores[:, i]).all()),
            ),
        )

    def _rows(self, fit_us: int | None, warm_us: int | None) -> pl.DataFrame:
        """A row for each row of the file."""
        n, seen = self._n, self._events > 0
        told = pl.DataFrame(
            {"row": list(self._told), "top_reason": list(self._told.values())},
            schema={"row": pl.Int64, "top_reason": pl.String},
        )
        why = pl.DataFrame(
            {"row": list(self._refused), "reason": list(self._refused.values())},
            schema={"row": pl.Int64, "reason": pl.String},
        )
        texts = pl.concat(self._texts) if self._texts else _no_texts()
        # Where a row was met again, what came last is what won.
        texts = texts.unique("row", keep="last", maintain_order=True)
        vote = {"score": self._score, "together": self._together.surprise()}
        scored = vote | {"extrapolated": self._beyond} | {
            f"{name}_{what}": array[:, i]
            for i, name in enumerate(self._scorer.detectors)
            for what, array in (
                ("raw", self._raw), ("score", self._scores), ("vote", self._votes),
            )
        }  # fmt: skip
        kinds = np.array([*self._kinds, ""], object)
        kind = kinds[np.where(self._alert, self._kind, len(self._kinds))]
        frame = pl.DataFrame(
            {
                "row": np.arange(n),
                "events": self._events,
                "alerts": self._alerts,
                "alert": self._alert,
                "anomaly_type": pl.Series(kind.tolist(), dtype=pl.String),
                "votes": self._votes.sum(axis=1).astype(np.int32),
                **scored,
            }
        ).with_columns(pl.col(pl.Float64).fill_nan(None))
        frame = frame.join(texts, "row", "left").join(told, "row", "left").join(why, "row", "left")
        status = (
            pl.when(pl.Series(seen)).then(pl.lit(SCORED))
            .when(pl.col("reason").is_not_null()).then(pl.lit(REFUSED))
            .otherwise(pl.lit(DUPLICATE))
        )  # fmt: skip
        before = {
            name: pl.lit(False) if at is None else (pl.col("time_us") < at).fill_null(False)
            for name, at in (("warming", warm_us), ("fitted", fit_us))
        }
        time = pl.from_epoch("time_us", "us").dt.replace_time_zone("UTC")
        frame = frame.with_columns(status.alias("status"), time.alias("time"), **before).sort("row")
        if self._label is not None:
            frame = frame.with_columns(pl.Series("label", self._label))
        first = ["row", "status", "reason", "event_id", "time", "entity", "warming", "fitted",
                 "score", "together", "extrapolated", "alert", "anomaly_type", "votes",
                 "top_reason"]  # fmt: skip
        rest = [c for c in frame.columns if c not in (*first, "time_us")]
        return frame.select(*first, *rest)


def _strongest(decisions: Decisions) -> tuple[Float64, Int64]:
    """Score and number of the anomaly type that is most certain of each row."""
    n = len(decisions.score)
    if not decisions.anomaly_types:
        return np.full(n, np.nan), np.zeros(n, np.int64)
    kind = np.argmax(decisions.score + 2.0 * decisions.flagged, axis=1)
    return decisions.score[np.arange(n), kind], kind


def _texts(batch: EventBatch, chosen: Int64) -> pl.DataFrame:
    """What names the chosen events, by row."""
    declared = event_type(batch.event_type)
    entity = pl.concat_str(*declared.entities[declared.primary], separator="|")
    frame = batch.frame[chosen].select("event_id", "time_us", entity.alias("entity"))
    return frame.select(pl.Series("row", batch.offset[chosen]), "event_id", "time_us", "entity")


def _no_texts() -> pl.DataFrame:
    """`_texts` of nothing."""
    kinds = {"row": pl.Int64, "event_id": pl.String, "time_us": pl.Int64, "entity": pl.String}
    return pl.DataFrame(schema=kinds)


def _series(batch: EventBatch, score: Float64, flagged: npt.NDArray[np.bool_]) -> pl.DataFrame:
    """The events of a batch as a report draws them."""
    declared = event_type(batch.event_type)
    value = pl.col(SHOWN[declared.name]) if declared.name in SHOWN else pl.lit(None, pl.Float64)
    entity = pl.concat_str(*declared.entities[declared.primary], separator="|")
    frame = batch.frame.select(entity.alias("entity"), "time_us", value.alias("value"))
    odd = np.zeros(len(batch), np.bool_) if batch.truth is None else batch.truth > 0
    return frame.with_columns(
        pl.Series("score", score), pl.Series("alert", flagged), pl.Series("odd", odd)
    )


def _no_series() -> pl.DataFrame:
    """`_series` of nothing."""
    kinds = {"entity": pl.String, "time_us": pl.Int64, "value": pl.Float64, "score": pl.Float64}
    return pl.DataFrame(schema=kinds | {"alert": pl.Boolean, "odd": pl.Boolean})


def write_table(rows: pl.DataFrame, path: Path) -> None:
    """Write scored rows as Parquet, CSV or JSONL, by the suffix.

    Raises
    ------
    ConfigError : another suffix, or the disk refuses it
    """
    kinds: dict[str, Callable[[Path], object]] = {
        ".parquet": rows.write_parquet, ".csv": rows.write_csv, ".jsonl": rows.write_ndjson,
    }  # fmt: skip
    write = kinds.get(path.suffix.lower())
    if write is None:
        raise ConfigError(f"--out {path}: expected a name that ends in {', '.join(kinds)}")
    try:
        write(path)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written ({error.strerror or error})") from None
