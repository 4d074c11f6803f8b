"""Gradient boosted trees: what known anomalies looked like, and what is like them.

LightGBM grows the trees; a kernel of ours walks them, since the library costs 10 us a row
(measured, 200 trees of 31 leaves). Without labels there is nothing to learn, and the detector stays
out.
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
from models.detectors._options import plain, read_options

__all__ = ["Model"]

OPTIONS: Mapping[str, tuple[float, float, float]] = {
    "rounds": (200, 1, 1000),
    "leaves": (31, 2, 255),
    "learning_rate": (0.05, 0.001, 1.0),
    "weight": (0.0, 0.0, 1.0),
    "rows": (80_000, 100, 10_000_000),
}
"""Option -> default, lowest, highest. `rounds` is the most trees, `rows` the most genuine rows,
`weight` the power of the ratio of genuine to anomalous rows that an anomaly counts for: measured,
mean recall at 0.3 % of the four event types on another seed is 0.95 with 0, 0.93 with 0.5, 0.90
with 1."""

ROUNDS_MIN = 60
"""Trees where early stopping would keep fewer; measured: the last fifth of the time may hold two or
three attacks only, and 12 trees lost a third of the recall on app_log."""

PATIENCE = 40
"""Trees without a gain on the held-out rows before growing stops; chosen."""

HELD_OUT = 0.2
"""Share of the time at the end that early stopping is judged by; chosen."""

ODD_MIN = 5
"""Anomalies that either side of the held-out time must have for early stopping; chosen."""

BLOCK = 64
"""Rows walked together, so that their waits for memory overlap; chosen. Measured: row by row a
model of 60 trees takes 8 us a row instead of 1.3."""


@njit
def _walk(values, root, depth, feature, threshold, child, unknown, value, out):
    """Sum of the leaves' values over all trees.

    Parameters
    ----------
    values : float64 (n, F), NaN where not known
    root, depth : int32 (trees,), first node of each tree and its levels
    feature : int32 (nodes,); a leaf has any feature and itself as both children
    threshold : float64 (nodes,); x <= threshold goes to the first child
    child : int32 (2 * nodes,)
    unknown : uint8 (nodes,), 1 where NaN goes to the second child
    value : float64 (nodes,), of leaves
    out : float64 (n,)
    """
    at = np.empty(BLOCK, np.int32)
    for start in range(0, values.shape[0], BLOCK):
        rows = min(BLOCK, values.shape[0] - start)
        block, total = values[start : start + rows], out[start : start + rows]
        total[:] = 0.0
        for t in range(len(root)):
            at[:] = root[t]
            for _ in range(depth[t]):
                for r in range(rows):
                    k = at[r]
                    x = block[r, feature[k]]
                    second = (x > threshold[k]) | ((x != x) & (unknown[k] == 1))
                    at[r] = child[2 * k + second]
            for r in range(rows):
                total[r] += value[at[r]]


class Model:
    """Boosted trees on the labels there are; the raw score is the log-odds of an anomaly.

    Options: `rounds`, `leaves`, `learning_rate`, `weight`, `rows`.

    Parameters
    ----------
    text : LightGBM's own text model; empty where there were no labels to learn from
    width : features of a row

    Source: Ke et al., LightGBM, 2017.
    """

    name: ClassVar[str] = "gradient_boosting"
    expensive: ClassVar[bool] = False

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
        text = _grow(values, label, train.time_us[rows], seed, chosen)
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
) -> str:
    """Find the number of trees on the end of the time, grow that many on all; the text model."""
    import lightgbm

    odd = float(label.sum())
    parameters = {
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
        BundleError : a model with categorical splits, which no training of ours makes
        """
        trees = [_tree(part) for part in text.split("\nTree=")[1:]]
        sizes = [len(parts[0]) for _, parts in trees]
        root = np.cumsum([0, *sizes])[:-1].astype(np.int32)
        columns = [np.concatenate([p[k] for _, p in trees] or [np.zeros(0)]) for k in range(5)]
        feature, threshold, child, unknown, value = columns
        child = child + np.repeat(root, [2 * size for size in sizes])
        depth = np.array([levels for levels, _ in trees], np.int32)
        arrays = (
            root,
            depth,
            feature.astype(np.int32),
            threshold.astype(np.float64),
            child.astype(np.int32),
            unknown.astype(np.uint8),
            value.astype(np.float64),
        )
        return cls(arrays)


def _tree(part: str) -> tuple[int, list[npt.NDArray[Any]]]:
    """One tree: levels, then the columns of `_walk` from feature to value, inner nodes first."""
    lines = (line.partition("=") for line in part.split("\n\n")[0].splitlines()[1:])
    cells = {name: rest.split() for name, _, rest in lines}
    leaves = int(cells["num_leaves"][0])
    if int(cells["num_cat"][0]):
        raise BundleError("gradient_boosting: the model splits by categories; train again")
    inner = leaves - 1
    value = np.concatenate((np.zeros(inner), np.array(cells["leaf_value"], np.float64)))
    feature = np.zeros(inner + leaves, np.int32)
    threshold = np.full(inner + leaves, np.inf)
    unknown = np.zeros(inner + leaves, np.uint8)
    child = np.repeat(np.arange(inner + leaves), 2)  # a leaf is its own child
    if not inner:
        return 0, [feature, threshold, child, unknown, value]
    feature[:inner] = np.array(cells["split_feature"], np.int32)
    threshold[:inner] = np.array(cells["threshold"], np.float64)
    kind = np.array(cells["decision_type"], np.int32)
    # Bit 1: NaN goes to the first child. Bits 2 and 3: 2 if NaN is known as such, else it is 0.
    as_such, first = (kind >> 2) & 3 == 2, kind & 2 != 0
    unknown[:inner] = np.where(as_such, ~first, threshold[:inner] < 0.0)
    pair = np.array((cells["left_child"], cells["right_child"]), np.int64)
    pair = np.where(pair < 0, inner + ~pair, pair)
    child[: 2 * inner] = pair.T.ravel()
    depth, level = 0, [0]
    while any(node < inner for node in level):
        level = [int(c) for node in level if node < inner for c in pair[:, node]]
        depth += 1
    return depth, [feature, threshold, child, unknown, value]
