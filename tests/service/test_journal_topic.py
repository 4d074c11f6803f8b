"""The journal in a topic: a folder that lost its copy goes on with the same rounds."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer

from dataflows.settings import Settings, load
from dataflows.sources.rounds import journal_folder
from dataflows.state import journal_topic
from dataflows.state.journal import Cut, LaneJournal, read_cuts
from dataflows.state.journal_topic import PLACE_EVERY, PLACE_FILE, TopicJournal
from features.errors import ConfigError, StateError
from tests.flow.harness import Bench, Run, alerts_of, counts_of, without_clock
from tests.service.servers import Kafka


@pytest.fixture
def settings(kafka: Kafka, topic_prefix: str, tmp_path: Path) -> Settings:
    """Of a flow with its journal in a topic of two partitions, made on first use."""
    return load(
        None, {}, kafka_brokers=kafka.brokers, journal_topic=f"{topic_prefix}journal", lanes=2,
        state_dir=tmp_path / "state",
    )  # fmt: skip


def opened(settings: Settings, token: int = 1, lane: int = 1) -> TopicJournal:
    folder = journal_folder(settings.state_dir, lane)
    return TopicJournal(
        settings, lane, token, lambda: LaneJournal(folder, 64_000_000, synced=False), lambda: False
    )


def cuts(begin: int, end: int, received: int = 3) -> Iterator[Cut]:
    for round_ in range(begin, end):
        schemas = {"7": "first"} if round_ == 1 else {}
        yield Cut(round_, round_ * 100, {"p": {"0": round_}}, received, 5, [], schemas)


def rounds_of(settings: Settings, lane: int = 1) -> list[tuple[int, int]]:
    return [(c.round, c.received) for c in read_cuts(journal_folder(settings.state_dir, lane))]


def write(settings: Settings, token: int, begin: int, end: int, received: int = 3) -> None:
    journal = opened(settings, token)
    for cut in cuts(begin, end, received):
        journal.append(cut)
    journal.close()


def test_a_record_of_a_newer_format_is_refused_with_the_cure(settings: Settings) -> None:
    write(settings, 1, 1, 4)
    producer = Producer({"bootstrap.servers": settings.kafka_brokers})
    (cut,) = cuts(4, 5)
    producer.produce(
        settings.journal_topic, value=cut.to_bytes(), partition=1,
        headers=[("token", b"1"), ("format", b"2")],
    )  # fmt: skip
    assert producer.flush(300) == 0
    told = r"partition 1 offset 3: written in format b'2', this version reads 1; run the version"
    with pytest.raises(StateError, match=told):
        opened(settings)


def test_a_lost_or_damaged_copy_is_filled_from_the_topic(settings: Settings) -> None:
    write(settings, 1, 1, PLACE_EVERY + 20)
    folder = journal_folder(settings.state_dir, 1)
    whole = [*read_cuts(folder)]
    assert [c.round for c in whole] == [*range(1, PLACE_EVERY + 20)]
    assert (folder / PLACE_FILE).exists(), "the next start need not read all"
    segment = next(folder.glob("*.jnl"))
    data = segment.read_bytes()
    segment.write_bytes(data[:-300])
    opened(settings, 2).close()
    assert [*read_cuts(folder)] == whole, "what the copy lacks at its end"
    segment.write_bytes(data[:500] + b"xx" + data[502:])
    opened(settings, 3).close()
    assert [*read_cuts(folder)] == whole, "damage in its middle"
    shutil.rmtree(settings.state_dir)
    opened(settings, 4).close()
    assert [*read_cuts(folder)] == whole and whole[0].schemas == {"7": "first"}
    write(settings, 4, PLACE_EVERY + 20, PLACE_EVERY + 22)
    assert [c.round for c in read_cuts(folder)] == [*range(1, PLACE_EVERY + 22)]


def test_a_full_disk_under_the_note_of_a_place_stops_no_round(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal_topic, "PLACE_EVERY", 1)
    monkeypatch.setattr(journal_topic, "replace_text", full)
    write(settings, 1, 1, 5)
    (said,) = [r.getMessage() for r in caplog.records if "could not be written" in r.getMessage()]
    assert "No space left on device; the next start reads more" in said
    shutil.rmtree(settings.state_dir)
    opened(settings, 2).close()
    assert rounds_of(settings) == [(r, 3) for r in range(1, 5)]


def test_who_lost_the_lease_is_not_read(settings: Settings) -> None:
    write(settings, 1, 1, 5)
    dead = opened(settings, 1)
    write(settings, 2, 5, 7, received=20)
    for cut in cuts(5, 9, received=10):
        dead.append(cut)
    dead.close()
    expected = [*((r, 3) for r in range(1, 5)), (5, 20), (6, 20)]
    opened(settings, 3).close()
    assert rounds_of(settings) == expected, "the copy of the dead one is read again"
    shutil.rmtree(settings.state_dir)
    write(settings, 3, 7, 8, received=30)
    assert rounds_of(settings) == [*expected, (7, 30)]


def test_what_retention_removed_is_still_in_the_copy(settings: Settings, kafka: Kafka) -> None:
    write(settings, 1, 1, 9)
    kafka.delete_records(str(settings.journal_topic), {1: 8})
    write(settings, 2, 9, 11)
    assert rounds_of(settings) == [(r, 3) for r in range(1, 11)]


def test_a_flow_with_an_older_lease_than_the_topic_has_seen_is_refused(settings: Settings) -> None:
    write(settings, 7, 1, 4)
    shutil.rmtree(settings.state_dir)
    with pytest.raises(StateError, match=r"under lease 7, this flow has lease 1: .* was lost"):
        opened(settings, 1)


def test_a_cut_of_megabytes_is_acknowledged(settings: Settings) -> None:
    journal = opened(settings)
    journal.append(replace(next(cuts(1, 2)), control=[{"why": "x" * 3_000_000}]))
    with pytest.raises(StateError, match=r"round 2 was not acknowledged"):
        journal.append(replace(next(cuts(2, 3)), control=[{"why": "x" * 17_000_000}]))
    journal.close()
    assert rounds_of(settings) == [(1, 3)]


def test_the_topic_of_another_flow_is_refused(settings: Settings) -> None:
    write(settings, 1, 1, 4)
    other = settings.model_copy(update={"state_dir": settings.state_dir.parent / "other"})
    ahead = LaneJournal(journal_folder(other.state_dir, 1), 64_000_000)
    for cut in cuts(1, 10):
        ahead.append(cut)
    ahead.close()
    with pytest.raises(StateError, match=r"ends at round 3, .* at 9:"):
        opened(other)
    few = settings.model_copy(update={"lanes": 3})
    with pytest.raises(ConfigError, match="has 2 partitions, lanes = 3"):
        opened(few)


def test_a_flow_whose_disk_is_lost_goes_on_with_the_same_rounds(
    bench: Bench, kafka: Kafka, topic_prefix: str, tmp_path: Path
) -> None:
    bound = {"sim_seconds": 60, "sim_speed": 60, "round_ms": 100, "snapshot_rounds": 20}
    kept = {"kafka_brokers": kafka.brokers, "journal_topic": f"{topic_prefix}journal"}
    whole = Run(bench, tmp_path / "whole", bound).to_end()
    run = Run(bench, tmp_path / "lost", {**bound, **kept})
    paced = Run(bench, run.state_dir, {**run.more, "sim_paced": "true"})
    paced.until(lambda: len(run_rounds(run)) > 25, signal.SIGKILL)
    before = run_rounds(run)
    assert not before[-1].final, "it was in the middle"
    shutil.rmtree(run.state_dir / "journal")
    report = run.to_end()
    assert run_rounds(run)[: len(before) - 1] == before[:-1], "cut as they had been"
    assert counts_of(report) == counts_of(whole)
    found, expected = (without_clock(alerts_of(r)) for r in (run.state_dir, tmp_path / "whole"))
    assert found == expected and len({a["id"] for a in found}) == len(found) > 20


def run_rounds(run: Run) -> list[Cut]:
    folder = journal_folder(run.state_dir, 0)
    return [*read_cuts(folder)] if folder.exists() else []
