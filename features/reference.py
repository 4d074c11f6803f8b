"""The reference page of all features, written from their declarations.

`python -m features.reference > docs/features.md` writes it; a test keeps it fresh.
"""

from __future__ import annotations

import sys

from features.catalog import Catalog, catalog, declared_features, inputs_of
from features.columns import derived_columns
from features.events import event_types
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
        "Baselines never contain the row they are compared with. Every window is exact unless",
        "`exact_events_max` says otherwise: of an entity with more events in its longest window",
        "(1 h, say) those above it are merged into panes of 10 s, oldest first, but none of the",
        "last 5 minutes or of another window; a pane leaves as a whole, so that the window is too",
        "long by less than 10 s, which is counted (`approximated`). Counts of different others are",
        "exact unless `distinct_exact_max` is set: of an entity with more of them in its longest",
        "window one pair in 2, 4, 8, ... is kept, and they are estimates, those of 1 and 5 minutes",
        "too, with a standard error of sqrt(n x (that - 1)), counted (`estimated`); whether a pair",
        "is new is unknown (NaN) of one that is not kept.",
        "",
        "Features and event types of your own stand in files outside of this package, see",
        "[own-features.md](own-features.md); only some of these are computed where the setting",
        "`features` says so, see [fewer-features.md](fewer-features.md). `waxwing features list",
        "--config F --markdown` writes this page by both.",
        "",
        "`waxwing features list` and `show NAME` tell the same. `waxwing features verify --data F`",
        "computes the features of all rows of a file and asks DuckDB for each in SQL",
        "(`features/oracle.py`): counts, shares, extremes and times must be the same in every bit,",
        "other numbers within 1e-9. What is found value by value, such as a mean that holds",
        "outliers back, has no meaning in SQL and is named as not compared. What the data say of",
        "their events (`[truth]` of a mapping, the simulator) is heard as verdicts for it,",
        "`label_delay_s` (7 days) after a fraud and half as long after some that are none, and",
        "lies beside them in a second table; without it features of group `risk` have one value.",
        "No verdict makes an entity stand still there.",
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
    return "\n".join([*lines, *_usual(), *_columns(), *_sequence(), *_operations(), ""])


USUAL = (
    (
        "`z`, `drift`",
        "about 200 events, each by its weight beside the anchor of the same column",
        "the single event; a campaign of some ten; a ramp, while its anchor stands",
        "hundreds of events, ten times as many far from the anchor",
    ),
    (
        "`robust_z`, `mad_z`, `iqr_distance`, `quantile`",
        "the last 32 values, by rank",
        "the single event, however wild the ones before",
        "32 events",
    ),
    (
        "`season_z`, `week_z`",
        "the same hour of the day; of working days or of weekends",
        "what is usual, at the wrong time",
        "128 values of the hour, ten times as many far from the week's; four weeks",
    ),
    (
        "`anchor_z`, `creep`",
        "four weeks and 128 events at least, a value at 1.5 deviations at most",
        "a level raised by a little each day",
        "31 to 38 days, if the change lasts",
    ),
    (
        "`creep` of a flag (`merchant_strangers_creep`)",
        "four weeks and 128 events at least, a value by how far the share of a day is off",
        "a share of yes that rises by a little each day",
        "of a hundred events a day 20 to 50 days, 80 where nearly none become nearly all; of ten"
        " a day up to 100",
    ),
    ("`usual_count`, `surprise`", "the events of about a week", "a burst", "a week"),
    ("`trend`", "the last hour", "where a series is heading", "an hour"),
)
"""What learns what is usual, from what, what it sees, and when a change is usual for it."""


PRIORS = (
    ("card", "amounts that are usual at the merchant", "`card_amount_shrunk_z`"),
    ("merchant", "amounts that are usual for the card", "`merchant_amount_shrunk_z`"),
    ("device", "how often its card pays", "`device_expected_1h`, `device_surprise_1h`"),
    ("address", "how often its user logs in", "`ip_expected_1h`, `ip_surprise_1h`"),
    ("series", "the other hosts of its service", "`series_shrunk_z`"),
)
"""Who is held against whom while it is new."""

UNTWINNED = (
    (
        "`recent`, `last`, `run_length`",
        "say what is of late; they are compared, nothing is compared with them alone",
    ),
    (
        "`median`, `iqr`, `robust_z`, `mad_z`, `iqr_distance`, `quantile`, `median_size`",
        "the last 32 values by definition, as SQL counts them; `creep` of the same column sees a"
        " level that is moved below them",
    ),
    (
        "`usual_count`, `surprise`",
        "all events of about a week by definition, as SQL counts them; a rate that is raised slowly"
        " is seen by the creep of the entity's gaps or counts (`card_gap_creep`,"
        " `merchant_rate_creep`, `user_gap_creep`, `ip_rate_creep`, `service_rate_creep`,"
        " `host_rate_creep`, `log_stream_rate_creep`), and of declined, failed and error events by"
        " their share, which is told as it is (`service_error_share_z`, which learns it, has an"
        " anchor)",
    ),
    (
        "`peer_gap_z`, `peers_level_z`, `peers_deviating`, `peers_abs_z`, `member_z`,"
        " `member_rel_z`",
        "compare members of one moment; each member's own level has its anchor (`series_creep`,"
        " `log_stream_duration_creep`)",
    ),
    (
        "`correlation_z`",
        "the usual one is of about 512 pairs; both series have anchors of their own. No value is"
        " held back: of a pair 50 deviations off it is free after some 4,000 pairs, that of now"
        " after 250",
    ),
    ("`trend`", "the last hour by definition"),
)
"""Operations without a slow twin, and why they need none."""


