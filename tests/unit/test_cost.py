"""Arithmetic and values moved, node by node, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from edgeopt.devices.kernels import FUSION, QUANTITIES, fuse, matrix, quantities
from edgeopt.frontends.onnx import load_onnx
from edgeopt.graph.cost import operations, peak_activation_elements, weight_elements
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise
from tests.tiny import save_model


def canonical(path: Path) -> ir.Model:
    with TemporaryDirectory() as scratch:
        return canonicalise(QuantizedGraph(load_onnx(path).model), Context(scratch=Path(scratch))).model


def test_a_small_net_by_hand(tmp_path: Path) -> None:
    found = operations(canonical(save_model(tmp_path / "net.onnx")))
    assert [(op.kind, op.operator) for op in found] == [
        ("conv", "Conv"), ("act", "Relu"), ("conv_dw", "Conv"), ("act", "Relu"),
        ("pool", "GlobalAveragePool"), ("linear", "Gemm"),
    ]  # fmt: skip
    conv, relu, depthwise, _, pool, linear = found
    assert (conv.macs, conv.weights, conv.inputs, conv.outputs) == (12 * 12 * 8 * 27, 216, 432, 1152)
    assert (conv.kernel, conv.stride, conv.positions, conv.channels_in) == (9, 1, 144, 3)
    assert depthwise.macs == 12 * 12 * 8 * 9
    assert (pool.macs, pool.inputs, pool.outputs) == (0, 1152, 8)
    assert (linear.macs, linear.weights, linear.positions) == (32, 32, 1)
    assert relu.follows and depthwise.follows and linear.follows and not conv.follows


def test_memory_of_the_same_net(tmp_path: Path) -> None:
    model = canonical(save_model(tmp_path / "net.onnx"))
    assert (
        peak_activation_elements(model) == 432 + 2 * 1152
    )  # the caller keeps the input; a layer reads one and writes one
    assert weight_elements(model) >= 216 + 72 + 32


def test_fusion_is_the_runtimes_own(tmp_path: Path) -> None:
    listed = operations(canonical(save_model(tmp_path / "net.onnx")))
    assert [kernel.fused for kernel in fuse(listed, FUSION["tflite"])] == [
        ("Conv", "Relu"), ("Conv", "Relu"), ("GlobalAveragePool",), ("Gemm",),
    ]  # fmt: skip
    assert len(fuse(listed, FUSION["pytorch"])) == len(listed)


def model_of(body: str, output: str = "float[1,8,6,6]") -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
        net (float[1,8,6,6] x) => ({output} y) {{ {body} }}"""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.outputs:
            value.shape, value.type = ir.Shape((1, 8, 6, 6)), ir.TensorType(ir.DataType.FLOAT)
    return model


def test_silu_is_one_activation() -> None:
    (found,) = operations(model_of("s = Sigmoid (x) y = Mul (x, s)"))
    assert (found.kind, found.operator, found.inputs, found.outputs) == ("act", "Silu", 288, 288)


def test_an_unknown_operator_moves_its_bytes() -> None:
    (found,) = operations(model_of("y = own.Strange (x)"))
    assert found.kind == "other"
    (kernel,) = fuse([found], FUSION["tflite"])
    cost = dict(zip(QUANTITIES, quantities(kernel), strict=True))
    assert not kernel.known
    assert cost["other_kernels"] == 1
    assert cost["moved_elementwise"] == 2 * 288 / 1e6


def test_every_multiplication_is_in_one_quantity(tmp_path: Path) -> None:
    listed = operations(canonical(save_model(tmp_path / "net.onnx")))
    x = matrix(fuse(listed, FUSION["tflite"])).sum(0)
    units = {"macs_depthwise": 1e7}
    counted = sum(v * units.get(n, 1e8) for n, v in zip(QUANTITIES, x, strict=True) if n.startswith("macs"))
    assert round(counted) == sum(op.macs for op in listed)
