"""Run `edgeopt convert` as a user does, in a process of its own, and say what it made and what it cost."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, place


class ConvertError(Exception):
    """`edgeopt convert` made no file; the message has its exit code and the end of what it said."""


@dataclass(frozen=True)
class Conversion:
    """One run: its folder, its report.json, and what it cost (see `measure`)."""

    out: Path
    report: dict[str, Any]
    cost: dict[str, float]
    exit_code: int

    def target(self, name: str) -> dict[str, Any]:
        return self.report["targets"][name]

    def path(self, name: str) -> Path:
        return self.out / self.target(name)["path"]


def input_name(source: Path) -> str:
    """The name of an ONNX file's first input that is not an initializer."""
    import onnx

    graph = onnx.load(str(source), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return next(value.name for value in graph.input if value.name not in constants)


def calibration_file(name: str, input_name: str, images: np.ndarray) -> Path:
    """Arrays by input name, ready for the model: what `--calibration FILE.npz` takes."""
    path = place.work() / "calibration" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{input_name: images})
    return path


def convert(source: Path, out: Path, *options: str, fresh: bool = True) -> Conversion:
    """`edgeopt convert SOURCE --out OUT OPTIONS...`. `source` is a model or a recipe.

    `fresh`: whatever is in OUT goes first. Otherwise edgeopt finds there what it need not do again, by its own keys.

    Exit code 1 (a tolerance or a budget failed) still leaves artifacts, and they are measured. Raises `ConvertError`
    where there is no report, or a target in it has no file.
    """
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("edgeopt")), "convert", str(source), "--out", str(out), *options]
    print("$ edgeopt " + " ".join(command[1:]), file=sys.stderr, flush=True)
    log = out.with_suffix(".log")
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.measure", *command],
            cwd=place.REPOSITORY, stdout=subprocess.PIPE, stderr=file, text=True, check=True,
        )  # fmt: skip
    cost = json.loads(done.stdout)
    code = int(cost["exit_code"])
    said = " / ".join(log.read_text().strip().splitlines()[-6:])
    if not (out / "report.json").is_file():
        raise ConvertError(f"exit code {code}: {said[-600:]}")
    run = Conversion(out, json.loads((out / "report.json").read_text()), cost, code)
    for name, target in run.report["targets"].items():
        if not target.get("path") or not run.path(name).exists():
            raise ConvertError(f"exit code {code}, target {name} is {target.get('status')}: {said[-600:]}")
    if code:
        print(f"  exit code {code}: {said[-300:]}", file=sys.stderr)
    return run


def convert_trained(model: data.TrainedModel, *, fresh: bool) -> Conversion:
    """One of the trained models with its calibration images and nothing but defaults, to ONNX and TFLite."""
    images = model.calibration()
    calibration = calibration_file(model.name, model.input_name, images)
    return convert(
        model.onnx,
        place.work() / "edgeopt" / model.name,
        *("--target", "onnx,tflite", "--calibration", str(calibration)),
        *("--input", f"{model.input_name}=1,{','.join(str(d) for d in images.shape[1:])}"),
        fresh=fresh,
    )
