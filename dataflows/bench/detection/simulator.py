"""The simulator, on traffic nothing was fitted on: seeds, strengths and attacks not seen before.

Models are trained as `waxwing train` trains them, on history of one traffic seed. They are judged
on days of other seeds that go on from the state of that history: plain days with the default mix of
attacks, for recall and false positives; days with many attacks, for what becomes of each attack, at
the default mix and at single strengths. Then they are trained again without any row of one attack,
attack by attack, and without any label at all.

Seeds, strengths and shares are those below, fixed before a model was fitted for this bench. Every
threshold follows from rows of the history that are held out, for each detector and for the vote at
the same share; `zscore` and `iqr` choose by the same labels how they add up (`models.train`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dataflows.arrivals import Arrivals
from dataflows.evaluation import load_warm
from dataflows.history import Collector, Pass, run_history, save_warm
from dataflows.settings import Settings
from dataflows.sources.simulator import time_us_of
from dataflows.training import (
    ATTACK_SHARE,
    HISTORY_DAYS,
    SEED_APART,
    TRAINING_SEED,
    join_attacks,
    run_simulated,
    simulated,
)
from features.batch import Float64
from features.catalog import Catalog, catalog
from features.engine import warm_up
from features.events import made_types
from features.simulate import ATTACKS
from features.simulate.mix import TYPE_SHARES
from models.base import TrainingSet
from models.evaluate import curve_of
from models.scoring import Scorer
from models.train import join_sets, select_rows, train
from models.voting import ENSEMBLE

__all__ = ["FPR", "HOURS", "SEEDS", "STRENGTHS", "measure", "show"]

SEEDS = (9_101, 9_102, 9_103)
"""Traffic seeds of the days that are judged. Chosen: used nowhere else."""

DENSE_SEED = 9_200
"""Traffic seed of the days with many attacks; the next ones are those of the strengths."""

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Strengths of the curve. Chosen: closer together where recall is made or lost."""

HOURS = 48.0
"""Judged of each seed. Chosen: two campaigns of each attack a seed, six in all."""

DENSE_HOURS = 24.0
"""Days with many attacks are one day: twenty campaigns of each attack."""

GENUINE_ROWS = 60_000
"""Genuine rows of an event type that are judged, about, of all seeds together. Chosen: 0.3 % of
them are 180."""

LEFT_OUT_ROWS = 40_000
"""Genuine rows of an event type that models are fitted on again for each attack. Chosen: 0.18 % of
the quarter that thresholds are set on are 18 rows; all of them would take twice as long."""

FPR = 0.003
"""Share of genuine events that may be flagged; the goal of the project."""

YARDSTICKS = ("zscore", "iqr")
UNLABELLED_WITHOUT = ("gradient_boosting",)

WORKERS = 2
"""Models fitted side by side. Chosen: the two cores waxwing is made for."""

Say = Callable[[str], None]
Sets = Mapping[str, TrainingSet]


@dataclass(frozen=True, slots=True)
class _Said:
    """What detectors and vote said of rows of some event types.

    Parameters
    ----------
    attack : int16 (n,), code, 0 genuine
    weight : float64 (n,), events each row stands for
    flagged : name -> bool (n,), whether it reached its own threshold
    score : name -> float64 (n,), higher is stranger, one scale for all event types
    """

    attack: npt.NDArray[np.int16]
    weight: Float64
    flagged: Mapping[str, npt.NDArray[np.bool_]]
    score: Mapping[str, Float64]

    def figures(self) -> dict[str, dict[str, float]]:
        """Recall and false positives at the thresholds, and recall at `FPR` sharp, by name."""
        odd = self.attack > 0
        genuine = float(self.weight[~odd].sum())
        found = {}
        for name, flagged in self.flagged.items():
            curve = curve_of(self.score[name], odd, self.weight)
            found[name] = {
                "recall": _share(flagged[odd]),
                "fpr": round(float(self.weight[~odd & flagged].sum()) / max(genuine, 1.0), 6),
                "recall_at_fpr": round(curve.recall_at(FPR), 4),
            }
        return found

    def by_attack(self) -> dict[str, dict[str, float]]:
        """Recall of each attack that there are rows of, by name."""
        names = {code: name for name, code in ATTACKS.items()}
        return {
            names[code]: self.recalls(code) | {"events": int((self.attack == code).sum())}
            for code in np.unique(self.attack[self.attack > 0]).tolist()
        }

    def recalls(self, code: int) -> dict[str, float]:
        """Recall of one attack, by name."""
        here = self.attack == code
        return {name: _share(flagged[here]) for name, flagged in self.flagged.items()}


