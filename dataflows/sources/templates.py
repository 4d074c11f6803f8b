"""Templates of log messages: mined once from lines that are there, then looked up line by line.

`mine` follows Drain: messages of one length and one beginning are compared word by word, and where
two are alike the words in which they differ become `<*>`. It reads lines in their order and so may
find other templates in other lines; what the flow uses is the list that stands in a mapping, so
that a line has the same template in every run, however the stream is cut, and a person may edit
it.

Source: He et al., Drain: An Online Log Parsing Approach with Fixed Depth Tree (2017); deviates in
that templates are looked up, not grown, while events flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["TEMPLATES_MAX", "WILD", "Templates", "mine"]

WILD = "<*>"
"""Stands for whatever varies; the masks of a mapping leave it, too."""

ALIKE = 0.5
"""Share of words two messages must have in common to be of one template. Source: the paper's
default."""

BEGINNING = 2
"""Words at the beginning that are never merged. Source: the paper's depth of four."""

TEMPLATES_MAX = 1_000
"""Most templates. Chosen: a program has tens to hundreds of messages."""

Words = tuple[str, ...]
_ANY: Words = (WILD,)


@dataclass(slots=True)
class _Cluster:
    """Messages that are alike."""

    words: Words
    count: int = 1
    differ: bool = False


def mine(messages: Iterable[str]) -> list[str]:
    """Templates of messages whose numbers and addresses are masked already.

    Parameters
    ----------
    messages : with single spaces between words; equal ones may come again

    Returns
    -------
    those that different messages are of, the commonest first, at most TEMPLATES_MAX; a message that
    is like no other is its own template

    Examples
    --------
    >>> mine(["Invalid user bob from <*>", "Invalid user eve from <*>", "Server started"])
    ['Invalid user <*> from <*>']
    """
    groups: dict[tuple[int, Words], list[_Cluster]] = {}
    for message in messages:
        words = tuple(message.split())
        clusters = groups.setdefault(_key(words), [])
        best = max(clusters, key=lambda one: _common(one.words, words), default=None)
        if best is None or _common(best.words, words) < ALIKE * len(words):
            clusters.append(_Cluster(words))
            continue
        pairs = zip(best.words, words, strict=True)
        best.words = tuple(a if a == b else WILD for a, b in pairs)
        best.count += 1
        best.differ |= best.words != words
    found: dict[str, int] = {}
    for cluster in (one for clusters in groups.values() for one in clusters):
        if cluster.differ:
            text = " ".join(cluster.words)
            found[text] = found.get(text, 0) + cluster.count
    return sorted(found, key=lambda text: (-found[text], text))[:TEMPLATES_MAX]


def _key(words: Words) -> tuple[int, Words]:
    """Length and beginning; a word of the beginning with a number in it is any word."""
    return len(words), tuple(_plain(word) for word in words[:BEGINNING])


def _plain(word: str) -> str:
    """The word, or `<*>` where it has a number in it or is one that was masked."""
    varies = WILD in word or any(letter.isdigit() for letter in word)
    return WILD if varies else word


def _common(template: Words, words: Words) -> int:
    """Words in common; a `<*>` of the template is common with nothing but itself."""
    return sum(a == b for a, b in zip(template, words, strict=True))


class Templates:
    """Looks up of which template a message is.

    Parameters
    ----------
    texts : the templates; of several that fit, the one with the fewest `<*>` is taken, then the
        first
    """

    def __init__(self, texts: Sequence[str]) -> None:
        by_beginning: dict[tuple[int, Words], list[tuple[int, Words]]] = {}
        for place, words in enumerate(sorted((tuple(t.split()) for t in texts), key=_wild)):
            by_beginning.setdefault((len(words), words[:1]), []).append((place, words))
        # By length and first word; those that may begin with anything stand among all.
        self._by_beginning = {
            (length, first): [
                words
                for _, words in (
                    sorted(own + by_beginning.get((length, _ANY), [])) if first != _ANY else own
                )
            ]
            for (length, first), own in by_beginning.items()
        }

    def of(self, message: str) -> str:
        """The template a message is of; the message itself, with single spaces, where it is of
        none.

        Examples
        --------
        >>> Templates(["Invalid user <*> from <*>"]).of("Invalid user eve from <*>")
        'Invalid user <*> from <*>'
        """
        words = tuple(message.split())
        others = self._by_beginning.get((len(words), _ANY), [])
        for template in self._by_beginning.get((len(words), words[:1]), others):
            if all(a in (b, WILD) for a, b in zip(template, words, strict=True)):
                return " ".join(template)
        return " ".join(words)


def _wild(words: Words) -> int:
    """How many words of a template may be anything."""
    return words.count(WILD)
