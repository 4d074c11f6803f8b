"""The seeded simulator: a population, its genuine traffic, and attacks with labels.

Feeds the demo, the benchmarks, the tests and the training of the default bundle. `mix` holds the
frozen default mix, `traffic/` one module per event type, `attacks/` one file per attack.
"""

from __future__ import annotations

from features.simulate.simulator import ATTACKS, IN_MIX, SILENCES, Simulator

__all__ = ["ATTACKS", "IN_MIX", "SILENCES", "Simulator"]
