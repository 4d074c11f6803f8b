"""Real servers, one of each for all service tests; a server that cannot be had is skipped aloud.

    def test_something(kafka, registry, redis_server, topic_prefix):
        kafka.brokers, registry.url, redis_server.url

Tests share them, so each works under names of its own: `topic_prefix` is new in every test.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from tests.service.servers import Kafka, NotToBeHad, Redis, Registry, Server

__all__: list[str] = []

S = TypeVar("S", bound=Server)

_NUMBERS = itertools.count(1)


def _running(make: Callable[[], S]) -> Iterator[S]:
    """The server while the tests run; a skip that says what helps where it cannot be had."""
    try:
        server = make()
    except NotToBeHad as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A real Kafka broker: `brokers`, `create_topic`, `end_offsets`, `total`, `read`, ..."""
    yield from _running(Kafka)


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """A real Schema Registry: `url`, `register`."""
    yield from _running(Registry)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A real Redis: `url`."""
    yield from _running(Redis)


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for topics and subjects that no other test uses."""
    return f"t{os.getpid()}-{next(_NUMBERS)}-"
