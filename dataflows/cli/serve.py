"""`waxwing serve`: the models of a bundle behind KServe, over the Open Inference Protocol v2.

It answers what the operator of the flow would: EVENT_TYPE is the whole bundle, EVENT_TYPE.DETECTOR
one detector, for the flow that asks it elsewhere (`remote_detectors`).
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.served import Served

__all__ = ["add_parser", "models_of", "run"]

_WORKERS_MAX = 64
"""Most processes. Chosen: more than a machine has cores for, each with the bundle in memory."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "serve",
        help="answer for a bundle behind KServe",
        description=__doc__,
        epilog="It has neither password nor encryption: leave it at the loopback, or behind what"
        " has both.",
    )
    settings_arguments(parser)
    add = parser.add_argument
    where = "models to serve: folder, archive, URL, id (default: the setting `bundle`)"
    add("--bundle", metavar="B", help=where)
    add("--host", default="127.0.0.1", metavar="H", help="address (default 127.0.0.1)")
    add("--http-port", type=int, default=8080, metavar="N", help="of REST (default 8080)")
    add("--grpc-port", type=int, default=8081, metavar="N",
        help="of gRPC (default 8081); 0: none")  # fmt: skip
    add("--workers", type=int, default=1, metavar="N",
        help="processes that answer REST (default 1); gRPC is answered by one")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from features.errors import ConfigError

    _check(args)
    try:
        from models import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`waxwing serve` needs kserve ({error}); install it with `pip install waxwing[serve]`"
        ) from None
    overrides = _overrides(args)
    recipe = partial(models_of, args.config, tuple(overrides.items()))
    models = serve.loaded(recipe)
    first = next(iter(models.values()))
    print(
        f"waxwing: bundle {first.parameters['bundle_id']}, {len(models)} models at"
        f" http://{args.host}:{args.http_port}/v2/models"
        + (f", gRPC at {args.host}:{args.grpc_port}" if args.grpc_port else ""),
        file=sys.stderr,
        flush=True,
    )
    serve.serve(recipe, args.host, args.http_port, args.grpc_port or None, args.workers)
    return 0


def models_of(config: str | None, overrides: tuple[tuple[str, Any], ...]) -> Mapping[str, Served]:
    """The models that settings name; called in each process that serves.

    Raises
    ------
    ConfigError, BundleError : with the cure
    """
    from dataflows.settings import load
    from features.catalog import catalog
    from models.bundle import Bundle
    from models.served import served_models
    from models.voting import Voting

    settings = load(config, **dict(overrides))
    voting = None if settings.voting is None else Voting.load(settings.voting)
    # Where nobody has said otherwise the whole bundle answers, also detectors of one's own in it.
    asked = settings.detectors_asked
    return served_models(Bundle.load(settings.bundle, catalog()), voting, asked)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the command line."""
    from dataflows.cli.run import overrides_of

    given = overrides_of(args)
    if args.bundle is None:
        return given
    from dataflows.placed import placed
    from dataflows.settings import load

    # Once, and not in each process that answers.
    state_dir = load(args.config, **given).state_dir
    return given | {"bundle": str(placed(args.bundle, state_dir).resolve())}


def _check(args: argparse.Namespace) -> None:
    """ConfigError with every fault of the options: ports that are taken are found here."""
    from features.errors import ConfigError

    faults = []
    if not 1 <= args.workers <= _WORKERS_MAX:
        faults.append(f"--workers {args.workers}: expected 1 to {_WORKERS_MAX}")
    ports = {"--http-port": args.http_port, "--grpc-port": args.grpc_port}
    if not args.grpc_port:
        del ports["--grpc-port"]
    elif args.http_port == args.grpc_port:
        faults.append(f"--http-port and --grpc-port are both {args.http_port}; name two")
    for option, port in ports.items():
        if not 1 <= port <= 65_535:
            faults.append(f"{option} {port}: expected 1 to 65535")
        elif fault := _taken(args.host, port):
            faults.append(f"{option} {port}: cannot listen at {args.host}: {fault}; name another")
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def _taken(host: str, port: int) -> str:
    """Why nobody can listen there; empty where one can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""
