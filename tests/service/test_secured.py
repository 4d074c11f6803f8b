"""Every door locked: a flow over TLS, with names and passwords that stand in files of their own.

The broker speaks SASL over TLS and lets each user do what it needs and no more, the registry asks
for a certificate and a password, the Redis knows one user who may not do everything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from dataflows.sources.producer import EventProducer
from features.events import event_type
from features.simulate import Simulator
from tests.flow.harness import Bench, alerts_of, call, counts_of
from tests.service.conftest import running_server
from tests.service.servers import Kafka, Redis, Registry
from tests.service.tls import Certificates, registry_door, tcp_door

SECRETS = {"admin": "adm1n-of-all", "sender": "s3nds-only", "waxwing": "l1stens-only"}
TYPES = ("payment", "login")
BEGIN_US = 1_772_409_600_000_000
REDIS_MAY = ("~*", "+@read", "+@write", "-@dangerous", "+@connection", "+client")


@dataclass(frozen=True, slots=True)
class Locked:
    """What runs, and who may come in."""

    kafka: Kafka
    registry_url: str
    redis_url: str
    certificates: Certificates
    registry_options: dict[str, str]

    def kafka_options(self, user: str) -> dict[str, str]:
        """librdkafka's, of one user."""
        return _login(user, self.certificates)


def _login(user: str, certificates: Certificates) -> dict[str, str]:
    """Options of a client of the broker."""
    return {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(certificates.authority),
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": SECRETS[user],
    }


def _broker(certificates: Certificates, folder: Path) -> Kafka:
    """A broker that speaks SASL over TLS, with access lists."""
    both = folder / "broker.pem"
    both.write_bytes(certificates.server_key.read_bytes() + certificates.server.read_bytes())
    users = " ".join(f'user_{name}="{secret}"' for name, secret in SECRETS.items())
    return Kafka(
        "SASL_SSL",
        {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(both),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(certificates.authority),
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                "org.apache.kafka.common.security.plain.PlainLoginModule required"
                f' username="admin" password="{SECRETS["admin"]}" {users};'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:admin;User:ANONYMOUS",
        },
        _login("admin", certificates),
    )


def _allow(kafka: Kafka, user: str, kind: ResourceType, prefix: str, *may: AclOperation) -> None:
    """Let a user do something with all whose names begin so."""
    bindings = [
        AclBinding(kind, prefix, ResourcePatternType.PREFIXED, f"User:{user}", "*", what,
                   AclPermissionType.ALLOW)
        for what in may
    ]  # fmt: skip
    admin = kafka.admin()  # its futures die with it
    for done in admin.create_acls(bindings).values():
        done.result(120)


@pytest.fixture(scope="module")
def locked(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """All servers, locked."""
    folder = tmp_path_factory.mktemp("locked")
    certificates = Certificates.make(folder)
    with contextlib.ExitStack() as stack:
        kafka = stack.enter_context(running_server(lambda: _broker(certificates, folder)))
        _allow(kafka, "sender", ResourceType.TOPIC, "in-", AclOperation.WRITE, AclOperation.CREATE,
               AclOperation.DESCRIBE)  # fmt: skip
        _allow(kafka, "waxwing", ResourceType.TOPIC, "in-", AclOperation.READ)
        _allow(kafka, "waxwing", ResourceType.GROUP, "waxwing", AclOperation.READ)
        _allow(kafka, "waxwing", ResourceType.TOPIC, "out-", AclOperation.WRITE,
               AclOperation.CREATE)  # fmt: skip
        store = stack.enter_context(
            running_server(
                lambda: Redis(
                    [
                        "--user",
                        "waxwing",
                        "on",
                        f">{SECRETS['waxwing']}",
                        *REDIS_MAY,
                        "--user",
                        "default",
                        "off",
                    ]
                )
            )
        )
        asked = certificates.context(client_too=True)
        front = stack.enter_context(registry_door(registry.port, asked, "reader", "r3gistry"))
        door = stack.enter_context(tcp_door(store.port, asked))
        yield Locked(
            kafka,
            f"https://127.0.0.1:{front}/apis/ccompat/v7",
            f"rediss://waxwing:{SECRETS['waxwing']}@127.0.0.1:{door}/0"
            f"?ssl_ca_certs={certificates.authority}&ssl_certfile={certificates.client}"
            f"&ssl_keyfile={certificates.client_key}",
            certificates,
            {
                "ssl.ca.location": str(certificates.authority),
                "ssl.certificate.location": str(certificates.client),
                "ssl.key.location": str(certificates.client_key),
                "basic.auth.user.info": "reader:r3gistry",
            },
        )


def _table(values: dict[str, str]) -> str:
    """A table in TOML's own words."""
    return "{" + ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in values.items()) + "}"


