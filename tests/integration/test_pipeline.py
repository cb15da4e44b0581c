"""Whole conversions of a small model: what is written, that it repeats, and that nothing is lost or left by a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import psutil
import pytest

from edgeopt.cli import run
from edgeopt.pipeline import jobs
from edgeopt.report.files import json_schema, shipped_schema, write_schema
from edgeopt.runtimes.onnxruntime import saturates
from tests import tiny

EDGEOPT = [sys.executable, "-m", "edgeopt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx``, ``samples.npz`` and labelled ``evaluation.npz``."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.save_model(folder / "model.onnx")
    tiny.save_samples(folder / "samples.npz")
    evaluation = tiny.samples(40, seed=5)
    tiny.save_samples(folder / "evaluation.npz", evaluation, labels=np.arange(40) % tiny.CLASSES)
    return folder


def convert(folder: Path, out: Path, *more: object) -> int:
    data = ["--calibration", folder / "samples.npz", "--evaluation", folder / "evaluation.npz"]
    return run([str(a) for a in ("convert", folder / "model.onnx", *data, "--effort", "fast", "--out", out, *more)])


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    """A finished conversion."""
    out = folder / "done"
    assert convert(folder, out) == 0
    return out


def report_of(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "report.json").read_text())
    return loaded


def artifacts(out: Path) -> dict[str, bytes]:
    return {name: (out / target["path"]).read_bytes() for name, target in report_of(out)["targets"].items()}


# --- what is written


def test_the_output_folder_is_as_designed(out):
    names = {path.name for path in out.iterdir()}
    assert names == {"onnx", "tflite", "report.json", "report.md", "manifest.json", "request.json", ".edgeopt"}
    assert not (out / ".edgeopt" / "scratch").exists()


def test_the_report_validates_against_the_shipped_schema(out):
    jsonschema.validate(report_of(out), shipped_schema())


def test_the_shipped_schema_is_that_of_the_types():
    assert shipped_schema() == json_schema(), write_schema.__doc__


def test_the_report_says_what_was_found(out):
    report = report_of(out)
    assert report["schema"] == "edgeopt.report/1"
    assert report["parity"]["L0"]["failures"] == []
    for name, target in report["targets"].items():
        assert target["status"] == "ok"
        assert set(target["parity"]) == {"L1", "L2"}
        assert target["parity"]["L2"]["within_one_step"] >= 0.999
        assert target["metrics"]["target"]["samples"] == 40
        assert target["latency_ms"]["kind"] == "measured"
        assert target["latency_ms"]["float"]["latency_ms"]["p50"] > 0
        assert target["size_bytes"] == (out / target["path"]).stat().st_size
        assert target["realised"]["int8_ops"]
        assert name in (out / "report.md").read_text()
    assert report["targets"]["onnx"]["identical_integers_with"] == ["tflite"]


def test_the_manifest_says_where_it_comes_from(out):
    manifest = json.loads((out / "manifest.json").read_text())
    report = report_of(out)
    assert manifest["artifacts"] == {t["path"]: t["digest"] for t in report["targets"].values()}
    assert {"onnxruntime", "numpy", "python", "edgeopt"} <= set(manifest["versions"])
    assert set(manifest["data_digests"]) == {"calibration", "evaluation"}


# --- repeating


def test_the_same_command_again_does_nothing_again(folder, out):
    before = artifacts(out)
    assert convert(folder, out) == 0
    assert all(step["cached"] for step in report_of(out)["steps"])
    assert artifacts(out) == before


def test_a_moved_folder_goes_on(folder, out, tmp_path):
    moved = tmp_path / "elsewhere"
    out.rename(moved)
    try:
        assert convert(folder, moved) == 0
        assert all(step["cached"] for step in report_of(moved)["steps"])
    finally:
        moved.rename(out)


def test_same_inputs_same_artifacts_byte_for_byte(folder, out, tmp_path):
    assert convert(folder, tmp_path / "again") == 0
    assert artifacts(tmp_path / "again") == artifacts(out)


def test_another_target_changes_no_artifact(folder, out, tmp_path):
    assert convert(folder, tmp_path / "one", "--target", "tflite") == 0
    assert artifacts(tmp_path / "one") == {"tflite": artifacts(out)["tflite"]}


def test_what_changes_is_done_again_and_no_more(folder, out, tmp_path):
    assert convert(folder, tmp_path / "out") == 0
    assert convert(folder, tmp_path / "out", "--keep-float", "Conv_c1") == 0
    report = report_of(tmp_path / "out")
    assert {step["name"]: step["cached"] for step in report["steps"]} == {
        "import": True,
        "passes": False,
        "onnx": False,
        "tflite": False,
    }
    assert artifacts(tmp_path / "out") != artifacts(out)


# --- results that are not good


def test_a_limit_that_is_not_reached_fails_and_is_looked_into(folder, tmp_path, capsys):
    assert convert(folder, tmp_path / "out", "--min-sqnr-db", 200, "--target", "onnx") == 1
    target = report_of(tmp_path / "out")["targets"]["onnx"]
    assert target["status"] == "failed"
    assert "200" in target["why"]
    assert target["parity"]["L1"]["tensors_db"]
    assert (tmp_path / "out" / target["path"]).exists()
    assert "failed" in capsys.readouterr().out


def test_a_budget_that_is_not_kept_fails(folder, tmp_path):
    recipe = {
        "edgeopt": 1,
        "model": {"onnx": str(folder / "model.onnx")},
        "targets": {"onnx": {}},
        "budget": {"size_mb": 0.0001},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert run(["convert", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "budget" in report_of(tmp_path / "out")["targets"]["onnx"]["why"]


def test_all_targets_are_attempted(folder, tmp_path, capsys):
    model = str(folder / "model.onnx")
    recipe = {"edgeopt": 1, "model": {"onnx": model}, "targets": {"onnx": {"io": "int8"}, "tflite": {}}}  # no grids
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    out = tmp_path / "out"
    assert run(["convert", str(tmp_path), "--out", str(out)]) == 4
    report = report_of(out)
    assert report["targets"]["onnx"]["status"] == "failed"
    assert report["targets"]["tflite"]["status"] == "ok"
    assert not (out / "onnx").exists()
    assert "grid" in capsys.readouterr().err


def test_a_file_that_this_processor_gets_wrong_fails_and_says_why(tmp_path, capsys):
    """On x86 without VNNI; elsewhere the file is right, and the report says where it is not."""
    rng = np.random.default_rng(3)
    graph = onnx.parser.parse_graph(
        "g (float[1,16,8,8] x) => (float[1,10] y) { c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) "
        "f = Flatten(r) y = MatMul(f, h) }"
    )
    weights = {"w": rng.choice([-1.0, 1.0], (16, 16, 3, 3)), "h": rng.choice([-1.0, 1.0], (16 * 64, 10))}
    graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items())
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", x=rng.uniform(0, 1, (32, 16, 8, 8)).astype(np.float32))
    (tmp_path / "recipe.yaml").write_text(
        "edgeopt: 1\nmodel: {onnx: model.onnx}\ndata: {calibration: {arrays: samples.npz}}\neffort: fast\n"
        "passes: [{use: quantize, overflow_fix: false}]\ntargets: {onnx: {weights: int8}}\n"
    )
    code = run(["convert", str(tmp_path), "--out", str(tmp_path / "out")])
    target = report_of(tmp_path / "out")["targets"]["onnx"]
    assert any("can saturate" in text for text in target["realised"]["leftovers"])
    assert code == (1 if saturates() else 0)
    assert ("the likely cause: 2 products" in capsys.readouterr().out) == saturates()


# --- crashes


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    data = ["--calibration", folder / "samples.npz"]
    command = [*EDGEOPT, "convert", folder / "model.onnx", *data, "--out", out]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def steps(out: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (out / ".edgeopt" / "steps").glob("*"))


def interrupted(folder: Path, out: Path, number: signal.Signals) -> tuple[int, str, list[psutil.Process]]:
    """Start, send the signal when the import is finished and the next worker runs; code, stderr, processes."""
    process = start(folder, out)
    parent = psutil.Process(process.pid)
    wait_for(lambda: steps(out) == ["import"] and (out / ".edgeopt/scratch/passes").exists(), "import")
    wait_for(lambda: bool(parent.children()), "a worker")
    workers = parent.children(recursive=True)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    return process.returncode, stderr, workers


def gone(workers: list[psutil.Process]) -> None:
    wait_for(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers), "workers live on")


def test_kill_and_the_same_command_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    code, _, workers = interrupted(folder, out, signal.SIGKILL)
    assert code == -signal.SIGKILL
    gone(workers)
    assert not (out / "onnx").exists()
    assert not (out / "report.json").exists()
    process = start(folder, out)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert {s["name"]: s["cached"] for s in report_of(out)["steps"]}["import"] is True
    assert not (out / ".edgeopt" / "scratch").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_half_written(folder, tmp_path, number):
    out = tmp_path / "out"
    code, stderr, workers = interrupted(folder, out, number)
    assert code == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    gone(workers)
    assert {path.name for path in out.iterdir()} == {".edgeopt"}
    assert steps(out) == ["import"]
    assert not (out / ".edgeopt" / "scratch").exists()


def test_two_at_once_in_one_folder_are_refused(folder, tmp_path, capsys):
    out = tmp_path / "out"
    first = start(folder, out)
    try:
        wait_for((out / ".edgeopt" / "scratch").exists, "start")
        assert convert(folder, out) == 2
        assert "another edgeopt" in capsys.readouterr().err
    finally:
        first.communicate(timeout=120)
    assert first.returncode == 0


def test_a_file_that_is_far_from_float_is_warned_about_without_being_asked(folder, out, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "FAR_FROM_FLOAT_DB", 100.0)
    assert convert(folder, out) == 0
    assert "far from float" in capsys.readouterr().err
    assert any("far from float" in text for text in report_of(out)["targets"]["onnx"]["warnings"])
