"""What a reproduction is cut from: a model, what it should be, and the tensors at which both can be cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.data.samples import Feed
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import tflite as tflite_format
from edgeopt.gate.run_folder import RunFolder
from edgeopt.graph.model import exposed, serialise
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import Quantization, QuantParams
from edgeopt.parity.runners import open_file
from edgeopt.pipeline.verdict import CheckResult
from edgeopt.runtimes.onnxruntime import Session

Array = npt.NDArray[Any]
Level = Literal["L0", "L1", "L2"]

SCALED = 0.07
"""Five per cent, in powers of two: rounding alone scales no channel by as much, equalisation mostly by far more."""


@dataclass(frozen=True)
class Subject:
    """One difference: two models and their values on some samples.

    Args:
        level: which levels of parity the models are of.
        check: what was found.
        feeds: the samples.
        graph: whose nodes and tensors are named; ``L1``: the float graph that is expected.
        table: grids of its tensors, empty where both models are float.
        data, suffix: the model that differs, as a file: ``.onnx`` or ``.tflite``; of ``.mlpackage`` no data.
        inputs, outputs: its ports, by names of the graph.
        reference: what it should be at ``L0`` and ``L2``, an ONNX file; what its values are taken from at all levels.
        tensors: at which both can be cut, in graph order.
        optimize: whether the model runs optimized.
        target: whose artifact it is; ``import`` at ``L0``.
        half: whether it computes in float16.
        package: the ``.mlpackage``.
    """

    level: Level
    check: CheckResult
    feeds: list[Feed]
    graph: ir.Model
    table: Quantization
    data: bytes
    suffix: str
    inputs: Any
    outputs: Any
    reference: bytes
    tensors: tuple[str, ...]
    optimize: bool
    target: str
    half: bool = False
    package: Path | None = None
    values: list[dict[str, Array]] = field(default_factory=list)
    """Of the reference, per sample: integers of the table's tensors as ``NAME__q``, other tensors as they are."""

    def value(self, values: dict[str, Array], name: str) -> Array:
        """Its integers, or, of a tensor without a grid, its real values."""
        return values[name + INTEGERS_SUFFIX] if name in self.table.activations else values[name]

    def as_file_has_it(self, name: str, values: dict[str, Array], dtype: str, shape: tuple[int, ...]) -> Array:
        """A tensor's value as the model's own input at this place takes it."""
        array = self.value(values, name)
        if name not in self.table.activations:
            array = array.astype(dtype)
        elif dtype == "float32":
            array = real(array, self.table.activations[name])
        elif dtype == "uint8":
            array = (array.astype(np.int16) + 128).astype(np.uint8)
        layout = self.layout(name)
        return layout.to_file(array, shape) if layout is not None else array.reshape(shape)

    def layout(self, name: str) -> tflite_format.Layout | None:
        """How the model lays a tensor out, where it does so otherwise than the graph."""
        if self.suffix != ".tflite":
            return None
        model = tflite_format.read(self.data)
        index = tflite_format.integers_of(model, name)
        label = name if index is None else model.tensors[index].name
        return tflite_format.layouts(model).get(label)


def of_import(run: RunFolder, check: CheckResult, source: bytes, feeds: list[Feed]) -> Subject:
    """``L0``: the float graph beside the ONNX source; or, where passes changed the function, the graph behind them
    beside the imported one."""
    changed = check.figures.get("relative_error") is None
    right, made = (serialise(run.source), serialise(run.graph.model)) if changed else (source, serialise(run.source))
    known = set(_float_names(right))
    tensors = tuple(name for name in _float_names(made) if name in known)
    names = [*run.signature.inputs], [*run.signature.outputs]
    inputs, outputs = ({one.name: _Port(one.name) for one in ports} for ports in names)
    reference = exposed(onnx_format.load(right), tensors)
    return Subject(
        "L0", check, feeds, run.source, Quantization(), made, ".onnx", inputs, outputs, reference, tensors, True,
        "import", values=_values(reference, feeds),
    )  # fmt: skip


def of_artifact(run: RunFolder, target: str, level: Level, check: CheckResult, feeds: list[Feed]) -> Subject:
    """``L1`` and ``L2``: a target's file beside the float graph, or beside the integer reference."""
    graph, file, artifact = run.own_graph(target), run.runnable(target), run.artifacts[target]
    table = graph.quantization or Quantization()
    model = to_qdq(graph, fold_weights=True, expose_integers=True)
    reference = serialise(model)
    names = [value.name or "" for value in model.graph.outputs]
    tensors = tuple(name.removesuffix(INTEGERS_SUFFIX) for name in names if name.endswith(INTEGERS_SUFFIX))
    if not tensors and file.suffix == ".onnx":
        known = set(_float_names(file.read_bytes()))
        tensors = tuple(name for name in _float_names(reference) if name in known)
        reference = exposed(model, tensors)
    values = _values(reference, feeds)
    if level == "L1":
        scaled = _on_other_scales(graph.model, table, tensors, feeds, values)
        tensors = tuple(name for name in tensors if name not in scaled)
    with open_file(file, artifact) as runner:
        inputs, outputs = runner.input_ports, runner.output_ports
    half = artifact.float_dtype == "float16" or "fp16" in table.schemes.values()
    package = file if file.suffix == ".mlpackage" else None
    return Subject(
        level, check, feeds, graph.model, table, b"" if package else file.read_bytes(), file.suffix, inputs, outputs,
        reference, tensors, artifact.emulation is None, target, half, package, values,
    )  # fmt: skip


@dataclass(frozen=True)
class _Port:
    """An input or output of a float graph: as the source has it."""

    file_name: str

    def to_file(self, array: Array) -> Array:
        return array


def _float_names(data: bytes) -> list[str]:
    """Float tensors that nodes of an ONNX model make, in its order."""
    graph = onnx_format.load(data).graph
    return [value.name or "" for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]


def _values(reference: bytes, feeds: list[Feed]) -> list[dict[str, Array]]:
    with Session(reference, optimize=False) as session:
        return [session.run(feed) for feed in feeds]


def _on_other_scales(
    model: ir.Model, table: Quantization, tensors: tuple[str, ...], feeds: list[Feed], values: list[dict[str, Array]]
) -> set[str]:
    """Tensors whose channels equalisation left on other scales than the float graph's: no place to compare.

    Told by most channels fitting best when scaled. A fault that scales all channels looks like it, too: then the
    part ends further behind.
    """
    made = {value.name or "" for node in model.graph for value in node.outputs}
    names = [name for name in tensors if name in made]
    products: dict[str, Array] = {}
    with Session(exposed(model, names)) as session:
        for feed, known in zip(feeds, values, strict=True):
            for name, right in session.run(feed, names).items():
                rounded = real(known[name + INTEGERS_SUFFIX], table.activations[name]).reshape(right.shape)
                a, b = (np.moveaxis(x, min(1, x.ndim - 1), 0).astype(np.float64) for x in (right, rounded))
                a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
                products[name] = products.get(name, 0) + np.stack([(a * a).sum(1), (a * b).sum(1)])
    found = set()
    for name, (own, both) in products.items():
        alive = (own > 0) & (both > 0)
        if alive.any() and float(np.median(np.abs(np.log2(both[alive] / own[alive])))) > SCALED:
            found.add(name)
    return found


def real(integers: Array, params: QuantParams) -> Array:
    """What integers stand for, float32."""
    return params.dequantize(integers).astype(np.float32)
