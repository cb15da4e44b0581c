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
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import onnx_ir as ir

from edgeopt.frontends import Source
from edgeopt.graph.compression import COMPRESSED
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.parity.compare import (
    Accumulator,
    LevelReport,
    SegmentParity,
    level_report,
    noise_ratio_error_db,
)
from edgeopt.parity.cuts import open_cut
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
from edgeopt.runtimes import onnxruntime
from edgeopt.types import Artifact

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Kind = Literal["int8", "float32", "float16", "dynamic"]


@dataclass(frozen=True)
class Tolerance:
    """A limit, and why it is where it is."""

    value: float
    reason: str


FLOAT_REL = Tolerance(1e-4, "float32 sums in another order differ by 1e-7 to 1e-5 in deep networks")
FP16_REL = Tolerance(1e-2, "fp16 has 11 bits: 5e-4 per rounding, and roundings of a deep network add up")
OF_QUANTIZATION = Tolerance(
    0.5, "where the weights' own rounding moves an output further, half of that: such a network amplifies everything"
)
WITHIN_ONE_STEP = Tolerance(
    0.999, "on equal integers two right kernels differ where a value lies near a tie: by one step, never by more"
)
DYNAMIC_DB = Tolerance(
    6.0,
    "rounding activations at run time loses what it loses, and deep networks amplify it; a wrong weight leaves 0 dB",
)
END_TO_END_DB = Tolerance(
    0.5, "the artifact may round otherwise than the reference, not worse: equal noise, measured to half a decibel"
)
END_TO_END_LOW_DB = Tolerance(
    2.0,
    "below 20 dB, or on fewer than 32 samples, the noise is so large or so little known that two draws of it differ",
)
SURE = 2.0
"""Standard errors: a right artifact is blamed for a difference by chance once in forty times at most."""
LOW_DB = 20.0
FEW_SAMPLES = 32

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
        tolerance: largest relative error of an output; None: ``FLOAT_REL``.

    Raises:
        ModelError: the source refuses a sample.
    """
    limit = FLOAT_REL.value if tolerance is None else tolerance
    accumulators = {value.name or "": Accumulator() for value in graph.graph.outputs}
    count = 0
    with onnxruntime.Session(_bytes(graph), threads=threads) as session:
        for feed, expected in _beside(samples, source.run):
            count += 1
            made = session.run(feed)
            for name, accumulator in accumulators.items():
                accumulator.add(_same_shape(expected[name], made[name]), made[name])
    label = f"{count} samples, source against ONNX Runtime {onnxruntime.version()}, CPU"
    return level_report("L0", label, count, accumulators, _above("output", accumulators, limit, FLOAT_REL.reason))


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
        onnxruntime.Session(_bytes(graph.model), threads=threads) as exact,
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
        exact = stack.enter_context(onnxruntime.Session(_bytes(graph.model), threads=threads))
        runner = stack.enter_context(open_file(path, artifact, threads=threads))
        segments = (
            stack.enter_context(Segments(graph, artifact, path, threads=threads, tolerance=tolerance))
            # Without tensors of the table all of the file is one segment: in fp16 it is judged without the rounding.
            if table.schemes and segment_samples and (table.activations or not _rounds(artifact, path))
            else None
        )
        # Integers that the caller asked for at a place where the table has none: the reference is judged behind the
        # same rounding.
        ports = {**runner.input_ports, **runner.output_ports}
        asked = any(port.scale is not None and name not in table.activations for name, port in ports.items())
        behind = {name: Accumulator() for name in accumulators} if asked and quantized else None
        rounding = stack.enter_context(_reference(graph, threads)) if behind is not None else None
        unrounded = stack.enter_context(_Unrounded(graph, artifact, path, threads)) if _rounds(artifact, path) else None
        for feed in samples:
            expected, made = exact.run(feed), runner.call(feed)
            for name, accumulator in accumulators.items():
                accumulator.add(expected[name], _same_shape(made[name], expected[name]))
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
        failures += unrounded.failures(reference, tolerance)
    elif not quantized:
        limit = FP16_REL if half else FLOAT_REL
        value = limit.value if tolerance is None else tolerance
        above = _above("output", accumulators, value, limit.reason)
        # A deep network can amplify roundings beyond that: in fp16 of the weights, in fp32 of sums in another order.
        # The reference has the same weights and is not optimised: what is no further off than it is right.
        held = tolerance is not None and not half
        if held or reference is None or _below_reference(report, reference, end_to_end_db):
            failures += above
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


def _rounds(artifact: Artifact, path: Path) -> bool:
    """Whether the file computes in fp16, on a runtime that can leave out its rounding."""
    return artifact.float_dtype == "float16" and path.suffix == ".mlpackage"


class _Unrounded:
    """A file that computes in fp16, evaluated once more without the rounding, on a few samples. A context manager.

    What the rounding costs is the format's and stands in the report; whether the lowering is right shows without it,
    against the reference, which has the same weights.
    """

    def __init__(self, graph: QuantizedGraph, artifact: Artifact, path: Path, threads: int) -> None:
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(open_file(path, artifact, threads=threads, rounding=False))
        self._reference = self._stack.enter_context(_reference(graph, threads))
        names = [value.name or "" for value in graph.model.graph.outputs]
        self._without = {name: Accumulator() for name in names}
        self._rounded = {name: Accumulator() for name in names}
        self._lowering = {name: Accumulator() for name in names}
        self._count = 0

    def __enter__(self) -> _Unrounded:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, feed: Feed, expected: Mapping[str, Array], rounded: Mapping[str, Array]) -> None:
        """One sample; ``expected``: of the float graph, ``rounded``: of the file as it is."""
        self._count += 1
        plain, reference = self._runner.call(feed), self._reference.run(feed)
        for name in self._without:
            value = _same_shape(plain[name], expected[name])
            self._without[name].add(expected[name], value)
            self._rounded[name].add(expected[name], _same_shape(rounded[name], expected[name]))
            self._lowering[name].add(reference[name], value)

    def costs_db(self) -> float:
        """SQNR against float without the rounding, less that with it, on the same samples."""
        reports = [level_report("L2", "", self._count, found) for found in (self._without, self._rounded)]
        return reports[0].sqnr_db - reports[1].sqnr_db

    def failures(self, reference: LevelReport | None, tolerance: float | None) -> list[str]:
        """Outputs that differ from the reference by more than storing numbers in fp16 can explain."""
        limit = FP16_REL.value if tolerance is None else tolerance
        found = []
        for name, accumulator in self._lowering.items():
            known = reference.outputs.get(name) if reference is not None else None
            most = max(limit, OF_QUANTIZATION.value * known.rel) if known is not None else limit
            rel = accumulator.result().rel
            if not rel <= most:
                found.append(
                    f"output '{name}', without fp16's rounding: relative error {rel:.2e} against the integer reference;"
                    f" at most {most:.2g} ({FP16_REL.reason}; {OF_QUANTIZATION.reason})"
                )
        return found


class Segments:
    """An artifact cut between the table's tensors, each segment fed with the reference's integers.

    A context manager: it holds the cut file on its runtime and the reference.
    """

    def __init__(
        self,
        graph: QuantizedGraph,
        artifact: Artifact,
        path: Path,
        *,
        threads: int = 1,
        accelerated: bool = True,
        tolerance: float | None = None,
    ) -> None:
        self._table = graph.quantization or Quantization()
        self._tolerance = tolerance
        model = to_qdq(graph, fold_weights=True, expose_integers=True)
        self._outputs = [value.name or "" for value in graph.model.graph.outputs]
        exposed = [value.name or "" for value in model.graph.outputs if (value.name or "").endswith(INTEGERS_SUFFIX)]
        self._tensors = [name.removesuffix(INTEGERS_SUFFIX) for name in exposed]
        self._ends = _Ends(graph.model, self._table, frozenset(self._tensors))
        self._float: Kind = "float16" if artifact.float_dtype == "float16" else "float32"
        self._stack = ExitStack()
        self._reference = self._stack.enter_context(onnxruntime.Session(_bytes(model), threads=threads, optimize=False))
        opened = open_cut(path, artifact, self._tensors, threads=threads, accelerated=accelerated)
        self._cut = self._stack.enter_context(opened)
        self.unmatched = tuple(name for name in self._tensors if name not in self._cut.produced)
        self._accumulators: dict[str, Accumulator] = {}
        for name in dict.fromkeys([*self._tensors, *self._outputs]):
            if name in self._cut.produced:
                self._accumulators[name] = Accumulator(float(self._table.activations[name].scale))
            elif name in self._outputs:
                self._accumulators[name] = Accumulator(self._cut.output_step(name))

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, feed: Feed) -> None:
        """Run every segment on one sample."""
        ports = self._cut.runner.input_ports
        expected = self._reference.run(
            {name: ports[name].rounded(array) if name in ports else array for name, array in feed.items()}
        )
        integers = {name: expected[name + INTEGERS_SUFFIX] for name in self._tensors}
        made = self._cut.run(feed, integers, self._table)
        for name, accumulator in self._accumulators.items():
            if name in self._cut.produced:
                params, value = self._table.activations[name], made[name]
                if value.dtype.kind == "f":
                    # The file gives the unrounded result: it must round to the same step, or the next.
                    value = params.quantize(value)
                accumulator.add_integers(integers[name], value, int(params.zero_point))
            else:
                # An output that is asked for as integers saturates where its range ends, in the reference too.
                right = self._cut.runner.output_ports[name].rounded(expected[name])
                accumulator.add(right, _same_shape(made[name], right))

    def results(self) -> tuple[SegmentParity, ...]:
        """Every segment in graph order, judged."""
        found = []
        for name, accumulator in self._accumulators.items():
            parity = accumulator.result()
            node, kind = self._ends.of(name)
            if kind == "float32" or (kind == "int8" and parity.within_one_step is None):
                kind = self._float
            failure: str | None = None
            what = f"segment that ends in '{name}' (node {node})"
            if kind == "dynamic":
                if parity.sqnr_db < DYNAMIC_DB.value:
                    failure = f"{what}: {parity.sqnr_db:.1f} dB; at least {DYNAMIC_DB.value:g} ({DYNAMIC_DB.reason})"
            elif parity.within_one_step is not None:
                if parity.within_one_step < WITHIN_ONE_STEP.value:
                    failure = (
                        f"{what}: {parity.within_one_step:.3%} of values within one step, largest difference"
                        f" {parity.lsb_max:.1f} steps; at least {WITHIN_ONE_STEP.value:.1%} ({WITHIN_ONE_STEP.reason})"
                    )
            else:
                limit = FP16_REL if kind == "float16" else FLOAT_REL
                value = limit.value if self._tolerance is None else self._tolerance
                if parity.rel > value:
                    failure = f"{what}: relative error {parity.rel:.2e}; at most {value:g} ({limit.reason})"
            found.append(SegmentParity(tensor=name, node=node, kind=kind, parity=parity, failure=failure))
        return tuple(found)


class _Ends:
    """Which node makes a tensor, and in what its segment computes."""

    def __init__(self, model: ir.Model, table: Quantization, tensors: frozenset[str]) -> None:
        self._table = table
        self._tensors = tensors
        self._values = {value.name: value for node in model.graph for value in node.outputs}

    def of(self, name: str) -> tuple[str, Kind]:
        value = self._values.get(name)
        producer = value.producer() if value is not None else None
        if producer is None:
            return name, "int8"
        schemes = {self._table.scheme(node) for node in self._inside(producer)}
        if "int8-dynamic" in schemes:
            return producer.name or "", "dynamic"
        if "fp16" in schemes:
            return producer.name or "", "float16"
        return producer.name or "", "int8" if "int8" in schemes else "float32"

    def _inside(self, last: ir.Node) -> Iterator[ir.Node]:
        """Nodes between tensors of the table and ``last``, itself included."""
        open_nodes, seen = [last], {id(last)}
        while open_nodes:
            node = open_nodes.pop()
            yield node
            for value in node.inputs:
                producer = value.producer() if value is not None else None
                if value is None or producer is None or value.name in self._tensors or id(producer) in seen:
                    continue
                seen.add(id(producer))
                open_nodes.append(producer)


def _beside(samples: Iterable[Feed], run: Callable[[Any], Iterator[Feed]]) -> Iterator[tuple[Feed, Feed]]:
    """Each sample with what ``run`` makes of it, in step: no more than one sample is held."""
    first, second = tee(samples)
    return zip(first, run(second), strict=True)


def _reference(graph: QuantizedGraph, threads: int) -> onnxruntime.Session:
    return onnxruntime.Session(_bytes(to_qdq(graph, fold_weights=True)), threads=threads, optimize=False)


def _bytes(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def _same_shape(value: Array, reference: Array) -> Array:
    """Runtimes disagree on axes of size 1; anything else is left for the comparison to refuse."""
    return value.reshape(reference.shape) if value.size == reference.size else value


def _above(what: str, accumulators: Mapping[str, Accumulator], limit: float, reason: str) -> list[str]:
    failures = []
    for name, accumulator in accumulators.items():
        rel = accumulator.result().rel
        if not rel <= limit:
            failures.append(f"{what} '{name}': relative error {rel:.2e}; at most {limit:g} ({reason})")
    return failures
