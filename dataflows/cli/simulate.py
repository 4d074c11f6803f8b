"""`waxwing simulate`: simulated traffic with labelled attacks, to Parquet, JSONL or Kafka."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dataflows.cli.run import overrides_of, settings_arguments

if TYPE_CHECKING:
    import polars as pl

    from dataflows.settings import Settings
    from features.batch import EventBatch
    from features.simulate import Simulator

__all__ = ["add_parser", "run"]

CHUNK_EVENTS = 100_000
"""Events made at a time, about; bounds memory (some 100 MB). Chosen."""

TICK_S = 0.02
"""Wall time between two sends of a paced producer; chosen: a fifth of a round."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "simulate",
        help="simulated events with attacks to Parquet, JSONL or Kafka",
        description=__doc__,
        epilog="What is not given is taken from the settings (sim_*, kafka_*).",
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--to", choices=("parquet", "jsonl", "kafka"), default="parquet", help="what to write")
    add("--out", metavar="DIR", help="folder for EVENT_TYPE.parquet or .jsonl and labels.parquet")
    add("--start", metavar="T", help="first moment of event time, ISO 8601, or `now`")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--days", type=float, metavar="N", help="length; one day if none is given")
    length.add_argument("--hours", type=float, metavar="N")
    length.add_argument("--seconds", type=float, metavar="N")
    add("--seed", type=int, metavar="N", help="seed of traffic and attacks")
    add("--population-seed", type=int, metavar="N", help="seed of people, merchants and hosts")
    add("--events-per-s", type=float, metavar="R", help="events per second of event time")
    add("--cards", type=int, metavar="N", help="cards of the population")
    add("--anomaly-share", type=float, metavar="S", help="share of events that are attacks")
    add("--repeat-share", type=float, metavar="S", help="share of events that are sent twice")
    add("--attacks", metavar="A,B", help="attacks to use; those of the default mix if not given")
    add("--strength", metavar="S|LOW,HIGH", help="strength of all attacks, in 0.1 to 1")
    add("--event-types", metavar="A,B", help="event types to make")
    add(
        "--malformed",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="broken records in addition, per event (JSONL, Kafka)",
    )
    add(
        "--speed",
        type=float,
        default=0.0,
        metavar="F",
        help="Kafka: seconds of event time per second; 0 sends as fast as it goes",
    )
    add(
        "--timestamps",
        choices=("wall", "event"),
        default="wall",
        help="Kafka: message timestamps; `event` lets consumers seek by event time",
    )
    add("--rates", metavar="F", help="exchange rates of the days, CSV; payments in 25 currencies")
    add("--labels", metavar="F", help="attack events: .parquet, .csv or .jsonl")
    add("--json", metavar="P", help="write what was made as JSON; - is stdout")


