"""The work of each step, run in a worker: reads the folders of earlier steps, writes into its own.

Every job leaves ``result.json`` (its record) beside what it made, so that a finished step says what it said before.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt import events
from edgeopt.bench.latency import measure
from edgeopt.bench.results import BenchResult
from edgeopt.data import arrays, callables, images
from edgeopt.data.check import Checked, DataStats, check
from edgeopt.data.noise import NoiseSamples
from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.errors import EdgeoptError
from edgeopt.frontends import Imported, Source
from edgeopt.frontends.torch import module_request
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.parity.compare import LevelReport
from edgeopt.parity.levels import check_artifact, check_quantization, check_source
from edgeopt.parity.localize import (
    BEST_INT8_DB,
    LOCALIZE_SAMPLES,
    ROUNDING_DB,
    TensorErrors,
    first_failing_segment,
    float_errors,
    quantization_errors,
    source_errors,
)
from edgeopt.parity.runners import open_file, runnable
from edgeopt.passes.base import Context, Pass
from edgeopt.passes.canonical import canonicalise
from edgeopt.pipeline import calibration_doctor, confidence
from edgeopt.pipeline.evidence import scale_warning
from edgeopt.pipeline.record import Metric, Metrics, QuantizationRecord
from edgeopt.recipe.schema import DataSource, ModelSource, ParityLimits
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.base import Target
from edgeopt.targets.registry import all_constraints
from edgeopt.training.base import TrainingPass, TrainingRecord, write_module
from edgeopt.training.data import TrainingSet
from edgeopt.training.distributed import launch
from edgeopt.training.qat import TrainingContext
from edgeopt.training.ranks import is_first
from edgeopt.training.read_data import digest_of_callable, from_callable, in_memory
from edgeopt.training.work import open_work
from edgeopt.types import Artifact, Confidence, Effort, Frozen, Preprocess, Signature, TensorSpec

Result = TypeVar("Result", bound=Frozen)

RESULT = "result.json"
GRAPH = "graph.onnx"
TABLE = "quantization.npz"
PREDICTIONS = "predictions.npy"
MODULE = "module.safetensors"
ARTIFACT = "artifact"

CONVERSION_SAMPLES = 16
"""For L0: a conversion is right or wrong on any sample; more would only cost."""
PARITY_SAMPLES = 64
"""For L1 and L2: enough for an SQNR within a few tenths of a dB, few enough to stay in memory."""
SAVED_SAMPLES = 8
"""That travel with an artifact, to be compared on the device: few, as they are as large as the model's inputs."""
FAR_FROM_FLOAT_DB = 15.0
"""Below it the noise has more than a sixth of the signal's amplitude: no file of the benchmarks that keeps its accuracy
is there. A warning and a look for the layer, as what a task bears only the recipe's limits know."""
EVALUATION_LOOK = 64
"""Evaluation samples that are checked before anything is built on them."""


@dataclass(frozen=True)
class Inputs:
    """Where samples come from, for any job.

    Args:
        training, calibration, evaluation: as in the recipe.
        preprocess: as in the recipe; completed when the model's input is known.
        root: folder of the recipe, for callables.
    """

    training: DataSource | None
    calibration: DataSource | None
    evaluation: DataSource | None
    preprocess: Preprocess | None
    root: Path

    def open(self, which: str, signature: Signature) -> LabelledSamples | None:
        """``training``, ``calibration`` or ``evaluation`` samples of a model; None if the recipe names none."""
        source: DataSource | None = getattr(self, which)
        if source is None:
            return None
        specs = signature.inputs
        if source.arrays is not None:
            return arrays.ArraySamples(source.arrays, specs, limit=source.limit)
        if source.callable is not None:
            return callables.CallableSamples(source.callable, self.root, specs, limit=source.limit)
        assert source.images is not None
        spec = images.image_input(specs, str(source.images))
        preprocess, _ = images.complete_preprocess(self.preprocess, spec)
        return images.ImageSamples(source.images, spec, preprocess, labels=source.labels, limit=source.limit)

    def for_parity(self, signature: Signature, limit: int, seed: int) -> tuple[LabelledSamples, str]:
        """Samples to compare on, at most ``limit``, and which they are: evaluation, else calibration, else noise."""
        for which in ("evaluation", "calibration"):
            if (samples := self.open(which, signature)) is not None:
                return Few(samples, limit), which
        return NoiseSamples(signature, seed), "noise"

    def contract(self, signature: Signature) -> tuple[Preprocess | None, tuple[str, ...]]:
        """The preprocessing that travels with artifacts, and what of it was assumed."""
        if any(source is not None and source.images is not None for source in (self.calibration, self.evaluation)):
            return images.complete_preprocess(self.preprocess, images.image_input(signature.inputs, "images"))
        return self.preprocess, ()


