"""A receiver that speaks PagerDuty's Events API v2 and forgives nothing its pages do not allow.

It keeps the state of alerts as PagerDuty does, by (routing key, dedup key), and can be told to
fail: `script` says what to do with the next requests, by a status to answer or a word. `drop`
closes without an answer, `lose` accepts and closes without one, `hang` gives none until the end.

Facts: https://developer.pagerduty.com/docs/events-api-v2/ (read 2026-11).
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Incident", "PagerDuty", "faults_of", "receiver"]

BODY_BYTES_MAX = 512_000
ACTIONS = ("trigger", "acknowledge", "resolve")
SEVERITIES = ("critical", "error", "warning", "info")
WINDOW_S = 60.0

_TOP = {
    "routing_key", "event_action", "dedup_key", "payload", "images", "links", "client",
    "client_url",
}  # fmt: skip
_PAYLOAD = {
    "summary", "source", "severity", "timestamp", "component", "group", "class", "custom_details",
}  # fmt: skip


def _text(
    table: Mapping[str, Any], name: str, where: str, most: int | None = None, needed: bool = False
) -> list[str]:
    """Faults of a field that should hold text."""
    if name not in table:
        return [f"{where}{name} is missing"] if needed else []
    value = table[name]
    if not isinstance(value, str):
        return [f"{where}{name} is no string"]
    if needed and not value:
        return [f"{where}{name} is empty"]
    if most is not None and len(value) > most:
        return [f"{where}{name} has {len(value)} characters, at most {most} are taken"]
    return []


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return dict(pairs)


def _refuse(word: str) -> float:
    """NaN and Infinity are not JSON."""
    raise ValueError(f"{word} is not JSON")


def _payload_faults(payload: Any) -> list[str]:
    """Faults of a trigger's payload."""
    if not isinstance(payload, dict):
        return ["payload is missing or no object"]
    faults = [f"payload.{name} is unknown" for name in payload.keys() - _PAYLOAD]
    faults += _text(payload, "summary", "payload.", 1_024, needed=True)
    for name in ("source", "severity"):
        faults += _text(payload, name, "payload.", needed=True)
    for name in ("component", "group", "class"):
        faults += _text(payload, name, "payload.")
    if payload.get("severity") not in SEVERITIES:
        faults.append(f"payload.severity is none of {', '.join(SEVERITIES)}")
    if "timestamp" in payload:
        try:
            if datetime.fromisoformat(payload["timestamp"]).tzinfo is None:
                faults.append("payload.timestamp has no offset")
        except (TypeError, ValueError):
            faults.append("payload.timestamp is not ISO 8601")
    if not isinstance(payload.get("custom_details", {}), dict):
        faults.append("payload.custom_details is no object")
    return faults


def faults_of(raw: bytes) -> tuple[dict[str, Any], list[str]]:
    """The body of a request and everything that is wrong with it."""
    if len(raw) > BODY_BYTES_MAX:
        return {}, [f"body has {len(raw)} bytes, at most {BODY_BYTES_MAX} are taken"]
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_pairs)
    except ValueError as error:
        return {}, [f"not JSON: {error}"]
    if not isinstance(body, dict):
        return {}, ["body is no object"]
    faults = [f"{name} is unknown" for name in body.keys() - _TOP]
    faults += _text(body, "routing_key", "", needed=True)
    if len(str(body.get("routing_key", ""))) != 32:
        faults.append("routing_key has not 32 characters")
    if body.get("event_action") not in ACTIONS:
        faults.append(f"event_action is none of {', '.join(ACTIONS)}")
    trigger = body.get("event_action") == "trigger"
    faults += _text(body, "dedup_key", "", 255, needed=not trigger)
    for name in ("client", "client_url"):
        faults += _text(body, name, "")
    if trigger:
        faults += _payload_faults(body.get("payload"))
    for image in body.get("images", []):
        if not str(image.get("src", "")).startswith("https://"):
            faults.append("images: src is no HTTPS address")
    faults += ["links: href is missing" for link in body.get("links", []) if "href" not in link]
    return body, faults


@dataclass(slots=True)
class Incident:
    """What PagerDuty shows for one dedup key."""

    status: str
    events: list[dict[str, Any]] = field(default_factory=list)
    opened: int = 1


