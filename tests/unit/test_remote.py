"""A model that is asked elsewhere: by a server that answers well, wrongly, late, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features.batch import FeatureMatrix
from features.errors import AnswerError
from models.detectors._breaker import Breaker
from models.detectors.remote import Client, Endpoint, Model, elsewhere
from tests.v2 import Script

ROWS = 250
PATIENCE_S = 20.0
"""Time-out where nothing is late: a busy machine is no fault."""


def total(_model: str, inputs: dict[str, Any]) -> Any:
    """The sum of a row's features, NaN where one is not known."""
    return inputs["features"].sum(axis=1)


@pytest.fixture(scope="module")
def running() -> Iterator[Script]:
    """One server for all of them."""
    with Script(total, "b1") as script:
        yield script


@pytest.fixture
def script(running: Script) -> Script:
    """It, as if nothing had been asked."""
    running.faults.clear()
    running.asked.clear()
    running.released.clear()
    running.output, running.most_at_once = "raw", 0
    return running


class Clock:
    """Seconds that grow when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Each of the two."""
    return str(request.param)


def client(script: Script, protocol: str, said: list[str] | None = None, **more: Any) -> Client:
    """Asks it; its clock stands still where `clock` is one that does."""
    clock = more.pop("clock", Clock())
    endpoint = Endpoint(script.urls[protocol], **({"timeout_s": PATIENCE_S} | more))
    return Client(endpoint, clock, (said if said is not None else []).append)


