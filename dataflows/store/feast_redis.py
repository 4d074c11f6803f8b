"""Feast's Redis store, told by URL where Redis is: the same that the flow's `redis_url` takes.

`feature_repo/feature_store.yaml` names the class below. Feast's own kind of address, such as
`HOST:PORT,db=0`, works in it as well, and so does a repository of one's own with `type: redis`.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import redis
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from pydantic import field_validator

from dataflows.settings import Settings

__all__ = ["WaxwingOnlineStore", "WaxwingOnlineStoreConfig", "feast_address"]


_NAME: Final = "dataflows.store.feast_redis.WaxwingOnlineStore"


def feast_address(url: str) -> str:
    """Feast's address of a Redis from its URL: TLS, ACL user, database and sockets included.

    >>> feast_address("rediss://me:a,b@cache:6380/2")
    'cache:6380,username="me",password="a\\\\u002cb",db=2,ssl=true'
    """
    parse: Any = redis.connection.parse_url
    found = parse(url)
    host, port = found.pop("host", "localhost"), found.pop("port", 6379)
    secure = found.pop("connection_class", None) is redis.SSLConnection
    if "path" in found:
        found["unix_socket_path"] = found.pop("path")
    if secure:
        found["ssl"] = True
    # Feast cuts at commas, then reads each value as JSON: text stays text, and a comma is escaped.
    parts = [f"{k}={json.dumps(v).replace(',', chr(92) + 'u002c')}" for k, v in found.items()]
    return ",".join([f"{host}:{port}", *parts])


class WaxwingOnlineStoreConfig(RedisOnlineStoreConfig):
    """Feast's configuration, whose `connection_string` may be a URL."""

    type: Literal[_NAME] = _NAME  # type: ignore[valid-type]

    @field_validator("connection_string", mode="before")
    @classmethod
    def _from_url(cls, value: Any) -> Any:
        """A URL becomes Feast's address; a variable nobody has set means the default."""
        if isinstance(value, str) and value.startswith("$"):
            value = Settings.model_fields["redis_url"].default
        return feast_address(value) if isinstance(value, str) and "://" in value else value


class WaxwingOnlineStore(RedisOnlineStore):
    """Feast's Redis store; only its configuration differs."""
