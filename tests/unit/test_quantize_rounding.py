"""Rounding of weights and choice of ranges: promises that hold for any data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.graph.quantization import INT8_MAX, Range
from edgeopt.passes.quantize.calibration import describe_constant
from edgeopt.passes.quantize.ranges import Use, choose
from edgeopt.passes.quantize.rounding import Layout, gptq, hessian_error, nearest, weight_scales


def draw(seed: int, groups: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, their scales, and the second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (groups, rows, columns))
    inputs = rng.normal(0, 1, (groups, 64, columns)) @ rng.normal(0, 1, (groups, columns, columns))
    hessian = np.swapaxes(inputs, 1, 2) @ inputs / 64
    importance = np.diagonal(hessian, axis1=1, axis2=2)
    scales = weight_scales(weights, importance, np.zeros((groups, rows)), input_scale=0.0, per_tensor=False)
    return weights, scales, hessian


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 90))
def test_second_order_rounding_is_never_worse_than_nearest(seed: int, groups: int, rows: int, columns: int) -> None:
    weights, scales, hessian = draw(seed, groups, rows, columns)
    rounded, plain = gptq(weights, scales, hessian), nearest(weights, scales)
    ours, theirs = (hessian_error(weights, scales, integers, hessian) for integers in (rounded, plain))
    assert (ours <= theirs * (1 + 1e-9)).all()
    assert np.abs(rounded.astype(int)).max() <= INT8_MAX, "−128 is not used: symmetric kernels have no room for it"


def test_second_order_rounding_uses_what_inputs_have_in_common() -> None:
    weights, scales, hessian = draw(5, 1, 32, 72)
    gain = hessian_error(weights, scales, nearest(weights, scales), hessian).sum()
    gain /= hessian_error(weights, scales, gptq(weights, scales, hessian), hessian).sum()
    assert gain > 2, "correlated inputs let one weight make up for another"


def test_inputs_that_never_move_fall_back_to_nearest() -> None:
    weights, scales, _ = draw(1, 2, 3, 8)
    assert np.array_equal(gptq(weights, scales, np.zeros((2, 8, 8))), nearest(weights, scales))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1e4))
def test_a_bias_always_fits_into_int32(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    rows, bias = rng.normal(0, 1e-3, (1, 5, 7)), rng.normal(0, 1, (1, 5)) * size
    scales = weight_scales(rows, np.ones((1, 7)), bias, input_scale=1e-3, per_tensor=False)
    assert (np.abs(bias / (1e-3 * scales.astype(np.float64))) < 2**31).all()


def test_a_dead_channel_has_a_scale_like_its_neighbours() -> None:
    rows = np.ones((1, 3, 4))
    rows[0, 1] = 0
    scales = weight_scales(rows, np.ones((1, 4)), np.zeros((1, 3)), input_scale=0.1, per_tensor=False)
    assert scales[0, 1] == scales.max() > 0


@pytest.mark.parametrize(
    ("op", "shape", "groups"),
    [
        ("Conv", (6, 2, 3, 3), 2),
        ("ConvTranspose", (4, 3, 2, 2), 1),
        ("ConvTranspose", (4, 3, 2, 2), 2),
        ("Gemm", (5, 7), 1),
    ],
)
def test_rows_and_back(op: str, shape: tuple[int, ...], groups: int) -> None:
    weight = np.arange(np.prod(shape)).reshape(shape)
    layout = Layout(op, shape, groups)
    rows = layout.rows(weight)
    assert rows.shape[:2] == (groups, layout.outputs // groups)
    assert np.array_equal(layout.weight(rows), weight)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["minmax", "percentile", "mse", "auto"]), st.booleans())
def test_ranges_lie_inside_what_was_seen_and_hold_zero(seed: int, estimator: str, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, (1, 2, 40, 40)).astype(np.float32) + rng.normal()
    use = Use(describe_constant(values, 1), np.ones(2))
    chosen = choose([use], estimator, symmetric=symmetric).range  # type: ignore[arg-type]
    seen = Range(min(float(values.min()), 0), max(float(values.max()), 0))
    assert seen.low * (1 + 1e-6) - 1e-6 <= chosen.low <= 0 <= chosen.high <= seen.high * (1 + 1e-6) + 1e-6
    if estimator == "minmax":
        assert (chosen.low, chosen.high) == pytest.approx((seen.low, seen.high), rel=1e-5, abs=1e-6)


def test_least_error_cuts_an_outlier_and_automatic_takes_what_errs_least() -> None:
    values = np.random.default_rng(0).normal(0, 1, (1, 1, 200, 200)).astype(np.float32)
    values[0, 0, 0, 0] = 100.0
    use = Use(describe_constant(values, 1), np.ones(1))
    full, least, auto = (choose([use], one) for one in ("minmax", "mse", "auto"))  # type: ignore[arg-type]
    assert full.range.high == pytest.approx(100, rel=1e-5)
    assert least.error < full.error
    assert auto.error <= min(full.error, least.error) * 1.03


def test_a_mask_of_zeros_survives_error_feedback():
    rng = np.random.default_rng(5)
    weights = rng.normal(0, 1, (2, 6, 16))
    weights[np.argsort(np.abs(weights), axis=2) < 8] = 0  # some of each row
    inputs = rng.normal(0, 1, (2, 200, 16)) @ rng.normal(0, 1, (2, 16, 16))
    hessian = np.einsum("gnc,gnd->gcd", inputs, inputs) / 200
    scales = weight_scales(weights, np.ones((2, 16)), np.zeros((2, 6)), input_scale=0.0, per_tensor=False) * 8
    integers = gptq(weights, scales, hessian)
    assert (integers[weights == 0] == 0).all()
    assert (integers != nearest(weights, scales)).any()  # feedback was at work
