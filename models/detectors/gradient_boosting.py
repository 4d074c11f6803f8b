"""Gradient boosted trees: what known anomalies looked like, and what is like them.

LightGBM grows the trees; a kernel of ours evaluates them, since the library costs 10 us a row
(measured, 200 trees of 31 leaves), ours one. Without labels there is nothing to learn, and the
detector stays out.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from features.errors import BundleError, ShapeError
from features.jit import njit
from models.base import Arrays, TrainingSet
from models.detectors._deviation import sides
from models.detectors._options import plain, read_options

__all__ = ["Model"]

OPTIONS: Mapping[str, tuple[float, float, float]] = {
    "rounds": (200, 1, 1000),
    "leaves": (31, 2, 32),
    "learning_rate": (0.05, 0.001, 1.0),
    "weight": (0.0, 0.0, 1.0),
    "rows": (80_000, 100, 10_000_000),
    "monotone": (0, 0, 1),
}
"""Option -> default, lowest, highest. `rounds` is the most trees, `leaves` at most LEAVES_MAX,
`rows` the most genuine rows, `weight` the power of the ratio of genuine to anomalous rows that an
anomaly counts for: measured, mean recall at 0.3 % of the four event types on another seed is 0.95
with 0, 0.93 with 0.5, 0.90 with 1. `monotone` holds each feature to the side that its declaration
calls odd: measured on four training weeks of the Fraud Detection Handbook before those that are
judged, 2026-11-30, AUC ROC, average precision and card precision are 0.891, 0.728, 0.291 without,
0.887, 0.725, 0.290 with it, 0.885, 0.726, 0.291 with it for what is known of frauds alone; so it is
off."""

ROUNDS_MIN = 60
"""Trees where early stopping would keep fewer; measured: the last fifth of the time may hold two or
three attacks only, and 12 trees lost a third of the recall on app_log."""

PATIENCE = 40
"""Trees without a gain on the held-out rows before growing stops; chosen."""

HELD_OUT = 0.2
"""Share of the time at the end that early stopping is judged by; chosen."""

ODD_MIN = 5
"""Anomalies that either side of the held-out time must have for early stopping; chosen."""

LEAVES_MAX = 32
"""Most leaves of a tree; a row's leaf is found by a word with a bit for each."""

BLOCK = 64
"""Rows evaluated together, so that each node is a handful of vector instructions; chosen. Measured,
200 trees on payments: 0.9 us a row, 0.8 with 128; with 32 the compiler makes none, and it is 3.4.
A batch of one costs as much as one of 64."""

ALL, ONE = np.uint32(0xFFFFFFFF), np.uint32(1)

SEQUENCE, SHIFT = np.uint32(0x077CB531), np.uint32(27)
"""Five bits after each single bit of a word, by a product and a shift, all different.

Source: Leiserson, Prokop, Randall, Using de Bruijn sequences to index a 1 in a word, 1998."""

MOST = np.finfo(np.float64).max
"""Stands for infinity among values and thresholds, so that NaN can be beyond."""


@njit
def _walk(values, source, fill, first, column, limit, keep, leaf, out):
    """Sum of the leaves' values over all trees.

    No row walks: each node of a tree is compared with all rows of a block, and where a row does not
    go to the first child, the leaves below that child are struck out of the row's word. The lowest
    bit that is left is the leaf the row comes to.

    Parameters
    ----------
    values : float64 (n, F), NaN where not known
    source : intp (C,), the features that are looked at
    fill : float64 (C,), what stands for NaN there: -inf, first child, or inf, second child
    first : intp (trees + 1,), first node of each tree
    column : intp (nodes,), place in `source`; there are no nodes for leaves
    limit : float64 (nodes,); x <= limit goes to the first child
    keep : uint32 (nodes,), leaves that are not below the first child
    leaf : float64 (trees, LEAVES_MAX), values of leaves, in the order of SEQUENCE
    out : float64 (n,)

    Source: Lucchese et al., QuickScorer, 2015, and its vector form V-QuickScorer, 2016; deviates in
    that all nodes are compared, not only those up to the row's value.
    """
    block = np.zeros((len(source), BLOCK))
    left = np.empty(BLOCK, np.uint32)
    place = np.empty(BLOCK, np.uint32)
    total = np.empty(BLOCK)
    for start in range(0, values.shape[0], BLOCK):
        rows = min(BLOCK, values.shape[0] - start)
        for r in range(rows):
            for c in range(len(source)):
                x = values[start + r, source[c]]
                block[c, r] = min(x, MOST) if x == x else fill[c]
        total[:] = 0.0
        for t in range(len(first) - 1):
            left[:] = ALL
            for k in range(first[t], first[t + 1]):
                x, most, kept = block[column[k]], limit[k], keep[k]
                for r in range(BLOCK):
                    left[r] = left[r] & (kept if x[r] > most else ALL)
            for r in range(BLOCK):
                lowest = left[r] & (~left[r] + ONE)
                place[r] = ((lowest * SEQUENCE) & ALL) >> SHIFT
            for r in range(BLOCK):
                total[r] += leaf[t, place[r]]
        for r in range(rows):
            out[start + r] = total[r]


