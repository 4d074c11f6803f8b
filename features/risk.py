"""What is known of an entity's frauds: verdicts arrive late, days after the events they speak of.

For each of the last 40 days (UTC, by event time) an entity keeps how many of its events are known
to be fraud and, where a share is asked for, how many events it had. An event is known to be genuine
once nobody has called it a fraud for a week: most issuers report frauds only. So the windows end a
week ago, and what is known earlier counts too.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from features.speed import AHEAD, borrowed, inlined, kernel, prefetch

__all__ = [
    "COUNTED_FROM",
    "DAY_US",
    "DELAY_DAYS",
    "PRIOR_EVENTS",
    "PRIOR_SHARE",
    "RISK_DAYS",
    "RISK_FLOATS",
    "apply_labels",
    "run_risk",
]

DAY_US = 86_400_000_000

DELAY_DAYS = 7
"""Full days after which an event that nobody has called a fraud is known to be genuine. Origin: the
delay of Le Borgne et al., Fraud Detection Handbook (2022), chapter 3, whose terminal features end
exactly 7 days before the payment; here the day that begins it is not yet full and does not
count."""

RISK_DAYS = 40
"""Days kept; the longest window (31 days) and the week before it need 39."""

PRIOR_EVENTS = 10.0
PRIOR_SHARE = 0.001
"""A share is taken as if so many more events were known, of which so many are frauds: one fraud
among one event is no share of 1. Chosen: about one payment in a thousand is fraud, and ten events
are little against an active merchant's week."""

COUNTED_FROM = 4
"""Codes of operations from here on need to know how many events the entity had each day."""

RISK_FLOATS = 4
"""Per instance: newest day (0 for none), event time in us of the newest fraud known (0 for none),
newest verdict (0 none, 1 genuine, 2 fraud), frauds known ever."""

_FRAUDS_MAX = 65_535
_EVENTS_MAX = 4_294_967_295
"""Most that is counted of a day: what the counters hold."""


@inlined
def _advance(row, at, frauds, frauds_at, events, events_at, day):
    """Make `day` the newest one, with empty counters for the days since the one before."""
    newest = int(row[at])
    if day <= newest:
        return
    if newest > 0:
        for d in range(max(newest + 1, day - RISK_DAYS + 1), day + 1):
            frauds[frauds_at + d % RISK_DAYS] = 0
            if events_at >= 0:
                events[events_at + d % RISK_DAYS] = 0
    row[at] = day


@inlined
def _total(counts, at, first, last):
    """Sum of the counters of the days first..last, in at most two stretches."""
    begin = at + first % RISK_DAYS
    end = begin + last - first + 1
    total = 0
    for place in range(begin, min(end, at + RISK_DAYS)):
        total += counts[place]
    for place in range(at, end - RISK_DAYS):
        total += counts[place]
    return float(total)


@inlined
def _known(frauds, frauds_at, events, events_at, first, last, ever):
    """Events of the days first..last whose verdict is known: all of them, after a week."""
    if ever == 0.0:
        return _total(events, events_at, first, last)
    total = 0.0
    for d in range(first, last + 1):
        place = d % RISK_DAYS
        # A fraud may be told of an event that came before the entity was watched.
        total += max(float(events[events_at + place]), float(frauds[frauds_at + place]))
    return total


@inlined
def _run_day(frauds, frauds_at, events, events_at, last, today):
    """First day of the run of days with frauds that ends on the day `last`.

    Days without events are passed over, one with genuine events only ends it.
    """
    first = last
    for d in range(last - 1, today - RISK_DAYS, -1):
        if frauds[frauds_at + d % RISK_DAYS] > 0:
            first = d
        elif events[events_at + d % RISK_DAYS] > 0:
            break
    return first


