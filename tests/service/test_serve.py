"""`waxwing serve`: the real kserve server gives the operator's numbers, over REST and gRPC."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from features.batch import FeatureMatrix
from features.catalog import catalog
from models.bundle import Bundle
from models.scoring import Scorer
from tests.flow.harness import call
from tests.rows import training_set
from tests.service.serving import Serving, small_bundle

NAMES = ("raw", "scores", "surprise", "ensemble", "flagged")

ANSWER_S = 300.0
"""Longest wait for an answer; a server with too little of a busy machine takes its time."""

get = functools.partial(httpx.get, timeout=ANSWER_S)
post_to = functools.partial(httpx.post, timeout=ANSWER_S)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A bundle and its folder."""
    folder = tmp_path_factory.mktemp("serve") / "bundle"
    return small_bundle(folder), folder


@pytest.fixture(scope="module")
def server(bundle: tuple[Bundle, Path]) -> Iterator[Serving]:
    """It is served."""
    with Serving(bundle[1]) as serving:
        yield serving


@pytest.fixture(scope="module")
def features() -> FeatureMatrix:
    """Rows to ask about."""
    return training_set(np.random.default_rng(4), "payment", rows=200, odd=30).features


@pytest.fixture(scope="module")
def expected(bundle: tuple[Bundle, Path], features: FeatureMatrix) -> dict[str, bytes]:
    """What the operator makes of them."""
    scorer = Scorer(bundle[0], bundle[0].detectors)
    raw = np.empty((len(features), len(bundle[0].detectors)))
    scores = scorer.score(features, {}, raw)
    decisions = scorer.decide(scores, {})
    arrays = (raw, scores.scores, scores.surprise, decisions.score, decisions.flagged)
    return {name: array.tobytes() for name, array in zip(NAMES, arrays, strict=True)}


def post(server: Serving, features: FeatureMatrix, **parameters: Any) -> httpx.Response:
    """A binary request of REST."""
    assert features.sequence is not None
    columns = {"features": ("FP64", features.values), "sequence": ("FP32", features.sequence)}
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(array.shape),
         "parameters": {"binary_data_size": array.nbytes}}
        for name, (datatype, array) in columns.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True} | parameters})
    return post_to(
        f"{server.url}/v2/models/payment/infer",
        content=head.encode() + b"".join(array.tobytes() for _, array in columns.values()),
        headers={
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        },
    )


def test_rest_gives_the_scores_of_the_operator_bit_by_bit(
    server: Serving,
    bundle: tuple[Bundle, Path],
    features: FeatureMatrix,
    expected: dict[str, bytes],
) -> None:
    reply = post(server, features)
    assert reply.status_code == 200
    at = int(reply.headers["Inference-Header-Content-Length"])
    head = json.loads(reply.content[:at])
    found = {}
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = reply.content[at : at + size]
        at += size
    assert found == expected
    assert head["parameters"]["bundle_id"] == bundle[0].id


