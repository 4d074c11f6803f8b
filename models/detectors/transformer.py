"""A small transformer over an entity's last events: what it would have done next, and what it did.

One layer of attention over the 16 newest events. Nobody reads what the layer makes of the older
steps, so only the newest one asks, and no keys or values are computed: a question is compared with
the steps themselves, which is the same sum in another order and cheaper. torch trains;
a kernel of ours scores, and neither saving nor loading knows torch.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from features.errors import ShapeError
from features.jit import njit
from features.sequence import COMMON
from models.base import Arrays, TrainingSet
from models.detectors._options import plain, read_options

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Model", "forward"]

Float32 = npt.NDArray[np.float32]

OPTIONS: Mapping[str, tuple[float, float, float]] = {
    "width": (32, 8, 128),
    "hidden": (32, 4, 256),
    "rows": (60_000, 100, 10_000_000),
    "epochs": (4, 1, 100),
    "learning_rate": (4e-3, 1e-6, 1.0),
}
"""Option -> default, lowest, highest. Measured, mean recall at 0.3 % of the four event types on
another seed: 0.80 with width 16, 0.79 with 32, for 2.4 and 3.1 us a row; of payments alone 0.71 and
0.79, which decided. `rows` is the most rows without an anomaly's label, each seen `epochs` times:
about 6 s on one core."""

HEADS = 2
"""Questions the newest step asks; measured: two find as much as four (recall 0.82 both)."""

BATCH = 512
"""Rows of a step of training; chosen."""

ODD_SHARE = 0.1
"""Share of a training batch that is known anomalies, drawn with repetition; chosen."""

CLASS_WEIGHT = 2.0
"""Weight of the loss of the class against that of the guess; chosen."""

DECAY = 1e-3
"""Weight decay of AdamW; chosen."""

BETA, BETA_SQUARE = 0.9, 0.999
"""How long AdamW remembers the gradient and its square; the paper's."""

WARM = 0.1
"""Share of the steps in which the learning rate rises, before it falls as a cosine; chosen."""

SCALE_LOG_MIN, SCALE_LOG_MAX = -4.0, 2.0
"""Bounds of the log of a guess's own scale: a number that never changed would have none."""

SURPRISE_WEIGHT = 0.1
"""What a standard deviation of surprise adds to the log-odds of the class: what nobody has labelled
counts too. Measured, mean recall of known attacks at 0.3 %: 0.80 without, 0.79 with 0.1, 0.78 with
0.2, 0.76 with 0.4."""

GAP = 2
"""Place of the gap among a step's common numbers, the one of them worth guessing."""

NAMES = (
    *("place", "embed", "ask", "ask_bias", "mix", "mix_bias"),
    *("guess", "past", "past_bias", "inner", "inner_bias", "outer", "outer_bias"),
    *("judge", "judge_bias", "verdict", "verdict_bias"),
)
"""The parameters, in the order of the kernel."""


