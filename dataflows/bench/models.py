"""`waxwing bench models`: CPU of each detector by event type, on simulated rows.

The setting `bundle` names the models; without it a small bundle is trained first and kept. Rows are
those of the simulated world the bundle was trained in, after its warm state. Counted is the CPU of
this thread, so that other work on the machine disturbs little; each batch is another part of the
rows, so that no processor learns them by heart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.history import Pass
    from dataflows.settings import Settings
    from features.batch import FeatureMatrix
    from models.base import TrainingSet
    from models.bundle import Bundle, EventModels

__all__ = ["add_parser", "against_torch", "gate_cost", "measure", "run"]

FOLDER = Path(".waxwing/bench/models")
"""Where the small bundle lies."""

SMALL: Mapping[str, Any] = {"sim_events_per_s": 1.0, "sim_cards": 10_000}
"""World of the small bundle. Chosen: two of its days are trained on in about a minute."""

SMALL_DAYS = 2.0
"""History of the small bundle; the second half is learned from, and sees every hour."""

BATCHES = (1_000, 4_096)
"""Rows of a batch: what a round at a modest rate has of a type, and at a high one."""

ROWS = 5 * BATCHES[-1]
"""Rows of each event type; chosen: five of the larger batches, 16 MB of the widest features."""

PASSES = 2
"""Times all rows are scored; chosen: ten measurements of the larger batches."""

FPR = 0.003
"""Share of genuine events at which recall with and without the gate is compared; the project's
goal."""

TORCH_ROWS = 1_000
"""Rows of a batch on which the transformer's kernel is held against torch."""

