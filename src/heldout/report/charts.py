"""Draws the report's charts as SVG, without scripts or styles. The page's CSS classes give the colours.

Classes: `base` and `tuned` are the two policies, `up` and `down` a change for better or worse, `failed` the failed rollouts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from heldout.metrics.table import FloatArray
from heldout.report.numbers import number, percent, signed

_WIDTH, _HEIGHT = 560.0, 260.0
_WIDE = 1160.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 24.0, 40.0
_MOST_CATEGORIES = 14
"""With at most this many different values, each value has its own bar."""
_BINS = 20
_TOPS = (0.04, 0.08, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Upper ends of a scale of shares whose quarters are whole percentages."""
_WIDEST_BAR = 64.0
_MOST_BARS = 240
"""With more bars, each is thinner than two pixels."""
_CELL_WIDTH, _CELL_HEIGHT = 220.0, 20.0


@dataclass(frozen=True, slots=True)
class Series:
    """One policy's values."""

    name: str
    style: str
    values: FloatArray


@dataclass(frozen=True, slots=True)
class Curve:
    """A line with its band over k."""

    name: str
    style: str
    """Class names, such as `tuned power`."""
    k: tuple[int, ...]
    values: tuple[float, ...]
    bands: tuple[tuple[float, float] | None, ...]


def histogram(series: Sequence[Series], *, label: str, threshold: float | None = None) -> Markup:
    """Shares of each series' values; NaN is left out. Empty when there is nothing to show."""
    values = [s.values[np.isfinite(s.values)] for s in series]
    together = np.concatenate(values) if values else np.empty(0)
    if not len(together):
        return Markup()
    bins = _bins(together)
    shares = [bins.count(v) / max(1, len(v)) for v in values]
    top = _nice_top(max(float(share.max()) for share in shares))
    plot = _Plot(lambda x: x, len(bins.names), top)
    plot.axis_y(percent, "of rollouts")
    width = min(plot.step_x * 0.82 / len(series), _WIDEST_BAR)
    margin = (plot.step_x - width * len(series)) / 2
    for place, (one, share) in enumerate(zip(series, shares, strict=True)):
        for bar, height in enumerate(share):
            left = plot.x(bar) + margin + place * width
            plot.bar(
                left, width, float(height), one.style, f"{one.name}: {percent(float(height))} at {bins.names[bar]}"
            )
    for place_x, name in bins.labels:
        plot.tick_x(plot.x(place_x) + (plot.step_x / 2 if bins.is_categorical else 0), name)
    if threshold is not None and (at := bins.position(threshold)) is not None:
        plot.line_at(plot.x(at), "succeeds from here")
    plot.name_x(label)
    return plot.svg(f"Histogram of {label}: {_described(series)}")


def pass_curves(curves: Sequence[Curve]) -> Markup:
    """pass@k and pass^k against k, on a scale where doubling k is one step."""
    curves = [curve for curve in curves if curve.k]
    if not curves:
        return Markup()
    last = max(curve.k[-1] for curve in curves)
    steps = max(1.0, math.log2(last))
    plot = _Plot(lambda k: math.log2(k) if k > 0 else 0.0, steps, 1.0, right=70.0)
    plot.axis_y(percent, "of prompts")
    for k in [1 << power for power in range(last.bit_length())]:
        plot.tick_x(plot.x(k), str(k))
    for curve in curves:
        plot.band(curve)
    for curve in curves:
        plot.curve(curve)
    plot.name_curves()
    plot.name_x("k, rollouts of a prompt")
    caption = "; ".join(
        f"{c.name} from {percent(c.values[0])} at k = {c.k[0]} to {percent(c.values[-1])} at {c.k[-1]}" for c in curves
    )
    return plot.svg(caption)


