"""Every blind kind of fault changes what a network answers, or what it is asked, where it says so."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.faults import blind_kinds, cases, split
from edgeopt.graph.model import serialise
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.runtimes.onnxruntime import Session
from tests.integration.minmax_table import minmax_table
from tests.integration.small_nets import Net

IMAGES = np.random.default_rng(0).random((24, 3, 12, 12), np.float32) * np.float32(30)


def net() -> ir.Model:
    """Two residual sums, both activations, a stride that can move, a mean and a head."""
    net = Net()
    y = net.relu6("relu6", net.conv("stem", "x", 3, 8))
    y = net.add("Relu", "down_relu", [net.conv("down", y, 8, 8, stride=2)])
    for name in ("first", "second"):
        inner = net.add("Relu", f"{name}_inner", [net.conv(f"{name}_a", y, 8, 8)])
        y = net.add("Relu", f"{name}_relu", [net.add("Add", f"{name}_sum", [net.conv(f"{name}_b", inner, 8, 8), y])])
    y = net.add("Reshape", "flat", [net.add("GlobalAveragePool", "mean", [y]), net.constant("sizes", np.array([1, 8]))])
    y = net.add("Gemm", "head", [y, net.weight("head.weight", 5, 8), net.weight("head.bias", 5)], transB=1)
    return net.model({"x": [1, 3, 12, 12]}, {"head": [1, 5]})


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": image[None]} for image in IMAGES]


def answers(model: ir.Model) -> np.ndarray:
    with Session(serialise(model), optimize=False) as session:
        return np.concatenate([session.run(feed)["head"] for feed in feeds()])


@pytest.fixture(scope="module")
def right() -> np.ndarray:
    return answers(net())


@pytest.mark.parametrize("kind", blind_kinds.IMPORT)
def test_an_import_kind_changes_the_network_and_names_a_node(kind: str, right: np.ndarray) -> None:
    model, layer = blind_kinds.IMPORT[kind](net(), np.random.default_rng(1))
    made = answers(model)
    assert made.shape == right.shape and np.isfinite(made).all() and not np.allclose(made, right, atol=1e-4)
    assert layer in {node.name for node in model.graph}


@pytest.mark.parametrize("kind", [*blind_kinds.TABLE, *blind_kinds.FILE])
def test_a_table_or_file_kind_changes_the_integers_and_leaves_them_a_network(kind: str) -> None:
    graph = minmax_table(net(), feeds())
    before = answers(to_qdq(graph))
    made, layer = {**blind_kinds.TABLE, **blind_kinds.FILE}[kind](graph, np.random.default_rng(1))
    assert isinstance(made, QuantizedGraph) and layer in {node.name for node in made.model.graph}
    after = answers(to_qdq(made))
    assert after.shape == before.shape and np.isfinite(after).all() and not np.array_equal(after, before)


def test_padding_with_the_integer_zero_is_a_frame_of_that_value() -> None:
    graph = minmax_table(net(), feeds())
    made, layer = blind_kinds.FILE["file_padded_with_integer_zero"](graph, np.random.default_rng(1))
    node = next(node for node in made.model.graph if node.name == layer)
    grid = made.quantization.activations[node.inputs[0].name]
    model = to_qdq(made, expose_integers=True)
    with Session(serialise(model), optimize=False) as session:
        integers = session.run(feeds()[0])[f"{node.inputs[0].name}__q"]
    frame = np.ones(integers.shape[2:], bool)
    frame[1:-1, 1:-1] = False
    assert int(grid.zero_point) != 0 and not integers[..., frame].any()


def test_kinds_of_data_change_what_they_say() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(len(IMAGES)) % 3
    for kind, change in blind_kinds.EVALUATION.items():
        made = change(IMAGES, labels, random)
        changed = not np.array_equal(made[0], IMAGES), not np.array_equal(made[1], labels)
        assert made[0].shape == IMAGES.shape and made[0].dtype == IMAGES.dtype, kind
        assert changed == ((False, True) if cases.always_counts(kind) else (True, False)), kind
    for kind, change in blind_kinds.CALIBRATION.items():
        made = change(IMAGES, random)
        assert made.shape[1:] == IMAGES.shape[1:] and made.dtype == IMAGES.dtype, kind
        assert len(made) < len(IMAGES) or not np.array_equal(made, IMAGES), kind


def test_blind_kinds_are_a_set_of_their_own() -> None:
    blind = {
        *blind_kinds.TABLE, *blind_kinds.FILE, *blind_kinds.IMPORT, *blind_kinds.CALIBRATION, *blind_kinds.EVALUATION,
    }  # fmt: skip
    assert set(cases.ALL_KINDS) > blind == split.HELD_OUT_KINDS
    assert len(cases.ALL_KINDS) == len(set(cases.ALL_KINDS))
