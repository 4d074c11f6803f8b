"""From features to votes: every detector of an event type, calibrated, then the rules.

A row's scores depend on the row alone, never on the batch it came in: each detector promises it,
the gate in front of the expensive ones is a function of the row, and sums go column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from features.errors import ConfigError, ShapeError
from features.keys import UInt64
from features.sequence import STEPS, WIDTH
from models.base import Decisions, ScoreMatrix
from models.bundle import Bundle, EventModels
from models.calibration import score_of
from models.recalibration import margins_of, shifted
from models.voting import ENSEMBLE, AnomalyType, Voting

__all__ = ["Ask", "Raw", "Scorer", "Stages", "detectors_of", "in_canary", "take_rows"]

Stages = Mapping[str, tuple[str, float]]
"""Detector -> (stage, percent of entities for a canary); a detector that is not named is live."""

Raw = Callable[[FeatureMatrix], Float64]
"""A detector's `raw`."""

Ask = Callable[[str, Raw, FeatureMatrix, "npt.NDArray[np.intp]"], Float64]
"""Asks a detector, given its name, its `raw`, the features and their rows in the batch: its raw
numbers, NaN where it has no say. Whoever scores may thereby go on where a detector fails."""

WARM_ROWS = 64
"""Rows of the dummy batch; chosen: more than one, so that kernels for batches are made too."""

_LIVE = ("live", 100.0)


def take_rows(features: FeatureMatrix, rows: npt.NDArray[np.intp]) -> FeatureMatrix:
    """The given rows of a feature matrix."""
    sequence = features.sequence
    return FeatureMatrix(
        features.event_type,
        features.names,
        features.values[rows],
        None if sequence is None else sequence[rows],
        features.catalog_version,
    )


