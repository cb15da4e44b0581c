"""A file that computes in fp16, without the rounding: what fp16 costs, and whether the lowering is right.

Roundings spread until nothing can be told from them. Without those of the results only the stored numbers are left in
fp16, and the integer reference can be given the same ones (``graph.half``): then the two are the same function, and
differ by the order of sums alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.half import halved, scales_fit
from edgeopt.graph.model import serialise
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.parity.compare import Accumulator, level_report, same_shape
from edgeopt.parity.runners import open_file
from edgeopt.parity.tolerances import FLOAT_REL, FP16_REL, OF_SUMS, of_sums
from edgeopt.runtimes import onnxruntime
from edgeopt.types import Artifact

DERIVED = frozenset({"BatchNormalization", "Resize"})
"""Operators whose numbers a file may compute before it stores them (a factor, an interpolation): those are rounded."""

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


def can_be(artifact: Artifact, path: Path) -> bool:
    """Whether the file computes in fp16, on a runtime that can leave out its rounding."""
    return artifact.float_dtype == "float16" and path.suffix == ".mlpackage"


class Unrounded:
    """The file run without rounding its results, on a few samples. A context manager.

    Only a file without integers of activations can be judged whole; one with them is judged by its segments.
    """

    def __init__(self, graph: QuantizedGraph, artifact: Artifact, path: Path, threads: int) -> None:
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(open_file(path, artifact, threads=threads, rounding=False))
        names = [value.name or "" for value in graph.model.graph.outputs]
        self._without = {name: Accumulator() for name in names}
        self._rounded = {name: Accumulator() for name in names}
        self._lowering = {name: Accumulator() for name in names}
        self._order = {name: Accumulator() for name in names}
        self._count = 0
        self._moved = {name: Accumulator() for name in names}
        self._sessions: list[onnxruntime.Session] = []
        table = graph.quantization or Quantization()
        if not table.activations:
            halves = _halves(graph.model, table)
            stored = serialise(to_qdq(halved(graph, halves), fold_weights=True))
            opened = [(stored, False), (stored, True)]
            if any(node.op_type in DERIVED and node.name in halves for node in graph.model.graph):
                opened.append((serialise(to_qdq(graph, fold_weights=True)), False))
            for model, optimize in opened:
                session = onnxruntime.Session(model, threads=threads, optimize=optimize)
                self._sessions.append(self._stack.enter_context(session))

    def __enter__(self) -> Unrounded:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, feed: Feed, expected: Mapping[str, Array], rounded: Mapping[str, Array]) -> None:
        """One sample; ``expected``: of the float graph, ``rounded``: of the file as it is."""
        self._count += 1
        made = self._runner.call(feed)
        stored = [session.run(feed) for session in self._sessions]
        for name in self._without:
            value = same_shape(made[name], expected[name])
            self._without[name].add(expected[name], value)
            self._rounded[name].add(expected[name], same_shape(rounded[name], expected[name]))
            if stored:
                self._lowering[name].add(stored[0][name], value)
                self._order[name].add(stored[0][name], stored[1][name])
            for exact in stored[2:]:
                self._moved[name].add(exact[name], stored[0][name])

    def costs_db(self) -> float:
        """SQNR against float without the rounding, less that with it, on the same samples."""
        reports = [level_report("L2", "", self._count, found) for found in (self._without, self._rounded)]
        return reports[0].sqnr_db - reports[1].sqnr_db

    def failures(self, tolerance: float | None) -> list[str]:
        """Outputs that differ from the reference with the same stored numbers by more than ``tolerance``, or than
        the order of sums explains; with operators of ``DERIVED``, than storing numbers in fp16 does itself."""
        found = []
        for name, accumulator in self._lowering.items():
            most = of_sums(self._order[name].result().rel) if tolerance is None else tolerance
            if tolerance is None and len(self._sessions) > 2:
                most = max(most, min(self._moved[name].result().rel, FP16_REL.value))
            rel = accumulator.result().rel
            if not rel <= most:
                found.append(
                    f"output '{name}', without fp16's rounding: relative error {rel:.2e} against the reference with the"
                    f" same numbers in fp16; at most {most:.2g} ({FLOAT_REL.reason};"
                    f" or {OF_SUMS.value:g} {OF_SUMS.reason})"
                )
        return found


def _halves(model: ir.Model, table: Quantization) -> frozenset[str]:
    """Names of the nodes whose numbers a file in fp16 stores in fp16."""
    if "fp16" in table.schemes.values():
        return frozenset(node.name or "" for node in model.graph if table.scheme(node) == "fp16")
    return frozenset(
        node.name or "" for node in model.graph if node.op_type not in WEIGHTED or scales_fit(table, node.inputs[1])
    )
