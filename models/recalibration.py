"""Thresholds that follow live traffic slowly, and that an attacker cannot lift.

A rule is fitted so that a share of events alerts; a year later other events are usual, and the
share is another. What follows it must not follow an attack: whoever floods a system with strange
events wants the strange to become usual. So a rule moves by at most some per cent a day; it moves
to the median of a day of blocks, so that a burst of hours has no say; while more alerts come than a
stated multiple of the share, nothing moves and nothing is learned; and what is beyond the share on
account of one entity alone (a campaign: a merchant where cards are tried, an address) raises
nothing.

**Margin**: by how much all thresholds of a rule could rise, in log10 of the tail probability, with
the event still flagged. **Shift**: by how much they have risen; 0 is as training fitted them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.batch import Float64, Int64

__all__ = [
    "SHIFT_MAX",
    "Follower",
    "Recalibration",
    "Spread",
    "margins_of",
    "shift_for",
    "shifted",
    "spread_of",
]

SHIFT_MAX = 1.0
"""Largest shift either way: ten times as rare, or as frequent. Chosen: a model that is further off
is to be trained again."""

STEP = 0.01
"""Width of a bin of margins. Chosen: 2.3 % of the tail probability, less than a day's move."""

BINS = 300
"""Bins of margins, around 0; chosen: half as much again as SHIFT_MAX, so that an estimate beyond
it is seen to be."""

BLOCKS = 24
"""Blocks whose median is moved to, and before which there is no move. Chosen: with the default
block a day, all hours of it; with fewer to begin with, the first hours would be the majority."""

ALERTS_MIN = 10
"""Fewest alerts that a block is to be asked for; it lasts until it has as many rows. Chosen: the
error of a count of ten is a third, and the median of 24 of them is off by a tenth."""

ENTITIES_MAX = 256
"""Entities whose alerts are counted in a block. Chosen: who has more than one in 257 of the alerts
is among them, and the count is short by no more than that."""

CAMPAIGN_SHARE = 0.5
"""Of the alerts that are asked for, so many of one entity are told of as a campaign. Chosen: more
than chance or a large merchant has."""

MOVE_MIN = 1e-4
"""Smallest move worth a record. Chosen: 0.02 % of the tail probability."""

DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Recalibration:
    """How a rule may follow live traffic.

    Parameters
    ----------
    share : of all events of its type that are to alert
    percent_a_day : most by which the tail probability at its thresholds changes in a day; 0: off
    freeze_ratio : nothing moves while so many times the share alert
    block_s : s, time (cut_time) that an estimate is made of
    """

    share: float
    percent_a_day: float
    freeze_ratio: float = 3.0
    block_s: float = 3_600.0


def shifted(threshold: float, shift: float) -> float:
    """A threshold in [0, 1] after a shift.

    >>> round(shifted(0.999, 1.0), 6)
    0.9999
    """
    return threshold if shift == 0.0 else max(0.0, 1.0 - (1.0 - threshold) * 10.0**-shift)


