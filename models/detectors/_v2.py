"""Requests and replies of the Open Inference Protocol v2 as bytes: gRPC messages, REST with tensors
behind its JSON.

The messages are made here from their field numbers, in a pool of their own: the flow needs neither
kserve nor code that a compiler of protocols wrote, and nothing clashes where kserve is there too.
Source: the protocol's `open_inference_grpc.proto` and its binary tensor extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from features.batch import Float64
from features.errors import AnswerError

__all__ = ["METHOD", "Reply", "grpc_reply", "grpc_request", "rest_reply", "rest_request"]

METHOD = "/inference.GRPCInferenceService/ModelInfer"
"""The call of gRPC."""

_DTYPES: dict[str, type[np.generic]] = {"FP64": np.float64, "FP32": np.float32}

_NAMES = {np.dtype(np.float64): "FP64", np.dtype(np.float32): "FP32"}

_FIELDS: dict[str, list[tuple[str, int, str, bool]]] = {
    "Parameter": [("string_param", 3, "string", False)],
    "Entry": [("key", 1, "string", False), ("value", 2, "Parameter", False)],
    "Contents": [("fp32_contents", 6, "float", True), ("fp64_contents", 7, "double", True)],
    "Tensor": [
        ("name", 1, "string", False),
        ("datatype", 2, "string", False),
        ("shape", 3, "int64", True),
        ("contents", 5, "Contents", False),
    ],
    "Wanted": [("name", 1, "string", False)],
    "Request": [
        ("model_name", 1, "string", False),
        ("inputs", 5, "Tensor", True),
        ("outputs", 6, "Wanted", True),
        ("raw_input_contents", 7, "bytes", True),
    ],
    "Answer": [
        ("parameters", 4, "Entry", True),  # a map is a list of entries on the wire
        ("outputs", 5, "Tensor", True),
        ("raw_output_contents", 6, "bytes", True),
    ],
}
"""Message -> (field, number, kind, whether it repeats), of those that are used here."""


def _messages() -> dict[str, Any]:
    """Classes of the messages by name."""
    file = descriptor_pb2.FileDescriptorProto(name="waxwing_v2.proto", package="w", syntax="proto3")
    kinds = {"string": 9, "bytes": 12, "int64": 3, "float": 2, "double": 1}
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeats in fields:
            one = message.field.add(name=field, number=number, label=3 if repeats else 1)
            if kind in kinds:
                one.type = kinds[kind]
            else:
                one.type, one.type_name = 11, f".w.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"w.{name}"))
        for name in _FIELDS
    }


_MESSAGES = _messages()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered.

    Parameters
    ----------
    bundle : id of the bundle that it says it has; empty where it says none
    values : float64, the output that was asked for, in the shape it came in
    """

    bundle: str
    values: Float64


def grpc_request(model: str, tensors: Mapping[str, npt.NDArray[np.generic]], output: str) -> bytes:
    """A request with raw contents."""
    request = _MESSAGES["Request"](model_name=model)
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=_NAMES[array.dtype], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    request.outputs.add(name=output)
    return bytes(request.SerializeToString())


def grpc_reply(data: bytes, output: str) -> Reply:
    """What a reply says.

    Raises
    ------
    AnswerError : it is none, or has not that output
    """
    try:
        found = _MESSAGES["Answer"].FromString(data)
    except Exception as error:  # DecodeError of whichever implementation runs
        raise AnswerError("rubbish", f"the reply is no message ({error})") from None
    told = {one.key: one.value.string_param for one in found.parameters}
    names = [one.name for one in found.outputs]
    at = _place(names, output)
    one = found.outputs[at]
    if found.raw_output_contents:
        if at >= len(found.raw_output_contents):
            raise AnswerError("rubbish", f"the reply lacks the contents of {output!r}")
        return Reply(
            told.get("bundle_id", ""),
            _array(one.datatype, list(one.shape), found.raw_output_contents[at], output),
        )
    plain = list(one.contents.fp64_contents) or list(one.contents.fp32_contents)
    values = np.array(plain, np.float64).tobytes()
    return Reply(told.get("bundle_id", ""), _array("FP64", list(one.shape), values, output))


def rest_request(
    model: str, tensors: Mapping[str, npt.NDArray[np.generic]], output: str
) -> tuple[bytes, int]:
    """A body, and how much of it is JSON."""
    head = {
        "id": model,
        "inputs": [
            {
                "name": name,
                "datatype": _NAMES[array.dtype],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in tensors.items()
        ],
        "outputs": [{"name": output, "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([text, *(array.tobytes() for array in tensors.values())]), len(text)


def rest_reply(body: bytes, json_bytes: int | None, output: str) -> Reply:
    """What a reply says.

    Parameters
    ----------
    json_bytes : how much of the body is JSON; None where all is

    Raises
    ------
    AnswerError : it is none, or has not that output
    """
    at = len(body) if json_bytes is None else json_bytes
    try:
        head = json.loads(body[:at])
        outputs = head["outputs"]
        found = _place([one["name"] for one in outputs], output)
        values = np.zeros(0)
        for i, one in enumerate(outputs[: found + 1]):
            size = (one.get("parameters") or {}).get("binary_data_size")
            datatype = str(one["datatype"])
            if size is None:
                raw = np.array(one["data"], np.float64).tobytes()
                datatype = "FP64"
            else:
                raw, at = body[at : at + int(size)], at + int(size)
            if i == found:
                values = _array(datatype, one["shape"], raw, output)
        return Reply(str((head.get("parameters") or {}).get("bundle_id", "")), values)
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise AnswerError(
            "rubbish", f"the reply is not one of the protocol ({type(error).__name__}: {error})"
        ) from None


def _place(names: list[str], output: str) -> int:
    """Which output is the one that was asked for."""
    if output not in names:
        raise AnswerError(
            "rubbish", f"the reply has no output {output!r}, it has {', '.join(names) or 'none'}"
        )
    return names.index(output)


def _array(datatype: str, shape: list[Any], raw: bytes, output: str) -> Float64:
    """float64, the numbers of one output."""
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise AnswerError("rubbish", f"output {output!r} is {datatype}, expected FP64 or FP32")
    sizes = [int(n) for n in shape]
    wanted = math.prod(sizes) * np.dtype(dtype).itemsize  # not of numpy: it must not wrap
    if min(sizes, default=0) < 0 or wanted != len(raw):
        raise AnswerError(
            "rubbish", f"output {output!r} of shape {sizes} has {len(raw)} bytes, not {wanted}"
        )
    try:
        return np.frombuffer(raw, dtype).reshape(sizes).astype(np.float64)
    except ValueError:  # nothing, in more places than there are
        raise AnswerError("rubbish", f"output {output!r} has the shape {sizes}") from None
