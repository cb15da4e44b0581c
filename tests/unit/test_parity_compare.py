"""Streaming comparison: sums over samples give what the whole arrays give."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.graph import metrics
from edgeopt.parity.compare import EXACT_DB, Accumulator, LevelReport, ParityReport, level_report, noise_ratio_error_db

finite = st.floats(-1e3, 1e3, width=32)


@given(st.integers(1, 5), st.integers(2, 9), st.data())
def test_streamed_sums_equal_metrics_of_the_whole(samples: int, size: int, data: st.DataObject) -> None:
    draw = st.lists(finite, min_size=size, max_size=size)
    a = np.array([data.draw(draw) for _ in range(samples)], np.float32)
    b = np.array([data.draw(draw) for _ in range(samples)], np.float32)
    accumulator = Accumulator()
    for reference, value in zip(a, b, strict=True):
        accumulator.add(reference, value)
    found = accumulator.result()
    assert found.values == a.size
    assert found.max_abs == metrics.max_abs(a, b)
    assert found.top1_agreement == metrics.top1_agreement(a, b)
    assert found.sqnr_db == pytest.approx(np.clip(metrics.sqnr_db(a, b), -EXACT_DB, EXACT_DB), abs=1e-6)
    if np.abs(a).max() > 1e-3 and np.abs(b).max() > 1e-3:
        assert found.cosine == pytest.approx(metrics.cosine(a, b), abs=1e-9)
        assert found.rel == pytest.approx(metrics.relative_error(a, b), rel=1e-9)


def test_steps_are_counted_on_the_grid() -> None:
    accumulator = Accumulator(step=np.float32(0.1))
    reference = np.zeros(4, np.float32)
    accumulator.add(reference, np.array([0, 0.1, -0.1, 0.3], np.float32))
    found = accumulator.result()
    assert found.equal == 0.25
    assert found.within_one_step == 0.75
    assert found.lsb_max == pytest.approx(3, rel=1e-6)


@given(st.integers(1, 3), st.integers(-128, 127), st.integers(0, 2**32 - 1))
def test_integers_are_compared_as_their_real_values(samples: int, zero_point: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    step = np.float32(0.03)
    fast, slow = Accumulator(float(step)), Accumulator(float(step))
    for _ in range(samples):
        a = rng.integers(-128, 128, (3, 5)).astype(np.int8)
        b = np.clip(a + rng.integers(-2, 3, a.shape), -128, 127).astype(np.int8)
        fast.add_integers(a, b, zero_point)
        slow.add((a - np.float64(zero_point)) * step, (b - np.float64(zero_point)) * step)
    one, other = fast.result().model_dump(), slow.result().model_dump()
    assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


def test_equal_tensors_are_exact_and_a_nan_is_as_wrong_as_can_be() -> None:
    ones = np.ones(3, np.float32)
    equal, broken = Accumulator(), Accumulator()
    equal.add(ones, ones)
    broken.add(ones, np.array([1, math.nan, 1], np.float32))
    assert equal.result().sqnr_db == EXACT_DB
    assert equal.result().rel == 0
    assert broken.result().sqnr_db == -EXACT_DB
    assert broken.result().max_abs > 1e300
    report = level_report("L2", "test", 1, {"y": broken})
    assert json.loads(report.model_dump_json())["rel"] > 1e300, "JSON has no NaN"


def test_a_report_survives_json_and_speaks_of_its_level() -> None:
    accumulator = Accumulator(0.5)
    accumulator.add(np.arange(4.0), np.arange(4.0) + 1)
    level = level_report("L1", "8 samples", 1, {"y": accumulator}, ["output 'y': off"])
    assert LevelReport.model_validate_json(level.model_dump_json()) == level
    assert ParityReport(levels={"L1": level}).failures == ("L1: output 'y': off",)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        Accumulator().add(np.zeros(3), np.zeros(4))


def test_the_error_of_a_noise_ratio_is_what_repeated_draws_show() -> None:
    """200 draws of 64 paired samples: their spread in dB is what one draw says of itself."""
    rng = np.random.default_rng(1)
    ratios, told = [], []
    for _ in range(200):
        shared = rng.exponential(1.0, 64)
        first, second = shared * rng.lognormal(0, 0.4, 64), shared * rng.lognormal(0, 0.4, 64)
        ratios.append(10 * np.log10(first.sum() / second.sum()))
        told.append(noise_ratio_error_db(first, second))
    assert np.mean(told) == pytest.approx(np.std(ratios), rel=0.2)
    assert noise_ratio_error_db([1.0], [1.0]) == math.inf
    assert noise_ratio_error_db([0.0, 0.0], [1.0, 2.0]) == math.inf
