"""The labels of a file: what a mapping's `[truth]` column says of each row, as codes.

A word that nobody explained is refused before the first row is used: taken for genuine in silence
it would teach a model that frauds are normal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.sources.mapping import LABEL_CODE_MAX, LABEL_WORDS, TableMapping
from dataflows.sources.tables import LineTable, Table, columns_of_lines
from features.errors import ConfigError

__all__ = ["check_labels", "codes_of", "unknown_label"]

WORDS_SHOWN_MAX = 5
"""Unknown words that a fault names; chosen: a column that is none of labels has one a row."""

WORD_SHOWN_MAX = 40
"""Characters of such a word that are shown; chosen: longer ones are sentences."""


def codes_of(
    column: pl.Series, mapping: TableMapping
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """What a column of labels says, and where it says what nobody explained.

    Parameters
    ----------
    column : (n,), of texts, numbers or true and false
    mapping : its `truth_words` go before `LABEL_WORDS`

    Returns
    -------
    codes : int16 (n,), 0 genuine, else the code; 0 where the cell is empty or not understood
    unknown : bool (n,), neither empty, nor a known word, nor a whole number from 0 on

    Examples
    --------
    >>> codes_of(pl.Series(["Fraud", "no", "7", None, "maybe"]), TableMapping("payment", {}))
    (array([1, 0, 7, 0, 0], dtype=int16), array([False, False, False, False,  True]))
    """
    text = column.cast(pl.String).str.to_lowercase().str.strip_chars()
    empty = text.is_null() | (text == "")
    if column.dtype.is_float():
        empty |= column.is_nan().fill_null(True)  # what pandas writes where there is nothing
    words = {**LABEL_WORDS, **mapping.truth_words}
    said = text.replace_strict(words, default=None, return_dtype=pl.Int16)
    number = text.cast(pl.Float64, strict=False)
    whole = (number == number.floor()) & number.is_between(0, LABEL_CODE_MAX)
    if mapping.truth_words:  # a number that the list has is a word of it, 1.0 as well as 1
        short = number.cast(pl.Int64, strict=False).cast(pl.String)
        listed = short.replace_strict(words, default=None, return_dtype=pl.Int16)
        said = said.fill_null(listed.set(~(number == number.floor()).fill_null(False), None))
    codes = said.fill_null(number.set(~whole.fill_null(False), None).cast(pl.Int16, strict=False))
    unknown = (codes.is_null() & ~empty).to_numpy()
    return codes.fill_null(0).to_numpy().astype(np.int16), unknown


def unknown_label(value: object, mapping: TableMapping) -> str:
    """What is wrong with one label, and which there are."""
    own = f"{', '.join(mapping.truth_words)} of the mapping, " if mapping.truth_words else ""
    return (
        f"{str(value)[:WORD_SHOWN_MAX]!r} is neither; there are {own}{', '.join(LABEL_WORDS)}, and"
        f" whole numbers from 0 (genuine) to {LABEL_CODE_MAX}"
    )


def check_labels(table: Table, mapping: TableMapping, path: Path) -> None:
    """Read the labels of a whole file once.

    Raises
    ------
    ConfigError : labels that mean nothing: the first of them with its row, the words there are,
        and the cure
    """
    if mapping.truth is None:
        return
    first, rows, words = "", 0, dict[str, None]()
    for numbers, column in _columns(table, mapping.truth):
        _, unknown = codes_of(column, mapping)
        for row in np.flatnonzero(unknown).tolist():
            first = first or f"row {numbers[row]}: {unknown_label(column[row], mapping)}"
            if len(words) <= WORDS_SHOWN_MAX:
                words.setdefault(str(column[row])[:WORD_SHOWN_MAX])
        rows += int(np.count_nonzero(unknown))
    if rows:
        shown = [repr(word) for word in words][:WORDS_SHOWN_MAX]
        more = " and others" if len(words) > WORDS_SHOWN_MAX else ""
        raise ConfigError(
            f"{path}: column {mapping.truth!r} of [truth] says in {rows:,} rows neither genuine nor"
            f" what it is ({', '.join(shown)}{more}). {first}. Say in the mapping what its words"
            f" mean, 0 for genuine: [truth] words = {{ {shown[0]} = 1 }}"
        )


def _columns(table: Table, name: str) -> Iterator[tuple[range, pl.Series]]:
    """One column stretch by stretch, with the numbers of its rows."""
    if isinstance(table, LineTable):
        pieces = (columns_of_lines(s.lines or [], [name])[0][name] for s in table.stretches())
    else:
        pieces = (column for column in table.times(name))
    at = 0
    for column in pieces:
        yield range(at, at + len(column)), column
        at += len(column)
