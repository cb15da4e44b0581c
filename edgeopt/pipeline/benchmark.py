"""What ``edgeopt bench`` works on: from paths and recipes to subjects of measuring, and to the graph of a prediction.

Runs in a worker: foreign files can crash their runtime, and a PyTorch source runs the user's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from edgeopt import events
from edgeopt.bench.latency import Measurement, Plan, Subject, measure_here, runs_here, subject_of, telling
from edgeopt.bench.predicted import result_of
from edgeopt.bench.results import BenchResult, OperatorTime, Profile
from edgeopt.devices import catalogue
from edgeopt.devices.fit import Change, MeasuredLatency, Probe, fit, read_results
from edgeopt.devices.predict import predict
from edgeopt.devices.profile import ComputeUnit, DeviceProfile, Precision
from edgeopt.errors import EdgeoptError, ModelError, UsageError
from edgeopt.frontends.pt2_archive import refuse_what_runs_code
from edgeopt.graph.integer_movement import move_floats
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.graph.read_qdq import read_qdq
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise
from edgeopt.pipeline.jobs import load_source
from edgeopt.recipe.load import load_recipe
from edgeopt.recipe.schema import MODEL_FILES, ModelSource

Delegate = Literal["on", "off", "both"]
RECIPES = (".yaml", ".yml")
KINDS = "Give .onnx, .tflite, .pt2, .keras, a TensorRT bundle (a folder with model.onnx), or a recipe."
WITHOUT = " (without XNNPACK)"
INT8_SHARE = 0.5
"""A file is called int8 where at least half of its arithmetic operators are."""


def subjects_of(
    models: tuple[Path, ...], *, delegate: Delegate, runtime: str | None, trust: bool, shapes: Mapping[str, Any]
) -> tuple[Subject, ...]:
    """What to measure, each once.

    Args:
        models: files, bundles and recipes (whose source model is meant).
        delegate: TFLite with XNNPACK, without, or both beside each other.
        runtime: ``tensorrt`` for ONNX files that TensorRT is to run; None: what the file's ending says.
        trust: load ``.pt2`` archives that could run code.
        shapes: input name → shape, for a ``.pt2`` with open sizes.

    Raises:
        ModelError, RecipeError: no such file, another kind, or a recipe that is wrong.
    """
    found: list[Subject] = []
    for path in dict.fromkeys(models):
        found += _subjects(path, delegate=delegate, runtime=runtime, trust=trust, shapes=shapes)
    return tuple(found)


def _subjects(
    path: Path, *, delegate: Delegate, runtime: str | None, trust: bool, shapes: Mapping[str, Any]
) -> list[Subject]:
    if not path.exists():
        raise ModelError("there is no such file", where=str(path), hint=KINDS)
    name = str(path)
    if path.suffix == ".mlpackage":
        if not runs_here(path):
            raise ModelError(
                "Core ML runs on macOS only",
                where=name,
                hint="Measure it there, or predict from its source: edgeopt bench MODEL.onnx --device iphone.",
            )
        return [subject_of(path)]
    if path.is_dir() and not (path / "recipe.yaml").is_file():
        if not (path / "model.onnx").is_file():
            raise ModelError("is neither a recipe's folder nor a TensorRT bundle", where=name, hint=KINDS)
        return [Subject(name, path, "trtexec", unit="gpu")]
    if path.is_dir() or path.suffix in RECIPES:
        return [_of_recipe(path, runtime=runtime, trust=trust)]
    if (kind := MODEL_FILES.get(path.suffix.lower(), "onnx")) != "onnx":
        given = {key: list(sizes) for key, sizes in shapes.items()}
        return [_source_file(name, kind, path, given, trust=trust)]
    if path.suffix == ".onnx" and runtime == "tensorrt":
        return [Subject(name, path, "trtexec", unit="gpu", precision=precision_of(path))]
    if path.suffix == ".tflite" and delegate == "both":
        without = subject_of(path, name=f"{name}{WITHOUT}", delegate=False)
        both = [subject_of(path), without]
    elif path.suffix in (".tflite", ".onnx"):
        both = [subject_of(path, delegate=delegate != "off")]
    else:
        raise ModelError("is of a kind that is not measured", where=name, hint=KINDS)
    return [replace(one, precision=precision_of(path)) for one in both]


def _of_recipe(path: Path, *, runtime: str | None, trust: bool) -> Subject:
    recipe, root = load_recipe(path), path if path.is_dir() else path.parent
    source, name = recipe.model, f"{path} (source)"
    if source.onnx is not None:
        one = Subject(name, source.onnx, "trtexec" if runtime == "tensorrt" else "onnxruntime")
        return replace(one, precision=precision_of(source.onnx))
    inputs = {key: list(sizes) for key, sizes in source.inputs.items()}
    if source.file is not None:
        kind = "keras" if source.keras is not None else "exported"
        return _source_file(name, kind, source.file, inputs, trust=trust)
    request = {
        "factory": source.factory,
        "root": str(root.resolve()),
        "weights": str(source.weights.resolve()) if source.weights else None,
        "inputs": inputs,
    }
    return Subject(name, path, "torch", request, precision="fp32")


def _source_file(name: str, kind: str, path: Path, inputs: dict[str, list[int]], *, trust: bool) -> Subject:
    """A ``.pt2`` or a Keras model, which PyTorch runs."""
    if kind == "exported" and not trust:
        refuse_what_runs_code(path)
    return Subject(name, path, "torch", {kind: str(path.resolve()), "inputs": inputs}, precision="fp32")


def precision_of(path: Path) -> str | None:
    """``int8``, ``fp16`` or ``fp32``, read from the file; None where it cannot be read."""
    from edgeopt.formats import onnx, tflite

    try:
        if path.suffix == ".tflite":
            counts = {name: sum(ops.values()) for name, ops in tflite.operator_counts(tflite.read(path)).items()}
        else:
            counts = {str(name): sum(ops.values()) for name, ops in onnx.summarise(path).ops.items()}
    except ModelError:
        return None  # its runtime will say what is wrong with it
    floats = counts.get("fp32", 0) + counts.get("float32", 0)
    halves = counts.get("fp16", 0) + counts.get("float16", 0)
    integers = counts.get("int8", 0) + counts.get("int8-dynamic", 0)
    arithmetic = floats + halves + integers
    if arithmetic and integers >= INT8_SHARE * arithmetic:
        return "int8"
    return "fp16" if halves else "fp32"


# --- on this machine


@dataclass(frozen=True)
class MeasureJob:
    models: tuple[Path, ...]
    delegate: Delegate
    trust: bool
    plan: Plan


def measure(job: MeasureJob) -> Measurement:
    subjects = subjects_of(job.models, delegate=job.delegate, runtime=None, trust=job.trust, shapes=job.plan.inputs)
    with telling() as tell:
        found = measure_here(subjects, job.plan, tell=tell)
    return with_shares(SharesJob(found, job.plan.inputs, job.trust)) if job.plan.profile else found


@dataclass(frozen=True)
class SharesJob:
    found: Measurement
    inputs: Mapping[str, tuple[int, ...]]
    trust: bool
    device: str = "raspberry-pi-5"


def with_shares(job: SharesJob) -> Measurement:
    """TFLite results with what each kernel costs: its predicted share of the measured median, and labelled so.

    LiteRT's Python package has no profiler. The shares are those that the predictor sees on ``device``.
    """
    return replace(job.found, results=tuple(_with_shares(result, job) for result in job.found.results))


def _with_shares(result: BenchResult, job: SharesJob) -> BenchResult:
    if result.runtime != "tflite" or result.profile is not None:
        return result
    source = _source_of(Path(result.model.removesuffix(WITHOUT)), {})
    if source.suffix == ".tflite":
        events.warn(
            f"{result.model}: no time per operator: LiteRT has no profiler, and its source model is not beside it"
        )
        return result
    device = catalogue.find(job.device).profile
    try:
        graph = graph_of(source, job.inputs, trust=job.trust)
        precision: Any = result.precision if result.precision in ("fp32", "fp16", "int8") else "fp32"
        first = predict(graph.model, device=device, runtime="tflite", unit="cpu", precision=precision, threads=1)[0]
    except EdgeoptError as error:
        events.warn(f"{result.model}: no time per operator: {error.what}")
        return result
    operators = tuple(
        OperatorTime(
            name=kernel.name,
            op=" + ".join(kernel.fused),
            ms=kernel.share * result.latency_ms.p50,
            share=kernel.share,
        )
        for kernel in first.kernels
    )
    about = f"shares of the median as predicted for {device.id}, the ten costliest"
    return result.model_copy(update={"profile": Profile(kind="predicted", source=about, operators=operators)})


# --- on a device that is not here


@dataclass(frozen=True)
class PredictJob:
    """What to predict. None: whatever the device's profile supports; of an int8 file its precision."""

    models: tuple[Path, ...]
    devices: tuple[DeviceProfile, ...]
    runtime: str | None
    precision: Precision | None
    unit: ComputeUnit | None
    threads: int | None
    inputs: Mapping[str, tuple[int, ...]]
    trust: bool


