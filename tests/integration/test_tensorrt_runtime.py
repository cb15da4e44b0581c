"""Engines are built and run, against a stand-in that records the calls: no TensorRT runs here, none is measured."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from edgeopt.bench.latency import Plan, Subject, measure_here
from edgeopt.errors import ModelError, SetupError, TargetError
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.runtimes import tensorrt as runtime
from edgeopt.runtimes import trtexec
from edgeopt.targets.tensorrt.target import TensorrtTarget
from tests import tiny
from tests.integration.tensorrt_stand_in import StandIn, StandInCuda
from tests.integration.test_tensorrt_target import quantized


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Puts a stand-in of a version in TensorRT's place."""

    def put(version: str, **options) -> StandIn:
        module = StandIn(version, **options)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(runtime, "Cuda", StandInCuda)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return module

    return put


def convert(graph: QuantizedGraph, feeds, out: Path, **options):
    out.mkdir()
    target = TensorrtTarget(**options)
    return target.finish(out, target.lower(graph, out), feeds)


@pytest.mark.parametrize(
    ("version", "network", "flags"),
    [("8.5.2", 1, ["INT8", "FP16"]), ("10.3.0", 2, []), ("11.0.0", 0, [])],
)
def test_each_major_version_is_asked_in_its_own_way(version, network, flags, stand_in, tmp_path):
    module = stand_in(version)
    graph, feeds = quantized("classifier")
    artifact = convert(graph, feeds[:2], tmp_path / "b", version=".".join(version.split(".")[:2]))
    assert module.said("network") == [network]
    assert module.said("flag") == flags
    (config,) = module.said("build")
    assert config["profiling_verbosity"] == "detailed"
    assert artifact.not_built is None
    assert artifact.engine.runtime == f"TensorRT {version}"
    assert artifact.engine.path == "model.plan"
    assert (tmp_path / "b" / "model.plan").is_file()


def test_saved_inputs_are_compared_and_memory_is_given_back(stand_in, tmp_path):
    stand_in("10.3.0")
    graph, feeds = quantized("classifier")
    artifact = convert(graph, feeds[:3], tmp_path / "b")
    assert artifact.engine.samples == 3
    assert artifact.engine.sqnr_db == 300.0  # the stand-in runs the very file that made the saved outputs
    assert artifact.engine.median_ms > 0
    assert not StandInCuda.held


def test_layers_are_counted_as_the_inspector_has_them(stand_in, tmp_path):
    stand_in("10.3.0")
    graph, feeds = quantized("classifier")
    realised = convert(graph, feeds[:1], tmp_path / "b").realised
    assert realised.int8_ops == {"Convolution": 1}
    assert realised.float_ops == {"gemm": 1}
    assert realised.other_ops == {"Reformat": 1}
    assert not realised.unasked_float


def test_an_engine_without_int8_layers_has_lost_what_was_asked(stand_in, tmp_path):
    layer = {"Name": "all", "LayerType": "Convolution", "Inputs": [{"Name": "x", "DataType": "Half"}]}
    stand_in("11.0.0", layers={"Layers": [layer]})
    graph, feeds = quantized("classifier")
    realised = convert(graph, feeds[:1], tmp_path / "b", version="11.0").realised
    assert realised.int8_ops == {}
    assert realised.unasked_float


def test_the_timing_cache_is_kept_and_read_again(stand_in, tmp_path):
    module = stand_in("10.3.0")
    graph, feeds = quantized("classifier")
    convert(graph, feeds[:1], tmp_path / "first")
    convert(graph, feeds[:1], tmp_path / "second")
    assert module.said("timing cache read") == [b"", b"timed"]
    assert (tmp_path / "second" / "timing.cache").read_bytes() == b"timed"


def test_the_dla_is_asked_with_fallback_and_scales(stand_in, tmp_path):
    module = stand_in("10.3.0")
    graph, feeds = quantized("classifier")
    convert(graph, feeds[:1], tmp_path / "b", dla=True)
    (config,) = module.said("build")
    assert module.said("network") == [0]
    assert module.said("flag") == ["INT8", "FP16", "GPU_FALLBACK"]
    assert config["default_device_type"] == "DLA"
    assert config["DLA_core"] == 0
    calibrator = config["int8_calibrator"]
    assert calibrator.read_calibration_cache() == (tmp_path / "b" / "calibration.cache").read_bytes()
    assert calibrator.get_batch(["x"]) is None
    assert module.said("parse") == [(tmp_path / "b" / "model.dla.onnx").stat().st_size]


@pytest.mark.parametrize(("fails", "said"), [("parse", "unsupported operator"), ("build", "any implementation")])
def test_what_tensorrt_says_reaches_the_person(fails, said, stand_in, tmp_path):
    stand_in("10.3.0", fails=fails)
    graph, feeds = quantized("classifier")
    with pytest.raises(TargetError, match=said):
        convert(graph, feeds[:1], tmp_path / "b")


