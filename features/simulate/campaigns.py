"""When attacks run: a timetable that is a function of the seed and absolute time.

Campaign k of an attack starts within the k-th of equal stretches of time, so any span of time knows
its campaigns without the past. The stretch follows from the wanted share of attack events: at the
default it is about a day, in a benchmark of 50,000 events/s a few seconds. All attacks have equally
many campaigns, so none is missing for long.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from features.simulate import mix
from features.simulate.attacks import Attack
from features.simulate.attacks import attacks as all_attacks
from features.simulate.attacks.base import Campaign, Change, Plan, Silence
from features.simulate.chance import generator, key_of, unit
from features.simulate.world import Block, Rows, World, concat_rows, take_rows

__all__ = ["Timetable"]

_SPREAD = 0.8
"""A start falls into the first 80 % of its stretch by chance; chosen: regular enough that few days
miss an attack, loose enough that nobody can learn the hour."""

_PLANS_MAX = 20_000
"""Plans kept at most: 30 times those alive at 50,000 events/s and the default share; 5 kB each,
measured on one process with 11,500 of them."""


SILENCE_SAMPLES_MIN = 120
"""Least time between two silences of a kind, in samples of a series. Chosen: of the default
population six hours; closer together a host would be silent every day at the same hour, which is
its rhythm then and no attack."""


_Kept = tuple[dict[int, list[tuple[str, Rows, slice]]], tuple[Change, ...], tuple[Silence, ...]]
"""A plan as it is kept: where the rows it adds to a block lie, by block, its changes, silences."""


class Timetable:
    """The campaigns of all chosen attacks.

    Parameters
    ----------
    world : the world
    attacks : name -> attack, in order
    codes : name -> truth code
    per_s : attack events per second wanted, all attacks together; 0 for none
    strength : bounds to draw strengths from evenly, None for the default mix
    """

    def __init__(
        self,
        world: World,
        attacks: dict[str, Attack],
        codes: dict[str, int],
        per_s: float,
        strength: tuple[float, float] | None,
        block_us: int,
    ) -> None:
        self._world, self._attacks, self._codes = world, attacks, codes
        self._strength, self._block_us = strength, block_us
        # Silences label no event, so they take nothing of the share.
        size = _events_of(attacks) or _events_of(
            {name: attack for name, attack in all_attacks().items() if attack.by_default}
        )
        self.stretch_us = round(1e6 * size / per_s) if per_s > 0 and attacks else 0
        quiet_us = max(self.stretch_us, SILENCE_SAMPLES_MIN * world.infrastructure.interval_us)
        self._stretch_us = {
            name: self.stretch_us if _events_of({name: attack}) else quiet_us
            for name, attack in attacks.items()
        }
        self._phase = {
            name: int(
                float(unit(world.seed ^ key_of("phase"), np.array([key_of(name)]))[0])
                * self._stretch_us[name]
            )
            for name in attacks
        }
        self._lasts_us = {
            name: round(1e6 * attack.lasts_s_max(world)) + 1 for name, attack in attacks.items()
        }
        self._plans: dict[tuple[str, int], _Kept] = {}

    def campaign(self, name: str, number: int) -> Campaign:
        """Campaign `number` of attack `name`."""
        rng = generator(self._world.seed, key_of(name), number, 0)
        low, high = self._attacks[name].events
        stretch_us = self._stretch_us[name]
        start_us = self._phase[name] + number * stretch_us
        start_us += int(rng.random() * _SPREAD * stretch_us)
        size = int(rng.integers(low, high + 1))
        if self._strength is None:
            # From the seed on, so that another seed makes other attacks the weak ones.
            silent = not _events_of({name: self._attacks[name]})
            kin = [n for n, a in self._attacks.items() if silent != bool(_events_of({n: a}))]
            turn = number * len(kin) + kin.index(name) + self._world.seed
            strength = mix.default_strength(rng, turn)
        else:
            strength = float(rng.uniform(*self._strength))
        return Campaign(name, number, start_us, strength, size, self._world.seed)

    def strike(self, block: Block, rows: dict[str, Rows]) -> dict[str, Rows]:
        """Traffic of a block with the attacks in it; `truth` and `campaign` are set."""
        for part in rows.values():
            n = len(part["time_us"])
            part["truth"] = np.zeros(n, np.int16)
            part["campaign"] = np.full(n, -1, np.int64)
        if not self.stretch_us:
            return rows
        parts: dict[str, list[Rows]] = {name: [part] for name, part in rows.items()}
        for name, code in ((n, self._codes[n]) for n in self._attacks):
            for number in self._numbers(name, block.start_us, block.end_us):
                added, changes, _ = self._plan(name, number)
                for event_type, extra, here in added.get(block.number, ()):
                    if event_type in parts:
                        parts[event_type].append({c: v[here] for c, v in extra.items()})
                for change in changes:
                    if change.start_us < block.end_us and block.start_us < change.end_us:
                        self._change(change, rows, code, number)
        made = {name: concat_rows(part) for name, part in parts.items()}
        for _, silence in self.silences(block.start_us, block.end_us):
            self._hush(silence, made)
        return made

    def silences(self, start_us: int, end_us: int) -> list[tuple[Campaign, Silence]]:
        """The silences that have a part in [start_us, end_us), with their campaigns."""
        if not self.stretch_us:
            return []
        return [
            (self.campaign(name, number), silence)
            for name, attack in self._attacks.items()
            if not _events_of({name: attack})
            for number in self._numbers(name, start_us, end_us)
            for silence in self._plan(name, number)[2]
            if silence.start_us < end_us and start_us < silence.end_us
        ]

    def _numbers(self, name: str, start_us: int, end_us: int) -> range:
        """Campaigns of an attack that may have a part in a stretch of time."""
        stretch_us = self._stretch_us[name]
        first = (start_us - self._lasts_us[name] - self._phase[name]) // stretch_us - 1
        return range(first, (end_us - self._phase[name]) // stretch_us + 1)

    def _hush(self, silence: Silence, made: dict[str, Rows]) -> None:
        """Take out of the block what does not come, attacks included: a dead host has none."""
        for event_type, hush in silence.hushes.items():
            if event_type not in made:
                continue
            time_us = made[event_type]["time_us"]
            at = np.flatnonzero((time_us >= silence.start_us) & (time_us < silence.end_us))
            left = np.ones(len(time_us), np.bool_)
            left[at] = ~hush(self._world, made[event_type], at)
            if not left.all():
                made[event_type] = take_rows(made[event_type], np.flatnonzero(left))

    def _change(self, change: Change, rows: dict[str, Rows], code: int, number: int) -> None:
        """Let a change do its work on the block's genuine rows, in place."""
        part = rows.get(change.event_type)
        if part is None:
            return
        time_us = part["time_us"]
        at = np.flatnonzero(
            (time_us >= change.start_us) & (time_us < change.end_us) & (part["truth"] == 0)
        )
        struck = change.apply(self._world, part, at)
        part["truth"][struck] = code
        part["campaign"][struck] = number

    def _plan(self, name: str, number: int) -> _Kept:
        """What a campaign does, its rows by event type and block."""
        found = self._plans.get((name, number))
        if found is not None:
            return found
        if len(self._plans) >= _PLANS_MAX:
            for oldest in list(self._plans)[: _PLANS_MAX // 2]:
                del self._plans[oldest]
        plan: Plan = self._attacks[name].plan(self._world, self.campaign(name, number))
        added: dict[int, list[tuple[str, Rows, slice]]] = {}
        for event_type, rows in plan.rows.items():
            n = len(rows["time_us"])
            rows["truth"] = np.full(n, self._codes[name], np.int16)
            rows["campaign"] = np.full(n, number, np.int64)
            rows = take_rows(rows, np.argsort(rows["time_us"], kind="stable"))
            blocks, starts = np.unique(rows["time_us"] // self._block_us, return_index=True)
            for b, low, high in zip(blocks, starts, [*starts[1:], n], strict=True):
                here = slice(int(low), int(high))
                added.setdefault(int(b), []).append((event_type, rows, here))
        self._plans[name, number] = added, plan.changes, plan.silences
        return self._plans[name, number]


def _events_of(attacks: Mapping[str, Attack]) -> float:
    """Events that one campaign of each labels, about; 0 where all are silences."""
    return sum(0.5 * (low + high) for low, high in (a.events for a in attacks.values()))
