"""Real servers, one of each for all service tests; a server that cannot be had is skipped aloud.

    def test_something(kafka, registry, redis_server, topic_prefix):
        kafka.brokers, registry.url, redis_server.url

Tests share them, so each works under names of its own: `topic_prefix` is new in every test.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from tests.service.servers import Kafka, NotToBeHad, Redis, Registry, Server

__all__ = ["running_server"]

S = TypeVar("S", bound=Server)

_NUMBERS = itertools.count(1)


@contextlib.contextmanager
def running_server(make: Callable[[], S]) -> Iterator[S]:
    """The server while the block lasts; a skip that says what helps where it cannot be had."""
    try:
        server = make()
    except NotToBeHad as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A real Kafka broker: `brokers`, `create_topic`, `end_offsets`, `total`, `read`, ..."""
    with running_server(Kafka) as server:
        yield server


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """A real Schema Registry: `url`, `register`."""
    with running_server(Registry) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A real Redis: `url`."""
    with running_server(Redis) as server:
        yield server


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for topics and subjects that no other test uses."""
    return f"t{os.getpid()}-{next(_NUMBERS)}-"
