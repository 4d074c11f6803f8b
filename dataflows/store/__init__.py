"""The online store: newest features of each entity, in Redis as Feast reads it (docs/store.md)."""

from __future__ import annotations

from dataflows.settings import Settings

__all__ = ["store_url"]


def store_url(settings: Settings) -> str:
    """Address of the store a flow with these settings writes, for redis-py and for Feast."""
    if settings.store == "embedded":
        # Redis' client is 0.2 s of a start, which a flow without a store need not spend.
        from dataflows.store.embedded import EmbeddedRedis

        return EmbeddedRedis(settings.state_dir).url
    return settings.redis_url
