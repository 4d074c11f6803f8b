"""Where: distance from home, speed between places, countries never seen before."""

from __future__ import annotations

from features.spec import Feature

__all__ = ["FEATURES"]

_BOTH = ("payment", "login")


def _places(event: str, entity: str, feeds: tuple[str, ...], noun: str) -> tuple[Feature, ...]:
    """Home, last place and speed of an entity."""
    return (
        Feature(
            f"{entity}_home_km",
            event,
            entity,
            "home_km",
            f"{{value}} from where this {entity} is at home",
            "km",
            "geo",
            feeds=feeds,
        ),
        Feature(
            f"{entity}_moved_km",
            event,
            entity,
            "moved_km",
            f"{{value}} from the {entity}'s previous {noun}",
            "km",
            "geo",
            feeds=feeds,
        ),
        Feature(
            f"{entity}_speed_kmh",
            event,
            entity,
            "speed_kmh",
            f"{{value}} needed to get here from the {entity}'s previous {noun}",
            "km/h",
            "geo",
            feeds=feeds,
        ),
        Feature(
            f"{entity}_home_z",
            event,
            entity,
            "z",
            f"the distance from home is {{value}} from what is usual for this {entity}",
            "sigma",
            "geo",
            column=f"log({entity}_home_km)",
        ),
        Feature(
            f"{entity}_country_first",
            event,
            entity,
            "first_time",
            f"first time of this {entity} in this country",
            "flag",
            "geo",
            feeds=feeds,
            other="country",
        ),
    )


FEATURES: tuple[Feature, ...] = (
    *_places("payment", "card", ("payment",), "payment"),
    *_places("payment", "user", _BOTH, "payment or login"),
    *_places("login", "user", _BOTH, "payment or login"),
)
