"""The reference page of all features, written from their declarations.

`python -m features.reference > docs/features.md` writes it; a test keeps it fresh.
"""

from __future__ import annotations

import sys

from features.catalog import Catalog, catalog, inputs_of
from features.columns import derived_columns
from features.operations import OPERATIONS
from features.sequence import COMMON, STEPS, TOKENS, WIDTH
from features.spec import Feature

__all__ = ["formula", "reference", "spoken"]


def formula(feature: Feature) -> str:
    """What a feature is, in words a person understands.

    Examples
    --------
    >>> from features.catalog import catalog
    >>> formula(catalog().feature("payment", "card_count_5m"))
    'number of events in the window, this one included; per card, window 5 min'
    """
    op = OPERATIONS[feature.op]
    name, log = inputs_of(feature.column or "")
    words = {
        "column": f"log(1 + `{name}`)" if log else f"`{name}`",
        "other": f"`{feature.other}`" if op.other == "feature" else str(feature.other),
        "where": str(feature.where) if op.where_needed else "",
        "count": f"`{feature.count}`",
    }
    if feature.where and not op.where_needed:
        if op.column:
            words["column"] += f" ({feature.where} events only)"
        else:
            words["where"] = f" ({feature.where} ones only)"
    place = f"per {feature.entity}" if feature.entity else "of the event alone"
    if feature.feeds not in ((), (feature.event,)):
        place += f", fed by {' and '.join(feature.feeds)}"
    if feature.window_s is not None:
        place += f", window {spoken(feature.window_s)}"
    return f"{op.formula.format(**words)}; {place}"


def spoken(seconds: int) -> str:
    """A length of time as one says it."""
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {word}"
    return f"{seconds} s"


def reference(cat: Catalog) -> str:
    """The page, Markdown."""
    total = ", ".join(f"{len(cat.names(e))} for `{e}`" for e in cat.event_types)
    lines = [
        "# Features",
        "",
        "<!-- Written by `python -m features.reference > docs/features.md`;",
        "a test keeps it fresh. -->",
        "",
        f"{total}; catalogue version",
        f"`{cat.version}`. A feature is one declaration in `features/definitions/`; from it come",
        "the stream computation, the training set, the online view and the sentence in an alert.",
        "Windows are `(t - w, t]` in event time: the row itself is in, an event exactly as old as",
        "the window is out. A value that is not known (no history yet, entity absent) is NaN.",
        "Baselines never contain the row they are compared with.",
        "",
        "Features and event types of your own stand in files outside of this package, see",
        "[own-features.md](own-features.md); `waxwing features list --config F --markdown` writes",
        "this page with them.",
        "",
        "`waxwing features list` and `show NAME` tell the same. `waxwing features verify --data F`",
        "computes the features of all rows of a file and asks DuckDB for each in SQL",
        "(`features/oracle.py`): counts, shares, extremes and times must be the same in every bit,",
        "other numbers within 1e-9. What is found value by value, such as a mean that holds",
        "outliers back, has no meaning in SQL and is named as not compared.",
    ]
    for event in cat.event_types:
        lines += [
            "",
            f"## {event}",
            "",
            "| feature | unit | what it is | in an alert |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| `{f.name}` | {f.unit} | {formula(f)} | {f.why} |" for f in cat.features(event)
        ]
    return "\n".join([*lines, *_columns(), *_sequence(), *_operations(), ""])


def _columns() -> list[str]:
    """Derived columns."""
    lines = [
        "",
        "## Columns made from fields",
        "",
        "| event | column | kind | meaning |",
        "| --- | --- | --- | --- |",
    ]
    made = derived_columns()
    return lines + [f"| {d.event} | `{d.name}` | {d.kind} | {d.doc} |" for d in made]


def _sequence() -> list[str]:
    """What the sequence model reads."""
    lines = [
        "",
        "## Sequences",
        "",
        f"The last {STEPS} events of the primary entity, {WIDTH} numbers in [-1, 1] each, oldest",
        f"first, the row itself last. The first {COMMON}: present, own type (1) or another (-1),",
        "logarithm of the gap, sine and cosine of the hour. Then:",
        "",
        "| entity | event | numbers |",
        "| --- | --- | --- |",
    ]
    for entity, events in TOKENS.items():
        for event, tokens in events.items():
            lines.append(f"| {entity} | {event} | {', '.join(f'`{t.name}`' for t in tokens)} |")
    return lines


def _operations() -> list[str]:
    """All operations a declaration may name."""
    lines = ["", "## Operations", "", "| operation | needs | gives |", "| --- | --- | --- |"]
    for op in OPERATIONS.values():
        needs = [
            word
            for word, needed in (
                (f"column ({op.column})", op.column),
                ("window", op.window),
                ("condition", op.where_needed),
                ("condition if wanted", op.where and not op.where_needed),
                (f"other ({op.other})", op.other),
                ("count (feature)", op.count),
            )
            if needed
        ]
        gives = op.formula.format(
            column="COLUMN",
            other="OTHER",
            count="COUNT",
            where="" if op.family != "ring" or not op.where_needed else "CONDITION",
        )
        lines.append(f"| `{op.name}` | {', '.join(needs) or 'nothing'} | {gives} |")
    return lines


if __name__ == "__main__":
    sys.stdout.write(reference(catalog()))
