"""The reference page of all event types, written from their declarations.

`python -m features.event_reference > docs/events.md` writes it; a test keeps it fresh.
"""

from __future__ import annotations

import sys

from features.clock import REFUSALS
from features.decode import REASONS
from features.events import EventType, Field, event_types, made_types

__all__ = ["event_page"]

_TYPES = {
    "string": "text",
    "float64": "number",
    "int64": "integer",
    "bool": "true or false",
    "time_us": "integer",
    "enum": "word",
}


TIME = """\
## Late, early, repeated

Every event of a source is one of three: scored, counted as a duplicate, or a dead letter; the
report's `in` is the sum of `scored`, `duplicates` and `dead_lettered`.

**Repeated.** An event id that its event type has had within `dedup_horizon_s` (an hour) is counted
as `duplicates` and touches neither features nor votes, however late or early it says it is. One
that became a dead letter has not been had: sent again, put right or once it is time, it is new.
Each lane knows the ids it has seen itself, whichever of its partitions they were in. A producer's
retry and a topic sent again bring an event to the partition it was in, and so to its lane; sent
with another key, or with none, it may reach a partition of another lane, where it is a new event:
a flow of several lanes says so at its start. Asking across lanes would put one more exchange of all
ids between workers before every round; `lanes = 1` finds these, too.

**The clock.** What is late is held against the event time of the stream, not against the wall
clock: a backlog of yesterday is read as if it were live. Each partition of each topic has its own
clock, since after a break one may be hours behind another; a file and the simulator are one place.
The clock is the newest event time that most of the last 64 events make credible (not further beyond
their median than four times as far as their lower quartile is before it, and a second), never
beyond `cut_time`, and never goes back. So one event from next year, or a producer whose clock is
wrong, does not move it for the others, and an idle partition holds nobody. Before the round after
its 16th event nothing of a partition is refused. After a pause in the data the clock follows when
half of the 64 are newer; until then it lags, and what is later than the bound may still be let in,
never the reverse.

**Late.** An event that comes up to `late_s` (60) after the clock of its partition is put in its
place: state, and the features of every row after it, are as if it had come in time. One that comes
later becomes a dead letter, `too_late`. Events of one round are put in order together and never
make each other late, so a round of hours of recorded data has nothing late.

Nobody waits for what may come late, so rows that were scored before it came keep their scores, and
no alert is sent or taken back. Those whose features it has changed are counted as `corrected`, as
often as they change, and scored once more; where a vote comes out the other way the report says so
(`flipped`, and `flips` with event, vote, score then and now). A lane keeps `corrected_rows_max` of
its last scored rows for that, `late_s` of them at most, and of one round it scores 2,000 again at
the most; what is beyond, or was scored before a restart, is counted as `corrected_unchecked`.
In an hour of 7,289 simulated events, those of its first 40 minutes up to a minute late and cut into
rounds of 15 s, 783 scored rows were changed and 11 votes of 460 (tests/flow/test_late.py, where one
event in sixteen is flagged); with the 11 turned round, the alerts were those of the sorted file.
Rows of one time go by their place in the file, here as there.

Late is meant of one partition. After a break one may be hours behind another, and rows of entities
they share would be too late for their place. So what waits on Kafka is read by event time: while a
lane is behind (from its start, and from a full round, until it is where the partitions ended then)
it takes the oldest of what it has read first, and the lanes of a process go together. A partition
at its end holds nobody up, nor does one that has given nothing for ten seconds, nor a wrong clock.
Live events of the others wait meanwhile. With `late_s = 0` partitions are read as they come,
but for what a break has left over. What can still be too late: events that come to a
partition after others have gone on without it, as from a producer or a broker that was away alone.
Of live partitions, also of lanes in different processes, one may be 15 minutes behind another: late
is held against the one furthest behind of those heard of in the last ten seconds. What is beyond
that goes to the oldest place its entity still knows: windows count it there and not in its own
minute. It is counted as `late_beyond`, and said at the end of a run.

The rhythm of who is listened for is as had the late event come in time, but what was told of
silence stays told: an absence is not taken back, and one of a silence that was over by then is not
told afterwards. An entity that has been idle beyond its time to live starts anew at its next event,
and a late one that would have bridged the gap does not bring it back: its old state has gone by
then, and to keep all states a while longer for one event in a time to live of weeks would take
more than it gives. It is counted as `late_forgotten`.

**Early.** An event more than `early_s` (60) beyond the clock of its partition and beyond the clock
of its round becomes a dead letter, `too_early`. On Kafka the clock of the round is the wall clock,
against which `time_future_s_max` was held before, so `early_s` refuses more only where it is the
smaller of the two; a file is held against the rows around each row. One that is let in ahead of the
clock, as of a producer that is fast by less, or in a backlog that is hours behind the wall clock,
moves nobody else's time: events in time are put before it, up to 15 minutes (or `late_s`, where
that is more) ahead of the clock. Further ahead, it makes the rows of its own entities `late_beyond`
until the clock has passed it. `early_s` may be no larger than that.

The dead letter names topic, partition and offset, or the row of the file; the event itself stands
in `raw` as JSON of its fields, whatever it was encoded in, and can be sent again at any time: one
that was too early as it stands once it is time, one that was too late with another time, or to a
flow with a larger `late_s`. It is the same after a crash, in a replay, in `waxwing train` and in
`waxwing backfill`, which counts it under `reasons`: what is late follows from the rounds in the
journal alone. `late_s = 0` and `early_s = 0` refuse nothing.

**Silence.** Where nothing arrives the clock of a lane goes on with the time that passes, so that
what is overdue is noticed; a break of the process itself is no silence. This clock decides what is
due, not what is late: after a break of the brokers, what they kept is old, and is let in. Who is
silent is held against the partition furthest behind, of those heard of in the last ten seconds.
""".splitlines()
"""How time is dealt with, in prose; `features.clock` has the same for who reads the code."""


