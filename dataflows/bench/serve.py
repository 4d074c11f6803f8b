"""`waxwing bench serve`: how long a model behind `waxwing serve` takes to answer, gRPC and REST.

It starts the server with the setting `bundle` at the loopback, and asks as a flow does
(`models.detectors.remote`), each protocol and the operator itself in turns, so that other work on
the machine meets all alike. The rows are made up: the way of the numbers is measured, not models.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from features.batch import FeatureMatrix, Float64
    from models.bundle import Bundle

__all__ = ["add_parser", "measure", "run"]

ROWS = 1_000
"""Rows of a question. Chosen: what a round at 10,000 events/s has of all types."""

CALLS = 200
"""Questions of each kind. Chosen: ten beyond the p95."""

WARM_CALLS = 5
"""Questions before that; the first ones connect."""

READY_S = 60.0
"""Longest wait for the server. Chosen: 20 times what it takes."""

EVENT = "payment"
"""The event type whose models are asked: the widest."""


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser("serve", help="ms of a remote answer", description=__doc__)
    settings_arguments(parser)
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help="of a question")
    parser.add_argument("--calls", type=int, default=CALLS, metavar="N", help="of each kind")
    parser.add_argument("--json", metavar="P", help="write the figures; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of, passed_on
    from dataflows.report import write_json
    from dataflows.settings import load
    from features.catalog import catalog
    from features.errors import ConfigError
    from models.bundle import Bundle

    faults = [
        f"--{name} {value}: expected 1 to 50000"
        for name, value in (("rows", args.rows), ("calls", args.calls))
        if not 1 <= value <= 50_000
    ]
    if faults:
        raise ConfigError(faults)
    settings = load(args.config, **overrides_of(args))
    bundle = Bundle.load(settings.bundle, catalog())
    if EVENT not in bundle.models:
        raise ConfigError(f"bundle {settings.bundle} has no models of {EVENT!r}; train with it")
    with _server(passed_on(args)) as urls:
        report = measure(bundle, urls, args.rows, args.calls)
    if args.json != "-":
        _print(report)
    write_json(args.json, report)
    return 0


def measure(bundle: Bundle, urls: Mapping[str, str], rows: int, calls: int) -> dict[str, Any]:
    """The figures, in the keys of docs/json.md.

    Parameters
    ----------
    urls : protocol -> where the bundle is served
    rows : of a question
    calls : of each kind
    """
    from models.detectors.remote import Client, Endpoint
    from models.scoring import Scorer

    models = bundle.models[EVENT]
    whole = _rows(bundle, rows)
    seen = models.view.apply(whole)
    name = next(iter(models.detectors))
    scorer = Scorer(bundle, bundle.detectors)
    questions: dict[str, tuple[FeatureMatrix, str, str, Callable[[], Any]]] = {
        name: (seen, f"{EVENT}.{name}", "raw", lambda: models.detectors[name].raw(seen)),
        "whole": (whole, EVENT, "ensemble[0]", lambda: scorer.decide(scorer.score(whole, {}), {})),
    }
    ms: dict[str, Any] = {}
    for what, (features, model, output, near) in questions.items():
        sequence = "" if what == name and not _sequential(models.detectors[name]) else "sequence"
        clients = {
            protocol: Client(
                Endpoint(url, model, output=output, sequence=sequence, timeout_s=60.0,
                         batch_rows=rows),
                time.monotonic,
            )
            for protocol, url in urls.items()
        }  # fmt: skip
        asked: dict[str, Callable[[], Any]] = {"operator": near}
        for protocol, client in clients.items():
            asked[protocol] = _question(client, bundle.id, features)
        ms[what] = _timed(asked, calls)
        for client in clients.values():
            client.close()
    columns = {name: len(seen.names), "whole": len(whole.names)}
    return {"bundle": bundle.id, "rows": rows, "calls": calls, "columns": columns, "ms": ms}


def _question(client: Any, bundle: str, features: FeatureMatrix) -> Callable[[], Float64]:
    """Asks once."""
    return lambda: client.ask(EVENT, "", bundle, features)


def _sequential(one: object) -> bool:
    return bool(getattr(one, "sequential", False))


def _timed(asked: Mapping[str, Callable[[], Any]], calls: int) -> dict[str, Any]:
    """ms of wall time, median and p95, of each kind, asked in turns."""
    import numpy as np

    took: dict[str, list[float]] = {name: [] for name in asked}
    for i in range(WARM_CALLS + calls):
        for name, ask in asked.items():
            begun = time.perf_counter()
            ask()
            if i >= WARM_CALLS:
                took[name].append(1e3 * (time.perf_counter() - begun))
    return {
        name: {
            "median": round(float(np.median(t)), 3),
            "p95": round(float(np.quantile(t, 0.95)), 3),
        }
        for name, t in took.items()
    }


def _rows(bundle: Bundle, rows: int) -> FeatureMatrix:
    """Rows of made-up numbers."""
    import numpy as np

    from features.batch import FeatureMatrix
    from features.sequence import STEPS, WIDTH

    rng = np.random.default_rng(1)
    names = bundle.models[EVENT].names
    values = rng.exponential(size=(rows, len(names)))
    sequence = rng.uniform(-1, 1, (rows, STEPS, WIDTH)).astype(np.float32)
    return FeatureMatrix(EVENT, names, values, sequence, bundle.catalog_version)


@contextmanager
def _server(settings: list[str]) -> Iterator[dict[str, str]]:
    """`waxwing serve` while the block lasts; protocol -> where.

    Raises
    ------
    ConfigError : it did not begin to answer
    """
    import httpx

    from features.errors import ConfigError

    http, grpc = _free_port(), _free_port()
    command = [sys.executable, "-m", "dataflows.cli.main", "serve", *settings]
    process = subprocess.Popen([*command, "--http-port", str(http), "--grpc-port", str(grpc)])
    urls = {"grpc": f"grpc://127.0.0.1:{grpc}", "http": f"http://127.0.0.1:{http}"}
    try:
        give_up = time.monotonic() + READY_S
        while True:
            try:
                if httpx.get(f"{urls['http']}/v2/health/ready", trust_env=False).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
            if process.poll() is not None or time.monotonic() > give_up:
                raise ConfigError("`waxwing serve` does not answer; see what it says above")
        yield urls
    finally:
        process.terminate()
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    """A port that nobody listens at."""
    with closing(socket.socket()) as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def _print(report: Mapping[str, Any]) -> None:
    """The figures for a person."""
    print(f"bundle {report['bundle']}, {report['rows']:,} rows a question, ms, median and p95")
    for what, by_way in report["ms"].items():
        print(f"{what} ({report['columns'][what]} columns)")
        for way, one in by_way.items():
            print(f"  {way:10}{one['median']:>10.2f}{one['p95']:>10.2f}")