def forward(p: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Surprise and class of each row, in torch: what training follows and the kernel repeats.

    Parameters
    ----------
    p : parameters by the names of NAMES, see `_start`
    x : (n, S, T), steps oldest first; the first number of a step that was is above 0

    Returns
    -------
    surprise (n,), negative log-likelihood of the newest step's numbers (Laplace), and class (n,),
    log-odds
    """
    import torch

    n = len(x)
    heads, width = p["guess"].shape
    there = x[:, :, 0] > 0
    there[:, -1] = True
    h = torch.relu(x @ p["embed"] + p["place"])  # (n, S, W)
    asked = (h[:, -1] @ p["ask"] + p["ask_bias"]).view(n, heads, width)
    weight = torch.bmm(asked, h.transpose(1, 2)) / width**0.5  # (n, H, S)
    weight = weight.masked_fill(~there[:, None], -torch.inf).softmax(-1)
    seen = torch.bmm(weight, h).reshape(n, heads * width) @ p["mix"] + p["mix_bias"]

    before = h[:, :-1]  # the guess does not see the newest step
    weight = (before @ p["guess"].T).transpose(1, 2) / width**0.5  # (n, H, S - 1)
    # A step that was not has weight 0, also where none was.
    weight = weight.masked_fill(~there[:, None, :-1], -1e30).softmax(-1) * there[:, None, :-1]
    past = torch.bmm(weight, before).reshape(n, heads * width) @ p["past"] + p["past_bias"]
    inner = torch.relu(torch.relu(past) @ p["inner"] + p["inner_bias"])
    outer = inner @ p["outer"] + p["outer_bias"]
    count = outer.shape[1] // 2
    middle, scale_log = outer[:, :count], outer[:, count:].clamp(SCALE_LOG_MIN, SCALE_LOG_MAX)
    truth = torch.cat((x[:, -1, GAP : GAP + 1], x[:, -1, COMMON:]), 1)
    distance = (truth - middle).abs() * torch.exp(-scale_log)
    surprise = (distance + scale_log).sum(1)

    known = torch.cat((seen, h[:, -1], torch.log1p(distance.detach())), 1)
    judged = torch.relu(known @ p["judge"] + p["judge_bias"])
    return surprise, (judged @ p["verdict"] + p["verdict_bias"])[:, 0]


@njit
def _dense(x, matrix, bias, relu, out):
    """out = x matrix + bias, cut at 0 with `relu`; the loop over out inside, so that it is SIMD."""
    zero = np.float32(0.0)
    for j in range(len(out)):
        out[j] = bias[j]
    for k in range(len(x)):
        xk = x[k]
        if xk == zero:
            continue
        for j in range(len(out)):
            out[j] += xk * matrix[k, j]
    if relu:
        for j in range(len(out)):
            out[j] = max(out[j], zero)


@njit
def _read(row, place, embed, there, h, across):
    """The steps of one row as vectors `h`, float32 (S, W), and the same transposed."""
    zero = np.float32(0.0)
    steps = len(place)
    for s in range(steps):
        there[s] = row[s, 0] > zero or s == steps - 1
        if there[s]:
            _dense(row[s], embed, place[s], True, h[s])
        else:
            h[s, :] = zero
    for s in range(steps):
        for k in range(h.shape[1]):
            across[k, s] = h[s, k]


@njit
def _surprise(newest, guessed, distances):
    """Negative log-likelihood of the newest step's numbers, and the log of each one's distance."""
    total = 0.0
    count = len(distances)
    for k in range(count):
        x = newest[GAP if k == 0 else COMMON + k - 1]
        scale_log = guessed[count + k]
        scale_log = min(max(scale_log, np.float32(SCALE_LOG_MIN)), np.float32(SCALE_LOG_MAX))
        distance = abs(x - guessed[k]) * np.exp(-scale_log)
        total += distance + scale_log
        distances[k] = np.log1p(distance)
    return total


@njit
def _attend(asked, h, across, there, steps, weight, out):
    """One head: how much of each of the first `steps` steps is in `out`.

    Parameters
    ----------
    asked : float32 (W,)
    h, across : float32 (S, W) and (W, S), the steps and the same transposed
    there : bool (S,)
    weight : float32 (S,), scratch
    out : float32 (W,), zeros where no step was
    """
    zero = np.float32(0.0)
    width = len(asked)
    root = np.float32(np.sqrt(width))
    weight[:] = zero
    out[:] = zero
    for k in range(width):
        xk = asked[k]
        for s in range(len(weight)):
            weight[s] += xk * across[k, s]
    largest = np.float32(-np.inf)
    for s in range(steps):
        weight[s] /= root
        if there[s]:
            largest = max(largest, weight[s])
    total = zero
    for s in range(steps):
        weight[s] = np.exp(weight[s] - largest) if there[s] else zero
        total += weight[s]
    if total == zero:
        return
    for s in range(steps):
        share = weight[s] / total
        if share == zero:
            continue
        for k in range(width):
            out[k] += share * h[s, k]


@njit
def _score(
    sequence,
    place,
    embed,
    ask,
    ask_bias,
    mix,
    mix_bias,
    guess,
    past,
    past_bias,
    inner,
    inner_bias,
    outer,
    outer_bias,
    judge,
    judge_bias,
    verdict,
    verdict_bias,
    surprise,
    verdicts,
):
    """Surprise and class of each row, row by row; the parameters are those of NAMES.

    Parameters
    ----------
    sequence : float32 (n, S, T)
    surprise, verdicts : float64 (n,), to be filled
    """
    steps, width = place.shape
    heads = guess.shape[0]
    count = len(outer_bias) // 2
    h, across = np.zeros((steps, width), np.float32), np.zeros((width, steps), np.float32)
    there, weight = np.zeros(steps, np.bool_), np.zeros(steps, np.float32)
    asked, attended = np.zeros(heads * width, np.float32), np.zeros(heads * width, np.float32)
    seen, hidden = np.zeros(width, np.float32), np.zeros(width, np.float32)
    inner_out, outer_out = np.zeros(len(inner_bias), np.float32), np.zeros(2 * count, np.float32)
    known, judged = np.zeros(2 * width + count, np.float32), np.zeros(len(judge_bias), np.float32)
    for i in range(len(sequence)):
        row = sequence[i]
        _read(row, place, embed, there, h, across)
        newest = h[steps - 1]
        _dense(newest, ask, ask_bias, False, asked)
        for a in range(heads):
            here = slice(a * width, (a + 1) * width)
            _attend(asked[here], h, across, there, steps, weight, attended[here])
        _dense(attended, mix, mix_bias, False, seen)
        for a in range(heads):
            here = slice(a * width, (a + 1) * width)
            _attend(guess[a], h, across, there, steps - 1, weight, attended[here])
        _dense(attended, past, past_bias, True, hidden)
        _dense(hidden, inner, inner_bias, True, inner_out)
        _dense(inner_out, outer, outer_bias, False, outer_out)
        surprise[i] = _surprise(row[steps - 1], outer_out, known[2 * width :])
        for k in range(width):
            known[k], known[width + k] = seen[k], newest[k]
        _dense(known, judge, judge_bias, True, judged)
        logit = verdict_bias[0]
        for k in range(len(judged)):
            logit += judged[k] * verdict[k, 0]
        verdicts[i] = logit


class Model:
    """Surprise about the newest event given those before, and how like a known anomaly it is.

    Raw is the class's log-odds plus SURPRISE_WEIGHT times the standardised surprise; without labels
    surprise alone, and NaN where rows have no sequence.

    Options: `width`, `hidden`, `rows`, `epochs`, `learning_rate`.

    Parameters
    ----------
    arrays : parameters by name, float32; empty where there were no sequences to learn from
    usual, spread : mean and standard deviation of surprise in training
    classes : whether there were labels to learn a class from

    Source: Vaswani et al., Attention Is All You Need, 2017; deviates in that one position is read
    out, without layer norm, and keys and values are the steps themselves.
    """

    name: ClassVar[str] = "transformer"
    expensive: ClassVar[bool] = True
    sequential: ClassVar[bool] = True

    def __init__(self, arrays: Arrays, usual: float, spread: float, classes: bool) -> None:
        self._arrays, self._usual, self._spread, self._classes = arrays, usual, spread, classes

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """Train on the sequences, on one thread; torch's own seed and threads stay as they were."""
        chosen = read_options(cls.name, options, OPTIONS)
        sequence = train.features.sequence
        if sequence is None or not len(sequence):
            return cls({}, 0.0, 1.0, False)
        rng = np.random.default_rng(seed)
        usual, odd = np.flatnonzero(train.label <= 0), np.flatnonzero(train.label == 1)
        if not len(usual):
            usual, odd = odd, usual
        usual = rng.permutation(usual)[: int(chosen["rows"])]
        parameters = _start(rng, sequence.shape[1], sequence.shape[2], chosen)
        arrays = _train(parameters, sequence, usual, odd, rng, chosen)
        found = cls(arrays, 0.0, 1.0, len(odd) > 0)
        surprise, _ = found._score(sequence[usual])
        found._usual, found._spread = float(surprise.mean()), float(surprise.std()) or 1.0
        return found

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), log-odds with surprise; NaN without a sequence."""
        if features.sequence is None or not self._arrays:
            return np.full(len(features), np.nan)
        steps = len(self._arrays["place"])
        numbers = len(self._arrays["embed"])
        if features.sequence.shape[1:] != (steps, numbers):
            raise ShapeError(
                f"sequence of {features.event_type!r}: expected {steps} steps of {numbers} numbers"
                f" as in training, got {features.sequence.shape[1:]}; train again"
            )
        return self.raw_of(*self._score(features.sequence))

    def raw_of(self, surprise: Float64, verdicts: Float64) -> Float64:
        """float64 (n,), `raw` from surprise and class (n,), as `forward` gives them."""
        raw: Float64 = (surprise - self._usual) / self._spread
        if self._classes:
            raw = verdicts + SURPRISE_WEIGHT * raw
        raw[~np.isfinite(raw)] = np.nan
        return raw

    def _score(self, sequence: Float32) -> tuple[Float64, Float64]:
        """Surprise and class of each row."""
        surprise, verdicts = np.zeros(len(sequence)), np.zeros(len(sequence))
        kernel = cast(Callable[..., Any], _score)
        rows = plain(sequence, np.float32)
        kernel(rows, *(self._arrays[k] for k in NAMES), surprise, verdicts)
        return surprise, verdicts

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """The parameters; what surprise is usual in the header."""
        header: dict[str, object] = {
            "no_sequence": not self._arrays,
            "no_labels": not self._classes,
            "surprise_usual": self._usual,
            "surprise_spread": self._spread,
        }
        return dict(self._arrays), header

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """The model that `save` wrote; torch is not needed."""
        found: Arrays = {}
        if not header["no_sequence"]:
            found = {k: plain(arrays[k], np.float32) for k in NAMES}
        usual, spread = (float(cast(float, header[f"surprise_{k}"])) for k in ("usual", "spread"))
        return cls(found, usual, spread, not header["no_labels"])


def _start(
    rng: np.random.Generator, steps: int, numbers: int, chosen: Mapping[str, float]
) -> dict[str, Float32]:
    """Parameters before training: uniform within 1 / sqrt(inputs), as torch's own layers start."""
    width, hidden = int(chosen["width"]), int(chosen["hidden"])
    count = numbers - COMMON + 1
    shapes = {
        "embed": (numbers, width),
        "ask": (width, HEADS * width),
        "mix": (HEADS * width, width),
        "past": (HEADS * width, width),
        "inner": (width, hidden),
        "outer": (hidden, 2 * count),
        "judge": (2 * width + count, hidden),
        "verdict": (hidden, 1),
    }
    bias = rng.uniform(-(numbers**-0.5), numbers**-0.5, width)
    found = {
        "place": bias + rng.normal(0.0, 0.1, (steps, width)),
        "guess": rng.normal(0.0, 0.3, (HEADS, width)),
    }
    for name, shape in shapes.items():
        bound = shape[0] ** -0.5
        found[name] = rng.uniform(-bound, bound, shape)
        if name != "embed":  # its bias is in `place`
            found[f"{name}_bias"] = rng.uniform(-bound, bound, shape[1])
    return {k: np.asarray(found[k], np.float32) for k in NAMES}


