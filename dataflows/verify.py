"""Features against an oracle that no one here wrote: DuckDB, asked in SQL over all rows.

The rows go through the very code of training and backfill (a reader, `run_history`, the kernels);
the same rows are laid into DuckDB, each feature that has a meaning in SQL (`features.oracle`) is
asked for, and every value of every row is held against the kernel's.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.history import run_history
from dataflows.settings import Settings
from dataflows.sources.base import LaneReader, Taken
from dataflows.sources.simulator import SimulatorReader
from dataflows.verify_labels import Verdicts, spoken, verdict_table
from features.batch import EventBatch, FeatureMatrix, Float64, Int64
from features.catalog import Catalog
from features.columns import Columns, Derived, made_by_user
from features.derivation import in_order, operands
from features.errors import ConfigError
from features.events import event_code, event_type, event_types, made_types
from features.operations import OPERATIONS
from features.oracle import Question, answer_table, made_column, question, why_not
from features.panes import PANE_US, pane_exact_us
from features.plan import plan_of
from features.simulate.mix import TYPE_SHARES
from features.spec import Feature

__all__ = [
    "HOT_PER_H_MIN",
    "REL_ERROR_MAX",
    "VARIANTS",
    "Variant",
    "hot_reader",
    "oracle_in",
    "paned_features",
    "verify",
]

REL_ERROR_MAX = 1e-9
"""Largest difference of a float64, relative to the oracle's value (of a feature that subtracts two
others: to the larger of them). Asked for; counts, times, shares and extremes must be the same to
the last bit."""

THREADS = 2
MEMORY = "4GB"
"""What DuckDB may use; chosen: a laptop. Beyond the memory it spills to a temporary folder, where
what the kernels computed lies too: 4 GB of 5 million payments."""

DENSE = 1_440
"""A day of the handbook's data becomes a minute: 1 % of its rows have another within 5 minutes, of
the dense ones most have."""

LONG = {"1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
"""The windows of delayed-label risk, in which the handbook's rows have many others."""

HOT_ROWS = 5_000_000
HOT_CARDS = 300
HOT_PER_S = 10.0
"""Simulated payments: few cards pay so often that the hottest card has 1,100 an hour, the hottest
merchant 2,500 (the report tells, `hottest_per_h`); they span six days."""

HOT_PER_H_MIN = 1_000
"""Events an hour that the hottest entity of the variant must have had: asked for. With fewer than
`HOT_ROWS_HELD` payments there may be no whole hour of the clock, and it is not held to it."""

HOT_ROWS_HELD = round(2 * 3_600 * HOT_PER_S)
"""Two hours of payments: a whole hour of the clock is among them."""

NO_VALUE = "has no value in any row of this data, neither here nor there"

EXAMPLES_MAX = 3
"""Wrong rows shown of a feature."""

SHOWN_MAX = 10
"""Wrong features said aloud; all stand in the report. Chosen: a screen."""

PROGRESS_S = 15.0
"""Between two lines that say how far it is; chosen: nobody wonders whether it still runs."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to ask more of the same rows.

    Parameters
    ----------
    doc : what it is, for people
    divide : by what the time since the first row is divided
    windows : suffix -> length of the windows in s, in place of those declared; None for those
    simulated : so many payments of the simulator in place of the data; 0 for the data
    """

    doc: str
    divide: int = 1
    windows: Mapping[str, int] | None = None
    simulated: int = 0


VARIANTS: Mapping[str, Variant] = {
    "as_is": Variant("the data as it is"),
    "dense": Variant(f"its time divided by {DENSE:,}", divide=DENSE),
    "long": Variant("windows of 1, 7 and 30 days", windows=LONG),
    "hot": Variant("simulated payments, up to 1,000 an hour of one entity", simulated=HOT_ROWS),
}


def _quiet(told: object) -> None:
    """Say nothing, keep nothing."""


