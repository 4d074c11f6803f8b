"""A signal stops the flow cleanly, whichever thread of the process it meets."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
from datetime import UTC, datetime, timedelta
import sys

import numpy as np
import polars as pl

# Threads of others, which block no signal: the kernel may give it to any of them.
np.ones((300, 300)) @ np.ones((300, 300))
pl.DataFrame({"a": list(range(10_000))}).group_by("a").len()

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.run import cli_main
from bytewax.testing import TestingSink

from dataflows.context import StopSwitch, stop_on_signals

stop = StopSwitch()
stop_on_signals(stop)


class Part(StatefulSourcePartition):
    def next_batch(self):
        if stop() and sys.argv[1] == "obeys":
            raise StopIteration
        print("asked" if stop() else "runs", flush=True)
        return []

    def next_awake(self):
        return datetime.now(UTC) + timedelta(milliseconds=20)

    def snapshot(self):
        return None

    def close(self):
        print("closed", flush=True)


class Source(FixedPartitionedSource):
    def list_parts(self):
        return ["one"]

    def build_part(self, *_):
        return Part()


flow = Dataflow("flow")
op.output("out", op.input("in", flow, Source()), TestingSink([]))
cli_main(flow, epoch_interval=timedelta(0))
print("ended", flush=True)
"""


def child(how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, how], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_lets_the_flow_end_and_close(number: signal.Signals) -> None:
    with child("obeys") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(number)
        said = process.stdout.read().split()
        assert process.wait(timeout=120) == 0
    assert said[-2:] == ["closed", "ended"]


def test_a_second_signal_ends_a_flow_that_does_not_listen() -> None:
    with child("stubborn") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGTERM)
        while process.stdout.readline() != "asked\n":
            pass
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=120) == 128 + signal.SIGINT