def _train(
    parameters: dict[str, Float32],
    sequence: Float32,
    usual: npt.NDArray[np.intp],
    odd: npt.NDArray[np.intp],
    rng: np.random.Generator,
    chosen: Mapping[str, float],
) -> Arrays:
    """Parameters after training: guess the newest step of usual rows, tell anomalies apart."""
    import torch

    odd_size = max(1, int(BATCH * ODD_SHARE)) if len(odd) else 0
    size = min(BATCH - odd_size, len(usual))
    epochs = int(chosen["epochs"])
    order = np.concatenate([rng.permutation(usual) for _ in range(epochs)])
    steps = len(order) // size
    label = torch.cat((torch.zeros(size), torch.ones(odd_size)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # One vector, so that a step of the optimizer is a handful of operations.
        flat = torch.from_numpy(np.concatenate([v.ravel() for v in parameters.values()]))
        flat.requires_grad_()
        descent = _Descent(flat)
        for step in range(steps):
            done = step / steps
            rate = 0.5 + 0.5 * float(np.cos(np.pi * done))
            rate *= min(1.0, (step + 1) / (WARM * steps))
            rows = order[step * size : (step + 1) * size]
            if odd_size:
                rows = np.concatenate((rows, rng.choice(odd, odd_size)))
            surprise, verdict = forward(_views(flat, parameters), torch.from_numpy(sequence[rows]))
            loss = surprise[:size].mean() / sequence.shape[2]
            if odd_size:
                entropy = torch.nn.functional.binary_cross_entropy_with_logits(verdict, label)
                loss = loss + CLASS_WEIGHT * entropy
            loss.backward()
            descent.step(chosen["learning_rate"] * rate)
        views = _views(flat.detach(), parameters)
        return {name: view.numpy().copy() for name, view in views.items()}
    finally:
        torch.set_num_threads(threads)


def _views(flat: Tensor, shapes: Mapping[str, Float32]) -> dict[str, Tensor]:
    """The parameters as parts of one vector."""
    found, start = {}, 0
    for name, like in shapes.items():
        found[name] = flat[start : start + like.size].view(like.shape)
        start += like.size
    return found


class _Descent:
    """AdamW on one vector.

    torch's own imports torch's compiler with the first optimizer, which takes longer than importing
    all the rest of torch.

    Source: Loshchilov, Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2.
    """

    def __init__(self, vector: Tensor) -> None:
        self._vector = vector
        self._mean = vector.detach().clone().zero_()
        self._square = vector.detach().clone().zero_()
        self._steps = 0

    def step(self, rate: float) -> None:
        """One step down the vector's gradient, which is cleared."""
        gradient, vector = self._vector.grad, self._vector.detach()
        if gradient is None:
            return
        self._steps += 1
        self._mean.mul_(BETA).add_(gradient, alpha=1.0 - BETA)
        self._square.mul_(BETA_SQUARE).addcmul_(gradient, gradient, value=1.0 - BETA_SQUARE)
        root = (self._square / (1.0 - BETA_SQUARE**self._steps)).sqrt_().add_(1e-8)
        vector.mul_(1.0 - rate * DECAY)
        vector.addcdiv_(self._mean, root, value=-rate / (1.0 - BETA**self._steps))
        self._vector.grad = None
