"""How evenly events spread: over a card's habits, a source's victims, a service's templates."""

from __future__ import annotations

from features.spec import Feature

__all__ = ["FEATURES"]


def _entropy(event: str, entity: str, other: str, why: str, odd: bool | None = True) -> Feature:
    """Entropy over the last 32 events."""
    return Feature(
        f"{entity}_{other}_entropy",
        event,
        entity,
        "entropy",
        why,
        "bit",
        "cross_entity",
        other=other,
        high_is_odd=odd,
    )


FEATURES = (
    _entropy("payment", "card", "category", "last 32 payments of this card spread over {value}"),
    _entropy("payment", "device", "card", "last 32 payments of this device: cards spread {value}"),
    _entropy("login", "user", "ip", "last 32 logins of this user: addresses spread over {value}"),
    _entropy("login", "ip", "user", "last 32 logins from this address: users spread over {value}"),
    _entropy(
        "app_log", "service", "template", "last 32 lines of this service: templates {value}", None
    ),
)
