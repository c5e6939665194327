"""Small plots as SVG in a Markdown image, drawn by hand: 0.1 ms each, and mostly short enough to stand inline.

Dagster shows a Markdown value inline below `INLINE` characters and behind a click above. HTML and SVG that stand in the
Markdown itself are not drawn, an image whose source is a data URI is. Colours suit a light and a dark page.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import dagster as dg

INLINE = 1000
WIDTH, ROW = 420, 15
MOST_POINTS = 20  # a panel of the curves; four of them stay inline
UP, DOWN, QUIET = "seagreen", "indianred", "gray"

T = TypeVar("T")
Bar = tuple[str, float]
Interval = tuple[str, float, float, float]


def bars(title: str, items: Sequence[Bar], unit: str = "{:+.2f}") -> dg.MetadataValue:
    """A horizontal bar an item, from zero to the right or to the left, with its name and value beside it."""
    known = [(name, float(value)) for name, value in items if value is not None and math.isfinite(value)]
    if not known:
        return dg.MetadataValue.text("no value is known")
    for labels in ([f"{_name(n)} {unit.format(v)}" for n, v in known], [_name(n, 10) for n, _ in known], None):
        markdown = _bars(title, [value for _, value in known], labels)
        if len(markdown) < INLINE:
            break
    return dg.MetadataValue.md(markdown)


def _bars(title: str, values: Sequence[float], labels: Sequence[str] | None) -> str:
    left = 150 if labels else 4
    x = _scale([0.0, *values], left + 8, WIDTH - 4)
    row = ROW if labels else 7
    parts = [_line(x(0), 0, f"v{row * len(values)}", QUIET)]
    for colour, chosen in ((UP, lambda v: v > 0), (DOWN, lambda v: v < 0)):
        drawn = "".join(
            f"M{x(0)} {row * place + row // 2}H{x(value)}" for place, value in enumerate(values) if chosen(value)
        )
        if drawn:
            parts.append(f"<path stroke='{colour}' stroke-width='{row - 5}' d='{drawn}'/>")
    if labels:
        parts += [f"<text x='{left}' y='{row * place + 11}'>{label}</text>" for place, label in enumerate(labels)]
    return _image(title, row * len(values), "".join(parts))


def intervals(title: str, items: Sequence[Interval]) -> dg.MetadataValue:
    """A line an item from low to high with the middle marked, against zero: name, middle, low, high."""
    known = [(n, float(m), float(lo), float(hi)) for n, m, lo, hi in items if all(map(math.isfinite, (m, lo, hi)))]
    if not known:
        return dg.MetadataValue.text("no interval is known")
    left = 170
    x = _scale([0.0, *(v for _, *values in known for v in values)], left + 8, WIDTH - 4)
    parts = [_line(x(0), 0, f"v{ROW * len(known)}", QUIET)]
    lines = "".join(f"M{x(low)} {ROW * n + 7}H{x(high)}" for n, (_, _, low, high) in enumerate(known))
    dots = "".join(f"M{x(middle) - 2} {ROW * n + 7}h5" for n, (_, middle, _, _) in enumerate(known))
    parts.append(f"<path stroke='steelblue' stroke-width='2' d='{lines}'/>")
    parts.append(f"<path stroke='steelblue' stroke-width='8' d='{dots}'/>")
    parts += [
        f"<text x='{left}' y='{ROW * n + 11}'>{_name(name, 18)} {middle:+.2f}</text>"
        for n, (name, middle, _, _) in enumerate(known)
    ]
    return dg.MetadataValue.md(_image(title, ROW * len(known), "".join(parts)))


def sequence(title: str, points: Sequence[tuple[float, float, float]]) -> dg.MetadataValue:
    """An estimate with its bounds as it went on, left to right, against zero: middle, low, high; the latest is said."""
    known = [point for point in points if all(map(math.isfinite, point))]
    if not known:
        return dg.MetadataValue.text("no interval is known yet")
    known = _thinned(known)
    height = 90
    y = _scale([0.0, *(-value for point in known for value in point)], 16, height - 4)
    xs = [8 + round((WIDTH - 24) * n / max(1, len(known) - 1)) for n in range(len(known))]
    lines = "".join(f"M{x} {y(-low)}V{y(-high)}" for x, (_, low, high) in zip(xs, known, strict=True))
    dots = "".join(f"M{x - 2} {y(-middle)}h5" for x, (middle, _, _) in zip(xs, known, strict=True))
    middle, low, high = known[-1]
    body = (
        f"<path stroke='{QUIET}' d='M0 {y(0)}h{WIDTH}'/><path stroke='steelblue' stroke-width='2' d='{lines}'/>"
        f"<path stroke='steelblue' stroke-width='5' d='{dots}'/>"
        f"<text x='{WIDTH - 4}' y='11'>{middle:+.3g} [{low:+.3g}, {high:+.3g}]</text>"
    )
    return dg.MetadataValue.md(_image(title, height, body))


def curves(title: str, series: Mapping[str, Sequence[float]]) -> dg.MetadataValue:
    """A small panel a series, two beside each other, each on its own scale with its first and last value."""
    known = {name: [v for v in values if math.isfinite(v)] for name, values in series.items()}
    known = {name: _thinned(values) for name, values in known.items() if len(values) > 1}
    if not known:
        return dg.MetadataValue.text("fewer than two steps: no curve")
    panel, height = WIDTH // 2, 48
    texts, lines = "", ""
    for place, (name, values) in enumerate(known.items()):
        left, top = panel * (place % 2), height * (place // 2)
        said = f"{_name(name)} {values[0]:.3g} → {values[-1]:.3g}"
        texts += f"<text x='{left + panel - 10}' y='{top + 10}'>{said}</text>"
        lines += _polyline(values, left + 10, top + 15, panel - 20, 28)
    drawn = f"{texts}<path fill='none' stroke='steelblue' d='{lines}'/>"
    return dg.MetadataValue.md(_image(title, height * ((len(known) + 1) // 2), drawn))


def _polyline(values: Sequence[float], left: int, top: int, width: int, height: int) -> str:
    """A line through the values in relative whole steps, which is the shortest way to write it."""
    low, high = min(values), max(values)
    # What differs by rounding alone is level.
    level = high - low <= 1e-6 * max(abs(low), abs(high))
    ys = [top + (height // 2 if level else round(height * (high - v) / (high - low))) for v in values]
    xs = [left + round(width * n / (len(values) - 1)) for n in range(len(values))]
    steps = [f"{x1 - x0}{y1 - y0}" if y1 < y0 else f"{x1 - x0} {y1 - y0}" for (x0, y0), (x1, y1) in _pairs(xs, ys)]
    return f"M{xs[0]} {ys[0]}l{' '.join(steps)}"


def _pairs(xs: Sequence[int], ys: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    points = list(zip(xs, ys, strict=True))
    return list(zip(points, points[1:], strict=False))


def _thinned(values: Sequence[T]) -> list[T]:
    """At most `MOST_POINTS` of the values, the first and the last among them."""
    if len(values) <= MOST_POINTS:
        return list(values)
    last = len(values) - 1
    return [values[round(n * last / (MOST_POINTS - 1))] for n in range(MOST_POINTS)]


def _scale(values: Sequence[float], left: int, right: int):
    low, high = min(values), max(values)
    span = high - low or 1.0
    return lambda value: left + round((right - left) * (value - low) / span)


def _line(x: int, y: int, way: str, colour: str) -> str:
    return f"<path stroke='{colour}' d='M{x} {y}{way}'/>"


def _name(text: str, longest: int = 18) -> str:
    """A name that agents may have chosen, as an SVG may hold it: letters, digits and a few marks, cut."""
    clean = re.sub(r"[^\w .:@+-]", "_", str(text))
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"


def _image(title: str, height: int, body: str) -> str:
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' fill='{QUIET}' "
        f"text-anchor='end' style='font:11px sans-serif'>{body}</svg>"
    )
    # In angle brackets a destination may hold spaces and brackets, and neither < nor >.
    return f"![{title}](<data:image/svg+xml;utf8,{svg.replace('%', '%25').replace('<', '%3C').replace('>', '%3E')}>)"
