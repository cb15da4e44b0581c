"""MobileNetV1-0.25 on visual wake words: half of its multiply–accumulates pruned, distilled, int8; a demonstration.

    python -m benchmarks.train_vww --write

Everything goes through `edgeopt convert RECIPE`, on one thread of a CPU, in about 20 minutes; the files stay in the
work folder, and `--kept` measures them again. 200 images train and calibrate, the 200 others are scored: so few that no
small difference can be seen. The intervals say which ones can. Nothing was tuned on the images that are scored.

Every arm is trained for the same total of epochs on the same images. `float` is the yardstick: the original, fine-tuned
as long as the others. `source` is the original as it came; so few images can make it worse, so ours is compared with
both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import place, scoring, tables
from benchmarks.convert import convert
from benchmarks.data import visual_wake_words
from edgeopt.report.training import curve

EPOCHS, QAT_EPOCHS = 60, 10
"""Of every arm in all; of them, what the arm that is trained for int8 keeps for that."""
AUGMENT = "{flip: true, shift: 8, rotate: 10, scale: 0.15}"
SETTINGS = f"batch: 32, warmup_epochs: 2, augment: {AUGMENT}"
PRUNE = "{use: prune, macs: 0.5, importance: taylor}"
TRAIN = f"lr: 0.001, ema: 0.98, {SETTINGS}"
TAUGHT = "temperature: 4.0, mix: 0.8"
ARMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "source": ((), ("{use: quantize}",)),
    "float": ((f"{{use: train, epochs: {EPOCHS}, {TRAIN}}}",), ("{use: quantize}",)),
    "plain": ((PRUNE, f"{{use: train, epochs: {EPOCHS}, {TRAIN}}}"), ("{use: quantize}",)),
    "distilled": (
        (PRUNE, f"{{use: distill, epochs: {EPOCHS}, distill: {{{TAUGHT}}}, {TRAIN}}}"),
        ("{use: quantize}",),
    ),
    "distilled-qat": (
        (PRUNE, f"{{use: distill, epochs: {EPOCHS - QAT_EPOCHS}, distill: {{{TAUGHT}}}, {TRAIN}}}"),
        ("{use: quantize}", f"{{use: qat, epochs: {QAT_EPOCHS}, lr: 0.0003, distill: {{{TAUGHT}}}, {SETTINGS}}}"),
    ),
}
"""Name → the passes on the module, the passes on the graph."""
YARDSTICK, OURS, USUAL = "float, float ONNX", "distilled-qat, int8 onnx", "plain, int8 onnx"
COMPARED = (
    ("Fine-tuning brings the original", "float, float ONNX", "source, float ONNX"),
    ("Pruned, distilled, trained for int8, against the original as it came", OURS, "source, float ONNX"),
    ("Pruned, distilled, trained for int8, against the original fine-tuned as long", OURS, YARDSTICK),
    ("Pruned, plainly fine-tuned, post-training int8, against the original as it came", USUAL, "source, float ONNX"),
    ("Pruned, plainly fine-tuned, post-training int8, against the original fine-tuned as long", USUAL, YARDSTICK),
    ("Distillation brings", "distilled, int8 onnx", USUAL),
    ("Quantization-aware training brings", OURS, "distilled, int8 onnx"),
)
ROUNDS = 100
"""Of the interleaved latency: the median of so many turns of each file."""
LARGEST_DIFFERENCE = 1e-4
"""Between the module's outputs and the ONNX file's, whose float sums are in another order."""


def source() -> Path:
    return place.data() / "visual_wake_words"


def write_inputs(folder: Path) -> float:
    """Module, weights and images for all recipes; gives the largest difference between module and ONNX file."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.mobilenet_v1 import from_onnx

    path = source() / "mobilenet_v1_025.onnx"
    if not path.is_file():
        raise place.CannotRunError(f"no trained model at {path}")
    folder.mkdir(parents=True, exist_ok=True)
    module = from_onnx(path)
    images, labels = visual_wake_words(source(), True)
    test, truth = visual_wake_words(source(), False)
    with torch.no_grad():
        ours = module(torch.from_numpy(test)).numpy()
    found = float(np.abs(ours - scoring.outputs(scoring.onnx_runner(path), test)).max())
    if found > LARGEST_DIFFERENCE:
        raise RuntimeError(f"the module's outputs differ from the ONNX file's by {found:.3g}")
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "weights.safetensors")
    shutil.copy(Path(__file__).with_name("mobilenet_v1.py"), folder / "mobilenet_v1.py")
    np.savez(folder / "training.npz", x=images, labels=labels)
    np.savez(folder / "calibration.npz", x=images)
    np.savez(folder / "evaluation.npz", x=test, labels=truth)
    return found


def recipe(folder: Path, name: str, passes: tuple[str, ...], targets: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        "edgeopt: 1\n"
        "model: {factory: 'mobilenet_v1:build', weights: weights.safetensors, inputs: {x: [1, 3, 96, 96]}}\n"
        "data:\n  training: {arrays: training.npz}\n  calibration: {arrays: calibration.npz}\n"
        "  evaluation: {arrays: evaluation.npz}\n"
        f"passes: [{', '.join(passes)}]\ntargets: {targets}\n"
    )
    return path