# --- training


@dataclass(frozen=True)
class TrainingJob:
    """One training pass on the factory's module, as the pass before it left it.

    Args:
        before: folder of the step before, or None.
        unfinished: where its checkpoints are; what is there is gone on with.
        key: of the step.
    """

    model: ModelSource
    before: Path | None
    step: TrainingPass
    inputs: Inputs
    seed: int
    unfinished: Path
    key: str
    out: Path


class TrainingResult(Frozen):
    record: TrainingRecord


def train_module(job: TrainingJob) -> None:
    """The pass; leaves the module's weights and structure."""
    if job.step.processes > 1:
        launch(train_here, job, job.step.processes, job.unfinished / "processes")
    else:
        train_here(job)


def train_here(job: TrainingJob) -> None:
    """The pass in this process, which may be one of several."""
    model = job.model
    assert model.factory is not None
    before = None if job.before is None else job.before / MODULE
    request = module_request(model.factory, model.weights, model.inputs, root=job.inputs.root, trained=before)
    data = None if job.inputs.training is None else lambda: training_data(job.inputs, model)
    with _step(f"{getattr(job.step, 'use', 'train')}: load the module"):
        work = open_work(request, data, folder=job.unfinished, identity=job.key, seed=job.seed)
    record = job.step.run(work)
    if not is_first():
        return
    write_module(job.out / MODULE, work.model, work.changes())
    _write_result(job.out, TrainingResult(record=record))


def training_data(inputs: Inputs, model: ModelSource) -> TrainingSet:
    """Read, or opened, as the model takes it."""
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=(1, *sizes[1:])) for name, sizes in model.inputs.items())
    return graph_training_data(inputs, Signature(inputs=specs, outputs=()))


# --- import


@dataclass(frozen=True)
class ImportJob:
    model: ModelSource
    trained: Path | None
    inputs: Inputs
    trust: bool
    tolerance: float | None
    localize: bool
    threads: int
    seed: int
    out: Path


class SeenData(Frozen):
    stats: DataStats
    labelled: bool


class ImportResult(Frozen):
    signature: Signature
    kind: Literal["onnx", "torch", "exported"]
    digest: str
    where: dict[str, str]
    preprocess: Preprocess | None
    parity: LevelReport
    calibration: SeenData | None
    evaluation: SeenData | None
    warnings: tuple[str, ...]


def import_model(job: ImportJob) -> None:
    """Frontend, canonical graph, a look at the data, and L0 on real samples."""
    with _step("import"):
        trained = None if job.trained is None else job.trained / MODULE
        imported = load_source(job.model, job.inputs.root, trust=job.trust, trained=trained)
        preprocess, assumed = job.inputs.contract(imported.signature)
        with TemporaryDirectory(dir=job.out) as scratch:
            context = Context(scratch=Path(scratch), threads=job.threads, seed=job.seed)
            graph = canonicalise(QuantizedGraph(imported.model), context)
        ir.save(graph.model, job.out / GRAPH)
    with _step("check data"):
        calibration, evaluation, about_data = _look_at(job.inputs, imported.signature)
    if calibration is not None:
        with _step("look at the calibration set"):
            about_data += _examine(job.inputs, imported.signature, graph.model, job.threads)
    samples, about_samples = job.inputs.for_parity(imported.signature, CONVERSION_SAMPLES, job.seed)
    with _step("L0 parity: source against graph"):
        parity = check_source(imported.source, graph.model, samples, threads=job.threads, tolerance=job.tolerance)
    if job.model.onnx is not None and (job.localize or parity.failures):
        with _step("localize L0"):
            few = Few(samples, LOCALIZE_SAMPLES)
            errors = source_errors(job.model.onnx, graph.model, few, threads=job.threads)
            parity = _located(parity, errors, ROUNDING_DB)
    warnings = [f"preprocessing was not given in full: {text}" for text in assumed]
    _write_result(
        job.out,
        ImportResult(
            signature=imported.signature,
            kind=imported.kind,
            digest=imported.digest,
            where=dict(imported.where),
            preprocess=preprocess,
            parity=_labelled(parity, about_samples),
            calibration=calibration,
            evaluation=evaluation,
            warnings=(*warnings, *about_data),
        ),
    )


