"""The integer reference: a Q/DQ graph that computes what the table says, checked against plain numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantizedTensor, QuantParams, Range
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.types import SchemeName

rng = np.random.default_rng(3)
WEIGHT = rng.normal(0, 1, (4, 6)).astype(np.float32)
BIAS = rng.normal(0, 1, 4).astype(np.float32)


def linear_relu(schemes: dict[str, SchemeName]) -> QuantizedGraph:
    """y = Relu(x · Wᵀ + b), and z = −y read by a float node."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2,6] x) => (float[2,4] y, float[2,4] z) '
        "<float[4,6] w = {"
        + ",".join(map(str, WEIGHT.ravel()))
        + "}, float[4] b = {"
        + ",".join(map(str, BIAS))
        + "}> "
        "{ [linear] c = Gemm<transB = 1>(x, w, b)\n [relu] y = Relu(c)\n [negate] z = Neg(y) }"
    )
    scale = np.abs(WEIGHT).max(1) / 127
    params = QuantParams(scale, np.zeros(4), 0)
    activations = {"x": QuantParams.from_range(Range(-2, 2)), "y": QuantParams.from_range(Range(0, 5))}
    bias = np.rint(BIAS / (params.scale * activations["x"].scale)).astype(np.int32)
    weights = {"w": QuantizedTensor(params.quantize(WEIGHT), params)}
    return QuantizedGraph(model, Quantization(activations, weights, {"b": bias}, {}, schemes))


def run(graph: QuantizedGraph, x: np.ndarray, **how: bool) -> dict[str, np.ndarray]:
    model = ir.to_proto(to_qdq(graph, **how)).SerializeToString()
    with Session(model, optimize=False) as session:
        return session.run({"x": x})


@pytest.mark.parametrize("fold_weights", [False, True])
def test_the_reference_computes_what_the_table_says(fold_weights: bool) -> None:
    graph = linear_relu({"linear": "int8", "relu": "int8"})
    table = graph.quantization
    assert table is not None
    x = rng.normal(0, 1, (2, 6)).astype(np.float32)
    got = run(graph, x, expose_integers=True, fold_weights=fold_weights)

    xq, weight = table.activations["x"], table.weights["w"]
    sums = (xq.quantize(x).astype(np.int64) - int(xq.zero_point)) @ weight.integers.astype(np.int64).T + table.biases[
        "b"
    ]
    expected = np.maximum(sums * (xq.scale * weight.params.scale), 0)
    integers = table.activations["y"].quantize(expected)
    assert np.abs(got["y__q"].astype(int) - integers).max() <= 1, "float sums may fall to the other side of a tie"
    assert np.array_equal(got["x__q"], xq.quantize(x))
    assert np.array_equal(got["y"], table.activations["y"].dequantize(got["y__q"])), "the output is its integers"
    assert np.array_equal(got["z"], -got["y"]), "a float consumer of an int8 producer reads the integers"


def test_unsigned_is_the_same_grid() -> None:
    graph = linear_relu({"linear": "int8", "relu": "int8"})
    x = rng.normal(0, 1, (2, 6)).astype(np.float32)
    signed, unsigned = run(graph, x, expose_integers=True), run(graph, x, expose_integers=True, unsigned=True)
    assert np.array_equal(signed["y"], unsigned["y"])
    assert np.array_equal(signed["y__q"].astype(int) + 128, unsigned["y__q"])


def test_only_int8_consumers_read_a_float_producer_through_the_grid() -> None:
    graph = linear_relu({"linear": "int8"})  # the relu is float: y is a float tensor that no int8 node reads
    got = run(graph, rng.normal(0, 1, (2, 6)).astype(np.float32), expose_integers=True)
    assert "y__q" not in got
    assert got["x__q"].dtype == np.int8


def test_weights_only_leave_activations_alone() -> None:
    graph = linear_relu({"linear": "int8-weights"})
    table = graph.quantization
    assert table is not None
    weights_only = QuantizedGraph(graph.model, Quantization(weights=table.weights, schemes=table.schemes))
    x = rng.normal(0, 1, (2, 6)).astype(np.float32)
    expected = np.maximum(x @ table.weights["w"].dequantize().T + BIAS, 0)
    assert np.allclose(run(weights_only, x)["y"], expected, atol=1e-5)


def test_the_graph_itself_is_not_changed() -> None:
    graph = linear_relu({"linear": "int8", "relu": "int8"})
    before = ir.to_proto(graph.model).SerializeToString()
    to_qdq(graph, expose_integers=True)
    assert ir.to_proto(graph.model).SerializeToString() == before


def test_a_weight_that_is_not_in_the_table_is_an_error() -> None:
    graph = linear_relu({"linear": "int8"})
    assert graph.quantization is not None
    empty = QuantizedGraph(graph.model, Quantization(graph.quantization.activations, schemes={"linear": "int8"}))
    with pytest.raises(ValueError, match="linear"):
        to_qdq(empty)