def test_another_major_version_builds_nothing(stand_in, tmp_path):
    module = stand_in("8.6.1")
    graph, feeds = quantized("classifier")
    artifact = convert(graph, feeds[:1], tmp_path / "b", version="10.3")
    assert not module.said("build")
    assert "8.6.1 is here" in artifact.not_built
    assert artifact.engine is None


def test_without_a_gpu_nothing_is_built(stand_in, monkeypatch):
    stand_in("10.3.0")
    monkeypatch.setattr(StandInCuda, "devices", lambda self: 0)
    assert "no GPU" in runtime.missing()


def test_the_script_of_a_bundle_builds_and_compares(stand_in, monkeypatch, tmp_path, capsys):
    """``engine.py`` is this runtime: the same code, run from the bundle."""
    graph, feeds = quantized("classifier")
    out = tmp_path / "b"
    convert(graph, feeds[:2], out)
    assert (out / "engine.py").read_bytes() == Path(runtime.__file__).read_bytes()
    stand_in("10.3.0")
    monkeypatch.setattr(runtime, "__file__", str(out / "engine.py"))
    monkeypatch.setattr(sys, "argv", ["engine.py"])
    assert runtime.main() == 0
    said = json.loads(capsys.readouterr().out)
    assert said["int8"] == {"Convolution": 1}
    assert said["samples"] == 2
    assert (out / "timing.cache").is_file()


def test_the_script_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert runtime.main() == 3
    assert "not installed here" in capsys.readouterr().err


def test_it_is_written_in_the_python_of_the_oldest_jetpack():
    ast.parse(Path(runtime.__file__).read_text(), feature_version=(3, 8))


def test_layers_without_details_are_no_claim():
    assert runtime.count_layers(json.dumps({"Layers": ["stem", "head"]})).int8 == {}


class TestBenchWithoutTrtexec:
    """`edgeopt bench` on a board that has TensorRT's Python package and no trtexec. Times are those of the stand-in."""

    @pytest.fixture
    def board(self, stand_in, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr(trtexec, "JETPACK", "/nowhere")
        return stand_in

    @pytest.fixture
    def subjects(self, tmp_path):
        tiny.save_model(tmp_path / "model.onnx")
        return (Subject("m", tmp_path / "model.onnx", "trtexec", unit="gpu"),)

    def test_the_engine_is_built_once_and_its_profile_is_read(self, board, subjects, tmp_path):
        module = board("10.3.0")
        plan = Plan(seconds=0.01, runs=10, warm_up_s=0.05, profile=True)
        (result,) = measure_here(subjects, plan, tell=lambda text: None).results
        assert [name for name, _ in module.calls if name in ("parse", "build")] == ["parse", "build"]
        assert module.said("network") == [2]
        assert (result.runtime, result.compute_unit, result.verified) == ("tensorrt", "gpu", False)
        assert result.conditions.runtime == "TensorRT 10.3.0, Python API"
        assert (result.memory_mb, result.conditions.delegate) == (None, "TensorRT")
        assert result.conditions.runs >= 10
        layers = {one.name: (one.ms, round(one.share, 3)) for one in result.profile.operators}
        assert layers == {"logits": (0.5, 0.667), "stem + relu6": (0.25, 0.333)}
        assert result.profile.operators[0].name == "logits"
        assert not StandInCuda.held

    def test_what_tensorrt_refuses_is_said_in_its_words(self, board, subjects):
        board("10.3.0", fails="parse")
        with pytest.raises(ModelError, match="node 'cat': unsupported operator"):
            measure_here(subjects, Plan(seconds=0.01, runs=10), tell=lambda text: None)
        board("10.3.0", fails="build")
        with pytest.raises(ModelError, match="could not find any implementation for node stem"):
            measure_here(subjects, Plan(seconds=0.01, runs=10), tell=lambda text: None)

    def test_another_batch_than_the_file_has(self, board, subjects):
        board("10.3.0")
        with pytest.raises(ModelError, match="an engine has the shapes of its file"):
            measure_here(subjects, Plan(seconds=0.01, runs=10, batch=4), tell=lambda text: None)
        assert not StandInCuda.held

    def test_neither_is_there(self, board, subjects, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(SetupError, match=r"no trtexec on the path.*tensorrt") as caught:
            measure_here(subjects, Plan(), tell=lambda text: None)
        assert "--on" in str(caught.value.hint)

    def test_there_is_no_gpu(self, board, subjects, monkeypatch):
        board("10.3.0")
        monkeypatch.setattr(StandInCuda, "devices", lambda self: 0)
        with pytest.raises(SetupError, match=r"TensorRT 10\.3\.0 is here, and no GPU"):
            measure_here(subjects, Plan(), tell=lambda text: None)
