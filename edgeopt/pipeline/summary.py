"""What a run says of itself: the report, from the records of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import edgeopt
from edgeopt import events
from edgeopt.bench.results import BenchResult
from edgeopt.errors import EdgeoptError, SetupError
from edgeopt.formats.onnx_overflow import TEXT as SATURATION
from edgeopt.parity.compare import LevelReport
from edgeopt.parity.runners import runnable
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.pipeline import jobs
from edgeopt.pipeline.integers import Carried, carried, same_integers, same_weights
from edgeopt.pipeline.plan import Plan
from edgeopt.pipeline.record import DataRecord, Latency, Report, SourceRecord, StepRecord, TargetRecord
from edgeopt.recipe.schema import DataSource, Recipe
from edgeopt.runtimes.onnxruntime import saturates
from edgeopt.types import SchemeName, Status

FP16_SCALES = "the shared scales, rounded to fp16, in which the program computes (precision: fp32 keeps them)"
NOISE = 1.03
"""Two runs of one file on a shared machine differ by about so much: less is not called slower."""
LOST_ACCURACY = 0.01
"""Share of right answers whose loss is told: what the field's users accept is mostly one point."""


def summarise(
    recipe: Recipe,
    *,
    plan: Plan,
    trained: Sequence[Path],
    imported: Path,
    passed: Path,
    folders: Mapping[str, Path],
    errors: Mapping[str, EdgeoptError],
    latencies: Mapping[str, tuple[BenchResult, BenchResult | None]],
    steps: Sequence[StepRecord],
    seconds: float,
) -> Report:
    """The report. What it warns of is also told here, but for the warnings about data, told when it was read.

    Args:
        recipe: the request.
        plan: for digests.
        trained, imported, passed: folders of finished steps.
        folders, errors: of each target the folder of its step, or why there is none.
        latencies: by target: the artifact's, and its float file's.
        steps: what was run or found finished.
        seconds: of the whole run so far.
    """
    source, quantized = jobs.read_result(imported, jobs.ImportResult), jobs.read_result(passed, jobs.PassesResult)
    results = {name: jobs.read_result(folder, jobs.TargetResult) for name, folder in folders.items()}
    files = {n: carried(runnable(folders[n] / jobs.ARTIFACT, r.artifact)) for n, r in results.items()}
    same, weights = same_integers(files), same_weights(files)
    scheme = asked_scheme(recipe)
    targets: dict[str, TargetRecord] = {}
    for name in recipe.requested():
        if name in errors:
            unavailable = isinstance(errors[name], SetupError)
            status: Literal["unavailable", "failed"] = "unavailable" if unavailable else "failed"
            targets[name] = TargetRecord(status=status, why=str(errors[name]), scheme=scheme)
        else:
            targets[name] = _target(
                recipe,
                name,
                result=results[name],
                carried=files[name],
                same=same[name],
                weights=tuple(other for other in weights[name] if other not in same[name]),
                shared=quantized.parity,
                latency=latencies.get(name),
            )
    for name, record in targets.items():
        for text in record.warnings:
            events.warn(f"{name}: {text}")
    warnings = (*source.warnings, *quantized.warnings)
    for text in quantized.warnings:
        events.warn(text)
    seen = {"calibration": source.calibration, "evaluation": source.evaluation}
    model = recipe.model
    path = model.file
    return Report(
        edgeopt=edgeopt.__version__,
        source=SourceRecord(
            name=path.name if path is not None else str(model.factory),
            kind=source.kind,
            digest=source.digest,
            signature=source.signature,
        ),
        scheme=scheme,
        effort=recipe.effort,
        seconds=seconds,
        exit_code=_exit_code(errors.values(), targets, source.parity.failures),
        data={
            name: DataRecord(
                name=_source_name(getattr(recipe.data, name)),
                digest=plan.data_digests[name],
                labelled=stats.labelled,
                stats=stats.stats,
            )
            for name, stats in seen.items()
            if stats is not None
        },
        training=tuple(jobs.read_result(folder, jobs.TrainingResult).record for folder in trained),
        parity={"L0": source.parity},
        quantization=quantized.quantization,
        targets=targets,
        steps=tuple(steps),
        warnings=warnings,
    )