def rate_bars(rates: FloatArray, *, label: str, style: str, names: Sequence[str]) -> Markup:
    """One bar a prompt, the highest first; of very many prompts, evenly spread ones. rates: shape (n,), in [0, 1]."""
    if not len(rates):
        return Markup()
    places = _highest_first(rates)
    plot = _Plot(lambda x: x, len(places), 1.0, width=_WIDE)
    plot.axis_y(percent, "")
    for bar, place in enumerate(places):
        plot.wide_bar(bar, float(rates[place]), style, f"{names[place]}: {percent(float(rates[place]))}")
    plot.name_x(label)
    return plot.svg(f"{len(rates)} prompts: {label}. Median {percent(float(np.median(rates)))}")


def change_bars(differences: FloatArray, *, label: str) -> Markup:
    """One bar a prompt, up or down, the highest first; of very many, evenly spread ones. differences: shape (n,)."""
    if not len(differences):
        return Markup()
    places = _highest_first(differences)
    reach = float(np.abs(differences).max()) or 1.0
    plot = _Plot(lambda x: x, len(places), reach, low=-reach, width=_WIDE)
    plot.axis_y(lambda value: f"{value:+.2g}" if value else "0", "")
    for bar, place in enumerate(places):
        value = float(differences[place])
        plot.wide_bar(bar, value, "up" if value > 0 else "down", signed(value))
    plot.name_x(label)
    ups, downs = int((differences > 0).sum()), int((differences < 0).sum())
    return plot.svg(
        f"{len(differences)} prompts: {ups} up, {downs} down. Median {signed(float(np.median(differences)))}"
    )


def _highest_first(values: FloatArray) -> list[int]:
    order = np.argsort(-values, kind="stable")
    kept = np.unique(np.linspace(0, len(order) - 1, min(len(order), _MOST_BARS)).astype(int))
    return [int(place) for place in order[kept]]


def dumbbell(base: float, tuned: float, low: float, high: float) -> Markup:
    """Draw a prompt's two values on one line, for a table cell. low, high: the common scale of the table."""
    scale = _cell_scale(low, high)
    one, other = scale(base), scale(tuned)
    direction = "up" if tuned > base else "down" if tuned < base else "even"
    middle = _CELL_HEIGHT / 2
    return _cell(
        f"from {number(base)} to {number(tuned)}",
        f'<line class="track" x1="{scale(low):.1f}" x2="{scale(high):.1f}" y1="{middle}" y2="{middle}"/>'
        f'<line class="stem {direction}" x1="{one:.1f}" x2="{other:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="dot base" cx="{one:.1f}" cy="{middle}" r="4.5"/>'
        f'<circle class="dot tuned" cx="{other:.1f}" cy="{middle}" r="4.5"/>',
    )


def interval_bar(value: float, interval: tuple[float, float] | None, low: float, high: float, style: str) -> Markup:
    """Draw a value and its interval on one line, for a table cell, with a mark at 0 if the scale contains 0."""
    scale = _cell_scale(low, high)
    middle = _CELL_HEIGHT / 2
    parts = [f'<line class="track" x1="{scale(low):.1f}" x2="{scale(high):.1f}" y1="{middle}" y2="{middle}"/>']
    if low < 0 < high:
        parts.append(f'<line class="zero" x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="2" y2="{_CELL_HEIGHT - 2}"/>')
    if interval is not None:
        ends = [scale(min(max(end, low), high)) for end in interval]
        parts.append(f'<line class="range {style}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{middle}" y2="{middle}"/>')
    parts.append(f'<circle class="dot {style}" cx="{scale(min(max(value, low), high)):.1f}" cy="{middle}" r="4.5"/>')
    caption = (
        number(value) if interval is None else f"{number(value)}, from {number(interval[0])} to {number(interval[1])}"
    )
    return _cell(caption, "".join(parts))


def share_bar(share: float, style: str) -> Markup:
    """Draw a share as a bar, for a table cell."""
    width = max(1.0, share * _CELL_WIDTH)
    return _cell(
        percent(share),
        f'<rect class="groove" width="{_CELL_WIDTH}" height="12" y="4" rx="3"/>'
        f'<rect class="fill {style}" width="{width:.1f}" height="12" y="4" rx="3"/>',
    )


