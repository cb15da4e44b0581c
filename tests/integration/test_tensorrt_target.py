"""The TensorRT target: its own grids, where it rounds, what lies in the bundle, what it says of other tools' files."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt.cli import run
from edgeopt.errors import UnsupportedOperator
from edgeopt.formats.onnx import load
from edgeopt.graph.constraints import unite
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.levels import check_artifact, check_quantization
from edgeopt.parity.runners import open_file, runnable
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.registry import TARGETS, all_constraints
from edgeopt.targets.tensorrt.reading import QdqFile, dequantized, producer, rounded_from, scale_of
from edgeopt.targets.tensorrt.table import own_table
from edgeopt.targets.tensorrt.target import TensorrtTarget
from edgeopt.targets.tensorrt.verdict import check_file
from edgeopt.targets.tensorrt.versions import tensorrt
from tests import tiny
from tests.integration import small_nets
from tests.integration.minmax_table import minmax_table

NETS = ("classifier", "detector", "attention")
RELEASES = ("8.5", "8.6", "10.3", "10.15", "11.0")
MODELOPT = Path(__file__).parent / "foreign" / "modelopt_classifier.onnx"


def quantized(name: str) -> tuple[QuantizedGraph, list[dict[str, np.ndarray]]]:
    model = getattr(small_nets, name)()
    feeds = small_nets.samples(model, 8)
    return minmax_table(model, feeds, constraints=all_constraints()), feeds


def written(graph: QuantizedGraph, out: Path, feeds=(), **options):
    out.mkdir()
    target = TensorrtTarget(**options)
    artifact = target.lower(graph, out)
    return target.finish(out, artifact, feeds) if feeds else artifact


# --- the table


@pytest.mark.parametrize("name", NETS)
def test_grids_are_symmetric_and_come_from_the_shared_ranges(name):
    graph, _ = quantized(name)
    shared, own = graph.quantization, own_table(graph).quantization
    assert own.activations.keys() < shared.activations.keys()
    for tensor, params in own.activations.items():
        assert int(params.zero_point) == 0
        bounds = shared.ranges[tensor]
        if shared.activations[tensor].zero_point:
            assert float(params.scale) == pytest.approx(max(-bounds.low, bounds.high) / 127, rel=1e-6)
        else:
            assert params == shared.activations[tensor]  # symmetric already: an input on its levels stays exact
    assert own.weights == shared.weights
    for node in graph.model.graph:
        bias = node.inputs[2].name if node.op_type in ("Conv", "Gemm") else None
        if bias in shared.biases:
            x, w = node.inputs[0].name, shared.weights[node.inputs[1].name].params.scale
            step = np.float64(own.activations[x].scale) * w
            exact = shared.biases[bias] * np.float64(shared.activations[x].scale) * w
            assert np.abs(own.biases[bias] * step - exact).max() <= 0.5 * step.max() * (1 + 1e-6)


def test_the_target_asks_nothing_of_the_shared_table():
    others = unite(kind.constraints for name, kind in TARGETS.items() if name != "tensorrt")
    assert all_constraints() == others
    assert TARGETS["tensorrt"].constraints.symmetric_activations


def test_it_rounds_where_tensorrt_fuses_and_nowhere_else():
    """A residual block, a Concat, fused activations: what the placement recommendations say of each."""
    graph, _ = quantized("classifier")
    file = QdqFile(to_qdq(own_table(graph)))
    (add,) = file.of_type("Add")
    sides = [dequantized(value) is not None for value in add.inputs]
    assert sides == [True, False]  # the skip; the convolution beside it runs into the sum
    assert producer(add.inputs[1]).op_type == "Conv"
    (cat,) = file.of_type("Concat")
    scales = {float(scale_of(dequantized(value))) for value in cat.inputs}
    assert len(scales) == 1
    for node in file.of_type("Conv"):
        assert dequantized(node.inputs[0]) is not None
        (use,) = node.outputs[0].uses()
        assert use.node.op_type in ("Clip", "Relu", "Add", "QuantizeLinear")
    (last,) = file.of_type("Gemm")
    assert last.outputs[0].is_graph_output()  # an output that nobody reads is not rounded


def test_a_gate_is_not_rounded_before_it_is_applied():
    graph, _ = quantized("detector")
    own = own_table(graph).quantization
    assert "stem_out" in graph.quantization.activations
    assert "stem_out" not in own.activations  # x · sigmoid(x) of a convolution
    assert "silu_out" in own.activations


# --- the file


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", NETS)
def test_every_release_takes_the_file(name, release, tmp_path):
    graph, feeds = quantized(name)
    artifact = written(graph, tmp_path / "b", version=release)
    model = onnx.load(tmp_path / "b" / "model.onnx")
    verdict = check_file(tmp_path / "b" / "model.onnx", tensorrt(release))
    assert verdict.accepted
    assert not verdict.broken
    assert not verdict.coverage.missing
    assert not verdict.coverage.unsure or tensorrt(release).release >= (10, 15)
    assert not artifact.realised.leftovers
    assert not artifact.realised.unasked_float
    constants = Counter(onnx.TensorProto.DataType.Name(one.data_type) for one in model.graph.initializer)
    assert constants["INT32"] == 0
    own = own_table(graph)
    with (
        Session(tmp_path / "b" / "model.onnx", optimize=False) as made,
        Session(ir.to_proto(to_qdq(own, fold_weights=True)).SerializeToString(), optimize=False) as reference,
    ):
        for feed in feeds:
            expected, found = reference.run(feed), made.run(feed)
            for output, array in expected.items():  # decomposed normalisation of 8.5 sums in another order
                np.testing.assert_allclose(found[output], array, rtol=2e-2, atol=3e-2 * np.abs(array).max())


def test_weights_of_8_are_float_and_round_to_the_table(tmp_path):
    graph, _ = quantized("classifier")
    written(graph, tmp_path / "b", version="8.5")
    file = QdqFile(load(tmp_path / "b" / "model.onnx"))
    for node in file.of_type("Conv"):
        real = rounded_from(dequantized(node.inputs[1]))
        weight = graph.quantization.weights[f"{node.name}.weight"]
        assert real.const_value.numpy().dtype == np.float32
        assert np.array_equal(weight.params.quantize(real.const_value.numpy()), weight.integers)


@pytest.mark.parametrize("name", NETS)
def test_parity_is_judged_against_its_own_reference_and_says_emulated(name, tmp_path):
    graph, feeds = quantized(name)
    artifact = written(graph, tmp_path / "b", feeds)
    own = own_table(graph)
    reference = check_quantization(own, feeds)
    path = runnable(tmp_path / "b", artifact)
    report = check_artifact(own, artifact, path, feeds, reference=reference)
    assert not report.failures
    assert report.within_one_step == 1
    assert not report.unmatched
    assert "emulated: ONNX Runtime" in report.label
    assert "optimisations off" in report.label


def test_a_wrong_scale_is_found(tmp_path):
    """The check can fail: one activation scale of the written file, doubled."""
    graph, feeds = quantized("classifier")
    artifact = written(graph, tmp_path / "b", feeds)
    path = runnable(tmp_path / "b", artifact)
    model = onnx.load(path)
    (scale,) = (one for one in model.graph.initializer if one.name == "relu_dw_out__scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 2, scale.name))
    onnx.save(model, path)
    report = check_artifact(own_table(graph), artifact, path, feeds)
    assert any("relu_dw_out" in failure for failure in report.failures)


def test_half_companion_computes_in_float16(tmp_path):
    graph, feeds = quantized("classifier")
    written(graph, tmp_path / "b", fp16=True)
    model = load(tmp_path / "b" / "model.fp16.onnx")
    assert {value.dtype for node in model.graph if node.op_type == "Conv" for value in node.outputs} == {
        ir.DataType.FLOAT16
    }
    with (
        Session(tmp_path / "b" / "model.fp16.onnx") as half,
        Session(ir.to_proto(graph.model).SerializeToString()) as exact,
    ):
        expected, found = exact.run(feeds[0])["logits"], half.run(feeds[0])["logits"]
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) <= 5e-3 * np.linalg.norm(expected)


# --- the bundle


def test_the_bundle_holds_what_the_device_needs(tmp_path):
    graph, feeds = quantized("classifier")
    artifact = written(graph, tmp_path / "b", feeds, jetpack="6.2")
    files = {path.name for path in (tmp_path / "b").iterdir()}
    assert files == {"model.onnx", "build.sh", "engine.py", "README.md", "rules.json", "samples.npz", "samples"}
    assert "build.sh" in artifact.not_built
    assert artifact.engine is None
    rules = json.loads((tmp_path / "b" / "rules.json").read_text())["files"]["model.onnx"]
    assert rules["target"] == "TensorRT 10.3 (JetPack 6.2)"
    assert rules["accepted"]
    assert all({"id", "text", "source", "versions", "verdict"} <= rule.keys() for rule in rules["rules"])
    readme = (tmp_path / "b" / "README.md").read_text()
    named = set(re.findall(r"\| `([\w.]+)` \|", readme))
    assert named == files - {"README.md"}
    assert "not built and not measured" in readme


def test_saved_outputs_are_the_files_own(tmp_path):
    graph, feeds = quantized("classifier")
    artifact = written(graph, tmp_path / "b", feeds[:3])
    with np.load(tmp_path / "b" / "samples.npz") as stored:
        assert set(stored.files) == {"input/x", "output/logits"}
        images, logits = stored["input/x"], stored["output/logits"]
    assert len(images) == len(logits) == 3
    with open_file(runnable(tmp_path / "b", artifact), artifact) as runner:
        for image, expected in zip(images, logits, strict=True):
            assert np.array_equal(runner.call({"x": image})["logits"], expected)
    assert (tmp_path / "b" / "samples" / "x.dat").read_bytes() == feeds[0]["x"].tobytes()


def stand_in(folder: Path, banner: str) -> Path:
    """A trtexec that writes down how it was called. It builds nothing: what is tested is what build.sh asks for."""
    path = folder / "trtexec"
    path.write_text(
        f"#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT {banner}]'\necho \"$@\" >> {folder}/calls\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.needs("bash")
@pytest.mark.parametrize(
    ("release", "banner", "flags"),
    [
        ("8.5", "v8502", {"--int8", "--fp16", "--buildOnly"}),
        ("8.6", "v8601", {"--int8", "--fp16", "--skipInference"}),
        ("10.3", "v100300", {"--stronglyTyped", "--skipInference"}),
        ("11.0", "v110000", {"--skipInference"}),
    ],
)
def test_build_script_gives_its_release_the_flags_it_needs(release, banner, flags, tmp_path):
    graph, _ = quantized("classifier")
    written(graph, tmp_path / "b", version=release)
    environment = {**os.environ, "TRTEXEC": str(stand_in(tmp_path, banner))}
    command = ["bash", str(tmp_path / "b" / "build.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    called = (tmp_path / "calls").read_text().splitlines()[-1].split()
    precision = {"--int8", "--fp16", "--stronglyTyped", "--buildOnly", "--skipInference", "--best"}
    assert precision & set(called) == flags
    assert {"--onnx=model.onnx", "--saveEngine=model.plan", "--timingCacheFile=timing.cache"} <= set(called)


@pytest.mark.needs("bash")
def test_build_script_refuses_another_major_version_and_an_unknown_kind(tmp_path):
    graph, _ = quantized("classifier")
    written(graph, tmp_path / "b", version="10.3")
    script = str(tmp_path / "b" / "build.sh")
    old = {**os.environ, "TRTEXEC": str(stand_in(tmp_path, "v8502"))}
    done = subprocess.run(["bash", script], env=old, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "8.x" in done.stderr
    right = {**os.environ, "TRTEXEC": str(stand_in(tmp_path, "v100300"))}
    done = subprocess.run(["bash", script, "fp61"], env=right, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    none = {**os.environ, "TRTEXEC": str(tmp_path / "nowhere")}
    done = subprocess.run(["bash", script], env=none, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no trtexec" in done.stderr


def test_the_dla_gets_a_float_model_with_its_scales(tmp_path):
    graph, feeds = quantized("classifier")
    written(graph, tmp_path / "b", feeds, jetpack="6.2", dla=True)
    model = load(tmp_path / "b" / "model.dla.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph}
    header, *lines = (tmp_path / "b" / "calibration.cache").read_text().splitlines()
    assert header.startswith("TRT-")
    own = own_table(graph).quantization
    values = {value.name for node in model.graph for value in node.outputs} | {"x"}
    assert len(lines) == len(own.activations)
    for line in lines:
        name, _, number = line.rpartition(": ")
        scale = np.frombuffer(bytes.fromhex(number), ">f4")[0]
        assert scale == own.activations[name].scale
        assert name in values
    weights = {node.name: node.inputs[1].const_value.numpy() for node in model.graph if node.op_type == "Conv"}
    assert np.array_equal(weights["stem"], graph.quantization.weights["stem.weight"].dequantize())
    rules = json.loads((tmp_path / "b" / "rules.json").read_text())["files"]["model.dla.onnx"]
    assert rules["accepted"]
    assert "--useDLACore=0" in (tmp_path / "b" / "build.sh").read_text()
    assert "--calib=calibration.cache" in (tmp_path / "b" / "build.sh").read_text()


def test_an_operator_that_a_release_does_not_read_is_named(tmp_path):
    net = small_nets.Net()
    net.add("Hardmax", "y", [net.conv("stem", "x", 3, 4)], axis=1)
    model = net.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})
    graph = minmax_table(model, small_nets.samples(model, 2))
    old = TensorrtTarget(version="8.5")
    written(graph, tmp_path / "new", version="10.3")
    for refused in (lambda: written(graph, tmp_path / "old", version="8.5"), lambda: old.check(model)):
        with pytest.raises(UnsupportedOperator, match=r"node y: TensorRT 8\.5 does not read Hardmax"):
            refused()


# --- files of other tools


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "classifier.onnx"
    ir.save(small_nets.classifier(), path)
    return path


def test_default_output_of_quantize_static_is_refused_with_the_reasons(classifier, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter(small_nets.samples(small_nets.classifier(), 4))

        def get_next(self):
            return next(self.feeds, None)

    out = tmp_path / "ort.onnx"
    quantize_static(str(classifier), str(out), Reader())
    verdict = check_file(out, tensorrt("10.3"))
    assert not verdict.accepted
    assert {"zero-point-zero", "no-int32-bias", "add-skip-only"} <= set(verdict.broken)
    nodes = {one.id: one.nodes for one in verdict.rules}
    assert any("stem.bias" in node for node in nodes["no-int32-bias"])
    assert any("skip" in node for node in nodes["add-skip-only"])


def test_default_output_of_nncf_is_refused_with_the_reasons(classifier, tmp_path):
    nncf = pytest.importorskip("nncf")
    data = nncf.Dataset(small_nets.samples(small_nets.classifier(), 4))
    out = tmp_path / "nncf.onnx"
    onnx.save(nncf.quantize(onnx.load(classifier), data), out)
    verdict = check_file(out, tensorrt("10.3"))
    assert not verdict.accepted
    nodes = {one.id: one.nodes for one in verdict.rules if one.verdict == "broken"}
    assert "int8-integers" in nodes or "activation-per-tensor" in nodes
    assert all(one.repair for one in verdict.rules if one.verdict == "broken")


@pytest.mark.parametrize("release", ["10.3", "10.15", "11.0"])
def test_output_of_modelopt_is_accepted(release):
    verdict = check_file(MODELOPT, tensorrt(release))
    assert verdict.accepted
    assert not verdict.broken
    (left,) = (one.nodes for one in verdict.rules if one.id == "weighted-in-float")
    assert left == ("logits (Gemm)",)


# --- from the command line


def test_inspect_for_a_release(tmp_path, capsys):
    graph, _ = quantized("classifier")
    written(graph, tmp_path / "b")
    file = str(tmp_path / "b" / "model.onnx")
    assert run(["inspect", file, "--for", "tensorrt@10.3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rules"]["accepted"]
    assert run(["inspect", str(tmp_path / "b"), "--for", "jetpack-5.1"]) == 1  # opset 20, int8 constants
    shown = capsys.readouterr().out
    assert "does not accept" in shown
    assert "float-weights" in shown
    assert "repair:" in shown
    assert run(["inspect", file, "--for", "tensorrt@10.33"]) == 2
    assert "Did you mean '10.3'?" in capsys.readouterr().err
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert run(["inspect", str(tmp_path / "broken.onnx"), "--for", "tensorrt@10.3"]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('{version: "10.33"}', "Did you mean '10.3'?"),
        ("{version: 10.3}", "in quotes"),
        ('{jetpack: "6.9"}', "Did you mean '6.2'?"),
        ('{version: "10.3", jetpack: "6.2"}', "not both"),
        ('{jetpack: "7.0", dla: true}', "has no DLA"),
        ('{verison: "10.3"}', "Did you mean 'version'?"),
    ],
)
def test_a_recipe_with_a_wrong_version_says_where_and_what(options, said, tmp_path, capsys):
    tiny.save_model(tmp_path / "model.onnx")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"edgeopt: 1\nmodel: {{onnx: model.onnx}}\ntargets:\n  tensorrt: {options}\n")
    assert run(["convert", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "recipe.yaml:4" in error


def test_convert_says_not_built_and_ends_well(tmp_path, capsys):
    tiny.save_model(tmp_path / "model.onnx")
    samples = tiny.save_samples(tmp_path / "samples.npz")
    out = tmp_path / "out"
    command = ["convert", str(tmp_path / "model.onnx"), "--target", "tensorrt,tflite", "--calibration", str(samples)]
    assert run([*command, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    target = report["targets"]["tensorrt"]
    assert target["status"] == "not_built"
    assert target["why"]
    assert target["path"] == "tensorrt"
    assert target["latency_ms"] is None
    assert target["engine"] is None
    assert target["size_bytes"] == (out / "tensorrt" / "model.onnx").stat().st_size
    assert "emulated: ONNX Runtime" in target["parity"]["L2"]["label"]
    assert target["parity"]["L2"]["within_one_step"] == 1
    assert target["identical_integers_with"] == []
    assert "zero point 0" in target["own_grids"]
    assert not (out / "tensorrt" / "model.plan").exists()
    assert "not_built" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["artifacts"]["tensorrt"] == target["digest"]