def verify(
    settings: Settings,
    catalog: Catalog,
    open_reader: Callable[[], LaneReader],
    variants: Mapping[str, Variant],
    say: Callable[[str], None],
    progress: Callable[[str], None] = _quiet,
    keep: Callable[[dict[str, Any]], None] = _quiet,
) -> dict[str, Any]:
    """Compare every feature that has a meaning in SQL with DuckDB's answer, on every row.

    Parameters
    ----------
    settings : `groups`, `dedup_horizon_s`, `label_delay_s`
    catalog : the features
    open_reader : gives the rows, from the start, once a variant
    variants : what is done with them
    say : told what each variant came to
    progress : told now and then how far a variant is
    keep : given the report after each variant; what is yet to come stands in its `left`

    Returns
    -------
    `rows`, `declared`, `features`, `mismatches`, `max_rel_error`, `not_compared`, `failed` of all
    together, and the same by variant

    Raises
    ------
    ConfigError : the data has no event whose type has features
    """
    found: dict[str, dict[str, Any]] = {}
    for name, variant in variants.items():
        say(f"{name}: {variant.doc}")
        far = _Far(name, progress)
        cat = catalog if variant.windows is None else _with_windows(catalog, variant.windows)
        reader = hot_reader(settings, variant.simulated) if variant.simulated else open_reader()
        found[name] = one = _verify_one(settings, cat, reader, variant.divide, far)
        one["failed"] = _failures(name, variant, one)
        one["seconds"] = round(far.seconds, 1)
        say(
            f"{name}: {one['rows']:,} rows, {one['features']} of {one['declared']} features,"
            f" {one['mismatches']:,} mismatches, largest error {one['max_rel_error']:.1e},"
            f" {one['seconds']:.0f} s"
        )
        if one["estimated"]:
            say(
                f"{name}: beside them {len(one['estimated'])} features of entities whose pairs are"
                f" sampled, at least one in {one['estimated_one_in_max']:,}"
            )
        if one["approximated"]:
            say(
                f"{name}: beside them {len(one['approximated'])} features that panes make inexact,"
                f" by at most {one['approximated_excess_max']:,} events of a window"
            )
        for wrong in one["mismatched"][:SHOWN_MAX]:
            first = wrong["examples"][0]
            say(
                f"{name}: {wrong['feature']} differs in {wrong['rows']:,} rows, first at event"
                f" {first['event_id']}: {first['value']!r}, DuckDB says {first['expected']!r}"
            )
        for sentence in one["failed"]:
            say(sentence)
        if one["constant"]:
            say(
                f"{name}: beside them {len(one['constant'])} features that have one value in all"
                " rows, here and there, which shows little"
            )
        keep(_together(catalog, found, [other for other in variants if other not in found]))
    return _together(catalog, found, [])


def _failures(name: str, variant: Variant, found: Mapping[str, Any]) -> list[str]:
    """Why a variant shows nothing of what it is there for; empty where it does."""
    most = max(found["hottest_per_h"].values(), default=0)
    if variant.simulated < HOT_ROWS_HELD or most >= HOT_PER_H_MIN:
        return []
    return [
        f"{name}: expected an entity with at least {HOT_PER_H_MIN:,} events in an hour, the hottest"
        f" has {most:,}: nothing is shown of hot entities"
    ]


class _Far:
    """Says how far a variant is, now and then.

    Parameters
    ----------
    name : of the variant
    progress : told it
    """

    def __init__(self, name: str, progress: Callable[[str], None]) -> None:
        self._name = name
        self._progress = progress
        self._began = time.perf_counter()
        self._told_s = 0.0

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.perf_counter() - self._began

    def tell(self, text: str) -> None:
        """Say it, unless something was said a moment ago."""
        seconds = self.seconds
        if seconds - self._told_s >= PROGRESS_S:
            self._told_s = seconds
            self._progress(f"{self._name}: {text}, {seconds:.0f} s")


