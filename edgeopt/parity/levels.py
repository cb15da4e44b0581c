"""The three levels of parity, on real samples.

- ``L0`` source → float graph: conversion.
- ``L1`` float graph → integer reference: quantization. The reference is the Q/DQ graph run by ONNX Runtime with
  graph optimisations off: what the table means.
- ``L2`` integer reference → artifact on its own runtime: lowering. Two correct int8 runtimes drift apart by about as
  much as quantization itself, as their roundings differ and spread. So the artifact is judged *segment by segment* on
  the reference's own integers (a lowering error shows there and nowhere else), and end to end by whether it is as
  close to float as the reference is.

Every run has a fixed number of threads, so that results repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from itertools import tee
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from edgeopt.frontends import Source
from edgeopt.graph.compression import COMPRESSED
from edgeopt.graph.model import serialise
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.parity import unrounded as without_rounding
from edgeopt.parity.compare import Accumulator, LevelReport, level_report, noise_ratio_error_db, same_shape
from edgeopt.parity.localize import (
    BEST_INT8_DB,
    FP16_DB,
    LOCALIZE_SAMPLES,
    ROUNDING_DB,
    first_failing_segment,
    float_errors,
    quantization_errors,
)
from edgeopt.parity.runners import open_file
from edgeopt.parity.segments import Segments
from edgeopt.parity.tolerances import (
    END_TO_END_DB,
    END_TO_END_LOW_DB,
    FEW_SAMPLES,
    FLOAT_REL,
    FP16_REL,
    LOW_DB,
    SURE,
    above,
    of_sums,
)
from edgeopt.runtimes import onnxruntime
from edgeopt.types import Artifact

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
SEGMENT_SAMPLES = 8
"""Samples on which segments are compared: each gives as many values as the tensor has, so few are enough."""


def check_source(
    source: Source, graph: ir.Model, samples: Iterable[Feed], *, threads: int = 1, tolerance: float | None = None
) -> LevelReport:
    """``L0``: the source against the float graph after all function-preserving passes.

    Args:
        source: runs the model as the user has it.
        graph: the canonical float graph; its input and output names are the source's.
        samples: read once, one by one.
        tolerance: largest relative error of an output; None: ``FLOAT_REL``, or ``OF_SUMS`` where that is more.

    Raises:
        ModelError: the source refuses a sample.
    """
    accumulators = {value.name or "": Accumulator() for value in graph.graph.outputs}
    orders = {name: Accumulator() for name in accumulators}
    data, count = serialise(graph), 0
    with (
        onnxruntime.Session(data, threads=threads) as session,
        onnxruntime.Session(data, threads=threads, optimize=False) as otherwise,
    ):
        for feed, expected in _beside(samples, source.run):
            count += 1
            made, again = session.run(feed), otherwise.run(feed)
            for name, accumulator in accumulators.items():
                accumulator.add(same_shape(expected[name], made[name]), made[name])
                orders[name].add(made[name], again[name])
    label = f"{count} samples, source against ONNX Runtime {onnxruntime.version()}, CPU"
    failures = [
        failure
        for name, accumulator in accumulators.items()
        for limit in [of_sums(orders[name].result().rel) if tolerance is None else tolerance]
        for failure in above("output", {name: accumulator}, limit, FLOAT_REL.reason)
    ]
    return level_report("L0", label, count, accumulators, failures)


def check_quantization(
    graph: QuantizedGraph, samples: Iterable[Feed], *, threads: int = 1, localize: bool = False
) -> LevelReport:
    """``L1``: the float graph against the integer reference. A loss here is quantization's; nothing fails by itself.

    Args:
        graph: float graph and table.
        samples: read once, one by one.
        threads: fixed.
        localize: also compare every tensor of the table, and name the first layer where the error jumps.
    """
    kept: list[Feed] = []
    accumulators = {value.name or "": Accumulator() for value in graph.model.graph.outputs}
    count = 0
    with (
        onnxruntime.Session(serialise(graph.model), threads=threads) as exact,
        _reference(graph, threads) as reference,
    ):
        for feed in samples:
            count += 1
            if localize and len(kept) < LOCALIZE_SAMPLES:
                kept.append(dict(feed))
            expected, made = exact.run(feed), reference.run(feed)
            for name, accumulator in accumulators.items():
                accumulator.add(expected[name], made[name])
    label = f"{count} samples, ONNX Runtime {onnxruntime.version()}, CPU, optimisations off"
    more: dict[str, Any] = {}
    if localize and graph.quantization is not None and graph.quantization.activations:
        errors = quantization_errors(graph, kept, threads=threads)
        more = {"located": errors.locate("L1", BEST_INT8_DB), "tensors_db": errors.sqnr_db()}
    return level_report("L1", label, count, accumulators, **more)


def check_artifact(
    graph: QuantizedGraph,
    artifact: Artifact,
    path: Path,
    samples: Iterable[Feed],
    *,
    reference: LevelReport | None = None,
    threads: int = 1,
    segment_samples: int = SEGMENT_SAMPLES,
    tolerance: float | None = None,
    end_to_end_db: float | None = None,
    min_sqnr_db: float | None = None,
    min_top1_agreement: float | None = None,
    localize: bool = False,
) -> LevelReport:
    """``L2``: the artifact on its own runtime.

    Figures of the outputs are against the float graph; ``segments`` and the steps are against the integer reference.

    Args:
        graph: float graph and table that the artifact was written from.
        artifact: what the target said of it.
        path: the file.
        samples: read once, one by one.
        reference: the ``L1`` report over the same samples; without it an int8 artifact is not judged end to end.
        segment_samples: so many of the samples, evenly spread, are also compared segment by segment.
        tolerance: largest relative error of float outputs; None: by scheme.
        end_to_end_db: how far the artifact's SQNR may lie below the reference's; None: ``END_TO_END_DB``, or
            ``END_TO_END_LOW_DB`` where that cannot be told.
        min_sqnr_db: what the user asks of every artifact, end to end.
        min_top1_agreement: the same.
        localize: name the first layer where the error jumps, also where nothing failed. Where a tolerance fails, it
            is named in any case.

    Raises:
        TargetError: the runtime refuses the file.
    """
    kept: list[Feed] = []
    table = graph.quantization or Quantization()
    schemes = set(table.schemes.values())
    quantized = any(scheme.startswith("int8") for scheme in schemes) or bool(schemes & COMPRESSED)
    half = "fp16" in schemes or artifact.float_dtype == "float16"
    accumulators = {value.name or "": Accumulator() for value in graph.model.graph.outputs}
    # Spread over all samples: data is often sorted, and one class or one brightness may leave a channel idle.
    apart = max(1, len(samples) // max(segment_samples, 1)) if isinstance(samples, Sized) else 1
    count = 0
    with ExitStack() as stack:
        exact = stack.enter_context(onnxruntime.Session(serialise(graph.model), threads=threads))
        runner = stack.enter_context(open_file(path, artifact, threads=threads))
        segments = (
            stack.enter_context(Segments(graph, artifact, path, threads=threads, tolerance=tolerance))
            # Without tensors of the table all of the file is one segment: in fp16 it is judged without the rounding.
            if table.schemes and segment_samples and (table.activations or not without_rounding.can_be(artifact, path))
            else None
        )
        # Integers that the caller asked for at a place where the table has none: the reference is judged behind the
        # same rounding.
        ports = {**runner.input_ports, **runner.output_ports}
        asked = any(port.scale is not None and name not in table.activations for name, port in ports.items())
        behind = {name: Accumulator() for name in accumulators} if asked and quantized else None
        rounding = stack.enter_context(_reference(graph, threads)) if behind is not None else None
        rounds = without_rounding.can_be(artifact, path)
        unrounded = stack.enter_context(without_rounding.Unrounded(graph, artifact, path, threads)) if rounds else None
        for feed in samples:
            expected, made = exact.run(feed), runner.call(feed)
            for name, accumulator in accumulators.items():
                accumulator.add(expected[name], same_shape(made[name], expected[name]))
            if rounding is not None and behind is not None:
                rounded = rounding.run({name: runner.input_ports[name].rounded(array) for name, array in feed.items()})
                for name, accumulator in behind.items():
                    accumulator.add(expected[name], runner.output_ports[name].rounded(rounded[name]))
            if unrounded is not None and count < SEGMENT_SAMPLES:
                unrounded.add(feed, expected, made)
            if segments is not None and count % apart == 0 and count // apart < segment_samples:
                segments.add(feed)
            if count < LOCALIZE_SAMPLES:
                kept.append(dict(feed))
            count += 1
    if behind is not None and reference is not None:
        reference = level_report("L1", reference.label, count, behind)
    found = segments.results() if segments is not None else ()
    failures = [segment.failure for segment in found if segment.failure is not None]
    integers = [segment.parity for segment in found if segment.parity.within_one_step is not None]
    more: dict[str, Any] = {
        "segments": found,
        "unmatched": segments.unmatched if segments is not None else (),
        "lsb_max": max((p.lsb_max for p in integers if p.lsb_max is not None), default=None),
        "equal": _mean([(p.equal, p.values) for p in integers]),
        "within_one_step": _mean([(p.within_one_step, p.values) for p in integers]),
        "reference_sqnr_db": reference.sqnr_db if reference is not None and quantized else None,
        "fp16_costs_db": unrounded.costs_db() if unrounded is not None else None,
    }
    report = level_report("L2", f"{count} samples, {runner.label}", count, accumulators, **more)
    if unrounded is not None and not table.activations:
        failures += unrounded.failures(tolerance)
    elif half and not quantized:
        limit = FP16_REL.value if tolerance is None else tolerance
        # A deep network can amplify the weights' rounding beyond that. The reference has the same weights.
        if reference is None or _below_reference(report, reference, end_to_end_db):
            failures += above("output", accumulators, limit, FP16_REL.reason)
    elif not quantized:
        for name, accumulator in accumulators.items():
            # Of a float32 graph the reference is the same graph, its sums in another order.
            order = reference.outputs[name].rel if reference is not None else 0.0
            limit = of_sums(order) if tolerance is None else tolerance
            failures += above("output", {name: accumulator}, limit, FLOAT_REL.reason)
    elif reference is not None and "int8-dynamic" not in schemes:
        failures += _below_reference(report, reference, end_to_end_db)
    if min_sqnr_db is not None and report.sqnr_db < min_sqnr_db:
        failures.append(f"SQNR against float is {report.sqnr_db:.1f} dB; at least {min_sqnr_db:g} dB was asked")
    agreement = report.top1_agreement
    if min_top1_agreement is not None and agreement is not None and agreement < min_top1_agreement:
        failures.append(f"top-1 agreement with float is {agreement:.2%}; at least {min_top1_agreement:.2%} was asked")
    located: dict[str, Any] = {"located": first_failing_segment(report)}
    if not table.activations and (localize or failures):
        errors = float_errors(graph, artifact, path, kept, threads=threads)
        best = FP16_DB if half else ROUNDING_DB
        located = {"located": errors.locate("L2", best), "tensors_db": errors.sqnr_db()}
    return report.model_copy(update={"failures": tuple(failures), **located})


def _below_reference(report: LevelReport, reference: LevelReport, asked: float | None) -> list[str]:
    known = reference.sqnr_db >= LOW_DB and min(report.samples, reference.samples) >= FEW_SAMPLES
    limit = END_TO_END_DB if known else END_TO_END_LOW_DB
    value = limit.value if asked is None else asked
    # The two noises are compared on a few samples: a difference that another draw of samples would undo is none.
    chance = noise_ratio_error_db(report.sample_noise, reference.sample_noise)
    unsure = SURE * chance if math.isfinite(chance) else 0.0
    if report.sqnr_db >= reference.sqnr_db - value - unsure:
        return []
    return [
        f"end to end {report.sqnr_db:.2f} dB against float, the reference {reference.sqnr_db:.2f} dB: more than"
        f" {value:g} dB less, ± {unsure:.2f} by chance ({limit.reason})"
    ]


def _mean(shares: Sequence[tuple[float | None, int]]) -> float | None:
    """Over all values of shares of so many values each; None of none."""
    return sum((share or 0) * count for share, count in shares) / max(sum(n for _, n in shares), 1) if shares else None


def _beside(samples: Iterable[Feed], run: Callable[[Any], Iterator[Feed]]) -> Iterator[tuple[Feed, Feed]]:
    """Each sample with what ``run`` makes of it, in step: no more than one sample is held."""
    first, second = tee(samples)
    return zip(first, run(second), strict=True)


def _reference(graph: QuantizedGraph, threads: int) -> onnxruntime.Session:
    return onnxruntime.Session(serialise(to_qdq(graph, fold_weights=True)), threads=threads, optimize=False)
