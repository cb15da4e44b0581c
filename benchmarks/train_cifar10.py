"""ResNet-20 on CIFAR-10: half of its multiply–accumulates pruned, distilled, trained for int8, and measured.

Five commands, of which `train` and `qat` want a GPU (a CPU does, slowly) and need torch, numpy and Pillow alone:

    python -m benchmarks.train_cifar10 prepare  FOLDER    # here: prunes, writes FOLDER/start.pt and arms.json
    python -m benchmarks.train_cifar10 train    FOLDER    # GPU: FOLDER/trained.pt, train.json
    python -m benchmarks.train_cifar10 quantize FOLDER    # here: post-training int8 of every arm, FOLDER/program-*.npz
    python -m benchmarks.train_cifar10 qat      FOLDER    # GPU: FOLDER/qat.pt, qat.json
    python -m benchmarks.train_cifar10 measure  FOLDER    # here: accuracy, size, latency: FOLDER/results.json, a table

Where no GPU is to be had, `more` goes on from a trained.pt on a CPU, with as many images and epochs as its time
allows, arm after arm, each kept as soon as it is done; it stands between `quantize --only distilled` and `quantize`:

    python -m benchmarks.train_cifar10 more FOLDER --epochs 2 --only distilled-qat

On a machine lent for minutes: copy `edgeopt/`, `benchmarks/` and FOLDER there, with start.pt, arms.json and
train_50000_jpg.zip in it (for `qat` arms.json, trained.pt, program-*.npz and the images), run from the folder that
holds `edgeopt/` and `benchmarks/`, and carry back trained.pt and train.json (then qat.pt and qat.json): about 10 MB.
`--out` names another folder for what is written, `--epochs` the total that every arm gets, `--limit` uses only so many
images. The arms of one stage run side by side: nets as small as this leave a GPU idle between kernels. With 40 epochs
on one recent GPU `train` is expected to take about five minutes, and `qat` one.

Every arm is trained for the same total of epochs on the same images. `float` is the yardstick: the original, fine-tuned
as long as the others, for fine-tuning on these JPEG images alone lifts it. `source` is the original as it came.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QAT_SHARE = 0.2
"""Of the total of epochs: what an arm that is trained for int8 keeps for that."""
SEED = 0


def arms(epochs: int) -> dict[str, dict[str, Any]]:
    """Name → stage, start (a state in start.pt), teacher (a state, or an arm of an earlier stage), settings."""
    qat = max(1, round(epochs * QAT_SHARE))
    plain = {
        "epochs": epochs, "batch": 512, "lr": 0.1, "optimizer": "sgd", "weight_decay": 5e-4, "warmup_epochs": 1.0,
        "augment": {"flip": True, "shift": 4}, "precision": "float32",
    }  # fmt: skip
    taught = {**plain, "distill": {"temperature": 4.0, "mix": 0.8}}
    alone = {**plain, "distill": {"temperature": 4.0, "mix": 1.0}, "lr": 0.2}
    return {
        "float": {"stage": 1, "start": "source", "settings": plain},
        "plain": {"stage": 1, "start": "pruned", "settings": plain},
        "torch-pruning": {"stage": 1, "start": "torch-pruning", "settings": plain},
        "from-source": {"stage": 1, "start": "pruned", "teacher": "source", "settings": taught},
        "2:4": {"stage": 1, "start": "sparse", "settings": plain},
        "distilled": {
            "stage": 2, "start": "pruned", "teacher": "float",
            "settings": {**taught, "epochs": max(1, epochs - qat)},
        },
        "half": {"stage": 2, "start": "half", "teacher": "float", "settings": {**taught, "lr": 0.2}},
        "half-unlabelled": {"stage": 2, "start": "half", "teacher": "float", "settings": alone},
        "half-alone": {"stage": 2, "start": "half", "settings": {**plain, "lr": 0.2}},
    }  # fmt: skip


def qat_arms(epochs: int) -> dict[str, dict[str, Any]]:
    """Name → the arm whose program is trained, teacher, settings."""
    settings = {
        "epochs": max(1, round(epochs * QAT_SHARE)), "batch": 256, "lr": 3e-4, "weight_decay": 0.0,
        "augment": {"flip": True, "shift": 4}, "precision": "float32",
    }  # fmt: skip
    return {
        "distilled-qat": {
            "start": "distilled", "teacher": "float",
            "settings": {**settings, "distill": {"temperature": 4.0, "mix": 0.8}},
        },
        "distilled-qat-plain": {"start": "distilled", "settings": settings},
    }  # fmt: skip


def more_arms(epochs: int, student_epochs: int) -> dict[str, dict[str, Any]]:
    """What a CPU can add to trained arms: name → start, teacher, settings; in the order of what matters most.

    ``program``: the arm whose program is trained. ``longer`` arms get the epochs, rate and images of quantization-aware
    training without it: what the others are compared with. Students begin with random weights.
    """
    gentle = {
        "epochs": epochs, "batch": 128, "lr": 2e-4, "weight_decay": 0.0,
        "augment": {"flip": True, "shift": 4}, "precision": "float32",
    }  # fmt: skip
    taught = {"distill": {"temperature": 4.0, "mix": 0.8}}
    alone = {"distill": {"temperature": 4.0, "mix": 1.0}}
    student = {
        **gentle, "epochs": student_epochs, "batch": 64, "lr": 0.05, "optimizer": "sgd", "weight_decay": 5e-4,
        "warmup_epochs": 0.5,
    }  # fmt: skip
    return {
        "distilled-qat": {"program": "distilled", "teacher": "float", "settings": {**gentle, **taught}},
        "float-longer": {"start": "float", "settings": gentle},
        "half": {"start": "half", "teacher": "float", "settings": {**student, **taught}},
        "half-alone": {"start": "half", "settings": student},
        "half-unlabelled": {"start": "half", "teacher": "float", "settings": {**student, **alone}},
        "2:4": {"start": "float", "sparse": True, "settings": gentle},
        "distilled-qat-plain": {"program": "distilled", "settings": gentle},
        "plain-qat": {"program": "plain", "settings": gentle},
        "distilled-longer": {"start": "distilled", "teacher": "float", "settings": {**gentle, **taught}},
    }


# --- on a GPU, with torch, numpy and Pillow


def read_images(path: Path, limit: int | None = None, part: str = "") -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 32, 32] and class indices; ``part``: what a name starts with."""
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg") and name.startswith(part))
        if limit is not None:
            names = [names[index * len(names) // limit] for index in range(min(limit, len(names)))]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names])
    labels = np.array([CLASSES.index(name.split("/")[-2]) for name in names], np.int64)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels


def decoded(folder: Path, limit: int | None) -> Path:
    """The training images, decoded once: an npz of uint8."""
    path = folder / f"train_{limit or 'all'}.npz"
    if not path.is_file():
        images, labels = read_images(_zip(folder, "train_50000_jpg.zip"), limit)
        np.savez(path, images=images, labels=labels)
    return path


def _zip(folder: Path, name: str) -> Path:
    """Beside the other files, or in the benchmarks' data."""
    if (folder / name).is_file():
        return folder / name
    from benchmarks import place

    return place.data() / "cifar10" / name


def _settings(values: dict[str, Any]) -> Any:
    """Settings as attributes; empty mappings stay mappings."""
    return json.loads(json.dumps(values), object_hook=lambda one: SimpleNamespace(**one) if one else one)


def _fit(job: dict[str, Any]) -> dict[str, Any]:
    """One arm, in a process of its own: leaves its state in ``job['out']`` and gives its curve."""
    import torch

    from benchmarks.resnet20 import like
    from edgeopt import digest
    from edgeopt.training import engine
    from edgeopt.training.data import ArraySet
    from edgeopt.training.graph_module import GraphModule
    from edgeopt.training.objective import Objective
    from edgeopt.training.program import Program
    from edgeopt.training.trainee import ModuleTrainee

    began = time.monotonic()
    settings = _settings(job["settings"])
    with np.load(job["images"]) as stored:
        images, labels = stored["images"], stored["labels"]
    scale, offset = [1 / 255 / s for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)]
    data = ArraySet({"x": images}, labels, job["images"], scale=scale, offset=offset)
    if job.get("program"):
        trainee: Any = GraphModule(Program.load(Path(job["program"])), learn_until=0.7)
        output = trainee.outputs[0]
    else:
        state, output = torch.load(job["start"], weights_only=True), "output"
        masks = {name: state.pop(f"masks/{name}") for name in [k[6:] for k in state if k.startswith("masks/")]}
        trainee = ModuleTrainee(like(state), ["x"], [output], masks=masks)
    teacher = None
    if job.get("teacher"):
        taught = {k: v for k, v in torch.load(job["teacher"], weights_only=True).items() if not k.startswith("masks/")}
        teacher = ModuleTrainee(like(taught), ["x"], [output])
        for parameter in teacher.module.parameters():
            parameter.requires_grad_(False)
    objective = Objective(settings, {output: (1, 10)}, np.bincount(labels, minlength=10), teacher)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        for model in (trainee, teacher):
            if isinstance(model, ModuleTrainee):
                model.module.to(memory_format=torch.channels_last)  # a third faster, with so few channels
    identity = digest.of_json([job["settings"], *(job.get(of) for of in ("start", "program", "teacher", "images"))])
    history = engine.fit(
        trainee, objective, data, None, settings,
        folder=Path(job["running"]) if "running" in job else None,
        seed=SEED, identity=identity, text=job["name"], device=device,
    )  # fmt: skip
    state = {name: value.detach().cpu().clone() for name, value in trainee.state().items()}
    state |= {f"masks/{name}": mask.cpu() for name, mask in getattr(trainee, "masks", {}).items()}
    torch.save(state, job["out"])
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    found = {"epochs": history, "seconds": round(time.monotonic() - began, 1), "device": where}
    found["images"] = len(labels)
    print(f"{job['name']}: {found['seconds']} s, top-1 {history[-1]['top1']:.4f} on training images", flush=True)
    return found


def _side_by_side(jobs: list[dict[str, Any]], at_once: int) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(min(at_once, len(jobs))) as pool:
        return dict(zip([job["name"] for job in jobs], pool.map(_fit, jobs, chunksize=1), strict=True))


def train(folder: Path, out: Path, limit: int | None, at_once: int) -> None:
    import torch

    plan = json.loads((folder / "arms.json").read_text())["train"]
    images = str(decoded(folder, limit))
    curves: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        parts = Path(scratch)
        for name, state in torch.load(folder / "start.pt", weights_only=True).items():
            torch.save(state, parts / f"start-{name}.pt")
        for stage in sorted({arm["stage"] for arm in plan.values()}):
            jobs = []
            for name, arm in plan.items():
                if arm["stage"] == stage:
                    teacher = arm.get("teacher")
                    known = f"{teacher}.pt" if teacher in plan else f"start-{teacher}.pt"
                    jobs.append(
                        {
                            "name": name,
                            "settings": arm["settings"],
                            "images": images,
                            "start": str(parts / f"start-{arm['start']}.pt"),
                            "teacher": None if teacher is None else str(parts / known),
                            "out": str(parts / f"{name}.pt"),
                        }
                    )
            curves |= _side_by_side(jobs, at_once)
        states = {name: torch.load(parts / f"{name}.pt", weights_only=True) for name in plan}
    out.mkdir(parents=True, exist_ok=True)
    torch.save(states, out / "trained.pt")
    (out / "train.json").write_text(json.dumps(curves, indent=1))


def qat(folder: Path, out: Path, limit: int | None, at_once: int) -> None:
    import torch

    plan = json.loads((folder / "arms.json").read_text())["qat"]
    with tempfile.TemporaryDirectory() as scratch:
        parts = Path(scratch)
        for name, state in torch.load(folder / "trained.pt", weights_only=True).items():
            torch.save(state, parts / f"{name}.pt")
        jobs = [
            {
                "name": name,
                "settings": arm["settings"],
                "images": str(decoded(folder, limit)),
                "program": str(folder / f"program-{arm['start']}.npz"),
                "teacher": str(parts / f"{arm['teacher']}.pt") if arm.get("teacher") else None,
                "out": str(parts / f"{name}.pt"),
            }
            for name, arm in plan.items()
        ]
        curves = _side_by_side(jobs, at_once)
        states = {name: torch.load(parts / f"{name}.pt", weights_only=True) for name in plan}
    out.mkdir(parents=True, exist_ok=True)
    torch.save(states, out / "qat.pt")
    (out / "qat.json").write_text(json.dumps(curves, indent=1))


# --- here, with edgeopt


def more(folder: Path, limit: int | None, arms: dict[str, dict[str, Any]]) -> None:
    """One arm after the other, in this process; an arm that is done is not done again, one that was begun goes on."""
    import torch

    from benchmarks.cifar10_artifacts import sparse
    from edgeopt.training.qat import Qat
    from edgeopt.training.train import Train

    parts = folder / "more"
    parts.mkdir(exist_ok=True)
    # Where both have a name, the start: a student that was trained before must not begin where that one ended.
    known = torch.load(folder / "trained.pt", weights_only=True) | torch.load(folder / "start.pt", weights_only=True)
    for name, state in known.items():
        torch.save(state, parts / f"from-{name.replace(':', '-')}.pt")
    for name, arm in arms.items():
        kind: type[Train] | type[Qat] = Qat if "program" in arm else Train
        arm["settings"] = json.loads(kind(**arm["settings"]).model_dump_json(exclude={"use"}))
        out = parts / f"{name.replace(':', '-')}.pt"
        curve = out.with_suffix(".json")
        if not curve.is_file():
            start = parts / f"from-{arm.get('start')}.pt"
            if arm.get("sparse"):
                torch.save(
                    sparse(known[arm["start"]], folder / "scratch" / "sparse-float"), start := parts / "sparse.pt"
                )
            job = {
                "name": name,
                "settings": arm["settings"],
                "images": str(decoded(folder, limit)),
                "start": str(start),
                "program": str(folder / f"program-{arm['program']}.npz") if "program" in arm else None,
                "teacher": str(parts / f"from-{arm['teacher']}.pt") if "teacher" in arm else None,
                "out": str(out),
                "running": str(parts / f"running-{out.stem}"),
            }
            Path(job["running"]).mkdir(exist_ok=True)
            curve.write_text(json.dumps(_fit(job)))
        stage, stored, curves = (
            ("qat", "qat.pt", "qat.json") if "program" in arm else ("train", "trained.pt", "train.json")
        )
        states = torch.load(folder / stored, weights_only=True) if (folder / stored).is_file() else {}
        torch.save(states | {name: torch.load(out, weights_only=True)}, folder / stored)
        told = json.loads((folder / curves).read_text()) if (folder / curves).is_file() else {}
        (folder / curves).write_text(json.dumps(told | {name: json.loads(curve.read_text())}, indent=1))
        plan = json.loads((folder / "arms.json").read_text())  # read late: another arm may have ended meanwhile
        plan[stage][name] = {**arm, "start": arm.get("program", arm.get("start"))}
        (folder / "arms.json").write_text(json.dumps(plan, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["prepare", "train", "quantize", "qat", "more", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="where train and qat write (default: FOLDER)")
    parser.add_argument("--epochs", type=int, default=40, help="total of every arm (prepare); what is added (more)")
    parser.add_argument("--student-epochs", type=int, default=5, help="of the half-width student (more)")
    parser.add_argument("--limit", type=int, help="training images (train, qat, more)")
    parser.add_argument("--table", default="train_cifar10", help="name of the README's table (measure)")
    parser.add_argument("--write", action="store_true", help="put the table into README.md (measure)")
    parser.add_argument("--only", default="", help="arms, with commas between (quantize, more, measure)")
    parser.add_argument("--at-once", type=int, default=5, help="arms side by side (train, qat)")
    arguments = parser.parse_args()
    folder, out = arguments.folder.resolve(), (arguments.out or arguments.folder).resolve()
    if arguments.do == "train":
        train(folder, out, arguments.limit, arguments.at_once)
    elif arguments.do == "qat":
        qat(folder, out, arguments.limit, arguments.at_once)
    elif arguments.do == "more":
        only = tuple(filter(None, arguments.only.split(",")))
        every = more_arms(arguments.epochs, arguments.student_epochs)
        more(folder, arguments.limit, {name: arm for name, arm in every.items() if not only or name in only})
    else:
        from benchmarks import cifar10_artifacts as artifacts
        from benchmarks import place

        only = tuple(filter(None, arguments.only.split(",")))
        try:
            if arguments.do == "prepare":
                artifacts.prepare(folder, arms(arguments.epochs), qat_arms(arguments.epochs))
            elif arguments.do == "quantize":
                artifacts.quantize(folder, only)
            else:
                artifacts.measure(folder, only, table=arguments.table, write=arguments.write)
        except place.CannotRunError as error:
            print(error, file=sys.stderr)
            sys.exit(place.SKIPPED)


if __name__ == "__main__":
    main()
