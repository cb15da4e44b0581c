"""Every rewriting of an operator for another opset computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt.graph.opset import OLDEST, convert_opset
from edgeopt.runtimes.onnxruntime import Session

HEAD = '<ir_version: 8, opset_import: ["" : 20]> g (float[2,4,6,6] x) => (float{out} y) '
NODES = {
    "gelu": ("[2,4,6,6]", "{ y = Gelu(x) }"),
    "gelu_tanh": ("[2,4,6,6]", '{ y = Gelu<approximate = "tanh">(x) }'),
    "layer_normalization": (
        "[2,4,6,6]",
        "<float[6] s = {1,2,3,4,5,6}, float[6] b = {6,5,4,3,2,1}> { y = LayerNormalization<epsilon = 0.01>(x, s, b) }",
    ),
    "layer_normalization_of_two_axes": (
        "[2,4,6,6]",
        "<float[1] s = {2}> { y = LayerNormalization<axis = 2>(x, s) }",
    ),
    "hard_swish": ("[2,4,6,6]", "{ y = HardSwish(x) }"),
    "mish": ("[2,4,6,6]", "{ y = Mish(x) }"),
    "reduce_mean": ("[2,6]", "<int64[2] a = {1, 3}> { y = ReduceMean<keepdims = 0>(x, a) }"),
    "reduce_max_of_all": ("[1,1,1,1]", "{ y = ReduceMax(x) }"),
    "split": ("[2,2,6,6]", "{ a, b = Split<axis = 1, num_outputs = 2>(x)\n y = Sub(a, b) }"),
    "pad_of_one_axis": ("[2,4,6,9]", '<int64[2] p = {1, 2}, int64[1] i = {-1}> { y = Pad(x, p, "", i) }'),
    "resize_of_two_axes": (
        "[2,4,12,3]",
        '<float[2] f = {2, 0.5}> { y = Resize<axes = [2, 3], mode = "linear", antialias = 0>(x, "", f) }',
    ),
    "resize_to_sizes_of_two_axes": (
        "[2,4,5,7]",
        '<int64[2] n = {5, 7}> { y = Resize<axes = [2, 3], mode = "nearest">(x, "", "", n) }',
    ),
    "average_pool": (
        "[2,4,4,4]",
        "{ y = AveragePool<kernel_shape = [3, 3], dilations = [1, 1]>(x) }",
    ),
    "grid_sample": (
        "[2,4,1,2]",
        '<float[2,1,2,2] t = {0,0.1,0.2,0.3,-0.4,0.5,-0.6,0.7}> { y = GridSample<mode = "linear">(x, t) }',
    ),
    "reshape": ("[2,144]", "<int64[2] s = {2, 144}> { y = Reshape<allowzero = 0>(x, s) }"),
}


def model(name: str) -> ir.Model:
    shape, body = NODES[name]
    proto = onnx.parser.parse_model(HEAD.replace("{out}", shape) + body)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def run(graph: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    with Session(proto.SerializeToString(), optimize=False) as session:
        return session.run({"x": x})["y"]


@pytest.mark.parametrize("version", [13, 14, 16, 17, 18, 19, 21])
@pytest.mark.parametrize("name", NODES)
def test_the_same_function_in_every_opset(name: str, version: int) -> None:
    x = np.random.default_rng(0).normal(0, 1, (2, 4, 6, 6)).astype(np.float32)
    graph = model(name)
    expected = run(graph, x)
    if name == "grid_sample" and version < 16:
        with pytest.raises(ValueError, match="GridSample does not exist in opset"):
            convert_opset(graph, version)
        return
    convert_opset(graph, version)
    assert graph.graph.opset_imports[""] == version
    np.testing.assert_allclose(run(graph, x), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("body", "version", "text"),
    [
        ('{ y = Resize<antialias = 1, mode = "linear">(x, "", f) }', 17, "antialias"),
        (
            '{ y = Resize<coordinate_transformation_mode = "half_pixel_symmetric">(x, "", f) }',
            18,
            "half_pixel_symmetric",
        ),
        ('{ y = Pad<mode = "wrap">(x, p) }', 18, "wraps"),
        ("{ y = AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(x) }", 18, "dilations"),
        ("{ y = BitShift<direction = \"LEFT\">(x, x) }", OLDEST - 1, "not between"),
        ("{ y = Gelu(x) }", 99, "not between"),
    ],
)  # fmt: skip
def test_what_has_no_equal_form_is_refused_by_name(body: str, version: int, text: str) -> None:
    head = (
        '<ir_version: 8, opset_import: ["" : 20]> g (float[1,2,6,6] x) => (float[a,b,c,d] y) '
        "<float[4] f = {1,1,2,2}, int64[8] p = {0,0,1,1,0,0,1,1}> "
    )
    graph = ir.from_proto(onnx.parser.parse_model(head + body))
    with pytest.raises(ValueError, match=text):
        convert_opset(graph, version)


def test_names_of_outputs_stay() -> None:
    graph = model("gelu")
    graph.graph[0].name = "activation"
    convert_opset(graph, 13)
    assert [value.name for value in graph.graph.outputs] == ["y"]
    assert [node.name for node in graph.graph][-1] == "activation"
    assert not any(node.op_type == "Gelu" for node in graph.graph)
