"""The Core ML target on whole graphs: schemes, deployment targets, inputs and outputs, metadata, what was written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pydantic
import pytest

from edgeopt.errors import TargetError, UnsupportedOperator, UsageError
from edgeopt.graph.compression import Palette
from edgeopt.graph.constraints import unite
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.levels import check_artifact, check_quantization
from edgeopt.parity.segments import Segments
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.pipeline.integers import carried, same_integers, same_weights
from edgeopt.runtimes import mil_reference, onnxruntime
from edgeopt.runtimes.mil_reference import package as mil
from edgeopt.runtimes.mil_reference.program import operations
from edgeopt.targets.coreml import CoremlTarget
from edgeopt.targets.coreml.realise import realised
from edgeopt.targets.onnx import Onnx
from edgeopt.targets.registry import TARGETS, all_constraints
from edgeopt.types import Metadata, Preprocess
from tests.integration.minmax_table import minmax_table
from tests.integration.small_nets import Net, attention, classifier, detector, samples

NETS = {"classifier": classifier, "detector": detector, "attention": attention}
every_net = pytest.mark.parametrize("build", NETS.values(), ids=NETS)


def quantized(model: ir.Model, scheme="int8", **options) -> QuantizedGraph:
    return minmax_table(model, samples(model, 8), scheme=scheme, constraints=all_constraints(), **options)


def compressed(model: ir.Model, scheme: str, tmp_path: Path) -> QuantizedGraph:
    return Quantize(scheme=scheme).run(QuantizedGraph(model), Context(scratch=tmp_path))


def lowered(graph: QuantizedGraph, out: Path, **options):
    out.mkdir(exist_ok=True)
    given = {name: options.pop(name) for name in ("preprocess", "labels") if name in options}
    artifact = CoremlTarget(**options).lower(graph, out, Metadata(**given))
    return artifact, out / artifact.path


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


# --- whole nets


@every_net
def test_integers_equal_the_reference_segment_by_segment(build, tmp_path):
    graph = quantized(build())
    artifact, path = lowered(graph, tmp_path, precision="fp32")
    assert artifact.realised.unasked_float == ()
    assert artifact.realised.leftovers == ()
    with Segments(graph, artifact, path) as segments:
        for feed in samples(graph.model, 4):
            segments.add(feed)
        found = [segment.parity for segment in segments.results() if segment.parity.within_one_step is not None]
    assert len(found) >= 3
    assert max(parity.lsb_max for parity in found) <= 1
    assert not segments.unmatched or set(segments.unmatched) <= set(graph.model.graph.initializers)


@every_net
def test_only_the_float32_form_claims_the_same_integers(build, tmp_path):
    graph = quantized(build())
    (tmp_path / "onnx").mkdir()
    onnx = tmp_path / "onnx" / Onnx().lower(graph, tmp_path / "onnx").path
    paths = {precision: lowered(graph, tmp_path / precision, precision=precision)[1] for precision in ("fp32", "fp16")}
    files = {name: carried(path) for name, path in {"onnx": onnx, **paths}.items()}
    same = same_integers(files)
    assert same["onnx"] == ("fp32",)
    assert same["fp16"] == ()
    assert files["fp16"].rounded and not files["fp32"].rounded
    assert same_weights(files)["fp16"] == ("onnx", "fp32")


@every_net
def test_half_precision_passes_parity_and_says_what_it_is(build, tmp_path):
    graph = quantized(build())
    artifact, path = lowered(graph, tmp_path)
    assert artifact.float_dtype == "float16"
    feeds = samples(graph.model, 8)
    report = check_artifact(graph, artifact, path, feeds, reference=check_quantization(graph, feeds))
    assert report.failures == ()
    assert report.fp16_costs_db is not None
    assert abs(report.fp16_costs_db) < 3  # int8's own noise is far above
    assert "emulated: MIL reference semantics" in report.label


@pytest.mark.parametrize("scheme", ["fp16", "fp16 of the format", "int8-weights", "int4-weights", "palette6-weights"])
def test_half_precision_is_right_to_the_order_of_sums_once_its_rounding_is_out(scheme, tmp_path):
    """fp16's rounding hides an error of a thousandth; the reference with the same stored numbers shows it."""

    def graph_of(model: ir.Model) -> QuantizedGraph:
        if scheme == "fp16 of the format":
            return QuantizedGraph(model)
        return quantized(model, scheme) if scheme in ("fp16", "int8-weights") else compressed(model, scheme, tmp_path)

    right, wrong = detector(), detector()
    bias = next(v for name, v in wrong.graph.initializers.items() if name.endswith("bias"))
    bias.const_value = ir.tensor(bias.const_value.numpy() * np.float32(1.01), name=bias.name)
    graph, feeds = graph_of(right), samples(right, 4)
    options = {"minimum": "iOS18"} if scheme == "int4-weights" else {}
    reference = check_quantization(graph, feeds)
    artifact, path = lowered(graph, tmp_path / "right", **options)
    assert check_artifact(graph, artifact, path, feeds, reference=reference).failures == ()
    artifact, path = lowered(graph_of(wrong), tmp_path / "wrong", **options)
    (failure, *_) = check_artifact(graph, artifact, path, feeds, reference=reference).failures
    assert "without fp16's rounding" in failure


