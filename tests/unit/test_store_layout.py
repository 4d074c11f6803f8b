"""Bytes of the online store against Feast's own functions, for every view of the catalogue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import hiredis
import numpy as np
import polars as pl
import pytest
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from dataflows.store.feast_redis import WaxwingOnlineStoreConfig, feast_address
from dataflows.store.layout import (
    PROJECT,
    ViewLayout,
    entities_in,
    entity_key,
    layouts,
    time_from_bytes,
)
from features.catalog import Catalog, catalog
from features.errors import ConfigError, ShapeError

KEYS = ("card_1", "a", "ö|ß|漢字", "x" * 300, "with space\r\n*1\r\n$4\r\nPING")
TIMES_US = (1_772_409_600_000_000, 1_772_409_600_000_001, 0, 999_999, -1, 253_402_300_799_999_999)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def commands(data: bytes) -> list[list[bytes]]:
    """What Redis reads from the wire."""
    reader = hiredis.Reader()
    reader.feed(data)
    found = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


def feast_command(layout: ViewLayout, key: str, row: list[float], time_us: int) -> list[bytes]:
    """The same command made by Feast's functions, field by field."""
    entity = EntityKey(join_keys=[layout.entity], entity_values=[Value(string_val=key)])
    words = [b"HSET", _redis_key(PROJECT, entity, entity_key_serialization_version=3)]
    for feature, value in zip(layout.features, row, strict=True):
        proto = Value() if np.isnan(value) else Value(double_val=value)
        words += [_mmh3(f"{layout.name}:{feature}"), proto.SerializeToString()]
    stamp = Timestamp()
    stamp.FromDatetime(EPOCH + timedelta(microseconds=time_us))
    return [*words, f"_ts:{layout.name}".encode(), stamp.SerializeToString()]


@pytest.mark.parametrize("view", layouts(catalog()), ids="_".join)
def test_rows_are_the_bytes_that_feast_would_write(
    view: tuple[str, str], rng: np.random.Generator
) -> None:
    layout = layouts(catalog())[view]
    pairs = [(key, time_us) for key in KEYS for time_us in TIMES_US]
    rows = rng.normal(size=(len(pairs), len(layout.features))) * 10.0 ** rng.integers(-300, 300)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    rows[0, 0], rows[1, 0], rows[2, 0], rows[3, 0] = 0.0, -0.0, np.inf, -np.inf
    keys = pl.Series([key for key, _ in pairs])
    data = layout.encode(keys, rows, np.array([time_us for _, time_us in pairs]))
    assert commands(data.tobytes()) == [
        feast_command(layout, key, row.tolist(), time_us)
        for (key, time_us), row in zip(pairs, rows, strict=True)
    ]


def test_a_slice_of_a_column_is_encoded_like_a_column_of_its_own() -> None:
    layout = layouts(catalog())["payment", "card"]
    rows = np.arange(4.0 * len(layout.features)).reshape(4, -1)
    times = np.arange(4)
    whole = pl.Series([f"card_{i}" for i in range(4)])
    parts = [layout.encode(whole[a:b], rows[a:b], times[a:b]) for a, b in ((0, 1), (1, 3), (3, 4))]
    assert np.concatenate(parts).tobytes() == layout.encode(whole, rows, times).tobytes()
    assert layout.encode(whole[:0], rows[:0], times[:0]).tobytes() == b""


@pytest.mark.parametrize("key", KEYS)
def test_one_key_is_that_of_feast(key: str) -> None:
    entity = EntityKey(join_keys=["card"], entity_values=[Value(string_val=key)])
    assert entity_key("card", key) == _redis_key(PROJECT, entity)


def test_a_key_of_our_shape_that_is_no_text_is_passed_over() -> None:
    own = entity_key("card", "c1")
    assert entities_in([own.replace(b"c1", b"\xff1"), own]) == {"card": ["c1"]}


@pytest.mark.parametrize("time_us", TIMES_US)
def test_a_time_is_read_back_to_the_microsecond(time_us: int) -> None:
    stamp = Timestamp()
    stamp.FromDatetime(EPOCH + timedelta(microseconds=time_us))
    assert time_from_bytes(stamp.SerializeToString()) == time_us
    assert time_from_bytes(None) is None


def test_rows_that_do_not_fit_the_view_are_refused_with_both_widths() -> None:
    layout = layouts(catalog())["payment", "card"]
    wrong = np.zeros((1, len(layout.features) + 1))
    with pytest.raises(ShapeError, match=rf"payment_card_v1.*{len(layout.features)}\).*got"):
        layout.encode(pl.Series(["a"]), wrong, np.zeros(1, np.int64))


def test_features_that_share_a_field_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflows.store.layout._field", lambda view, feature: b"same")
    with pytest.raises(ConfigError, match="share a field of Redis; rename one"):
        layouts(Catalog(catalog().features("login")))


@pytest.mark.parametrize(
    ("url", "host", "port", "options"),
    [
        ("redis://localhost:6379/0", "localhost", "6379", {"db": 0}),
        ("redis://:1234@h", "h", "6379", {"password": "1234"}),
        (
            "rediss://me:a%2Cb=c@cache:6380/2?ssl_ca_certs=/etc/ca.pem",
            "cache",
            "6380",
            {
                "username": "me",
                "password": "a,b=c",
                "db": 2,
                "ssl": True,
                "ssl_ca_certs": "/etc/ca.pem",
            },
        ),
        ("unix:///r.sock?db=1", "localhost", "6379", {"unix_socket_path": "/r.sock", "db": 1}),
    ],
)
def test_feast_reads_out_of_the_address_what_the_url_says(
    url: str, host: str, port: str, options: dict[str, object]
) -> None:
    nodes, found = RedisOnlineStore._parse_connection_string(feast_address(url))
    assert nodes == [{"host": host, "port": port}]
    assert found == options
    assert WaxwingOnlineStoreConfig(connection_string=url).connection_string == feast_address(url)


def test_an_address_nobody_has_set_is_the_default_of_the_setting() -> None:
    config = WaxwingOnlineStoreConfig(connection_string="${WAXWING_REDIS_URL}")
    assert config.connection_string == "localhost:6379,db=0"
    assert WaxwingOnlineStoreConfig(connection_string="h:1,db=3").connection_string == "h:1,db=3"
