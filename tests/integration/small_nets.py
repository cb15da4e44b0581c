"""Small canonical graphs for the backends: every structure that lowering treats in its own way, in milliseconds."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper


class Net:
    """Builds a graph node by node; weights are drawn from ``seed``. ``values`` name what nodes make."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 4
        return self.constant(name, self.rng.normal(0, 1 / np.sqrt(fan_in), shape).astype(np.float32))

    def add(self, op: str, name: str, inputs: list[str], **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(self, name: str, x: str, cin: int, cout: int, *, k: int = 3, stride: int = 1, group: int = 1) -> str:
        weights = [self.weight(f"{name}.weight", cout, cin // group, k, k), self.weight(f"{name}.bias", cout)]
        return self.add(
            "Conv", name, [x, *weights], kernel_shape=[k, k], pads=[k // 2] * 4, strides=[stride] * 2, group=group
        )

    def relu6(self, name: str, x: str) -> str:
        bounds = [self.constant(f"{name}.low", np.float32(0)), self.constant(f"{name}.high", np.float32(6))]
        return self.add("Clip", name, [x, *map(str, bounds)])

    def model(self, inputs: dict[str, list[int]], outputs: dict[str, list[int]], opset: int = 20) -> ir.Model:
        rename = {f"{name}_out": name for name in outputs}
        for node in self.nodes:
            node.output[:] = [rename.get(name, name) for name in node.output]
            node.input[:] = [rename.get(name, name) for name in node.input]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def classifier() -> ir.Model:
    """Relu6, depthwise, a skip with Relu, Concat of a Relu and a signed tensor, a mean, a Gemm: x → logits (nodes
    ``logits``)."""
    net = Net()
    a = net.relu6("relu6", net.conv("stem", "x", 3, 16, stride=2))
    b = net.add("Relu", "relu_dw", [net.conv("depthwise", a, 16, 16, group=16)])
    skip = net.add("Add", "skip", [a, net.conv("pointwise", b, 16, 16, k=1)])
    c = net.add("Relu", "relu_skip", [skip])
    d = net.add("Relu", "relu_wide", [net.conv("wide", c, 16, 16)])
    cat = net.add("Concat", "cat", [d, net.conv("signed", c, 16, 16, k=1)], axis=1)
    e = net.add("Relu", "relu_last", [net.conv("last", cat, 32, 32)])
    mean = net.add("GlobalAveragePool", "mean", [e])
    flat = net.add("Reshape", "flat", [mean, net.constant("flat.shape", np.array([1, 32]))])
    net.add("Gemm", "logits", [flat, net.weight("fc.weight", 10, 32), net.weight("fc.bias", 10)], transB=1)
    return net.model({"x": [1, 3, 16, 16]}, {"logits": [1, 10]})


def detector() -> ir.Model:
    """SiLU, MaxPool, ConvTranspose, Resize, Pad, a squeeze-and-excite, HardSwish, two heads, one behind a Sigmoid."""
    net = Net(1)
    x = net.conv("stem", "x", 3, 8, stride=2)
    s = net.add("Mul", "silu", [x, net.add("Sigmoid", "gate", [x])])
    pool = net.add("MaxPool", "pool", [s], kernel_shape=[2, 2], strides=[2, 2])
    deep = net.add("Relu", "relu_deep", [net.conv("deep", pool, 8, 8)])
    up = net.add(
        "ConvTranspose", "up", [deep, net.weight("up.weight", 8, 8, 2, 2), net.weight("up.bias", 8)], strides=[2, 2],
        kernel_shape=[2, 2],
    )  # fmt: skip
    scales = net.constant("scales", np.array([1, 1, 2, 2], np.float32))
    near = net.add(
        "Resize", "near", [deep, "", scales], mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    cat = net.add("Concat", "cat", [up, near, s], axis=1)
    wide = net.add("Pad", "pad", [cat, net.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))])
    weights = [net.weight("mix.weight", 8, 24, 3, 3), net.weight("mix.bias", 8)]
    mix = net.add("Relu", "relu_mix", [net.add("Conv", "mix", [wide, *weights], kernel_shape=[3, 3])])
    squeeze = net.add("GlobalAveragePool", "squeeze", [mix])
    gate = net.add("HardSigmoid", "excite", [net.conv("fc", squeeze, 8, 8, k=1)], alpha=1 / 6, beta=0.5)
    mix = net.add("HardSwish", "hard", [net.conv("after", net.add("Mul", "gated", [mix, gate]), 8, 8, k=1)])
    net.conv("boxes", mix, 8, 4, k=1)
    net.add("Sigmoid", "scores", [net.conv("classes", mix, 8, 5, k=1)])
    return net.model({"x": [1, 3, 16, 16]}, {"boxes": [1, 4, 8, 8], "scores": [1, 5, 8, 8]})


def attention() -> ir.Model:
    """One transformer block: LayerNormalization, four Gemms, two MatMuls, Gelu; residual stream in float."""
    net = Net(2)

    def gemm(name: str, x: str, cin: int, cout: int) -> str:
        return net.add(
            "Gemm", name, [x, net.weight(f"{name}.weight", cout, cin), net.weight(f"{name}.bias", cout)], transB=1
        )

    def norm(name: str, x: str) -> str:
        scale = net.constant(f"{name}.scale", net.rng.uniform(0.5, 1.5, 16).astype(np.float32))
        return net.add("LayerNormalization", name, [x, scale, net.weight(f"{name}.shift", 16)], axis=-1)

    def heads(name: str, x: str, perm: list[int]) -> str:
        split = net.add("Reshape", f"{name}_split", [x, net.constant(f"{name}.shape", np.array([6, 2, 8]))])
        return net.add("Transpose", f"{name}_heads", [split], perm=perm)

    normal = norm("norm1", "x")
    q, k, v = (
        heads(name, gemm(name, normal, 16, 16), perm)
        for name, perm in (("q", [1, 0, 2]), ("k", [1, 2, 0]), ("v", [1, 0, 2]))
    )
    scores = net.add("Mul", "scaled", [net.add("MatMul", "qk", [q, k]), net.constant("root", np.float32(8**-0.5))])
    mixed = net.add("MatMul", "av", [net.add("Softmax", "softmax", [scores], axis=-1), v])
    back = net.add("Transpose", "back", [mixed], perm=[1, 0, 2])
    joined = net.add("Reshape", "joined", [back, net.constant("joined.shape", np.array([6, 16]))])
    stream = net.add("Add", "residual1", ["x", gemm("project", joined, 16, 16)])
    hidden = net.add("Gelu", "gelu", [gemm("up", norm("norm2", stream), 16, 32)])
    net.add("Add", "y", [stream, gemm("down", hidden, 32, 16)])
    return net.model({"x": [6, 16]}, {"y": [6, 16]})


def samples(model: ir.Model, count: int, seed: int = 7) -> list[dict[str, np.ndarray]]:
    """Normal noise of the inputs' shapes."""
    rng = np.random.default_rng(seed)
    return [
        {value.name or "": rng.normal(0, 1, value.shape.numpy()).astype(np.float32) for value in model.graph.inputs}
        for _ in range(count)
    ]
