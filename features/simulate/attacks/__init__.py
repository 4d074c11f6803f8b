"""The attacks: every module beside this one that has an `ATTACK`, in a fixed order.

The place in the order is the attack's code in `EventBatch.truth` (from 1; 0 is genuine), so the
shipped ones come first, as listed, and others after them by name. An attack is one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from features.simulate.attacks.base import Attack

__all__ = ["Attack", "attacks"]

_FIRST = (
    "card_testing",
    "account_takeover",
    "slow_bleed",
    "merchant_compromise",
    "credential_stuffing",
    "password_spraying",
    "session_hijack",
    "level_shift",
    "slow_leak",
    "flat_line",
    "correlated_outage",
    "error_burst",
    "new_template",
    "slow_down",
    "host_silence",
    "series_silence",
    "service_silence",
    "slow_ramp",
)


@cache
def attacks() -> dict[str, Attack]:
    """All attacks by name, in their fixed order."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"]
    ordered = [n for n in _FIRST if n in names] + sorted(set(names) - set(_FIRST))
    return {n: importlib.import_module(f"{__name__}.{n}").ATTACK for n in ordered}
