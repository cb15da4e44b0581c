"""From single times to medians, intervals and ratios: against numpy, and against what is known of a series."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.bench import statistics

TIMES = st.lists(st.lists(st.floats(0.01, 1000), min_size=1, max_size=8), min_size=1, max_size=60)


def turns(times: np.ndarray, length: int = 5) -> list[list[float]]:
    return [list(times[i : i + length]) for i in range(0, len(times), length)]


@settings(max_examples=40, deadline=None)
@given(TIMES)
def test_percentiles_are_those_of_all_runs(series):
    found = statistics.summarise(series)
    everything = np.concatenate(series)
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert getattr(found, name) == pytest.approx(np.percentile(everything, percent), abs=1e-5)
    assert found.mean == pytest.approx(everything.mean(), abs=1e-5)
    assert everything.min() - 1e-5 <= found.low <= found.p50 <= found.high <= everything.max() + 1e-5


@settings(max_examples=20, deadline=None)
@given(TIMES, st.floats(0.1, 10))
def test_a_ratio_to_itself_is_the_factor(series, factor):
    found = statistics.ratio([[ms * factor for ms in turn] for turn in series], series)
    assert found == pytest.approx((factor, factor, factor))


@settings(max_examples=20, deadline=None)
@given(TIMES, st.integers(0, 1000))
def test_a_drawn_median_is_numpys_of_what_was_drawn(series, seed):
    blocks = statistics._blocks(series)
    counts = np.random.default_rng(seed).multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)))
    drawn = np.concatenate([np.tile(block, count) for block, count in zip(blocks, counts, strict=True) if count])
    assert statistics.medians(series, counts[None])[0] == pytest.approx(np.median(drawn))


def test_the_interval_covers_the_median_of_times_that_depend_on_each_other():
    """A frequency that wanders: draws of single runs would cover far less than 95 % of the time."""
    covered, naive = 0, 0
    random = np.random.default_rng(0)
    for trial in range(60):
        walk = np.zeros(1500)
        for i in range(1, len(walk)):
            walk[i] = 0.95 * walk[i - 1] + random.normal(scale=0.1)
        times = np.exp(walk + random.normal(scale=0.05, size=len(walk)))  # true median 1
        found = statistics.summarise(turns(times), seed=trial)
        covered += found.low <= 1 <= found.high
        single = np.median(random.choice(times, (100, len(times))), axis=1)
        naive += np.percentile(single, 2.5) <= 1 <= np.percentile(single, 97.5)
    assert covered >= 47  # of 60: 95 % less what blocks of finite length lose, and three standard errors
    assert naive < covered - 10


def test_what_is_not_settled_is_said():
    random = np.random.default_rng(1)
    steady = turns(10 + random.normal(scale=0.1, size=400))
    drifting = turns(np.linspace(10, 13, 400) + random.normal(scale=0.1, size=400))
    bimodal = turns(np.where(np.arange(100) % 50 < 25, 10.0, 20.0))

    def verdict(series: list[list[float]], settled: bool = True) -> str:
        return "; ".join(statistics.unsettled(series, statistics.summarise(series), steady=settled))

    assert verdict(steady) == ""
    assert "warm-up" in verdict(steady, settled=False)
    assert "moved while it was measured: 10." in verdict(drifting)
    assert "known only to" in verdict(bimodal)


def test_quantiles_and_timeline_keep_ends_and_order():
    times = np.arange(1.0, 1001.0)
    found = statistics.quantiles(turns(times))
    assert (len(found), found[0], found[50], found[-1]) == (101, 1, 500.5, 1000)
    assert list(statistics.timeline(turns(times))) == sorted(statistics.timeline(turns(times)))
    assert len(statistics.timeline([[1.0, 2.0]])) == 2
