"""The grid: what quantize and dequantize promise, for any real range and any tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt.graph.quantization import (
    INT8_MAX,
    INT8_MIN,
    Quantization,
    QuantizedTensor,
    QuantParams,
    Range,
)

reals = st.floats(-1e6, 1e6, allow_nan=False, width=32)
ranges = st.tuples(reals, reals).map(lambda ends: Range(min(*ends, 0.0), max(*ends, 0.0)))
tensors = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e5, 1e5, width=32))


@given(ranges, st.booleans())
def test_zero_is_exact(bounds: Range, symmetric: bool) -> None:
    params = QuantParams.from_range(bounds, symmetric=symmetric)
    zero = params.quantize(np.zeros(1, np.float32))
    assert params.dequantize(zero)[0] == 0.0
    assert INT8_MIN <= int(params.zero_point) <= INT8_MAX
    if symmetric:
        assert int(params.zero_point) == 0


@given(ranges, st.floats(0, 1), st.booleans())
def test_error_inside_the_range_is_at_most_half_a_step_and_a_shifted_zero(
    bounds: Range, where: float, symmetric: bool
) -> None:
    """The zero point is rounded, so the grid's ends may lie up to half a step inside the asked range."""
    params = QuantParams.from_range(bounds, symmetric=symmetric)
    value = np.array([bounds.low + where * (bounds.high - bounds.low)], np.float32)
    error = abs(float(params.dequantize(params.quantize(value))[0]) - float(value[0]))
    assert error <= float(params.scale) * 1.001 + 1e-6 * abs(float(value[0]))


@given(tensors, ranges)
def test_quantizing_twice_changes_nothing(tensor: np.ndarray, bounds: Range) -> None:
    params = QuantParams.from_range(bounds)
    once = params.quantize(tensor)
    assert np.array_equal(params.quantize(params.dequantize(once)), once)


@given(hnp.arrays(np.float32, (5, 3, 2), elements=st.floats(-10, 10, width=32)), st.integers(0, 2))
def test_per_channel_is_per_tensor_of_each_channel(weight: np.ndarray, axis: int) -> None:
    moved = np.moveaxis(weight, axis, 0)
    scale = np.maximum(np.abs(moved).reshape(len(moved), -1).max(1), 1e-3) / INT8_MAX
    params = QuantParams(scale, np.zeros(len(scale), np.int32), axis)
    together = np.moveaxis(params.quantize(weight), axis, 0)
    for channel, (values, step) in enumerate(zip(moved, scale, strict=True)):
        alone = QuantParams(np.asarray(step), np.asarray(0)).quantize(values)
        assert np.array_equal(together[channel], alone)


def test_integers_are_the_same_as_onnxruntimes() -> None:
    """Ties to even, saturation, and the zero point after rounding, as QuantizeLinear does."""
    onnx_ir = pytest.importorskip("onnx_ir")
    from edgeopt.runtimes.onnxruntime import Session

    params = QuantParams(np.asarray(0.1, np.float32), np.asarray(-3))
    values = np.concatenate([np.arange(-20, 20, 0.05, np.float32), np.array([1e9, -1e9, 0.05, 0.15], np.float32)])
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[{len(values)}] x) => (int8[{len(values)}] y)
    <float s = {{0.1}}, int8 z = {{-3}}> {{ y = QuantizeLinear(x, s, z) }}"""
    model = onnx_ir.to_proto(onnx_ir.from_onnx_text(text)).SerializeToString()
    with Session(model, optimize=False) as session:
        assert np.array_equal(session.run({"x": values})["y"], params.quantize(values))


@pytest.mark.parametrize("ends", [(1.0, 2.0), (-2.0, -1.0), (float("nan"), 1.0), (-float("inf"), 0.0)])
def test_a_range_that_leaves_zero_out_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="range"):
        Range(*ends)


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis"),
    [(np.ones(3), np.zeros(3), None), (np.ones(()), np.zeros(()), 0), (np.zeros(()), np.zeros(()), None)],
)
def test_parameters_that_do_not_fit_together_are_refused(scale: object, zero_point: object, axis: int | None) -> None:
    with pytest.raises(ValueError):
        QuantParams(np.asarray(scale), np.asarray(zero_point), axis)


def test_a_table_comes_back_from_its_file_exactly(tmp_path: Path) -> None:
    scale = np.array([0.5, 0.25], np.float32)
    table = Quantization(
        activations={"a/b": QuantParams.from_range(Range(-1.0, 3.0)), "w/q/odd": QuantParams.from_range(Range(0, 0))},
        weights={"w": QuantizedTensor(np.array([[1, -2], [3, 4]], np.int8), QuantParams(scale, np.zeros(2), 0))},
        biases={"b": np.array([7, -9], np.int32)},
        ranges={"a/b": Range(-1.0, 3.0)},
        schemes={"conv": "int8"},
        labels={"a/b": "mse"},
    )
    table.save(tmp_path / "table.npz")
    again = Quantization.load(tmp_path / "table.npz")
    assert again.activations == table.activations
    assert np.array_equal(again.weights["w"].integers, table.weights["w"].integers)
    assert again.weights["w"].params == table.weights["w"].params
    assert np.array_equal(again.biases["b"], table.biases["b"])
    assert (again.ranges, again.schemes, again.labels) == (table.ranges, table.schemes, table.labels)
