"""Isolation forest: rows that few random cuts set apart are strange; needs no labels.

scikit-learn grows the trees; a kernel of ours walks them, because at the batches of a round the
library spends most of its time outside the trees (measured: 5.1 us a row at 4,096 rows, 26 at 256).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from features.errors import ShapeError
from features.jit import njit
from models.base import Arrays, TrainingSet
from models.detectors._deviation import sides
from models.detectors._options import plain, read_options

__all__ = ["Model", "grow", "prepare"]

OPTIONS: Mapping[str, tuple[float, float, float]] = {
    "trees": (100, 1, 1000),
    "samples": (4096, 2, 4096),
    "rows": (30_000, 2, 1_000_000),
}
"""Option -> default, lowest, highest. The paper grows a tree on 256 rows; measured with 100 trees,
mean recall at 0.3 % of the four event types on two other seeds: 256 rows 0.55, 1,024 rows 0.62,
2,048 rows 0.68, 4,096 rows 0.71; a row of payments costs 1.3 us with 256 and 2.5
with 4,096. Trees draw from 30,000 rows."""

BLOCK = 64
"""Rows walked together, so that their waits for memory overlap; chosen: their values fit a
processor's second cache."""

HUGE = 1e30
"""Values are cut to this: scikit-learn works in float32 and refuses what is larger."""


ROOT, PLACE = np.uint64(1), np.uint64(0xFFFFFFFF)
"""The first node; the bits of a node that say which value it looks at. Unsigned, so that no index
is looked at for counting from the end."""

INT32_MIN = np.int32(-(1 << 31))


@njit
def _walk(values, fill, low, high, node, leaf, divisor, out):
    """Anomaly scores of rows, 2 ** -(mean path length / usual path length).

    A block of rows goes down a tree level by level: the waits of 64 rows for memory overlap. Values
    and thresholds are integers in the same order (see `_nodes`), a node is one number, and whether
    a row goes to the second child is one comparison with it.

    Parameters
    ----------
    values : float64 (n, F)
    fill, low, high : float64 (F,), what stands for NaN, and the bounds values are cut to
    node : int64 (trees, 2**depth), see `_nodes`; heap order, children of i are 2 i and 2 i + 1
    leaf : float64 (trees, 2**depth), path length of a row that ends there
    divisor : usual path length times trees
    out : float64 (n,)
    """
    n, width = values.shape
    leaves = np.uint64(leaf.shape[1])
    depth = 0
    while (1 << depth) < leaf.shape[1]:
        depth += 1
    block = np.zeros((width, BLOCK), np.float32)
    key = np.zeros(width * BLOCK, np.int64)
    at = np.empty(BLOCK, np.uint64)
    total = np.empty(BLOCK)
    for start in range(0, n, BLOCK):
        rows = min(BLOCK, n - start)
        for r in range(rows):
            for j in range(width):
                x = values[start + r, j]
                x = x if x == x else fill[j]
                block[j, r] = np.float32(min(max(x, low[j]), high[j])) + np.float32(0.0)
        bits = block.view(np.int32).ravel()
        for i in range(len(bits)):
            ordered = bits[i] if bits[i] >= 0 else INT32_MIN - bits[i]
            key[i] = np.int64(ordered) * (1 << 32)
        total[:] = 0.0
        for t in range(len(node)):
            nodes, lengths = node[t], leaf[t]
            at[:] = ROOT
            for _ in range(depth):
                for r in range(BLOCK):
                    k = at[r]
                    cut = nodes[k]
                    second = key[(np.uint64(cut) & PLACE) + np.uint64(r)] > cut
                    at[r] = k + k + np.uint64(second)
            for r in range(BLOCK):
                total[r] += lengths[at[r] - leaves]
        for r in range(rows):
            out[start + r] = 2.0 ** (-total[r] / divisor)


class Model:
    """Isolation forest over all features.

    Options: `trees`, `samples` (rows a tree is grown on), `rows` (rows they are drawn from).

    A value that is not known is the median of training, and so is a value on the side that the
    catalogue does not call odd: without that the forest sets apart the very quiet rows too.

    Parameters
    ----------
    arrays : fill, low, high and leaf of `_walk`, feature and threshold of `_nodes`
    divisor : usual path length times trees

    Source: Liu, Ting, Zhou, Isolation Forest, 2008; deviates in the rows a tree is grown on and in
    the side, measured on a simulated week.
    """

    name: ClassVar[str] = "isolation_forest"
    expensive: ClassVar[bool] = False

    def __init__(self, arrays: Arrays, divisor: float) -> None:
        self._arrays, self._divisor = arrays, divisor
        self._node = _nodes(arrays["feature"], arrays["threshold"])

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """Grow trees on rows that are not known to be anomalous."""
        chosen = {k: int(v) for k, v in read_options(cls.name, options, OPTIONS).items()}
        usual = np.flatnonzero(train.label <= 0)
        if not len(usual):
            usual = np.arange(len(train))
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(usual)[: chosen["rows"]])
        fill, low, high = _bounds(train.features, usual)
        arrays: Arrays = {"fill": fill, "low": low, "high": high}
        if not len(rows):
            return cls(arrays | _heaps([], 0), 1.0)
        forest = grow(
            prepare(train.features.values[rows], fill, low, high),
            chosen["trees"],
            chosen["samples"],
            int(rng.integers(1 << 32)),
        )
        depth = max(tree.tree_.max_depth for tree in forest.estimators_)
        usual_length = float(_path_length(np.array([forest.max_samples_]))[0])
        divisor = max(usual_length, 1e-300) * len(forest.estimators_)
        return cls(arrays | _heaps(forest.estimators_, depth), divisor)

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), the paper's anomaly score: about 0.5 is usual, towards 1 is strange."""
        a = self._arrays
        if features.values.shape[1] != len(a["fill"]):
            raise ShapeError(
                f"features of {features.event_type!r}: expected {len(a['fill'])} as in training,"
                f" got {features.values.shape[1]}; train again"
            )
        out = np.zeros(len(features))
        cast(Callable[..., Any], _walk)(
            plain(features.values, np.float64),
            *(a[k] for k in ("fill", "low", "high")),
            self._node,
            a["leaf"],
            self._divisor,
            out,
        )
        return out

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """The trees as arrays."""
        return dict(self._arrays), {"divisor": self._divisor}

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """The model that `save` wrote; scikit-learn is not needed."""
        found: Arrays = {
            "feature": plain(arrays["feature"], np.int32),
            "threshold": plain(arrays["threshold"], np.float32),
        }
        for name in ("fill", "low", "high", "leaf"):
            found[name] = plain(arrays[name], np.float64)
        return cls(found, float(cast(float, header["divisor"])))


