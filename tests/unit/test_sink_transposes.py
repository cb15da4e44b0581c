"""Transposes go where they cancel, and a graph computes what it did before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise
from edgeopt.passes.simplify import Simplify
from edgeopt.passes.sink_transposes import SinkTransposes
from edgeopt.runtimes.onnxruntime import Session
from tests.integration.small_nets import Net

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
CHANNELS, SIZE = 4, 6


class ChannelsLast(Net):
    """Builds as an exporter of a channels-last model does: every convolution between two Transposes."""

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return self.add("Transpose", self.fresh("transpose"), [x], perm=list(perm))

    def conv_last(self, x: str, **options: object) -> str:
        return self.transpose(
            self.conv(self.fresh("conv"), self.transpose(x, FIRST), CHANNELS, CHANNELS, **options), LAST
        )

    def fresh(self, base: str) -> str:
        self.count = getattr(self, "count", 0) + 1
        return f"{base}{self.count}"


def outputs(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with Session(ir.to_proto(model).SerializeToString(), optimize=False) as session:
        return session.run(feed)


def sunk(model: ir.Model, tmp: Path) -> ir.Model:
    graph = QuantizedGraph(model.clone())
    context = Context(tmp)
    for step in (Simplify(), SinkTransposes(), Simplify()):
        graph = step.run(graph, context)
    return graph.model


def count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


STEPS = ["relu", "scale", "shift", "residual", "pad", "concat", "clip", "slope", "softmax", "gate", "mean", "double"]


def step(net: ChannelsLast, kind: str, x: str, earlier: str) -> str:
    """One step on NHWC; shapes stay (1, 6, 6, 4)."""
    name, rng = net.fresh(kind), net.rng
    constant = lambda *shape: net.constant(net.fresh("c"), rng.normal(1, 0.5, shape).astype(np.float32))  # noqa: E731
    match kind:
        case "relu":
            return net.add("Relu", name, [x])
        case "scale":
            return net.add("Mul", name, [x, constant(CHANNELS)])
        case "shift":
            return net.add("Add", name, [constant(1, SIZE, 1, CHANNELS), x])
        case "residual":
            return net.add("Add", name, [x, earlier])
        case "pad":
            pads = net.constant(net.fresh("pads"), np.array([0, 1, 0, 0, 0, 0, 2, 0]))
            padded = net.add("Pad", name, [x, pads])
            ends = [net.constant(net.fresh("i"), np.array(v)) for v in ([1, 0], [1 + SIZE, SIZE], [1, 2])]
            return net.add("Slice", net.fresh("slice"), [padded, *ends])
        case "concat":
            both = net.add("Concat", name, [x, earlier], axis=-1)
            halves = net.add(
                "ReduceMean", net.fresh("m"), [both, net.constant(net.fresh("a"), np.array([3]))], keepdims=1
            )
            return net.add("Mul", net.fresh("mul"), [x, halves])
        case "clip":
            bounds = [net.constant(net.fresh("b"), np.array(v, np.float32)) for v in (-0.5, 0.8)]
            return net.add("Clip", name, [x, *bounds])
        case "slope":
            return net.add("PRelu", name, [x, constant(CHANNELS)])
        case "softmax":
            return net.add("Softmax", name, [x], axis=3)
        case "gate":
            axes = net.constant(net.fresh("a"), np.array([1, 2]))
            mean = net.add("ReduceMean", name, [x, axes], keepdims=0)
            shape = net.constant(net.fresh("s"), np.array([1, 1, 1, CHANNELS]))
            return net.add("Mul", net.fresh("mul"), [x, net.add("Reshape", net.fresh("r"), [mean, shape])])
        case "mean":
            axes = net.constant(net.fresh("a"), np.array([1]))
            return net.add("Sub", net.fresh("sub"), [x, net.add("ReduceMean", name, [x, axes], keepdims=1)])
        case _:
            return net.add("Add", name, [x, x])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.one_of(st.just("conv"), st.sampled_from(STEPS)), max_size=8), st.booleans())
def test_whatever_stands_between_convolutions_the_function_stays(
    tmp_path_factory, seed: int, kinds: list[str], two: bool
) -> None:
    net = ChannelsLast(seed)
    x = earlier = net.conv_last("x")
    for kind in kinds:
        made = net.conv_last(x) if kind == "conv" else step(net, kind, x, earlier)
        x, earlier = made, x
    last = net.conv_last(x)
    names = {net.add("Relu", "y", [last]): [1, SIZE, SIZE, CHANNELS]}
    if two:
        names[net.add("Neg", "z", [earlier])] = [1, SIZE, SIZE, CHANNELS]
    model = net.model({"x": [1, SIZE, SIZE, CHANNELS]}, names)
    after = sunk(model, tmp_path_factory.mktemp("sunk"))
    feed = {"x": np.random.default_rng(seed).normal(0, 1, (1, SIZE, SIZE, CHANNELS)).astype(np.float32)}
    expected, found = outputs(model, feed), outputs(after, feed)
    assert list(expected) == list(found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    assert count(after)["Transpose"] <= count(model)["Transpose"]


@pytest.mark.parametrize("kind", STEPS)
def test_between_two_convolutions_no_transpose_is_left(kind: str, tmp_path: Path) -> None:
    """But for the two that the caller's own layout asks for; a Slice minds its axes and is left alone."""
    net = ChannelsLast(3)
    first = net.conv_last("x")
    y = net.conv_last(step(net, kind, first, first))
    model = net.model({"x": [1, SIZE, SIZE, CHANNELS]}, {y: [1, SIZE, SIZE, CHANNELS]})
    if kind != "pad":
        assert count(sunk(model, tmp_path))["Transpose"] == 2


def test_batch_norm_in_pieces_goes_into_the_weights(tmp_path: Path) -> None:
    net = ChannelsLast(5)
    y = "x"
    for _ in range(3):
        y = net.conv_last(y)
        for op in ("Sub", "Mul", "Add"):
            y = net.add(
                op, net.fresh(op), [y, net.constant(net.fresh("c"), net.rng.normal(1, 0.3, 4).astype(np.float32))]
            )
        y = net.add("Relu", net.fresh("relu"), [y])
    model = net.model({"x": [1, SIZE, SIZE, CHANNELS]}, {y: [1, SIZE, SIZE, CHANNELS]})
    found = count(canonicalise(QuantizedGraph(model), Context(tmp_path)).model)
    assert found == {"Transpose": 2, "Conv": 3, "Relu": 3}


def test_a_graph_that_gains_nothing_is_left_alone(tmp_path: Path) -> None:
    """One Transpose that is wanted: nothing would cancel it, and no convolution could take up what is behind it."""
    net = ChannelsLast(1)
    y = net.add("Relu", "y", [net.transpose(net.add("Neg", "neg", ["x"]), LAST)])
    model = net.model({"x": [1, CHANNELS, SIZE, SIZE]}, {y: [1, SIZE, SIZE, CHANNELS]})
    assert [node.op_type for node in sunk(model, tmp_path).graph] == ["Neg", "Transpose", "Relu"]
