"""A server of the Open Inference Protocol v2 in this process, which does wrong what it is told to.

It answers over HTTP and gRPC with kserve's own messages, so that what we write is read by others.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

__all__ = ["Script"]

DTYPES = {"FP64": np.float64, "FP32": np.float32}

Arrays = dict[str, Any]


class Script:
    """The server, while the block lasts.

    Parameters
    ----------
    answer : (name of the model, its inputs) -> float64 (n,)
    """

    def __init__(self, answer: Callable[[str, Arrays], Any], bundle: str = "") -> None:
        self.answer, self.bundle, self.output = answer, bundle, "raw"
        self.faults: list[str] = []
        """What to do wrong, a request each: 500, 503, 400, rubbish, shape, name, bundle, infinite,
        nan (for one row), slow, close (without an answer), left (closed in silence after an
        answer), plain (numbers not as bytes), column (a column beside it), gzip (says so, and is
        not), wraps and nowhere (shapes that no array has)."""
        self.encodings: set[str] = set()
        """Those of a reply that were asked for over HTTP."""
        self.asked: list[tuple[str, dict[str, tuple[str, tuple[int, ...]]]]] = []
        """Each request: its model, and the datatype and shape of its inputs."""
        self.released = threading.Event()
        """Ends whatever is slow."""
        self.most_at_once = 0
        self._now, self._lock = 0, threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self._grpc = grpc.server(ThreadPoolExecutor(8))
        stubs.add_GRPCInferenceServiceServicer_to_server(_Servicer(self), self._grpc)
        self._grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")

    @property
    def urls(self) -> dict[str, str]:
        """Protocol -> where."""
        port = self._http.server_address[1]
        return {"http": f"http://127.0.0.1:{port}", "grpc": f"grpc://127.0.0.1:{self._grpc_port}"}

    def made(self, model: str, inputs: Arrays, types: dict[str, str]) -> tuple[str, Any, str, str]:
        """What to do wrong, the numbers, the name of the output, and the bundle."""
        with self._lock:
            self.asked.append((model, {n: (types[n], a.shape) for n, a in inputs.items()}))
            fault = self.faults.pop(0) if self.faults else ""
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        if fault == "slow":
            self.released.wait(20.0)
        values = np.asarray(self.answer(model, inputs), np.float64)
        with self._lock:
            self._now -= 1
        if fault == "shape":
            values = values[:-1]
        if fault == "infinite":
            values = np.full_like(values, np.inf)
        if fault == "nan":
            values = np.where(np.arange(len(values)) == len(values) // 2, np.nan, 0.0)
        if fault == "column":
            values = np.column_stack((np.zeros_like(values), values))
        name = "other" if fault == "name" else self.output
        return fault, values, name, "another" if fault == "bundle" else self.bundle

    def __enter__(self) -> Script:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self._grpc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(None).wait()


class _Http(ThreadingHTTPServer):
    """One that says nothing of a client that has gone."""

    def handle_error(self, *_: Any) -> None:
        pass


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    """Answers over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            at = int(self.headers["Inference-Header-Content-Length"])
            inputs, types = {}, {}
            head = json.loads(body[:at])
            for one in head["inputs"]:
                raw = body[at : at + one["parameters"]["binary_data_size"]]
                at += len(raw)
                array = np.frombuffer(raw, DTYPES[one["datatype"]]).reshape(one["shape"])
                inputs[one["name"]], types[one["name"]] = array, one["datatype"]
            model = self.path.split("/")[3]
            fault, values, name, bundle = script.made(model, inputs, types)
            if fault == "close":
                self.close_connection = True
                return
            if fault in ("500", "503", "400"):
                self.send(int(fault), b'{"error": "told to"}', None)
                return
            if fault == "rubbish":
                self.send(200, b"\x00\xffnothing", 3)
                return
            shape, raw = _shaped(fault, values)
            output = {"name": name, "datatype": "FP64", "shape": shape}
            if fault == "plain":
                flat = [None if np.isnan(v) else v for v in values.ravel().tolist()]
                output["data"], raw = flat, b""
            else:
                output["parameters"] = {"binary_data_size": len(raw)}
            text = json.dumps({"outputs": [output], "parameters": {"bundle_id": bundle}}).encode()
            self.send(200, text + raw, len(text) if raw else None, fault == "gzip")
            self.close_connection = fault == "left"

        def send(self, status: int, body: bytes, length: int | None, packed: bool = False) -> None:
            script.encodings.add(str(self.headers["Accept-Encoding"]))
            self.send_response(status)
            if packed:
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            if length is not None:
                self.send_header("Inference-Header-Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _shaped(fault: str, values: Any) -> tuple[list[int], bytes]:
    """The shape that the reply says, and its numbers."""
    if fault == "wraps":  # in 64 bits the product is the number of rows
        return [1 << 32, 1 << 32, len(values)], b""
    if fault == "nowhere":
        return [0, 1 << 40, 1 << 40], b""
    return list(values.shape), values.tobytes()


class _Servicer(stubs.GRPCInferenceServiceServicer):
    """Answers over gRPC."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def ModelInfer(self, request: Any, context: Any) -> Any:
        """One request."""
        inputs, types = {}, {}
        for one, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            array = np.frombuffer(raw, DTYPES[one.datatype]).reshape(tuple(one.shape))
            inputs[one.name], types[one.name] = array, one.datatype
        fault, values, name, bundle = self._script.made(request.model_name, inputs, types)
        codes = {
            "500": grpc.StatusCode.INTERNAL,
            "400": grpc.StatusCode.INVALID_ARGUMENT,
            "503": grpc.StatusCode.UNAVAILABLE,
            "close": grpc.StatusCode.UNAVAILABLE,
        }
        if fault in codes:
            context.abort(codes[fault], "told to")
        reply = pb.ModelInferResponse(model_name=request.model_name)
        reply.parameters["bundle_id"].string_param = bundle
        shape, whole = _shaped(fault, values)
        output = reply.outputs.add(name=name, datatype="FP64", shape=shape)
        if fault == "plain":
            output.contents.fp64_contents.extend(values.ravel())
        else:
            reply.raw_output_contents.append(whole[:3] if fault == "rubbish" else whole)
        return reply
