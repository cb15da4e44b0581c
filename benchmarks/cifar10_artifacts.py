"""The parts of `train_cifar10` that need edgeopt and its runtimes: pruning before training, files and figures after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import place, scoring, tables
from benchmarks.data import cifar10

INPUT = (1, 3, 32, 32)
SEED = 0
YARDSTICKS = ("float-longer, float ONNX", "float, float ONNX")
"""The original, fine-tuned as long as what is judged; with `more`, for its epochs besides."""
OURS, UNTRAINED_FOR_INT8 = "distilled-qat, int8 onnx", "distilled, int8 onnx"
"""What is judged, and what is where `qat` was not run."""
MOST_LOST, MOST_TIME, MOST_SIZE = 1.0, 0.35, 0.17
"""Points of accuracy, and shares of the yardstick's latency and size."""
BRINGS = (
    ("Distillation brings", "distilled, int8 onnx", "plain, int8 onnx"),
    ("Quantization-aware training brings", "distilled-qat, int8 onnx", "distilled, int8 onnx"),
    ("Against Torch-Pruning's usual way and post-training INT8", OURS, "torch-pruning, int8 onnx"),
    ("A teacher brings quantization-aware training", OURS, "distilled-qat-plain, int8 onnx"),
    ("Quantization-aware training brings the plainly fine-tuned", "plain-qat, int8 onnx", "plain, int8 onnx"),
    ("A teacher brings the half-width student", "half, float ONNX", "half-alone, float ONNX"),
    ("Labels bring it besides", "half, float ONNX", "half-unlabelled, float ONNX"),
    ("2:4 sparsity brings", "2-4, float ONNX", "float-longer, float ONNX"),
)
ROUNDS = 100
"""Of the interleaved latency: the median of so many turns of each file."""


def prepare(folder: Path, arms: dict[str, Any], qat: dict[str, Any]) -> None:
    """Write start.pt (arm's start → state dict) and arms.json, every setting written out."""
    import torch

    from benchmarks.resnet20 import ResNet20
    from edgeopt.training.prune import Prune
    from edgeopt.training.qat import Qat
    from edgeopt.training.sparsify import Sparsify
    from edgeopt.training.train import Train

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scratch").mkdir(exist_ok=True)
    states, notes = {}, {}
    work = _open(folder / "scratch" / "source")
    states["source"] = _state(work.model)
    for name, step in (("pruned", Prune(macs=0.5)), ("sparse", Sparsify(pattern="2:4"))):
        work = _open(folder / "scratch" / name)
        record = step.run(work)
        states[name] = _state(work.model)
        notes[name] = json.loads(record.model_dump_json())
    states["torch-pruning"] = _usual_way()
    torch.manual_seed(SEED)
    half = ResNet20((8,) * 3 + (16,) * 3 + (32,) * 3, (8, 16, 32))
    states["half"] = {key: value.clone() for key, value in half.state_dict().items()}
    torch.save(states, folder / "start.pt")
    for one in arms.values():
        one["settings"] = json.loads(Train(**one["settings"]).model_dump_json(exclude={"use"}))
    for one in qat.values():
        one["settings"] = json.loads(Qat(**one["settings"]).model_dump_json(exclude={"use"}))
    text = {"train": arms, "qat": qat, "notes": notes}
    (folder / "arms.json").write_text(json.dumps(text, indent=1))
    for name, note in notes.items():
        print(name, note["before"], "→", note["after"])


def _weights() -> Path:
    path = place.data() / "cifar10" / "resnet20.pth"
    if not path.is_file():
        raise place.CannotRunError(f"no trained weights at {path}")
    return path