class PagerDuty:
    """The state of the receiver; safe to be looked at from the test's thread.

    Parameters
    ----------
    calls_max : most calls of a routing key in any 60 s, 429 beyond; None for no limit
    clock : seconds, monotonic, for the limit
    """

    def __init__(
        self, calls_max: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = ""
        self.script: deque[int | str] = deque()
        self.incidents: dict[tuple[str, str], Incident] = {}
        self.accepted: list[dict[str, Any]] = []
        self.answers: list[int | str] = []
        self.faults: list[str] = []
        self.refuse: Callable[[dict[str, Any]], int | None] = lambda body: None
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self._calls_max, self._clock = calls_max, clock
        self._calls: dict[str, deque[float]] = {}

    def dedup_keys(self) -> list[str]:
        """Dedup keys in the order in which they were accepted."""
        return [body["dedup_key"] for body in self.accepted]

    def wait_for(self, condition: Callable[[], bool], limit_s: float = 30.0) -> None:
        """Wait until something that is looked at after every request holds."""
        with self.changed:
            assert self.changed.wait_for(condition, limit_s), f"{limit_s:.0f} s passed"

    def answer(self, path: str, headers: Mapping[str, str], raw: bytes) -> int | str:
        """Status of the answer to a request, or what else happens to it."""
        with self.changed:
            told = self._judge(path, headers, raw)
            self.answers.append(told)
            self.changed.notify_all()
        return told

    def _judge(self, path: str, headers: Mapping[str, str], raw: bytes) -> int | str:
        """What to do; accepted events change the state."""
        planned = self.script.popleft() if self.script else 202
        if planned not in (202, "lose"):
            return planned
        if path != "/v2/enqueue":
            return 404
        if headers.get("Content-Type", "").split(";")[0] != "application/json":
            self.faults.append("Content-Type is not application/json")
            return 400
        body, faults = faults_of(raw)
        self.faults += faults
        if faults:
            return 400
        if self._too_many(body["routing_key"]):
            return 429
        refused = self.refuse(body)
        if refused is not None:
            return refused
        self._accept(body)
        return planned

    def _too_many(self, key: str) -> bool:
        """Whether the calls of a key in the last 60 s are beyond the limit."""
        if self._calls_max is None:
            return False
        calls = self._calls.setdefault(key, deque())
        now_s = self._clock()
        while calls and now_s - calls[0] >= WINDOW_S:
            calls.popleft()
        calls.append(now_s)
        return len(calls) > self._calls_max

    def _accept(self, body: dict[str, Any]) -> None:
        """Change the state as PagerDuty documents."""
        self.accepted.append(body)
        key = (body["routing_key"], body.setdefault("dedup_key", f"made-{len(self.accepted)}"))
        incident = self.incidents.get(key)
        action = body["event_action"]
        if action == "trigger":
            if incident is None:
                self.incidents[key] = Incident("triggered", [body])
            else:
                if incident.status == "resolved":
                    incident.status, incident.opened = "triggered", incident.opened + 1
                incident.events.append(body)
        elif incident is not None and incident.status != "resolved":
            # Without an open alert these are dropped, yet answered with 202.
            incident.status = "acknowledged" if action == "acknowledge" else "resolved"


def _handler(state: PagerDuty) -> type[BaseHTTPRequestHandler]:
    """The class that answers requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One segment an answer: two make the client wait 40 ms for an acknowledgement.
        wbufsize = 65_536

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told = state.answer(self.path, self.headers, raw)
            if isinstance(told, str):
                if told == "hang":
                    state.closing.wait(60)
                self.close_connection = True
                return
            body = json.dumps(_answer_body(told, raw, state)).encode()
            self.send_response(told)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


def _answer_body(status: int, raw: bytes, state: PagerDuty) -> dict[str, Any]:
    """The body that public clients of PagerDuty agree on."""
    if status == 202:
        key = json.loads(raw)["dedup_key"]
        return {"status": "success", "message": "Event processed", "dedup_key": key}
    if status == 400:
        # A careless answer that repeats what was sent, the key too.
        return {
            "status": "invalid event",
            "message": "Event object is invalid",
            "errors": [*state.faults[-5:], raw.decode("utf-8", "replace")[:300]],
        }
    return {"status": "throttle exceeded" if status == 429 else "error"}


@contextmanager
def receiver(
    calls_max: int | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[PagerDuty]:
    """A receiver on a free port of this machine, closed at the end."""
    state = PagerDuty(calls_max, clock)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
