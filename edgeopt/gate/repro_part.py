"""Parts of models as files of their own: what is between some tensors and one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeopt.data.samples import Feed
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import tflite as tflite_format
from edgeopt.formats.cut import Cut
from edgeopt.graph.model import serialise
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.levels import check_quantization
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.registry import all_constraints

Array = npt.NDArray[Any]
Arrays = dict[str, list[Array]]
"""By name, one array per sample."""


@dataclass(frozen=True)
class Part:
    """A part of a model as a file: its data, its inputs' names, its output's name."""

    data: bytes
    inputs: tuple[str, ...]
    output: str


def cut(data: bytes, suffix: str, names: Sequence[str]) -> Cut:
    """A model of either format, cut at the named tensors."""
    return onnx_format.cut(data, names) if suffix == ".onnx" else tflite_format.cut(tflite_format.read(data), names)


def part_of(data: bytes, suffix: str, output: str) -> Part:
    """What of a model makes one output."""
    return _onnx_part(data, output) if suffix == ".onnx" else _tflite_part(data, output)


def _onnx_part(data: bytes, output: str) -> Part:
    model = ir.serde.deserialize_model(_proto(data))
    graph = model.graph
    kept = next(value for value in graph.outputs if value.name == output)
    graph.outputs.clear()
    graph.outputs.append(kept)
    RemoveUnusedNodesPass()(model)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    return Part(serialise(model), tuple(value.name or "" for value in graph.inputs), output)


def _tflite_part(data: bytes, output: str) -> Part:
    model = tflite_format.read(data)
    index = model.signature_outputs[output]
    model.outputs, model.signature_outputs = [index], {output: index}
    needed, read = {index}, set[int]()
    for operator in reversed(model.operators):
        if needed.intersection(operator.outputs):
            needed.update(operator.inputs)
            read.update(operator.inputs)
    model.signature_inputs = {name: at for name, at in model.signature_inputs.items() if at in read}
    model.inputs = [at for at in model.inputs if at in model.signature_inputs.values()]
    tflite_format.drop_unused(model)
    return Part(tflite_format.write(model), tuple(model.signature_inputs), output)


def types(data: bytes, suffix: str, *, outputs: bool = False) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → dtype and shape of a part's inputs or outputs."""
    if suffix == ".tflite":
        model = tflite_format.read(data)
        signature = model.signature_outputs if outputs else model.signature_inputs
        return {name: (model.tensors[at].dtype, tuple(model.tensors[at].shape)) for name, at in signature.items()}
    graph = onnx_format.load(data).graph
    specs = map(onnx_format.spec, graph.outputs if outputs else graph.inputs)
    return {one.name: (one.dtype, one.shape) for one in specs}


def outputs_of(part: Part, inputs: Arrays) -> Array:
    """What an ONNX part makes: [n, …]."""
    count = len(next(iter(inputs.values())))
    with Session(part.data, optimize=False) as session:
        return np.stack(
            [session.run({name: found[index] for name, found in inputs.items()})[part.output] for index in range(count)]
        )


def plainly_quantized_db(part: Part, inputs: Arrays) -> float:
    """What int8 must lose in this part: SQNR of its own min–max quantization."""
    model = ir.serde.deserialize_model(_proto(part.data))
    count = len(next(iter(inputs.values())))
    feeds = _Feeds([{name: found[index] for name, found in inputs.items()} for index in range(count)])
    plain = Quantize(
        use="quantize", scheme="int8", ranges="minmax", equalize="none", rounding="nearest", bias_correction=False,
        input_lattice=False, engine="edgeopt",
    )  # fmt: skip
    with TemporaryDirectory(prefix="edgeopt-") as scratch:
        context = Context(
            scratch=Path(scratch), calibration=feeds, constraints=all_constraints(), effort="fast", threads=1, seed=0
        )
        made = plain.run(QuantizedGraph(model), context)
    return check_quantization(made, feeds).sqnr_db


class _Feeds:
    """Samples that are in memory, for a pass."""

    labels = None
    where = "inputs of the part"

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = feeds

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Any:
        return iter(self._feeds)


def _proto(data: bytes) -> Any:
    import onnx

    return onnx.load_from_string(data)
