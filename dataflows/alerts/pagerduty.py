"""Alerts as incidents in PagerDuty, over its Events API v2.

PagerDuty takes about two events a second and may be away for minutes, so alerts wait in a queue:
one place for each incident, which stands for all alerts of it; the most severe go first, then the
oldest. The notify flow fills the queue with `offer` and lets it work with `pump`; `write` does both
and waits.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx

from dataflows.alerts._pagerduty_event import (
    MERGED_EVENTS_MAX,
    SEVERITIES,
    dedup_key,
    severity_of,
    trigger,
)
from dataflows.alerts.base import Alert
from dataflows.settings import Settings
from features.errors import ConfigError, SinkError

__all__ = ["DEAD_FILE", "Sink"]

DEAD_FILE = "pagerduty_dead.jsonl"
"""Below state_dir/notify: events that PagerDuty refused, with its answer and without the key."""

DEAD_BYTES_MAX = 50_000_000
"""The dead file grows no further. Chosen: ten thousand refused events tell enough."""

ROUTING_KEY_CHARACTERS = 32
"""Origin: PagerDuty's page."""

RATE_S = 1.8
BURST = 10
"""Events a second, and at once after a rest. Origin: PagerDuty takes about 120 in any 60 s;
10 + 60 x 1.8 is 118."""

TIMEOUT_S = 5.0
"""Longest wait for a connection, and for each part of an answer. Chosen: PagerDuty only queues
while one waits."""

ANSWER_S_MAX = 10.0
ANSWER_BYTES_MAX = 65_536
"""An answer that takes or is longer is not read to its end. Chosen: real ones have 100 bytes."""

BACK_OFF_S_FIRST = 1.0
BACK_OFF_S_LIMITED = 30.0
BACK_OFF_S_MAX = 120.0
"""First wait after a failure and after a 429, and the longest; each failure doubles it, and half of
it is left to chance. Origin: PagerDuty's pages name 30 s and "a few minutes" after a 429."""

OWN_FAILURES_MAX = 20
"""An event that failed so often, each time after others had got through, is itself the cause and
goes to the dead file. Chosen: where every second call fails by chance, one event in a million."""

WAIT_S_MAX = 86_400.0
"""An event older than this in the queue goes to the dead file. Chosen: an outage of a day."""

QUEUE_ALERTS_MAX = 20_000
"""From so many waiting alerts on there is no room; the notify flow then leaves them in the log.
Chosen: about 10 MB."""

PUMP_S_MAX = 1.0
"""`pump` returns after about this time, so that a slow answer does not keep a flow from reading."""

WRITE_S_MAX = 300.0
"""`write` gives up after this. Chosen: a round cannot wait longer."""

_ROUNDING_S = 1e-6

_RETRY_STATUS = frozenset({408, 429})
_ACCEPTED = 202
_LIMITED = 429
_SERVER_FAULT = 500

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Incident:
    """Alerts of one incident that wait to be sent as one event."""

    key: str
    alert: Alert
    since_s: float
    order: int
    ids: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    own_failures: int = 0
    accepted_before: int = -1

    def add(self, alert: Alert) -> None:
        """Take in one more; the most severe speaks, the latest of them."""
        self.ids.append(alert.id)
        if len(self.events) <= MERGED_EVENTS_MAX:
            self.events.append(alert.event_id)
        if _rank(alert) <= _rank(self.alert):
            self.alert = alert