def test_grpc_gives_the_same(
    server: Serving,
    bundle: tuple[Bundle, Path],
    features: FeatureMatrix,
    expected: dict[str, bytes],
) -> None:
    assert features.sequence is not None
    request = pb.ModelInferRequest(model_name="payment")
    for name, datatype, array in (
        ("features", "FP64", features.values),
        ("sequence", "FP32", features.sequence),
    ):
        request.inputs.add(name=name, datatype=datatype).shape.extend(array.shape)
        request.raw_input_contents.append(array.tobytes())
    with grpc.insecure_channel(server.grpc) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        reply = stub.ModelInfer(request, timeout=ANSWER_S)
        assert dict(zip(NAMES, reply.raw_output_contents, strict=True)) == expected
        assert reply.parameters["bundle_id"].string_param == bundle[0].id
        about = stub.ModelMetadata(pb.ModelMetadataRequest(name="payment.transformer"))
        assert [tensor.name for tensor in about.inputs] == ["features", "sequence"]
        request.inputs[0].shape[1] -= 1
        with pytest.raises(grpc.RpcError) as told:
            stub.ModelInfer(request, timeout=ANSWER_S)
        assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected shape [rows, " in told.value.details()
        request.inputs[0].shape[1] += 1
        request.raw_input_contents.append(b"more")
        with pytest.raises(grpc.RpcError) as told:
            stub.ModelInfer(request, timeout=ANSWER_S)
        assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        del request.inputs[:]
        with pytest.raises(grpc.RpcError) as told:
            stub.ModelInfer(request, timeout=ANSWER_S)
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_metadata_are_those_of_the_bundle(server: Serving, bundle: tuple[Bundle, Path]) -> None:
    names = get(f"{server.url}/v2/models").json()["models"]
    assert names == ["payment", *(f"payment.{name}" for name in bundle[0].detectors)]
    for name in names:
        assert get(f"{server.url}/v2/models/{name}/ready").json()["ready"] is True
    about = get(f"{server.url}/v2/models/payment").json()
    shapes = {tensor["name"]: tensor["shape"] for tensor in about["inputs"]}
    assert shapes["features"] == [-1, len(catalog().names("payment"))]


def test_what_cannot_be_answered_is_400_with_a_sentence(
    server: Serving, features: FeatureMatrix
) -> None:
    narrow = FeatureMatrix(
        "payment", features.names[1:], features.values[:, 1:].copy(), features.sequence, "x"
    )
    where = f"{server.url}/v2/models/payment/infer"
    one = {"name": "features", "shape": [1, 2], "datatype": "FP64", "data": [1.0]}
    binary = {"Content-Type": "application/octet-stream"}
    width = len(features.names)
    right = {"name": "features", "shape": [1, width], "datatype": "FP64", "data": [1.0]}
    endless = json.dumps({"inputs": [one | {"parameters": {"binary_data_size": float("inf")}}]})
    length = {"Inference-Header-Content-Length": str(len(endless))}
    for reply, said in (
        (post(server, narrow), "expected shape [rows, "),
        (post(server, features, catalog_version="x"), "catalog_version x is asked for"),
        (post(server, features, bundle_id="x"), "bundle_id x is asked for"),
        (post_to(where, json={"inputs": [one]}), "input 'sequence' is missing"),
        (post_to(where, json={"inputs": [one | {"datatype": "BYTES"}]}), "datatype FP64"),
        (post_to(where, json={"inputs": [one, one]}), "comes twice"),
        (post_to(where, content=b"rubbish", headers=binary), "not a binary request"),
        (post_to(where, content=endless.encode(), headers=binary | length), "OverflowError"),
        (post_to(where.replace("payment", "payment.zscore"), json={"inputs": [right]}), "shape"),
        (post_to(f"{server.url}/v1/models/payment:predict", json={"instances": []}), "v2"),
    ):
        assert reply.status_code == 400, reply.text
        assert said in reply.json()["error"]
    texts = json.dumps({"inputs": [one | {"shape": ["a", "b"]}]})
    for body in ("rubbish", "[]", "{}", texts):
        reply = post_to(where, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 422, (body, reply.text)
    assert post_to(where.replace("payment", "other"), json={"inputs": [one]}).status_code == 404


def test_faults_of_the_command_line_are_told_at_once(
    server: Serving, bundle: tuple[Bundle, Path], tmp_path: Path
) -> None:
    ports = ["--http-port", str(server.http_port), "--grpc-port", "99999"]
    done = call("serve", "--bundle", str(bundle[1]), *ports, "--workers", "0", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert "--workers 0: expected 1 to" in lines[0]
    assert f"{server.http_port}: cannot listen at 127.0.0.1: Address already in use" in lines[1]
    assert "--grpc-port 99999" in lines[2]


def test_it_listens_at_the_loopback_alone_and_stops_when_asked(
    server: Serving, bundle: tuple[Bundle, Path]
) -> None:
    """Last of the file: the server is stopped here."""
    sockets = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    sockets += Path("/proc/net/tcp6").read_text(encoding="ascii").splitlines()[1:]
    heard = [line.split()[1].split(":") for line in sockets if line.split()[3] == "0A"]
    ports = {f"{server.http_port:04X}", f"{server.grpc_port:04X}"}
    assert {port for _, port in heard} >= ports
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # the latter is ::ffff:127.0.0.1
    assert {address for address, port in heard if port in ports} <= loopback
    assert server.stop() == 0
    said = server.said()
    assert f"waxwing: bundle {bundle[0].id}" in said and "Traceback" not in said