Rows = Mapping[str, "TrainingSet"]


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser("models", help="us a row of each detector", description=__doc__)
    settings_arguments(parser)
    parser.add_argument("--train", action="store_true", help="train the small bundle anew")
    parser.add_argument("--json", metavar="P", help="write the figures; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.report import write_json
    from dataflows.settings import load
    from features.catalog import catalog
    from models.bundle import Bundle

    given = overrides_of(args)
    small = {**SMALL, "bundle": FOLDER / "bundle"} if "bundle" not in given else {}
    settings = load(args.config, **(small | given))
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    if small:
        _prepare(settings, args.train, say)
    bundle = Bundle.load(settings.bundle, catalog())
    rows, attacked = _rows(settings, bundle, say)
    report = {"bundle": bundle.id, **measure(bundle, rows)}
    report["gate"] = gate_cost(bundle, rows, attacked)
    report["transformer"] = against_torch(bundle, rows)
    if args.json != "-":
        _print(report)
    write_json(args.json, report)
    return 0


def measure(bundle: Bundle, rows: Rows) -> dict[str, Any]:
    """The figures, in the keys of docs/json.md.

    Parameters
    ----------
    rows : event type -> rows to score, as many as there are batches for
    """
    from features.simulate.mix import TYPE_SHARES
    from models.scoring import Scorer

    scorer = Scorer(bundle, bundle.detectors)
    scorer.warm_up()
    report: dict[str, Any] = {"gate_opened": {}, "us_per_row": {}, "us_per_event": {}}
    events = {name: one for name, one in rows.items() if name in bundle.models}
    for name, one in events.items():
        scorer.score(one.features, {})
        count = scorer.gates[name]
        report["gate_opened"][name] = round(count.opened / max(count.rows, 1), 4)
        report["us_per_row"][name] = _of_type(scorer, bundle.models[name], one.features)
    of_all = sum(TYPE_SHARES[name] for name in events)
    for stage in (*bundle.detectors, "score"):
        report["us_per_event"][stage] = {
            f"batch_{size}": round(
                sum(
                    TYPE_SHARES[name] / of_all * _passed(report, bundle, name, stage)
                    * report["us_per_row"][name][stage][f"batch_{size}"]["median"]
                    for name in events
                    if stage in report["us_per_row"][name]
                ),
                3,
            )
            for size in BATCHES
        }  # fmt: skip
    return report


def gate_cost(bundle: Bundle, rows: Rows, attacked: Rows) -> dict[str, Any]:
    """Recall with the gate as it is, and with one that is open for every row.

    Both are taken where the same share of genuine rows, `FPR`, is flagged; event types weigh as in
    the simulator's mix.

    Parameters
    ----------
    rows : event type -> plain rows
    attacked : event type -> anomalous rows; others among them are left out
    """
    from dataclasses import replace

    import numpy as np

    from features.simulate.mix import TYPE_SHARES
    from models.evaluate import curve_of
    from models.scoring import Scorer

    opened = {name: replace(one, gate=-np.inf) for name, one in bundle.models.items()}
    found: dict[str, Any] = {"attack_events": 0}
    for key, models in (("recall", bundle.models), ("recall_open", opened)):
        scorer = Scorer(replace(bundle, models=models), bundle.detectors)
        scores, odd, weight = [], [], []
        for name in (name for name in rows if name in models):
            for one, anomalous in ((rows[name], False), (attacked.get(name), True)):
                if one is None:
                    continue
                at = np.flatnonzero((one.label == 1) == anomalous)
                if not len(at):
                    continue
                said = scorer.decide(scorer.score(_part(one, at), {}), {})
                scores.append(said.score.max(axis=1, initial=0.0))
                odd.append(np.full(len(at), anomalous))
                share = 1.0 if anomalous else TYPE_SHARES[name] / len(at)
                weight.append(np.full(len(at), share))
        which = np.concatenate(odd)
        found["attack_events"] = int(which.sum())
        curve = curve_of(np.concatenate(scores), which, np.concatenate(weight))
        found[key] = round(curve.recall_at(FPR), 4)
    return found | {"lost": round(found["recall_open"] - found["recall"], 4)}


def against_torch(bundle: Bundle, rows: Rows) -> dict[str, Any]:
    """The transformer by its kernel and by torch, on one thread, batch by batch in turn.

    Returns
    -------
    `kernel_us` and `torch_us`, us of CPU a row, medians; `difference_max` of the raw numbers,
    relative to 1 or to the number, whichever is larger; empty where no event type has one
    """
    import numpy as np
    import torch

    from models.detectors import transformer
    from models.scoring import take_rows

    kernel_s, torch_s, apart = [], [], 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, models in bundle.models.items():
            model = models.detectors.get("transformer")
            if not isinstance(model, transformer.Model) or name not in rows:
                continue
            parameters = {k: torch.from_numpy(np.array(v)) for k, v in model.save()[0].items()}
            for start in range(0, len(rows[name]) - TORCH_ROWS + 1, TORCH_ROWS):
                part = take_rows(rows[name].features, np.arange(start, start + TORCH_ROWS))
                if part.sequence is None or not parameters:
                    continue
                begun = time.thread_time()
                ours = model.raw(part)
                kernel_s.append(time.thread_time() - begun)
                sequence = torch.from_numpy(np.ascontiguousarray(part.sequence))
                begun = time.thread_time()
                with torch.inference_mode():
                    theirs = transformer.forward(parameters, sequence)
                torch_s.append(time.thread_time() - begun)
                known = model.raw_of(*(one.numpy().astype(np.float64) for one in theirs))
                gap = np.abs(ours - known) / np.maximum(np.abs(known), 1.0)
                apart = max(apart, float(gap.max()))
    finally:
        torch.set_num_threads(threads)
    if not kernel_s:
        return {}
    us = 1e6 / TORCH_ROWS
    return {
        "kernel_us": round(median(kernel_s) * us, 3),
        "torch_us": round(median(torch_s) * us, 3),
        "difference_max": float(f"{apart:.3g}"),
    }


def _part(rows: TrainingSet, at: Any) -> FeatureMatrix:
    """Features of some rows."""
    from models.scoring import take_rows

    return take_rows(rows.features, at)


def _passed(report: Mapping[str, Any], bundle: Bundle, event: str, stage: str) -> float:
    """Share of the rows of a type that a detector sees."""
    found = bundle.models[event].detectors.get(stage)
    return float(report["gate_opened"][event]) if found is not None and found.expensive else 1.0


def _of_type(scorer: Any, models: EventModels, features: FeatureMatrix) -> dict[str, Any]:
    """Figures of one event type: each detector alone on every row, then the whole of scoring."""
    seen = models.view.apply(features)
    found = {
        name: _timed(detector.raw, seen) for name, detector in sorted(models.detectors.items())
    }
    found["score"] = _timed(lambda part: scorer.score(part, {}), features)
    return found


def _timed(work: Callable[[FeatureMatrix], Any], features: FeatureMatrix) -> dict[str, Any]:
    """us a row of CPU, best and median, by size of batch."""
    import numpy as np

    from models.scoring import take_rows

    found = {}
    for size in BATCHES:
        took = []
        for start in list(range(0, max(len(features) - size, 0) + 1, size)) * PASSES:
            part = take_rows(features, np.arange(start, min(start + size, len(features))))
            begun = time.thread_time()
            work(part)
            took.append((time.thread_time() - begun) / max(len(part), 1) * 1e6)
        found[f"batch_{size}"] = {"best": round(min(took), 3), "median": round(median(took), 3)}
    return found


def _prepare(settings: Settings, anew: bool, say: Callable[[str], None]) -> None:
    """Train the small bundle where there is none that serves."""
    from dataflows.training import is_trained, train_simulated

    if anew or is_trained(settings) is not None:
        train_simulated(settings, say, SMALL_DAYS)


def _rows(settings: Settings, bundle: Bundle, say: Callable[[str], None]) -> tuple[Rows, Rows]:
    """Rows of the world the bundle was trained in, from its warm state on, and the anomalous ones
    of a day with many attacks."""
    import numpy as np

    from dataflows.evaluation import load_warm
    from dataflows.history import Collector, run_history
    from dataflows.sources.simulator import time_us_of
    from dataflows.training import ATTACK_SHARE, simulated, warm_folder
    from features.catalog import catalog
    from features.engine import warm_up
    from features.simulate.mix import TYPE_SHARES
    from models.train import select_rows

    settings = settings.model_copy(update=bundle.training.get("world", {}))
    cat = catalog()
    warm_up(cat)
    start_us = time_us_of(settings.sim_start)

    def begin() -> Pass | None:
        found = load_warm(settings.warm_state or warm_folder(settings), settings, cat)
        return found if found is not None and found.until_us == start_us else None

    if begin() is None:
        say("no warm state up to sim_start: rows of a cold start, which the gate may not be for")
    share = min(TYPE_SHARES[name] for name in bundle.models if name in TYPE_SHARES)
    end_us = start_us + round(1.1e6 * ROWS / share / settings.sim_events_per_s)
    found: list[Rows] = []
    for anomalous, kept in ((settings.sim_anomaly_share, 1.0), (ATTACK_SHARE, 0.0)):
        collector = Collector(cat, 0, kept)
        seed = settings.sim_seed + len(found)
        reader = simulated(settings, seed, start_us, end_us, anomalous)
        run_history(settings, cat, reader, collector, begin=begin())
        found.append(collector.sets())
    plain = {
        name: select_rows(one, np.arange(min(ROWS, len(one))))
        for name, one in found[0].items()
        if name in TYPE_SHARES
    }
    return plain, found[1]


def _print(report: Mapping[str, Any]) -> None:
    """The figures for a person."""
    print(f"bundle {report['bundle']}, us a row of CPU, best and median")
    sizes = [f"batch_{size}" for size in BATCHES]
    print(f"{'':28}" + "".join(f"{name:>16}" for name in sizes))
    for event, stages in report["us_per_row"].items():
        print(f"{event} (the gate opens for {report['gate_opened'][event]:.1%})")
        for stage, by_size in stages.items():
            cells = (f"{by_size[n]['best']:.2f}, {by_size[n]['median']:.2f}" for n in sizes)
            print(f"  {stage:26}" + "".join(f"{cell:>16}" for cell in cells))
    print("all, us an event, the expensive ones at their gates")
    for stage, by_size in report["us_per_event"].items():
        print(f"  {stage:26}" + "".join(f"{by_size[n]:>16.2f}" for n in sizes))
    gate, torch = report["gate"], report["transformer"]
    print(
        f"recall at {FPR:.1%} false positives {gate['recall']:.2%}, with the gate open for all"
        f" {gate['recall_open']:.2%}, of {gate['attack_events']:,} attack events"
    )
    if torch:
        print(
            f"transformer, us a row: kernel {torch['kernel_us']:.2f}, torch"
            f" {torch['torch_us']:.2f}; they differ by {torch['difference_max']:.1g} at the most"
        )
