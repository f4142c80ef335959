"""Small plots as inline SVG, readable in black and white: marks differ in shape, lines in dashes, bars in hatches.

Every plot is 480 units wide with text of 13, so that it can be read at phone width. The numbers stand
in a table below each plot, so the plot's label only says what it shows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

_WIDTH = 480
_LINE = 17  # units from one name to the next
_HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" fill="#fff"/><rect width="2" height="5" class="ink"/></pattern></defs>'
)


class Dot(NamedTuple):
    """One value, as a number and as text, with its interval (low, high). filled: the one that matters."""

    name: str
    value: float
    text: str
    interval: Sequence[float]
    filled: bool


class Point(NamedTuple):
    """A variant with the interval (low, high) of its y. filled: the one that matters."""

    name: str
    x: float
    y: float
    interval: Sequence[float]
    filled: bool


class Spot(NamedTuple):
    """A variant without interval. in_line: it may be part of the front; filled: it is on it in all respects."""

    name: str
    x: float
    y: float
    in_line: bool
    filled: bool
    chosen: bool


class Bar(NamedTuple):
    """A bar of three parts, of which `text` says the sum."""

    name: str
    parts: tuple[float, float, float]
    text: str


class Scale(NamedTuple):
    """A linear axis from data to units of the plot."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def draw_dot_and_whisker(dots: Sequence[Dot], label: str) -> Markup:
    """Draw one line per stage: a dot at the value, a whisker over the interval, the value behind it."""
    ticks = choose_ticks(min(dot.interval[0] for dot in dots), max(dot.interval[1] for dot in dots))
    across, height = Scale(ticks[0], ticks[-1], 204, 420), 26 * len(dots) + 48
    parts = [_grid(across(tick), 4, height - 40, _tick(tick, ticks)) for tick in ticks]
    for index, dot in enumerate(dots):
        y, x = 20 + 26 * index, across(dot.value)
        weight = ' font-weight="bold"' if dot.filled else ""
        parts += [
            f'<text x="190" y="{y + 4}" text-anchor="end"{weight}>{escape(_short(dot.name))}</text>',
            f'<path class="whisker" d="M{across(dot.interval[0])} {y}H{across(dot.interval[1])}"/>',
            _mark(x, y, dot.filled),
            f'<text x="474" y="{y + 4}" text-anchor="end"{weight}>{escape(dot.text)}</text>',
        ]
    parts.append(f'<text x="312" y="{height - 6}" text-anchor="middle">{escape(label)}</text>')
    return _svg(height, f"{label} with 95 % interval for {len(dots)} stages", parts)


