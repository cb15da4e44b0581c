"""Plots of ``report.html`` as inline SVG. Colours are the page's own classes, so that light, dark and print all fit."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from edgeopt.pipeline.verdict import Histogram, LayerError, Reliability

WIDTH, HEIGHT = 460, 250
"""In the page's pixels at full width; a phone shows it a little smaller, and still readable."""
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 20, 40
SERIES = ("a", "b", "c", "d", "e", "f")
"""Classes of the stylesheet; series are also told apart by dashes and by marks, not by colour alone."""
DASH = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4")


class Plot:
    """Axes, and what is drawn between them. ``x`` and ``y`` are (low, high) in data units; ``x`` may be logarithmic."""

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        labels: tuple[str, str],
        log_x: bool = False,
        height: int = HEIGHT,
    ) -> None:
        self._title, self._labels, self._log_x, self._height = title, labels, log_x, height
        self._x, self._y = _widened(x, log=log_x), _widened(y, log=False)
        self._parts: list[str] = []
        self._names: list[str] = []
        self._dots: list[str] = []
        self._labelled: list[tuple[float, float]] = []

    def across(self, value: float) -> float:
        low, high = self._x
        if self._log_x:
            value, low, high = (math.log10(max(v, 1e-12)) for v in (value, low, high))
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        low, high = self._y
        return self._height - BOTTOM - (value - low) / (high - low) * (self._height - TOP - BOTTOM)

    def line(self, points: Sequence[tuple[float, float]], series: int = 0) -> None:
        text = " ".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in points)
        dash = DASH[series % len(DASH)]
        self._parts.append(f'<polyline class="l {SERIES[series % 6]}" points="{text}" stroke-dasharray="{dash}"/>')

    def dot(self, x: float, y: float, text: str = "", series: int = 0, *, label: str = "") -> None:
        title = f"<title>{html.escape(text)}</title>" if text else ""
        cx, cy = self.across(x), self.up(y)
        color = SERIES[series % 6]
        self._dots.append(f'<circle class="p {color}" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5">{title}</circle>')
        if label:
            anchor, shift = ("end", -8) if cx > WIDTH * 0.6 else ("start", 8)
            # Points lie close together where models are alike: their names stand below each other.
            at = cy - 6
            while any(abs(at - y) < 14 and abs(cx - x) < 110 for x, y in self._labelled):
                at += 14
            self._labelled.append((cx, at))
            self._names.append(_text(cx + shift, at, label, anchor))

    def bar(self, x0: float, x1: float, y: float, text: str = "", series: int = 0) -> None:
        left, right, top, bottom = self.across(x0), self.across(x1), self.up(y), self.up(max(self._y[0], 0.0))
        title = f"<title>{html.escape(text)}</title>" if text else ""
        self._parts.append(
            f'<rect class="r {SERIES[series % 6]}" x="{left:.1f}" y="{min(top, bottom):.1f}" '
            f'width="{max(right - left - 1, 0.5):.1f}" height="{abs(bottom - top):.1f}">{title}</rect>'
        )

    def whisker(self, x: float, low: float, high: float, series: int = 0) -> None:
        at = self.across(x)
        self._parts.append(
            f'<line class="l {SERIES[series % 6]}" x1="{at:.1f}" x2="{at:.1f}" '
            f'y1="{self.up(low):.1f}" y2="{self.up(high):.1f}"/>'
        )

    def svg(self, *, x_ticks: Mapping[float, str] | None = None) -> Markup:
        """The whole drawing. It scales with the page; its title is what a screen reader says."""
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {self._height}" role="img" aria-label="{html.escape(self._title)}">',
            f"<title>{html.escape(self._title)}</title>",
        ]
        for tick in _ticks(*self._y):
            y = self.up(tick)
            parts.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
        shown = {t: f"{t:g}" for t in (_log_ticks(*self._x) if self._log_x else _ticks(*self._x))}
        for tick, text in (shown if x_ticks is None else x_ticks).items():
            x = self.across(tick)
            parts.append(f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{self._height - BOTTOM}"/>')
            parts.append(_text(x, self._height - BOTTOM + 16, text, "middle"))
        parts.append(_text(WIDTH - RIGHT, self._height - 6, self._labels[0], "end"))
        parts.append(_text(4, TOP - 4, self._labels[1], "start"))
        return Markup("".join([*parts, *self._parts, *self._names, *self._dots, "</svg>"]))  # noqa: S704 - all text in it is escaped


def tradeoff(points: Mapping[str, tuple[float, float, float, float]], metric: str, size: str) -> Markup:
    """Size or latency against the metric: name → (across, metric, its low end, its high end)."""
    xs, ys = [p[0] for p in points.values()], [v for p in points.values() for v in p[1:]]
    plot = Plot(f"{size} against {metric}", (min(xs), max(xs)), (min(ys), max(ys)), labels=(size, metric), log_x=True)
    for index, (name, (x, y, low, high)) in enumerate(points.items()):
        plot.whisker(x, low, high, index)
        plot.dot(x, y, f"{name}: {x:.4g}, {y:.4g} ({low:.4g}–{high:.4g})", index, label=name)
    return plot.svg()


def layer_curve(layers: Sequence[LayerError]) -> Markup:
    """SQNR of every tensor of the integer reference, in graph order."""
    shown = [min(layer.sqnr_db, 100.0) for layer in layers]
    plot = Plot(
        "signal to quantization noise, layer by layer",
        (0, max(len(shown) - 1, 1)),
        (min([0.0, *shown]), max(shown)),
        labels=("layer, in graph order", "dB"),
    )
    plot.line(list(enumerate(shown)))
    for index, (layer, value) in enumerate(zip(layers, shown, strict=True)):
        plot.dot(index, value, f"{layer.node}: {layer.tensor} {layer.sqnr_db:.1f} dB")
    return plot.svg()


def reliability_plot(models: Mapping[str, Reliability]) -> Markup:
    """Share of right answers against confidence; on the diagonal, a probability means what it says."""
    plot = Plot("reliability of confidence", (0, 1), (0, 1), labels=("confidence", "share of right answers"))
    plot.line([(0, 0), (1, 1)], 5)
    for index, (name, model) in enumerate(models.items()):
        plot.line([(b.confidence, b.accuracy) for b in model.bins], index)
        for b in model.bins:
            plot.dot(
                b.confidence, b.accuracy, f"{name}: {b.samples} samples, {b.confidence:.2f}, {b.accuracy:.2f}", index
            )
    return plot.svg()


def histogram_plot(histogram: Histogram) -> Markup:
    """Values of one tensor in float, and on its grid."""
    count = len(histogram.float_)
    edges = [histogram.low + (histogram.high - histogram.low) * i / count for i in range(count + 1)]
    top = math.log10(max([*histogram.float_, *histogram.quantized, 1]) + 1)
    plot = Plot(f"values of {histogram.tensor}", (histogram.low, histogram.high), (0, top),
                labels=("value", "log₁₀ of count"), height=200)  # fmt: skip
    for index, value in enumerate(histogram.float_):
        if value:
            plot.bar(edges[index], edges[index + 1], math.log10(value + 1))
    steps = [(edges[i], math.log10(v + 1)) for i, v in enumerate(histogram.quantized)]
    plot.line(steps, 1)
    return plot.svg()


def _widened(ends: tuple[float, float], *, log: bool) -> tuple[float, float]:
    """Some room beyond the data, and never no width."""
    low, high = ends
    if log:
        low, high = max(low, 1e-9), max(high, 1e-9)
        return low / 1.4, high * 1.4
    room = (high - low) * 0.06 or max(abs(high) * 0.05, 0.01)
    return low - (0 if low == 0 else room), high + room


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= 6)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    found = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in (1, 2, 5)
        if low <= m * 10.0**e <= high
    ]
    if len(found) < 2:
        return _ticks(low, high)
    return found if len(found) <= 9 else [f for f in found if math.isclose(math.log10(f), round(math.log10(f)))]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
