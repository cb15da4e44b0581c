"""The passes on the graph, L1, and what the float graph answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.frontends.torch import module_request
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.parity.compare import LevelReport
from edgeopt.parity.levels import check_quantization
from edgeopt.passes.base import Pass
from edgeopt.pipeline import confidence
from edgeopt.pipeline.evidence import scale_warning
from edgeopt.pipeline.jobs.folder import GRAPH, MODULE, PREDICTIONS, PYTORCH, TABLE, read_result, stage, write_result
from edgeopt.pipeline.jobs.inputs import Inputs
from edgeopt.pipeline.jobs.levels import labelled
from edgeopt.pipeline.jobs.source import ImportResult
from edgeopt.pipeline.jobs.training import graph_training_data
from edgeopt.pipeline.record import Metric, QuantizationRecord
from edgeopt.recipe.schema import ModelSource
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.registry import all_constraints
from edgeopt.training.qat import TrainingContext
from edgeopt.types import Confidence, Effort, Frozen

PARITY_SAMPLES = 64
"""For L1 and L2: enough for an SQNR within a few tenths of a dB, few enough to stay in memory."""


@dataclass(frozen=True)
class PassesJob:
    """``unfinished`` is where a pass that trains keeps its checkpoints, ``key`` the step's; ``trained`` is the folder
    of the last training pass on the module."""

    imported: Path
    trained: Path | None
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
            module=None
            if source.factory is None
            else module_request(
                source.factory,
                source.weights,
                source.inputs,
                root=job.inputs.root,
                trained=None if job.trained is None else job.trained / MODULE,
            ),
            module_folder=job.out / PYTORCH,
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
            with stage(getattr(step, "use", type(step).__name__)):
                graph = step.run(graph, context)
    ir.save(graph.model, job.out / GRAPH)
    if graph.quantization is not None:
        graph.quantization.save(job.out / TABLE)
    few, about_samples = job.inputs.for_parity(signature, PARITY_SAMPLES, job.seed)
    with stage("L1 parity: graph against integer reference"):
        parity = check_quantization(graph, few, threads=job.threads)
    float_top1 = None
    if evaluation is not None and evaluation.labels is not None:
        with stage("float accuracy"):
            predictions = _predict_float(graph.model, evaluation, job.threads)
            np.save(job.out / PREDICTIONS, predictions)
            float_top1 = Metric(top1=float((predictions == evaluation.labels).mean()), samples=len(predictions))
    with stage("confidence on calibration samples"):
        sure = confidence.fit(graph, calibration, threads=job.threads)
    table = graph.quantization or Quantization()
    write_result(
        job.out,
        PassesResult(
            quantization=QuantizationRecord(
                kept=graph.record,
                ranges=dict(sorted(Counter(table.labels.values()).items())),
                schemes=dict(sorted(Counter(table.schemes.values()).items())),
            ),
            parity=labelled(parity, about_samples),
            float_top1=float_top1,
            confidence=sure,
            warnings=(*warnings, *graph.warnings),
        ),
    )


def _predict_float(model: ir.Model, samples: LabelledSamples, threads: int) -> npt.NDArray[np.int64]:
    from edgeopt.graph.model import serialise

    first = model.graph.outputs[0].name
    assert first is not None
    with Session(serialise(model), threads=threads) as session:
        answers = [int(session.run(feed, [first])[first].argmax()) for feed in samples]
    return np.array(answers, np.int64)
