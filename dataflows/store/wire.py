"""A connection on which many commands are sent before their answers are read, and how it fails.

redis-py opens it (TLS, ACL user, database, socket: whatever a URL can say); the commands come ready
made as bytes, and hiredis reads the answers, which is what redis-py's own pipeline is slow at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dataflows.settings import shown
from features.errors import ConfigError

__all__ = ["Wire"]

CONNECT_S_MAX = 2.0
"""Longest wait for a connection; chosen: a wrong address is to be told soon at the start."""

ANSWER_S_MAX = 5.0
"""Longest wait for an answer; chosen: longer than a Redis forks, loads or fails over without losing
its clients, short enough to say aloud that it hangs."""

_READ_BYTES = 65_536
"""Most bytes taken from the socket at once; redis-py's own number."""

_NOTHING = object()
"""What the reader gives where an answer is not there in full."""


class Wire:
    """An open connection.

    Raises
    ------
    redis.RedisError, OSError : it could not be opened
    ConfigError : the URL is none
    """

    def __init__(self, url: str) -> None:
        try:
            pool: Any = redis.ConnectionPool.from_url(
                url,
                socket_connect_timeout=CONNECT_S_MAX,
                socket_timeout=ANSWER_S_MAX,
                # Whoever holds the wire decides what is sent again and when.
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
            self._connection = pool.make_connection()
        except (ValueError, TypeError) as error:
            known = shown("redis_url", url)
            # Where a password is not escaped, the error shows a piece of it.
            why = f" ({error})" if known == url else ""
            raise ConfigError(
                f"redis_url: {known!r} is no address of a Redis{why}; expected"
                " redis://[USER:PASSWORD@]HOST:PORT/DB, rediss:// for TLS, or unix://PATH; of a"
                " password @ is written %40, / %2F, ? %3F, # %23"
            ) from None
        self._connection.connect()
        # redis-py's own way to read an answer costs many times what hiredis on its socket does
        # (tests/bench/store_speed.py, 2026-11-24).
        self._socket: Any = self._connection._sock
        self._reader = hiredis.Reader(
            replyError=redis.ResponseError, notEnoughData=_NOTHING, encoding=None
        )

    def send(self, data: Any) -> None:
        """Send commands; their answers must be asked for in order, with `answers`."""
        self._socket.sendall(data)

    def answers(self, count: int) -> list[Any]:
        """The next answers; an error of Redis stands in the list as an exception."""
        found: list[Any] = []
        gets = self._reader.gets
        while len(found) < count:
            answer = gets()
            if answer is not _NOTHING:
                found.append(answer)
                continue
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise redis.ConnectionError("Redis closed the connection")
            self._reader.feed(data)
        return found

    def numbers(self, count: int) -> list[Any]:
        """The errors among the next answers, of commands that answer with a number or an error.

        Such an answer is one line, so lines are counted; Python looks at each of them only where an
        error is among them. All answers asked for before must have been taken.
        """
        got, lines = [], 0
        while lines < count:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise redis.ConnectionError("Redis closed the connection")
            lines += data.count(b"\n")
            got.append(data)
        whole = b"".join(got)
        if b"-" not in whole:
            return []
        self._reader.feed(whole)
        return [answer for answer in self.answers(count) if isinstance(answer, Exception)]

    def ask(self, *words: Any) -> Any:
        """Send one command and return its answer, which may be an exception."""
        return self.ask_all([words])[0]

    def ask_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands and return their answers."""
        if not commands:
            return []
        for part in self._connection.pack_commands(commands):
            self.send(part)
        return self.answers(len(commands))

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
