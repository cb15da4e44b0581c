"""The latency model on figures whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.devices import adapt, probing, rates
from edgeopt.devices.kernels import QUANTITIES
from edgeopt.devices.packs import Configuration, Widths

COUNT = len(QUANTITIES)


def quantities(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 1.0, (rows, COUNT)) + 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_many_rows_give_their_rates_back(seed: int) -> None:
    x = quantities(seed, 80)
    truth = np.random.default_rng(seed + 1).normal(0, 0.5, COUNT)
    y = rates.log_latency(x, truth)
    theta, covariance = rates.fit_rates(x, y, np.zeros(COUNT), np.eye(COUNT) / 4, 1e-6, steps=40)
    np.testing.assert_allclose(rates.log_latency(x, theta), y, atol=0.01)  # noise of 1e-6 leaves the prior no say
    assert np.all(np.linalg.eigvalsh(covariance) > 0)


def test_without_rows_the_prior_stands() -> None:
    mean = np.linspace(-1, 1, COUNT)
    theta, _ = rates.fit_rates(np.zeros((0, COUNT)), np.zeros(0), mean, np.eye(COUNT), 0.01)
    np.testing.assert_allclose(theta, mean)


def test_one_probe_moves_all_rates_as_devices_differ() -> None:
    """A prior in which devices differ by speed alone makes of one probe at half the time a device twice as fast."""
    x = quantities(3, 5)
    mean = np.zeros(COUNT)
    covariance = np.ones((COUNT, COUNT)) * 4 + 1e-6 * np.eye(COUNT)
    y = rates.log_latency(x, mean)[:1] - np.log(2)
    theta, weights = adapt.probed(x[:1], y, np.zeros(1), mean, covariance, 1e-4)
    np.testing.assert_allclose(rates.log_latency(x, theta), rates.log_latency(x, mean) - np.log(2), atol=0.01)
    assert weights.shape == (1,)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_proportion_is_that_of_peaks_and_bandwidths(peak: float, bandwidth: float) -> None:
    theta = np.zeros(COUNT)
    scaled = adapt.by_proportion(theta, adapt.Speed(1, 1), adapt.Speed(peak, bandwidth), host=False)
    for name, value in zip(QUANTITIES, scaled, strict=True):
        expected = 0.0 if "kernels" in name else -np.log(peak if name.startswith("macs") else bandwidth)
        assert value == pytest.approx(expected)


def test_unknown_speed_changes_nothing() -> None:
    theta = np.linspace(0, 1, COUNT)
    unknown = adapt.Speed(None, None)
    np.testing.assert_array_equal(adapt.by_proportion(theta, unknown, adapt.Speed(5, 5), host=True), theta)


def test_probes_find_the_device_that_they_are_like() -> None:
    doubles = np.array([[0.0, 0.0, 0.0], [0.5, 1.0, 0.2], [1.0, 0.1, 2.0]])
    covariance = 0.01 * np.eye(3)
    weights, pull = probing.weigh(doubles, doubles[1] + 0.05, covariance, np.zeros(3), 5.0)
    assert weights[1] > 0.99 and weights.sum() == pytest.approx(1)
    # what the doubles do not say
    np.testing.assert_allclose(covariance @ pull + weights @ doubles, doubles[1] + 0.05, rtol=1e-9)


def test_one_odd_probe_does_not_decide_alone() -> None:
    """Three probes of four agree with the first double to 1 %, one ran into something else: e times as long."""
    doubles = np.array([[0.0, 0.0, 0.0, 0.0], [0.4, 0.4, 0.4, 0.6]])
    y = np.array([0.01, -0.01, 0.0, 1.0])
    share = {
        tail: probing.weigh(doubles, y, 0.02 * np.eye(4), np.zeros(2), tail)[0][0] for tail in (1.0, 1e6)
    }  # a normal distribution is as good as sure of the second
    assert share[1.0] > 100 * share[1e6]


WIDTHS = Widths(rates=0.1, residual=0.1, speed=0.1, tail=5.0, other_engine=1.0, threads=1.5)


def known(device: str, engine: str = "ncnn/cpu/fp32", threads: str = "4") -> Configuration:
    return Configuration(device=device, engine=engine, threads=threads, campaign="c", rows=1, theta=(), own=())


def test_devices_count_alike_before_anything_is_measured() -> None:
    listed = [known("a"), known("a"), known("b"), known("c", "ncnn/cpu/int8")]
    found = np.exp(probing.prior(listed, "ncnn/cpu/fp32", None, WIDTHS))
    np.testing.assert_allclose(found, [0.5, 0.5, 1, np.exp(-1)])


def test_doubles_with_as_many_threads_come_first() -> None:
    listed = [known("a"), known("b", threads="1"), known("c", threads="")]
    found = probing.prior(listed, "ncnn/cpu/fp32", 4, WIDTHS)
    np.testing.assert_allclose(found, [0, -1.5 * np.log(4), -1.5 * probing.UNKNOWN_AWAY])


@pytest.mark.parametrize(("engine", "start_ms", "expected"), [
    ("tflite/cpu/int8", 3.9, True), ("tflite/cpu/int8", 0.2, False), ("tflite/gpu/fp16", 3.9, False),
])  # fmt: skip
def test_threads_that_wait_for_each_other_are_told(engine: str, start_ms: float, expected: bool) -> None:
    theta = (float(np.log(start_ms)), *[0.0] * (COUNT - 1))
    one = Configuration(device="d", engine=engine, threads="4", campaign="c", rows=9, theta=theta, own=())
    assert one.waits is expected


def test_nearest_thread_count_is_by_ratio() -> None:
    assert adapt.nearest_threads([1, 4, 12], 8) == 12
    assert adapt.by_threads(-0.5, 4, 1) == pytest.approx(-0.5 * np.log(4))
