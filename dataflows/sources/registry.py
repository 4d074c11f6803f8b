"""Schema bodies by id from a Schema Registry, asked beside the stream and never in its way.

A body is the world's answer: each new one is written down in `state_dir/schemas` and given to the
journal before it is used, and a replay asks nobody. An id that the registry does not have is one
thing (the record is a dead letter at once); a registry that does not answer is another (ids already
known go on, a record with a new one waits, PATIENCE_S at most).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError

from dataflows.settings import shown
from dataflows.state.journal import replace_text
from features.errors import ConfigError, SourceError, StateError

__all__ = ["PATIENCE_S", "SchemaBodies", "SealedBodies", "registry_client"]

PATIENCE_S = 30.0
"""How long a record with a new schema waits for a registry that is away; chosen: a restart."""

ANSWER_S = 0.5
"""How long one round waits for answers; chosen: a healthy registry takes 5 ms, a round 100."""

REQUEST_S = 3.0
"""Longest single request. Chosen."""

RETRY_S = 1.0
"""Pause between two questions to a registry that does not answer. Chosen."""

ABSENT_S = 60.0
"""How long `no such id` is believed; chosen: replicas of a registry agree much sooner."""

ASKED_MAX = 64
"""Most ids asked for at a time; chosen: rubbish that looks like new ids must not fill a queue. Ids
beyond it count as absent."""

ABSENT_MAX = 10_000
KNOWN_MAX = 4_096
"""Most ids remembered; chosen: far more than the event types ever see."""

NO_SUCH_SCHEMA = 40403
"""Error code of an unknown id (Confluent Schema Registry API). A 404 with another code comes from
a wrong address."""

_log = logging.getLogger(__name__)


def registry_client(url: str, options: Mapping[str, Any]) -> SchemaRegistryClient:
    """A client of the registry, without contact yet.

    Raises
    ------
    ConfigError : an address that is none, a property or a file that the client does not take
    """
    try:
        return SchemaRegistryClient({"url": url, **options})
    except (ValueError, TypeError, OSError) as error:
        if "url" in str(error):
            # The client's own words show the address with its password.
            known = shown("kafka_registry_url", url)
            raise ConfigError(
                f"kafka_registry_url: {known!r} is no address of a registry; expected"
                " http://host:port or https://host:port"
            ) from None
        raise ConfigError(
            f"kafka_registry_options: {error}; expected properties of confluent-kafka's"
            " SchemaRegistryClient, and files that are there"
        ) from None


class SchemaBodies:
    """Bodies known, absent or asked for.

    Parameters
    ----------
    url : Schema Registry with Confluent's API
    folder : where bodies are kept over a restart; an id never gets another body
    options : further properties of the client: basic.auth.user.info, ssl.*

    Raises
    ------
    ConfigError : an address that is none, a property that the client does not know or take
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        patience_s: float = PATIENCE_S,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._shown = shown("kafka_registry_url", url)
        self._patience_s = patience_s
        self._closing = ExitStack()
        self._client = self._closing.enter_context(
            registry_client(url, {**(options or {}), "timeout": REQUEST_S, "max.retries": 0})
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="waxwing-registry")
        self._known: dict[int, str] = {}
        self._absent: dict[int, float] = {}
        self._asked: dict[int, Future[str | None]] = {}
        self._since: dict[int, float] = {}
        self._retry_at = 0.0
        self._away = False

    @property
    def ids(self) -> list[int]:
        """Ids whose bodies are known, sorted."""
        return sorted(self._known)

    def restore(self, ids: Iterable[int]) -> None:
        """Know exactly these ids, from the folder; the registry is asked for what is missing there.

        Raises
        ------
        SourceError : a body that neither has
        """
        self._known, self._absent = {}, {}
        for i in ids:
            try:
                self._known[i] = self._path(i).read_text(encoding="utf-8")
                continue
            except FileNotFoundError:
                pass
            try:
                body = self._get(i)
                said = "has no such schema"
            except Exception as error:  # the transport's, the client's and the server's errors
                body, said = None, _said(error)
            if body is None:
                raise SourceError(
                    f"schema {i} of the journal is neither in {self._folder} nor to be had: schema"
                    f" registry {self._shown} {said}; bring the registry back, or put the schema"
                    f" into {self._path(i).name} there"
                )
            self._keep(i, body)

    def learn(self, bodies: Mapping[str, str]) -> None:
        """Take over journaled bodies: id (decimal) -> schema."""
        for schema_id, body in bodies.items():
            self._keep(int(schema_id), body)

    def known(self, ids: Iterable[int]) -> dict[int, str | None]:
        """What is known of the ids without asking anyone; None where nothing is."""
        return {i: self._known.get(i) for i in ids}

    def look_up(self, ids: Iterable[int]) -> tuple[dict[int, str | None], dict[str, str], set[int]]:
        """Bodies of ids, asking the registry for those not known.

        Returns
        -------
        answers : id -> body, None where the registry has no such id or was away too long
        fresh : id (decimal) -> body, of those met for the first time
        waiting : ids to come back for: the registry has not answered yet
        """
        now = time.monotonic()
        wanted = set(ids)
        answers: dict[int, str | None] = {}
        for i in wanted:
            if i in self._known:
                answers[i] = self._known[i]
            elif now < self._absent.get(i, 0.0):
                answers[i] = None
        unknown = sorted(wanted - set(answers))
        if not unknown:
            return answers, {}, set()
        for i in unknown:
            if not self._ask(i, now):
                answers[i] = None
        flying = [self._asked[i] for i in unknown if i in self._asked]
        # Only the first time: a registry that hangs must not cost every round this wait.
        first = any(self._since.get(i, now) == now for i in unknown)
        wait(flying, timeout=ANSWER_S if first else 0.0)
        fresh = self._harvest(answers)
        waiting = {i for i in unknown if i not in answers}
        late = {i for i in waiting if now - self._since.get(i, now) > self._patience_s}
        answers |= dict.fromkeys(late, None)
        return {i: answers[i] for i in wanted if i in answers}, fresh, waiting - late

    def ready(self, schema_id: int) -> bool:
        """Whether `look_up` may say more of an id that was waiting; does not wait."""
        now = time.monotonic()
        future = self._asked.get(schema_id)
        if future is not None and future.done():
            return True
        return (
            schema_id in self._known
            or now < self._absent.get(schema_id, 0.0)
            or (future is None and now >= self._retry_at)
            or now - self._since.get(schema_id, now) > self._patience_s
        )

    def check(self) -> None:
        """Ask for anything, to find a wrong address before the first event.

        Raises
        ------
        SourceError : no answer, or not one of a registry
        """
        try:
            self._get(1)
        except Exception as error:  # the transport's, the client's and the server's errors
            raise SourceError(
                f"schema registry {self._shown}: {_said(error)}; check kafka_registry_url (the"
                " address of Confluent's API, with its path), or set kafka_format = 'json'"
            ) from None

    def close(self) -> None:
        """Let go of the connection; a request under way ends by itself within REQUEST_S."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._closing.close()

    def _ask(self, schema_id: int, now: float) -> bool:
        """Put a question unless it is under way or too early; False where there are too many."""
        if schema_id in self._asked:
            return True
        if len(self._since) >= ASKED_MAX and schema_id not in self._since:
            return False
        self._since.setdefault(schema_id, now)
        if now >= self._retry_at:
            self._asked[schema_id] = self._pool.submit(self._get, schema_id)
        return True

    def _get(self, schema_id: int) -> str | None:
        """The registry's answer; None for no such id. Runs in the pool's thread."""
        try:
            return str(self._client.get_schema(schema_id).schema_str)
        except SchemaRegistryError as error:
            if error.error_code == NO_SUCH_SCHEMA:
                return None
            raise

    def _harvest(self, answers: dict[int, str | None]) -> dict[str, str]:
        """Sort in what has been answered; returns new bodies."""
        fresh: dict[str, str] = {}
        for i in [i for i, future in self._asked.items() if future.done()]:
            future = self._asked.pop(i)
            error = future.exception()
            if error is not None:
                self._retry_at = time.monotonic() + RETRY_S
                if not self._away:
                    self._away = True
                    _log.warning(
                        "schema registry %s: %s; records with new schemas wait up to %.0f s",
                        self._shown, _said(error), self._patience_s,
                    )  # fmt: skip
                continue
            if self._away:
                self._away = False
                _log.warning("schema registry %s: answers again", self._shown)
            # Whoever waited begins to wait anew, if it is met again at all.
            self._since = {j: since for j, since in self._since.items() if j in self._asked}
            body = future.result()
            answers[i] = body
            if body is None:
                if len(self._absent) >= ABSENT_MAX:
                    self._absent.clear()
                self._absent[i] = time.monotonic() + ABSENT_S
            else:
                self._keep(i, body)
                fresh[str(i)] = body
        return fresh

    def _path(self, schema_id: int) -> Path:
        """File of a body."""
        return self._folder / f"{schema_id}.avsc"

    def _keep(self, schema_id: int, body: str) -> None:
        """Remember a body, on the disk too."""
        self._absent.pop(schema_id, None)
        if schema_id in self._known:
            return
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[schema_id] = body
        path = self._path(schema_id)
        if path.exists():
            return
        # Lanes may write the same body at the same time: each its own file, renamed when whole.
        part = path.with_name(f".{path.name}.{os.getpid()}-{id(self):x}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_text(path, body, part)
        except OSError as error:
            raise StateError(
                f"schema {schema_id} could not be written to {self._folder}: {error.strerror}; free"
                " space or make state_dir writable"
            ) from error


def _said(error: BaseException) -> str:
    """What the registry or the way to it said, in a few words."""
    if isinstance(error, SchemaRegistryError):
        return f"answers {error.http_status_code} ({error.error_message or 'no reason given'})"
    return f"does not answer ({error or type(error).__name__})"


class SealedBodies:
    """Schema bodies of a journal: what it has not told is not known, and nobody is asked."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    @property
    def ids(self) -> list[int]:
        """Ids whose bodies are known, sorted."""
        return sorted(self._known)

    def restore(self, ids: Iterable[int]) -> None:
        """Whether all of these are known.

        Raises
        ------
        SourceError : the journal has not told one of them
        """
        missing = sorted(set(ids) - set(self._known))
        if missing:
            raise SourceError(
                f"schema {missing[0]} is named by the journal, but its body is not in it: the"
                " segment that told it is gone; replay a later stretch"
            )

    def learn(self, bodies: Mapping[str, str]) -> None:
        """Take over journaled bodies: id (decimal) -> schema."""
        self._known |= {int(i): body for i, body in bodies.items()}

    def known(self, ids: Iterable[int]) -> dict[int, str | None]:
        """What is known of the ids; None where nothing is."""
        return {i: self._known.get(i) for i in ids}

    def look_up(self, ids: Iterable[int]) -> tuple[dict[int, str | None], dict[str, str], set[int]]:
        """As `SchemaBodies.look_up`, without asking."""
        return self.known(ids), {}, set()

    def ready(self, schema_id: int) -> bool:
        """Nothing is ever waited for."""
        return True

    def check(self) -> None:
        """There is nobody to ask."""

    def close(self) -> None:
        """Nothing is held."""