def _nodes(feature: npt.NDArray[Any], threshold: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Nodes as `_walk` reads them, the threshold above the place of the feature in a block.

    A value's number has nothing but zeros below: it is larger than the node's if and only if the
    value is larger than the threshold.

    Parameters
    ----------
    feature : int32 (trees, 2**depth - 1), heap order
    threshold : float32, same shape; x <= threshold goes to the first child
    """
    node = np.zeros((len(feature), feature.shape[1] + 1), np.int64)  # there is no node 0
    bits = (threshold.astype(np.float32) + np.float32(0.0)).view(np.int32)  # -0.0 is 0.0
    ordered = np.where(bits >= 0, bits, INT32_MIN - bits).astype(np.int64)
    node[:, 1:] = (ordered << 32) | (feature.astype(np.int64) * BLOCK)
    return node


def prepare(values: Float64, fill: Float64, low: Float64, high: Float64) -> npt.NDArray[np.float32]:
    """float32 (n, F), what the trees are grown on: gaps filled, values cut to their odd side."""
    cut = np.clip(np.where(np.isnan(values), fill, values), low, high)
    return np.asarray(cut, np.float32)


def grow(values: npt.NDArray[np.float32], trees: int, samples: int, seed: int) -> Any:
    """scikit-learn's forest, on one thread."""
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(
        n_estimators=trees,
        max_samples=min(samples, len(values)),
        contamination="auto",
        max_features=1.0,
        bootstrap=False,
        n_jobs=1,
        random_state=seed,
    )
    return forest.fit(values)


def _bounds(
    features: FeatureMatrix, rows: npt.NDArray[np.intp]
) -> tuple[Float64, Float64, Float64]:
    """Median of each column, 0 where nothing is known, and the bounds of its odd side."""
    side = sides(features)
    fill = np.zeros(features.values.shape[1])
    for j in range(len(fill)):
        column = features.values[rows, j]
        known = column[np.isfinite(column)]
        if len(known):
            fill[j] = np.clip(np.median(known), -HUGE, HUGE)
    return fill, np.where(side > 0, fill, -HUGE), np.where(side < 0, fill, HUGE)


def _path_length(rows: npt.NDArray[Any]) -> Float64:
    """Usual path length in a tree of so many rows (equation 1 of the paper)."""
    n = np.asarray(rows, np.float64)
    large = np.maximum(n, 3.0)
    usual = 2.0 * (np.log(large - 1.0) + np.euler_gamma) - 2.0 * (large - 1.0) / large
    length: Float64 = np.where(n <= 1.0, 0.0, np.where(n <= 2.0, 1.0, usual))
    return length


def _heaps(trees: list[Any], depth: int) -> Arrays:
    """Trees in heap order, all of one depth; a leaf above it hands all rows to its first child."""
    inner = (1 << depth) - 1
    feature = np.zeros((len(trees), inner), np.int32)
    threshold = np.full((len(trees), inner), np.inf, np.float32)
    leaf = np.zeros((len(trees), inner + 1))
    for t, grown in enumerate(trees):
        tree = grown.tree_
        node = np.zeros(1, np.int64)
        final = np.zeros(1)
        ended = np.zeros(1, bool)
        for level in range(depth + 1):
            at_leaf = ~ended & (tree.children_left[node] < 0)
            final[at_leaf] = level + _path_length(tree.n_node_samples[node[at_leaf]])
            ended |= at_leaf
            if level == depth:
                break
            here = slice((1 << level) - 1, (1 << (level + 1)) - 1)
            feature[t, here] = np.where(ended, 0, tree.feature[node])
            threshold[t, here] = np.where(ended, np.inf, _float32_below(tree.threshold[node]))
            left = np.where(ended, node, tree.children_left[node])
            right = np.where(ended, node, tree.children_right[node])
            node = np.stack((left, right), axis=1).ravel()
            final, ended = np.repeat(final, 2), np.repeat(ended, 2)
        leaf[t] = final
    return {"feature": feature, "threshold": threshold, "leaf": leaf}


def _float32_below(x: Float64) -> npt.NDArray[np.float32]:
    """The largest float32 not above x: a float32 is above both or neither."""
    near = x.astype(np.float32)
    return np.where(near.astype(np.float64) > x, np.nextafter(near, np.float32(-np.inf)), near)
