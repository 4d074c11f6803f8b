"""`waxwing serve` as a process of its own, to be asked, killed and started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

from features.catalog import catalog
from models.bundle import Bundle
from models.train import train
from tests.ports import free_port
from tests.rows import training_set

__all__ = ["Serving", "free_port", "small_bundle"]

READY_S = 300.0
"""Longest wait until it answers. Chosen: 40 times what it takes on two cores at rest."""


def small_bundle(path: Path, event_type: str = "payment") -> Bundle:
    """A bundle of a cheap detector, one that learns, and one that reads sequences."""
    rows = training_set(np.random.default_rng(3), event_type, rows=1_200, odd=100)
    options = {"isolation_forest": {"trees": 20.0, "samples": 128.0}, "transformer": {"epochs": 1}}
    detectors = ("zscore", "isolation_forest", "transformer")
    train({event_type: rows}, catalog(), detectors, 1, options=options).write(path)
    return Bundle.load(path, catalog())  # as it is served: files round thresholds


class Serving:
    """The server, ready once the block begins.

    Parameters
    ----------
    bundle : folder of the bundle
    """

    def __init__(self, bundle: Path, *options: str) -> None:
        self.http_port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.grpc = f"127.0.0.1:{self.grpc_port}"
        self._bundle, self._options = bundle, options
        self._process: subprocess.Popen[bytes] | None = None
        self._said = bundle.parent / f"serve-{self.http_port}.txt"

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        ports = ["--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        command = [sys.executable, "-m", "dataflows.cli.main", "serve"]
        command += ["--bundle", str(self._bundle), *ports, *self._options]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WAXWING_")}
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(command, env=kept, stdout=said, stderr=said)
        give_up = time.monotonic() + READY_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"it is not ready: {self.said()}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/health/ready", timeout=30.0).status_code == 200
        except httpx.HTTPError:
            return False

    def said(self) -> str:
        """What it has written."""
        return self._said.read_text(encoding="utf-8")

    def stop(self) -> int:
        """Ask it to end, and wait; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(READY_S)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Serving:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