def _look_at(inputs: Inputs, signature: Signature) -> tuple[SeenData | None, SeenData | None, list[str]]:
    """Every calibration sample and some evaluation samples, before anything is built on them; warnings about them."""
    calibration, evaluation = inputs.open("calibration", signature), inputs.open("evaluation", signature)
    seen = None if calibration is None else check(calibration, "calibration")
    also_seen = None if evaluation is None else check(Few(evaluation, EVALUATION_LOOK), "evaluation")
    warnings = [*(seen.stats.warnings if seen else ()), *(also_seen.stats.warnings if also_seen else ())]
    if seen and also_seen and (shared := also_seen.shared_with(seen)):
        warnings.append(shared)
    return _seen(seen, calibration), _seen(also_seen, evaluation), warnings


def _examine(inputs: Inputs, signature: Signature, model: ir.Model, threads: int) -> list[str]:
    calibration = inputs.open("calibration", signature)
    assert calibration is not None
    return calibration_doctor.warnings(model, calibration, inputs.open("evaluation", signature), threads=threads)


def load_source(model: ModelSource, root: Path, *, trust: bool, trained: Path | None = None) -> Imported:
    """The frontend for what the recipe names; ``trained`` is what training passes made of its module."""
    if model.onnx is not None:
        from edgeopt.frontends.onnx import load_onnx

        return load_onnx(model.onnx, model.inputs)
    from edgeopt.frontends.torch import load_exported, load_torch

    if model.exported is not None:
        return load_exported(model.exported, trust=trust, inputs=model.inputs)
    assert model.factory is not None
    return load_torch(model.factory, model.weights, model.inputs, root=root, trained=trained)


def open_source(model: ModelSource, root: Path, *, trust: bool, trained: Path | None = None) -> Source:
    """The model as the user has it, to be run: nothing is exported or imported. Arguments as for ``load_source``."""
    if model.onnx is not None:
        from edgeopt.frontends.onnx import OnnxSource

        return OnnxSource(model.onnx)
    from edgeopt.frontends.torch import open_exported, open_torch

    if model.exported is not None:
        return open_exported(model.exported, trust=trust, inputs=model.inputs)
    assert model.factory is not None
    return open_torch(model.factory, model.weights, model.inputs, root=root, trained=trained)


# --- passes


@dataclass(frozen=True)
class PassesJob:
    """``unfinished`` is where a pass that trains keeps its checkpoints, ``key`` the step's."""

    imported: Path
    model: ModelSource
    passes: tuple[Pass, ...]
    inputs: Inputs
    effort: Effort
    threads: int
    seed: int
    unfinished: Path
    key: str
    out: Path


class PassesResult(Frozen):
    quantization: QuantizationRecord
    parity: LevelReport
    float_top1: Metric | None
    confidence: Confidence | None
    warnings: tuple[str, ...]


def run_passes(job: PassesJob) -> None:
    """Passes, L1, and what the float graph answers on labelled evaluation data."""
    imported = read_result(job.imported, ImportResult)
    signature = imported.signature
    calibration = job.inputs.open("calibration", signature)
    evaluation = job.inputs.open("evaluation", signature)
    model, warnings = ir.load(job.imported / GRAPH), list[str]()
    if calibration is not None and imported.calibration is not None:
        other = imported.evaluation.stats if imported.evaluation is not None else None
        warnings = scale_warning(model, Few(calibration, 8), imported.calibration.stats, other, job.threads)
    graph = QuantizedGraph(model)
    with TemporaryDirectory(dir=job.out) as scratch:
        source = job.model
        context = TrainingContext(
            scratch=Path(scratch),
            training=None if job.inputs.training is None else lambda: graph_training_data(job.inputs, signature),
            request=None
            if source.factory is None
            else module_request(source.factory, source.weights, source.inputs, root=job.inputs.root),
            root=job.inputs.root,
            checkpoints=job.unfinished,
            identity=job.key,
            calibration=calibration,
            constraints=all_constraints(),
            effort=job.effort,
            threads=job.threads,
            seed=job.seed,
        )
        for step in job.passes:
            with _step(getattr(step, "use", type(step).__name__)):
                graph = step.run(graph, context)
    ir.save(graph.model, job.out / GRAPH)
    if graph.quantization is not None:
        graph.quantization.save(job.out / TABLE)
    few, about_samples = job.inputs.for_parity(signature, PARITY_SAMPLES, job.seed)
    with _step("L1 parity: graph against integer reference"):
        parity = check_quantization(graph, few, threads=job.threads)
    float_top1 = None
    if evaluation is not None and evaluation.labels is not None:
        with _step("float accuracy"):
            predictions = _predict_float(graph.model, evaluation, job.threads)
            np.save(job.out / PREDICTIONS, predictions)
            float_top1 = Metric(top1=float((predictions == evaluation.labels).mean()), samples=len(predictions))
    with _step("confidence on calibration samples"):
        sure = confidence.fit(graph, calibration, threads=job.threads)
    table = graph.quantization or Quantization()
    _write_result(
        job.out,
        PassesResult(
            quantization=QuantizationRecord(
                kept=graph.record,
                ranges=dict(sorted(Counter(table.labels.values()).items())),
                schemes=dict(sorted(Counter(table.schemes.values()).items())),
            ),
            parity=_labelled(parity, about_samples),
            float_top1=float_top1,
            confidence=sure,
            warnings=(*warnings, *graph.warnings),
        ),
    )