def measure(
    path: Path | None,
    settings: Settings,
    say: Say,
    days: float = HISTORY_DAYS,
    hours: float = HOURS,
    attacks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Everything about the simulated world of the settings.

    Parameters
    ----------
    path : nothing is read
    settings : `sim_*` but for the seed, `detectors`
    say : told what is being done, one sentence at a time
    days : of history to train on
    hours : judged of each seed; of days with many attacks at most one day
    attacks : that are left out one by one; all by default

    Returns
    -------
    the figures, in the keys of docs/json.md
    """
    cat = catalog()
    warm_up(cat)
    seed = settings.sim_seed + SEED_APART
    say(f"{days:g} simulated days of history, seed {seed}")
    done, plain, dense = run_simulated(settings, cat, seed, days)
    sets = join_attacks(plain, dense)
    with tempfile.TemporaryDirectory(prefix="waxwing-bench-") as folder:
        save_warm(Path(folder), settings, cat, done)
        judged, mixed, single, weights = _World(settings, cat, Path(folder), say).days(hours)
    say(f"fitting {', '.join(settings.detectors)}")
    scorer = _fitted(sets, cat, settings.detectors, say)
    every = _joined(list(judged.values()))
    said = _said(scorer, every, weights)
    say("fitting without labels")
    unaided = [name for name in settings.detectors if name not in UNLABELLED_WITHOUT]
    blind = _fitted(_unlabelled(plain, settings.sim_anomaly_share), cat, unaided, say)
    figures = said.figures()
    unlabelled = _said(blind, every, weights).figures()
    seen = _said(scorer, mixed, {}).by_attack()
    return {
        **figures[ENSEMBLE],
        "by_detector": figures,
        "gain": _gain(figures),
        "by_seed": {
            str(one): _said(scorer, rows, weights).figures()[ENSEMBLE]
            for one, rows in judged.items()
        },
        "by_attack": seen,
        "strength": _curves(scorer, single),
        "left_out": _left_out(settings, cat, sets, (every, mixed, weights), seen, attacks, say),
        "unlabelled": {
            **unlabelled[ENSEMBLE],
            "by_detector": unlabelled,
            "by_attack": _said(blind, mixed, {}).by_attack(),
        },
        "rows": {
            "fit": sum(map(len, sets.values())),
            "test": round(float(said.weight.sum())),
            "odd": int(np.count_nonzero(said.attack)),
        },
        "history_days": days,
        "hours": hours,
        "seeds": list(SEEDS),
        "detectors": list(settings.detectors),
    }


class _World:
    """Rows of days that go on from a warm state."""

    def __init__(self, settings: Settings, cat: Catalog, warm: Path, say: Say) -> None:
        self._settings, self._cat, self._warm, self._say = settings, cat, warm, say

    def days(
        self, hours: float
    ) -> tuple[dict[int, Sets], Sets, dict[float, Sets], dict[str, float]]:
        """Everything that is judged: plain rows by seed, anomalous ones of the default mix, and by
        strength; how many genuine events a plain row of each event type stands for."""
        plain = {seed: self.plain(seed, hours) for seed in SEEDS}
        dense = min(hours, DENSE_HOURS)
        mixed = self.attacked(DENSE_SEED, dense, None)
        single = {
            strength: self.attacked(DENSE_SEED + i, dense, strength)
            for i, strength in enumerate(STRENGTHS, 1)
        }
        return plain, mixed, single, {n: 1.0 / share for n, share in self.shares(hours).items()}

    def shares(self, hours: float) -> dict[str, float]:
        """Share of the genuine rows of each event type that is kept of the plain days."""
        events = self._settings.sim_events_per_s * hours * 3600.0 * len(SEEDS)
        return {
            name: min(1.0, GENUINE_ROWS / (events * share)) for name, share in TYPE_SHARES.items()
        }

    def plain(self, seed: int, hours: float) -> Sets:
        """Rows of plain days: all anomalous ones, and a share of the rest."""
        self._say(f"{hours:g} plain hours, seed {seed}")
        share = self._settings.sim_anomaly_share
        return self._rows(self._settings, seed, hours, share, self.shares(hours))

    def attacked(self, seed: int, hours: float, strength: float | None) -> Sets:
        """Anomalous rows of a day with many attacks, of the default mix or of one strength."""
        told = "the default mix" if strength is None else f"strength {strength:g}"
        self._say(f"{hours:g} hours with many attacks, {told}, seed {seed}")
        bounds = [] if strength is None else [strength, strength]
        settings = self._settings.model_copy(update={"sim_strength": bounds})
        return self._rows(settings, seed, hours, ATTACK_SHARE, 0.0)

    def _rows(
        self, settings: Settings, seed: int, hours: float, share: float, kept: Any
    ) -> dict[str, TrainingSet]:
        """What a collector keeps of one run."""
        start_us = time_us_of(settings.sim_start)
        begin: Pass | None = load_warm(self._warm, settings, self._cat)
        collector = Collector(self._cat, 0, kept)
        reader = simulated(settings, seed, start_us, start_us + round(hours * 3.6e9), share)
        arrivals = Arrivals(self._cat, round(settings.label_delay_s * 1e6))
        run_history(settings, self._cat, reader, collector, begin=begin, arrivals=arrivals)
        return {name: rows for name, rows in collector.sets().items() if name not in made_types()}


def _fitted(sets: Sets, cat: Catalog, detectors: Sequence[str], say: Say) -> Scorer:
    """A scorer of models that `waxwing train` would make of these rows."""
    names = {code: name for name, code in ATTACKS.items()}
    bundle = train(sets, cat, detectors, TRAINING_SEED, attacks=names, say=say)
    return Scorer(bundle, detectors)


def _unlabelled(plain: Sets, share: float) -> dict[str, TrainingSet]:
    """Plain rows without labels; attacks, of which all were kept, are as rare as they were."""
    rng = np.random.default_rng(TRAINING_SEED)
    found = {}
    for name, rows in plain.items():
        odd = rows.label == 1
        wanted = share * float((~odd).sum()) / max(float(odd.sum()), 1.0)
        kept = select_rows(rows, np.flatnonzero(~odd | (rng.random(len(rows)) < wanted)))
        found[name] = replace(kept, label=np.full(len(kept), -1, np.int8))
    return found


def _said(scorer: Scorer, sets: Sets, weights: Mapping[str, float]) -> _Said:
    """What a scorer says of rows of all event types.

    Parameters
    ----------
    weights : event type -> genuine events that a genuine row stands for; 1 where not named
    """
    parts = []
    for name, rows in sets.items():
        if name not in scorer.bundle.models or not len(rows):
            continue
        scores = scorer.score(rows.features, {})
        made = scorer.decide(scores, {})
        votes = np.asarray(made.votes.any(axis=1))
        flagged = {d: votes[:, i] for i, d in enumerate(scores.detectors)}
        flagged[ENSEMBLE] = np.asarray(made.flagged.any(axis=1))
        said = {d: np.nan_to_num(scores.surprise[:, i]) for i, d in enumerate(scores.detectors)}
        said[ENSEMBLE] = made.score.max(axis=1, initial=0.0)
        weight = np.where(rows.attack > 0, 1.0, weights.get(name, 1.0))
        parts.append(_Said(rows.attack, weight, flagged, said))
    # A detector that stays out of an event type says nothing of its rows.
    names = [n for n in (*scorer.detectors, ENSEMBLE) if any(n in part.flagged for part in parts)]
    return _Said(
        np.concatenate([part.attack for part in parts]),
        np.concatenate([part.weight for part in parts]),
        {n: np.concatenate([p.flagged.get(n, p.attack < 0) for p in parts]) for n in names},
        {n: np.concatenate([p.score.get(n, 0.0 * p.weight) for p in parts]) for n in names},
    )


def _joined(all_of_them: Sequence[Sets]) -> dict[str, TrainingSet]:
    """The rows of several runs as those of one."""
    found: dict[str, TrainingSet] = {}
    for sets in all_of_them:
        for name, rows in sets.items():
            found[name] = join_sets(found[name], rows) if name in found else rows
    return found


def _gain(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What the ensemble finds beyond the better of the yardsticks, relative to it."""
    there = [name for name in YARDSTICKS if name in figures]
    if not there:
        return {}
    found: dict[str, Any] = {}
    for key in ("recall", "recall_at_fpr"):
        best = max(there, key=lambda name: figures[name][key])
        base = figures[best][key]
        gain = figures[ENSEMBLE][key] / base - 1.0 if base else float("nan")
        found[key] = {"over": best, "relative": round(gain, 4)}
    return found


def _curves(scorer: Scorer, single: Mapping[float, Sets]) -> dict[str, dict[str, float]]:
    """Attack -> strength -> recall of the ensemble."""
    found: dict[str, dict[str, float]] = {}
    for strength, sets in single.items():
        for name, of in _said(scorer, sets, {}).by_attack().items():
            found.setdefault(name, {})[f"{strength:g}"] = of[ENSEMBLE]
    return found


def _left_out(
    settings: Settings,
    cat: Catalog,
    sets: Sets,
    judged: tuple[Sets, Sets, Mapping[str, float]],
    seen: Mapping[str, Mapping[str, float]],
    attacks: Sequence[str] | None,
    say: Say,
) -> dict[str, Any]:
    """Each attack's recall by models that never saw a row of it, and their false positives.

    Parameters
    ----------
    judged : plain rows, rows of days with many attacks, and what plain ones stand for
    seen : recall with all labels
    """
    every, mixed, weights = judged
    fewer = {name: _thinned(rows) for name, rows in sets.items() if name not in made_types()}

    def one(attack: str) -> dict[str, Any]:
        code = ATTACKS[attack]
        types = [name for name, rows in mixed.items() if code in rows.attack]
        without = {
            name: select_rows(fewer[name], np.flatnonzero(fewer[name].attack != code))
            for name in types
        }
        say(f"fitting without {attack}")
        scorer = _fitted(without, cat, settings.detectors, lambda _: None)
        plain = _said(scorer, {name: every[name] for name in types}, weights).figures()
        dense = _said(scorer, {name: mixed[name] for name in types}, {})
        return {
            "events": int(np.count_nonzero(dense.attack == code)),
            "seen": seen[attack][ENSEMBLE],
            "fpr": plain[ENSEMBLE]["fpr"],
            **dense.recalls(code),
        }

    wanted = [name for name in seen if attacks is None or name in attacks]
    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))


