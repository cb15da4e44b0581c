"""One target: its artifact, read back and held against the integer reference and the labels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.errors import EdgeoptError
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.compare import LevelReport
from edgeopt.parity.levels import check_artifact, check_quantization
from edgeopt.parity.localize import (
    BEST_INT8_DB,
    LOCALIZE_SAMPLES,
    ROUNDING_DB,
    first_failing_segment,
    float_errors,
    quantization_errors,
)
from edgeopt.parity.runners import open_file, runnable
from edgeopt.pipeline import confidence
from edgeopt.pipeline.jobs.folder import ARTIFACT, GRAPH, load_graph, read_result, stage, write_result
from edgeopt.pipeline.jobs.inputs import Inputs
from edgeopt.pipeline.jobs.levels import labelled, located
from edgeopt.pipeline.jobs.passes import PARITY_SAMPLES, PassesResult
from edgeopt.pipeline.jobs.source import ImportResult
from edgeopt.pipeline.record import Metric, Metrics
from edgeopt.recipe.schema import ParityLimits
from edgeopt.targets.base import Target
from edgeopt.types import Artifact, Frozen, Metadata

SAVED_SAMPLES = 8
"""That travel with an artifact, to be compared on the device: few, as they are as large as the model's inputs."""
FAR_FROM_FLOAT_DB = 15.0
"""Below it the noise has more than a sixth of the signal's amplitude: no file of the benchmarks that keeps its accuracy
is there. A warning and a look for the layer, as what a task bears only the recipe's limits know."""


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
    with stage(f"{name}: write"):
        artifact = job.target.lower(
            graph, folder, Metadata(preprocess=imported.preprocess, labels=job.labels, confidence=sure)
        )
        if artifact.realised is None:
            realised = job.target.realised(folder / artifact.path, graph)
            artifact = artifact.model_copy(update={"realised": realised})
    samples, about_samples = job.inputs.for_parity(imported.signature, PARITY_SAMPLES, job.seed)
    artifact = job.target.finish(folder, artifact, Few(samples, SAVED_SAMPLES))
    path = runnable(folder, artifact)
    quantization = passed.parity
    if graph is not shared:
        with stage(f"{name}: L1 parity: graph against the integer reference of its own grids"):
            quantization = labelled(check_quantization(graph, samples, threads=job.threads), about_samples)
    with stage(f"{name}: L2 parity: integer reference against artifact"):
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
        with stage(f"{name}: localize"):
            few = Few(samples, LOCALIZE_SAMPLES)
            quantization, parity = _localized(job, graph, artifact, few, l1=quantization, l2=parity)
    evaluation = job.inputs.open("evaluation", imported.signature)
    metrics = None
    if evaluation is not None and evaluation.labels is not None and passed.float_top1 is not None:
        with stage(f"{name}: accuracy"):
            answers = _predict(path, artifact, evaluation, imported.signature.outputs[0].name)
            top1 = float((answers == evaluation.labels).mean())
            metrics = Metrics(float_=passed.float_top1, target=Metric(top1=top1, samples=len(answers)))
    parity = labelled(parity, about_samples)
    write_result(
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
        l1 = located(l1, quantization_errors(graph, samples, threads=job.threads), BEST_INT8_DB)
        return l1, l2.model_copy(update={"located": first_failing_segment(l2)})
    return l1, located(l2, float_errors(graph, artifact, path, samples, threads=job.threads), ROUNDING_DB)


def _predict(path: Path, artifact: Artifact, samples: LabelledSamples, output: str) -> npt.NDArray[np.int64]:
    with open_file(path, artifact) as runner:
        return np.array([int(runner.call(feed)[output].argmax()) for feed in samples], np.int64)