class _Bucket:
    """Tokens that grow with time, up to a burst."""

    def __init__(self, now_s: float) -> None:
        self._tokens = float(BURST)
        self._now_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until a token is there."""
        self._tokens = min(float(BURST), self._tokens + max(0.0, now_s - self._now_s) * RATE_S)
        self._now_s = now_s
        return (1.0 - self._tokens) / RATE_S

    def take(self) -> None:
        """Use one."""
        self._tokens -= 1.0


class Sink:
    """Sends alerts to one PagerDuty service.

    Parameters
    ----------
    clock : seconds, monotonic
    sleep : waits so many seconds; only `write` does
    chance : where jitter comes from
    """

    name: ClassVar[str] = "pagerduty"

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self._key = _routing_key(settings)
        self._url = settings.pagerduty_url.rstrip("/") + "/v2/enqueue"
        self._dead = settings.state_dir / "notify" / DEAD_FILE
        self._clock, self._sleep = clock, sleep
        self._chance = random.Random() if chance is None else chance
        self._queue: dict[str, _Incident] = {}
        self._waiting = 0
        self._order = 0
        self._bucket = _Bucket(clock())
        self._not_before_s = 0.0
        self._failures = 0
        self.accepted = 0
        self.refused = 0
        # No redirects: they would carry the key to wherever an answer says.
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)

    def write(self, alerts: list[Alert]) -> None:
        """Send all of them and wait until PagerDuty has them.

        Raises
        ------
        SinkError : PagerDuty did not take them within WRITE_S_MAX
        """
        self.offer(alerts)
        until_s = self._clock() + WRITE_S_MAX
        while self._queue:
            self.pump()
            if not self._queue:
                return
            if self._clock() > until_s:
                raise SinkError(
                    f"sink 'pagerduty': {self._waiting} alerts were not accepted by {self._url}"
                    f" within {WRITE_S_MAX:.0f} s; see that it can be reached, and let the notify"
                    ' flow send (notify = ["pagerduty"]), which waits and holds nothing up'
                )
            self._sleep(self.wait_s())

    def room(self) -> bool:
        """Whether more may be offered."""
        return self._waiting < QUEUE_ALERTS_MAX

    def offer(self, alerts: list[Alert]) -> None:
        """Put alerts into the queue, each with its incident."""
        now_s = self._clock()
        for alert in alerts:
            key = dedup_key(alert)
            incident = self._queue.get(key)
            if incident is None:
                incident = self._queue[key] = _Incident(key, alert, now_s, self._next())
            incident.add(alert)
        self._waiting += len(alerts)

    def pump(self) -> list[str]:
        """Send what may be sent now; the ids of the alerts that are done with, sent or dead."""
        done: list[str] = []
        begun_s = now_s = self._clock()
        while self._queue and not self._wait_s(now_s) and now_s - begun_s <= PUMP_S_MAX:
            incident = min(self._queue.values(), key=self._place)
            self._bucket.take()
            if self._send(incident):
                del self._queue[incident.key]
                self._waiting -= len(incident.ids)
                done += incident.ids
            now_s = self._clock()
        return done

    def wait_s(self) -> float:
        """Seconds until `pump` can send again."""
        return self._wait_s(self._clock())

    def close(self) -> None:
        """Let go of the connection; what waits is still in the alert log."""
        self._client.close()

    def _place(self, incident: _Incident) -> tuple[bool, int, int]:
        """First what has not just failed, then the most severe, then the oldest."""
        return incident.accepted_before == self.accepted, _rank(incident.alert), incident.order

    def _wait_s(self, now_s: float) -> float:
        """Seconds until both the rate and the back-off allow an event."""
        wait_s = max(self._not_before_s - now_s, self._bucket.wait_s(now_s))
        # What is left of rounding is no reason to wait.
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def _next(self) -> int:
        """The next place in line."""
        self._order += 1
        return self._order

    def _send(self, incident: _Incident) -> bool:
        """Send one event; whether it is done with."""
        body = trigger(incident.alert, self._key, len(incident.ids), _others(incident))
        status, answer, retry_after_s = self._post(body)
        if status == _ACCEPTED:
            self.accepted += 1
            self._failures = 0
            return True
        if status is not None and status < _SERVER_FAULT and status not in _RETRY_STATUS:
            self._bury(incident, body, status, answer)
            self._failures = 0
            return True
        return self._failed(incident, body, status, answer, retry_after_s)

    def _post(self, body: dict[str, Any]) -> tuple[int | None, str, float]:
        """Status (None without one), answer, and the wait that the answer asks for."""
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            with self._client.stream("POST", self._url, content=content, headers=headers) as got:
                asked = got.headers.get("Retry-After", "")
                wait_s = min(float(asked), BACK_OFF_S_MAX) if asked.isdecimal() else 0.0
                return got.status_code, self._masked(self._answer(got)), wait_s
        except httpx.HTTPError as error:
            return None, self._masked(f"{type(error).__name__}: {error}"), 0.0

    def _answer(self, response: httpx.Response) -> str:
        """The body of an answer as far as it comes; the status has already said what counts."""
        until_s = self._clock() + ANSWER_S_MAX
        read = bytearray()
        try:
            for part in response.iter_raw():
                read += part
                if len(read) > ANSWER_BYTES_MAX or self._clock() > until_s:
                    break
        except httpx.HTTPError:
            pass
        return bytes(read[:ANSWER_BYTES_MAX]).decode(errors="replace")

    def _masked(self, text: str) -> str:
        """The text without the key, should an answer repeat it."""
        return text.replace(self._key, "********")

    def _failed(
        self,
        incident: _Incident,
        body: dict[str, Any],
        status: int | None,
        answer: str,
        retry_after_s: float,
    ) -> bool:
        """Put off everything, and give up an event that alone is to blame."""
        self._failures += 1
        first_s = BACK_OFF_S_LIMITED if status == _LIMITED else BACK_OFF_S_FIRST
        # 2 ** 10 is beyond any maximum; a larger power would one day be no float.
        whole_s = min(BACK_OFF_S_MAX, first_s * 2.0 ** min(self._failures - 1, 10))
        wait_s = max(retry_after_s, whole_s * (0.5 + 0.5 * self._chance.random()))
        now_s = self._clock()
        self._not_before_s = now_s + wait_s
        if status != _LIMITED and 0 <= incident.accepted_before < self.accepted:
            incident.own_failures += 1
        incident.accepted_before = self.accepted
        incident.order = self._next()
        if incident.own_failures >= OWN_FAILURES_MAX or now_s - incident.since_s > WAIT_S_MAX:
            self._bury(incident, body, status, answer)
            return True
        _log.warning(
            "pagerduty: %s: %s; %d alerts wait, next try in %.0f s",
            "no answer" if status is None else f"status {status}",
            answer[:200] or "empty answer",
            self._waiting,
            wait_s,
        )
        return False

    def _bury(
        self, incident: _Incident, body: dict[str, Any], status: int | None, answer: str
    ) -> None:
        """Keep what PagerDuty will not take, with what it said."""
        self.refused += 1
        _log.error(
            "pagerduty: event of %d alerts refused with status %s, kept in %s: %s",
            len(incident.ids),
            status,
            self._dead,
            answer[:200],
        )
        record = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": status,
            "answer": answer[:2_000],
            "alert_ids": incident.ids[:1_000],
            "event": {k: v for k, v in body.items() if k != "routing_key"},
        }
        try:
            self._dead.parent.mkdir(parents=True, exist_ok=True)
            with self._dead.open("a", encoding="utf-8") as file:
                if file.tell() < DEAD_BYTES_MAX:
                    file.write(json.dumps(record) + "\n")
        except OSError as error:
            _log.error("pagerduty: %s could not be written: %s", self._dead, error.strerror)


def _routing_key(settings: Settings) -> str:
    """The key, after everything about PagerDuty in the settings has been looked at."""
    faults = []
    secret = settings.pagerduty_routing_key
    key = "" if secret is None else secret.get_secret_value()
    if secret is None:
        faults.append(
            "sink 'pagerduty' needs pagerduty_routing_key, the integration key of a service; set"
            " WAXWING_PAGERDUTY_ROUTING_KEY"
        )
    elif len(key) != ROUTING_KEY_CHARACTERS or not (key.isascii() and key.isalnum()):
        faults.append(
            f"pagerduty_routing_key: expected {ROUTING_KEY_CHARACTERS} letters and digits, got"
            f" {len(key)} characters; copy the integration key of an Events API v2 integration"
        )
    try:
        parts = urlsplit(settings.pagerduty_url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        httpx.URL(settings.pagerduty_url)
    except (ValueError, httpx.InvalidURL):
        sound = False
    if not sound:
        faults.append(
            "pagerduty_url: expected a base address such as https://events.pagerduty.com, got"
            f" {settings.pagerduty_url!r}"
        )
    if faults:
        raise ConfigError(faults)
    return key


def _rank(alert: Alert) -> int:
    """0 for the most severe."""
    return SEVERITIES.index(severity_of(alert))


def _others(incident: _Incident) -> list[str]:
    """Event ids of an incident but for the one that speaks."""
    return [e for e in incident.events if e != incident.alert.event_id][:MERGED_EVENTS_MAX]
