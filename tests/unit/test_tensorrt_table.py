"""Numbers of TensorRT's own table and of the calibration cache, whatever the ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.graph.quantization import SMALLEST_SCALE, Quantization, QuantParams, Range
from edgeopt.targets.tensorrt.bundle import calibration_cache
from edgeopt.targets.tensorrt.table import _symmetric

ends = st.floats(0, 1e6, width=32)
scales = st.floats(np.float32(1e-30).item(), np.float32(1e30).item(), width=32)


@given(low=ends, high=ends)
def test_the_symmetric_grid_covers_the_shared_range_with_the_smallest_step(low, high):
    bounds = Range(-low, high)
    table = Quantization(activations={"t": QuantParams.from_range(bounds)}, ranges={"t": bounds})
    params = _symmetric("t", table)
    assert int(params.zero_point) == 0
    if int(table.activations["t"].zero_point):
        assert 127 * float(params.scale) == pytest.approx(max(low, high, 127 * SMALLEST_SCALE), rel=1e-6)
    else:
        assert params == table.activations["t"]


@given(scale=scales)
def test_a_calibration_cache_gives_every_scale_back_exactly(scale):
    (line,) = calibration_cache({"a: b": scale}).splitlines()[1:]
    name, _, number = line.rpartition(": ")
    assert name == "a: b"
    assert np.frombuffer(bytes.fromhex(number), ">f4")[0] == np.float32(scale)