def draw_scatter(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Draw size against quality: up and left is better; whiskers are 95 % intervals."""
    x_ticks = choose_ticks(0, max(point.x for point in points))
    y_ticks = choose_ticks(min(point.interval[0] for point in points), max(point.interval[1] for point in points))
    across, up = Scale(x_ticks[0], x_ticks[-1], 60, 460), Scale(y_ticks[0], y_ticks[-1], 220, 32)
    parts = [_grid(across(tick), 32, 220, _tick(tick, x_ticks)) for tick in x_ticks]
    parts += [_row_grid(up(tick), 60, 460, _tick(tick, y_ticks)) for tick in y_ticks]
    spots = [(across(point.x), up(point.y)) for point in points]
    for point, (x, y) in zip(points, spots, strict=True):
        low, high = point.interval
        parts += [f'<path class="whisker" d="M{x} {up(low)}V{up(high)}"/>', _mark(x, y, point.filled)]
    parts += _names([_short(point.name) for point in points], spots, lowest=220)
    parts.append(f'<text x="260" y="258" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="4" y="12">{escape(y_label)}</text>')
    return _svg(264, f"{y_label} against {x_label} for {len(points)} variants", parts)


def draw_front(spots: Sequence[Spot], x_label: str, y_label: str) -> Markup:
    """Draw spots of which less x and more y is better; a line joins the best for each x. Names have their own
    column.
    """
    bottom = 44 + max(176, _LINE * len(spots))
    x_ticks, y_ticks = (
        choose_ticks(min(values), max(values)) for values in ([one.x for one in spots], [one.y for one in spots])
    )
    across, up = Scale(x_ticks[0], x_ticks[-1], 52, 232), Scale(y_ticks[0], y_ticks[-1], bottom, 32)
    parts = [_grid(across(tick), 32, bottom, _tick(tick, x_ticks)) for tick in x_ticks]
    parts += [_row_grid(up(tick), 52, 232, _tick(tick, y_ticks)) for tick in y_ticks]
    order = sorted(spots, key=lambda one: (-one.y, one.x))
    heights = _apart([up(one.y) for one in order], 36, bottom)
    for one, height in zip(order, heights, strict=True):
        parts.append(f'<path class="leader" d="M{across(one.x)} {up(one.y)}L262 {height}"/>')
    if line := _staircase([(one.x, one.y) for one in spots if one.in_line]):
        steps = "".join(f"H{across(x)}V{up(y)}" for x, y in line)
        parts.append(f'<path class="front" d="M{across(line[0][0])} {bottom}{steps}H232"/>')
    for one, height in zip(order, heights, strict=True):
        x, y = across(one.x), up(one.y)
        parts.append(_mark(x, y, one.filled))
        if one.chosen:
            parts.append(f'<circle class="ring" cx="{x}" cy="{y}" r="9"/>')
        weight = ' font-weight="bold"' if one.chosen else ""
        parts.append(f'<text x="266" y="{height + 4}"{weight}>{escape(_both_ends(one.name))}</text>')
    parts.append(f'<text x="142" y="{bottom + 38}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="4" y="12">{escape(y_label)}</text>')
    return _svg(bottom + 44, f"{y_label} against {x_label} for {len(spots)} variants", parts)


def draw_learning_curve(
    train: Sequence[tuple[float, float]], validation: Sequence[tuple[float, float]], best_step: float, label: str
) -> Markup:
    """Return a value by step, in training (thin line) and validation (dashed line, squares); the best step is marked.

    A loss starts at 0; what was measured in validation alone, such as a score, where its values start.
    """
    both = [*train, *validation]
    values = [value for _, value in both] + [0.0] * bool(train)
    x_ticks, y_ticks = choose_ticks(0, max(step for step, _ in both)), choose_ticks(min(values), max(values))
    across, up = Scale(x_ticks[0], x_ticks[-1], 52, 400), Scale(y_ticks[0], y_ticks[-1], 220, 32)
    parts = [_grid(across(tick), 32, 220, _tick(tick, x_ticks)) for tick in x_ticks]
    parts += [_row_grid(up(tick), 52, 400, _tick(tick, y_ticks)) for tick in y_ticks]
    parts.append(f'<path class="best" d="M{across(best_step)} 32V220"/>')
    parts.append(f'<text x="{across(best_step)}" y="26" text-anchor="middle">best: {best_step:g}</text>')
    names: list[tuple[str, float, float]] = []
    for name, line in (("validation", validation), ("train", train)):
        if not line:
            continue
        spots = [(across(step), up(value)) for step, value in line]
        parts.append(f'<path class="{name}" d="M{"L".join(f"{x} {y}" for x, y in spots)}"/>')
        if name == "validation":
            parts += [f'<rect x="{x - 3}" y="{y - 3}" width="6" height="6"/>' for x, y in spots]
        names.append((name, spots[-1][0], spots[-1][1]))
    parts += _end_names(names, lowest=220)
    parts.append('<text x="226" y="258" text-anchor="middle">step</text>')
    parts.append(f'<text x="4" y="12">{escape(label)}</text>')
    return _svg(264, f"{label} by step", parts)


def draw_reliability(bins: Sequence[tuple[float, float, int]]) -> Markup:
    """Share right by mean stated probability, with the number of rows beside each dot."""
    ticks = choose_ticks(0, 1)
    across, up = Scale(0, 1, 60, 440), Scale(0, 1, 260, 32)
    parts = [_grid(across(tick), 32, 260, _tick(tick, ticks)) for tick in ticks]
    parts += [_row_grid(up(tick), 60, 440, _tick(tick, ticks)) for tick in ticks]
    parts.append(f'<path class="even" d="M{across(0)} {up(0)}L{across(1)} {up(1)}"/>')
    spots = [(across(said), up(right)) for said, right, _ in bins]
    parts.append(f'<path class="train" d="M{"L".join(f"{x} {y}" for x, y in spots)}"/>')
    parts += [_mark(x, y, filled=True) for x, y in spots]
    parts += _names([f"{n:,} rows" for _, _, n in bins], spots, lowest=260)
    parts.append('<text x="250" y="298" text-anchor="middle">probability that it states</text>')
    parts.append('<text x="4" y="12">share right</text>')
    return _svg(304, f"share of right labels by stated probability, in {len(bins)} ranges", parts)


def draw_risk_coverage(points: Sequence[tuple[float, float]]) -> Markup:
    """Draw the share of wrong answers by the share of rows that are answered, the surest first."""
    ticks, risks = choose_ticks(0, 1), choose_ticks(0, max(0.01, *(risk for _, risk in points)))
    across, up = Scale(0, 1, 60, 440), Scale(0, risks[-1], 260, 32)
    parts = [_grid(across(tick), 32, 260, _tick(tick, ticks)) for tick in ticks]
    parts += [_row_grid(up(tick), 60, 440, _tick(tick, risks)) for tick in risks]
    spots = [(across(coverage), up(risk)) for coverage, risk in points]
    parts.append(f'<path class="train" d="M{"L".join(f"{x} {y}" for x, y in spots)}"/>')
    parts.append('<text x="250" y="298" text-anchor="middle">share of rows answered</text>')
    parts.append('<text x="4" y="12">share of answers wrong</text>')
    return _svg(304, "share of wrong answers by share of rows answered", parts)


def draw_stacked_bars(bars: Sequence[Bar], names: tuple[str, str, str], label: str) -> Markup:
    """Draw one line per bar: its three parts in dark, hatched and white, and their sum behind it."""
    ticks = choose_ticks(0, max(sum(bar.parts) for bar in bars))
    across, height = Scale(ticks[0], ticks[-1], 134, 394), 26 * len(bars) + 76
    parts = [_HATCH]
    parts += [_grid(across(tick), 28, height - 40, _tick(tick, ticks)) for tick in ticks]
    for index, (name, x) in enumerate(zip(names, (134, 194, 274), strict=True)):
        parts.append(f'<rect class="part{index}" x="{x}" y="6" width="12" height="12"/>')
        parts.append(f'<text x="{x + 17}" y="16">{escape(name)}</text>')
    for place, bar in enumerate(bars):
        y, start = 34 + 26 * place, 0.0
        parts.append(f'<text x="126" y="{y + 13}" text-anchor="end">{escape(_short(bar.name))}</text>')
        for index, value in enumerate(bar.parts):
            left, right = across(start), across(start + value)
            parts.append(f'<rect class="part{index}" x="{left}" y="{y}" width="{right - left:.1f}" height="16"/>')
            start += value
        parts.append(f'<text x="{across(start) + 6}" y="{y + 13}" class="halo">{escape(bar.text)}</text>')
    parts.append(f'<text x="264" y="{height - 6}" text-anchor="middle">{escape(label)}</text>')
    return _svg(height, f"{label} by rule: {', '.join(names)}, for {len(bars)} rules", parts)


def choose_ticks(low: float, high: float) -> list[float]:
    """Return 4 to 7 round numbers (steps of 1, 2, 5 times a power of ten) that enclose `low` to `high`."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if rough <= factor * power * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those of the points (x, y) that have more y than every point with as little x, by x."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return found


def _apart(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Return ascending heights moved so that they are a line apart, between `top` and `bottom` if they fit."""
    moved, lowest = [], bottom
    for height in reversed(heights):
        moved.append(min(height, lowest))
        lowest = moved[-1] - _LINE
    return [max(height, top + _LINE * place) for place, height in enumerate(reversed(moved))]


def _names(names: Sequence[str], spots: Sequence[tuple[float, float]], lowest: float) -> list[str]:
    """Place names beside their spots, moved up or down where they would cover a spot or another name, but not out of
    the plot, whose axis is at `lowest`.
    """
    taken: list[tuple[float, float, float]] = []  # left, right, height of the base line
    parts = []
    for name, (x, y) in zip(names, spots, strict=True):
        width, left = 7.5 * len(name), x > _WIDTH * 0.6
        start, end = (x - 10 - width, x - 10) if left else (x + 10, x + 10 + width)
        heights = [y + shift for shift in (4, 20, -12, 36, -28, 52, -44, 68, 84) if _LINE <= y + shift <= lowest + 4]
        for height in heights:
            covers_spot = any(start - 6 < a < end + 6 and abs(b + 4 - height) < 13 for a, b in spots)
            covers_name = any(start < other[1] and other[0] < end and abs(other[2] - height) < 15 for other in taken)
            if not covers_spot and not covers_name:
                break
        taken.append((start, end, height))
        anchor, place = ("end", end) if left else ("start", start)
        parts.append(f'<text class="halo" x="{place}" y="{height}" text-anchor="{anchor}">{escape(name)}</text>')
    return parts


def _end_names(names: Sequence[tuple[str, float, float]], lowest: float) -> list[str]:
    """Place names behind the ends of their lines, at least 16 apart and never below `lowest`, where the axis is."""
    parts, floor = [], lowest + 12
    for name, x, y in sorted(names, key=lambda one: -one[2]):
        floor = min(y + 4, floor - 16)
        parts.append(f'<text class="halo" x="{x + 8}" y="{floor}">{name}</text>')
    return parts


def _tick(value: float, ticks: Sequence[float]) -> str:
    """Format a tick with as many digits as the distance of the ticks needs."""
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return f"{value:,.{digits}f}"


def _grid(x: float, top: float, bottom: float, text: str) -> str:
    line = f'<path class="grid" d="M{x} {top}V{bottom}"/>'
    return f'{line}<text x="{x}" y="{bottom + 16}" text-anchor="middle">{text}</text>'


def _row_grid(y: float, left: float, right: float, text: str) -> str:
    line = f'<path class="grid" d="M{left} {y}H{right}"/>'
    return f'{line}<text x="{left - 6}" y="{y + 4}" text-anchor="end">{text}</text>'


def _mark(x: float, y: float, filled: bool) -> str:
    return f'<circle class="{"filled" if filled else "hollow"}" cx="{x}" cy="{y}" r="5"/>'


def _both_ends(name: str) -> str:
    """Shorten a long name but keep both ends: runs of a sweep begin alike, their variants end alike."""
    return name if len(name) <= 27 else f"{name[:11]}…{name[-15:]}"


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _svg(height: int, label: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{''.join(parts)}</svg>"
    )
