"""Pages to look at: cards, tables and drawings in one HTML file that asks nothing of any network.

Drawings are inline SVG, coloured by the page's style for light and dark screens. Every text that
comes from data is escaped here, whoever calls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape

import numpy as np

from features.batch import Float64

__all__ = [
    "WHOLE_MAX",
    "Bar",
    "Line",
    "Plot",
    "bars",
    "cards",
    "grid",
    "page",
    "section",
    "share_text",
    "table",
    "time_text",
]

POINTS_MAX = 1_200
"""Points of a line that are drawn: twice the width of a drawing, so that each pixel has its
extremes. Chosen."""

MARKS_MAX = 400
"""Marks of a line that are drawn. Chosen: more are one blot."""

WHOLE_MAX = 40
"""Longest text with a hyphen that keeps to one line. Chosen: a time, or the name of an entity with
its type."""

_MARGIN = (10.0, 14.0, 26.0, 58.0)
"""Above, right, below, left of a drawing, in its units."""

_DIGIT = 6.5
"""Width of a digit, in the same units. Chosen: of text of 11 units, rounded up."""

_STYLE = """
:root{--paper:#fbfaf8;--card:#fff;--ink:#1d2430;--soft:#667085;--rule:#e6e3dd;--a:#2f6f8f;
--b:#b7562b;--c:#5b7f3a;--d:#7a5195;--e:#b08900;--f:#444c5c;--bad:#c8321f;--fit:#2f6f8f14;
--odd:#c8321f1f}
@media(prefers-color-scheme:dark){:root{--paper:#14171c;--card:#1b1f26;--ink:#e8e6e1;
--soft:#9aa3b2;--rule:#2c323c;--a:#6db3d4;--b:#e08a5c;--c:#93bd6a;--d:#b893d6;--e:#dfbb45;
--f:#b7bfcc;--bad:#ff6b57;--fit:#6db3d41a;--odd:#ff6b572b}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:34px 24px 80px}
h1{font-size:27px;margin:0;letter-spacing:-.02em}
h2{font-size:18px;margin:40px 0 4px;letter-spacing:-.01em}
.sub,.note{color:var(--soft);margin:2px 0 14px}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:22px 0 6px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 18px;
min-width:128px}
.card b{display:block;font-size:24px;font-variant-numeric:tabular-nums;letter-spacing:-.02em}
.card.bad b{color:var(--bad)}
.card span{color:var(--soft);font-size:13px}
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(500px,1fr))}
.grid+.scroll{margin-top:14px}
@media(max-width:620px){.grid{grid-template-columns:1fr}}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:10px;
padding:10px 12px 4px}
figcaption{font-weight:600;font-size:14px;overflow-wrap:anywhere}
figcaption small{font-weight:400;color:var(--soft);margin-left:6px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:11px;font-family:inherit}
.axis{stroke:var(--rule);stroke-width:1}
.ln{fill:none;stroke-width:1.3;stroke-linejoin:round}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:7px 12px;border-bottom:1px solid var(--rule);vertical-align:top}
tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:500;font-size:13px;white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.t{white-space:nowrap;font-variant-numeric:tabular-nums}
.key{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft);margin:4px 0 6px}
.key i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;
vertical-align:middle}
"""

_COLOURS = ("a", "b", "c", "d", "e", "f")
"""Colours of lines, in turn."""


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """A whole HTML file.

    Parameters
    ----------
    title, subtitle : texts
    parts : HTML made by the other functions here
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p>\n'
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def section(title: str, note: str, body: str) -> str:
    """A heading, what one is looking at, and the thing itself."""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<h2>{escape(title)}</h2>{said}{body}"


def cards(items: Sequence[tuple[str, str]], bad: Sequence[str] = ()) -> str:
    """Large numbers with what they count; the labels in `bad` stand out."""
    made = "".join(
        f'<div class="card{" bad" if label in bad else ""}"><b>{escape(value)}</b>'
        f"<span>{escape(label)}</span></div>"
        for value, label in items
    )
    return f'<div class="cards">{made}</div>'