def make(folder: Path, name: str) -> None:
    """One arm's files, float and int8. Its training is done once: the second conversion finds it by its key."""
    module, graph = ARMS[name]
    out = folder / "artifacts" / name
    floating = convert(recipe(folder, f"{name}-float", module, "{onnx: {}}"), out, fresh=False)
    kept = folder / "float" / f"{name}.onnx"
    kept.parent.mkdir(exist_ok=True)
    shutil.copy(floating.path("onnx"), kept)
    convert(recipe(folder, name, (*module, *graph), "{onnx: {}, tflite: {}}"), out, fresh=False)


def made(folder: Path, name: str) -> tuple[dict[str, Path], dict[str, Any]]:
    """The files of an arm, and what is to be told of its training."""
    out = folder / "artifacts" / name
    if not (out / "report.json").is_file():
        raise place.CannotRunError(f"{name}: nothing at {out}; run without --kept")
    report = json.loads((out / "report.json").read_text())
    files = {f"{name}, float ONNX": folder / "float" / f"{name}.onnx"}
    files |= {f"{name}, int8 {target}": out / report["targets"][target]["path"] for target in ("onnx", "tflite")}
    stages = report["training"]
    epochs = [epoch for stage in stages for epoch in stage["epochs"]]
    for line in report["quantization"]["kept"]:
        epochs += line.get("details", {}).get("epochs", [])
    macs = f"{stages[0]['before']['macs'] / 1e6:.2f} → {stages[-1]['after']['macs'] / 1e6:.2f} M" if stages else ""
    return files, {"epochs": epochs, "macs": macs}


def measure(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Accuracy on the scored images, which of them are right, size, and latency of every file."""
    test, labels = visual_wake_words(source(), False)
    runners: dict[str, scoring.Runner] = {
        name: scoring.onnx_runner(path) if path.suffix == ".onnx" else scoring.TFLiteRunner(path)
        for name, path in files.items()
    }
    results: dict[str, dict[str, Any]] = {}
    for name, run in runners.items():
        right = scoring.outputs(run, test).argmax(1) == labels
        results[name] = {"right": right.tolist(), "bytes": files[name].stat().st_size}
    image = test[:1]
    spent = scoring.interleaved_ms({n: (lambda r=r: r(image)) for n, r in runners.items()}, rounds=ROUNDS)
    for name, ms in spent.items():
        results[name]["latency_ms"] = float(np.median(ms))
    return results


def described(results: dict[str, dict[str, Any]], told: dict[str, dict[str, Any]], difference: float) -> str:
    base = results[YARDSTICK]
    rows = []
    for name, one in results.items():
        low, high = scoring.share_interval(one["right"])
        drop, least, most = scoring.paired_points(one["right"], base["right"])
        rows.append(
            [
                name,
                f"{np.mean(one['right']):.1%} ({low:.1%} to {high:.1%})",
                "" if name == YARDSTICK else f"{drop:+.1f} ({least:+.1f} to {most:+.1f})",
                f"{one['bytes'] / 1e3:.0f}",
                f"{one['bytes'] / base['bytes']:.2f}",
                f"{one['latency_ms']:.3f}",
                f"{one['latency_ms'] / base['latency_ms']:.2f}",
            ]
        )
    arms = []
    for name, one in told.items():
        epochs = one["epochs"]
        losses = [epoch["loss"] for epoch in epochs]
        arms.append(
            [
                name,
                one["macs"],
                str(len(epochs)),
                f"{sum(epoch['seconds'] for epoch in epochs):.0f}",
                f"`{curve(losses)}`" if losses else "",
                f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "",
            ]
        )
    lines = [
        tables.conditions("python -m benchmarks.train_vww", ("onnxruntime", "ai-edge-litert", "torch")),
        f"{len(base['right'])} scored images, 200 others to train on and to calibrate. The PyTorch module's outputs "
        f"differ from the ONNX file's by at most {difference:.1g}. Intervals are of 95 %, points paired with "
        f"“{YARDSTICK}” image by image.",
        tables.table(["file", "top-1", "points", "kB", "× float", "ms", "× float"], rows),
        *verdicts(results),
        tables.table(["arm", "MACs", "epochs", "s", "loss by epoch", "first → last"], arms),
    ]
    return "\n\n".join(lines)


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    """What these images can tell apart, and what not."""
    lines = []
    for what, better, worse in COMPARED:
        if better in results and worse in results:
            points, low, high = scoring.paired_points(results[better]["right"], results[worse]["right"])
            word = "cannot be told from nothing" if low <= 0 <= high else "is more than chance"
            lines.append(
                f"{what}: {points:+.1f} points ({low:+.1f} to {high:+.1f}; {better} against {worse}), which {word}."
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--kept", action="store_true", help="measure what an earlier run made, and make nothing")
    arguments = parser.parse_args()
    folder = place.work() / "train_vww"
    files: dict[str, Path] = {}
    told: dict[str, dict[str, Any]] = {}
    try:
        difference = write_inputs(folder)
        for name in ARMS:
            if not arguments.kept:
                make(folder, name)
            found, told[name] = made(folder, name)
            files |= found
    except place.CannotRunError as error:
        print(error, file=sys.stderr)
        sys.exit(place.SKIPPED)
    results = measure(files)
    record = {"results": results, "arms": told, "difference": difference}
    tables.publish("train_vww", described(results, told, difference), record, write=arguments.write)


if __name__ == "__main__":
    main()
