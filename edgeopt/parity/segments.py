"""An artifact segment by segment: cut between the table's tensors, each piece fed with the reference's integers.

A lowering error shows in the segment where it is made and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.model import serialise
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.parity.compare import Accumulator, SegmentParity, same_shape
from edgeopt.parity.cuts import open_cut
from edgeopt.parity.tolerances import DYNAMIC_DB, FLOAT_REL, FP16_REL, WITHIN_ONE_STEP
from edgeopt.runtimes import onnxruntime
from edgeopt.types import Artifact

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Kind = Literal["int8", "float32", "float16", "dynamic"]


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
        self._reference = self._stack.enter_context(
            onnxruntime.Session(serialise(model), threads=threads, optimize=False)
        )
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
                accumulator.add(right, same_shape(made[name], right))

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
