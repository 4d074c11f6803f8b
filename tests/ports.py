"""Ports for servers of tests."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

__all__ = ["free_port"]

_LOWEST = 10_000
"""Below it stand ports of well-known servers."""

_GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of the loopback that nobody listens on.

    It is none of those that the system gives out by itself: until a server has it, which takes
    seconds, no connection of another process may get it, nor one that is tried to that very port.
    """
    first = int(_GIVEN_OUT.read_text().split()[0]) if _GIVEN_OUT.exists() else 0
    below = range(_LOWEST, first)
    while True:
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", secrets.choice(below) if below else 0))
            except OSError:  # somebody listens there
                continue
            return int(one.getsockname()[1])
