"""``edgeopt bench --device``: predictions carry label, interval and evidence, or are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from edgeopt.bench import conditions
from edgeopt.bench.predicted import result_of
from edgeopt.bench.results import BenchDocument, BenchResult, LatencyMs
from edgeopt.cli import run
from edgeopt.cli.bench import _is_here
from edgeopt.devices.catalogue import find
from edgeopt.devices.prediction import KernelCost, Prediction, RestsOn
from edgeopt.errors import DeviceUnreachable, ModelError, UsageError
from edgeopt.pipeline.benchmark import PredictJob, graph_of, predict_all
from edgeopt.report.latency import as_text, failures_of
from tests import tiny


def prediction(**changes) -> Prediction:
    kernel = KernelCost(name="conv1", kind="conv", fused=("Conv", "Relu"), ms=8, share=0.8, bound="compute", known=True)
    values = {
        "device": "raspberry-pi-5",
        "runtime": "tflite",
        "compute_unit": "cpu",
        "precision": "int8",
        "delegate": "xnnpack",
        "threads": 4,
        "median_ms": 10.0,
        "low_ms": 8.0,
        "high_ms": 12.5,
        "basis": "fitted",
        "coverage": 0.97,
        "bound": "compute",
        "kernels": (kernel,),
        "overhead_ms": 0.5,
        "memory_mb": 4.0,
        "device_memory_mb": 8000.0,
        "fits_memory": True,
        "rests_on": RestsOn(rows=120, pooled_rows=900, held_out_error_pct=12.0, held_out="families"),
    }
    return Prediction.model_validate(values | changes)


def test_a_prediction_is_labelled_everywhere():
    result = result_of("m.onnx", prediction())
    assert result.kind == "predicted"
    assert result.latency_ms == LatencyMs(p50=10, low=8, high=12.5)
    assert result.profile is not None
    assert result.profile.kind == "predicted"
    shown = "\n".join(as_text(BenchDocument(edgeopt="0", results=(result,))))
    for part in (
        "predicted, fitted",
        "8–12.5",
        "120 rows, ±12% on held-out families, covers 97%",
        "not measured",
        "Conv + Relu",
    ):
        assert part in shown
    assert "bound by compute" in shown


def test_what_decides_nothing_says_so():
    wide = prediction(low_ms=1.0, high_ms=50.0, narrower="measure three models")
    one = as_text(BenchDocument(edgeopt="0", results=(result_of("m.onnx", wide),)))
    assert any("1–50 too wide" in line for line in one) and "  measure three models" in one
    other = result_of("m.onnx", wide.model_copy(update={"device": "jetson-nano"}))
    several = as_text(BenchDocument(edgeopt="0", results=(result_of("m.onnx", wide), other)))
    assert "  measure three models" not in several and any("--device NAME says it" in line for line in several)


def test_what_a_prediction_lacks_is_said():
    lacking = prediction(basis="transferred", fits_memory=False, warnings=("no relative of this device was measured",))
    shown = "\n".join(as_text(BenchDocument(edgeopt="0", results=(result_of("m.onnx", lacking),))))
    for part in (
        "transferred: nothing usable was measured on that device",
        "does not fit",
        "no relative of this device",
    ):
        assert part in shown


def test_a_budget_holds_the_upper_end():
    fast, slow = result_of("m", prediction()), result_of("m", prediction(precision="fp32", median_ms=20, high_ms=30))
    assert failures_of([fast, slow], 12.5) == ()
    (failure,) = failures_of([fast, slow], 12.0)
    assert failure == "m on raspberry-pi-5: 12.5 ms (upper end of the prediction), at most 12 ms was asked"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("predicted") / "model.onnx")


def test_a_device_that_is_not_here(model, capsys):
    assert run(["bench", str(model), "--device", "jetson", "--precision", "int8", "--json"]) == 0
    captured = capsys.readouterr()
    assert "'jetson' stands for jetson-orin-nano" in captured.err
    found = json.loads(captured.out)
    assert {result["kind"] for result in found["results"]} == {"predicted"}
    assert {result["precision"] for result in found["results"]} == {"int8"}
    for result in found["results"]:
        ms = result["latency_ms"]
        assert 0 < ms["low"] < ms["p50"] < ms["high"]
        assert ms["p90"] is None
        assert result["coverage"] >= 0.8
        assert result["conditions"] is None
        assert result["prediction"]["rests_on"]["pooled_rows"] > 0


def test_all_devices_beside_each_other(model, capsys):
    assert run(["bench", str(model), "--compare", "--precision", "int8", "--unit", "cpu", "--fps", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert "raspberry-pi-5" in shown
    assert "jetson-orin-nano" in shown
    assert "predicted" in shown


@pytest.mark.parametrize(
    ("board", "here", "elsewhere"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5", "raspberry-pi-4b"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "raspberry-pi-3b-plus", "raspberry-pi-3b"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "jetson-orin-nano", "jetson-nano"),
        ("NVIDIA Jetson TX2 NX Developer Kit", "jetson-tx2-nx", "jetson-tx2"),
        (None, None, "raspberry-pi-5"),
    ],
)
def test_on_the_board_that_is_named_it_is_measured(monkeypatch, board, here, elsewhere):
    monkeypatch.setattr(conditions, "machine", lambda: {"board": board})
    if here is not None:
        assert _is_here(find(here).profile)
    assert not _is_here(find(elsewhere).profile)


def predicted(model: Path, device: str = "raspberry-pi-5", **changes) -> tuple[BenchResult, ...]:
    """In this process: starting a worker costs more than all of it."""
    job = PredictJob((model,), (find(device).profile,), None, None, None, None, {}, trust=False)
    return predict_all(replace(job, **changes)).results


def test_what_the_device_lacks(model, capsys):
    with pytest.raises(UsageError, match="does not run tensorrt"):
        predicted(model, runtime="tensorrt")
    with pytest.raises(UsageError, match="no hardware profile") as caught:
        predicted(model, "raspbery-pi-5")
    assert "Did you mean 'raspberry-pi-5'?" in str(caught.value.hint)
    assert run(["bench", str(model), "--device", "raspberry-pi-5", "--batch", "4"]) == 2
    assert "--batch is for measuring" in capsys.readouterr().err


def test_open_sizes_are_asked_for(tmp_path):
    model = tiny.save_model(tmp_path / "model.onnx", shape="1,3,H,W")
    with pytest.raises(ModelError) as caught:
        predicted(model)
    assert "--input" in str(caught.value.hint)
    assert predicted(model, inputs={"image": (1, 3, 12, 12)})


def test_a_tflite_file_has_no_graph(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    with pytest.raises(ModelError, match="a prediction needs the model's graph"):
        predicted(tmp_path / "model.tflite")


def test_a_file_with_integers_that_are_moved_has_its_float_graph(model, tmp_path):
    """As edgeopt writes ONNX: bytes are padded between QuantizeLinear and DequantizeLinear."""
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[1,3,12,12] x) => (float[1,3,14,14] y)
        <float s = {0.1}, int8 z = {0}, int64[8] pads = {0,0,1,1,0,0,1,1}> {
            q = QuantizeLinear (x, s, z)
            p = Pad (q, pads, z)
            d = DequantizeLinear (p, s, z)
            y = Relu (d)
        }
    """
    ir.save(ir.from_onnx_text(text), tmp_path / "model.onnx")
    graph = graph_of(tmp_path / "model.onnx", {}, trust=False).model.graph
    assert [node.op_type for node in graph] == ["Pad", "Relu"]
    assert all(value.dtype == ir.DataType.FLOAT for node in graph for value in node.outputs)


