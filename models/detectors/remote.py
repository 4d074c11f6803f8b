"""A model that runs elsewhere and is asked over the Open Inference Protocol v2, gRPC or REST.

Two ways lead here. Detector `remote` is any model behind any server of the protocol:
training calibrates what it answers like the numbers of every other detector. And a detector of the
bundle may be asked of a server that has the same bundle (`waxwing serve`): then its answers are its
own numbers, and a server with another bundle is refused.

Nothing is asked here by itself: whoever runs the flow makes a `Client` and puts it in place with
`elsewhere`. What cannot be had in time is an AnswerError; the flow goes on without that vote.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import httpx
import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from features.errors import AnswerError, ConfigError, ShapeError
from models.base import Arrays, Detector, TrainingSet
from models.detectors._breaker import Breaker
from models.detectors._options import read_options
from models.detectors._v2 import (
    METHOD,
    Reply,
    grpc_reply,
    grpc_request,
    rest_reply,
    rest_request,
)

__all__ = ["REPLY_BYTES_MAX", "Client", "Elsewhere", "Endpoint", "Model", "elsewhere"]

REPLY_BYTES_MAX = 64_000_000
"""Most bytes of a reply. Chosen: a million rows of eight columns."""

REQUEST_BYTES_MAX = 4_000_000
"""Most bytes of the tensors of one request; a batch is cut smaller where its rows are wide.
Origin: gRPC servers refuse more than 4 MiB unless they are told otherwise."""

RECONNECT_MS = 500
"""Longest wait of gRPC between two tries to connect. Chosen: its own, up to two minutes, would
leave a server that is back alone for as long."""

_NO_TURN = "its turn never came, other models answer slowly"

_DTYPES = {"FP64": np.float64, "FP32": np.float32}

Say = Callable[[str], None]

Ask = Callable[[FeatureMatrix], Float64]
"""Answers float64 (n,) to n rows, or raises AnswerError."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is, and how patient one is with it.

    Parameters
    ----------
    url : grpc://HOST:PORT, grpcs://, http:// or https://; the latter two may have a path
    model : its name there; {event_type} and {detector} are filled in
    features, sequence : names of its inputs; an empty `sequence` sends none
    output : name of its output, of shape (n,) or (n, 1); NAME[K] takes column K of (n, C)
    datatype : FP64 or FP32, in which features are sent
    timeout_s : longest wait for one answer, retries among it
    retries : of a request whose connection was closed or refused, or that was told to come later
    batch_rows : most rows of a request
    concurrency : most requests on their way
    breaker_faults, breaker_s : after so many faults in a row a model is not asked for so long
    """

    url: str
    model: str = "{event_type}.{detector}"
    features: str = "features"
    sequence: str = "sequence"
    output: str = "raw"
    datatype: str = "FP64"
    timeout_s: float = 1.0
    retries: int = 2
    batch_rows: int = 1_000
    concurrency: int = 4
    breaker_faults: int = 5
    breaker_s: float = 5.0

    @property
    def column(self) -> tuple[str, int | None]:
        """Name of the output, and which column of it; None where it has but one."""
        name, bracket, place = self.output.partition("[")
        return (name, int(place.rstrip("]"))) if bracket else (name, None)


class _Transport(Protocol):
    """Sends a request and reads the reply; AnswerError where there is none."""

    def ask(self, model: str, tensors: Mapping[str, Any], until: float) -> Reply: ...

    def close(self) -> None: ...


class _Again(AnswerError):
    """No answer, though the next try may have one at once."""


class _Rest:
    """REST with binary tensors; connections are kept."""

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float]) -> None:
        self._output, self._clock = endpoint.column[0], clock
        self._url = endpoint.url.rstrip("/")
        limits = httpx.Limits(
            max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency
        )
        self._http = httpx.Client(limits=limits, trust_env=False)

    def ask(self, model: str, tensors: Mapping[str, Any], until: float) -> Reply:
        """One try."""
        body, json_bytes = rest_request(model, tensors, self._output)
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(json_bytes),
            "Accept-Encoding": "identity",  # numbers; and nothing grows when it is unpacked
        }
        left_s = max(until - self._clock(), 0.001)
        where = f"{self._url}/v2/models/{model}/infer"
        try:
            with self._http.stream(
                "POST", where, content=body, headers=headers, timeout=left_s
            ) as reply:
                data = self._read(reply, until)
        except httpx.TimeoutException:
            raise AnswerError("time_out", "no answer in time") from None
        except (httpx.TransportError, httpx.StreamError) as error:
            # Asking twice does no harm, and a server closes a kept connection when it likes to.
            raise _Again("connection", f"no connection ({type(error).__name__})") from None
        except httpx.RequestError as error:  # packed all the same, and wrongly
            raise AnswerError("rubbish", f"no reply to read ({type(error).__name__})") from None
        if reply.status_code in (429, 502, 503, 504):
            raise _Again("status", f"status {reply.status_code}")
        if reply.status_code != 200:
            raise AnswerError("status", f"status {reply.status_code}: {_short(data)}")
        length = reply.headers.get("Inference-Header-Content-Length")
        return rest_reply(data, int(length) if (length or "").isdecimal() else None, self._output)

    def _read(self, reply: httpx.Response, until: float) -> bytes:
        """The body, as long as there is time and it is not endless."""
        parts, size = [], 0
        for part in reply.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > REPLY_BYTES_MAX:
                raise AnswerError("rubbish", f"the reply has more than {REPLY_BYTES_MAX:,} bytes")
            if self._clock() > until:
                raise AnswerError("time_out", "no whole answer in time")
        return b"".join(parts)

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()


class _Grpc:
    """gRPC with raw contents; one channel."""

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float]) -> None:
        try:
            import grpc
        except ModuleNotFoundError:
            raise ConfigError(
                f"{endpoint.url} needs grpcio; install it with `pip install waxwing[remote]`, or"
                " name an address of http://"
            ) from None
        self._grpc: Any = grpc
        self._output, self._clock = endpoint.column[0], clock
        scheme, _, target = endpoint.url.partition("://")
        options = [
            ("grpc.max_receive_message_length", REPLY_BYTES_MAX),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS // 5),
            ("grpc.min_reconnect_backoff_ms", RECONNECT_MS // 5),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
            ("grpc.enable_http_proxy", 0),
        ]
        if scheme == "grpcs":
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._call = self._channel.unary_unary(METHOD)

    def ask(self, model: str, tensors: Mapping[str, Any], until: float) -> Reply:
        """One try."""
        body = grpc_request(model, tensors, self._output)
        left_s = max(until - self._clock(), 0.001)
        try:
            data = self._call(body, timeout=left_s)
        except self._grpc.RpcError as error:
            code = error.code()
            codes = self._grpc.StatusCode
            if code is codes.DEADLINE_EXCEEDED:
                raise AnswerError("time_out", "no answer in time") from None
            if code in (codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED, codes.CANCELLED):
                raise _Again("connection", f"no connection ({code.name})") from None
            raise AnswerError("status", f"{code.name}: {_short(error.details())}") from None
        return grpc_reply(data, self._output)

    def close(self) -> None:
        """Let go of the channel."""
        self._channel.close()


def _short(text: bytes | str | None) -> str:
    """The beginning of what a server said, on one line."""
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text or ""
    return " ".join(said.split())[:120]


@dataclass(slots=True)
class Tally:
    """What has been asked of one server, in counts."""

    requests: int = 0
    retries: int = 0
    rows: int = 0
    unanswered: dict[str, int] = field(default_factory=dict)
    """Kind of fault -> questions that it left without an answer."""


class Client:
    """Asks one server; any thread may ask.

    Parameters
    ----------
    endpoint : where, and how
    clock : seconds that only grow
    say : told when a model is left alone, and when it answers again
    """

    def __init__(
        self, endpoint: Endpoint, clock: Callable[[], float], say: Say = lambda _: None
    ) -> None:
        self.endpoint, self._clock, self._say = endpoint, clock, say
        kind = _Rest if endpoint.url.startswith("http") else _Grpc
        self._transport: _Transport = kind(endpoint, clock)
        self._pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="waxwing-remote")
        self._lock = threading.Lock()
        self._breakers: dict[str, Breaker] = {}
        self.tally = Tally()

    def ask(self, event_type: str, detector: str, bundle: str, features: FeatureMatrix) -> Float64:
        """float64 (n,), the answers to n rows.

        Parameters
        ----------
        detector : of `remote` every row must have a number; of another NaN is one that cannot tell
        bundle : id of the bundle that must answer; empty takes any

        Raises
        ------
        AnswerError : there is none that can be used; of no row then
        """
        if not len(features):
            return np.zeros(0)
        model = self.endpoint.model.format(event_type=event_type, detector=detector)
        breaker = self._breaker(model)
        if not breaker.may_ask():
            self._count("open")
            raise AnswerError("open", f"{model} at {self.endpoint.url}: left alone after faults")
        try:
            # What a detector of ours cannot tell is NaN; a model of somebody else has no such word.
            answer = self._asked(model, bundle, features, detector == Model.name)
        except AnswerError as error:
            self._count(error.kind)
            if error.kind == "busy":
                breaker.unasked()
            else:
                breaker.fault()
            raise AnswerError(error.kind, f"{model} at {self.endpoint.url}: {error}") from None
        except Exception as error:  # what a reply nobody has thought of leads to
            self._count("rubbish")
            breaker.fault()
            said = f"{model} at {self.endpoint.url}: {type(error).__name__}: {error}"
            raise AnswerError("rubbish", said) from error
        except BaseException:
            breaker.fault()
            raise
        breaker.success()
        with self._lock:
            self.tally.rows += len(features)
        return answer

    def counts(self) -> Tally:
        """What was asked until now, a copy."""
        with self._lock:
            return replace(self.tally, unanswered=dict(self.tally.unanswered))

    def close(self) -> None:
        """Let go of threads and connections; what is on its way ends by its time-out."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._transport.close()

    def _breaker(self, model: str) -> Breaker:
        def told(state: str) -> None:
            if state == "open":
                self._say(
                    f"{model} at {self.endpoint.url} is left alone for {end.breaker_s:g} s after"
                    f" {end.breaker_faults} faults in a row"
                )
            else:
                self._say(f"{model} at {self.endpoint.url} answers again")

        end = self.endpoint
        with self._lock:
            if model not in self._breakers:
                self._breakers[model] = Breaker(
                    end.breaker_faults, end.breaker_s, self._clock, told
                )
            return self._breakers[model]

    def _count(self, kind: str) -> None:
        with self._lock:
            self.tally.unanswered[kind] = self.tally.unanswered.get(kind, 0) + 1

    def _asked(self, model: str, bundle: str, features: FeatureMatrix, every: bool) -> Float64:
        """The answers, batch by batch side by side; `every`: all rows must have a number."""
        until = self._clock() + self.endpoint.timeout_s
        tensors = self._tensors(features)
        wide = sum(array.nbytes for array in tensors.values()) // len(features)
        step = max(min(self.endpoint.batch_rows, REQUEST_BYTES_MAX // max(wide, 1)), 1)
        futures: list[Future[Float64]] = []
        found: list[Float64] = []
        for at in range(0, len(features), step):
            part = {name: array[at : at + step] for name, array in tensors.items()}
            rows = min(step, len(features) - at)
            futures.append(self._pool.submit(self._batch, model, bundle, part, rows, every, until))
        try:
            for future in futures:
                left_s = max(until - self._clock(), 0.001)
                found.append(future.result(left_s + 0.05))
        except FutureTimeout:
            if futures[len(found)].cancel():
                raise AnswerError("busy", _NO_TURN) from None
            raise AnswerError("time_out", "no answer in time") from None
        finally:
            for future in futures:
                future.cancel()
        return np.concatenate(found)

    def _tensors(self, features: FeatureMatrix) -> dict[str, npt.NDArray[np.generic]]:
        """The inputs by name."""
        end = self.endpoint
        values = np.ascontiguousarray(features.values, _DTYPES[end.datatype])
        tensors: dict[str, npt.NDArray[np.generic]] = {end.features: values}
        if end.sequence and features.sequence is not None:
            tensors[end.sequence] = np.ascontiguousarray(features.sequence, np.float32)
        return tensors

    def _batch(
        self,
        model: str,
        bundle: str,
        tensors: Mapping[str, Any],
        rows: int,
        every: bool,
        until: float,
    ) -> Float64:
        """One request, with its retries."""
        if self._clock() >= until:  # it has waited for a thread, and nobody was asked
            raise AnswerError("busy", _NO_TURN)
        for tried in range(self.endpoint.retries + 1):
            with self._lock:
                self.tally.requests += 1
                self.tally.retries += tried > 0
            try:
                reply = self._transport.ask(model, tensors, until)
            except _Again as error:
                if tried == self.endpoint.retries or self._clock() >= until:
                    raise AnswerError(error.kind, str(error)) from None
                continue
            return self._checked(reply, bundle, rows, every)
        raise AnswerError("connection", "no tries left")

    def _checked(self, reply: Reply, bundle: str, rows: int, every: bool) -> Float64:
        """float64 (rows,), an answer that can be used."""
        if bundle and reply.bundle != bundle:
            said = f"bundle {reply.bundle}" if reply.bundle else "a model that names no bundle"
            raise AnswerError("bundle", f"{said} answers, expected {bundle}")
        values, (_, column) = reply.values, self.endpoint.column
        if column is not None and values.ndim == 2 and column < values.shape[1]:
            values = values[:, column]
        elif column is None and values.shape == (rows, 1):
            values = values[:, 0]
        if values.shape != (rows,):
            raise AnswerError(
                "shape", f"output of shape {list(reply.values.shape)} for {rows} rows"
            )
        if np.isinf(values).any():
            raise AnswerError("rubbish", "infinite numbers")
        lost = int(np.isnan(values).sum())
        if every and lost:
            raise AnswerError("rubbish", f"NaN for {lost:,} of {rows:,} rows")
        return np.ascontiguousarray(values)


class Elsewhere:
    """A detector of a bundle whose numbers come from elsewhere; all else is the detector's own."""

    remote: ClassVar[bool] = True

    def __init__(self, own: Detector, ask: Ask) -> None:
        self._own, self._ask = own, ask
        self.name = own.name
        self.expensive = own.expensive
        self.fallback = getattr(own, "fallback", False)
        self.sequential = getattr(own, "sequential", False)
        self.asks = getattr(own, "asks", "unlike")
        self.learns_labels = getattr(own, "learns_labels", False)

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), higher is stranger.

        Raises
        ------
        AnswerError : there is no answer
        """
        return self._ask(features)

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """What the detector itself saves."""
        return self._own.save()

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """ConfigError: it is put in the place of a fitted one."""
        raise ConfigError("a detector that is asked elsewhere is not fitted; fit it, then place it")

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """ConfigError: it is put in the place of a loaded one."""
        raise ConfigError(
            "a detector that is asked elsewhere is not loaded; load it, then place it"
        )


def elsewhere(own: Detector, ask: Ask) -> Detector:
    """A detector whose numbers come from `ask`.

    Parameters
    ----------
    own : of the bundle; detector `remote` keeps its own check of the columns
    """
    if isinstance(own, Model):
        return Model(own.names, ask)
    return Elsewhere(own, ask)  # type: ignore[return-value]


class Model:
    """A model of somebody else, as one more detector.

    What it answers is taken as it is: higher must mean stranger. Nothing is learned here but which
    columns it is sent.

    Parameters
    ----------
    names : (K,), columns in the order in which they are sent
    ask : asks it; None until `elsewhere` has put it in place
    """

    name: ClassVar[str] = "remote"
    expensive: ClassVar[bool] = False
    remote: ClassVar[bool] = True

    def __init__(self, names: tuple[str, ...], ask: Ask | None = None) -> None:
        self.names, self._ask = names, ask

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """Take the names of the columns."""
        read_options(cls.name, options, {})
        return cls(train.features.names)

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), what the model answers.

        Raises
        ------
        AnswerError : no answer, or nobody said where it is
        ShapeError : columns that it was not calibrated on
        """
        if features.names != self.names:
            raise ShapeError(
                f"detector 'remote': expected {len(self.names)} features, got"
                f" {len(features.names)} others; train again with `waxwing train`"
            )
        if self._ask is None:
            raise AnswerError("connection", "nobody said where it is; set remote_url")
        return self._ask(features)

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """No array, the names."""
        return {}, {"names": list(self.names)}

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """The model that `save` wrote, which nobody has put in place yet."""
        names = header["names"]
        if not isinstance(names, list):
            raise TypeError("names is no list")
        return cls(tuple(str(name) for name in names))