@dataclass(frozen=True)
class Predicted:
    """Predictions, and by device what was asked and cannot be had."""

    results: tuple[BenchResult, ...]
    refusals: tuple[EdgeoptError, ...]


def predict_all(job: PredictJob) -> Predicted:
    """Predictions for every model on every device. One device alone raises what it refuses; of several it is said.

    Raises:
        ModelError: a model that cannot be read, or a TFLite file.
        UsageError, DeviceUnreachable: see ``devices.predict``.
    """
    found: list[BenchResult] = []
    refusals: list[EdgeoptError] = []
    for path in dict.fromkeys(job.models):
        graph = graph_of(path, job.inputs, trust=job.trust)
        precision = job.precision or ("int8" if path.suffix == ".onnx" and precision_of(path) == "int8" else None)
        for device in job.devices:
            try:
                predictions = predict(
                    graph.model,
                    device=device,
                    runtime=job.runtime,
                    precision=precision,
                    unit=job.unit,
                    threads=job.threads,
                )
            except EdgeoptError as refusal:
                if len(job.devices) == 1:
                    raise
                refusals.append(type(refusal)(refusal.what, where=device.id, hint=refusal.hint))
                continue
            found += [result_of(str(path), prediction) for prediction in predictions]
    if not found:
        raise refusals[0]
    return Predicted(tuple(found), tuple(refusals))


