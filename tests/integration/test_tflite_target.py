"""The TFLite target on whole graphs: layouts, inputs and outputs, metadata, precision, what is left over."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import TargetError, UnsupportedOperator
from edgeopt.formats import tflite
from edgeopt.graph.constraints import Constraints
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.runtimes import litert, onnxruntime
from edgeopt.targets.tflite import TfliteTarget
from edgeopt.targets.tflite.realise import realised
from edgeopt.types import Metadata, Preprocess
from tests.integration.minmax_table import minmax_table
from tests.integration.small_nets import Net, attention, classifier, detector, samples
from tests.integration.tflite_segments import run_both, steps_off
from tests.unit.canonical_form import canonical

NETS = {"classifier": classifier, "detector": detector, "attention": attention}
every_net = pytest.mark.parametrize("build", NETS.values(), ids=NETS)


def quantized(model: ir.Model, scheme="int8", **options) -> QuantizedGraph:
    return minmax_table(model, samples(model, 8), scheme=scheme, constraints=TfliteTarget.constraints, **options)


def lowered(graph: QuantizedGraph, out: Path, **options):
    artifact = TfliteTarget(**options).lower(graph, out)
    return artifact, out / artifact.path


# --- whole nets


@every_net
def test_integers_follow_the_reference_segment_by_segment(build, tmp_path):
    graph = quantized(build())
    artifact, path = lowered(graph, tmp_path)
    off = steps_off(graph, path, samples(graph.model, 4))
    assert set(graph.quantization.activations) - set(off) <= aliases(graph) | inputs_and_constants(graph)
    assert (np.concatenate(list(off.values())) <= 1).mean() >= 0.999
    assert artifact.realised.partitions == 1
    assert artifact.realised.leftovers == ()
    assert artifact.realised.unasked_float == ()


def aliases(graph: QuantizedGraph) -> set[str]:
    """Outputs of transpositions: axes are relabelled, the tensor is the one before."""
    return {node.outputs[0].name for node in graph.model.graph if node.op_type in ("Transpose", "Reshape")}


def inputs_and_constants(graph: QuantizedGraph) -> set[str]:
    return {value.name for value in graph.model.graph.inputs} | set(graph.model.graph.initializers)


@every_net
@pytest.mark.parametrize(
    ("scheme", "tolerance"),
    [("fp32", 1e-5), ("fp16", 1e-2), ("int8", 0.2), ("int8-weights", 0.05), ("int8-dynamic", 0.1)],
)
@pytest.mark.parametrize("delegate", [True, False], ids=["xnnpack", "builtin"])
def test_every_scheme_runs_with_and_without_the_delegate(build, scheme, tolerance, delegate, tmp_path):
    graph = quantized(build(), scheme)
    _, path = lowered(graph, tmp_path)
    for exact, found in run_both(graph, path, samples(graph.model, 1)[0], delegate=delegate):
        assert np.linalg.norm(found - exact) < tolerance * np.linalg.norm(exact)


@every_net
def test_float_files_hold_no_integers_and_half_files_half_weights(build, tmp_path):
    graph = quantized(build(), "fp16")
    artifact, path = lowered(graph, tmp_path)
    assert artifact.realised.int8_ops == {}
    kinds = tflite.operator_counts(tflite.read(path))
    assert sum(kinds["fp16"].values()) == sum(
        node.op_type in ("Conv", "ConvTranspose", "Gemm") for node in graph.model.graph
    )
    assert not set(kinds["fp32"]) & tflite.WEIGHTED


def test_rules_mix_schemes(tmp_path):
    graph = quantized(classifier(), rules=(("stem", "fp32"), ("wide", "int8-weights"), ("logits", "fp16")))
    artifact, path = lowered(graph, tmp_path)
    kinds = {kind: sum(counts[op] for op in tflite.WEIGHTED) for kind, counts in
             tflite.operator_counts(tflite.read(path)).items()}  # fmt: skip
    assert (kinds["fp32"], kinds["int8-weights"], kinds["fp16"], kinds["int8"]) == (1, 1, 1, 4)
    assert artifact.realised.unasked_float == ()
    off = steps_off(graph, path, samples(graph.model, 2))
    assert (np.concatenate(list(off.values())) <= 1).mean() >= 0.999


def test_a_wish_that_the_file_does_not_hold_is_named(tmp_path):
    graph = quantized(classifier())
    _, path = lowered(QuantizedGraph(graph.model), tmp_path)
    assert len(realised(path, graph).unasked_float) == 7


# --- inputs and outputs


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_integer_inputs_and_outputs_lie_on_the_tables_grid(io, tmp_path):
    graph = quantized(detector())
    float_artifact, float_path = lowered(graph, tmp_path)
    feed = samples(graph.model, 1)[0]
    with litert.Session(float_path) as session:
        exact = session.run({"x": feed["x"].transpose(0, 2, 3, 1)})
    artifact, path = lowered(graph, tmp_path, io=io)
    assert {spec.dtype for spec in (*artifact.signature.inputs, *artifact.signature.outputs)} == {io}
    assert artifact.layouts == float_artifact.layouts
    with litert.Session(path) as session:
        info = session.inputs["x"]
        limits = np.iinfo(io)
        steps = np.rint(feed["x"].transpose(0, 2, 3, 1) / info.scale) + info.zero_point
        found = session.run({"x": np.clip(steps, limits.min, limits.max).astype(io)})
        for name, output in session.outputs.items():
            values = (found[name].astype(np.float32) - output.zero_point) * output.scale
            assert np.abs(values - exact[name]).max() <= 1.01 * output.scale


def test_integer_inputs_need_a_table(tmp_path):
    with pytest.raises(TargetError, match="no scale in the table"):
        lowered(QuantizedGraph(classifier()), tmp_path, io="int8")


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_images_are_channels_last_unless_told_otherwise(scheme, tmp_path):
    graph = quantized(detector(), scheme)
    artifact, path = lowered(graph, tmp_path)
    assert artifact.layouts == dict.fromkeys(("x", "boxes", "scores"), (0, 2, 3, 1))
    assert [spec.shape for spec in artifact.signature.outputs] == [(1, 8, 8, 4), (1, 8, 8, 5)]
    assert "TRANSPOSE" not in artifact.realised.other_ops
    feed = samples(graph.model, 1)[0]
    with litert.Session(path) as session:
        last = session.run({"x": feed["x"].transpose(0, 2, 3, 1)})

    artifact, path = lowered(graph, tmp_path, layout="nchw")
    assert artifact.layouts == {}
    assert artifact.realised.other_ops["TRANSPOSE"] == 3
    assert artifact.realised.leftovers == ()
    with litert.Session(path) as session:
        first = session.run(feed)
    for name, array in first.items():
        assert np.array_equal(array, last[name].transpose(0, 3, 1, 2))


def test_names_stay(tmp_path):
    artifact, path = lowered(quantized(detector()), tmp_path)
    model = tflite.read(path)
    assert [model.tensors[index].name for index in (*model.inputs, *model.outputs)] == ["x", "boxes", "scores"]
    assert list(model.signature_inputs) == [spec.name for spec in artifact.signature.inputs] == ["x"]
    assert list(model.signature_outputs) == ["boxes", "scores"]


def test_an_output_that_is_read_on_or_is_an_input_gets_a_tensor_of_its_own(tmp_path):
    net = Net()
    a = net.conv("a", "x", 3, 3)
    net.add("Relu", "middle", [a])
    net.add("Identity", "same", ["x"])
    net.conv("last", "middle", 3, 2)
    shape = [1, 3, 6, 6]
    model = net.model({"x": shape}, {"middle": shape, "same": shape, "last": [1, 2, 6, 6]})
    for graph in (QuantizedGraph(model), quantized(model)):
        _, path = lowered(graph, tmp_path)
        for exact, found in run_both(graph, path, samples(model, 1)[0], delegate=True):
            assert np.abs(found - exact).max() < 0.1


# --- layouts


def transposes(path: Path) -> int:
    return sum(operator.code == "TRANSPOSE" for operator in tflite.read(path).operators)


def test_flattening_an_image_permutes_weights_and_not_values(tmp_path):
    net = Net()
    flat = net.add("Flatten", "flat", [net.add("Relu", "relu", [net.conv("conv", "x", 3, 4)])])
    hidden = net.add("Tanh", "tanh", [flat])
    net.add("Gemm", "y", [hidden, net.weight("w", 5, 144), net.weight("b", 5)], transB=1)
    model = net.model({"x": [1, 3, 6, 6]}, {"y": [1, 5]})
    for graph in (QuantizedGraph(model), quantized(model)):
        _, path = lowered(graph, tmp_path)
        assert transposes(path) == 0
        for exact, found in run_both(graph, path, samples(model, 1)[0], delegate=True):
            assert np.linalg.norm(found - exact) < (1e-5 if graph.quantization is None else 0.1) * np.linalg.norm(exact)
    off = steps_off(graph, path, samples(model, 2))
    assert {"flat_out", "tanh_out"} <= set(off)
    assert max(steps.max() for steps in off.values()) <= 1


def test_flattened_heads_stay_channels_last_up_to_the_output(tmp_path):
    net = Net()
    parts = []
    for index, size in enumerate((8, 4)):
        head = net.conv(f"head{index}", f"x{index}", 3, 7)
        flat = net.add("Reshape", f"flat{index}", [head, net.constant(f"s{index}", np.asarray([1, 7, size * size]))])
        parts.append(flat)
    joined = net.add("Concat", "join", parts, axis=2)
    begin, middle, end, axis = (net.constant(n, np.asarray([v])) for n, v in (("b", 0), ("m", 4), ("e", 7), ("a", 1)))
    box = net.add("Sigmoid", "box", [net.add("Slice", "first", [joined, begin, middle, axis])])
    classes = net.add("Sigmoid", "classes", [net.add("Slice", "rest", [joined, middle, end, axis])])
    net.add("Concat", "y", [box, classes], axis=1)
    model = net.model({"x0": [1, 3, 8, 8], "x1": [1, 3, 4, 4]}, {"y": [1, 7, 80]})
    artifact, path = lowered(quantized(model), tmp_path)
    assert transposes(path) == 1
    assert artifact.realised.leftovers == ()
    assert [spec.shape for spec in artifact.signature.outputs] == [(1, 7, 80)]
    off = steps_off(quantized(model), path, samples(model, 2))
    assert max(steps.max() for steps in off.values()) <= 1


def test_transpositions_of_an_exporter_vanish(tmp_path):
    """A model of a channels-last framework: NHWC in, a Transpose before and behind the convolution, NHWC out."""
    net = Net()
    image = net.add("Transpose", "in", ["x"], perm=[0, 3, 1, 2])
    net.add("Transpose", "y", [net.conv("conv", image, 3, 4)], perm=[0, 2, 3, 1])
    model = net.model({"x": [1, 6, 6, 3]}, {"y": [1, 6, 6, 4]})
    artifact, path = lowered(quantized(model), tmp_path)
    assert transposes(path) == 0
    assert artifact.layouts == {}
    for exact, found in run_both(QuantizedGraph(model), path, samples(model, 1)[0], delegate=True):
        assert np.linalg.norm(found - exact) < 0.1 * np.linalg.norm(exact)


def test_a_transformer_keeps_the_transpositions_it_asked_for(tmp_path):
    graph = quantized(attention())
    _, path = lowered(graph, tmp_path)
    asked = sum(node.op_type == "Transpose" for node in graph.model.graph)
    assert transposes(path) <= asked


# --- what the table means


def test_float_consumers_of_a_float_tensor_read_it_unrounded(tmp_path):
    """A tensor that a float node writes is integers for int8 consumers only."""
    net = Net()
    line = net.add("Softmax", "soft", ["x"], axis=-1)
    net.add("Gemm", "integers", [line, net.weight("w", 5, 8), net.weight("b", 5)], transB=1)
    net.add("Exp", "floats", [line])
    model = net.model({"x": [3, 8]}, {"integers": [3, 5], "floats": [3, 8]})
    graph = quantized(model)
    _, path = lowered(graph, tmp_path)
    _, (exact, found) = run_both(graph, path, samples(model, 1)[0], delegate=True)
    assert np.abs(found - exact).max() < 1e-6


def test_end_to_end_it_is_as_close_to_float_as_the_reference(tmp_path):
    graph = quantized(classifier())
    _, path = lowered(graph, tmp_path)
    reference = to_qdq(graph)
    error = {"file": 0.0, "reference": 0.0}
    with (
        litert.Session(path) as written,
        onnxruntime.Session(ir.to_proto(reference).SerializeToString(), optimize=False) as wanted,
        onnxruntime.Session(ir.to_proto(graph.model).SerializeToString()) as exact,
    ):
        for feed in samples(graph.model, 16, seed=9):
            truth = exact.run(feed)["logits"]
            error["reference"] += float(np.square(wanted.run(feed)["logits"] - truth).sum())
            found = written.run({"x": feed["x"].transpose(0, 2, 3, 1)})["logits"]
            error["file"] += float(np.square(found - truth).sum())
    assert 10 * np.log10(error["file"] / error["reference"]) < 1.0


def test_concat_of_unequal_grids_is_requantized(tmp_path):
    """Tables of other tools need not have equal scales where the delegate wants them."""
    net = Net()
    a = net.add("Relu", "a", [net.conv("left", "x", 3, 4)])
    cat = net.add("Concat", "cat", [a, net.conv("right", "x", 3, 4)], axis=1)
    net.conv("y", cat, 8, 2)
    model = net.model({"x": [1, 3, 6, 6]}, {"y": [1, 2, 6, 6]})
    graph = quantized(model)
    grids = dict(graph.quantization.activations)
    low = grids["a_out"]
    grids["a_out"] = type(low)(low.scale / 2, np.asarray(-128))
    graph = QuantizedGraph(model, Quantization(grids, graph.quantization.weights, graph.quantization.biases,
                                               graph.quantization.ranges, graph.quantization.schemes))  # fmt: skip
    artifact, path = lowered(graph, tmp_path)
    assert artifact.realised.partitions == 1
    assert artifact.realised.other_ops["QUANTIZE"] == 2
    off = steps_off(graph, path, samples(model, 2))
    assert max(steps.max() for steps in off.values()) <= 1


# --- what travels with the file, and what is refused


def test_contract_and_labels_travel_with_the_file(tmp_path):
    contract = Preprocess(resize=20, crop=16, mean=(0.5,), std=(0.25,))
    artifact = TfliteTarget().lower(
        quantized(classifier()), tmp_path, Metadata(preprocess=contract, labels=("null", "één"))
    )
    metadata = tflite.read(tmp_path / artifact.path).metadata
    stored = Preprocess.model_validate_json(metadata["edgeopt.preprocess"])
    assert stored == contract.model_copy(update={"layout": "nhwc"}) == artifact.preprocess
    assert json.loads(metadata["edgeopt.labels"]) == ["null", "één"]
    with zipfile.ZipFile(tmp_path / artifact.path) as behind:
        assert behind.read("labels.txt").decode().splitlines() == ["null", "één"]


def test_an_unknown_operator_is_refused_with_its_node_before_anything_is_written(tmp_path):
    net = Net()
    net.add("Atan", "angle", [net.conv("conv", "x", 3, 3)])
    net.add("Det", "determinant", ["angle_out"])
    model = net.model({"x": [1, 3, 6, 6]}, {"determinant": [1, 3]})
    with pytest.raises(UnsupportedOperator, match=r"node 'angle' \(Atan\)") as caught:
        lowered(QuantizedGraph(model), tmp_path)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_float16_are_refused_by_name(tmp_path):
    model = classifier()
    weight = model.graph.initializers["stem.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1e6), name="stem.weight")
    with pytest.raises(TargetError, match=r"stem\.weight.*65504"):
        lowered(quantized(model, "fp16"), tmp_path)


def test_constraints_are_what_the_delegate_demands():
    assert TfliteTarget.constraints.symmetric_inputs == {"MatMul": frozenset({1})}
    assert "Concat" in TfliteTarget.constraints.equal_scales
    assert TfliteTarget.constraints != Constraints()


# --- real models


@pytest.mark.parametrize(
    "file",
    [
        "imagenet/mobilenet_v1_075.onnx", "cifar10/resnet20.onnx", "visual_wake_words/mobilenet_v1_025.onnx",
        "coco128/fastestdet.onnx", "faces/ultraface_rfb_320.onnx",
    ],
)  # fmt: skip
def test_models_of_many_origins(bench_data, file, tmp_path):
    model = canonical(bench_data / file)
    feeds = [{name: array / 4 for name, array in feed.items()} for feed in samples(model, 2)]
    graph = minmax_table(model, feeds, constraints=TfliteTarget.constraints)
    artifact, path = lowered(QuantizedGraph(model), tmp_path)
    for exact, found in run_both(graph, path, feeds[0], delegate=True):
        assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)
    assert artifact.realised.leftovers == ()
    artifact, path = lowered(graph, tmp_path)
    assert artifact.realised.partitions == 1
    assert artifact.realised.leftovers == ()
    assert artifact.realised.unasked_float == ()
    off = steps_off(graph, path, feeds[:1])
    assert (np.concatenate(list(off.values())) <= 1).mean() >= 0.999


def test_a_tensor_that_is_always_zero_keeps_the_file_running(tmp_path):
    """Its scale is the smallest there is: nothing may overflow, vanish or be refused behind it."""
    net = Net()
    zeros = [
        net.constant("dead.weight", np.zeros((4, 3, 3, 3), np.float32)),
        net.constant("dead.bias", np.zeros(4, np.float32)),
    ]
    dead = net.add("Relu", "dead_relu", [net.add("Conv", "dead", ["x", *zeros], kernel_shape=[3, 3], pads=[1] * 4)])
    behind = net.add("Add", "sum", [net.conv("behind", dead, 4, 4), net.conv("alive", "x", 3, 4)])
    net.conv("y", net.add("Concat", "cat", [behind, dead], axis=1), 8, 2)
    model = net.model({"x": [1, 3, 6, 6]}, {"y": [1, 2, 6, 6]})
    graph = quantized(model)
    artifact, path = lowered(graph, tmp_path)
    assert artifact.realised.unasked_float == ()
    off = steps_off(graph, path, samples(model, 2))
    assert max(steps.max() for steps in off.values()) <= 1
    for exact, found in run_both(graph, path, samples(model, 1)[0], delegate=True):
        assert np.linalg.norm(found - exact) < 0.1 * np.linalg.norm(exact)
