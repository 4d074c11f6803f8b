"""Which of the declared features are computed: those that patterns name, and what they need.

A feature costs time and memory whether somebody reads it or not. The setting `features` names those
that are wanted; the catalogue is then made of them alone, and since the kernels are told by the
catalogue what to keep, nothing else is computed or kept: no window, no table of pairs, no baseline,
no entity type without a feature.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from features.columns import real_names
from features.events import event_type, event_types, made_types
from features.operations import OPERATIONS
from features.sequence import TOKENS
from features.spec import Feature, inputs_of

__all__ = ["EVERYTHING", "SEQUENCE", "Choice", "choose", "full_name", "pattern_faults"]

EVERYTHING = ("*",)
"""The patterns of who wants all."""

SEQUENCE = "sequence"
"""Stands among the names for the last 16 events of an event type's own entity."""

NEAR_MAX = 3
"""Names suggested for a pattern that matches none; chosen: what one takes in at a glance."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What patterns choose of declarations.

    Parameters
    ----------
    features : those that are computed, as declared
    needed : full name of a feature that no pattern names -> full names of those that read it: each
        is named by a pattern or is itself needed, so that chains end at one that is named
    left_out : full names of the others, as declared
    without_sequence : event types whose sequences are left out
    """

    features: tuple[Feature, ...]
    needed: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    without_sequence: frozenset[str]

    def counts(self) -> str:
        """How many are chosen, by event type: `payment 48 of 111, login 0 of 60`."""
        kept = Counter(feature.event for feature in self.features)
        out = Counter(name.partition(".")[0] for name in self.left_out)
        parts = [
            f"{event} {kept[event]} of {kept[event] + out[event]}"
            + (" without sequence" if event in self.without_sequence and kept[event] else "")
            for event in dict.fromkeys((*kept, *out))
        ]
        return ", ".join(parts)


def choose(declared: Sequence[Feature], patterns: Sequence[str]) -> Choice:
    """The features that patterns name, with what they need.

    Parameters
    ----------
    declared : all there are
    patterns : of the names, or of EVENT_TYPE.NAME, as `fnmatch` has them; one that begins with `!`
        leaves out. Their order does not matter. Where each leaves out, the rest is chosen. A
        sequence is left out by its name in full, by `*` and by `EVENT_TYPE.*`

    Examples
    --------
    >>> from features.catalog import declared_features
    >>> found = choose(declared_features(), ["payment.card_surprise_1m"])
    >>> [feature.name for feature in found.features]
    ['card_count_1m', 'card_usual_1m', 'card_surprise_1m']
    """
    wanted, unwanted = _parted(patterns)
    named = {
        full_name(f)
        for f in declared
        if _matches(f.event, f.name, wanted or EVERYTHING)
        and not _matches(f.event, f.name, unwanted)
    }
    by_name = {full_name(f): f for f in declared}
    readers: dict[str, list[str]] = {}
    waiting = [name for name in by_name if name in named]
    kept = set(waiting)
    while waiting:
        reader = waiting.pop()
        for need in _needs(by_name[reader]):
            if need in by_name:
                readers.setdefault(need, []).append(reader)
                if need not in kept:
                    kept.add(need)
                    waiting.append(need)
    return Choice(
        tuple(f for f in declared if full_name(f) in kept),
        {
            name: tuple(sorted(readers[name]))
            for name in by_name
            if name in kept and name not in named
        },
        tuple(name for name in by_name if name not in kept),
        frozenset(event for event in _sequenced() if _reaches_sequence(event, unwanted)),
    )


def pattern_faults(declared: Sequence[Feature], patterns: Sequence[str]) -> list[str]:
    """What is wrong with patterns: each that matches nothing, with the nearest names."""
    names = [(f.event, f.name) for f in declared] + [(event, SEQUENCE) for event in _sequenced()]
    faults = []
    for pattern in dict.fromkeys(patterns):
        bare = pattern.removeprefix("!")
        if not bare:
            faults.append(
                f"pattern {pattern!r} names nothing; expected a name, * and ? stand in it"
            )
        elif not (
            any(_matches(f.event, f.name, [bare]) for f in declared)
            or any(_reaches_sequence(event, [bare]) for event in _sequenced())
        ):
            near = _nearest(bare, names)
            faults.append(f"pattern {pattern!r} matches no feature; near are {', '.join(near)}")
    taken = choose(declared, patterns).features
    if not faults and not taken:
        faults.append("the patterns leave no feature; name some without !")
    return faults + _unheard(declared, taken, patterns)


def _unheard(
    declared: Sequence[Feature], taken: Sequence[Feature], patterns: Sequence[str]
) -> list[str]:
    """Patterns that name features of absences alone, where nobody's silence would be told."""
    told = {
        entity
        for f in taken
        for event in (f.event, *f.feeds)
        for entity in event_type(event).silence
        if entity == f.entity
    }
    if told:
        return []
    holders = sorted({entity for event in event_types().values() for entity in event.silence})
    return [
        f"pattern {pattern!r} names features of absences, and none is chosen of who can be absent"
        f" ({', '.join(holders)}); name one of theirs too"
        for pattern in dict.fromkeys(patterns)
        if (of := {f.event for f in declared if _matches(f.event, f.name, [pattern])})
        and of <= set(made_types())
    ]


def full_name(feature: Feature) -> str:
    """`EVENT_TYPE.NAME`."""
    return f"{feature.event}.{feature.name}"


def _parted(patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    """Patterns that choose, and those that leave out, without their mark."""
    given = list(patterns)
    return (
        [pattern for pattern in given if not pattern.startswith("!")],
        [pattern[1:] for pattern in given if pattern.startswith("!")],
    )


def _matches(event: str, name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern is that of the name, or with a dot in it of the full name."""
    return any(
        fnmatchcase(f"{event}.{name}" if "." in pattern else name, pattern) for pattern in patterns
    )


def _reaches_sequence(event: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern leaves out the sequence of an event type: it matches by more than chance,
    since it spells the name or stands for all of the type (`!*e` is of features alone)."""
    last = (
        pattern.rpartition(".")[2] for pattern in patterns if _matches(event, SEQUENCE, [pattern])
    )
    return any(name in (SEQUENCE, "*") for name in last)


def _needs(feature: Feature) -> list[str]:
    """Full names of the features that a feature reads, what is usual in its sentence among them."""
    op, read = OPERATIONS[feature.op], [feature.count, feature.baseline]
    if op.column == "feature":
        read.append(feature.column)
    elif op.column == "input":
        source = inputs_of(feature.column or "")[0]
        read.append(None if source in real_names(feature.event) else source)
    if op.other == "feature":
        read.append(feature.other)
    return [f"{feature.event}.{name}" for name in dict.fromkeys(read) if name]


def _sequenced() -> list[str]:
    """Event types with sequences of their own entity."""
    return [event for event in event_types() if event in TOKENS.get(event_type(event).primary, {})]


def _nearest(pattern: str, names: Sequence[tuple[str, str]]) -> list[str]:
    """Names that a pattern may have meant, the nearest first."""
    bare = "".join(c for c in pattern if c not in "*?[]")
    said = dict.fromkeys(f"{event}.{name}" if "." in pattern else name for event, name in names)
    apart = {name: SequenceMatcher(None, bare, name).ratio() for name in said}
    return sorted(said, key=lambda name: -apart[name])[:NEAR_MAX]
