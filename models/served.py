"""What a bundle answers over a wire: tensors in, tensors out. No server stands here.

For each event type there is a model of the whole bundle, which takes the features of the catalogue
and gives what the operator would give (`models.scoring`), and one model a detector, which takes
the features as detectors see them (`models.view`) and gives its raw number: that is what detector
`remote` asks. What an entity did before travels as a tensor too, so every detector can be served.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix
from features.errors import ConfigError, ShapeError
from features.sequence import STEPS, WIDTH
from models.bundle import Bundle, EventModels
from models.scoring import Scorer
from models.voting import Voting

__all__ = ["ROWS_MAX", "Served", "Tensor", "served_models"]

ROWS_MAX = 50_000
"""Most rows of one request. Chosen: more than a round has, and an answer still takes a second."""

_log = logging.getLogger(__name__)

_DTYPES: dict[str, type[np.generic]] = {"FP64": np.float64, "FP32": np.float32, "BOOL": np.bool_}

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output: its name, datatype of the protocol, and shape; -1 is the rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def fault(self, datatype: str, shape: tuple[int, ...]) -> str:
        """What is wrong with a tensor that came under this name; empty where nothing is."""
        if datatype != self.datatype:
            return f"input {self.name!r}: expected datatype {self.datatype}, got {datatype}"
        if len(shape) != len(self.shape) or shape[1:] != self.shape[1:] or shape[0] < 0:
            wanted = ", ".join(["rows", *map(str, self.shape[1:])])
            return f"input {self.name!r}: expected shape [{wanted}], got {list(shape)}"
        return ""


@dataclass(frozen=True, slots=True)
class Served:
    """One model as it is served.

    Parameters
    ----------
    name : EVENT_TYPE, or EVENT_TYPE.DETECTOR
    event_type : whose rows it takes
    names : (F,), the columns of input `features`, in order
    inputs, outputs : what it takes and gives
    parameters : said with every answer: `bundle_id`, `catalog_version`, and names of columns
    compute : the answer to n rows
    lock : held while it computes, shared by the models of an event type
    """

    name: str
    event_type: str
    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]
    compute: Callable[[FeatureMatrix], Arrays]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, given: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """See that a request has the tensors that are needed, and no others.

        Parameters
        ----------
        given : name of each tensor -> its datatype and shape

        Raises
        ------
        ShapeError : all that is wrong, in one sentence each
        """
        faults = [
            f"there is no input {name!r}; expected {', '.join(t.name for t in self.inputs)}"
            for name in given
            if name not in {t.name for t in self.inputs}
        ]
        for tensor in self.inputs:
            if tensor.name not in given:
                faults.append(f"input {tensor.name!r} is missing")
            elif fault := tensor.fault(*given[tensor.name]):
                faults.append(fault)
        if not faults and len({shape[0] for _, shape in given.values()}) > 1:
            faults.append("the inputs differ in their number of rows")
        rows = max((shape[0] for _, shape in given.values() if shape), default=0)
        if rows > ROWS_MAX:
            faults.append(f"{rows:,} rows are more than the {ROWS_MAX:,} of one request; cut them")
        if faults:
            what = f"model {self.name!r} of bundle {self.parameters['bundle_id']}"
            raise ShapeError(f"{what}: {'; '.join(faults)}")

    def check_meant(self, parameters: Mapping[str, object]) -> None:
        """See that whoever asks means this bundle and this catalogue, where they say which.

        Raises
        ------
        ShapeError : they mean another
        """
        for name in ("bundle_id", "catalog_version"):
            meant = parameters.get(name)
            if meant is not None and meant != self.parameters[name]:
                raise ShapeError(
                    f"model {self.name!r}: {name} {meant} is asked for, here is"
                    f" {self.parameters[name]}; serve that one, or ask with this one"
                )

    def answer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
        """The outputs by name, each of as many rows as there are in the inputs.

        Parameters
        ----------
        inputs : `features` float64 (n, F), NaN where a value is not known; `sequence` float32
            (n, S, W) where the model takes it; both already checked
        """
        sequence = inputs.get("sequence")
        with self.lock:  # the copies too: who waits holds no more than what came
            features = FeatureMatrix(
                self.event_type,
                self.names,
                np.array(inputs["features"], np.float64),
                None if sequence is None else np.array(sequence, np.float32),
                self.parameters["catalog_version"],
            )
            return self.compute(features)


def served_models(
    bundle: Bundle, voting: Voting | None = None, detectors: Sequence[str] | None = None
) -> dict[str, Served]:
    """Everything of a bundle that can be asked, by name; the kernels are compiled by then.

    Parameters
    ----------
    voting : rules in place of the bundle's own
    detectors : those that have a say in the models of the whole bundle, in their order; None: all.
        Each of the bundle can be asked by itself

    Raises
    ------
    ConfigError : one of its detectors asks a server itself; detectors that the bundle does not
        have, rules that name unknown ones
    """
    asking = [
        f"{event}.{name}"
        for event, models in bundle.models.items()
        for name, one in models.detectors.items()
        if getattr(one, "remote", False)
    ]
    if asking:
        raise ConfigError(
            f"bundle {bundle.id}: {', '.join(asking)} asks another server and cannot be served;"
            " serve what it asks"
        )
    models_of = bundle.models.items()
    standing_in = {
        name
        for _, models in models_of
        for name, one in models.detectors.items()
        if getattr(one, "fallback", False)
    }
    wanted = bundle.detectors if detectors is None else detectors
    scorer = Scorer(bundle, [name for name in wanted if name not in standing_in], voting)
    for sentence in scorer.unheard():
        _log.warning("bundle %s: %s", bundle.id, sentence)
    scorer.warm_up()
    found: dict[str, Served] = {}
    for event, models in models_of:
        lock = threading.Lock()
        whole = _whole(scorer, models, lock)
        found[event] = whole
        for name in models.detectors:
            one = _single(bundle, models, name, lock)
            found[one.name] = one
    return found


def _about(bundle: Bundle) -> dict[str, str]:
    """What is said with every answer."""
    return {"bundle_id": bundle.id, "catalog_version": bundle.catalog_version}


def _inputs(names: tuple[str, ...], sequential: bool) -> tuple[Tensor, ...]:
    """The features, and the sequences where a detector reads them."""
    features = Tensor("features", "FP64", (-1, len(names)))
    return (features, Tensor("sequence", "FP32", (-1, STEPS, WIDTH)))[: 1 + sequential]


def _is_sequential(one: object) -> bool:
    return bool(getattr(one, "sequential", False))


def _whole(scorer: Scorer, models: EventModels, lock: threading.Lock) -> Served:
    """All of an event type: raw numbers, scores, the ensemble, the decision."""
    event = models.event_type
    columns = scorer.columns(event)
    kinds = tuple(rule.name for rule in scorer.voting.of(event))

    def compute(features: FeatureMatrix) -> Arrays:
        raw = np.empty((len(features), len(columns)))
        scores = scorer.score(features, {}, raw)
        decisions = scorer.decide(scores, {})
        return {
            "raw": raw,
            "scores": scores.scores,
            "surprise": scores.surprise,
            "ensemble": decisions.score,
            "flagged": decisions.flagged,
        }

    sequential = any(_is_sequential(models.detectors[n]) for n in columns if n in models.detectors)
    of_detectors, of_kinds = (-1, len(columns)), (-1, len(kinds))
    outputs = (
        Tensor("raw", "FP64", of_detectors),
        Tensor("scores", "FP64", of_detectors),
        Tensor("surprise", "FP64", of_detectors),
        Tensor("ensemble", "FP64", of_kinds),
        Tensor("flagged", "BOOL", of_kinds),
    )
    about = {"detectors": ",".join(columns), "anomaly_types": ",".join(kinds)}
    parameters = _about(scorer.bundle) | about
    inputs = _inputs(models.names, sequential)
    return Served(event, event, models.names, inputs, outputs, parameters, compute, lock)


def _single(bundle: Bundle, models: EventModels, name: str, lock: threading.Lock) -> Served:
    """One detector: its raw number, of features as detectors see them."""
    one = models.detectors[name]

    def compute(features: FeatureMatrix) -> Arrays:
        return {"raw": one.raw(features)}

    names = models.view.names
    return Served(
        f"{models.event_type}.{name}",
        models.event_type,
        names,
        _inputs(names, _is_sequential(one)),
        (Tensor("raw", "FP64", (-1,)),),
        _about(bundle),
        compute,
        lock,
    )


def dtype_of(datatype: str) -> type[np.generic] | None:
    """The numpy type of a datatype that is served; None of any other."""
    return _DTYPES.get(datatype)