def event_page() -> str:
    """The page, Markdown."""
    lines = [
        "# Events",
        "",
        "<!-- Written by `python -m features.event_reference > docs/events.md`; a test keeps it",
        "fresh. -->",
        "",
        "Each event type is declared once, in a file of `features/events/`; the decoder, the",
        "check of every row, the Avro schemas in `deploy/schemas/`, the simulator's columns and",
        "this page come from it. On Kafka an event is Avro in Confluent framing, or a JSON object;",
        "in a file it is a row or a line. Fields that are not named here are ignored. A field that",
        "is *optional* may be absent or null; one with a *default* may be absent.",
    ]
    for event in event_types().values():
        lines += ["", f"## {event.name}", "", f"{event.doc} Topic `{event.topic}`.", ""]
        lines += ["| field | type | holds | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(f) for f in event.fields]
        lines += ["", _entities(event)]
    for event in made_types().values():
        lines += ["", f"## {event.name}", "", f"{event.doc}", ""]
        lines += ["Waxwing makes it itself: it has no topic, no schema and no decoder. Watched are"]
        lines += [f"{_watched()}."]
        lines += ["", "| field | type | holds | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(f) for f in event.fields]
    lines += [
        "",
        "## What is refused",
        "",
        "A record that is no event, or breaks the contract of its type, becomes a dead letter and",
        "the flow goes on. Times are held against the clock of the round, those of a file against",
        "the rows around them.",
        "",
        "| reason | meaning |",
        "| --- | --- |",
        *(f"| `{reason}` | {meaning} |" for reason, meaning in (REASONS | REFUSALS).items()),
        "| `not_a_row` | a line of CSV that has not the cells its header names, or a raw line that"
        " the mapping's pattern does not fit |",
        "| `no_value` | a row of a wide table whose series are all empty |",
        "| `poison` | an event that made a step raise, with the traceback |",
        "",
        *TIME,
    ]
    return "\n".join(lines) + "\n"


def _watched() -> str:
    """The entities whose silence means something, and by which events they are heard of."""
    found: dict[str, list[str]] = {}
    for event in event_types().values():
        for entity in event.silence:
            found.setdefault(entity, []).append(event.name)
    return ", ".join(f"{entity} (`{'`, `'.join(names)}`)" for entity, names in found.items())


def _row(field: Field) -> str:
    """A field as a row of the table."""
    return f"| `{field.name}` | {_TYPES[field.kind]} | {_holds(field)} | {_meaning(field)} |"


def _holds(field: Field) -> str:
    """What values a field may have."""
    said = []
    if field.kind == "string":
        said.append(f"at most {field.length_max} bytes")
    elif field.kind == "enum":
        said.append(", ".join(f"`{word}`" for word in field.values))
    elif field.kind == "time_us":
        said.append("microseconds UTC since 1970")
    elif field.minimum is not None and field.maximum is not None:
        said.append(f"{field.minimum:g} to {field.maximum:g}")
    if field.nullable:
        said.append("*optional*")
    if field.default is not None:
        value = str(field.default).lower() if isinstance(field.default, bool) else field.default
        said.append(f"*default* `{value}`")
    return "; ".join(said)


def _meaning(field: Field) -> str:
    """What a field means, with its unit."""
    said = not field.unit or field.kind == "time_us" or field.unit in field.doc
    return field.doc if said else f"{field.doc} ({field.unit})"


def _entities(event: EventType) -> str:
    """Which entities an event touches."""
    said = []
    for entity, columns in event.entities.items():
        by = " and ".join(f"`{column}`" for column in columns)
        said.append(f"{entity} ({by})")
    return f"Entities: {', '.join(said)}. Alerts name the {event.primary}."


if __name__ == "__main__":
    sys.stdout.write(event_page())