def sparse(state: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """A trained state with 2:4 masks, by magnitude; the masks are in it."""
    import torch

    from edgeopt.training.sparsify import Sparsify

    scratch.mkdir(parents=True, exist_ok=True)
    torch.save({key: value.contiguous() for key, value in state.items()}, scratch / "weights.pth")
    work = _open(scratch, scratch / "weights.pth")
    Sparsify(pattern="2:4").run(work)
    return _state(work.model)


def _open(scratch: Path, weights: Path | None = None) -> Any:
    from edgeopt.frontends.torch import module_request
    from edgeopt.training.work import open_work

    root = Path(__file__).resolve().parent
    request = module_request("resnet20:build", weights or _weights(), {"x": INPUT}, root=root)
    return open_work(request, None, folder=scratch, identity="", seed=SEED)


def _state(model: Any) -> dict[str, Any]:
    state = {key: value.detach().clone() for key, value in model.state().items()}
    return state | {f"masks/{name}": mask for name, mask in model.masks.items()}


def _usual_way() -> dict[str, Any]:
    """Torch-Pruning by itself: its pruner, group L2 norm, one ratio for all layers, half of the multiply–accumulates.

    The residual stream is left alone, as its shortcuts pad the channel axis, which the library does not see.
    """
    import torch
    import torch_pruning

    module = _open(place.work() / "unused").loaded.module
    example = torch.randn(INPUT)
    inner = {module_ for name, module_ in module.named_modules() if name.startswith("layer") and "conv1" in name}
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    ignored = [one for one in module.modules() if isinstance(one, kinds) and one not in inner]
    whole, _ = torch_pruning.utils.count_ops_and_params(module, example)
    pruner = torch_pruning.pruner.BasePruner(
        module, example, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.9, iterative_steps=180, ignored_layers=ignored,
    )  # fmt: skip
    while torch_pruning.utils.count_ops_and_params(module, example)[0] > whole / 2:
        pruner.step()
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def quantize(folder: Path, only: tuple[str, ...] = ()) -> None:
    """Convert every arm with defaults (int8), and write the programs that `qat` trains."""
    import onnx_ir as ir

    from benchmarks.convert import convert
    from edgeopt.graph.quantization import Quantization
    from edgeopt.targets.registry import all_constraints
    from edgeopt.training.program import read_program

    for name, recipe in _recipes(folder).items():
        if only and name not in only:
            continue
        convert(recipe, folder / "artifacts" / name, fresh=False)
    plan = json.loads((folder / "arms.json").read_text())["qat"]
    for start in {arm["start"] for arm in plan.values()}:
        (step,) = (folder / "artifacts" / start / ".edgeopt" / "steps").glob("passes-*")
        table = Quantization.load(step / "quantization.npz")
        program = read_program(ir.load(step / "graph.onnx"), table, all_constraints().equal_scales)
        program.save(folder / f"program-{start}.npz")


def _recipes(folder: Path) -> dict[str, Path]:
    """One folder per arm: a factory of its sizes, its weights, a recipe."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.resnet20 import sizes

    images, _ = cifar10(place.data() / "cifar10", True)
    test, labels = cifar10(place.data() / "cifar10", False)
    shared = folder / "recipes"
    shared.mkdir(exist_ok=True)
    np.savez(shared / "calibration.npz", x=images)
    np.savez(shared / "evaluation.npz", x=test, labels=labels)
    states = torch.load(folder / "trained.pt", weights_only=True)
    states["source"] = torch.load(folder / "start.pt", weights_only=True)["source"]
    code = (Path(__file__).resolve().parent / "resnet20.py").read_text()
    recipes = {}
    for name, kept in states.items():
        state = {key: value for key, value in kept.items() if not key.startswith("masks/")}
        home = shared / name.replace(":", "-")
        home.mkdir(exist_ok=True)
        inner, widths = sizes(state)
        (home / "resnet20.py").write_text(code)
        (home / "model.py").write_text(
            f"from resnet20 import ResNet20\n\n\ndef build():\n    return ResNet20({inner}, {widths}).eval()\n"
        )
        save_file({key: value.contiguous() for key, value in state.items()}, home / "weights.safetensors")
        (home / "recipe.yaml").write_text(
            "edgeopt: 1\nmodel: {factory: 'model:build', weights: weights.safetensors, inputs: {x: [1, 3, 32, 32]}}\n"
            "data:\n  calibration: {arrays: ../calibration.npz}\n  evaluation: {arrays: ../evaluation.npz}\n"
            "passes: [{use: quantize}]\ntargets: {onnx: {}, tflite: {}}\n"
        )
        recipes[name.replace(":", "-")] = home
    return recipes


def measure(folder: Path, only: tuple[str, ...] = (), *, table: str, write: bool) -> None:
    """Accuracy, size and latency of every file (of the arms in ``only``), into results.json and the README's table."""
    test, labels = cifar10(place.data() / "cifar10", False)
    files = _float_files(folder, only) | _quantized_files(folder, only)
    plan = json.loads((folder / "arms.json").read_text())
    curves: dict[str, Any] = {}
    for made in (folder / "train.json", folder / "qat.json"):  # a stage that was not run has no curves
        curves |= json.loads(made.read_text()) if made.is_file() else {}
    results: dict[str, Any] = {}
    runners = {
        # In a default session, as people open it: weights are safe there, or were written as uint8.
        name: scoring.onnx_runner(path, precise=False) if path.suffix == ".onnx" else scoring.TFLiteRunner(path)
        for name, path in files.items()
    }
    for name, run in runners.items():
        right = scoring.top1(scoring.outputs(run, test), labels) / 100
        results[name] = {"top1": right, "images": len(labels), "bytes": files[name].stat().st_size}
    image = test[:1]
    spent = scoring.interleaved_ms({n: (lambda r=r: r(image)) for n, r in runners.items()}, rounds=ROUNDS)
    for name, ms in spent.items():
        results[name]["latency_ms"] = float(np.median(ms))
    text = {"machine": tables.processor(), "results": results, "curves": curves, "notes": plan["notes"]}
    (folder / "results.json").write_text(json.dumps(text, indent=1))
    tables.publish(table, _markdown(results, curves, plan, only), text, write=write)


def _markdown(results: dict[str, Any], curves: dict[str, Any], plan: dict[str, Any], only: tuple[str, ...] = ()) -> str:
    from edgeopt.report.training import curve

    base = results[_yardstick(results)]
    rows = [
        [
            name,
            f"{one['top1']:.2%}",
            f"{(one['top1'] - base['top1']) * 100:+.2f}",
            f"{one['bytes'] / 1e3:.0f}",
            f"{one['bytes'] / base['bytes']:.2f}",
            f"{one['latency_ms']:.3f}",
            f"{one['latency_ms'] / base['latency_ms']:.2f}",
        ]
        for name, one in results.items()
    ]
    arms = [
        [
            name,
            str(len(one["epochs"])),
            str(one.get("images", 50000)),
            f"{one['seconds']:.0f}",
            one["device"],
            f"`{curve([epoch['loss'] for epoch in one['epochs']])}`",
            f"{one['epochs'][0]['loss']:.3f} → {one['epochs'][-1]['loss']:.3f}",
        ]
        for name, one in curves.items()
        if not only or name.replace(":", "-") in only
    ]
    command = "python -m benchmarks.train_cifar10 measure FOLDER"
    pruned = plan["notes"]["pruned"]
    share = pruned["after"]["macs"] / pruned["before"]["macs"]
    lines = [
        tables.conditions(
            f"{command} --only {','.join(only)}" if only else command, ("onnxruntime", "ai-edge-litert", "torch")
        ),
        f"{base['images']} test images; pruned: {share:.1%} of the multiply–accumulates left.",
        tables.table(["file", "top-1", "points", "kB", "× float", "ms", "× float"], rows),
        *_verdicts(results),
        tables.table(["arm", "epochs", "images", "s, arms side by side", "on", "loss by epoch", "first → last"], arms),
    ]
    return "\n\n".join(lines)


def _yardstick(results: dict[str, Any]) -> str:
    return next(name for name in YARDSTICKS if name in results)


def _verdicts(results: dict[str, Any]) -> list[str]:
    """The goals, from figures alone."""
    name = OURS if OURS in results else UNTRAINED_FOR_INT8
    yardstick = _yardstick(results)
    lines = []
    if name in results:
        base, ours = results[yardstick], results[name]
        lost = (base["top1"] - ours["top1"]) * 100
        size, time = ours["bytes"] / base["bytes"], ours["latency_ms"] / base["latency_ms"]
        checks = [
            (lost <= MOST_LOST, f"{name}: {lost:.2f} points under {yardstick}, at most {MOST_LOST:.1f} were wanted"),
            (time <= MOST_TIME, f"{time:.2f} × its latency, at most {MOST_TIME:.2f}"),
            (size <= MOST_SIZE, f"{size:.2f} × its size, at most {MOST_SIZE:.2f}"),
        ]
        lines += [f"**{'Met' if met else 'Not met'}**: {text}." for met, text in checks]
    for what, better, worse in BRINGS:
        if better in results and worse in results:
            points = (results[better]["top1"] - results[worse]["top1"]) * 100
            lines.append(f"{what}: {points:+.2f} points ({better} against {worse}).")
    return lines


def _float_files(folder: Path, only: tuple[str, ...]) -> dict[str, Path]:
    """Float ONNX of every arm, written from the canonical graph."""
    from edgeopt.frontends.torch import load_torch
    from edgeopt.graph.quantization import QuantizedGraph
    from edgeopt.passes.base import Context
    from edgeopt.passes.canonical import canonicalise
    from edgeopt.targets.onnx import Onnx

    found = {}
    for name, home in sorted(_recipes(folder).items()):
        if only and name not in only:
            continue
        out = folder / "float" / name
        out.mkdir(parents=True, exist_ok=True)
        model = load_torch("model:build", home / "weights.safetensors", {"x": INPUT}, root=home).model
        artifact = Onnx().lower(canonicalise(QuantizedGraph(model), Context(scratch=out)), out)
        found[f"{name}, float ONNX"] = out / artifact.path
    return found


def _quantized_files(folder: Path, only: tuple[str, ...]) -> dict[str, Path]:
    """Post-training int8 of every arm, and what `qat` made: both targets."""
    import onnx_ir as ir
    import torch

    from edgeopt.graph.quantization import Quantization, QuantizedGraph
    from edgeopt.targets.registry import TARGETS
    from edgeopt.training.graph_module import GraphModule
    from edgeopt.training.program import Program
    from edgeopt.training.qat import with_trained

    found = {}
    for home in sorted((folder / "artifacts").iterdir()):
        if home.is_dir() and (not only or home.name in only):
            report = json.loads((home / "report.json").read_text())
            for target, record in report["targets"].items():
                found[f"{home.name}, int8 {target}"] = home / record["path"]
    if not (folder / "qat.pt").is_file():
        return found
    plan = json.loads((folder / "arms.json").read_text())["qat"]
    for name, state in torch.load(folder / "qat.pt", weights_only=True).items():
        if only and name not in only:
            continue
        start = plan[name]["start"]
        module = GraphModule(Program.load(folder / f"program-{start}.npz"))
        module.load(state)
        (step,) = (folder / "artifacts" / start / ".edgeopt" / "steps").glob("passes-*")
        graph = QuantizedGraph(ir.load(step / "graph.onnx"), Quantization.load(step / "quantization.npz"))
        graph = with_trained(graph, module.trained())
        for target in ("onnx", "tflite"):
            out = folder / "qat" / name / target
            out.mkdir(parents=True, exist_ok=True)
            artifact = TARGETS[target]().lower(graph, out)
            found[f"{name}, int8 {target}"] = out / artifact.path
    return found