def features(rows: int = ROWS) -> FeatureMatrix:
    """Rows, one of which has a value that is not known, with sequences."""
    values = np.random.default_rng(1).normal(size=(rows, 3))
    if rows:
        values[rows // 2, 1] = np.nan
    sequence = np.zeros((rows, 2, 4), np.float32)
    return FeatureMatrix("payment", ("a", "b", "c"), values, sequence, "v")


def ask(one: Client, rows: int = ROWS, bundle: str = "") -> Any:
    """Its answers."""
    return one.ask("payment", "iqr", bundle, features(rows))


def test_the_answers_are_those_of_the_model_bit_by_bit(script: Script, protocol: str) -> None:
    one = client(script, protocol, batch_rows=100)
    expected = features().values.sum(axis=1)
    assert ask(one).tobytes() == expected.tobytes() and np.isnan(expected).sum() == 1
    assert ask(one, bundle="b1").tobytes() == expected.tobytes()
    model, inputs = script.asked[0]
    assert model == "payment.iqr"
    assert inputs["features"][0] == "FP64" and inputs["sequence"][0] == "FP32"
    assert sorted(shape[0] for _, i in script.asked for _, shape in i.values()) == (
        [50] * 4 + [100] * 8
    )
    assert one.tally.rows == 2 * ROWS and one.tally.requests == 6
    assert ask(one, 0).shape == (0,) and len(script.asked) == 6
    one.close()


def test_names_of_tensors_datatype_and_column_are_told(script: Script, protocol: str) -> None:
    script.output = "probabilities"
    script.faults = ["column"]
    script.answer = lambda _, inputs: inputs["x"].sum(axis=1)
    one = client(
        script, protocol, model="fraud", features="x", sequence="", datatype="FP32",
        output="probabilities[1]",
    )  # fmt: skip
    try:
        expected = features().values.astype(np.float32).sum(axis=1).astype(np.float64)
        np.testing.assert_array_equal(ask(one), expected)
        assert script.asked == [("fraud", {"x": ("FP32", (ROWS, 3))})]
    finally:
        script.answer = total
        one.close()


WRONG = {
    "500": ("status", "told to"),
    "400": ("status", "told to"),
    "rubbish": ("rubbish", "reply|bytes"),
    "shape": ("shape", "249"),
    "name": ("rubbish", "no output 'raw', it has other"),
    "bundle": ("bundle", "bundle another answers, expected b1"),
    "infinite": ("rubbish", "infinite"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_answer_is_no_answer_and_is_not_asked_for_again(
    script: Script, protocol: str, fault: str
) -> None:
    kind, said = WRONG[fault]
    one = client(script, protocol)
    script.faults = [fault]
    with pytest.raises(AnswerError, match=said) as told:
        ask(one, bundle="b1")
    assert told.value.kind == kind
    assert str(told.value).startswith(f"payment.iqr at {script.urls[protocol]}: ")
    assert len(script.asked) == 1 and one.tally.unanswered == {kind: 1}
    assert ask(one, bundle="b1").shape == (ROWS,)
    one.close()


@pytest.mark.parametrize("fault", ["nan", "plain"])
def test_a_row_without_a_number_is_no_answer_of_somebody_elses_model(
    script: Script, protocol: str, fault: str
) -> None:
    one = client(script, protocol, breaker_faults=1)
    script.faults = [fault, fault]
    assert np.isnan(ask(one)).sum() == 1, "a detector of ours may be unable to tell"
    with pytest.raises(AnswerError, match="NaN for 1 of 250 rows") as told:
        one.ask("payment", "remote", "", features())
    assert told.value.kind == "rubbish" and one.tally.unanswered == {"rubbish": 1}
    with pytest.raises(AnswerError, match="left alone"):
        one.ask("payment", "remote", "", features())
    one.close()


def test_numbers_that_do_not_come_as_bytes_are_read_too(script: Script, protocol: str) -> None:
    one = client(script, protocol)
    script.faults = ["plain"]
    assert ask(one).tobytes() == features().values.sum(axis=1).tobytes()
    one.close()


@pytest.mark.parametrize("fault", ["503", "close"])
def test_who_is_to_come_later_or_is_cut_off_asks_again_a_bounded_number_of_times(
    script: Script, protocol: str, fault: str
) -> None:
    one = client(script, protocol, retries=2)
    script.faults = [fault, fault]
    assert ask(one).shape == (ROWS,)
    assert len(script.asked) == 3 and one.tally.retries == 2
    script.faults = [fault] * 9
    with pytest.raises(AnswerError):
        ask(one)
    assert len(script.asked) == 6, "two retries and no more"
    one.close()


def test_a_kept_connection_that_the_server_has_closed_is_no_fault(script: Script) -> None:
    one = client(script, "http", concurrency=1)
    script.faults = ["left"] * 5
    for _ in range(6):
        assert ask(one).shape == (ROWS,)
    assert one.tally.unanswered == {}
    one.close()


def test_a_slow_answer_is_not_waited_for(script: Script, protocol: str) -> None:
    one = client(script, protocol, timeout_s=0.05)
    script.faults = ["slow"] * 9
    with pytest.raises(AnswerError) as told:
        ask(one)
    assert told.value.kind == "time_out"
    script.released.set()
    one.close()


def test_who_waits_behind_another_model_that_hangs_is_not_at_fault(
    script: Script, protocol: str
) -> None:
    one = client(script, protocol, timeout_s=1.0, concurrency=1, breaker_faults=1)
    script.faults = ["slow"]
    hanging: list[str] = []

    def hang() -> None:
        with pytest.raises(AnswerError) as told:
            one.ask("payment", "zscore", "", features())
        hanging.append(told.value.kind)

    thread = threading.Thread(target=hang)
    thread.start()
    while not script.asked:
        thread.join(0.01)
    one.endpoint = replace(one.endpoint, timeout_s=0.01)  # its turn comes too late
    with pytest.raises(AnswerError, match="its turn never came") as told:
        ask(one)
    assert told.value.kind == "busy"
    thread.join()
    assert hanging == ["time_out"] and one.counts().unanswered == {"busy": 1, "time_out": 1}
    script.released.set()
    one.endpoint = replace(one.endpoint, timeout_s=PATIENCE_S)
    assert ask(one).shape == (ROWS,), "it is not left alone"
    with pytest.raises(AnswerError, match="left alone"):
        one.ask("payment", "zscore", "", features())
    one.close()


def test_a_question_whose_turn_comes_after_its_time_is_not_asked(
    script: Script, protocol: str
) -> None:
    clock = Clock()
    one = client(script, protocol, clock=clock, breaker_faults=1)
    begun, go_on = threading.Event(), threading.Event()
    held = [one._pool.submit(lambda: begun.set() or go_on.wait()) for _ in range(4)]
    begun.wait()
    found: list[str] = []

    def late() -> None:
        with pytest.raises(AnswerError) as told:
            ask(one)
        found.append(told.value.kind)

    thread = threading.Thread(target=late)
    thread.start()
    while not one._pool._work_queue.qsize():
        thread.join(0.01)
    clock.now = PATIENCE_S + 1.0
    go_on.set()
    thread.join()
    assert all(f.result() for f in held) and found == ["busy"] and script.asked == []
    assert ask(one).shape == (ROWS,)
    one.close()


def test_a_reply_that_is_packed_wrongly_is_rubbish(script: Script) -> None:
    one = client(script, "http")
    script.faults = ["gzip"]
    with pytest.raises(AnswerError, match="no reply to read") as told:
        ask(one)
    assert told.value.kind == "rubbish" and one.counts().unanswered == {"rubbish": 1}
    assert script.encodings == {"identity"}
    one.close()


@pytest.mark.parametrize("fault", ["wraps", "nowhere"])
def test_a_shape_that_no_array_has_is_rubbish(script: Script, protocol: str, fault: str) -> None:
    one = client(script, protocol)
    script.faults = [fault]
    with pytest.raises(AnswerError) as told:
        ask(one)
    assert told.value.kind == "rubbish" and one.counts().unanswered == {"rubbish": 1}
    one.close()


def test_what_nobody_has_thought_of_is_rubbish_and_counted(script: Script, protocol: str) -> None:
    one = client(script, protocol, breaker_faults=1)
    one.endpoint = replace(one.endpoint, output="raw[x]")
    with pytest.raises(AnswerError, match="ValueError") as told:
        ask(one)
    assert told.value.kind == "rubbish" and one.counts().unanswered == {"rubbish": 1}
    with pytest.raises(AnswerError, match="left alone"):
        ask(one)
    one.close()


def test_nobody_there_is_an_answer_error(protocol: str) -> None:
    with Script(total) as gone:
        urls = gone.urls
    endpoint = Endpoint(urls[protocol], timeout_s=PATIENCE_S)
    one = Client(endpoint, Clock())
    with pytest.raises(AnswerError) as told:
        ask(one)
    assert told.value.kind == "connection"
    one.close()


def test_after_faults_in_a_row_it_is_left_alone_and_one_call_finds_it_well_again(
    script: Script, protocol: str
) -> None:
    said: list[str] = []
    clock = Clock()
    one = client(script, protocol, said, clock=clock, breaker_faults=3, breaker_s=10.0)
    script.faults = ["500"] * 4
    for _ in range(3):
        with pytest.raises(AnswerError):
            ask(one)
    for _ in range(5):
        with pytest.raises(AnswerError) as told:
            ask(one)
        assert told.value.kind == "open"
    assert len(script.asked) == 3
    clock.now = 11.0
    with pytest.raises(AnswerError):
        ask(one)  # the fourth fault: open anew
    with pytest.raises(AnswerError):
        ask(one)
    assert len(script.asked) == 4
    clock.now = 22.0
    assert ask(one).shape == (ROWS,)
    assert ask(one).shape == (ROWS,)
    assert len(said) == 2 and "left alone for 10 s after 3 faults" in said[0]
    assert said[1].endswith("answers again")
    assert one.tally.unanswered == {"status": 4, "open": 6}
    one.close()


def test_no_more_requests_are_on_their_way_than_are_allowed(script: Script, protocol: str) -> None:
    one = client(script, protocol, batch_rows=10, concurrency=3)
    assert ask(one).tobytes() == features().values.sum(axis=1).tobytes()
    assert len(script.asked) == 25 and 1 <= script.most_at_once <= 3
    one.close()


def test_only_one_call_is_let_through_when_a_breaker_is_tried() -> None:
    clock = Clock()
    breaker = Breaker(1, 5.0, clock)
    breaker.fault()
    clock.now = 6.0
    let: list[bool] = []
    threads = [threading.Thread(target=lambda: let.append(breaker.may_ask())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(let) == 1 and not breaker.may_ask()


def test_a_model_that_nobody_put_in_place_says_so() -> None:
    with pytest.raises(AnswerError, match="set remote_url"):
        Model(("a", "b", "c")).raw(features())
    placed = elsewhere(Model(("a", "b", "c")), lambda rows: rows.values[:, 0])
    assert placed.name == "remote"
    np.testing.assert_array_equal(placed.raw(features()), features().values[:, 0])
