"""Where quantization goes, shown on graphs small enough to read."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgeopt.graph.constraints import Constraints, FixedOutput, unite
from edgeopt.graph.placement import place

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'


def graph(body: str, *, inputs: str = "float[1,4,8,8] x", outputs: str = "y") -> ir.Model:
    """A model from ONNX text whose constants are w, b (Conv) and m, n (Gemm)."""
    zeros = ",".join(["0"] * 16)
    constants = [f"float[4,4,1,1] w = {{{zeros}}}", "float[4] b = {0,0,0,0}"]
    constants += [f"float[4,4] m = {{{zeros}}}", "float[4] n = {0,0,0,0}"]
    text = f"{HEADER}g ({inputs}) => ({outputs}) <{', '.join(constants)}> {{\n{body}\n}}"
    model = ir.from_onnx_text(text)
    ShapeInferencePass()(model)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def test_a_relu_behind_a_convolution_is_part_of_it() -> None:
    placement = place(graph("c = Conv(x, w, b)\nr = Relu(c)\ny = Conv(r, w, b)", outputs="float[1,4,8,8] y"))
    assert placement.activations == ("x", "r", "y")
    assert set(placement.schemes.values()) == {"int8"}


def test_a_relu_that_others_read_around_is_not() -> None:
    placement = place(
        graph("c = Conv(x, w, b)\nr = Relu(c)\ns = Add(r, c)\ny = Conv(s, w, b)", outputs="float[1,4,8,8] y")
    )
    assert set(placement.activations) == {"x", "c", "r", "s", "y"}


def test_the_sigmoid_of_a_silu_is_never_rounded() -> None:
    placement = place(
        graph("c = Conv(x, w, b)\ns = Sigmoid(c)\np = Mul(c, s)\ny = Conv(p, w, b)", outputs="float[1,4,8,8] y")
    )
    assert placement.activations == ("x", "c", "p", "y")
    assert placement.schemes["Sigmoid_1"] == placement.schemes["Mul_2"] == "int8"


def test_a_residual_between_convolutions_is_int8_and_one_into_layer_normalization_is_float() -> None:
    convolutional = place(graph("c = Conv(x, w, b)\ns = Add(c, x2)\ny = Conv(s, w, b)",
                                inputs="float[1,4,8,8] x, float[1,4,8,8] x2", outputs="float[1,4,8,8] y"))  # fmt: skip
    assert "Add_1" not in convolutional.schemes, "x2 is a float input: nothing wins by rounding it"
    both = place(
        graph("c = Conv(x, w, b)\nd = Conv(c, w, b)\ns = Add(c, d)\ny = Conv(s, w, b)", outputs="float[1,4,8,8] y")
    )
    assert both.schemes["Add_2"] == "int8"
    transformer = place(
        graph(
            "g = Gemm<transB = 1>(x, m, n)\ns = Add(g, x)\n"
            "l = LayerNormalization(s, n, n)\ny = Gemm<transB = 1>(l, m, n)",
            inputs="float[3,4] x",
            outputs="float[3,4] y",
        )
    )
    assert set(transformer.schemes) == {"Gemm_0", "Gemm_3"}
    assert transformer.activations == ("x", "g", "l", "y")


def test_movers_share_one_grid_and_are_float_where_nobody_wants_integers() -> None:
    wanted = place(graph("c = Conv(x, w, b)\nd = Conv(c, w, b)\nk = Concat<axis = 2>(c, d)\ny = Conv(k, w, b)",
                         outputs="float[1,4,16,8] y"))  # fmt: skip
    assert wanted.groups == (frozenset({"c", "d", "k"}),)
    last = place(graph("c = Conv(x, w, b)\nd = Conv(x, w, b)\ny = Concat<axis = 1>(c, d)", outputs="float[1,8,8,8] y"))
    assert last.groups == ()
    assert last.range_only == ("y",)
    assert "Concat_2" not in last.schemes


def test_what_targets_fix_and_what_must_be_symmetric() -> None:
    constraints = unite(
        [
            Constraints(symmetric_inputs={"MatMul": frozenset({1})}),
            Constraints(fixed_outputs={"Sigmoid": FixedOutput(1 / 256, -128)}, equal_scales=frozenset({"AveragePool"})),
        ]
    )
    body = "a = Gemm<transB = 1>(x, m, n)\nt = Transpose<perm = [1, 0]>(a)\ny = MatMul(a, t)"
    placement = place(graph(body, inputs="float[4,4] x", outputs="float[4,4] y"), constraints=constraints)
    assert placement.symmetric == {"a", "t"}, "the second input, and what shares its grid"
    body = "c = Conv(x, w, b)\ns = Sigmoid(c)\ny = Conv(s, w, b)"
    assert place(graph(body, outputs="float[1,4,8,8] y"), constraints=constraints).fixed == {
        "s": FixedOutput(1 / 256, -128)
    }


def test_rules_by_name() -> None:
    model = graph("c = Conv(x, w, b)\nr = Relu(c)\ny = Conv(r, w, b)", outputs="float[1,4,8,8] y")
    placement = place(model, rules=(("Conv_0", "fp32"),))
    assert placement.schemes == {"Conv_2": "int8"}
    assert placement.activations == ("r", "y")
    assert place(model, scheme="int8-dynamic").schemes == {"Conv_0": "int8-dynamic", "Conv_2": "int8-dynamic"}
    assert place(model, scheme="fp16").schemes.keys() == {"Conv_0", "Relu_1", "Conv_2"}
