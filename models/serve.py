"""A bundle behind KServe: the models of `models.served` on its server, over REST and gRPC.

The Open Inference Protocol v2 as kserve speaks it, with three differences: it listens where it is
told to, a request of the protocol that cannot be answered is always 400 with a sentence (what is no
such request, JSON that is none or lacks `inputs`, is kserve's own 422 with a list of faults), and a
binary tensor stays binary (kserve makes a list of it: 15 to 45 ms for 1,000 rows).
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import uuid
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from features.errors import ShapeError
from models.served import Served, dtype_of

# kserve reads the command line on import, and ends the process where it does not understand it.
_argv, sys.argv = sys.argv, sys.argv[:1]
try:
    from grpc import aio
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
    from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING, MAX_GRPC_MESSAGE_LENGTH
    from kserve.errors import InvalidInput, ModelNotFound
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
    from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
    from kserve.protocol.grpc.server import GRPCServer
    from kserve.protocol.grpc.servicer import InferenceServicer
    from kserve.protocol.infer_type import InferInput, RequestedOutput
    from kserve.protocol.rest.multiprocess.server import RESTServerMultiProcess
    from kserve.protocol.rest.server import RESTServer
finally:
    sys.argv = _argv

__all__ = ["GRACE_S", "loaded", "serve"]

GRACE_S = 10
"""Longest wait for requests under way when it is told to stop. Chosen: an answer takes less."""

THREADS = 4
"""Answers computed at once, of different event types. Chosen: there are four."""

_THREADS = ThreadPoolExecutor(THREADS, thread_name_prefix="waxwing-served")
"""Of this process: kserve makes an event loop of its own, with as many as it likes."""

_HEADER_LENGTH = "inference-header-content-length"

Recipe = Callable[[], Mapping[str, Served]]
"""Makes the models; called in every process that serves."""


def serve(recipe: Recipe, host: str, http_port: int, grpc_port: int | None, workers: int) -> None:
    """Answer until SIGTERM or SIGINT.

    Parameters
    ----------
    recipe : what can be pickled, for workers
    host : address to listen at
    http_port, grpc_port : of REST and gRPC; None answers no gRPC
    workers : processes that answer REST; gRPC is answered by one
    """
    models = [_Asked(served, recipe) for served in loaded(recipe).values()]
    _Server(host, http_port, grpc_port, workers).start(models)


def _say_less() -> None:
    """Log faults of ours, not each request nor what the other side asked wrongly."""
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # kserve's own use
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.access", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.addFilter(lambda record: not _is_theirs(record))


def _is_theirs(record: logging.LogRecord) -> bool:
    """Whether a line of the log is about a request that was wrong."""
    found = record.exc_info[1] if record.exc_info else None
    return isinstance(found, InvalidInput | ModelNotFound)


@cache
def loaded(recipe: Recipe) -> Mapping[str, Served]:
    """The models of this process, made once."""
    return recipe()


def _again(recipe: Recipe, name: str) -> _Asked:
    """A model in a worker of its own."""
    return _Asked(loaded(recipe)[name], recipe)


class _Asked(Model):  # type: ignore[misc]
    """One model as kserve's server knows it."""

    def __init__(self, served: Served, recipe: Recipe) -> None:
        super().__init__(served.name)
        self._served, self._recipe = served, recipe
        self.ready = True

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker loads the bundle itself."""
        return _again, (self._recipe, self.name)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Of the model's metadata."""
        return _told(self._served.inputs)

    def get_output_types(self) -> list[dict[str, Any]]:
        """Of the model's metadata."""
        return _told(self._served.outputs)

    async def predict(
        self,
        payload: Any,
        headers: Any = None,
        response_headers: Any = None,
    ) -> Any:
        """The answer to one request; InvalidInput, which is 400, where it cannot be answered."""
        if not isinstance(payload, InferRequest):
            raise InvalidInput(
                f"model {self.name!r}: expected a request of protocol v2, got one of v1; post to"
                f" /v2/models/{self.name}/infer"
            )
        try:
            inputs = _arrays(self._served, payload)
        except ShapeError as error:
            raise InvalidInput(str(error)) from None
        wanted = _wanted(self._served, payload)
        outputs = await asyncio.get_running_loop().run_in_executor(
            _THREADS, self._served.answer, inputs
        )
        return InferResponse(
            payload.id or str(uuid.uuid4()),
            self.name,
            _made(self._served, payload, wanted, outputs),
            parameters=dict(self._served.parameters),
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=wanted,
        )