@pytest.mark.parametrize(
    ("scheme", "minimum", "stored"),
    [
        ("int8-weights", "iOS16", "constexpr_affine_dequantize"),
        ("int8-weights", "iOS18", "constexpr_blockwise_shift_scale"),
        ("palette4-weights", "iOS16", "constexpr_lut_to_dense"),
        ("palette6-weights", "iOS18", "constexpr_lut_to_dense"),
        ("palette8-weights", "iOS17", "constexpr_lut_to_dense"),
        ("int4-weights", "iOS18", "constexpr_blockwise_shift_scale"),
    ],
)
def test_compressed_weights_are_stored_and_mean_what_the_table_says(scheme, minimum, stored, tmp_path):
    model = detector()
    graph = quantized(model, scheme) if scheme == "int8-weights" else compressed(model, scheme, tmp_path)
    artifact, path = lowered(graph, tmp_path, minimum=minimum, precision="fp32")
    weights = len(graph.quantization.compressed or graph.quantization.weights)
    assert artifact.realised.other_ops[stored] == weights > 0
    assert artifact.realised.leftovers == ()
    assert mil.read(path).deployment_target == minimum
    feed = samples(model, 1)[0]
    with (
        onnxruntime.Session(ir.to_proto(to_qdq(graph)).SerializeToString(), optimize=False) as reference,
        mil_reference.Session(path) as session,
    ):
        made = session.run(feed)
        for name, exact in reference.run(feed).items():
            assert relative(made[name], exact) < 1e-5


def test_palettes_and_blocks_are_as_good_as_they_can_be(tmp_path):
    random = np.random.default_rng(0)
    from edgeopt.passes.quantize.compress import blocks, palettize

    weight = random.normal(size=(64, 64, 3, 3)).astype(np.float32)
    noise = {bits: np.square(palettize(weight, bits).dequantize() - weight).mean() for bits in (4, 6, 8)}
    # Max (1960), Quantizing for minimum distortion: 16 levels of a normal distribution leave 0.00955 of its variance.
    assert noise[4] == pytest.approx(0.00955, rel=0.03)
    # Each further bit leaves a quarter, all but (Panter and Dite, 1951: 2.72 / levels² for many).
    assert noise[6] == pytest.approx(2.72 / 64**2, rel=0.25)
    assert noise[8] == pytest.approx(2.72 / 256**2, rel=1)
    few = np.asarray([0.5, -1.25, 3.0], np.float32)[random.integers(0, 3, (8, 40))]
    assert (palettize(few, 4).dequantize() == few).all()
    stored = blocks(weight, 0)
    assert stored.scale.shape == (64, 2, 1, 1)
    assert stored.integers.min() >= -8
    assert stored.integers.max() <= 7
    largest = np.abs(weight.reshape(64, 2, 32, 9)).max((2, 3)).reshape(64, 2, 1, 1) / 7
    plain = np.clip(np.rint(weight / largest.repeat(32, 1)), -8, 7) * largest.repeat(32, 1)
    assert np.square(stored.dequantize() - weight).mean() < np.square(plain - weight).mean()