def _thinned(rows: TrainingSet) -> TrainingSet:
    """All anomalous rows, and an even part of the rest."""
    genuine = np.flatnonzero(rows.label != 1)
    step = max(1, round(len(genuine) / LEFT_OUT_ROWS))
    kept = np.sort(np.concatenate((genuine[::step], np.flatnonzero(rows.label == 1))))
    return select_rows(rows, kept)


def _share(which: npt.NDArray[np.bool_]) -> float:
    """Share that holds, NaN of nothing."""
    return round(float(which.mean()), 4) if len(which) else float("nan")


def show(report: Mapping[str, Any], out: IO[str]) -> None:
    """The figures for a person."""
    for title, of in (("with labels", report), ("without labels", report["unlabelled"])):
        print(f"{title:24}{'recall':>10}{'fpr':>10}{f'at {FPR:.1%}':>10}", file=out)
        for name, row in of["by_detector"].items():
            cells = (row["recall"], row["fpr"], row["recall_at_fpr"])
            print(f"  {name:22}" + "".join(f"{cell:>10.2%}" for cell in cells), file=out)
    for key, of in report["gain"].items():
        print(f"{key}: {of['relative']:+.1%} over {of['over']}", file=out)
    names = [name for name in report["by_detector"] if name != ENSEMBLE]
    print(f"{'never seen':24}{'seen':>10}{'ensemble':>10}" + "".join(f"{n:>19}" for n in names),
          file=out)  # fmt: skip
    for attack, of in report["left_out"].items():
        print(f"  {attack:22}{of['seen']:>10.1%}{of[ENSEMBLE]:>10.1%}"
              + "".join(f"{of.get(n, float('nan')):>19.1%}" for n in names), file=out)  # fmt: skip