def test_below_coverage_there_is_no_answer(tmp_path):
    """A model of operators that nobody measured."""
    steps = "\n".join(f"e{i} = Atan (e{i - 1})" for i in range(1, 30))
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[1,64,64,64] e0) => (float[1,64,64,64] e29) {{ {steps} }}
    """
    ir.save(ir.from_onnx_text(text), tmp_path / "model.onnx")
    with pytest.raises(DeviceUnreachable, match="Atan") as caught:
        predicted(tmp_path / "model.onnx")
    assert caught.value.exit_code == 3
    assert "--on ssh://" in str(caught.value.hint)


@pytest.fixture
def measured(model, tmp_path):
    """Saved results: a board that is half as fast as predicted, whatever it is."""

    def write(**changes) -> Path:
        result = result_of(str(model), prediction(precision="fp32")).model_dump(mode="json")
        result |= {"kind": "measured", "prediction": None, "profile": None} | changes
        document = {"schema": "edgeopt.bench/1", "edgeopt": "0", "results": [result]}
        (tmp_path / "results.json").write_text(json.dumps(document))
        return tmp_path / "results.json"

    return write


def test_a_profile_is_adapted_to_ones_own_board(model, measured, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["--device", "raspberry-pi-5", "--runtime", "tflite", "--precision", "fp32", "--threads", "4", "--json"]
    assert run(["bench", str(model), *asked]) == 0
    before = json.loads(capsys.readouterr().out)["results"][0]["latency_ms"]["p50"]
    results = measured(latency_ms={"p50": 2 * before})
    assert run(["bench", "--fit", "raspberry-pi-5", str(results), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (change,) = found["changes"]
    assert change["before_ms"] == pytest.approx(before, rel=1e-6)
    assert abs(change["after_ms"] - 2 * before) < abs(before - 2 * before)
    asked[1] = found["profile"]
    assert run(["bench", str(model), *asked]) == 0
    after = json.loads(capsys.readouterr().out)["results"][0]["latency_ms"]["p50"]
    assert after == pytest.approx(change["after_ms"], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "said"),
    [
        ({"stable": False}, [], 2, "no result is stable"),
        ({"runtime": "qnn"}, [], 2, "has no qnn"),
        ({"batch": 8}, [], 2, "was measured with batch 8, and its graph has 1"),
        ({}, ["--on", "ssh://x"], 2, "results that were measured before"),
        ({}, ["--source", "x"], 2, "is not FILE=MODEL"),
    ],
)
def test_what_nothing_is_fitted_to(measured, tmp_path, monkeypatch, capsys, changes, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    assert run(["bench", "--fit", "raspberry-pi-5", str(measured(**changes)), *arguments]) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*-own.yaml"))


def test_results_of_another_version(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": "edgeopt.bench/2", "results": []}')
    assert run(["bench", "--fit", "raspberry-pi-5", "results.json"]) == 2
    assert "edgeopt bench MODEL" in capsys.readouterr().err