def test_a_table_of_palettes_survives_saving(tmp_path):
    graph = compressed(detector(), "palette6-weights", tmp_path)
    graph.quantization.save(tmp_path / "table.npz")
    found = type(graph.quantization).load(tmp_path / "table.npz")
    assert found.schemes == graph.quantization.schemes
    for name, palette in graph.quantization.compressed.items():
        assert isinstance(found.compressed[name], Palette)
        assert (found.compressed[name].dequantize() == palette.dequantize()).all()


def test_a_wish_that_the_file_does_not_hold_is_named(tmp_path):
    graph = quantized(classifier())
    _, path = lowered(QuantizedGraph(graph.model), tmp_path)
    assert len(realised(path, graph).unasked_float) == 7


def test_adding_core_ml_changes_no_other_targets_table():
    others = (target.constraints for name, target in TARGETS.items() if name != "coreml")
    assert all_constraints() == unite(others)


# --- precision


def test_floats_are_half_unless_asked_otherwise(tmp_path):
    model = detector()
    for name, graph, options, dtype in [
        ("nothing", QuantizedGraph(model), {}, "float16"),
        ("precision", QuantizedGraph(model), {"precision": "fp32"}, "float32"),
        ("scheme", quantized(model, "fp32"), {}, "float32"),
    ]:
        artifact, path = lowered(graph, tmp_path / name, **options)
        made = {o.type.dtype for op in operations(mil.read(path).main.block) if op.type == "conv" for o in op.outputs}
        assert (artifact.float_dtype, made) == (dtype, {dtype})


def test_half_and_single_precision_by_node(tmp_path):
    graph = quantized(classifier(), "fp16", rules=(("stem", "fp32"),))
    _, path = lowered(graph, tmp_path)
    made = [op.outputs[0].type.dtype for op in operations(mil.read(path).main.block) if op.type == "conv"]
    assert sorted(made) == ["float16"] * (len(made) - 1) + ["float32"]


def test_what_half_precision_cannot_hold_is_named(tmp_path):
    model = classifier()
    weight = next(value for name, value in model.graph.initializers.items() if name == "stem.weight")
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1e6), name="stem.weight")
    with pytest.raises(TargetError, match=r"stem.weight.*\n.*precision: fp32"):
        lowered(QuantizedGraph(model), tmp_path)


# --- deployment targets


@pytest.mark.parametrize(
    ("scheme", "minimum", "lowest"),
    [("int8", "iOS16", "iOS17"), ("int8-weights", "macOS12", "iOS16"), ("int4-weights", "iOS17", "iOS18"),
     ("palette4-weights", "iOS15", "iOS16")],
)  # fmt: skip
def test_a_deployment_target_that_lacks_a_scheme_is_refused_with_the_lowest_that_has_it(scheme, minimum, lowest):
    with pytest.raises(UsageError, match=f"{scheme} needs .* the lowest that has it is {lowest}"):
        CoremlTarget(minimum=minimum).check_schemes(frozenset({scheme}))


@pytest.mark.parametrize("minimum", ["iOS14", "macOS11", "tvOS14", "watchOS7"])
def test_targets_before_ml_programs_are_refused(minimum):
    with pytest.raises(pydantic.ValidationError, match="the lowest is iOS15"):
        CoremlTarget(minimum=minimum)


@pytest.mark.parametrize("minimum", ["ios17", "iOS", "iOS17.2", "android14"])
def test_what_is_no_target_is_refused(minimum):
    with pytest.raises(pydantic.ValidationError, match="no deployment target"):
        CoremlTarget(minimum=minimum)


def test_a_target_that_coremltools_does_not_know_is_refused():
    with pytest.raises(UsageError, match="does not know iOS99; its newest is iOS26"):
        CoremlTarget(minimum="iOS99").check_schemes(frozenset())


def test_the_lowest_target_that_holds_it_is_the_default(tmp_path):
    for scheme, lowest in (("fp16", "iOS15"), ("int8-weights", "iOS16"), ("int8", "iOS17")):
        _, path = lowered(quantized(classifier(), scheme), tmp_path / scheme)
        assert mil.read(path).deployment_target == lowest


def test_every_target_that_coremltools_knows_is_written(tmp_path):
    graph = quantized(classifier())
    for minimum in ("iOS17", "macOS15", "iOS26"):
        _, path = lowered(graph, tmp_path / minimum, minimum=minimum)
        assert mil.read(path).deployment_target == minimum.replace("macOS15", "iOS18")


# --- inputs, outputs, metadata


