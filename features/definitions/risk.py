"""Where frauds were before: what late verdicts say of the card, its merchant, device and address.

The windows are those of the Fraud Detection Handbook (1, 7 and 30 days that end a week before the
payment), for what is shared by many: merchants and addresses. Of what belongs to one person a
single known fraud says enough.
"""

from __future__ import annotations

from features.spec import Feature

__all__ = ["FEATURES"]

_DAY_S = 86_400
_BOTH = ("payment", "login")


def _rates(entity: str, days: tuple[int, ...]) -> tuple[Feature, ...]:
    """Share of frauds among the payments whose verdict is known."""
    return tuple(
        Feature(
            f"{entity}_fraud_rate_{n}d",
            "payment",
            entity,
            "risk_rate",
            f"share of frauds {{value}} among the known payments of {n} d at this {entity}",
            "1",
            "risk",
            window_s=n * _DAY_S,
        )
        for n in days
    )


def _known(
    event: str, entity: str, days: int, feeds: tuple[str, ...] = (), since: bool = True
) -> tuple[Feature, ...]:
    """How many frauds are known, and how long ago the latest was."""
    count = Feature(
        f"{entity}_frauds_{days}d",
        event,
        entity,
        "risk_count",
        f"{{value}} known frauds of this {entity} in {days} d and the week since",
        "1",
        "risk",
        feeds=feeds,
        window_s=days * _DAY_S,
    )
    latest = Feature(
        f"{entity}_since_fraud_s",
        event,
        entity,
        "since_fraud",
        f"last known fraud of this {entity} was {{value}} ago",
        "s",
        "risk",
        feeds=feeds,
        high_is_odd=False,
    )
    return (count, latest) if since else (count,)


FEATURES = (
    *_rates("merchant", (1, 7, 30)),
    *_known("payment", "merchant", 30),
    Feature(
        "merchant_genuine_since_fraud",
        "payment",
        "merchant",
        "genuine_since_fraud",
        "{value} genuine payments at this merchant since its last known fraud",
        "1",
        "risk",
        high_is_odd=False,
    ),
    Feature(
        "merchant_fraud_run_s",
        "payment",
        "merchant",
        "fraud_run",
        "{value} since frauds at this merchant began, of those that are known",
        "s",
        "risk",
        high_is_odd=False,
    ),
    Feature(
        "merchant_last_label",
        "payment",
        "merchant",
        "last_label",
        "newest verdict on this merchant's payments is {value} (1 fraud, 0 genuine)",
        "1",
        "risk",
    ),
    *_rates("ip", (7,)),
    *_known("payment", "card", 30),
    Feature(
        "card_last_label",
        "payment",
        "card",
        "last_label",
        "newest verdict on this card's payments is {value} (1 fraud, 0 genuine)",
        "1",
        "risk",
    ),
    *_known("payment", "device", 30),
    *_known("payment", "user", 30, _BOTH, since=False),
    *_known("login", "user", 30, _BOTH, since=False),
)