class Model:
    """Boosted trees on the labels there are; the raw score is the log-odds of an anomaly.

    Options: `rounds`, `leaves`, `learning_rate`, `weight`, `rows`, and `monotone`: 1 keeps more of
    a feature whose high end is odd from ever lowering the score (or less, where the low end is).

    Parameters
    ----------
    text : LightGBM's own text model; empty where there were no labels to learn from
    width : features of a row

    Source: Ke et al., LightGBM, 2017.
    """

    name: ClassVar[str] = "gradient_boosting"
    expensive: ClassVar[bool] = False
    learns_labels: ClassVar[bool] = True

    def __init__(self, text: str, width: int) -> None:
        self._text, self._width = text, width
        self._trees = _Trees.parse(text)

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """Learn anomalies from rows whose label is known; both labels are needed."""
        chosen = read_options(cls.name, options, OPTIONS)
        odd, usual = np.flatnonzero(train.label == 1), np.flatnonzero(train.label == 0)
        if not len(odd) or not len(usual):
            return cls("", train.features.values.shape[1])
        usual = np.random.default_rng(seed).permutation(usual)[: int(chosen["rows"])]
        rows = np.sort(np.concatenate((odd, usual)))
        values = np.ascontiguousarray(train.features.values[rows], np.float64)
        label = train.label[rows].astype(np.float64)
        side = sides(train.features) if chosen["monotone"] else None
        text = _grow(values, label, train.time_us[rows], seed, chosen, side)
        return cls(text, train.features.values.shape[1])

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), log-odds; NaN where the model had no labels to learn from."""
        if features.values.shape[1] != self._width:
            raise ShapeError(
                f"features of {features.event_type!r}: expected {self._width} as in training,"
                f" got {features.values.shape[1]}; train again"
            )
        if not self._text:
            return np.full(len(features), np.nan)
        values = plain(features.values, np.float64)
        return self._trees.sums(values)

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """LightGBM's text model as bytes; the header says `no_labels` where there is none."""
        text = np.frombuffer(self._text.encode(), np.uint8).copy()
        return {"model": text}, {"no_labels": not self._text, "width": self._width}

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """The model that `save` wrote; LightGBM is not needed."""
        text = np.asarray(arrays["model"], np.uint8).tobytes().decode()
        return cls(text, int(cast(int, header["width"])))


def _grow(
    values: Float64,
    label: Float64,
    time_us: npt.NDArray[np.int64],
    seed: int,
    chosen: Mapping[str, float],
    side: npt.NDArray[np.int8] | None,
) -> str:
    """Find the number of trees on the end of the time, grow that many on all; the text model.

    Parameters
    ----------
    side : int8 (F,), 1 where the score may only rise with the feature, -1 only fall; None is free
    """
    import lightgbm

    odd = float(label.sum())
    parameters: dict[str, Any] = {
        "objective": "binary",
        "metric": "average_precision",
        "num_leaves": int(chosen["leaves"]),
        "learning_rate": chosen["learning_rate"],
        "min_data_in_leaf": 20,
        "lambda_l2": 1.0,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "max_bin": 127,
        "scale_pos_weight": ((len(label) - odd) / odd) ** chosen["weight"],
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "seed": seed % (1 << 31),
        "verbosity": -1,
    }
    if side is not None:
        parameters["monotone_constraints"] = side.tolist()
    rounds = int(chosen["rounds"])
    late = time_us > time_us[0] + (1.0 - HELD_OUT) * (time_us[-1] - time_us[0])
    if label[late].sum() >= ODD_MIN and label[~late].sum() >= ODD_MIN:
        early = lightgbm.Dataset(values[~late], label[~late])
        judge = lightgbm.Dataset(values[late], label[late], reference=early)
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        tried = lightgbm.train(parameters, early, rounds, valid_sets=[judge], callbacks=[stop])
        rounds = min(rounds, max(ROUNDS_MIN, tried.best_iteration))
    grown = lightgbm.train(parameters, lightgbm.Dataset(values, label), rounds)
    return str(grown.model_to_string(num_iteration=-1, importance_type="gain"))


