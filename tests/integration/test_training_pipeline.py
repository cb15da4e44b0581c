"""Prune, distill, quantize, train for int8: one recipe, through the command line, killed on the way."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import load_file

from edgeopt.cli import run
from edgeopt.gate.judge import GateJob, judge
from edgeopt.gate.policy import Policy
from tests.conftest import ROOT

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

COMMAND = str(Path(sys.executable).parent / "edgeopt")
LIMIT_S = 600


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The shipped recipe, with fewer epochs and two of its targets."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in ("quickstart", "prune-distill-quantize"):
        shutil.copytree(ROOT / "recipes" / name, folder / name)
    path = folder / "prune-distill-quantize" / "recipe.yaml"
    text = path.read_text().replace("epochs: 30", "epochs: 4").replace("epochs: 5", "epochs: 1")
    shorter = text.replace("  coreml: {}\n  tensorrt: {}\n", "")
    assert shorter != text
    # One setting in place of a search, which is the pass's own test.
    one = "{use: quantize, ranges: minmax, equalize: depthwise, rounding: nearest, bias_correction: true}"
    path.write_text(shorter.replace("{use: quantize, scheme: int8}", one) + "effort: fast\n")
    return path.parent


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    done = subprocess.run(
        [COMMAND, "convert", str(recipe), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (out.parent / "stdout").write_text(done.stdout)
    return out


@pytest.fixture(scope="module")
def report(whole) -> dict[str, Any]:
    return json.loads((whole / "report.json").read_text())


def test_it_is_smaller_and_as_good(report):
    prune, distill = report["training"]
    assert (prune["use"], distill["use"]) == ("prune", "distill")
    assert prune["after"]["macs"] <= 0.3 * prune["before"]["macs"]
    assert distill["before"] == distill["after"] == prune["after"]
    for target in report["targets"].values():
        assert target["status"] == "ok"
        assert target["metrics"]["target"]["top1"] > 0.93  # most of the epochs are missing
        assert target["size_bytes"] < 60_000  # the quickstart's have 95 kB and more
        assert target["realised"]["int8_ops"]
        assert not target["realised"]["unasked_float"]
    assert report["targets"]["onnx"]["identical_integers_with"] == ["tflite"]


def test_the_report_shows_what_each_layer_lost_and_the_curves(whole, report):
    text = (whole / "report.md").read_text()
    assert "| layer | inputs | outputs | MACs |" in text
    assert "- loss by epoch: `" in text
    assert [epoch["epoch"] for epoch in report["training"][1]["epochs"]] == list(range(1, 5))
    assert "quantization-aware training" in text
    assert "pytorch/module.pth; its outputs are within" in text
    assert (whole / "pytorch" / "module.pth").is_file()
    assert re.search(r"prune: MACs .* → .* \(\d+%\)", (whole.parent / "stdout").read_text())


def steps(out: Path, pattern: str) -> list[Path]:
    return sorted((out / ".edgeopt").glob(pattern))


def start_and_wait(recipe: Path, out: Path, pattern: str) -> subprocess.Popen[bytes]:
    """Until something that fits the pattern is there."""
    process = subprocess.Popen(
        [COMMAND, "convert", str(recipe), "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + LIMIT_S
    while not steps(out, pattern):
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


def test_killed_and_interrupted_it_ends_with_the_same_weights(recipe, whole, tmp_path):
    out = tmp_path / "out"
    (pruned,) = steps(whole, "steps/1-prune-*")
    shutil.copytree(pruned, out / ".edgeopt" / "steps" / pruned.name)  # is not what is interrupted
    checkpoint = "unfinished/2-distill-*/train/checkpoint.safetensors"
    process = start_and_wait(recipe, out, checkpoint)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert gone(children)
    assert steps(out, checkpoint)
    process = start_and_wait(recipe, out, checkpoint)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # who is impatient loses nothing either
    process.wait(60)
    assert gone(children)
    assert steps(out, checkpoint)
    process = start_and_wait(recipe, out, "steps/2-distill-*/module.safetensors")
    process.kill()
    process.wait()
    (made,), (expected,) = (steps(folder, "steps/2-distill-*/module.safetensors") for folder in (out, whole))
    ours, theirs = load_file(made), load_file(expected)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  - {use: quantize,", "  # {use: quantize,", "put {use: quantize} in front of it"),
        ("macs: 0.3", "macs: 0.3, params: 0.5", "give one of 'ratio', 'macs', 'params' and 'latency_ms'"),
        ("  training: {arrays: training.npz}", "  #", "needs training data"),
        ("epochs: 4", "epochs: 4\n    early_stopping: 3", "needs 'held_back'"),
        ("epochs: 4", "epoch: 4", "Did you mean 'epochs'?"),
        ("  - {use: prune, macs: 0.3}", "  - {use: quantize}\n  - {use: prune}", "before the passes on the graph"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_its_line(recipe, tmp_path, capsys, old, new, said):
    folder = tmp_path / "prune-distill-quantize"
    shutil.copytree(recipe, folder)
    shutil.copytree(recipe.parent / "quickstart", tmp_path / "quickstart")
    path = folder / "recipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert run(["convert", str(folder), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "recipe.yaml:" in told


def test_the_gate_judges_what_was_trained(whole):
    """Against the trained module and by its answers: the function is no longer the factory's."""
    skipped = ("robustness", "slices", "preprocessing", "latency", "confidence")
    checks = {check.id: check for check in judge(GateJob(whole, Policy(skip=skipped))).result.checks}
    assert checks["parity-conversion"].verdict == "pass", checks["parity-conversion"].summary
    assert "trained after the import" in " ".join(checks["parity-conversion"].details)
    assert checks["parity-quantization"].verdict == "pass", checks["parity-quantization"].summary
    assert checks["integrity"].verdict == "pass"