def _made(
    served: Served,
    request: Any,
    wanted: list[Any],
    outputs: Mapping[str, npt.NDArray[np.generic]],
) -> list[Any]:
    """The outputs as kserve sends them."""
    types = {tensor.name: tensor.datatype for tensor in served.outputs}
    found = []
    for one in wanted:
        array = np.ascontiguousarray(outputs[one.name])
        output = InferOutput(one.name, list(array.shape), types[one.name], array)
        if request.from_grpc:  # what came raw goes back raw; REST looks at what is asked for
            output.set_data_from_numpy(array, binary_data=request.use_binary_outputs)
        found.append(output)
    return found


def _told(tensors: Any) -> list[dict[str, Any]]:
    """Tensors as metadata names them."""
    return [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in tensors]


def _arrays(served: Served, request: Any) -> dict[str, npt.NDArray[np.generic]]:
    """The tensors of a request, each of the type and shape that the model takes.

    Raises
    ------
    ShapeError : they are not
    """
    given: dict[str, tuple[str, tuple[int, ...]]] = {}
    for one in request.inputs:
        if one.name in given:
            raise ShapeError(f"model {served.name!r}: input {one.name!r} comes twice")
        given[one.name] = one.datatype, tuple(int(n) for n in one.shape)
    served.check_meant(_plain(request.parameters))
    served.check(given)
    found = {}
    for one in request.inputs:
        try:
            found[one.name] = one.as_numpy()
        except (ValueError, TypeError) as error:
            raise ShapeError(
                f"model {served.name!r}: input {one.name!r} has not the numbers that its shape"
                f" {list(one.shape)} of {one.datatype} says: {error}"
            ) from None
    return found


def _plain(parameters: Any) -> dict[str, object]:
    """Parameters of a request by name: of gRPC they come as messages."""
    return {
        str(name): getattr(value, "string_param", value)
        for name, value in dict(parameters or {}).items()
    }


def _wanted(served: Served, request: Any) -> list[Any]:
    """The outputs that are asked for, all where none is named, each with how it shall come.

    Raises
    ------
    InvalidInput : there is no such output
    """
    names = [tensor.name for tensor in served.outputs]
    asked = list(request.request_outputs or [])
    unknown = [one.name for one in asked if one.name not in names]
    if unknown:
        raise InvalidInput(
            f"model {served.name!r}: there is no output {', '.join(map(repr, unknown))}; there are"
            f" {', '.join(names)}"
        )
    binary = bool(request.use_binary_outputs)
    if not asked:
        return [RequestedOutput(name, {"binary_data": binary}) for name in names]
    return [
        RequestedOutput(one.name, {"binary_data": _or(_plain(one.parameters), binary)})
        for one in asked
    ]


def _or(parameters: Mapping[str, object], binary: bool) -> bool:
    """Whether an output shall be binary: as it says, else as the request says."""
    return bool(parameters.get("binary_data", binary))


class _DataPlane(DataPlane):  # type: ignore[misc]
    """kserve's, but for binary requests."""

    def decode_inference_request(self, body: Any, headers: Any, model_name: str) -> Any:
        """A request of REST."""
        if not isinstance(body, bytes):
            return super().decode_inference_request(body, headers, model_name)
        try:
            return _from_bytes(body, headers, model_name)
        except (
            KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError
        ) as error:  # fmt: skip
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(
                f"model {model_name!r}: not a binary request of protocol v2"
                f" ({type(error).__name__}: {error}); expected JSON of the length that"
                " Inference-Header-Content-Length says, then the tensors"
            ) from None