def margins_of(
    scores: Float64, limits: Float64, voted: Float64, limit: float, votes_needed: int
) -> Float64:
    """float64 (n,), the margin of each event; -inf where no shift would flag it.

    Parameters
    ----------
    scores : float64 (n, D), of the detectors that have a say; NaN where one has none
    limits : float64 (D,), their thresholds without a shift
    voted : float64 (n,), score of the vote
    limit : its threshold
    votes_needed : detectors that must reach theirs
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.log10((1.0 - limits)[None, :] / (1.0 - scores))
        whole = np.log10((1.0 - limit) / (1.0 - voted))
    room = np.where(np.isnan(room), -np.inf, room)
    if votes_needed > room.shape[1]:
        return np.full(len(voted), -np.inf)
    needed = -np.sort(-room, axis=1)[:, votes_needed - 1]
    found: Float64 = np.minimum(needed, np.where(np.isnan(whole), -np.inf, whole))
    return found


@dataclass(frozen=True, slots=True)
class Spread:
    """Margins of the events of a stretch, counted.

    Parameters
    ----------
    anomaly_type : of which rule
    bundle : that judged them
    rows : events
    flagged : of these
    counts : int64 (BINS,), events by margin; those below the lowest bin are in none
    entities : entity of any type -> flagged events that touch it
    """

    anomaly_type: str
    bundle: str
    rows: int
    flagged: int
    counts: Int64
    entities: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Spread) -> Spread:
        """Both stretches of one rule together."""
        return Spread(
            self.anomaly_type, self.bundle, self.rows + other.rows, self.flagged + other.flagged,
            self.counts + other.counts, dict(Counter(self.entities) + Counter(other.entities)),
        )  # fmt: skip


def spread_of(
    anomaly_type: str,
    bundle: str,
    margins: Float64,
    flagged: npt.NDArray[np.bool_],
    entities: Mapping[str, int] | None = None,
) -> Spread:
    """The spread of some events; `entities` as of `Spread`, none are known where it is None."""
    place = np.floor(np.clip(margins, -BINS * STEP, BINS * STEP) / STEP) + BINS // 2
    at = np.minimum(place[place >= 0], BINS - 1).astype(np.int64)
    counts = np.bincount(at, minlength=BINS).astype(np.int64)
    many = int(np.count_nonzero(flagged))
    return Spread(anomaly_type, bundle, len(margins), many, counts, dict(entities or {}))


def shift_for(counts: Int64, rows: int, share: float, spared: int = 0) -> float:
    """The lowest shift at which at most a share of the rows is flagged, within the bins.

    Parameters
    ----------
    spared : of the events with the largest margins, so many do not count
    """
    above = np.cumsum(counts[::-1])[::-1] - spared
    within = np.flatnonzero(above <= share * rows)
    place = int(within[0]) if len(within) else BINS
    return (place - BINS // 2) * STEP


@dataclass(slots=True)
class Follower:
    """What one rule knows of the traffic; a function of the rounds it is shown.

    Parameters
    ----------
    options : how it may follow
    since_us : beginning of the running block; None before the first round
    rows, flagged, counts : of the running block, as of `Spread`
    tainted : whether it was frozen at some moment of the block
    blocks : shifts that the last whole blocks asked for, the oldest first
    entities : of the running block, those with the most alerts, see `_heaviest`
    campaign : who had a large part of the alerts of the last whole block, where there were more
        than asked for, in words; empty: nobody
    """

    options: Recalibration
    since_us: int | None = None
    rows: int = 0
    flagged: int = 0
    counts: Int64 = field(default_factory=lambda: np.zeros(BINS, np.int64))
    tainted: bool = False
    blocks: list[float] = field(default_factory=list)
    entities: dict[str, int] = field(default_factory=dict)
    campaign: str = ""

    def take(self, now_us: int, spread: Spread | None, shift: float, frozen: bool) -> float | None:
        """Take in a round; the shift that is to be in force from now on, None: as it is.

        Parameters
        ----------
        now_us : the round's cut time
        spread : its events; None where it had none
        shift : in force
        frozen : whether somebody has said so
        """
        if self.since_us is None:
            self.since_us = now_us
        self.tainted |= frozen
        if spread is not None:
            self.rows += spread.rows
            self.flagged += spread.flagged
            self.counts = self.counts + spread.counts
            self.entities = _heaviest(Counter(self.entities) + Counter(spread.entities))
        share, passed_us = self.options.share, now_us - self.since_us
        if passed_us < 1e6 * self.options.block_s or self.rows * share < ALERTS_MIN:
            return None
        calm = not self.tainted and self.flagged <= self.options.freeze_ratio * share * self.rows
        self.campaign = self._campaign()
        if calm:
            self.blocks = [*self.blocks, self._asked(shift)][-BLOCKS:]
        self.since_us, self.rows, self.flagged, self.tainted = now_us, 0, 0, False
        self.counts, self.entities = np.zeros(BINS, np.int64), {}
        return self._moved(shift, passed_us) if calm and len(self.blocks) == BLOCKS else None

    def _asked(self, shift: float) -> float:
        """The shift that the block asks for; where it is more, no more than without one entity."""
        share, most = self.options.share, max(self.entities.values(), default=0)
        asked = shift_for(self.counts, self.rows, share)
        # Such a block is not left out: only those that ask for less would be left.
        return min(asked, max(shift, shift_for(self.counts, self.rows, share, most)))

    def _campaign(self) -> str:
        """Who has at least half as many alerts as the whole block was to have, in words."""
        usual = self.options.share * self.rows
        name, many = max(self.entities.items(), key=lambda one: one[::-1], default=("", 0))
        if self.flagged <= usual or many < CAMPAIGN_SHARE * usual:
            return ""
        return f"{name} has {many:,} of {self.flagged:,} alerts, where {usual:,.0f} are asked for"

    def _moved(self, shift: float, passed_us: int) -> float | None:
        """The shift after a block, as far as it may move in its time."""
        wanted = float(np.clip(np.median(self.blocks), -SHIFT_MAX, SHIFT_MAX))
        most = np.log10(1.0 + self.options.percent_a_day / 100.0) * passed_us / DAY_US
        moved = float(np.clip(wanted, shift - most, shift + most))
        return moved if abs(moved - shift) >= MOVE_MIN else None

    def kept(self) -> dict[str, Any]:
        """What a snapshot holds, JSON-able."""
        at = np.flatnonzero(self.counts)
        return {
            "since_us": self.since_us,
            "rows": self.rows,
            "flagged": self.flagged,
            "tainted": self.tainted,
            "blocks": self.blocks,
            "bins": at.tolist(),
            "counts": self.counts[at].tolist(),
            "entities": self.entities,
            "campaign": self.campaign,
        }

    @classmethod
    def of(cls, options: Recalibration, kept: Mapping[str, Any]) -> Self:
        """The follower that `kept` came from."""
        counts = np.zeros(BINS, np.int64)
        counts[kept["bins"]] = kept["counts"]
        return cls(
            options, kept["since_us"], kept["rows"], kept["flagged"], counts, kept["tainted"],
            list(kept["blocks"]), dict(kept.get("entities", {})), kept.get("campaign", ""),
        )  # fmt: skip


def _heaviest(counts: Counter[str]) -> dict[str, int]:
    """At most ENTITIES_MAX of the counts, the largest, each less what the next has.

    Source: Agarwal et al., Mergeable summaries, 2012, for the counters of Misra and Gries, 1982.
    """
    if len(counts) <= ENTITIES_MAX:
        return dict(counts)
    less = sorted(counts.values(), reverse=True)[ENTITIES_MAX]
    return {name: many - less for name, many in counts.items() if many > less}
