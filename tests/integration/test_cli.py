"""The commands besides ``convert``, and what all of them owe: help with an example, JSON that is one document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.cli import COMMANDS, run
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, samples and the finished conversion ``out``."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.save_model(folder / "model.onnx")
    tiny.save_samples(folder / "samples.npz")
    data = ["--calibration", str(folder / "samples.npz"), "--effort", "fast"]
    assert run(["convert", str(folder / "model.onnx"), *data, "--out", str(folder / "out")]) == 0
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_by_example(name, capsys):
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example" in shown
    assert f"edgeopt {name}" in shown


def test_help_without_a_command(capsys):
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name}" in shown


def test_convert_prints_one_document_that_is_the_report(folder, capsys):
    data = ["--calibration", str(folder / "samples.npz"), "--effort", "fast"]
    assert run(["convert", str(folder / "model.onnx"), *data, "--out", str(folder / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((folder / "out" / "report.json").read_text())
    assert "\x1b" not in captured.out + captured.err


@pytest.mark.parametrize("file", ["out/onnx/model.onnx", "out/tflite/model.tflite"])
def test_inspect_shows_every_scale(folder, file, capsys):
    assert run(["inspect", str(folder / file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "edgeopt.inspect/1"
    assert sum(found["ops"]["int8"].values()) >= 3
    by_name = {grid["tensor"]: grid for grid in found["scales"]}
    assert len(by_name["w1"]["scale"]) == 8
    assert all(scale > 0 for grid in found["scales"] for scale in grid["scale"])
    assert run(["inspect", str(folder / file)]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in by_name)


def test_parity_of_source_and_artifact(folder, capsys):
    files = [str(folder / "model.onnx"), str(folder / "out/tflite/model.tflite")]
    data = ["--data", str(folder / "samples.npz")]
    assert run(["parity", *files, *data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 12
    assert found["sqnr_db"] > 25
    assert run(["parity", *files, *data, "--min-sqnr-db", "150"]) == 1
    assert "failed" in capsys.readouterr().out


def test_parity_of_a_model_with_itself_is_exact(folder, capsys):
    model = str(folder / "model.onnx")
    assert run(["parity", model, model, "--data", str(folder / "samples.npz"), "--tolerance", "1e-6"]) == 0
    assert "exact" in capsys.readouterr().out


def test_parity_runs_a_file_of_open_batch_as_people_open_it(folder, tmp_path, capsys):
    """In a session with optimisations, whose kernels may be wrong; not in the one that reads models."""
    model = onnx.load(folder / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, tmp_path / "open.onnx")
    files = [str(folder / "model.onnx"), str(tmp_path / "open.onnx")]
    assert run(["parity", *files, "--data", str(folder / "samples.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label"].endswith("CPU, 1 thread")
    assert found["rel"] < 1e-6
    assert found["notes"] == []


def test_bench_measures_with_its_interval(folder, capsys):
    files = [str(folder / "out/onnx/model.onnx"), str(folder / "out/tflite/model.tflite")]
    quick = ["--seconds", "0.05", "--runs", "20", "--warm-up", "0.1"]
    assert run(["bench", *files, *quick, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [result["runtime"] for result in found["results"]] == ["onnxruntime", "tflite"]
    for result in found["results"]:
        ms = result["latency_ms"]
        assert result["kind"] == "measured"
        assert 0 < ms["low"] <= ms["p50"] <= ms["high"]
        assert result["conditions"]["runs"] >= 20
    assert run(["bench", *files, *quick]) == 0
    assert "median" in capsys.readouterr().out


def test_init_writes_a_recipe_that_converts(folder, capsys):
    np.savez(folder / "a.npz", image=tiny.samples())
    arguments = ["--model", "model.onnx", "--calibration", "a.npz"]
    assert run(["init", str(folder), *arguments]) == 0
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("crop: 224", "crop: 12").replace("int8}", "fp16}"))
    assert run(["convert", str(folder), "--out", str(folder / "from-recipe")]) == 0
    capsys.readouterr()
    assert run(["init", str(folder), *arguments]) == 2
    assert "recipe already" in capsys.readouterr().err


def test_doctor_finds_the_core(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] is True
    assert set(found["runtimes"].values()) == {"works"}
    assert run(["doctor"]) == 0
    assert "ONNX Runtime: works" in capsys.readouterr().out