@dataclass(frozen=True, slots=True)
class _Trees:
    """A model's trees as arrays, see `_walk`."""

    arrays: tuple[npt.NDArray[Any], ...]

    def sums(self, values: Float64) -> Float64:
        """float64 (n,), sum over the trees."""
        out = np.zeros(len(values))
        cast(Callable[..., Any], _walk)(values, *self.arrays, out)
        return out

    @classmethod
    def parse(cls, text: str) -> _Trees:
        """Read LightGBM's text model.

        Raises
        ------
        BundleError : categorical splits or more leaves than a word has bits, which no training of
            ours makes
        """
        trees = [_tree(part) for part in text.split("\nTree=")[1:]]
        first = np.cumsum([0, *(len(nodes[0]) for nodes, _ in trees)])
        columns = [np.concatenate([n[k] for n, _ in trees] or [np.zeros(0)]) for k in range(4)]
        feature, unknown, limit, keep = columns
        # A feature whose NaN goes to the first child here and to the second there is two columns.
        seen, column = np.unique(2 * feature + unknown, return_inverse=True)
        arrays = (
            (seen // 2).astype(np.intp),
            np.where(seen % 2 == 1, np.inf, -np.inf),
            first.astype(np.intp),
            column.astype(np.intp),
            limit.astype(np.float64),
            keep.astype(np.uint32),
            np.array([leaf for _, leaf in trees], np.float64).reshape(-1, LEAVES_MAX),
        )
        return cls(arrays)


def _tree(part: str) -> tuple[tuple[npt.NDArray[Any], ...], Float64]:
    """One tree: feature, whether NaN goes to the second child, limit and `keep` of its nodes; the
    values of its leaves as `_walk` finds them.
    """
    lines = (line.partition("=") for line in part.split("\n\n")[0].splitlines()[1:])
    cells = {name: rest.split() for name, _, rest in lines}
    leaves = int(cells["num_leaves"][0])
    if int(cells["num_cat"][0]):
        raise BundleError("gradient_boosting: the model splits by categories; train again")
    if leaves > LEAVES_MAX:
        raise BundleError(
            f"gradient_boosting: a tree of {leaves} leaves, expected at most {LEAVES_MAX};"
            " train again"
        )
    inner = range(leaves - 1)  # a tree of one leaf says nothing of nodes

    def column(name: str, kind: type[Any]) -> npt.NDArray[Any]:
        return np.array([cells[name][k] for k in inner]).astype(kind)

    threshold, kind = column("threshold", np.float64), column("decision_type", np.int64)
    # Bit 1: NaN goes to the first child. Bits 2 and 3: 2 if NaN is known as such, else it is 0.
    as_such, to_first = (kind >> 2) & 3 == 2, kind & 2 != 0
    unknown = np.where(as_such, ~to_first, threshold < 0.0).astype(np.int64)
    order, keep = _order(column("left_child", np.int64), column("right_child", np.int64))
    values = np.array(cells["leaf_value"], np.float64)[order]
    leaf = np.zeros(LEAVES_MAX)
    leaf[[((int(SEQUENCE) << k) & int(ALL)) >> int(SHIFT) for k in range(leaves)]] = values
    return (column("split_feature", np.int64), unknown, np.minimum(threshold, MOST), keep), leaf


def _order(
    first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> tuple[list[int], npt.NDArray[np.uint32]]:
    """Leaves from the first to the last, and of each node those not below its first child, as bits.

    Parameters
    ----------
    first, second : int64 (nodes,), children; leaf k is ~k
    """
    order: list[int] = []
    keep = np.zeros(len(first), np.uint32)

    def descend(node: int) -> None:
        if node < 0:
            order.append(~node)
            return
        start = len(order)
        descend(int(first[node]))
        below = (1 << len(order)) - (1 << start)
        keep[node] = int(ALL) ^ below
        descend(int(second[node]))

    descend(0 if len(first) else ~0)
    return order, keep
