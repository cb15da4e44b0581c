"""Where an error comes from: the first layer at which it jumps, and by how much.

Every tensor that both sides know by the same name is compared, sample by sample. A layer's jump is what it adds: the
SQNR of the worst tensor that it reads (through whatever lies between), less the SQNR of what it makes. The layer
named is the first, in graph order, whose jump is within a decibel of the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import tflite as tflite_format
from edgeopt.graph.model import exposed
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.parity.compare import EXACT_DB, Accumulator, LevelName, LevelReport, Located, decibel
from edgeopt.parity.runners import Feed, bind_ports
from edgeopt.runtimes import onnxruntime
from edgeopt.types import Artifact

Array = npt.NDArray[Any]

LOCALIZE_SAMPLES = 4
"""Each sample gives as many values as the tensors have; a jump that matters shows on any of them."""
BEST_INT8_DB = 50.0
"""No 8-bit tensor is better (a full grid of 256 steps has 6.02·8 + 1.76). What lies above counts as this: the first
rounding of an exact input is no jump."""
ROUNDING_DB = 120.0
"""float32 itself (24 bits: 144 dB per rounding). The same, for layers in float."""
FP16_DB = 66.0
"""fp16 per rounding (11 bits)."""
JUMP_DB = 6.0
"""Less than a doubling of the error is drift, not a jump."""


class TensorErrors:
    """Collects errors of named tensors, in graph order.

    Args:
        model: the graph whose order and names count.
        names: tensors to compare.
        scaled: a tensor of four axes may have its channels on other scales than the graph's, as equalisation leaves
            them: then its error is what remains when each channel is scaled to fit best.
    """

    def __init__(self, model: ir.Model, names: Iterable[str], *, scaled: bool = False) -> None:
        self._sums = {name: Accumulator() for name in names}
        self._channels: dict[str, Array] = {}
        self._scaled = scaled
        self._model = model

    def add(self, expected: Mapping[str, Array], made: Mapping[str, Array]) -> None:
        for name, accumulator in self._sums.items():
            if name in expected and name in made and expected[name].size == made[name].size:
                right, value = expected[name], made[name].reshape(expected[name].shape).astype(np.float32)
                accumulator.add(right, value)
                if self._scaled and right.ndim == 4:
                    a, b = (np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.float64) for x in (right, value))
                    products = np.stack([(a * a).sum(1), (a * b).sum(1), (b * b).sum(1)])
                    self._channels[name] = self._channels.get(name, 0) + products

    def sqnr_db(self) -> dict[str, float]:
        """SQNR of every tensor that was compared, in graph order."""
        order = [value.name or "" for value in self._model.graph.inputs]
        order += [value.name or "" for node in self._model.graph for value in node.outputs]
        results = {name: accumulator.result() for name, accumulator in self._sums.items()}
        found = {name: results[name].sqnr_db for name in order if name in results and results[name].values}
        return {name: max(plain, self._fitted_db(name)) for name, plain in found.items()}

    def _fitted_db(self, name: str) -> float:
        """SQNR with the best scale per channel; lowest where that is not asked or a channel is turned around."""
        if (products := self._channels.get(name)) is None:
            return -EXACT_DB
        right, both, value = products
        if (both <= 0).any() and (right[both <= 0] > 0).any():
            return -EXACT_DB
        used = both > 0
        remaining = right[used] * np.maximum(right[used] * value[used] / np.square(both[used]) - 1, 0)
        return decibel(float(right.sum()), float(remaining.sum()))

    def locate(self, level: LevelName, best_db: float) -> Located | None:
        """The first large jump, or None if there is none."""
        decibels = self.sqnr_db()
        sources = _sources(self._model, frozenset(decibels))
        jumps = {}
        for name, after in decibels.items():
            read = [decibels[source] for source in sources[name]]
            jumps[name] = (min([best_db, *read]), after)
        if not jumps:
            return None
        largest = max(before - after for before, after in jumps.values())
        if largest < JUMP_DB:
            return None
        name = next(name for name, (before, after) in jumps.items() if before - after >= largest - 1)
        before, after = jumps[name]
        node = _maker(self._model, name)
        return Located(
            level=level,
            node=node,
            tensor=name,
            before_db=before,
            after_db=after,
            text=f"the error jumps at node {node}, which makes '{name}': from {before:.1f} to {after:.1f} dB",
        )


def quantization_errors(graph: QuantizedGraph, samples: Iterable[Feed], *, threads: int = 1) -> TensorErrors:
    """``L1``: every tensor of the table as the integer reference has it, against the float graph."""
    table = graph.quantization or Quantization()
    reference = to_qdq(graph, fold_weights=True, expose_integers=True)
    outputs = [value.name or "" for value in reference.graph.outputs]
    tensors = [name.removesuffix(INTEGERS_SUFFIX) for name in outputs if name.endswith(INTEGERS_SUFFIX)]
    errors = TensorErrors(graph.model, tensors, scaled=True)
    with (
        onnxruntime.Session(exposed(graph.model, tensors), threads=threads) as exact,
        onnxruntime.Session(ir.to_proto(reference).SerializeToString(), threads=threads, optimize=False) as quantized,
    ):
        for feed in samples:
            found = quantized.run(feed)
            made = {name: table.activations[name].dequantize(found[name + INTEGERS_SUFFIX]) for name in tensors}
            errors.add({**exact.run(feed), **feed}, made)
    return errors


def float_errors(
    graph: QuantizedGraph, artifact: Artifact, path: Path, samples: Iterable[Feed], *, threads: int = 1
) -> TensorErrors:
    """``L2`` of a float artifact: every float tensor that file and graph know by the same name."""
    names = [value.name or "" for node in graph.model.graph for value in node.outputs if _is_float(value)]
    session: Any
    layouts: Mapping[str, tflite_format.Layout] = {}
    if path.suffix == ".onnx":
        model = onnx_format.load(path)
        found = {value.name: value for node in model.graph for value in node.outputs}
        names = [name for name in names if name in found and found[name].dtype is not None and _is_float(found[name])]
        session = onnxruntime.Session(exposed(model, names), threads=threads)
    elif path.suffix == ".mlpackage":
        from edgeopt.runtimes import mil_reference

        session = mil_reference.Session(path, threads=threads)
        known = {name for name in session.variables() if session.info(name).dtype in ("float16", "float32")}
        names = [name for name in names if name in known]
        session.expose(names)
    else:
        from edgeopt.runtimes import litert

        stored = tflite_format.read(path)
        layouts = tflite_format.layouts(stored)
        session = litert.Session(_exposed_tflite(stored, names), threads=threads)
    errors = TensorErrors(graph.model, names)
    inputs, outputs = bind_ports(path, session, artifact)
    with session, onnxruntime.Session(exposed(graph.model, names), threads=threads) as exact:
        for feed in samples:
            raw = session.run({port.file_name: port.to_file(feed[name]) for name, port in inputs.items()})
            made = {name: port.to_source(raw[port.file_name]) for name, port in outputs.items()}
            for name, layout in layouts.items():
                if name in made and outputs[name].permutation is None:
                    made[name] = layout.to_graph(made[name])
            errors.add(exact.run(feed), made)
    return errors


def source_errors(source: Path, graph: ir.Model, samples: Iterable[Feed], *, threads: int = 1) -> TensorErrors:
    """``L0`` of an ONNX source: every float tensor that source and graph know by the same name."""
    model = onnx_format.load(source)
    known = {value.name for node in model.graph for value in node.outputs if _is_float(value)}
    names = [value.name or "" for node in graph.graph for value in node.outputs if value.name in known]
    errors = TensorErrors(graph, names)
    with (
        onnxruntime.Session(exposed(model, names), threads=threads, optimize=False) as exact,
        onnxruntime.Session(exposed(graph, names), threads=threads) as converted,
    ):
        for feed in samples:
            errors.add(exact.run(feed), converted.run(feed))
    return errors


def first_failing_segment(report: LevelReport) -> Located | None:
    """``L2``: the first segment, in graph order, that is out of tolerance."""
    for segment in report.segments:
        if segment.failure is not None:
            return Located(
                level="L2",
                node=segment.node,
                tensor=segment.tensor,
                before_db=EXACT_DB,  # segments read the reference's own integers
                after_db=segment.parity.sqnr_db,
                text=f"first wrong: {segment.failure}",
            )
    return None


def _exposed_tflite(model: tflite_format.Model, names: Sequence[str]) -> bytes:
    index_of = model.names()
    outputs = dict(model.signature_outputs) or {model.tensors[index].name: index for index in model.outputs}
    computed = model.producers()
    for name in names:
        index = index_of.get(name)
        if index is not None and index in computed and name not in outputs and index not in outputs.values():
            outputs[name] = index
    signature_inputs = dict(model.signature_inputs) or {model.tensors[index].name: index for index in model.inputs}
    return tflite_format.write(
        replace(
            model,
            outputs=list(dict.fromkeys(outputs.values())),
            signature_inputs=signature_inputs,
            signature_outputs=outputs,
        )
    )


def _sources(model: ir.Model, names: frozenset[str]) -> dict[str, list[str]]:
    """Named tensor → the named tensors that it is computed from, through whatever lies between."""
    behind: dict[str, list[str]] = {}
    sources: dict[str, list[str]] = {}
    for value in model.graph.inputs:
        sources[value.name or ""] = []
        behind[value.name or ""] = [value.name or ""] if value.name in names else []
    for node in model.graph:
        read = list(
            dict.fromkeys(s for value in node.inputs if value is not None for s in behind.get(value.name or "", []))
        )
        for value in node.outputs:
            name = value.name or ""
            sources[name] = read
            behind[name] = [name] if name in names else read
    return {name: sources.get(name, []) for name in names}


def _maker(model: ir.Model, name: str) -> str:
    for node in model.graph:
        if any(value.name == name for value in node.outputs):
            return node.name or name
    return name


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