FIRST_VALUES = (
    "Of the first five values of a mean, of an hour of the day or of the week, the wildest",
    "waits: it comes in after the other four, at six of their deviations at most, and so is",
    "held what comes next until sixteen are known. A trend lets the wildest of eight wait, an",
    "anchor that of sixteen. So no one value of 50 or 1,000 deviations blinds what is told of",
    "the entity later on. `step` and `flatness` are held only where it is one of the first",
    "four: of 1,000 deviations as the fifth or later it blunts them for hundreds of events (a",
    "step of ten is told as 0.6 an hour later, by a sample a minute). Where the first values",
    "are all equal but one, that one counts whole: nothing says how wild it is.",
    "",
)
"""How first values are held, where nothing is known yet that could hold them."""


def _usual() -> list[str]:
    """How what is usual is learned, frozen, and borrowed by new entities."""
    return [
        "",
        "## What is usual",
        "",
        "A row is compared with what came before it, then it is learned. Several ways stand side",
        "by side:",
        "",
        "| operations | learned from | sees | takes a change for usual after |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in USUAL),
        "",
        "An anchor moves by at most 1.5 of its deviations in four weeks, its deviation grows by",
        "at most two fifths: nobody trains it by patience: `features/anchors.py` says how, and",
        "`tests/unit/test_ramp.py` shows it beside a plain baseline that is trained.",
        "",
        "Fast and slow stand side by side: each mean (`usual`, `usual_std`, `z`, `drift`, `step`,",
        "`flatness`) has an anchor of the same column, each hour of the day (`season_z`) the hours",
        "of the week, whether a feature reads them or not. A value weighs by its z against the",
        "slow one (Huber's weight): whole within 2, then 2 / z, at least 0.1. A home (`home_km`)",
        "stands beside one of 256 places and weighs a place by its distance from that, at least",
        "0.25. Of a flag (`merchant_strangers`) no value is an outlier: it weighs by how far the",
        "share of the last day is from that of weeks.",
        "",
        *FIRST_VALUES,
        "What has no slow twin, and why it needs none:",
        "",
        "| operations | why |",
        "| --- | --- |",
        *(f"| {' | '.join(row)} |" for row in UNTWINNED),
        "",
        "Labels stop or hasten learning from the round in which they come. Fraud: for seven",
        "days nothing that its card (of a login: its user) does becomes usual; all of it is",
        "scored, counted and dated as ever. Genuine: what the card does of late, where that is",
        "far from its anchor, becomes its anchor at once.",
        "",
        "## New entities",
        "",
        "A new entity has no past: `z` and its like are unknown for its first three values. What",
        "its peers usually do is taken in their place. Peers are those that the event itself",
        "names: a prior is a function of the order of events alone, the same in any number of",
        "shard groups and however the stream is cut or restarted.",
        "",
        "`shrunk_z` gives way to the entity's own deviation as n / (n + 8) after n values,",
        "`shrunk_count` (a feature `..._expected_...`) to its own usual count as t / (t + 1 day)",
        "once it was first seen t ago.",
        "",
        "| new | is held against | by |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in PRIORS),
        "",
        f"No feature of {_without_prior()} has one.",
        "",
        "Where both are new only counts, shares and the like are known, which are judged against",
        "all entities: a peer whose usual count is 0 is new itself. Windows of 1 and 5 minutes of",
        "cards, devices and addresses have no prior: in so short a time nothing is what is usual",
        "of either. Nor has how often a new card pays, a new merchant is paid, a new user logs in,",
        "or a host, service or log stream (a message of a service) writes: no other entity of the",
        "event says it well. (Users of an address and services of a host differ too much: held",
        "against them, a quiet hour of an office left all of it to a newcomer, and most lines of a",
        "server were surprising.) These are reckoned a day old while they are younger, whatever",
        "they did: a first event is 1.4 sigma above nothing, a second within the window 2.1, the",
        "tenth of a burst 5. So a shop that opens with a rush is surprising on its first day, and",
        "so is a new service.",
    ]


def _without_prior() -> str:
    """Entity types none of whose features gives way to what peers do."""
    every = {name: None for e in event_types().values() for name in e.entities}
    held = {f.entity for f in declared_features() if f.op in ("shrunk_z", "shrunk_count")}
    names = [f"`{name}`" for name in every if name not in held]
    return f"{', '.join(names[:-1])} or {names[-1]}"


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
