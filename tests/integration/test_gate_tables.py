"""What is wrong in a table of scales is told by the table, the float graph and a few samples; what is right is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.gate.differing_layer import exposed
from edgeopt.gate.table_biases import unexplained
from edgeopt.gate.table_factors import factors
from edgeopt.gate.table_grids import not_as_recorded
from edgeopt.gate.table_weights import collapsed
from edgeopt.graph.model import constant
from edgeopt.graph.quantization import QuantizedGraph, QuantizedTensor, QuantParams
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.registry import all_constraints
from tests.integration import small_nets

LAYER = "dw"


def uneven() -> ir.Model:
    """Channels that fill their common grid unevenly before a depthwise convolution: what equalisation is for."""
    net = small_nets.Net(4)
    reach = np.geomspace(0.05, 1, 8).astype(np.float32)
    weights = [
        net.constant(
            "stem.weight", net.rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32) * reach[:, None, None, None]
        ),
        net.constant("stem.bias", net.rng.normal(0, 0.5, 8).astype(np.float32) * reach),
    ]
    x = net.add("Relu", "relu", [net.add("Conv", "stem", ["x", *weights], kernel_shape=[3, 3], pads=[1] * 4)])
    y = net.add("Relu", "relu_dw", [net.conv(LAYER, x, 8, 8, group=8)])
    z = net.add("Relu", "relu_wide", [net.conv("wide", y, 8, 12, k=1)])
    flat = net.add("Reshape", "flat", [net.add("GlobalAveragePool", "mean", [z]), net.constant("s", np.array([1, 12]))])
    net.add("Gemm", "logits", [flat, net.weight("fc.weight", 5, 12), net.weight("fc.bias", 5)], transB=1)
    return net.model({"x": [1, 3, 12, 12]}, {"logits": [1, 5]})


class Samples(list):
    labels = None


def images(count: int, seed: int) -> Samples:
    random = np.random.default_rng(seed)
    light = random.uniform(0.3, 1.5, (count, 1, 1, 1))
    return Samples({"x": (random.normal(0, 1, (1, 3, 12, 12)) * one).astype(np.float32)} for one in light)


def quantized(scratch: Path, **settings: object) -> QuantizedGraph:
    step = Quantize(**{"equalize": "depthwise", "rounding": "gptq", "bias_correction": True, **settings})
    context = Context(scratch, images(24, 1), all_constraints(), effort="fast", threads=1, seed=0)
    return step.run(QuantizedGraph(uneven()), context)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> QuantizedGraph:
    return quantized(tmp_path_factory.mktemp("tables"))


def bias_name(graph: QuantizedGraph, layer: str) -> str:
    return next(node.inputs[2].name for node in graph.model.graph if node.name == layer)


def with_biases(graph: QuantizedGraph, change) -> QuantizedGraph:
    table = graph.quantization
    name = bias_name(graph, LAYER)
    made = {**table.biases, name: change(table.biases[name].copy()).astype(np.int32)}
    return replace(graph, quantization=replace(table, biases=made))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"equalize": "none", "bias_correction": False, "rounding": "nearest"},
        {"equalize": "all", "ranges": "minmax"},
        {"scheme": "int8-weights"},
        {"engine": "nncf"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_a_right_table_is_left_alone(tmp_path, settings):
    made = quantized(tmp_path, **settings)
    assert not list(not_as_recorded(made.model, made.quantization))
    assert not list(unexplained(made, images(16, 2)))
    assert not list(collapsed(made.model, made.quantization))


def test_one_scale_for_all_channels_is_named(tmp_path):
    found = list(collapsed(uneven(), quantized(tmp_path, weights="per-tensor").quantization))
    assert [one.layer for one in found] == ["stem", LAYER, "wide", "logits"]
    assert all(one.certain and "one scale for all" in one.text for one in found)


def test_factors_are_those_of_equalisation(graph):
    plain = factors(graph.model, quantized_plainly(graph)).of
    assert all((array == 1).all() for array in plain.values())
    scaled = factors(graph.model, graph.quantization).of
    assert scaled["relu_out"].max() > 5  # the smallest channel fills the grid now
    np.testing.assert_allclose(scaled["logits"], 1, atol=0.03)
    with Session(exposed(graph.model, ["relu_out"])) as session:
        reach = np.max([session.run(feed, ["relu_out"])["relu_out"].max((0, 2, 3)) for feed in images(24, 1)], 0)
    np.testing.assert_allclose(reach * scaled["relu_out"], reach.max(), rtol=0.05)


def quantized_plainly(graph: QuantizedGraph):
    """The same graph's weights by plain rounding."""
    weights = {}
    for node in graph.model.graph:
        if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].name in graph.quantization.weights:
            real, axis = constant(node.inputs[1]), graph.quantization.weights[node.inputs[1].name].params.axis or 0
            scale = np.abs(np.moveaxis(real, axis, 0)).reshape(real.shape[axis], -1).max(1) / 127
            params = QuantParams(scale, np.zeros(len(scale)), axis)
            weights[node.inputs[1].name] = QuantizedTensor(params.quantize(real), params)
    return replace(graph.quantization, weights=weights)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b * 2, "is wrong"),
        (lambda b: -b, "is wrong"),
        (np.zeros_like, "is missing"),
        (lambda b: np.where(np.arange(len(b)) == np.abs(b).argmax(), 0, b), "is wrong"),
    ],
)
def test_a_wrong_bias_is_named_and_nothing_else(graph, change, said):
    found = list(unexplained(with_biases(graph, change), images(16, 2)))
    assert [(fault.layer, fault.certain) for fault in found] == [(LAYER, True)]
    assert said in found[0].text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: QuantParams(p.scale, np.clip(p.zero_point + 1, -128, 127)), "1 steps above"),
        (lambda p: QuantParams(p.scale * np.float32(20), p.zero_point), "20 times as wide"),
        (lambda p: QuantParams(p.scale / np.float32(4), p.zero_point), "4 times too small"),
    ],
)
def test_a_grid_that_is_not_its_ranges_is_named(graph, change, said):
    table = graph.quantization
    node = next(node for node in graph.model.graph if node.op_type == "Relu" and node.outputs[0].name in table.ranges)
    name = node.outputs[0].name
    spoilt = replace(table, activations={**table.activations, name: change(table.activations[name])})
    found = list(not_as_recorded(graph.model, spoilt))
    assert [(fault.layer, fault.certain) for fault in found] == [(node.name, True)]
    assert said in found[0].text