def grid(figures: Sequence[str]) -> str:
    """Drawings side by side."""
    return f'<div class="grid">{"".join(figures)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of texts; columns in `numbers` stand right. Times and names keep to one line: a
    browser would break them at their hyphens."""

    def cell(kind: str, i: int, text: str) -> str:
        whole = kind == "td" and "-" in text and len(text) <= WHOLE_MAX
        name = ' class="n"' if i in numbers else ' class="t"' if whole else ""
        return f"<{kind}{name}>{escape(text)}</{kind}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(header))
    body = "".join(
        "<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def time_text(time_us: float) -> str:
    """A moment for people."""
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where values lie on the paper: `low` at `begin`, `high` at `end`."""

    low: float
    high: float
    begin: float
    end: float

    def one(self, value: float) -> float:
        """Place of one value."""
        share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def all(self, values: Float64) -> Float64:
        """float64 (n,), places of values."""
        placed: Float64 = (values - self.low) * ((self.end - self.begin) / (self.high - self.low))
        return placed + self.begin


@dataclass(frozen=True, slots=True)
class Line:
    """One line, or one cloud of points, of a drawing.

    Parameters
    ----------
    x, y : float64 (n,), x ascending; a NaN in y breaks the line
    label : in the key; empty for none
    dots : whether each point is a dot and nothing joins them
    steps : whether the line keeps its height until the next point
    marks : float64 (m, 2), points that stand out
    told : what each mark says when pointed at
    """

    x: Float64
    y: Float64
    label: str = ""
    dots: bool = False
    steps: bool = False
    marks: Float64 = field(default_factory=lambda: np.zeros((0, 2)))
    told: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing of lines over one axis.

    Parameters
    ----------
    title, note : above it
    lines : in the order in which they are drawn
    is_time : whether x is microseconds since 1970
    bands : (from, to, kind) of x, kind `fit` or `odd`
    x_range, y_range : None fits them to the data
    x_label, y_label : along the axes; empty for none
    height : in units of which the width is 640
    x_log : whether x is the common logarithm of a share, to be told in per cent
    """

    title: str
    lines: Sequence[Line]
    note: str = ""
    is_time: bool = False
    bands: Sequence[tuple[float, float, str]] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_label: str = ""
    y_label: str = ""
    height: float = 190.0
    x_log: bool = False

    def svg(self) -> str:
        """The drawing as a figure."""
        width = 640.0
        top, right, below, left = _MARGIN
        below += 14.0 if self.x_label else 0.0
        wide = _MOMENT_US if self.is_time else None
        x_low, x_high = self.x_range or _range([line.x for line in self.lines], 0.0, wide)
        y_low, y_high = self.y_range or _range([line.y for line in self.lines], 0.06)

        at_x = _Scale(x_low, x_high, left, width - right)
        at_y = _Scale(y_high, y_low, top, self.height - below)

        parts = [_band(at_x, b, top, self.height - below, (x_low, x_high)) for b in self.bands]
        for tick in _ticks(y_low, y_high, 4):
            y = at_y.one(tick)
            parts.append(
                f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
            )
        ticks = _time_ticks(x_low, x_high) if self.is_time else [
            (tick, f"{100.0 * 10.0**tick:g} %" if self.x_log else _short(tick))
            for tick in _ticks(x_low, x_high, 6)
        ]  # fmt: skip
        for tick, text in ticks:
            x, anchor = at_x.one(tick), "middle"
            if x + len(text) * _DIGIT / 2 > width:  # the last one would be cut off
                x, anchor = width, "end"
            parts.append(
                f'<text x="{x:.1f}" y="{self.height - below + 16:.1f}"'
                f' text-anchor="{anchor}">{escape(text)}</text>'
            )
        for i, line in enumerate(self.lines):
            parts.append(_path(line, at_x, at_y, _COLOURS[i % len(_COLOURS)]))
        parts += [_marks(line, at_x, at_y) for line in self.lines]
        parts += self._labels(width, top, left)
        named = [(i, line.label) for i, line in enumerate(self.lines) if line.label]
        key = "".join(
            f'<span><i style="background:var(--{_COLOURS[i % len(_COLOURS)]})"></i>'
            f"{escape(label)}</span>"
            for i, label in named
        )
        note = f"<small>{escape(self.note)}</small>" if self.note else ""
        return (
            f"<figure><figcaption>{escape(self.title)}{note}</figcaption>"
            + (f'<div class="key">{key}</div>' if key else "")
            + f'<svg viewBox="0 0 {width:g} {self.height:g}" role="img">{"".join(parts)}</svg>'
            "</figure>"
        )

    def _labels(self, width: float, top: float, left: float) -> list[str]:
        """Names of the axes."""
        made = []
        if self.x_label:
            made.append(
                f'<text x="{(width + left) / 2:.0f}" y="{self.height - 4:.0f}"'
                f' text-anchor="middle">{escape(self.x_label)}</text>'
            )
        if self.y_label:
            middle = (top + self.height) / 2
            made.append(
                f'<text transform="rotate(-90 12 {middle:.0f})" x="12" y="{middle:.0f}"'
                f' text-anchor="middle">{escape(self.y_label)}</text>'
            )
        return made


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a drawing.

    Parameters
    ----------
    label : before it
    value : its length; NaN draws none
    low, high : ends of its interval, NaN for none
    strong : whether it stands out
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    strong: bool = False


def share_text(value: float, signed: bool = False) -> str:
    """A share, or the difference of two, with three digits; what rounds to nothing has no sign.

    >>> share_text(-0.0002), share_text(0.0002, signed=True), share_text(0.25, signed=True)
    ('0.000', '0.000', '+0.250')
    """
    said = f"{value:+.3f}" if signed else f"{value:.3f}"
    return "0.000" if said in ("+0.000", "-0.000") else said


def bars(title: str, note: str, items: Sequence[Bar], most: float) -> str:
    """Bars from 0 to `most` with their values and intervals, one below the other."""
    width, left, right, step = 640.0, 170.0, 70.0, 24.0
    scale = (width - left - right) / (most or 1.0)
    parts = []
    for i, item in enumerate(items):
        y = 6.0 + i * step
        known = not math.isnan(item.value)
        length = max(0.0, item.value * scale) if known else 0.0
        colour = "b" if item.strong else "a"
        parts.append(
            f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(item.label)}</text>'
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="15" rx="2"'
            f' fill="var(--{colour})" opacity=".82"/>'
        )
        end = left + length
        if not math.isnan(item.low) and not math.isnan(item.high):
            x1, x2 = left + item.low * scale, left + item.high * scale
            parts.append(
                f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y + 7.5}" y2="{y + 7.5}"'
                ' stroke="var(--ink)" stroke-width="1.4"/>'
            )
            end = max(end, x2)
        # A count is a whole number, anything else a share.
        value = f"{item.value:,}" if isinstance(item.value, int) else share_text(item.value)
        text = value if known else "-"
        parts.append(f'<text x="{end + 6:.1f}" y="{y + 12}">{text}</text>')
    said = f"<small>{escape(note)}</small>" if note else ""
    height = 10.0 + step * len(items)
    return (
        f"<figure><figcaption>{escape(title)}{said}</figcaption>"
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img">{"".join(parts)}</svg></figure>'
    )


_MOMENT_US = 30e6
"""Room on both sides of a drawing of one moment; chosen: a minute in all."""


def _range(
    columns: Sequence[Float64], room: float, wide: float | None = None
) -> tuple[float, float]:
    """Lowest and highest of some columns, with a share of room on both sides; never empty.

    Where they are one value it has `wide` on both sides, a tenth of it where that is None.
    """
    known = [c[np.isfinite(c)] for c in columns]
    known = [c for c in known if len(c)]
    if not known:
        return 0.0, 1.0
    low, high = min(float(c.min()) for c in known), max(float(c.max()) for c in known)
    if high - low <= 1e-12 * max(abs(high), 1.0):
        wide = wide or abs(high) * 0.1 or 1.0
        return low - wide, high + wide
    return low - room * (high - low), high + room * (high - low)


def _band(
    at_x: _Scale, band: tuple[float, float, str], top: float, bottom: float,
    inside: tuple[float, float],
) -> str:  # fmt: skip
    """A stretch of x behind the lines."""
    begin, end = max(band[0], inside[0]), min(band[1], inside[1])
    if end < begin:
        return ""
    x1, x2 = at_x.one(begin), at_x.one(end)
    return (
        f'<rect x="{x1:.1f}" y="{top}" width="{max(x2 - x1, 1.0):.1f}" height="{bottom - top:.1f}"'
        f' fill="var(--{band[2]})"/>'
    )


def _thinned(x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """Fewer points of a line that look the same: lowest and highest of each stretch."""
    if len(x) <= POINTS_MAX:
        return x, y
    edges = np.linspace(0, len(x), POINTS_MAX // 2 + 1).astype(np.int64)
    kept: list[int] = []
    for begin, end in itertools.pairwise(edges.tolist()):
        part = y[begin:end]
        if np.isnan(part).all():
            kept.append(int(begin))
            continue
        ends = sorted({int(begin + np.nanargmin(part)), int(begin + np.nanargmax(part))})
        broken = np.flatnonzero(np.isnan(part))[:1] + begin
        kept += sorted({*ends, *broken.tolist()})
    at = np.array(kept)
    return x[at], y[at]


def _path(line: Line, at_x: _Scale, at_y: _Scale, colour: str) -> str:
    """A line, or its dots."""
    if not len(line.x):
        return ""
    x, y = _thinned(np.asarray(line.x, np.float64), np.asarray(line.y, np.float64))
    px, py = at_x.all(x), at_y.all(y)
    if line.dots:
        return "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2" fill="var(--{colour})" opacity=".55"/>'
            for a, b in zip(px, py, strict=True)
            if not math.isnan(b)
        )
    words: list[str] = []
    up = True
    for a, b in zip(px.tolist(), py.tolist(), strict=True):
        if math.isnan(b):
            up = True
            continue
        words.append(f"M{a:.1f} {b:.1f}" if up else f"H{a:.1f}V{b:.1f}" if line.steps
                     else f"L{a:.1f} {b:.1f}")  # fmt: skip
        up = False
    return f'<path class="ln" stroke="var(--{colour})" d="{"".join(words)}"/>'


def _marks(line: Line, at_x: _Scale, at_y: _Scale) -> str:
    """Points that stand out, each with what it says."""
    made = []
    for i, (x, y) in enumerate(np.asarray(line.marks)[:MARKS_MAX].tolist()):
        told = f"<title>{escape(line.told[i])}</title>" if i < len(line.told) else ""
        made.append(
            f'<circle cx="{at_x.one(x):.1f}" cy="{at_y.one(y):.1f}"'
            f' r="3.4" fill="var(--bad)" stroke="var(--card)" stroke-width="1">{told}</circle>'
        )
    return "".join(made)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers inside a range, about so many."""
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0.0 else 1.0
    step = next(power * m for m in (1.0, 2.0, 2.5, 5.0, 10.0) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(int((high - first * step) / step + 1e-9) + 1)]


def _short(value: float) -> str:
    """A number of an axis."""
    size = abs(value)
    if size >= 1e6:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    if size >= 1_000:
        return f"{value:,.0f}"
    return f"{round(value, 10):g}"


_STEPS_S = (1, 5, 15, 30, 60, 300, 900, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400, 172_800,
            604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000)  # fmt: skip


def _time_ticks(low_us: float, high_us: float) -> list[tuple[float, str]]:
    """Moments inside a range, at most six, with texts as short as they are plain."""
    span_s = (high_us - low_us) / 1e6
    step_s = next((s for s in _STEPS_S if span_s / s <= 6), _STEPS_S[-1])
    first = math.ceil(low_us / 1e6 / step_s)
    form = "%Y-%m" if step_s >= 2_592_000 else "%b %d" if step_s >= 86_400 else "%H:%M"
    form = "%H:%M:%S" if step_s < 60 else form
    form = "%b %d %H:%M" if form == "%H:%M" and span_s > 86_400 else form
    found = []
    for i in range(int(high_us / 1e6 / step_s) - first + 1):
        moment = (first + i) * step_s
        found.append((moment * 1e6, f"{datetime.fromtimestamp(moment, UTC):{form}}"))
    return found