def _from_bytes(body: bytes, headers: Mapping[str, str], model_name: str) -> Any:
    """A request whose tensors stand as bytes after its JSON."""
    length = int(headers[_HEADER_LENGTH])
    head = json.loads(body[:length])
    inputs, raw = [], []
    for one in head["inputs"]:
        name, datatype = str(one["name"]), str(one["datatype"])
        size = (one.get("parameters") or {}).get("binary_data_size")
        if size is None:
            made = np.array(one["data"], dtype_of(datatype)).tobytes()
        else:
            made = body[length : length + int(size)]
            if not 0 <= int(size) == len(made):
                raise InvalidInput(
                    f"model {model_name!r}: input {name!r} says {size} bytes, {len(made)} are left"
                )
            length += int(size)
        inputs.append(InferInput(name, [int(n) for n in one["shape"]], datatype))
        raw.append(made)
    if length != len(body):
        raise InvalidInput(
            f"model {model_name!r}: {len(body) - length} bytes come after the last input"
        )
    asked = [RequestedOutput(o["name"], o.get("parameters")) for o in head.get("outputs") or []]
    return InferRequest(
        model_name,
        inputs,
        head.get("id"),
        raw,
        parameters=head.get("parameters"),
        request_outputs=asked or None,
    )


class _Rest(RESTServer):  # type: ignore[misc]
    """kserve's, which listens everywhere, at one address."""

    def __init__(self, host: str, port: int, data_plane: Any, extension: Any, workers: int) -> None:
        super().__init__(
            FASTAPI_APP_IMPORT_STRING,
            data_plane,
            extension,
            port,
            workers=workers,
            grace_period=GRACE_S,
        )
        self.config.host = host

    def create_application(self) -> None:
        """In each process that answers, once kserve has set up its log."""
        _say_less()
        super().create_application()


class _Grpc(GRPCServer):  # type: ignore[misc]
    """kserve's, which listens everywhere, at one address."""

    def __init__(self, host: str, port: int, data_plane: Any, extension: Any) -> None:
        super().__init__(port, data_plane, extension, {}, GRACE_S)
        self._address = f"{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self, max_workers: int) -> None:
        """Answer until it is stopped."""
        self._server = aio.server(
            ThreadPoolExecutor(max_workers=max_workers),
            interceptors=(ExceptionToStatusInterceptor(),),
            options=[
                ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_LENGTH),
                ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_LENGTH),
                ("grpc.so_reuseport", 0),
            ],
        )
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceServicer(self._data_plane, self._model_repository_extension), self._server
        )
        self._server.add_insecure_port(self._address)
        await self._server.start()
        await self._server.wait_for_termination()


class _Server(ModelServer):  # type: ignore[misc]
    """kserve's server, at one address, with the data plane above."""

    def __init__(self, host: str, http_port: int, grpc_port: int | None, workers: int) -> None:
        super().__init__(
            http_port=http_port,
            grpc_port=grpc_port or 0,
            workers=workers,
            max_threads=THREADS,
            max_asyncio_workers=THREADS,
            enable_grpc=grpc_port is not None,
            enable_latency_logging=False,
            grace_period=GRACE_S,
        )
        _say_less()
        self._host = host
        self.dataplane = _DataPlane(model_registry=self.registered_models)

    def start(self, models: Any) -> None:
        """Answer until it is told to stop."""
        self._register_and_check_atleast_one_model_is_ready(models)
        extension = self.model_repository_extension
        rest = _Rest(self._host, self.http_port, self.dataplane, extension, self.workers)
        if self.workers > 1:
            several = RESTServerMultiProcess(
                FASTAPI_APP_IMPORT_STRING,
                self.dataplane,
                extension,
                self.http_port,
                workers=self.workers,
                grace_period=GRACE_S,
            )
            several._rest_server = rest
            self._rest_multiprocess_server = several
        else:
            several = self._rest_server = rest
        self.servers.append(several.start())
        if self.enable_grpc:
            self._grpc_server = _Grpc(self._host, self.grpc_port, self.dataplane, extension)
            self.servers.append(self._grpc_server.start(self.max_threads))
        self.setup_event_loop()
        self.register_signal_handler()
        asyncio.run(self._serve())