def _variables(locked: Locked, folder: Path, user: str = "waxwing") -> dict[str, str]:
    """What a pod gets: variables that name files with secrets in them."""
    files = {
        "KAFKA_OPTIONS": _table(locked.kafka_options(user)),
        "KAFKA_REGISTRY_OPTIONS": _table(locked.registry_options),
        "REDIS_URL": locked.redis_url,
    }
    found = {}
    for name, text in files.items():
        path = folder / f"{user}-{name.lower()}"
        path.touch(mode=0o600)
        path.write_text(text + "\n", encoding="utf-8")
        found[f"WAXWING_{name}_FILE"] = str(path)
    return found


def _send(locked: Locked) -> int:
    """Two hours of events by the user who may send; how many were acknowledged."""
    simulator = Simulator(
        seed=1, events_per_s=2.0, cards=1_500, event_types=TYPES, anomaly_share=0.01
    )
    producer = EventProducer(
        locked.kafka.brokers,
        registry_url=locked.registry_url,
        registry_options=locked.registry_options,
        topic_prefix="in-",
        options=locked.kafka_options("sender"),
    )
    producer.open(TYPES)
    for batch in simulator.span(BEGIN_US, BEGIN_US + 7_200_000_000).values():
        producer.send(batch)
    return producer.close().total


def _command(bench: Bench, locked: Locked, state: Path) -> list[str]:
    """`waxwing run` to the end of what was sent; no secret stands in it."""
    return [
        "run",
        *bench.sets(
            source="kafka", lanes=2, kafka_brokers=locked.kafka.brokers, kafka_topic_prefix="in-",
            kafka_registry_url=locked.registry_url, kafka_until_end="true", store="redis",
            alerts="jsonl,kafka", alerts_topic="out-alerts", dead_letters_topic="out-dead",
            time_past_s_max=10**9, event_types=",".join(TYPES), state_dir=state,
        ),
        "--json", str(state.with_suffix(".json")),
    ]  # fmt: skip


def test_a_flow_passes_locked_doors_with_secrets_from_files(
    bench: Bench, locked: Locked, tmp_path: Path
) -> None:
    sent = _send(locked)
    assert sent > 1_000
    for topic in (event_type(name).topic for name in TYPES):
        assert locked.kafka.total([f"in-{topic}"]) > 0
    state = tmp_path / "state"
    done = call(*_command(bench, locked, state), cwd=tmp_path, **_variables(locked, tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(state.with_suffix(".json").read_text(encoding="utf-8"))
    counts = counts_of(report)
    assert counts["in"] == sent and counts["dead_lettered"] == 0
    assert counts["scored"] == sent - counts["duplicates"]
    alerts = alerts_of(state)
    assert alerts and locked.kafka.total(["out-alerts"]) == len(alerts)
    with contextlib.closing(redis.Redis.from_url(locked.redis_url)) as client:
        assert client.dbsize() > 100, "the store was filled"
    with (
        pytest.raises(redis.exceptions.NoPermissionError),
        contextlib.closing(redis.Redis.from_url(locked.redis_url)) as client,
    ):
        client.flushall()
    said = done.stdout + done.stderr
    left = [p for p in state.rglob("*") if p.is_file()]
    secrets = [*SECRETS.values(), "r3gistry"]
    for secret in secrets:
        assert secret not in said
        assert not [p for p in left if secret.encode() in p.read_bytes()], secret


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("password", "kafka_options security.protocol, sasl.* and ssl.*"),
        ("topic", "does not exist or may not be read"),
        ("registry", "answers 401"),
        ("certificate", "check kafka_registry_url"),
        ("redis", "redis_url"),
    ],
)
def test_a_door_that_stays_shut_is_one_sentence(
    bench: Bench, locked: Locked, tmp_path: Path, broken: str, said: str
) -> None:
    user = "sender" if broken == "topic" else "waxwing"
    variables = _variables(locked, tmp_path, user)
    command = _command(bench, locked, tmp_path / "state")
    if broken == "password":
        wrong = locked.kafka_options(user) | {"sasl.password": "not-this"}
        variables["WAXWING_KAFKA_OPTIONS"] = _table(wrong)
    elif broken == "topic":
        command = [
            part.replace("kafka_topic_prefix=in-", "kafka_topic_prefix=un-") for part in command
        ]
    elif broken == "registry":
        wrong = locked.registry_options | {"basic.auth.user.info": "reader:not-this"}
        variables["WAXWING_KAFKA_REGISTRY_OPTIONS"] = _table(wrong)
    elif broken == "certificate":
        wrong = {"ssl.ca.location": str(locked.certificates.authority),
                 "basic.auth.user.info": "reader:r3gistry"}  # fmt: skip
        variables["WAXWING_KAFKA_REGISTRY_OPTIONS"] = _table(wrong)
    else:
        variables["WAXWING_REDIS_URL"] = locked.redis_url.replace(SECRETS["waxwing"], "not-this")
    done = call(*command, cwd=tmp_path, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not any(s in done.stderr for s in (*SECRETS.values(), "not-this", "r3gistry"))