@inlined
def _statistic(op, days, row, at, frauds, frauds_at, events, events_at, now_us):
    """One operation's value for an event of now."""
    ever, last_us = row[at + 3], row[at + 1]
    today = int(row[at])
    if op == 0:
        if ever == 0.0:
            return 0.0
        return _total(frauds, frauds_at, today - DELAY_DAYS - days, today)
    if op == 1:
        return ever
    if op == 2:
        return row[at + 2] - 1.0 if row[at + 2] > 0.0 else float("nan")
    if op == 3:
        return (now_us - last_us) / 1e6 if last_us > 0.0 else float("nan")
    full = today - DELAY_DAYS - 1
    if op == 4:
        known = _known(frauds, frauds_at, events, events_at, full - days + 1, full, ever)
        found = 0.0
        if ever > 0.0:
            young = _total(frauds, frauds_at, full + 1, today)
            known += young
            found = young + _total(frauds, frauds_at, full - days + 1, full)
        return (found + PRIOR_EVENTS * PRIOR_SHARE) / (known + PRIOR_EVENTS)
    if last_us <= 0.0:
        return float("nan")
    if op == 6:
        last = int(last_us // DAY_US)
        return now_us / 1e6 - _run_day(frauds, frauds_at, events, events_at, last, today) * 86_400.0
    first = max(int(last_us // DAY_US) + 1, today - RISK_DAYS + 1)
    return _known(frauds, frauds_at, events, events_at, first, full, ever)


@kernel
def run_risk(
    slots, taken_us, head, reals_in, feeds, counted, plan, plan_at, state, frauds, events, out
):  # fmt: skip
    """Risk of rows in order.

    Parameters
    ----------
    reals_in : not used; all families are called alike
    feeds : bool (instances, event types)
    counted : int64 (instances,), place among the instances that count events, -1 for none
    plan : int64 (features, 4): operation, instance, days, where to
    plan_at : int64 (event types + 1,)
    state : float64 (slots, instances * 4)
    frauds : uint16 (slots, instances * 40), frauds known by day, day d at d % 40
    events : uint32 (slots, counting instances * 40), events by day
    """
    state, frauds, events = borrowed(state, frauds, events)
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(state, slots[i + AHEAD])
            prefetch(events, slots[i + AHEAD])
        code, slot = head[i, 2], slots[i]
        row, of_day, of_events = state[slot], frauds[slot], events[slot]
        today = taken_us[i] // DAY_US
        for q in range(len(counted)):
            at, events_at = q * RISK_FLOATS, counted[q] * RISK_DAYS
            _advance(row, at, of_day, q * RISK_DAYS, of_events, events_at, today)
        for k in range(plan_at[code], plan_at[code + 1]):
            q = plan[k, 1]
            out[i, plan[k, 3]] = _statistic(
                plan[k, 0], plan[k, 2], row, q * RISK_FLOATS, of_day, q * RISK_DAYS, of_events,
                counted[q] * RISK_DAYS, taken_us[i],
            )  # fmt: skip
        for q in range(len(counted)):
            if feeds[q, code] and counted[q] >= 0:
                place = counted[q] * RISK_DAYS + today % RISK_DAYS
                if of_events[place] < _EVENTS_MAX:
                    of_events[place] += 1


@kernel
def _newest_fraud(frauds, at, today):
    """End of the newest day kept with a fraud, in us, or of the day before those kept."""
    for d in range(today, today - RISK_DAYS, -1):
        if frauds[at + d % RISK_DAYS] > 0:
            return float((d + 1) * DAY_US - 1)
    return float((today - RISK_DAYS + 1) * DAY_US - 1)


@kernel
def apply_labels(
    slots, codes, time_us, verdicts, before, newest_us, feeds, counted, state, frauds, events
):
    """Let verdicts on events become known, one after another.

    Parameters
    ----------
    slots : int64 (n,), of the entities
    codes : int64 (n,), event types of the events
    time_us : int64 (n,), event times, not after the newest their entities have seen
    verdicts : int64 (n,), 1 genuine, 2 fraud
    before : int64 (n,), what was known of the event: 0 nothing, 1 genuine, 2 fraud
    newest_us : int64 (slots,), newest time of each entity
    feeds, counted, state, frauds, events : as of `run_risk`
    """
    for i in range(len(slots)):
        row, of_day, of_events = state[slots[i]], frauds[slots[i]], events[slots[i]]
        today = newest_us[slots[i]] // DAY_US
        day = time_us[i] // DAY_US
        for q in range(len(counted)):
            if not feeds[q, codes[i]] or verdicts[i] == before[i]:
                continue
            at, place = q * RISK_FLOATS, q * RISK_DAYS + day % RISK_DAYS
            events_at = counted[q] * RISK_DAYS
            _advance(row, at, of_day, q * RISK_DAYS, of_events, events_at, today)
            kept = today - day < RISK_DAYS
            row[at + 2] = verdicts[i]
            if verdicts[i] == 2:
                if kept and of_day[place] < _FRAUDS_MAX:
                    of_day[place] += 1
                row[at + 3] += 1.0
                row[at + 1] = max(row[at + 1], float(time_us[i]))
            elif before[i] == 2:
                if kept and of_day[place] > 0:
                    of_day[place] -= 1
                row[at + 3] = max(row[at + 3] - 1.0, 0.0)
                if row[at + 3] == 0.0:
                    row[at + 1] = 0.0
                elif row[at + 1] == float(time_us[i]):
                    newest = _newest_fraud(of_day, q * RISK_DAYS, today)
                    row[at + 1] = min(newest, float(newest_us[slots[i]]))
