"""Import: frontend, canonical graph, a look at the data, L0 on real samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import onnx_ir as ir

from edgeopt.data.check import Checked, DataStats, check
from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.frontends import Imported, Source
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.compare import LevelReport
from edgeopt.parity.levels import check_source
from edgeopt.parity.localize import LOCALIZE_SAMPLES, ROUNDING_DB, source_errors
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise
from edgeopt.pipeline import calibration_doctor
from edgeopt.pipeline.jobs.folder import GRAPH, MODULE, stage, write_result
from edgeopt.pipeline.jobs.inputs import Inputs
from edgeopt.pipeline.jobs.levels import labelled, located
from edgeopt.recipe.schema import ModelSource
from edgeopt.types import Frozen, Preprocess, Signature

CONVERSION_SAMPLES = 16
"""For L0: a conversion is right or wrong on any sample; more would only cost."""
EVALUATION_LOOK = 64
"""Evaluation samples that are checked before anything is built on them."""


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
    kind: Literal["onnx", "torch", "exported", "keras"]
    digest: str
    where: dict[str, str]
    preprocess: Preprocess | None
    parity: LevelReport
    calibration: SeenData | None
    evaluation: SeenData | None
    warnings: tuple[str, ...]


def import_model(job: ImportJob) -> None:
    """Frontend, canonical graph, a look at the data, and L0 on real samples."""
    with stage("import"):
        trained = None if job.trained is None else job.trained / MODULE
        imported = load_source(job.model, job.inputs.root, trust=job.trust, trained=trained)
        preprocess, assumed = job.inputs.contract(imported.signature)
        with TemporaryDirectory(dir=job.out) as scratch:
            context = Context(scratch=Path(scratch), threads=job.threads, seed=job.seed)
            graph = canonicalise(QuantizedGraph(imported.model), context)
        ir.save(graph.model, job.out / GRAPH)
    with stage("check data"):
        calibration, evaluation, about_data = _look_at(job.inputs, imported.signature)
    if calibration is not None:
        with stage("look at the calibration set"):
            about_data += _examine(job.inputs, imported.signature, graph.model, job.threads)
    samples, about_samples = job.inputs.for_parity(imported.signature, CONVERSION_SAMPLES, job.seed)
    with stage("L0 parity: source against graph"):
        parity = check_source(imported.source, graph.model, samples, threads=job.threads, tolerance=job.tolerance)
    if job.model.onnx is not None and (job.localize or parity.failures):
        with stage("localize L0"):
            few = Few(samples, LOCALIZE_SAMPLES)
            errors = source_errors(job.model.onnx, graph.model, few, threads=job.threads)
            parity = located(parity, errors, ROUNDING_DB)
    warnings = [f"preprocessing was not given in full: {text}" for text in assumed]
    write_result(
        job.out,
        ImportResult(
            signature=imported.signature,
            kind=imported.kind,
            digest=imported.digest,
            where=dict(imported.where),
            preprocess=preprocess,
            parity=labelled(parity, about_samples),
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


def _seen(checked: Checked | None, samples: LabelledSamples | None) -> SeenData | None:
    if checked is None or samples is None:
        return None
    return SeenData(stats=checked.stats, labelled=samples.labels is not None)


def _examine(inputs: Inputs, signature: Signature, model: ir.Model, threads: int) -> list[str]:
    calibration = inputs.open("calibration", signature)
    assert calibration is not None
    return calibration_doctor.warnings(model, calibration, inputs.open("evaluation", signature), threads=threads)


def load_source(model: ModelSource, root: Path, *, trust: bool, trained: Path | None = None) -> Imported:
    """The frontend for what the recipe names; ``trained`` is what training passes made of its module."""
    if model.onnx is not None:
        from edgeopt.frontends.onnx import load_onnx

        return load_onnx(model.onnx, model.inputs)
    from edgeopt.frontends.torch import load_exported, load_keras, load_torch

    if model.keras is not None:
        return load_keras(model.keras, model.inputs)
    if model.exported is not None:
        return load_exported(model.exported, trust=trust, inputs=model.inputs)
    assert model.factory is not None
    return load_torch(model.factory, model.weights, model.inputs, root=root, trained=trained)


def open_source(model: ModelSource, root: Path, *, trust: bool, trained: Path | None = None) -> Source:
    """The model as the user has it, to be run: nothing is exported or imported. Arguments as for ``load_source``."""
    if model.onnx is not None:
        from edgeopt.frontends.onnx import OnnxSource

        return OnnxSource(model.onnx)
    from edgeopt.frontends.torch import open_exported, open_keras, open_torch

    if model.keras is not None:
        return open_keras(model.keras, model.inputs)
    if model.exported is not None:
        return open_exported(model.exported, trust=trust, inputs=model.inputs)
    assert model.factory is not None
    return open_torch(model.factory, model.weights, model.inputs, root=root, trained=trained)