def graph_training_data(inputs: Inputs, signature: Signature) -> TrainingSet:
    """Training data for a graph's inputs."""
    source = inputs.training
    assert source is not None
    if source.callable is not None:
        return from_callable(source.callable, inputs.root, [spec.name for spec in signature.inputs], source.limit)
    samples = inputs.open("training", signature)
    assert samples is not None
    with _step("read training data"):
        return in_memory(samples)


def _seen(checked: Checked | None, samples: LabelledSamples | None) -> SeenData | None:
    if checked is None or samples is None:
        return None
    return SeenData(stats=checked.stats, labelled=samples.labels is not None)


def _predict_float(model: ir.Model, samples: LabelledSamples, threads: int) -> npt.NDArray[np.int64]:
    from edgeopt.graph.model import serialise

    first = model.graph.outputs[0].name
    assert first is not None
    with Session(serialise(model), threads=threads) as session:
        answers = [int(session.run(feed, [first])[first].argmax()) for feed in samples]
    return np.array(answers, np.int64)


def load_graph(folder: Path) -> QuantizedGraph:
    """What ``run_passes`` left."""
    table = folder / TABLE
    return QuantizedGraph(ir.load(folder / GRAPH), Quantization.load(table) if table.exists() else None)


# --- targets


@dataclass(frozen=True)
class TargetJob:
    imported: Path
    passed: Path
    target: Target
    inputs: Inputs
    labels: tuple[str, ...]
    limits: ParityLimits
    localize: bool
    threads: int
    seed: int
    out: Path


@dataclass(frozen=True)
class CheckJob:
    imported: Path
    targets: dict[str, Target]


def check_targets(job: CheckJob) -> dict[str, EdgeoptError]:
    """Targets that cannot be given this graph, or lack a package, before any pass has run."""
    model = ir.load(job.imported / GRAPH)
    refused: dict[str, EdgeoptError] = {}
    for name, target in job.targets.items():
        try:
            target.check(model)
        except EdgeoptError as error:
            refused[name] = error
    return refused


class TargetResult(Frozen):
    artifact: Artifact
    quantization: LevelReport
    parity: LevelReport
    metrics: Metrics | None
    seconds: float


def build_target(job: TargetJob) -> None:
    """Write the artifact, read it back, and hold it against the integer reference and the labels."""
    start = time.monotonic()
    name = job.target.name
    imported, passed = read_result(job.imported, ImportResult), read_result(job.passed, PassesResult)
    graph = load_graph(job.passed)
    shared, graph = graph, job.target.own_graph(graph)
    folder = job.out / ARTIFACT
    folder.mkdir()
    sure = passed.confidence
    if graph is not shared and sure is not None:
        calibration = job.inputs.open("calibration", imported.signature)
        sure = confidence.fit(graph, calibration, threads=job.threads)
    with _step(f"{name}: write"):
        artifact = job.target.lower(graph, folder, preprocess=imported.preprocess, labels=job.labels, confidence=sure)
        if artifact.realised is None:
            realised = job.target.realised(folder / artifact.path, graph)
            artifact = artifact.model_copy(update={"realised": realised})
    samples, about_samples = job.inputs.for_parity(imported.signature, PARITY_SAMPLES, job.seed)
    artifact = job.target.finish(folder, artifact, Few(samples, SAVED_SAMPLES))
    path = runnable(folder, artifact)
    quantization = passed.parity
    if graph is not shared:
        with _step(f"{name}: L1 parity: graph against the integer reference of its own grids"):
            quantization = _labelled(check_quantization(graph, samples, threads=job.threads), about_samples)
    with _step(f"{name}: L2 parity: integer reference against artifact"):
        parity = check_artifact(
            graph,
            artifact,
            path,
            samples,
            reference=quantization,
            threads=job.threads,
            tolerance=job.limits.tolerance,
            min_sqnr_db=job.limits.min_sqnr_db,
            min_top1_agreement=job.limits.min_top1_agreement,
        )
    if job.localize or parity.failures or parity.sqnr_db < FAR_FROM_FLOAT_DB:
        with _step(f"{name}: localize"):
            few = Few(samples, LOCALIZE_SAMPLES)
            quantization, parity = _localized(job, graph, artifact, few, l1=quantization, l2=parity)
    evaluation = job.inputs.open("evaluation", imported.signature)
    metrics = None
    if evaluation is not None and evaluation.labels is not None and passed.float_top1 is not None:
        with _step(f"{name}: accuracy"):
            answers = _predict(path, artifact, evaluation, imported.signature.outputs[0].name)
            top1 = float((answers == evaluation.labels).mean())
            metrics = Metrics(float_=passed.float_top1, target=Metric(top1=top1, samples=len(answers)))
    parity = _labelled(parity, about_samples)
    _write_result(
        job.out,
        TargetResult(
            artifact=artifact,
            quantization=quantization,
            parity=parity,
            metrics=metrics,
            seconds=round(time.monotonic() - start, 3),
        ),
    )