def test_an_image_goes_in_as_the_contract_says(tmp_path):
    contract = Preprocess(resize=16, color="bgr", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    model = detector()
    artifact, path = lowered(QuantizedGraph(model), tmp_path, precision="fp32", preprocess=contract)
    assert artifact.signature.inputs[0].dtype == "uint8"
    (feature,) = mil.read(path).main.features_in
    height, width = artifact.signature.inputs[0].shape[2:]
    assert (feature.kind, feature.color, feature.shape) == ("image", "BGR", (height, width))
    pixels = np.random.default_rng(0).integers(0, 256, artifact.signature.inputs[0].shape).astype(np.float32)
    mean, std = (np.asarray(values, np.float32).reshape(1, 3, 1, 1) for values in (contract.mean, contract.std))
    with (
        onnxruntime.Session(ir.to_proto(model).SerializeToString()) as exact,
        mil_reference.Session(path) as session,
    ):
        wanted = exact.run({"x": (pixels / 255 - mean) / std})
        for name, array in session.run({"x": pixels}).items():
            assert relative(array, wanted[name]) < 1e-5
    tensor, path = lowered(QuantizedGraph(model), tmp_path / "tensor", preprocess=contract, input="tensor")
    assert tensor.signature.inputs[0].dtype == "float32"
    assert mil.read(path).main.features_in[0].kind == "array"


def test_an_image_needs_a_contract_that_fits(tmp_path):
    graph = QuantizedGraph(detector())
    for contract in (None, Preprocess(color="gray")):
        with pytest.raises(UsageError, match="an image input was asked"):
            lowered(graph, tmp_path, preprocess=contract, input="image")


def test_class_names_make_a_classifier(tmp_path):
    model = classifier()
    count = model.graph.outputs[0].shape.numpy()[1]
    labels = tuple(f"class {index}" for index in range(count))
    artifact, path = lowered(QuantizedGraph(model), tmp_path, precision="fp32", labels=labels)
    package = mil.read(path)
    assert [spec.name for spec in artifact.signature.outputs] == ["logits"]
    assert {feature.name: feature.kind for feature in package.main.features_out} == {
        "classLabel": "string", "classLabel_probs": "dictionary", "logits": "array",
    }  # fmt: skip
    assert package.main.predicted_feature == "classLabel"
    assert json.loads(package.metadata.user_defined["edgeopt.labels"]) == list(labels)
    with mil_reference.Session(path) as session:
        made = session.run(samples(model, 1)[0])
    assert made["classLabel_probs"].sum() == pytest.approx(1, abs=1e-5)
    assert made["classLabel_probs"].argmax() == made["logits"].argmax()
    _, path = lowered(QuantizedGraph(model), tmp_path / "plain", labels=labels, classifier=False)
    assert [feature.name for feature in mil.read(path).main.features_out] == ["logits"]


def test_names_that_core_ml_cannot_say_are_given_anew(tmp_path):
    model = classifier()
    model.graph.inputs[0].name, model.graph.outputs[0].name = "input.1", "1/logits:0"
    artifact, path = lowered(QuantizedGraph(model), tmp_path, precision="fp32")
    assert artifact.names == {"input.1": "input_1", "1/logits:0": "_1_logits_0"}
    assert json.loads(mil.read(path).metadata.user_defined["edgeopt.names"]) == artifact.names


def test_the_metadata_says_where_it_comes_from(tmp_path):
    first, second = quantized(classifier()), quantized(classifier(), "int8-weights")
    told = [
        mil.read(lowered(graph, tmp_path / name)[1]).metadata.user_defined
        for name, graph in (("a", first), ("b", first), ("c", second))
    ]
    assert told[0]["edgeopt.provenance"] == told[1]["edgeopt.provenance"] != told[2]["edgeopt.provenance"]
    assert not any("date" in key or "coremltools" in key for key in told[0])


def test_the_batch_may_be_open(tmp_path):
    model = detector()
    artifact, path = lowered(QuantizedGraph(model), tmp_path, precision="fp32", batch=(1, 4))
    assert mil.read(path).main.features_in[0].ranges[0] == (1, 4)
    feeds = [feed["x"] for feed in samples(model, 3)]
    with mil_reference.Session(path) as session:
        together = session.run({"x": np.concatenate(feeds)})
        for index, feed in enumerate(feeds):
            for name, array in session.run({"x": feed}).items():
                np.testing.assert_allclose(together[name][index : index + 1], array, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="may be 1 to 4"):
            session.run({"x": np.concatenate(feeds * 2)})
    assert artifact.signature.inputs[0].shape[0] == 1


def test_the_size_may_be_open(tmp_path):
    model = detector()
    height, width = model.graph.inputs[0].shape.numpy()[2:]
    sizes = ((height, width), (2 * height, width))
    _, path = lowered(QuantizedGraph(model), tmp_path, precision="fp32", sizes=sizes)
    with mil_reference.Session(path) as session:
        small = session.run({"x": samples(model, 1)[0]["x"]})
        large = session.run({"x": np.concatenate([samples(model, 1)[0]["x"]] * 2, 2)})
    for name in small:
        assert large[name].shape[2] == 2 * small[name].shape[2]
    with pytest.raises(UsageError, match="'sizes' must name the source's own"):
        lowered(QuantizedGraph(model), tmp_path / "other", sizes=((8, 4),))


def test_an_open_axis_that_the_graph_does_not_allow_is_named(tmp_path):
    model = Net()
    rows = model.add("Reshape", "rows", ["x", model.constant("shape", np.asarray([1, 8, 4, 16]))])
    graph = QuantizedGraph(model.model({"x": [1, 8, 8, 8]}, {rows.removesuffix("_out"): [1, 8, 4, 16]}))
    with pytest.raises(UnsupportedOperator, match=r"node 'rows'.*with height and width open"):
        lowered(graph, tmp_path, sizes=((8, 8), (16, 8)))


# --- files


def test_a_package_that_is_cut_short_is_refused(tmp_path):
    graph = quantized(classifier())
    _, path = lowered(graph, tmp_path)
    for part in ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"):
        broken = tmp_path / "broken.mlpackage"
        shutil.copytree(path, broken, dirs_exist_ok=True)
        data = (broken / part).read_bytes()
        (broken / part).write_bytes(data[: len(data) // 2])
        with pytest.raises(TargetError, match="cannot be read back"):
            realised(broken, graph)
        shutil.rmtree(broken)


WITHOUT_COREMLTOOLS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "coremltools":
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "coremltools" else real(name, package)
import onnx_ir as ir
from edgeopt.errors import MissingPackage
from edgeopt.targets.coreml import CoremlTarget
try:
    CoremlTarget().check(ir.from_onnx_text('<ir_version: 10, opset_import: ["": 20]> g (float[1] x) => (float[1] y) {y = Relu(x)}'))
except MissingPackage as error:
    print(error.exit_code, error)
"""  # noqa: E501


def test_a_missing_extra_is_one_line_with_the_command():
    done = subprocess.run([sys.executable, "-c", WITHOUT_COREMLTOOLS], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("3 the target coreml needs the package 'coremltools', which is not installed")
    assert "pip install 'edgeopt[coreml]'" in done.stdout


@pytest.mark.parametrize("scheme", ["palette4-weights", "int4-weights"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_what_compression_costs_is_quantizations_and_not_the_lowerings(scheme, precision, tmp_path):
    graph = compressed(classifier(), scheme, tmp_path)
    artifact, path = lowered(graph, tmp_path, precision=precision)
    feeds = samples(graph.model, 8)
    reference = check_quantization(graph, feeds)
    assert reference.sqnr_db < 40
    report = check_artifact(graph, artifact, path, feeds, reference=reference)
    assert report.failures == ()
    assert report.sqnr_db == pytest.approx(reference.sqnr_db, abs=0.5)
    # and a lowering that is wrong is found: one weight's channels in another order
    other = compressed(classifier(), scheme, tmp_path)
    name, stored = next(iter(other.quantization.compressed.items()))
    wrong = dict(other.quantization.compressed) | {name: replace(stored, **_changed(stored))}
    changed = replace(graph, quantization=replace(graph.quantization, compressed=wrong))
    artifact, path = lowered(changed, tmp_path / "wrong", precision=precision)
    assert check_artifact(graph, artifact, path, feeds, reference=reference).failures


def _changed(stored) -> dict[str, np.ndarray]:
    if isinstance(stored, Palette):
        return {"indices": stored.indices[::-1].copy()}
    return {"integers": stored.integers[::-1].copy()}