def _target(
    recipe: Recipe,
    name: str,
    *,
    result: jobs.TargetResult,
    carried: Carried,
    same: tuple[str, ...],
    weights: tuple[str, ...],
    shared: LevelReport,
    latency: tuple[BenchResult, BenchResult | None] | None,
) -> TargetRecord:
    artifact, warnings = result.artifact, []
    failures = [f"L2: {text}" for text in result.parity.failures]
    realised = artifact.realised
    if failures and realised is not None and saturates():
        failures += [f"the likely cause: {text}" for text in realised.leftovers if SATURATION in text]
    unasked = realised.unasked_float if realised is not None else ()
    if unasked:
        failures.insert(0, f"int8 was asked and these are float in the file: {', '.join(unasked)}")
    limit = recipe.budget.size_mb
    if limit is not None and artifact.size_bytes > limit * 1e6:
        failures.append(f"budget: {artifact.size_bytes / 1e6:.2f} MB, at most {limit:g} MB was asked")
    warnings += _losses(result)
    measured = _latency(latency)
    if measured is not None and measured.slower_than_float is not None:
        warnings.append(
            f"{asked_scheme(recipe)} is slower than float on this machine: "
            f"{measured.slower_than_float:.2f} times its latency"
        )
    own = recipe.requested()[name].own_grids
    if own is not None and result.quantization != shared:
        own += (
            f": {result.quantization.sqnr_db:.1f} dB against float where the shared grids have {shared.sqnr_db:.1f} dB"
        )
    else:
        own = FP16_SCALES if carried.rounded and weights else None
    status: Status = "not_built" if artifact.not_built is not None else "ok"
    return TargetRecord(
        status="failed" if failures else status,
        why="; ".join(failures) or artifact.not_built,
        path=PurePosixPath(name, artifact.path).as_posix(),
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
        scheme=asked_scheme(recipe),
        signature=artifact.signature,
        layouts=artifact.layouts,
        preprocess=artifact.preprocess,
        confidence=artifact.confidence,
        parity={"L1": result.quantization, "L2": result.parity},
        metrics=result.metrics,
        latency_ms=measured,
        realised=realised,
        identical_integers_with=same,
        identical_weights_with=weights,
        own_grids=own,
        engine=artifact.engine,
        seconds=result.seconds,
        warnings=tuple(warnings),
    )


def _losses(result: jobs.TargetResult) -> list[str]:
    """What is lost against float beyond what a good conversion loses; no limit of the recipe may say so."""
    found, parity = [], result.parity
    if parity.sqnr_db < jobs.FAR_FROM_FLOAT_DB:
        agreement = "" if parity.top1_agreement is None else f", top-1 agrees on {parity.top1_agreement:.1%} of samples"
        located = result.quantization.located
        found.append(
            f"far from float: {parity.sqnr_db:.1f} dB{agreement}. {located.text + '. ' if located else ''}"
            "Try effort best, or keep layers in float (keep_float)"
        )
    metrics = result.metrics
    if metrics is not None and (lost := metrics.float_.top1 - metrics.target.top1) >= LOST_ACCURACY:
        found.append(f"accuracy falls by {lost * 100:.1f} points, from {metrics.float_.top1:.2%}")
    return found


def _latency(found: tuple[BenchResult, BenchResult | None] | None) -> Latency | None:
    if found is None:
        return None
    target, reference = found
    slower = None
    if reference is not None and target.latency_ms.low > reference.latency_ms.high * NOISE:
        slower = round(target.latency_ms.p50 / reference.latency_ms.p50, 3)
    return Latency(target=target, float_=reference, slower_than_float=slower)


def asked_scheme(recipe: Recipe) -> SchemeName | Literal["mixed"]:
    """What was asked of the whole model; ``mixed`` where rules by node name say otherwise for parts."""
    for step in recipe.passes:
        if isinstance(step, Quantize):
            return "mixed" if step.rules or step.keep_float else step.scheme
    return "fp32"


def _exit_code(errors: Any, targets: Mapping[str, TargetRecord], conversion: tuple[str, ...]) -> Literal[0, 1, 2, 3, 4]:
    """The first that occurs of 2, 4, 3, 1, 0."""
    codes = {error.exit_code for error in errors}
    if conversion or any(target.status == "failed" for target in targets.values()):
        codes.add(1)
    order: tuple[Literal[0, 1, 2, 3, 4], ...] = (2, 4, 3, 1)
    return next((code for code in order if code in codes), 0)


def _source_name(source: DataSource) -> str:
    path = source.images or source.arrays
    return path.name if path is not None else str(source.callable)