def _together(
    catalog: Catalog, variants: dict[str, dict[str, Any]], left: list[str]
) -> dict[str, Any]:
    """The report: a feature is compared where any variant compares it."""
    compared = {name for one in variants.values() for name in one["compared"]}
    events = {event for one in variants.values() for event in one["event_types"]}
    declared = {f"{event}.{name}" for event in events for name in catalog.names(event)}
    reasons = {name: why for one in variants.values() for name, why in one["not_compared"].items()}
    constant = {name: value for one in variants.values() for name, value in one["constant"].items()}
    return {
        "rows": sum(one["rows"] for one in variants.values()),
        "declared": len(declared),
        "declared_compared": len(declared & compared),
        "features": len(compared),
        "mismatches": sum(one["mismatches"] for one in variants.values()),
        "max_rel_error": max(one["max_rel_error"] for one in variants.values()),
        "constant": {name: value for name, value in constant.items() if name not in compared},
        "not_compared": {
            name: why for name, why in reasons.items() if name not in {*compared, *constant}
        },
        "failed": [sentence for one in variants.values() for sentence in one["failed"]],
        "left": left,
        "variants": variants,
    }


def hot_reader(settings: Settings, rows: int) -> SimulatorReader:
    """About so many simulated payments of few cards.

    Parameters
    ----------
    settings : `sim_seed`, `sim_population_seed` and `sim_start`
    """
    changed: dict[str, Any] = {
        "event_types": ["payment"],
        "sim_events_per_s": HOT_PER_S / TYPE_SHARES["payment"],
        "sim_cards": HOT_CARDS,
        "sim_paced": False,
        "sim_speed": 1.0,
        "sim_seconds": rows / HOT_PER_S,
    }
    return SimulatorReader(settings.model_copy(update=changed))


def _with_windows(catalog: Catalog, windows: Mapping[str, int]) -> Catalog:
    """The features of windows, each with other lengths in place of its own."""
    made: dict[tuple[str, str], Feature] = {}
    for event in catalog.event_types:
        for feature in catalog.features(event):
            if feature.window_s is None or OPERATIONS[feature.op].family not in ("ring", "rate"):
                continue
            stem = re.sub(r"_\d+[smhd]$", "", feature.name)
            for suffix, window_s in windows.items():
                name = f"{stem}_{suffix}"
                one = replace(feature, name=name, window_s=window_s, why="{value}", baseline=None)
                made[event, name] = one
    return Catalog(made.values())


def _verify_one(
    settings: Settings, catalog: Catalog, reader: LaneReader, divide: int, far: _Far
) -> dict[str, Any]:
    """One variant."""
    # SQL forgets nobody, and what pairs say differs for one who has been forgotten.
    never = dict.fromkeys(plan_of(catalog).entities, 0.0)
    # Amounts as they were paid, on both sides: a table of rates is no matter of windows.
    settings = settings.model_copy(update={"entity_ttl_h": never, "currency_rates": None})
    with (
        tempfile.TemporaryDirectory(prefix="waxwing-verify-") as folder,
        oracle_in(Path(folder)) as oracle,
    ):
        rows = _Rows(oracle, Path(folder))

        def cut(events: int, time_us: int) -> None:
            rows.cut(events, time_us)
            far.tell(f"{events:,} rows through the kernels")

        slower = reader if divide == 1 else _Divided(reader, divide)
        delay_us = round(settings.label_delay_s * 1e6)
        verdicts = Verdicts(catalog, delay_us)
        done = run_history(settings, catalog, slower, rows, progress=cut, arrivals=verdicts)
        reader.close()
        merged = _Merged(frozenset(), 0)
        if settings.exact_events_max:
            names = paned_features(catalog)
            merged = _Merged(names, max(one.excess_max for one in done.engine.engines))
        one_in = max(one.one_in_max for one in done.engine.engines)
        names = sampled_features(catalog) if one_in else frozenset()
        sampled = _Sampled(names, one_in, settings.distinct_exact_max)
        return _compare(oracle, rows, catalog, rows.close(delay_us), far, merged, sampled)


PANE_S = PANE_US // 1_000_000
"""Length of a pane: so far may a window reach back beyond its own length."""


