"""Q/DQ graphs read back: our own comes back as the table it was written from, and what cannot be held is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.read_qdq import read_qdq
from edgeopt.runtimes.onnxruntime import Session

from .test_qdq import linear_relu


@pytest.mark.parametrize("unsigned", [False, True])
def test_what_was_written_is_read_back(unsigned: bool) -> None:
    graph = linear_relu({"linear": "int8", "relu": "int8"})
    table = graph.quantization
    assert table is not None
    back = read_qdq(to_qdq(graph, unsigned=unsigned))
    assert {name.removesuffix("__float"): params for name, params in back.activations.items()} == table.activations
    (weight,) = back.weights.values()
    assert np.array_equal(weight.integers, table.weights["w"].integers)
    assert weight.params == table.weights["w"].params
    assert not [node for node in back.model.graph if node.op_type.endswith("Linear")]


def test_the_float_graph_behind_it_runs() -> None:
    graph = linear_relu({"linear": "int8", "relu": "int8"})
    x = np.random.default_rng(0).normal(0, 1, (2, 6)).astype(np.float32)
    outputs = []
    for model in (read_qdq(to_qdq(graph)).model, graph.model):
        with Session(ir.to_proto(model).SerializeToString(), optimize=False) as session:
            outputs.append(session.run({"x": x}))
    assert outputs[0].keys() == outputs[1].keys()
    assert np.abs(outputs[0]["y"] - outputs[1]["y"]).max() < 0.1, "rounded weights, and nothing else"


def test_activations_per_channel_are_refused_by_name() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2,2] x) => (float[2,2] y) '
        "<float[2] s = {0.1, 0.2}, int8[2] z = {0, 0}> "
        "{ q = QuantizeLinear<axis = 1>(x, s, z)\n [the_pair] y = DequantizeLinear<axis = 1>(q, s, z) }"
    )
    with pytest.raises(ValueError, match="the_pair"):
        read_qdq(model)
    widened = read_qdq(model, widen=True).activations["x"]
    assert widened.axis is None
    assert float(widened.scale) == pytest.approx(0.2), "the grid that covers both channels"
