"""Charts as inline SVG: they take their colours and fonts from the page, light or dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "interval", "line_chart", "strip", "thumbnail_map"]

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 34


@dataclass(frozen=True)
class Series:
    """One line: its label, its CSS class, and mean, least and largest value at each x."""

    label: str
    style: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (stop - start), 2)


def _ticks(low: float, high: float, count: int = 5, least: float = 0.0) -> list[float]:
    """Round numbers within [low, high], ``least`` or more apart."""
    rough = max(least, (high - low) / count) or 1.0
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_range: tuple[float, float], unit: str) -> str:
    """Lines with a band from least to largest value, over common axes."""
    xs = [x for line in series for x in line.x] or [0.0, 1.0]
    to_x = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    # A constant line is drawn in the middle of the range.
    flat = float(y_range[0] == y_range[1])
    to_y = _scale(y_range[0] - flat, y_range[1] + flat, HEIGHT - BOTTOM, TOP)
    parts = [_axes(to_x, to_y, (min(xs), max(xs)), y_range, x_label, unit)]
    for line in series:
        band = [(to_x(x), to_y(y)) for x, y in zip(line.x, line.high, strict=True)]
        band += [(to_x(x), to_y(y)) for x, y in zip(reversed(line.x), reversed(line.low), strict=True)]
        parts.append(f'<path class="band {line.style}" d="{_path(band)}Z"/>')
    for line in series:
        points = [(to_x(x), to_y(y)) for x, y in zip(line.x, line.mean, strict=True)]
        label = f"{line.label}: {line.mean[-1]:.3g}" if line.mean else line.label
        parts.append(f'<path class="line {line.style}" d="{_path(points)}"><title>{escape(label)}</title></path>')
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _axes(
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_label: str,
    unit: str,
) -> str:
    parts = []
    for tick in _ticks(*y_range):
        y = to_y(tick)
        parts.append(f'<path class="grid" d="M{LEFT},{y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{tick:g}{unit}</text>')
    # Epochs are whole numbers.
    for tick in _ticks(*x_range, least=1.0):
        x = to_x(tick)
        parts.append(f'<path class="axis" d="M{x},{HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT},{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def strip(values: Sequence[float], mean: float, low: float, high: float, style: str) -> str:
    """One dot per seed and a mark at their mean, on the axis [low, high] that all rows of a table share."""
    to_x = _scale(low, high, 6, 154)
    dots = "".join(f'<circle class="dot {style}" cx="{to_x(v)}" cy="9" r="3.2"/>' for v in values)
    rule = f'<path class="grid" d="M6,9H154"/><path class="mean" d="M{to_x(mean)},2V16"/>'
    return f'<svg class="strip" viewBox="0 0 160 18" aria-hidden="true">{rule}{dots}</svg>'


def interval(difference: float, low: float, high: float, reach: float) -> str:
    """A difference and its interval about zero, on the axis [-reach, reach]; no whiskers where they are NaN."""
    to_x = _scale(-reach, reach, 6, 154)
    zero = f'<path class="axis" d="M{to_x(0)},1V17"/>'
    whiskers = "" if math.isnan(low) else f'<path class="whisker" d="M{to_x(low)},9H{to_x(high)}"/>'
    dot = f'<circle class="dot nir" cx="{to_x(difference)}" cy="9" r="3.6"/>'
    return f'<svg class="strip" viewBox="0 0 160 18" aria-hidden="true">{zero}{whiskers}{dot}</svg>'


def thumbnail_map(
    points: Sequence[tuple[float, float]], uris: Sequence[str], groups: Sequence[int], names: Sequence[str], title: str
) -> str:
    """Thumbnails at points of the plane, framed in one of eight colours and one of three dash patterns by class."""
    xs, ys = ([p[axis] for p in points] for axis in (0, 1))
    to_x, to_y = _scale(min(xs), max(xs), 4, 576), _scale(min(ys), max(ys), 4, 436)
    parts = []
    for (x, y), uri, group in zip(points, uris, groups, strict=True):
        style = f"k{group % 8} p{group // 8 % 3}"
        parts.append(
            f'<g transform="translate({to_x(x)},{to_y(y)})"><title>{escape(names[group])}</title>'
            f'<image href="{uri}" width="20" height="20"/>'
            f'<rect class="frame {style}" width="20" height="20" rx="2"/></g>'
        )
    return f'<svg viewBox="0 0 600 460" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