def cheap_and_expensive(models: EventModels, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Places in `names` of the detectors that see every row, and of those behind the gate."""
    costly = [i for i, name in enumerate(names) if models.detectors[name].expensive]
    return [i for i in range(len(names)) if i not in costly], costly


def gate_opens(surprise: Float64, cheap: Sequence[int], gate: float) -> npt.NDArray[np.bool_]:
    """Rows that the expensive detectors look at: some cheap one is surprised enough.

    Parameters
    ----------
    surprise : float64 (n, D)
    cheap : places of the cheap detectors; where there are none every row passes
    gate : surprise that one of them must reach

    Returns
    -------
    bool (n,)
    """
    if not cheap:
        return np.ones(len(surprise), np.bool_)
    opened = np.zeros(len(surprise), np.bool_)
    for i in cheap:
        opened |= surprise[:, i] >= gate  # NaN reaches nothing
    return opened


@dataclass(slots=True)
class GateCount:
    """How many rows came to the gate of the expensive detectors, and how many they looked at."""

    rows: int = 0
    opened: int = 0


def detectors_of(bundle: Bundle, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Detectors to run of a bundle: those asked for, else all but those that only stand in.

    Parameters
    ----------
    asked : None where nobody has said which
    """
    if asked is not None:
        return tuple(asked)
    standing_in = {
        name
        for models in bundle.models.values()
        for name, one in models.detectors.items()
        if getattr(one, "fallback", False)
    }
    return tuple(name for name in bundle.detectors if name not in standing_in)


class Scorer:
    """Scores and decides; one for a process. One thread at a time scores an event type.

    Parameters
    ----------
    bundle : the models
    detectors : names of those to run, all in the bundle, or left out of it since its event types
        have no sequences
    voting : rules in place of the bundle's own

    Raises
    ------
    ConfigError : detectors that the bundle does not have, rules that name unknown ones
    """

    def __init__(
        self, bundle: Bundle, detectors: Sequence[str], voting: Voting | None = None
    ) -> None:
        self.bundle = bundle
        self.voting = bundle.voting if voting is None else voting
        left_out = bundle.training.get("left_out", ())
        # What no event type of the bundle could be trained with has nothing to say here.
        self.detectors = tuple(
            name
            for name in dict.fromkeys(detectors)
            if name in bundle.detectors or name not in left_out
        )
        self.fallbacks = tuple(
            name
            for name in bundle.detectors
            if name not in self.detectors
            and any(
                getattr(m.detectors[name], "fallback", False)
                for m in bundle.models.values()
                if name in m.detectors
            )
        )
        """Those that stand in for others where rows were too few: they run unasked."""
        self.gates = {event: GateCount() for event in bundle.models}
        faults = [
            f"detectors: {name!r} is not in the bundle (it has {', '.join(bundle.detectors)});"
            " train with it (`waxwing train`) or take it out"
            for name in self.detectors
            if name not in bundle.detectors
        ]
        faults += self.voting.unknown_detectors(bundle.detectors)
        faults += [
            f"[{rule.name}] of the voting rules needs {rule.votes_needed} votes, and of"
            f" its detectors {', '.join(here) or 'none'} can vote (not {', '.join(gone)}): it would"
            " never alert; lower votes_needed, or run them too (setting `detectors`)"
            for rule, here, gone in self._heard()
            if gone and len(here) < rule.votes_needed
        ]
        if faults:
            raise ConfigError(faults)

    def _heard(self) -> Iterator[tuple[AnomalyType, list[str], list[str]]]:
        """Each rule whose events are scored, with its detectors that run and those that do not."""
        for rule in self.voting.anomaly_types.values():
            models = self.bundle.models.get(rule.event_type)
            if models is None:
                continue
            running = self._names(models)
            of = [name for name in rule.thresholds if name in models.detectors]
            gone = [name for name in of if name not in running]
            yield rule, [name for name in of if name in running], gone

    def unheard(self) -> list[str]:
        """One sentence for each rule that is fitted to more detectors than run, for each event type
        that no rule looks at, and for each rule that an edit left detectors without a vote.

        The vote as a whole adds up what all of them say, so it asks more of those that are left.
        """
        return self._unruled() + [
            f"{rule.name} counts on {', '.join(gone)} too, which the setting `detectors` leaves"
            f" out: {', '.join(here)} with {rule.votes_needed} of {len(here)} votes needed will"
            " alert more seldom than it was fitted to; train with these alone for thresholds of"
            " their own"
            for rule, here, gone in self._heard()
            if gone
        ]

    def _unruled(self) -> list[str]:
        """One sentence for each event type or detector that the rules pass over."""
        told = []
        for event, models in self.bundle.models.items():
            rules = self.voting.of(event)
            if not rules:
                told.append(
                    f"no voting rule looks for anything in {event} events, which the bundle has"
                    " models for: they are scored, and nothing alerts on them"
                )
            if self.voting is not self.bundle.voting or not self.bundle.edited:
                continue  # rules of one's own, or those that training wrote
            for rule in rules:
                mute = [name for name in self._names(models) if name not in rule.thresholds]
                if mute:
                    told.append(
                        f"voting.toml was edited: {rule.name} has no threshold for"
                        f" {', '.join(mute)}, without a vote therefore"
                    )
        return told

    def warm_up(self) -> None:
        """Score a dummy batch of each event type, so that the first round does not pay for it."""
        for event, models in self.bundle.models.items():
            values = np.zeros((WARM_ROWS, len(models.names)))
            features = FeatureMatrix(
                event,
                models.names,
                values,
                np.zeros((WARM_ROWS, STEPS, WIDTH), np.float32),
                self.bundle.catalog_version,
            )
            for name in self._names(models):
                if name not in self.far(event):  # a start asks nobody
                    models.detectors[name].raw(models.view.apply(features))

    def far(self, event_type: str) -> frozenset[str]:
        """Detectors of an event type that are asked elsewhere (`models.detectors.remote`)."""
        models = self.bundle.models.get(event_type)
        detectors = {} if models is None else models.detectors
        return frozenset(n for n, one in detectors.items() if getattr(one, "remote", False))

    def _names(self, models: EventModels) -> tuple[str, ...]:
        """Detectors that this scorer runs on an event type, in its own order."""
        return tuple(n for n in self.columns(models.event_type) if n in models.detectors)

    def columns(self, event_type: str) -> tuple[str, ...]:
        """Detectors that the scores of an event type have a column of, D of them: those asked for,
        or what stands in for them."""
        models = self.bundle.models.get(event_type)
        alone = () if models is None else tuple(n for n in self.fallbacks if n in models.detectors)
        return alone or self.detectors

    def score(
        self,
        features: FeatureMatrix,
        stages: Stages,
        raw: Float64 | None = None,
        ask: Ask | None = None,
    ) -> ScoreMatrix:
        """Calibrated scores of the rows of one event type; NaN where a detector is off or gated.

        An event type without models is not scored: NaN throughout.

        Parameters
        ----------
        features : of n rows
        stages : what each detector may do; one that is off is not asked
        raw : float64 (n, D), filled with what the detectors (`columns`) said before calibration,
            for those who want to see it; NaN where a detector did not look
        ask : asks each detector; None asks it plainly, and what it raises is raised

        Raises
        ------
        ShapeError : features in another order than the models were trained on
        """
        ask = _plainly if ask is None else ask
        n = len(features)
        models = self.bundle.models.get(features.event_type)
        columns = self.columns(features.event_type)
        surprise = np.full((n, len(columns)), np.nan)
        said = np.empty_like(surprise) if raw is None else raw
        said[:] = np.nan
        if models is None or not n:
            return ScoreMatrix(features.event_type, columns, surprise, surprise)
        if features.names != models.names:
            raise ShapeError(
                f"step 'score': {features.event_type}: expected the {len(models.names)} features of"
                f" bundle {self.bundle.id}, got {len(features.names)} others; train again with"
                " `waxwing train`"
            )
        segment = None if models.segments is None else models.segments.cut.of(features)
        features = models.view.apply(features)
        names = [name for name in self._names(models) if stages.get(name, _LIVE)[0] != "off"]
        places = [columns.index(name) for name in names]
        cheap, costly = cheap_and_expensive(models, names)
        every = np.arange(n)
        for i in cheap:
            said[:, places[i]] = ask(names[i], models.detectors[names[i]].raw, features, every)
            surprise[:, places[i]] = models.scaled(names[i], said[:, places[i]], segment)
        if costly:
            opened = gate_opens(surprise, [places[i] for i in cheap], models.gate)
            rows = np.flatnonzero(opened)
            count = self.gates[features.event_type]
            count.rows += n
            count.opened += len(rows)
            if len(rows):
                seen = take_rows(features, rows)
                for i in costly:
                    found = ask(names[i], models.detectors[names[i]].raw, seen, rows)
                    said[rows, places[i]] = found
                    part = None if segment is None else segment[rows]
                    surprise[rows, places[i]] = models.scaled(names[i], found, part)
        return ScoreMatrix(features.event_type, columns, score_of(surprise), surprise, segment)

    def decide(
        self,
        scores: ScoreMatrix,
        thresholds: Mapping[tuple[str, str], float],
        stages: Stages | None = None,
        entity: UInt64 | None = None,
        shifts: Mapping[str, float] | None = None,
        margins: dict[str, Float64] | None = None,
    ) -> Decisions:
        """What the rules make of scores.

        Parameters
        ----------
        scores : of one batch
        thresholds : (anomaly type, detector or `ensemble`) -> score, in place of the rules' own
        stages : off and shadow detectors have no part in the vote, a canary only for its entities
        entity : uint64 (n,), keys of the primary entities; needed where a detector is a canary
        shifts : anomaly type -> by how much its thresholds have risen (`models.recalibration`)
        margins : filled, for the anomaly types that are keys of it, with the events' margins

        Raises
        ------
        ShapeError : a canary without entities
        """
        n, d = scores.surprise.shape
        rules = self.voting.of(scores.event_type)
        models = self.bundle.models.get(scores.event_type)
        if models is None:
            rules = ()
        speaks = _speaks(scores, stages or {}, entity)
        score = np.zeros((n, len(rules)))
        flagged = np.zeros((n, len(rules)), np.bool_)
        votes = np.zeros((n, len(rules), d), np.bool_)
        limits = np.ones((len(rules), d))
        for a, rule in enumerate(rules):
            heard = speaks.copy()
            for i, name in enumerate(scores.detectors):
                heard[:, i] &= name in rule.thresholds
                limits[a, i] = thresholds.get((rule.name, name), rule.thresholds.get(name, 1.0))
            limit = thresholds.get((rule.name, ENSEMBLE), rule.ensemble)
            if models is not None:
                score[:, a] = score_of(_ensemble(models, rule, scores, heard))
            needed = max(rule.votes_needed, 1)
            if margins is not None and rule.name in margins:
                said = np.where(heard, scores.scores, np.nan)
                margins[rule.name] = margins_of(said, limits[a], score[:, a], limit, needed)
            if shift := (shifts or {}).get(rule.name, 0.0):
                limit = shifted(limit, shift)
                limits[a] = [shifted(x, shift) for x in limits[a].tolist()]
            votes[:, a] = heard & (scores.scores >= limits[a])
            enough = np.count_nonzero(votes[:, a], axis=1) >= needed
            flagged[:, a] = enough & (score[:, a] >= limit)
        names = tuple(rule.name for rule in rules)
        return Decisions(scores.event_type, names, scores.detectors, score, flagged, votes, limits)

    def extrapolated(self, scores: ScoreMatrix) -> npt.NDArray[np.bool_]:
        """Which scores of the vote lie beyond every genuine row that they were calibrated on.

        Returns
        -------
        bool (n, A), by anomaly type as `decide` has them with every detector live
        """
        models = self.bundle.models.get(scores.event_type)
        rules = () if models is None else self.voting.of(scores.event_type)
        found = np.zeros((len(scores), len(rules)), np.bool_)
        for a, rule in enumerate(rules):
            heard = _speaks(scores, {}, None)
            heard &= np.array([name in rule.thresholds for name in scores.detectors])
            if models is not None:
                number = _number(models, rule, scores, heard)
                found[:, a] = models.extrapolated(number, scores.segment)
        return found

    def shares(
        self,
        scores: ScoreMatrix,
        anomaly_type: str,
        stages: Stages | None = None,
        entity: UInt64 | None = None,
    ) -> Float64:
        """Each detector's part of the sum that the ensemble's score is made of.

        Parameters
        ----------
        scores, stages, entity : see `decide`
        anomaly_type : of which vote

        Returns
        -------
        float64 (n, D), rows that sum to 1; 0 where a detector had no say, NaN where none had
        """
        models = self.bundle.models.get(scores.event_type)
        speaks = _speaks(scores, stages or {}, entity)
        rule = self.voting.anomaly_types[anomaly_type]
        heard = speaks & np.array([name in rule.thresholds for name in scores.detectors])
        said = np.where(heard, scores.surprise, np.nan)
        parts = np.zeros(said.shape)
        if models is not None:
            ensemble = models.ensemble.weighed(rule.weights)
            parts = ensemble.ordered(scores.detectors).parts(said)
        total = parts.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Float64 = parts / np.where(total > 0.0, total, np.nan)
        return found


def _plainly(_name: str, raw: Raw, features: FeatureMatrix, _rows: npt.NDArray[np.intp]) -> Float64:
    """Ask a detector; what it raises is raised."""
    return raw(features)


def _speaks(scores: ScoreMatrix, stages: Stages, entity: UInt64 | None) -> npt.NDArray[np.bool_]:
    """bool (n, D), which detectors have a say on which rows."""
    speaks = ~np.isnan(scores.scores)
    for i, name in enumerate(scores.detectors):
        stage, percent = stages.get(name, _LIVE)
        if stage in ("off", "shadow"):
            speaks[:, i] = False
        elif stage == "canary":
            if entity is None:
                raise ShapeError(f"step 'decide': canary {name!r} needs the keys of the entities")
            speaks[:, i] &= in_canary(entity, percent)
    return speaks


def in_canary(entity: UInt64, percent: float, after: float = 0.0) -> npt.NDArray[np.bool_]:
    """Entities of the canary: the same ones whatever else happens, and a larger percent keeps them.

    Taken from the low bits of the key (shard groups take higher ones), to a thousandth of a
    percent.

    Parameters
    ----------
    entity : uint64 (n,), keys
    percent : in [0, 100]
    after : percent that others have taken before

    Returns
    -------
    bool (n,)
    """
    at = entity % np.uint64(100_000)
    chosen: npt.NDArray[np.bool_] = at < np.uint64(round(1000 * (after + percent)))
    if after:
        chosen &= at >= np.uint64(round(1000 * after))
    return chosen


def _ensemble(
    models: EventModels, rule: AnomalyType, scores: ScoreMatrix, heard: npt.NDArray[np.bool_]
) -> Float64:
    """float64 (n,), surprise of the vote as a whole, of the detectors that are heard."""
    return models.scaled(ENSEMBLE, _number(models, rule, scores, heard), scores.segment)


def _number(
    models: EventModels, rule: AnomalyType, scores: ScoreMatrix, heard: npt.NDArray[np.bool_]
) -> Float64:
    """float64 (n,), what the vote is made of, not scaled."""
    surprise = np.where(heard, scores.surprise, np.nan)
    return models.ensemble.weighed(rule.weights).ordered(scores.detectors).number(surprise)
