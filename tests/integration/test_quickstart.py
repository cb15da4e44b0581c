"""The first thing a newcomer runs: the quickstart, through the command line, on real images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.runtimes import litert, onnxruntime
from tests.conftest import ROOT

every_target = pytest.mark.parametrize("name", ["onnx", "tflite", "coreml", "tensorrt"])


@pytest.fixture(scope="module")
def printed(out) -> list[str]:
    """What the demo prints, its lines without padding."""
    return (out.parent / "stdout").read_text().splitlines()


@pytest.fixture(scope="module")
def out(quickstart, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    command = [str(Path(sys.executable).parent / "edgeopt"), "convert", str(quickstart), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (folder.parent / "stdout").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def report(out) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def evaluation(quickstart) -> dict[str, np.ndarray]:
    with np.load(quickstart / "evaluation.npz") as stored:
        return dict(stored)


def test_the_images_are_disjoint_and_labelled(quickstart, evaluation):
    with np.load(quickstart / "calibration.npz") as calibration:
        assert set(calibration["labels"]) == set(evaluation["labels"]) == set(range(10))
        both = {image.tobytes() for image in calibration["image"]} & {image.tobytes() for image in evaluation["image"]}
    assert not both


def test_the_weights_are_small(quickstart):
    assert (quickstart / "model.safetensors").stat().st_size <= 500_000


def test_the_readme_shows_this_table(printed, report):
    """Same columns and rows; the numbers may differ from one machine to another."""
    shown = (ROOT / "README.md").read_text().splitlines()
    (header,) = (line for line in printed if line.startswith("target "))
    assert header.split() in [line.split() for line in shown]
    for name, target in report["targets"].items():
        assert any(line.split()[:2] == [name, target["status"]] for line in printed)
        assert any(line.startswith(name) and line.endswith(target["path"]) for line in printed)
        assert any(line.split()[:2] == [name, target["status"]] for line in shown)
        assert any(line.startswith(name) and line.endswith(target["path"]) for line in shown)


def test_all_targets_are_good(report):
    assert report["exit_code"] == 0
    statuses = {name: target["status"] for name, target in report["targets"].items()}
    assert statuses == {"onnx": "ok", "tflite": "ok", "coreml": "ok", "tensorrt": "not_built"}
    assert not report["parity"]["L0"]["failures"]
    assert not report["warnings"]
    # A network of this size may well be slower in int8, by machine: no defect of the files.
    others = [text for t in report["targets"].values() for text in t["warnings"] if "slower than float" not in text]
    assert not others


@every_target
def test_accuracy_stays(report, name):
    metrics = report["targets"][name]["metrics"]
    assert metrics["target"]["samples"] == 600
    assert metrics["float"]["top1"] == pytest.approx(598 / 600)  # as PyTorch has it: train.py prints it
    assert abs(metrics["float"]["top1"] - metrics["target"]["top1"]) <= 0.005


@every_target
def test_all_weighted_operators_are_int8(report, name):
    realised = report["targets"][name]["realised"]
    assert sum(realised["int8_ops"].values()) >= 12  # eleven convolutions and the classifier
    # Levels of the input, where held-back images kept them, are one float multiplication and addition. The pixels of
    # Core ML are one more multiplication, and its class probabilities a softmax; nothing else is float.
    allowed = {"mul": 2, "add": 1, "softmax": 1} if name == "coreml" else {"mul": 1, "add": 1}
    assert all(count <= allowed.get(op.lower(), 0) for op, count in realised["float_ops"].items())
    assert not realised["unasked_float"]
    assert not realised["leftovers"]


def test_all_files_carry_the_same_integers(report):
    assert report["targets"]["onnx"]["identical_integers_with"] == ["tflite", "coreml"]
    assert report["targets"]["tflite"]["identical_integers_with"] == ["onnx", "coreml"]
    assert report["targets"]["coreml"]["identical_integers_with"] == ["onnx", "tflite"]


def test_a_target_with_grids_of_its_own_says_why(report):
    target = report["targets"]["tensorrt"]
    assert target["identical_integers_with"] == []
    assert target["identical_weights_with"] == ["onnx", "tflite", "coreml"]
    assert "zero point 0" in target["own_grids"]
    assert not any(other["own_grids"] for name, other in report["targets"].items() if name != "tensorrt")


@every_target
def test_parity_is_that_of_the_reference(report, name):
    parity = report["targets"][name]["parity"]
    assert parity["L1"]["sqnr_db"] >= 30
    assert parity["L2"]["within_one_step"] >= 0.999
    assert parity["L2"]["sqnr_db"] >= parity["L2"]["reference_sqnr_db"] - 0.5
    assert not parity["L2"]["failures"]


@pytest.mark.parametrize(("name", "runtime"), [("onnx", onnxruntime), ("tflite", litert)])
def test_a_file_reads_digits_by_itself(out, report, evaluation, name, runtime):
    """Without edgeopt's pipeline: load the file in its runtime and count right answers."""
    target = report["targets"][name]
    ((image, shape),) = ((one["name"], one["shape"]) for one in target["signature"]["inputs"])
    with runtime.Session(out / target["path"]) as session:
        # one channel: an image's bytes are the same in NCHW and NHWC
        answers = [next(iter(session.run({image: one.reshape(shape)}).values())) for one in evaluation["image"]]
    right = np.mean([answer.argmax() for answer in answers] == evaluation["labels"])
    assert right == pytest.approx(target["metrics"]["target"]["top1"], abs=0.002)
