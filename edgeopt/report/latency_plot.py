"""The distribution of measured times as SVG, and as a page of its own. No script, no font, no address of elsewhere.

Colours stand in the SVG itself; where a page's stylesheet has the classes of ``report.plots``, they go before them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from edgeopt.bench.results import BenchResult

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 40
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
"""Told apart by most people with a colour deficiency in this order; lines are also dashed from the second on."""
SERIES = ("a", "b", "c", "d", "e", "f")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:right}"
    "td:first-child,th:first-child{text-align:left}.unstable{color:#b00020;font-weight:bold}svg{max-width:100%}"
)


def distribution_svg(results: Sequence[BenchResult]) -> str:
    """Share of runs at or below a time, one line per measured model; the band is the interval of its median.

    Nothing is binned or smoothed: the line is drawn from the 101 quantiles of the result. Times are on a logarithmic
    axis. Empty if nothing was measured.
    """
    shown = [result for result in results if len(result.quantiles_ms) > 1]
    if not shown:
        return ""
    low = min(result.quantiles_ms[0] for result in shown)
    high = max(result.quantiles_ms[-1] for result in shown)
    start, end = math.log10(max(low, 1e-6) / 1.05), math.log10(max(high, 1e-6) * 1.05)

    def across(ms: float) -> float:
        return LEFT + (math.log10(max(ms, 1e-6)) - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def up(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 20 * len(shown)}" '
        f'width="{WIDTH}" height="{HEIGHT + 20 * len(shown)}" font-family="system-ui,sans-serif" font-size="12" '
        'role="img" aria-label="distribution of latency">'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line(LEFT, up(share), WIDTH - RIGHT, up(share)))
        parts.append(_text(LEFT - 8, up(share) + 4, f"{share:.0%}", "end"))
    for tick in _ticks(10**start, 10**end):
        parts.append(_line(across(tick), up(0), across(tick), up(1)))
        parts.append(_text(across(tick), up(0) + 16, f"{tick:g}", "middle"))
    parts.append(_text(WIDTH - RIGHT, up(0) + 32, "ms per run; share of runs at or below", "end"))
    for index, result in enumerate(shown):
        color, dash, series = (listed[index % len(listed)] for listed in (COLORS, DASHES, SERIES))
        ms = result.latency_ms
        middle, width = (across(ms.low) + across(ms.high)) / 2, max(across(ms.high) - across(ms.low), 1)
        parts.append(
            f'<line class="{series}" x1="{middle:.1f}" x2="{middle:.1f}" y1="{up(1):.1f}" y2="{up(0):.1f}" '
            f'stroke="{color}" stroke-width="{width:.1f}" opacity="0.15"/>'
        )
        last = len(result.quantiles_ms) - 1
        points = " ".join(f"{across(q):.1f},{up(i / last):.1f}" for i, q in enumerate(result.quantiles_ms))
        parts.append(
            f'<polyline class="l {series}" points="{points}" fill="none" stroke="{color}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/>'
        )
        row = HEIGHT + 20 * index + 8
        parts.append(_line(LEFT, row, LEFT + 30, row, color, dash, series))
        label = f"{result.model}: {ms.p50:.3g} ms ({ms.low:.3g}–{ms.high:.3g})" + (
            "" if result.stable else ", unstable"
        )
        parts.append(_text(LEFT + 38, row + 4, label, "start"))
    return "".join([*parts, "</svg>"])


def page(results: Sequence[BenchResult], lines: Sequence[str]) -> str:
    """One self-contained HTML page: the plot, a table of percentiles, and what the terminal says."""
    head = ("model", "median", "p90", "p95", "p99", "mean", "kind")
    rows = []
    for result in results:
        ms = result.latency_ms
        cells = [_ms(value) for value in (ms.p50, ms.p90, ms.p95, ms.p99, ms.mean)]
        mark = ' class="unstable"' if not result.stable else ""
        kind = result.kind if result.stable else f"{result.kind}, unstable"
        rows.append(
            f"<tr{mark}><td>{html.escape(f'{result.model} on {result.device}')}</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f"<td>{kind}</td></tr>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>edgeopt bench</title>'
        f"<style>{STYLE}</style></head><body><h1>Latency</h1>{distribution_svg(results)}"
        f"<h2>Percentiles, ms</h2><table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(rows)}</table>"
        f"<h2>In words</h2><pre>{html.escape(chr(10).join(lines))}</pre></body></html>\n"
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the bounds; finer where that leaves fewer than two."""
    for steps in ((1, 2, 5), range(1, 10), [step / 10 for step in range(10, 100)]):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [
            round(step * 10.0**power, 9) for power in powers for step in steps if low <= step * 10.0**power <= high
        ]
        if len(found) >= 2:
            return found[:: math.ceil(len(found) / 12)]
    return [low, high]


def _line(x1: float, y1: float, x2: float, y2: float, color: str = "#ddd", dash: str = "", series: str = "g") -> str:
    return (
        f'<line class="{series}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{1 if series == "g" else 2}" stroke-dasharray="{dash}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#444">{html.escape(text)}</text>'