def _cell_scale(low: float, high: float) -> Callable[[float], float]:
    margin = 7.0
    span = (high - low) or 1.0
    return lambda value: margin + (value - low) / span * (_CELL_WIDTH - 2 * margin)


def _cell(caption: str, inside: str) -> Markup:
    return Markup(
        f'<svg class="cell" viewBox="0 0 {_CELL_WIDTH:.0f} {_CELL_HEIGHT:.0f}" role="img" aria-label="{escape(caption)}">'
        f"<title>{escape(caption)}</title>{inside}</svg>"
    )


def _described(series: Sequence[Series]) -> str:
    parts = []
    for one in series:
        known = one.values[np.isfinite(one.values)]
        if len(known):
            parts.append(f"{one.name}: median {number(float(np.median(known)))} of {len(known)} rollouts")
    return "; ".join(parts)


def _nice_top(value: float) -> float:
    """Round `value` up to a round number, at most 1."""
    for top in _TOPS:
        if value <= top:
            return top
    return 1.0


@dataclass(frozen=True, slots=True)
class _Bins:
    edges: FloatArray
    """Return the values where each has its own bar, else the n + 1 edges."""
    is_categorical: bool

    @property
    def names(self) -> list[str]:
        if self.is_categorical:
            return [f"{edge:g}" for edge in self.edges]
        return [f"{number(low)} to {number(high)}" for low, high in zip(self.edges, self.edges[1:], strict=False)]

    @property
    def labels(self) -> list[tuple[float, str]]:
        if self.is_categorical:
            return [(float(place), f"{edge:.3g}") for place, edge in enumerate(self.edges)]
        every = max(1, (len(self.edges) - 1) // 5)
        return [(float(place), f"{self.edges[place]:.4g}") for place in range(0, len(self.edges), every)]

    def count(self, values: FloatArray) -> FloatArray:
        if self.is_categorical:
            return np.bincount(np.searchsorted(self.edges, values), minlength=len(self.edges)).astype(np.float64)
        return np.histogram(values, self.edges)[0].astype(np.float64)

    def position(self, value: float) -> float | None:
        """Locate a threshold among the bars; None outside of them."""
        if self.is_categorical:
            place = float(np.searchsorted(self.edges, value))
            return place if 0 < place < len(self.edges) else None
        if not self.edges[0] < value <= self.edges[-1]:
            return None
        return float((value - self.edges[0]) / (self.edges[1] - self.edges[0]))


def _bins(values: FloatArray) -> _Bins:
    distinct = np.unique(values)
    if len(distinct) <= _MOST_CATEGORIES:
        return _Bins(distinct, is_categorical=True)
    low, high = float(distinct[0]), float(distinct[-1])
    if np.array_equal(distinct, np.round(distinct)):
        step = max(1, math.ceil((high - low + 1) / _BINS))
        return _Bins(np.arange(low, high + step + 1, step, dtype=np.float64), is_categorical=False)
    return _Bins(np.linspace(low, high, _BINS + 1), is_categorical=False)


class _Plot:
    """A pair of axes and the shapes drawn on them."""

    def __init__(
        self,
        transform: Callable[[float], float],
        span: float,
        top: float,
        *,
        low: float = 0.0,
        right: float = _RIGHT,
        width: float = _WIDTH,
    ) -> None:
        self._width = width
        self._transform = transform
        self._span = span
        self.top = top
        self._low = low
        self._right = right
        self._parts: list[str] = []
        self._ends: list[tuple[float, float, str]] = []

    @property
    def step_x(self) -> float:
        """The width of one step on the x axis."""
        return (self._width - _LEFT - self._right) / self._span

    def x(self, value: float) -> float:
        return _LEFT + self._transform(value) * self.step_x

    def y(self, value: float) -> float:
        return _TOP + (self.top - value) / (self.top - self._low) * (_HEIGHT - _TOP - _BOTTOM)

    def axis_y(self, shown: Callable[[float], str], what: str) -> None:
        steps = 4
        for step in range(steps + 1):
            value = self._low + (self.top - self._low) * step / steps
            at = self.y(value)
            style = "axis" if value == 0 else "grid"
            self._parts.append(
                f'<line class="{style}" x1="{_LEFT}" x2="{self._width - self._right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            self._text(_LEFT - 7, at + 4, shown(value), "end")
        if what:
            self._text(_LEFT, _TOP - 11, what, "start")

    def tick_x(self, at: float, name: str) -> None:
        self._text(at, _HEIGHT - _BOTTOM + 17, name, "middle")

    def name_x(self, name: str) -> None:
        self._text((_LEFT + self._width - self._right) / 2, _HEIGHT - 6, name, "middle", "name")

    def bar(self, left: float, width: float, value: float, style: str, caption: str) -> None:
        top, bottom = sorted((self.y(value), self.y(0)))
        if bottom - top < 0.05:
            return
        self._parts.append(
            f'<rect class="fill {style}" x="{left:.1f}" y="{top:.1f}" width="{max(width, 0.6):.2f}" '
            f'height="{max(bottom - top, 1):.1f}"><title>{escape(caption)}</title></rect>'
        )

    def wide_bar(self, place: int, value: float, style: str, caption: str) -> None:
        """Draw a bar that fills its step, with a gap where there is room."""
        gap = 0.18 if self.step_x > 4 else 0.0
        self.bar(self.x(place) + self.step_x * gap / 2, self.step_x * (1 - gap), value, style, caption)

    def line_at(self, at: float, caption: str) -> None:
        self._parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        is_right = at > self._width * 0.6
        self._text(at + (-5 if is_right else 5), _TOP + 10, caption, "end" if is_right else "start")

    def band(self, curve: Curve) -> None:
        known = [(k, band) for k, band in zip(curve.k, curve.bands, strict=True) if band is not None]
        if not known:
            return
        if len(known) == 1:
            (k, band) = known[0]
            self._parts.append(
                f'<line class="range {curve.style}" x1="{self.x(k):.1f}" x2="{self.x(k):.1f}" y1="{self.y(band[0]):.1f}" '
                f'y2="{self.y(band[1]):.1f}"/>'
            )
            return
        path = [(self.x(k), self.y(band[1])) for k, band in known]
        path += [(self.x(k), self.y(band[0])) for k, band in reversed(known)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
        self._parts.append(f'<polygon class="band {curve.style}" points="{points}"/>')

    def curve(self, curve: Curve) -> None:
        points = [(self.x(k), self.y(value)) for k, value in zip(curve.k, curve.values, strict=True)]
        self._parts.append(
            f'<polyline class="line {curve.style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        for (x, y), k, value in zip(points, curve.k, curve.values, strict=True):
            caption = escape(f"{curve.name}, k = {k}: {percent(value)}")
            self._parts.append(
                f'<circle class="dot {curve.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{caption}</title></circle>'
            )
        self._ends.append((points[-1][0] + 8, points[-1][1] + 4, curve.name))

    def name_curves(self) -> None:
        """Write each curve's name at its end; names of close ends are moved apart."""
        last = -math.inf
        for x, y, name in sorted(self._ends, key=lambda end: end[1]):
            last = max(y, last + 13)
            self._text(x, last, name, "start", "curve")

    def svg(self, caption: str) -> Markup:
        return Markup(
            f'<svg class="chart" viewBox="0 0 {self._width:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(caption)}">'
            + "".join(self._parts)
            + "</svg>"
        )

    def _text(self, x: float, y: float, text: str, anchor: str, style: str = "label") -> None:
        self._parts.append(
            f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )
