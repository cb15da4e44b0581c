"""A real conversion of each model, and further runs made of it: another table, another file, other data."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks import data, place
from benchmarks.convert import convert
from benchmarks.scoring import onnx_runner, outputs
from edgeopt import digest
from edgeopt.data import arrays
from edgeopt.gate.run_folder import RunFolder, read_run
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.pipeline import jobs
from edgeopt.pipeline.request import REQUEST, as_text
from edgeopt.pipeline.store import HOME
from edgeopt.types import Metadata


@dataclass(frozen=True)
class Base:
    """One model: its finished run, its source file, and images that no run has seen.

    Args:
        unseen: (n, C, H, W) float32, ready for the model.
        right: what the source answers on them, (n, ...), all outputs `joined`.
        classifier: the largest output is the answer; else only SQNR is told.
    """

    name: str
    out: Path
    source: Path
    input_name: str
    unseen: np.ndarray
    right: np.ndarray
    classifier: bool

    def read(self) -> RunFolder:
        return read_run(self.out)


SAMPLES = {
    "quickstart": (300, 300), "vww": (100, 100), "resnet20": (200, 400), "mobilenet_v1": (100, 100),
    "ultraface": (32, 32), "fastestdet": (32, 32),
}  # fmt: skip
"""The gate's images, and those that no run sees."""


def prepare(name: str) -> Base:
    """Convert a model once (found again later). Of the evaluation images, every second is the gate's."""
    folder = place.work() / "faults" / name
    folder.mkdir(parents=True, exist_ok=True)
    source, input_name, calibration, calibration_labels, images, labels = (
        _quickstart() if name == "quickstart" else _trained(name)
    )
    gated, unseen = SAMPLES[name]
    if len(images) < gated + unseen:
        raise place.CannotRunError(f"{name}: {len(images)} evaluation images, {gated + unseen} are needed")
    # Sorted by class, some of them: both parts are taken from everywhere.
    order = np.linspace(0, len(images) - 1, gated + unseen).astype(int)
    first = np.zeros(len(order), bool)
    first[np.linspace(0, len(order), gated, endpoint=False).astype(int)] = True
    seen, rest = order[first], order[~first]
    files = {"calibration": folder / "calibration.npz", "evaluation": folder / "evaluation.npz"}
    out = folder / "base"
    if not (out / "report.json").is_file():
        known = {} if calibration_labels is None else {"labels": calibration_labels}
        np.savez(files["calibration"], **{input_name: calibration}, **known)
        np.savez(
            files["evaluation"], **{input_name: images[seen]}, **({} if labels is None else {"labels": labels[seen]})
        )
        shape = ",".join(str(size) for size in calibration.shape[1:])
        options = ["--target", "onnx,tflite", "--effort", "fast", "--input", f"{input_name}=1,{shape}"]
        convert(source, out, *options, *(f"--{key}={path}" for key, path in files.items()))
    right = outputs(onnx_runner(source), images[rest])
    return Base(name, out, source, input_name, images[rest], right, labels is not None)


def _trained(name: str) -> tuple:
    model = data.trained_models()[name]
    images, labels = model.evaluation()
    known = labels if model.labelled and not model.detector else None
    return model.onnx, model.input_name, model.calibration(), None, images, known


def _quickstart() -> tuple:
    """The quickstart's network as ONNX: judged hundreds of times, its source is to load without PyTorch."""
    folder = place.REPOSITORY / "recipes" / "quickstart"
    source = place.work() / "faults" / "quickstart" / "quickstart.onnx"
    if not source.is_file():
        run = convert(folder, place.work() / "faults" / "quickstart" / "from_torch", "--target", "onnx")
        key = next(step["key"] for step in run.report["steps"] if step["name"] == "import")
        shutil.copy(run.out / HOME / "steps" / f"import-{key}" / jobs.GRAPH, source)
    with np.load(folder / "calibration.npz") as c, np.load(folder / "evaluation.npz") as e:
        return source, "image", c["image"], c["labels"], e["image"], e["labels"]


def assemble(
    base: Base,
    out: Path,
    target: str,
    *,
    recorded: QuantizedGraph | None = None,
    written: QuantizedGraph | None = None,
    imported: ir.Model | None = None,
    data_files: dict[str, Path] | None = None,
    passes: tuple | None = None,
) -> None:
    """A run folder as `convert` would have left it, with one target.

    Args:
        recorded: graph and table that the run says it made; None: the base's.
        written: what the file is written from; None: `recorded`.
        imported: the float graph as imported; None: the base's.
        data_files: `calibration` or `evaluation` → another npz.
        passes: of the recipe, where the run was asked for something else.
    """
    shutil.rmtree(out, ignore_errors=True)
    run = base.read()
    report = json.loads((base.out / "report.json").read_text())
    manifest = json.loads((base.out / "manifest.json").read_text())
    steps, old_steps = out / HOME / "steps", base.out / HOME / "steps"
    for step in report["steps"]:
        if step["name"] in ("import", "passes", target):
            shutil.copytree(old_steps / f"{step['name']}-{step['key']}", steps / f"{step['name']}-{step['key']}")
    for kept in (base.out / HOME).glob("yardstick-*.json"):
        shutil.copy(kept, out / HOME)
    keys = {step["name"]: step["key"] for step in report["steps"]}
    recorded = recorded or run.graph
    if imported is not None:
        ir.save(imported, steps / f"import-{keys['import']}" / jobs.GRAPH)
    ir.save(recorded.model, steps / f"passes-{keys['passes']}" / jobs.GRAPH)
    if recorded.quantization is not None:
        recorded.quantization.save(steps / f"passes-{keys['passes']}" / jobs.TABLE)
    folder = out / target
    folder.mkdir()
    kind = run.recipe.requested()[target]
    told = Metadata(preprocess=run.recipe.preprocess, labels=run.recipe.class_names())
    artifact = kind.lower(written or recorded, folder, told)
    result_file = steps / f"{target}-{keys[target]}" / jobs.RESULT
    result = json.loads(result_file.read_text())
    result["artifact"] = json.loads(artifact.model_dump_json(by_alias=True))
    result_file.write_text(json.dumps(result))
    record = report["targets"][target]
    file = folder / artifact.path
    record |= {"path": f"{target}/{artifact.path}", "digest": digest.of_file(file), "size_bytes": file.stat().st_size}
    record["latency_ms"] = None  # not measured: the verdict is not to hang on this machine
    report["targets"] = {target: record}
    manifest["artifacts"] = {record["path"]: record["digest"]}
    recipe = run.recipe
    for which, path in (data_files or {}).items():
        source = getattr(recipe.data, which).model_copy(update={"arrays": path})
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={which: source})})
        manifest["data_digests"][which] = arrays.digest(path)
    if passes is not None:
        recipe = recipe.model_copy(update={"passes": passes})
    (out / REQUEST).write_text(as_text(recipe, run.root, out))
    (out / "report.json").write_text(json.dumps(report))
    (out / "manifest.json").write_text(json.dumps(manifest))