@dataclass(frozen=True, slots=True)
class _Merged:
    """Features (`event.name`) that panes make inexact, and by how many events at most."""

    names: frozenset[str]
    excess_max: int

    def bounded(
        self, oracle: duckdb.DuckDBPyConnection, feature: Feature, ties: int, found: _Found,
        actual: Float64,
    ) -> bool:  # fmt: skip
        """Whether a feature's wrong rows are no more wrong than panes make them.

        A window with panes holds all that is in the window, and beside it some of the events of one
        more pane, never more than `excess_max`. DuckDB is asked for the longer window too.
        """
        if f"{feature.event}.{feature.name}" not in self.names:
            return False
        ask = _Longer(oracle, feature, ties, len(actual), found.wrong)
        value, exact = actual[found.wrong], found.expected[found.wrong]
        count = ask("count", column=None, other=None, where=None)
        longer = ask("count", PANE_S, column=None, other=None, where=None)
        excess = np.minimum(longer - count, self.excess_max)
        low, high = _ends(feature.op, ask, exact, count, excess)
        slack = REL_ERROR_MAX * np.maximum(np.abs(low), np.abs(high))
        return bool(np.all((value >= low - slack) & (value <= high + slack)))


class _Longer:
    """Asks DuckDB for what else is known of a feature's window, and of one a pane longer.

    Parameters
    ----------
    feature : of a window
    ties : of the table of events
    n : rows of its event type
    rows : those that are asked for
    """

    def __init__(
        self, oracle: duckdb.DuckDBPyConnection, feature: Feature, ties: int, n: int, rows: Int64
    ) -> None:
        self._oracle = oracle
        self._feature = feature
        self._ties = ties
        self._n = n
        self._rows = rows

    def __call__(self, op: str, more_s: int = 0, **changed: Any) -> Float64:
        """float64 (rows,), another operation on the window; NaN where it is unknown."""
        window_s = (self._feature.window_s or 0) + more_s
        asked = replace(self._feature, op=op, window_s=window_s, **changed)
        return _answer(self._oracle, question(asked, self._ties), self._n)[self._rows]


def _ends(
    op: str, ask: _Longer, exact: Float64, count: Float64, excess: Float64
) -> tuple[Float64, Float64]:
    """The least and the most that a window may give with so many events more than its own.

    Parameters
    ----------
    exact : float64 (rows,), without them
    count : float64 (rows,), events of the window
    excess : float64 (rows,), most events beside them

    Raises
    ------
    ValueError : nobody has said what more events do to the operation
    """
    if op in ("count", "distinct"):
        return exact, np.minimum(exact + excess, ask(op, PANE_S))
    if op == "share":
        held = np.nan_to_num(exact) * count
        return held / (count + excess), np.minimum(held + excess, count + excess) / (count + excess)
    if op == "max":
        return exact, ask("max", PANE_S)
    if op == "min":
        return ask("min", PANE_S), exact
    least, most = ask("min", PANE_S), ask("max", PANE_S)
    if op == "sum":
        return exact + excess * np.minimum(least, 0.0), exact + excess * np.maximum(most, 0.0)
    if op == "mean":
        off = (most - least) * excess / (count + excess)
        return np.fmax(exact - off, least), np.fmin(exact + off, most)
    if op == "std":
        # More values never lower the sum of the squares about their mean.
        squares = np.nan_to_num(exact) ** 2 * np.maximum(count - 1.0, 0.0)
        degrees = np.maximum(count + excess - 1.0, 1.0)
        wider = squares + excess * (most - least) ** 2
        return np.sqrt(squares / degrees), np.sqrt(wider / np.maximum(count - 1.0, 1.0))
    raise ValueError(f"no bound is known of operation {op!r} in a window with panes")


