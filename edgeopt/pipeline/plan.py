"""The steps of a recipe and their keys: known before anything runs.

A key is the hash of all that a step's result depends on: this package's code, versions of libraries, the step's own
parameters, the keys of the steps that it reads, digests of model and data, the seed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgeopt
from edgeopt.digest import of_file, of_files, of_json
from edgeopt.errors import ModelError
from edgeopt.recipe.schema import DataSource, ModelSource, Recipe
from edgeopt.training.settings import Distillation

PACKAGES = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "ai-edge-litert", "pillow", "protobuf", "flatbuffers",
    "torch", "onnxscript", "nncf", "torch-pruning", "coremltools", "tensorrt",
)  # fmt: skip
"""Libraries whose versions may change a result."""
PARTS_THAT_ONLY_TELL = frozenset({"cli", "gate", "report"})
"""Parts of this package that no artifact depends on."""


@dataclass(frozen=True)
class Plan:
    """Keys of all steps, and the digests that they rest on."""

    model_digest: str
    data_digests: dict[str, str]
    recipe_digest: str
    code_digest: str
    versions: dict[str, str]
    training_keys: tuple[str, ...]
    """One per training pass, in order; each depends on the one before."""
    import_key: str
    passes_key: str
    target_keys: dict[str, str]


def make_plan(
    recipe: Recipe, *, root: Path, trust: bool, localize: bool, threads: int, data_digests: dict[str, str]
) -> Plan:
    """Compute all keys. Reads model and data files, runs nothing.

    Args:
        recipe: the request.
        root: folder of the recipe.
        trust, localize, threads: what else changes results.
        data_digests: ``training``, ``calibration`` and ``evaluation`` → digest, as far as the recipe has them.

    Raises:
        ModelError: a factory's module is not there.
    """
    found = versions()
    code = code_digest()
    model = model_digest(recipe.model, root)
    told = recipe.model_dump(
        mode="json",
        exclude={
            "model": {"onnx", "exported", "keras", "weights"},
            "data": True,
            "labels": True,
            "gate": True,
            "model_card": True,
        },
    )
    data = {
        name: [data_digests[name], told_source(source)]
        for name in data_digests
        if (source := getattr(recipe.data, name)) is not None
    }
    base = [code, found, model, threads, recipe.seed, data, told["preprocess"]]
    before, training_keys = of_json([*base[:5], data.get("training"), told["preprocess"], told["model"]]), []
    for step in recipe.training_passes():
        before = of_json(["train", before, step.model_dump(mode="json"), _teacher_digest(step, root)])
        training_keys.append(before)
    import_key = of_json(["import", base, told["model"], trust, recipe.parity.tolerance, localize, *training_keys[-1:]])
    steps = recipe.graph_passes()
    graph_passes = [[step.model_dump(mode="json"), _teacher_digest(step, root)] for step in steps]
    passes_key = of_json(["passes", import_key, graph_passes, recipe.effort])
    labels = list(recipe.class_names())
    shared = [passes_key, labels, recipe.parity.model_dump(mode="json"), localize]
    return Plan(
        model_digest=model,
        data_digests=data_digests,
        recipe_digest=of_json([told, data, labels]),
        code_digest=code,
        versions=found,
        training_keys=tuple(training_keys),
        import_key=import_key,
        passes_key=passes_key,
        target_keys={
            name: of_json(["target", name, target.model_dump(mode="json"), shared])
            for name, target in recipe.requested().items()
        },
    )


def _teacher_digest(step: object, root: Path) -> str:
    """Of the weights that a pass learns from, if it names any; its factory's code is the recipe's folder's."""
    distill = getattr(step, "distill", None)
    teacher = distill.teacher if isinstance(distill, Distillation) else None
    if teacher is None:
        return ""
    code = _factory_code(teacher.factory.partition(":")[0], root)
    weights = root / teacher.weights if teacher.weights is not None else None
    return of_json([code, of_file(weights) if weights is not None and weights.is_file() else ""])


def told_source(source: DataSource) -> dict[str, Any]:
    """What of a data source is not in its digest; without paths, so that things can be moved."""
    return source.model_dump(mode="json", include={"callable", "limit"})


def versions() -> dict[str, str]:
    """Python, the machine, and the libraries that are installed."""
    found = {"edgeopt": edgeopt.__version__, "python": platform.python_version(), "machine": _machine()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> str:
    """Architecture, and the instructions for int8 products: the ONNX target chooses the type of weights by them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}".strip()
    flags = {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()}
    return " ".join([platform.machine(), *sorted(flag for flag in flags if "vnni" in flag)])


def code_digest() -> str:
    """Digest of this package's source, as far as artifacts depend on it."""
    root = Path(edgeopt.__file__).parent
    files = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in PARTS_THAT_ONLY_TELL]
    return of_files(files, root)


def model_digest(model: ModelSource, root: Path) -> str:
    """Digest of the model's files: the file and its external data, or the factory's code and its weights."""
    if model.onnx is not None:
        return of_json([of_file(path) for path in (model.onnx, *_external_data(model.onnx))])
    if model.file is not None:
        return of_file(model.file)
    assert model.factory is not None
    weights = "" if model.weights is None else of_file(model.weights)
    code = _factory_code(model.factory.partition(":")[0], root)
    return of_json([model.factory, weights, code])


def _external_data(path: Path) -> list[Path]:
    """Files beside an ONNX file that hold its weights; empty for a file that is no ONNX (the import says so)."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"location") < 0:
                return []
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError:
        return []
    names = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    # Names that lead out of the folder are the import's to refuse; they are not even looked at here.
    root = path.parent.resolve()
    files = [(root / name).resolve() for name in sorted(names)]
    return [file for file in files if file.is_relative_to(root) and file.is_file()]


def _factory_code(module: str, root: Path) -> str:
    """Digest of the factory's module and of the Python files beside it, which it may import. Nothing is imported."""
    name = module.partition(".")[0]
    local = [root / f"{name}.py", root / name / "__init__.py"]
    found = next((path for path in local if path.is_file()), None)
    if found is None:
        spec = importlib.util.find_spec(name) if name not in sys.modules else sys.modules[name].__spec__
        if spec is None or spec.origin is None:
            raise ModelError(
                f"no module '{name}' for the factory",
                where=str(root),
                hint=f"Put {name}.py beside the recipe, or install the package that has it.",
            )
        return of_file(Path(spec.origin))
    folder = found.parent
    return of_files(folder.glob("*.py") if folder == root else folder.rglob("*.py"), root)