def _words(text: str | None) -> list[str] | None:
    """The parts of a comma list."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _strength(text: str | None) -> tuple[float, float] | None:
    """One number or two as bounds.

    Raises
    ------
    ConfigError : neither
    """
    from features.errors import ConfigError

    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ConfigError(f"--strength {text!r}: expected one number or LOW,HIGH in [0.1, 1]")
    return numbers[0], numbers[-1]


def _settings(args: argparse.Namespace) -> Settings:
    """Settings with what the options say."""
    from dataflows.settings import load

    given = {
        "sim_start": None if args.start == "now" else args.start,
        "sim_seed": args.seed,
        "sim_population_seed": args.population_seed,
        "sim_events_per_s": args.events_per_s,
        "sim_cards": args.cards,
        "sim_anomaly_share": args.anomaly_share,
        "sim_repeat_share": args.repeat_share,
        "event_types": _words(args.event_types),
        "sim_local_money": True if args.rates else None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return load(args.config, **(given | overrides_of(args)))


def _span(args: argparse.Namespace, settings: Settings) -> tuple[int, int]:
    """First and last moment of event time.

    Raises
    ------
    ConfigError : a length that is not positive
    """
    import time
    from datetime import UTC, datetime

    from features.errors import ConfigError

    if args.start == "now":
        start_us = time.time_ns() // 1000
    else:
        moment = datetime.fromisoformat(settings.sim_start)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC)
        start_us = round(moment.timestamp() * 1e6)
    units = ((args.days, 86_400.0), (args.hours, 3_600.0), (args.seconds, 1.0))
    seconds = next((n * unit for n, unit in units if n is not None), 86_400.0)
    if not 0.0 < seconds <= 3_700 * 86_400.0:
        raise ConfigError(f"the length is {seconds} s; it must lie between 0 and ten years")
    return start_us, start_us + round(seconds * 1e6)


def _check(args: argparse.Namespace) -> None:
    """ConfigError with everything that does not fit together."""
    from features.errors import ConfigError

    faults = []
    if args.to != "kafka" and not args.out:
        faults.append(f"--to {args.to} needs --out DIR")
    if args.to == "parquet" and args.malformed:
        faults.append("--malformed needs --to jsonl or kafka; Parquet cannot hold broken records")
    if not 0.0 <= args.malformed <= 1.0:
        faults.append(f"--malformed {args.malformed}: expected a share in [0, 1]")
    if args.speed < 0.0 or (args.speed and args.to != "kafka"):
        faults.append(f"--speed {args.speed}: a factor above 0, with --to kafka only")
    if args.labels and not args.labels.endswith((".parquet", ".csv", ".jsonl")):
        faults.append(f"--labels {args.labels}: expected a name in .parquet, .csv or .jsonl")
    if args.rates and not args.rates.endswith(".csv"):
        faults.append(f"--rates {args.rates}: expected a name in .csv")
    if faults:
        raise ConfigError(faults)


def run(args: argparse.Namespace) -> int:
    """Run it."""
    import time

    from dataflows.report import write_json
    from features.simulate import Simulator

    _check(args)
    settings = _settings(args)
    start_us, end_us = _span(args, settings)
    simulator = Simulator(
        seed=settings.sim_seed,
        population_seed=settings.sim_population_seed,
        start_us=start_us,
        events_per_s=settings.sim_events_per_s,
        cards=settings.sim_cards,
        anomaly_share=settings.sim_anomaly_share,
        repeat_share=settings.sim_repeat_share,
        event_types=settings.event_types,
        attacks=_words(args.attacks) or settings.sim_attacks or None,
        strength=_strength(args.strength),
        local_money=settings.sim_local_money,
    )
    began = time.monotonic()
    writer = _writer(args, settings, simulator)
    labels = simulator.labels(start_us, start_us)
    for at_us, until_us in _spans(simulator, start_us, end_us, args.speed):
        for batch in simulator.span(at_us, until_us).values():
            writer.write(batch)
        labels.vstack(simulator.labels(at_us, until_us), in_place=True)
    writer.close()
    _write_labels(args, labels)
    _write_rates(args, start_us, end_us)
    report = writer.report() | _attack_report(labels) | {"seconds": time.monotonic() - began}
    report["seed"], report["start_us"], report["end_us"] = settings.sim_seed, start_us, end_us
    write_json(args.json, report)
    if args.json != "-":
        print(
            f"{report['in']} events in {report['seconds']:.1f} s, {report['repeats']} of them"
            f" repeats, {report['attack_events']} of attacks, {report['malformed']} broken records"
        )
    return 0


def _write_rates(args: argparse.Namespace, start_us: int, end_us: int) -> None:
    """The table of rates of the days, as `currency_rates` reads it."""
    import polars as pl

    from features.currency import RATES_SCHEMA
    from features.simulate.exchange import rate_rows

    if args.rates:
        rows = pl.DataFrame(rate_rows(start_us, end_us), schema=RATES_SCHEMA, orient="row")
        rows.write_csv(args.rates)


def _spans(
    simulator: Simulator, start_us: int, end_us: int, speed: float
) -> Iterator[tuple[int, int]]:
    """The span in pieces, each as long as memory allows; as they become due where paced."""
    import time

    rate = sum(simulator.world.per_s.values())
    step_us = max(simulator.block_us, int(1e6 * CHUNK_EVENTS / rate))
    at_us, began = start_us, time.monotonic()
    while at_us < end_us:
        until_us = min(end_us, at_us + step_us)
        if speed > 0.0:
            due_us = start_us + int((time.monotonic() - began) * speed * 1e6)
            until_us = min(until_us, due_us)
            if until_us <= at_us:
                time.sleep(TICK_S)
                continue
        yield at_us, until_us
        at_us = until_us


def _attack_report(labels: pl.DataFrame) -> dict[str, Any]:
    """Attack events in all and by attack."""
    counts = labels.group_by("attack").len().sort("attack")
    return {
        "attack_events": labels.height,
        "campaigns": labels["campaign"].n_unique(),
        "by_attack": dict(zip(counts["attack"], counts["len"], strict=True)),
    }


def _write_labels(args: argparse.Namespace, labels: pl.DataFrame) -> None:
    """The labels, where asked for; beside the events in any case."""
    from pathlib import Path

    from features.errors import ConfigError

    path = Path(args.labels) if args.labels else None
    if path is None:
        if not args.out:
            return
        path = Path(args.out) / "labels.parquet"
    try:
        if path.suffix == ".parquet":
            labels.write_parquet(path)
        elif path.suffix == ".csv":
            labels.write_csv(path)
        else:
            labels.write_ndjson(path)
    except OSError as error:
        raise ConfigError(f"--labels {path}: cannot be written ({error})") from None


def _writer(args: argparse.Namespace, settings: Settings, simulator: Simulator) -> _Writer:
    """The writer of the chosen kind."""
    if args.to == "kafka":
        return _KafkaWriter(args, settings, simulator)
    return (_ParquetWriter if args.to == "parquet" else _JsonlWriter)(args, settings, simulator)


class _Writer(ABC):
    """Takes batches in order and counts them; a kind of output says how they are put."""

    def __init__(self, args: argparse.Namespace, settings: Settings, simulator: Simulator) -> None:
        from features.simulate.chance import generator, key_of

        self._share: float = args.malformed
        self._rng = generator(settings.sim_seed, key_of("malformed"))
        self._counts = dict.fromkeys(simulator.event_types, 0)
        self._repeats = 0
        self._broken: dict[str, int] = {}

    def write(self, batch: EventBatch) -> None:
        """Put a batch, and the broken records that go with it."""
        if len(batch):
            self._counts[batch.event_type] += len(batch)
            self._repeats += len(batch) - batch.frame["event_id"].n_unique()
            self.put(batch)

    @abstractmethod
    def put(self, batch: EventBatch) -> None:
        """Put a batch that is not empty."""

    @abstractmethod
    def close(self) -> None:
        """Make sure that everything is out."""

    def broken(self, batch: EventBatch, encode: Any, avro: bool, faults: Any = None) -> Any:
        """Broken records for a batch, counted: fault, row, message."""
        from features.simulate.malformed import break_some

        if not self._share:
            return []
        made = break_some(self._rng, batch, self._share, encode, avro, faults)
        for fault, _, _ in made:
            self._broken[fault] = self._broken.get(fault, 0) + 1
        return made

    def report(self) -> dict[str, Any]:
        """Counts; `in` is everything sent, broken records included."""
        broken = sum(self._broken.values())
        return {
            "in": sum(self._counts.values()) + broken,
            "by_event_type": self._counts,
            "repeats": self._repeats,
            "malformed": broken,
            "by_fault": self._broken,
        }


class _FileWriter(_Writer):
    """One file an event type in a folder that is made where it does not exist."""

    suffix = ""

    def __init__(self, args: argparse.Namespace, settings: Settings, simulator: Simulator) -> None:
        from pathlib import Path

        from features.errors import ConfigError

        super().__init__(args, settings, simulator)
        folder = Path(args.out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.files = {
                n: self.open(n, folder / f"{n}{self.suffix}") for n in simulator.event_types
            }
        except OSError as error:
            raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from None

    @abstractmethod
    def open(self, name: str, path: Any) -> Any:
        """The file of an event type, ready to be written."""

    def close(self) -> None:
        """Close all files."""
        for file in self.files.values():
            file.close()


class _ParquetWriter(_FileWriter):
    """Parquet, a row group a chunk."""

    suffix = ".parquet"

    def open(self, name: str, path: Any) -> Any:
        """A Parquet file with the declared columns."""
        import polars as pl
        import pyarrow.parquet as pq

        from features.events import event_type

        schema = pl.DataFrame(schema=event_type(name).schema).to_arrow().schema
        return pq.ParquetWriter(path, schema, compression="zstd")

    def put(self, batch: EventBatch) -> None:
        """Append a row group."""
        file = self.files[batch.event_type]
        file.write_table(batch.frame.to_arrow().cast(file.schema))


class _JsonlWriter(_FileWriter):
    """One JSON object a line."""

    suffix = ".jsonl"

    def open(self, name: str, path: Any) -> Any:
        """A file of lines."""
        return path.open("wb")

    def put(self, batch: EventBatch) -> None:
        """Append lines; broken ones stand after the event they were made from."""
        from features.encode import json_bodies
        from features.simulate.malformed import FAULTS

        lines = json_bodies(batch.frame)
        # An empty line is no record in this format, and a schema id does not exist.
        faults = tuple(f for f in FAULTS if f not in ("empty", "unknown_schema"))
        for _, row, message in reversed(self.broken(batch, json_bodies, False, faults)):
            lines.insert(row + 1, message)
        self.files[batch.event_type].write(b"\n".join(lines) + b"\n")


class _KafkaWriter(_Writer):
    """Kafka, through the producer that the tests and benchmarks use too."""

    def __init__(self, args: argparse.Namespace, settings: Settings, simulator: Simulator) -> None:
        from dataflows.sources.producer import EventProducer

        super().__init__(args, settings, simulator)
        self._avro = settings.kafka_format == "avro"
        self._producer = EventProducer(
            settings.kafka_brokers,
            encoding=settings.kafka_format,
            registry_url=settings.kafka_registry_url,
            registry_options=settings.kafka_registry_options,
            topic_prefix=settings.kafka_topic_prefix,
            options=settings.kafka_options,
            timestamps=args.timestamps,
        )
        self._producer.open(simulator.event_types)

    def put(self, batch: EventBatch) -> None:
        """Send the events and the broken records, each of those to its model's partition."""
        name = batch.event_type
        self._producer.send(batch)
        made = self.broken(batch, lambda frame: self._producer.encode(name, frame), self._avro)
        if made:
            partitions = [int(batch.partition[row]) for _, row, _ in made]
            self._producer.send_raw(name, [message for _, _, message in made], partitions)

    def close(self) -> None:
        """Wait for the acknowledgements."""
        self._producer.close()