SIGMAS = 6.0
"""Standard errors an estimate may be off; chosen: one in a billion is further off by chance."""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Features (`event.name`) that samples of pairs make inexact, one in so many at least, of
    entities with more than so many different others."""

    names: frozenset[str]
    one_in_max: int
    exact_max: int

    def weights(self, met: Float64) -> Float64:
        """Of how many pairs one is kept, at the most, by an entity that has met so many others."""
        found = np.ones(len(met))
        for _ in range(int(self.one_in_max).bit_length() - 1):
            # The estimate by which the level rises may be off, too.
            most = met + SIGMAS * np.sqrt(met * (found - 1))
            found[most > self.exact_max * found] *= 2
        return found

    def holds(self, feature: Feature) -> bool:
        """Whether a feature is one of them."""
        return f"{feature.event}.{feature.name}" in self.names

    def bounded(self, feature: Feature, found: _Found, actual: Float64, met: Float64) -> bool:
        """Whether a feature's wrong rows are no more wrong than the sample tells.

        A count of different others is off by no more than its error; whether a pair is new is not
        known of many. Whoever has met no more others than the bound is exact.

        Parameters
        ----------
        feature : one of them
        met : float64 (rows,), different others that each row's entity has met up to it
        """
        met = met[found.wrong]
        value, expected = actual[found.wrong], found.expected[found.wrong]
        if np.any(met <= self.exact_max):
            return False
        if feature.op in ("first_time", "since_pair"):
            return bool(np.isnan(value).all())
        if feature.op not in ("distinct", "distinct_ever"):
            return False
        bound = SIGMAS * np.sqrt(expected * (self.weights(met) - 1))
        return bool(np.all(np.abs(value - expected) <= bound))


def sampled_features(catalog: Catalog) -> frozenset[str]:
    """Features (`event.name`) of the pairs of an entity; what reads them must be exact, of what
    they are."""
    return frozenset(
        f"{f.event}.{f.name}"
        for event in catalog.event_types
        for f in catalog.features(event)
        if OPERATIONS[f.op].family == "ring" and OPERATIONS[f.op].other
    )


def paned_features(catalog: Catalog) -> frozenset[str]:
    """Features (`event.name`) over a window that may have panes; what reads them must be exact, of
    what they are."""
    found: set[str] = set()
    for entity, plan in plan_of(catalog).entities.items():
        for ring in plan.rings:
            longest_us = int(ring.windows_us.max())
            if pane_exact_us(ring.windows_us) >= longest_us:
                continue
            fed = {n for n, feeds in zip(event_types(), ring.feeds, strict=True) if feeds}
            found |= {
                f"{f.event}.{f.name}"
                for event in catalog.event_types
                for f in catalog.features(event)
                if f.entity == entity and OPERATIONS[f.op].family == "ring"
                if (f.window_s or 0) * 1_000_000 == longest_us and set(f.feeds or (f.event,)) == fed
            }
    return frozenset(found)


def oracle_in(folder: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB within its bounds, spilling to a folder; it draws no progress bar into the output."""
    config: dict[str, Any] = {
        "threads": THREADS,
        "memory_limit": MEMORY,
        "temp_directory": str(folder),
        "autoinstall_known_extensions": False,
    }
    oracle = duckdb.connect(config=config)
    oracle.execute("SET enable_progress_bar = false")
    return oracle


class _Divided:
    """A reader whose time goes slower.

    Parameters
    ----------
    reader : gives events in the order of their time
    divide : by what the time since the first of them is divided
    """

    unpaced = True

    def __init__(self, reader: LaneReader, divide: int) -> None:
        self._reader = reader
        self._divide = divide
        self._start_us: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def take(self, rows_max: int) -> Taken:
        """As of the reader."""
        taken = self._reader.take(rows_max)
        if self._start_us is None and taken.batches:
            self._start_us = min(int(b.time_us.min()) for b in taken.batches.values())
        start_us = self._start_us or 0
        time_us = start_us + (pl.col("time_us") - start_us) // self._divide
        for name, batch in taken.batches.items():
            taken.batches[name] = replace(batch, frame=batch.frame.with_columns(time_us=time_us))
        taken.cut_time_us = start_us + (taken.cut_time_us - start_us) // self._divide
        return taken