@dataclass(frozen=True)
class FitJob:
    """A profile, and results that were measured on a board of its kind.

    Args:
        sources: measured file → the model whose graph it has, where it is not a source itself.
    """

    device: DeviceProfile
    results: tuple[Path, ...]
    sources: Mapping[str, Path]
    inputs: Mapping[str, tuple[int, ...]]
    trust: bool


def fit_profile(job: FitJob) -> tuple[DeviceProfile, tuple[Change, ...]]:
    """The profile adapted to the results, and what changed.

    Raises:
        UsageError: results of another version, nothing stable in them, or a runtime that the profile does not have.
        ModelError: a measured file whose graph cannot be found.
    """
    measured = [found for path in job.results for found in read_results(path)]
    steady = [one for one in measured if one.stable]
    for one in measured:
        if not one.stable:
            events.warn(f"{one.model} is left out: its times were unstable")
    if not steady:
        raise UsageError("no result is stable, so there is nothing to fit to", hint="Measure on a machine at rest.")
    graphs: dict[Path, QuantizedGraph] = {}
    probes = []
    for one in steady:
        source = _source_of(Path(one.model), job.sources)
        if source not in graphs:
            graphs[source] = graph_of(source, job.inputs, trust=job.trust)
        _same_batch(one, graphs[source])
        probes.append(
            Probe(
                name=one.model,
                model=graphs[source].model,
                runtime=one.runtime,
                unit=one.compute_unit,
                precision=one.precision,
                threads=one.threads,
                ms=one.latency_ms.p50,
            )
        )
    return fit(job.device, probes)


def _same_batch(one: MeasuredLatency, graph: QuantizedGraph) -> None:
    sizes = [value.shape[0] for value in graph.model.graph.inputs if value.shape is not None and len(value.shape)]
    if sizes and sizes[0] != one.batch:
        raise UsageError(
            f"was measured with batch {one.batch}, and its graph has {sizes[0]}",
            where=one.model,
            hint=f"Bind it with --input NAME={one.batch},…, or measure with --batch {sizes[0]}.",
        )


def _source_of(measured: Path, sources: Mapping[str, Path]) -> Path:
    """The model with a measured file's graph: as told, the file itself, or the ONNX file converted along with it."""
    if str(measured) in sources:
        return sources[str(measured)]
    beside = measured.parent.parent / "onnx" / "model.onnx"
    return beside if measured.suffix == ".tflite" and beside.is_file() else measured


def graph_of(path: Path, inputs: Mapping[str, tuple[int, ...]], *, trust: bool) -> QuantizedGraph:
    """The canonical float graph of a model; of a Q/DQ file the one that was quantized.

    Raises:
        ModelError: no such file, or one that is no source: predictions need the graph.
    """
    if not path.exists():
        raise ModelError("there is no such file", where=str(path), hint="Give .onnx, .pt2, .keras or a recipe.")
    root = path if path.is_dir() else path.parent
    if (path.is_dir() and (path / "recipe.yaml").is_file()) or path.suffix in RECIPES:
        source = load_recipe(path).model
    elif path.suffix in MODEL_FILES:
        source = ModelSource.model_validate({MODEL_FILES[path.suffix]: path, "inputs": dict(inputs)})
    elif (path / "model.onnx").is_file():
        source = ModelSource(onnx=path / "model.onnx", inputs=dict(inputs))
    else:
        raise ModelError(
            "a prediction needs the model's graph, and this is none",
            where=str(path),
            hint="Give the .onnx, .pt2, .keras or recipe that it was made from; --precision and --runtime say how it "
            "is run. For --fit: --source FILE=MODEL.",
        )
    model = load_source(source, root, trust=trust).model
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        try:
            model = read_qdq(move_floats(model), widen=True).model
        except ValueError as error:
            raise ModelError(f"its quantization cannot be read: {error}", where=str(path)) from error
    with TemporaryDirectory(prefix="edgeopt-") as scratch:
        return canonicalise(QuantizedGraph(model), Context(scratch=Path(scratch)))