def _localized(
    job: TargetJob,
    graph: QuantizedGraph,
    artifact: Artifact,
    samples: LabelledSamples,
    *,
    l1: LevelReport,
    l2: LevelReport,
) -> tuple[LevelReport, LevelReport]:
    """L1 and L2 with the first layer where the error jumps."""
    path = runnable(job.out / ARTIFACT, artifact)
    if graph.quantization is not None and graph.quantization.activations:
        l1 = _located(l1, quantization_errors(graph, samples, threads=job.threads), BEST_INT8_DB)
        return l1, l2.model_copy(update={"located": first_failing_segment(l2)})
    return l1, _located(l2, float_errors(graph, artifact, path, samples, threads=job.threads), ROUNDING_DB)


def _located(report: LevelReport, errors: TensorErrors, best_db: float) -> LevelReport:
    found = {"located": errors.locate(report.level, best_db), "tensors_db": errors.sqnr_db()}
    return report.model_copy(update=found)


def _predict(path: Path, artifact: Artifact, samples: LabelledSamples, output: str) -> npt.NDArray[np.int64]:
    with open_file(path, artifact) as runner:
        return np.array([int(runner.call(feed)[output].argmax()) for feed in samples], np.int64)


# --- latency


@dataclass(frozen=True)
class LatencyJob:
    """Artifacts by target name, and the same targets' float files, made for the comparison only."""

    imported: Path
    artifacts: dict[str, Path]
    targets: dict[str, Target]
    compare_float: bool
    seconds: float
    scratch: Path
    threads: int = 1
    seed: int = field(default=0)


def measure_latency(job: LatencyJob) -> dict[str, tuple[BenchResult, BenchResult | None]]:
    """Each artifact beside the float file that its target writes of the same graph. Timed: never stored."""
    found: dict[str, tuple[BenchResult, BenchResult | None]] = {}
    graph = QuantizedGraph(ir.load(job.imported / GRAPH)) if job.compare_float else None
    with _step("latency on this machine"):
        for name, path in job.artifacts.items():
            models = {"target": path}
            if graph is not None:
                folder = job.scratch / name
                folder.mkdir(parents=True)
                models["float"] = folder / type(job.targets[name])().lower(graph, folder).path
            results = measure(models, threads=job.threads, seconds=job.seconds, seed=job.seed)
            found[name] = (results["target"], results.get("float"))
    return found


# --- what all jobs share


@dataclass(frozen=True)
class DigestJob:
    reference: str
    root: Path
    limit: int | None


def digest_training_callable(job: DigestJob) -> str:
    """In a worker: it runs the user's code."""
    return digest_of_callable(job.reference, job.root, job.limit)


def digest_callable(job: DigestJob) -> str:
    """In a worker: it runs the user's code."""
    return callables.digest(job.reference, job.root, job.limit)


@contextmanager
def _step(text: str) -> Iterator[None]:
    events.emit(events.Event("step", text))
    try:
        yield
    finally:
        events.emit(events.Event("done", text))


def _labelled(report: LevelReport, samples: str) -> LevelReport:
    """The report says on which samples it rests."""
    return report.model_copy(update={"label": f"{samples}: {report.label}"})


def _write_result(folder: Path, result: Frozen) -> None:
    (folder / RESULT).write_text(result.model_dump_json(by_alias=True, indent=1), encoding="utf-8")


def read_result(folder: Path, kind: type[Result]) -> Result:
    """The record that a finished step left."""
    return kind.model_validate_json((folder / RESULT).read_text(encoding="utf-8"))