class _Rows:
    """Takes in what the kernels computed, and lays the same events into the oracle.

    Parameters
    ----------
    oracle : where the table `events` is made
    folder : where the features are kept meanwhile, a file an event type
    """

    def __init__(self, oracle: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self._oracle = oracle
        self._folder = folder
        self._batches: list[EventBatch] = []
        self._chunks: dict[str, list[tuple[int, int]]] = {}
        self._count = 0
        self.counts: dict[str, int] = {}
        kinds = (*event_types().values(), *made_types().values())
        fields = {n: t for declared in kinds for n, t in declared.schema.items()}
        own: dict[str, Any] = {"n": pl.Int64, "event": pl.String, "i": pl.Int64}
        made = {made_column(d.name, d.kind): _KINDS[d.kind] for t in kinds for d in _own_of(t.name)}
        self._schema = own | fields | made
        self._insert(pl.DataFrame(schema=self._schema), "CREATE TABLE taken AS")
        oracle.execute("CREATE TABLE said (event VARCHAR, i BIGINT, fraud BIGINT)")

    def _insert(self, frame: pl.DataFrame, verb: str) -> None:
        """Lay rows into the table `taken`."""
        self._oracle.register("incoming", frame.to_arrow())
        self._oracle.execute(f"{verb} SELECT * FROM incoming")
        self._oracle.unregister("incoming")

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch and its features."""
        self._batches.append(batch)
        with (self._folder / f"{batch.event_type}.features").open("ab") as file:
            # Column after column of the chunk: a feature is read back in long stretches.
            np.ascontiguousarray(features.values.T).tofile(file)
        self._chunks.setdefault(batch.event_type, []).append(features.values.shape)

    def cut(self, events: int, time_us: int) -> None:
        """Give the rows of a chunk their numbers: chunk after chunk, each in the global order."""
        if not self._batches:
            return
        frames, keys = [], []
        for batch in self._batches:
            name, n = batch.event_type, len(batch)
            begin = self.counts.get(name, 0)
            numbers = pl.int_range(begin, begin + n, dtype=pl.Int64, eager=True)
            told = batch.frame.with_columns(event=pl.lit(name), i=numbers)
            frames.append(told.with_columns(_made_of(batch)))
            code = np.full(n, event_code(name))
            keys.append(np.stack([batch.offset, batch.partition, code, batch.time_us]))
            self.counts[name] = begin + n
            said, fraud = spoken(batch)
            about = pl.DataFrame({"event": name, "i": begin + said, "fraud": fraud})
            if len(about):
                self._insert(about, "INSERT INTO said")
        place = np.empty(sum(len(f) for f in frames), np.int64)
        place[np.lexsort(np.concatenate(keys, axis=1))] = np.arange(len(place)) + self._count
        self._count += len(place)
        rows = pl.concat(frames, how="diagonal").with_columns(n=pl.Series(place))
        absent = [
            pl.lit(None, dtype).alias(name)
            for name, dtype in self._schema.items()
            if name not in rows.columns
        ]
        self._insert(rows.with_columns(absent).select(*self._schema), "INSERT INTO taken")
        self._batches = []

    def close(self, delay_us: int) -> int:
        """Make the tables `events` and `verdicts`; returns `ties` (see `features.oracle`).

        Parameters
        ----------
        delay_us : from an event to the word that it is a fraud

        Raises
        ------
        ConfigError : there are no rows
        """
        if not self._count:
            raise ConfigError("features verify: the data has no event of a type that has features")
        self._oracle.execute(
            "CREATE TABLE tied AS SELECT *,"
            " row_number() OVER (PARTITION BY time_us ORDER BY n) - 1 AS tie FROM taken"
        )
        self._oracle.execute("DROP TABLE taken")
        (found,) = self._oracle.execute("SELECT max(tie) + 1 FROM tied").fetchall()
        ties = int(found[0])
        self._oracle.execute(
            "CREATE TABLE events AS SELECT * EXCLUDE (n),"
            f" (time_us - (SELECT min(time_us) FROM tied)) * {ties} + tie AS k FROM tied"
        )
        self._oracle.execute("DROP TABLE tied")
        self._oracle.execute(verdict_table(delay_us))
        return ties

    def column(self, event: str, at: int) -> Float64:
        """float64 (rows of the event type,), feature number `at` as the kernels gave it."""
        kept = np.memmap(self._folder / f"{event}.features", np.float64, mode="r")
        parts, begin = [], 0
        for rows, columns in self._chunks[event]:
            parts.append(kept[begin + at * rows : begin + (at + 1) * rows])
            begin += rows * columns
        return np.concatenate(parts)

    def hottest_per_h(self) -> dict[str, int]:
        """Most events of one entity in an hour of the clock, by entity type."""
        found: dict[str, int] = {}
        for event in self.counts:
            for entity, parts in event_type(event).entities.items():
                named = " AND ".join(f"coalesce({part}, '') <> ''" for part in parts)
                query = (
                    f"SELECT max(n) FROM (SELECT count(*) AS n FROM events WHERE event = ?"
                    f" AND {named} GROUP BY {', '.join(parts)}, time_us // 3600000000)"
                )
                (most,) = self._oracle.execute(query, [event]).fetchone() or (None,)
                found[entity] = max(found.get(entity, 0), most or 0)
        return found

    def event_id(self, event: str, row: int) -> str:
        """Id of an event."""
        query = "SELECT event_id FROM events WHERE event = ? AND i = ?"
        (found,) = self._oracle.execute(query, [event, row]).fetchall()
        return str(found[0])


_KINDS: Mapping[str, Any] = {"real": pl.Float64, "flag": pl.Boolean}


def _own_of(event: str) -> list[Derived]:
    """Derived columns of an event type that a user declared."""
    return list(made_by_user(event).values())


def _made_of(batch: EventBatch) -> list[pl.Series]:
    """What the user's functions make of a batch, NULL where it is not known."""
    columns, found = Columns(batch), []
    for derived in _own_of(batch.event_type):
        make = columns.real if derived.kind == "real" else columns.flag
        values = make(derived.name)
        series = pl.Series(made_column(derived.name, derived.kind), values)
        found.append(series.fill_nan(None) if derived.kind == "real" else series)
    return found


@dataclass(slots=True)
class _Found:
    """What one comparison came to."""

    wrong: Int64
    rel_error: float
    known: int
    expected: Float64 = field(repr=False)

    @property
    def constant(self) -> bool:
        """Whether all rows have one value, here and there."""
        first = np.full(len(self.expected), self.expected[0])
        return not len(self.wrong) and np.array_equal(self.expected, first, equal_nan=True)


def _compare(
    oracle: duckdb.DuckDBPyConnection,
    rows: _Rows,
    catalog: Catalog,
    ties: int,
    far: _Far,
    merged: _Merged,
    sampled: _Sampled,
) -> dict[str, Any]:
    """Every feature of every event type that has rows."""
    not_compared: dict[str, str] = {}
    mismatched: list[dict[str, Any]] = []
    approximated: list[dict[str, Any]] = []
    estimated: list[dict[str, Any]] = []
    compared: dict[str, float] = {}
    constant: dict[str, float] = {}
    for event, n in rows.counts.items():
        features, names = catalog.features(event), catalog.names(event)
        asked = _asked(features, not_compared)
        read = {name for feature in asked for name in operands(feature)}
        for number, feature in enumerate(asked, 1):
            made = question(feature, ties)
            if feature.name in read:
                table = answer_table(event, feature.name)
                oracle.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {made.sql}")
                made = replace(made, sql=f"SELECT * FROM {table}")
            actual = rows.column(event, names.index(feature.name))
            found = _hold(oracle, made, actual, n)
            far.tell(f"{number} of {len(asked)} features of {n:,} {event} rows asked of DuckDB")
            if not found.known:
                not_compared[f"{event}.{feature.name}"] = NO_VALUE
                continue
            inexact = None
            if len(found.wrong) and merged.bounded(oracle, feature, ties, found, actual):
                inexact = approximated
            elif (
                len(found.wrong)
                and sampled.holds(feature)
                and sampled.bounded(feature, found, actual, _met(oracle, feature, ties, n))
            ):
                inexact = estimated
            if inexact is not None:
                inexact.append(_about(rows, feature, found, actual))
                if feature.name in read:
                    # What reads it is exact, of what it is.
                    _put(oracle, answer_table(event, feature.name), actual)
                continue
            if found.constant:
                constant[f"{event}.{feature.name}"] = float(found.expected[0])
                continue
            compared[f"{event}.{feature.name}"] = found.rel_error
            if len(found.wrong):
                mismatched.append(_about(rows, feature, found, actual))
    return {
        "rows": sum(rows.counts.values()),
        "event_types": sorted(rows.counts, key=event_code),
        "declared": sum(len(catalog.names(event)) for event in rows.counts),
        "features": len(compared),
        "mismatches": sum(one["rows"] for one in mismatched),
        "max_rel_error": max(compared.values(), default=0.0),
        "mismatched": mismatched,
        "approximated": approximated,
        "approximated_excess_max": merged.excess_max,
        "estimated": estimated,
        "estimated_one_in_max": sampled.one_in_max,
        "compared": compared,
        "constant": constant,
        "not_compared": not_compared,
        "hottest_per_h": rows.hottest_per_h(),
    }


def _asked(features: tuple[Feature, ...], not_compared: dict[str, str]) -> list[Feature]:
    """Features that have a meaning in SQL, those that others read first; notes the rest."""
    reasons = {f.name: why_not(f) for f in features}
    derived = in_order(features)
    for feature in derived:
        unsaid = [name for name in operands(feature) if reasons[name] is not None]
        if unsaid:
            reasons[feature.name] = f"it reads `{unsaid[0]}`, which is not compared"
    for feature in features:
        reason = reasons[feature.name]
        if reason is not None:
            not_compared[f"{feature.event}.{feature.name}"] = reason
    read_first = [f for f in features if not operands(f)]
    return [f for f in (*read_first, *derived) if reasons[f.name] is None]


def _met(oracle: duckdb.DuckDBPyConnection, feature: Feature, ties: int, n: int) -> Float64:
    """float64 (n,), different others that each row's entity has met up to it."""
    asked = replace(feature, op="distinct_ever", window_s=None, unit="1")
    return np.nan_to_num(_answer(oracle, question(asked, ties), n))


def _answer(oracle: duckdb.DuckDBPyConnection, made: Question, n: int) -> Float64:
    """float64 (n,), what DuckDB says; NaN where it says nothing."""
    sql = f"SELECT i, coalesce(v, 'NaN') AS v FROM ({made.sql})"
    answer = oracle.execute(sql).fetchnumpy()
    found = np.full(n, np.nan)
    found[answer["i"]] = answer["v"]
    return found


def _put(oracle: duckdb.DuckDBPyConnection, table: str, values: Float64) -> None:
    """Make a table of answers what the kernels gave."""
    frame = pl.DataFrame({"i": np.arange(len(values)), "v": pl.Series(values).fill_nan(None)})
    oracle.register("given", frame.to_arrow())
    oracle.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT i, v, v AS size FROM given")
    oracle.unregister("given")


def _hold(oracle: duckdb.DuckDBPyConnection, made: Question, actual: Float64, n: int) -> _Found:
    """Ask, and hold the answer against what the kernels gave."""
    sql = f"SELECT i, coalesce(v, 'NaN') AS v, coalesce(size, 'NaN') AS size FROM ({made.sql})"
    answer = oracle.execute(sql).fetchnumpy()
    if len(np.unique(answer["i"])) != len(answer["i"]):
        raise RuntimeError(f"{made.feature.name}: the query answers a row twice: {made.sql}")
    expected, size = np.full(n, np.nan), np.full(n, np.nan)
    expected[answer["i"]], size[answer["i"]] = answer["v"], np.abs(answer["size"])
    same: npt.NDArray[np.bool_] = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(same, 0.0, np.abs(actual - expected) / size)
    # A value that only one of the two knows is infinitely wrong.
    error = np.where(np.isnan(error), np.inf, error)
    right = same if made.exact else error <= REL_ERROR_MAX
    known = np.count_nonzero(~np.isnan(expected) | ~np.isnan(actual))
    return _Found(np.flatnonzero(~right), float(error.max(initial=0.0)), int(known), expected)


def _about(rows: _Rows, feature: Feature, found: _Found, actual: Float64) -> dict[str, Any]:
    """A feature that is wrong, with its first wrong rows."""
    examples = [
        {
            "event_id": rows.event_id(feature.event, row),
            "value": float(actual[row]),
            "expected": float(found.expected[row]),
        }
        for row in found.wrong[:EXAMPLES_MAX].tolist()
    ]
    return {
        "feature": f"{feature.event}.{feature.name}",
        "rows": len(found.wrong),
        "max_rel_error": found.rel_error,
        "examples": examples,
    }
