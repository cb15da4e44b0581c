"""From single times to medians, intervals and ratios.

Times of one machine depend on each other (frequency, temperature, other processes come and go), so an interval that
draws single runs is too narrow: whole stretches of time are drawn instead (block bootstrap; Künsch, Annals of
Statistics 17, 1989).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeopt.bench.results import LatencyMs

Times = npt.NDArray[np.float64]

BOOTSTRAPS = 1000
FEWEST_BLOCKS, MOST_BLOCKS = 25, 200
"""As many blocks as the square root of the turns, within these bounds: fewer say little of the spread between them."""
INTERVAL = (2.5, 97.5)
QUARTERS = 4
DRIFT = 0.10
"""Quarters of the measurement whose medians differ by more are not of one steady state."""
WIDE = 0.10
"""A median that is known no better than to a tenth is not a result."""
TIMELINE = 40


def summarise(turns: Sequence[Sequence[float]], seed: int = 0) -> LatencyMs:
    """Percentiles and the interval of the median.

    Args:
        turns: ms, as they were taken: runs by turn.
        seed: of the draws.
    """
    times = np.concatenate([np.asarray(turn, np.float64) for turn in turns])
    low, high = np.percentile(medians(turns, _draws(len(_blocks(turns)), seed)), INTERVAL)
    p50, p90, p95, p99 = np.percentile(times, [50, 90, 95, 99])
    # the bootstrap of few runs may miss their own median by a hair of interpolation
    values = {"p50": p50, "p90": p90, "p95": p95, "p99": p99, "mean": times.mean(), "low": min(low, p50)}
    return LatencyMs(**{name: round(float(value), 5) for name, value in values.items()}, high=round(max(high, p50), 5))


def ratio(turns: Sequence[Sequence[float]], to: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """Median over median, and its interval. Turn for turn both were taken at the same time, and are drawn together."""
    count = min(len(turns), len(to))
    first, second = turns[:count], to[:count]
    drawn = medians(first, _draws(len(_blocks(first)), seed)) / medians(second, _draws(len(_blocks(second)), seed))
    low, high = np.percentile(drawn, INTERVAL)
    middle = float(np.median(np.concatenate([np.asarray(turn) for turn in turns]))) / float(
        np.median(np.concatenate([np.asarray(turn) for turn in to]))
    )
    return middle, min(float(low), middle), max(float(high), middle)


def medians(turns: Sequence[Sequence[float]], draws: npt.NDArray[np.int64]) -> Times:
    """The median of each draw; ``draws`` [draws, blocks] says how often each block was drawn."""
    blocks = _blocks(turns)
    times = np.concatenate(blocks)
    owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(times, kind="stable")
    times, owner = times[order], owner[order]
    found = np.empty(len(draws))
    for index, counts in enumerate(draws):
        weight = np.cumsum(counts[owner])
        half = weight[-1] / 2
        below, above = np.searchsorted(weight, half, side="left"), np.searchsorted(weight, half, side="right")
        found[index] = (times[below] + times[above]) / 2
    return found


def unsettled(turns: Sequence[Sequence[float]], latency: LatencyMs, *, steady: bool) -> tuple[str, ...]:
    """Why the times are of no steady state, in words; empty if they are."""
    found = []
    if not steady:
        found.append("the warm-up did not come to rest")
    quarters = [
        float(np.median(part)) for part in np.array_split(np.concatenate([np.asarray(t) for t in turns]), QUARTERS)
    ]
    if max(quarters) > min(quarters) * (1 + DRIFT):
        shown = " → ".join(f"{value:.3g}" for value in quarters)
        found.append(f"the median moved while it was measured: {shown} ms")
    if latency.high - latency.low > WIDE * latency.p50:
        found.append(f"the median is known only to ±{(latency.high - latency.low) / 2 / latency.p50:.0%}")
    return tuple(found)


def quantiles(turns: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Smallest, first percentile, …, largest: 101 numbers in ms."""
    times = np.concatenate([np.asarray(turn) for turn in turns])
    return tuple(round(float(value), 5) for value in np.percentile(times, np.arange(101)))


def timeline(turns: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Medians of up to 40 stretches in the order of time, in ms."""
    times = np.concatenate([np.asarray(turn) for turn in turns])
    parts = np.array_split(times, min(TIMELINE, len(times)))
    return tuple(round(float(np.median(part)), 5) for part in parts)


def _blocks(turns: Sequence[Sequence[float]]) -> list[Times]:
    """Stretches of whole turns; single runs where there are fewer turns than blocks are wanted."""
    units = [np.asarray(turn, np.float64) for turn in turns]
    if len(units) < FEWEST_BLOCKS:
        units = np.array_split(np.concatenate(units), min(FEWEST_BLOCKS, sum(len(turn) for turn in units)))
    count = int(np.clip(round(len(units) ** 0.5), min(FEWEST_BLOCKS, len(units)), MOST_BLOCKS))
    bounds = np.linspace(0, len(units), count + 1).astype(int)
    return [np.concatenate(units[first:last]) for first, last in itertools.pairwise(bounds)]


def _draws(blocks: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), BOOTSTRAPS)
