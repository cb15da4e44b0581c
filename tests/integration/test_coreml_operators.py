"""Every operator of the Core ML target's table, float and on integers, against ONNX Runtime.

One program holds all cases: coremltools takes most of its time per program. It is evaluated by the MIL reference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt.errors import UnsupportedOperator
from edgeopt.graph.half import halved
from edgeopt.graph.model import serialise
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.segments import Segments
from edgeopt.parity.unrounded import DERIVED
from edgeopt.runtimes import mil_reference, onnxruntime
from edgeopt.targets.coreml import CoremlTarget
from edgeopt.targets.coreml.operators import LOWERINGS
from tests.integration.minmax_table import minmax_table
from tests.integration.small_nets import Net
from tests.integration.test_tflite_operators import CASES as SHARED
from tests.integration.test_tflite_operators import (
    Case,
    built,
    feeds,
    ints,
    logic,
    names,
    pool,
    reshaped,
    resized,
    unary,
)


def indexed(net: Net, x: str) -> str:
    """Indices that are computed, one of them from the end."""
    chosen = net.add("Cast", "chosen", [net.constant("where", np.asarray([1.0, -2.0], np.float32))], to=7)
    moved = net.add("Cast", "moved", [net.add("Floor", "floor", [net.add("ReduceMax", "most", [x], keepdims=0)])], to=7)
    zero = net.add("Mul", "zero", [moved, net.constant("none", np.asarray(0, np.int64))])
    return net.add("Gather", "op", [x, net.add("Add", "index", [chosen, zero])], axis=2)


CASES = [
    *SHARED,
    logic("Xor"),
    *[unary(op, tolerance=1e-5) for op in ("Tan", "Atan", "Sinh", "Cosh")],
    *[
        Case(op, lambda net, x, op=op: net.add(op, "op", [net.add("Tanh", "inside", [x])]))
        for op in ("Asin", "Acos", "Atanh")
    ],
    unary("ThresholdedRelu", alpha=0.4),
    Case("Gather", indexed, "computed"),
    Case(
        "GatherElements",
        lambda net, x: net.add(
            "GatherElements", "op", [x, net.constant("i", np.tile(np.asarray([5, 0, -1], np.int64), (1, 8, 6, 1)))],
            axis=3,
        ),
    ),
    resized("cubic", (9, 12), "half_pixel"),
    resized("linear", (4, 3), "half_pixel"),
    resized("linear", (1, 1), "half_pixel"),
    Case(
        "Resize",
        lambda net, x: net.add(
            "Resize", "op", [x, "", net.constant("scales", np.asarray([1, 1, 1.4, 1.7], np.float32))], mode="linear"
        ),
        "scales that the sizes do not have",
    ),
    Case("Pad", lambda net, x: net.add("Pad", "op", [x, ints(net, "pads", 0, 1, 0, 0, 0, 0, 0, 0)]), "channels"),
]  # fmt: skip
LABELS = [f"{names(case)}-{index}" for index, case in enumerate(CASES)]
TABLE_ONLY = {"QuantizeLinear", "DequantizeLinear"}


def merged(between: bool) -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """All cases in one graph, each with inputs, outputs and names of its own, and samples."""
    graphs = []
    samples: list[dict[str, np.ndarray]] = [{} for _ in range(3)]
    for index, case in enumerate(CASES):
        model = ir.to_proto(built(case, between=between))
        onnx.compose.add_prefix(model, f"c{index}_", inplace=True)
        graphs.append(model.graph)
        for sample, feed in zip(samples, feeds(case), strict=True):
            sample[f"c{index}_x"] = feed["x"]
    whole = onnx.GraphProto(name="cases")
    for graph in graphs:
        for field in ("node", "initializer", "input", "output", "value_info"):
            getattr(whole, field).extend(getattr(graph, field))
    model = onnx.helper.make_model(whole, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    return ir.from_proto(model), samples


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def floats(request, tmp_path_factory) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Case → output of ONNX Runtime, and of the program with no result rounded: alone, and between convolutions.

    In fp16 ONNX Runtime has the numbers that the program stores: nothing else may differ.
    """
    model, samples = merged(between=request.param == "fp16")
    folder = tmp_path_factory.mktemp("floats")
    artifact = CoremlTarget(precision=request.param).lower(QuantizedGraph(model), folder)
    stored = halved(QuantizedGraph(model), {node.name for node in model.graph}) if request.param == "fp16" else None
    with onnxruntime.Session(serialise(stored.model if stored else model), optimize=False) as exact:
        wanted = exact.run(samples[0])
    with mil_reference.Session(folder / artifact.path, rounding=False) as session:
        made = session.run(samples[0])
    found = {}
    for value in model.graph.outputs:
        index = int(value.name.split("_")[0][1:])
        apart = stored is not None and CASES[index].op in DERIVED
        allowed = 5e-4 if apart else CASES[index].tolerance  # half of float16's last bit
        found[LABELS[index]] = wanted[value.name], made[artifact.names.get(value.name, value.name)], allowed
    return found


@pytest.fixture(scope="module")
def integers(tmp_path_factory) -> dict[str, np.ndarray]:
    """Case → steps off of every value of its segments, on the reference's integers, in the float32 form."""
    model, samples = merged(between=True)
    graph = minmax_table(model, samples)
    folder = tmp_path_factory.mktemp("integers")
    artifact = CoremlTarget(precision="fp32").lower(graph, folder)
    assert artifact.realised.unasked_float == ()
    with Segments(graph, artifact, folder / artifact.path) as segments:
        for sample in samples:
            segments.add(sample)
        results = segments.results()
    found: dict[str, list] = {}
    for segment in results:
        found.setdefault(LABELS[int(segment.tensor.split("_")[0][1:])], []).append(segment)
    return found


def test_every_operator_of_the_table_has_a_case():
    assert set(LOWERINGS) - TABLE_ONLY == {case.op for case in CASES}


@pytest.mark.parametrize("label", LABELS)
def test_float_equals_onnxruntime(label, floats):
    exact, found, tolerance = floats[label]
    assert found.shape == exact.shape
    assert np.linalg.norm(found - exact) <= tolerance * np.linalg.norm(exact) + 1e-6


@pytest.mark.parametrize("label", LABELS)
def test_integers_equal_the_reference(label, integers):
    found = [segment.parity for segment in integers[label] if segment.parity.within_one_step is not None]
    assert found
    for parity in found:
        assert parity.lsb_max <= 1
    assert [segment.failure for segment in integers[label] if segment.failure] == []


REFUSED = {
    "a tensor of 6 axes": reshaped("Reshape", 1, 2, 4, 6, 2, 3),
    "a dilated pool": pool("MaxPool", [2, 2], dilations=[2, 2]),
    "no MIL operators": unary("Hardmax"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_core_ml_lacks_is_named_with_its_node(why, tmp_path: Path):
    model = built(REFUSED[why], between=False)
    with pytest.raises(UnsupportedOperator, match=f"node 'op' .*{why}"):
        CoremlTarget().check(model)
