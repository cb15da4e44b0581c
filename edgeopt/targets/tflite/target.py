"""The TFLite target: a float graph and its table of scales, written as one FlatBuffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal

import onnx_ir as ir

from edgeopt import digest
from edgeopt.errors import TargetError
from edgeopt.formats import tflite
from edgeopt.graph.constraints import Constraints
from edgeopt.graph.placement import MOVERS
from edgeopt.graph.quantization import QuantizedGraph, QuantParams
from edgeopt.targets.base import Target
from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite import operators, realise
from edgeopt.targets.tflite.attributes import shape_of
from edgeopt.targets.tflite.emit import FLOAT_SUFFIX, INTEGERS_SUFFIX, Emitter, Stored, dtype_of
from edgeopt.types import (
    CONFIDENCE,
    NO_METADATA,
    Artifact,
    IoType,
    Layout,
    Metadata,
    Preprocess,
    Realised,
    Signature,
    TensorSpec,
)

FILE_NAME = "model.tflite"
PREPROCESS = "edgeopt.preprocess"
LABELS = "edgeopt.labels"
LABEL_FILE = "labels.txt"


class TfliteTarget(Target):
    """Writes ``model.tflite`` for LiteRT, in the forms that its XNNPACK delegate takes whole.

    Args:
        io: type of float inputs and outputs in the file. Integers lie on the table's grid (``uint8``: shifted by 128).
        layout: ``nhwc``: image inputs and spatial outputs are channels last, as TFLite's users expect; ``nchw`` keeps
            the source's order, at one TRANSPOSE each.
    """

    name: ClassVar[str] = "tflite"
    # No output grid is fixed: sigmoid, tanh and softmax, which LiteRT's own int8 kernels insist on, are written as
    # float operators between integers (one table in XNNPACK), and so keep the grid that their values deserve.
    constraints: ClassVar[Constraints] = Constraints(
        equal_scales=MOVERS,
        symmetric_inputs={"MatMul": frozenset({1})},
    )

    io: IoType = "float32"
    layout: Layout = "nhwc"

    def check(self, model: ir.Model) -> None:
        """Refuse what cannot be lowered before any work begins: UnsupportedOperator."""
        operators.check(model.graph)

    def lower(self, graph: QuantizedGraph, out: Path, metadata: Metadata = NO_METADATA) -> Artifact:
        """Write ``model.tflite`` into ``out``.

        Raises:
            UnsupportedOperator: a node that TFLite cannot be given.
            TargetError: integer inputs or outputs were asked and the table has no grid for them; a value that float16
                cannot hold; or LiteRT does not load what was written.
        """
        self.check(graph.model)
        source = graph.model.graph
        e = Emitter(source, graph.quantization, spatial_outputs=self.layout == "nhwc")
        for value in source.inputs:
            self._write_input(e, value, graph)
        for node in source:
            if node not in e.done:
                operators.emit(e, node)
        for value in source.outputs:
            self._write_output(e, value, graph)
        model = e.model
        layouts = _layouts(e)
        tflite.drop_unused(model)
        present = {tensor.name for tensor in model.tensors}
        layouts = {name: layout for name, layout in layouts.items() if name in present}
        names = [value.name or "" for value in (*source.inputs, *source.outputs)]
        file_layouts = {name: layouts[name].perm for name in names if name in layouts}
        preprocess = _in_file(metadata.preprocess, file_layouts)
        model.metadata = _entries(metadata.model_copy(update={"preprocess": preprocess}), layouts)
        files = {LABEL_FILE: "\n".join((*metadata.labels, "")).encode()} if metadata.labels else {}
        data = tflite.with_files(tflite.write(model), files)
        path = out / FILE_NAME
        path.write_bytes(data)
        return Artifact(
            target=self.name,
            path=FILE_NAME,
            digest=digest.of_bytes(data),
            size_bytes=len(data),
            signature=Signature(
                inputs=tuple(_spec(model, name, index) for name, index in model.signature_inputs.items()),
                outputs=tuple(_spec(model, name, index) for name, index in model.signature_outputs.items()),
            ),
            layouts=file_layouts,
            preprocess=preprocess,
            confidence=metadata.confidence,
            realised=self.realised(path, graph),
        )

    def realised(self, path: Path, graph: QuantizedGraph) -> Realised:
        """Read back from the file: every operator's precision, what should not be there, the delegate's partitions."""
        return realise.realised(path, graph)

    # --- inputs and outputs

    def _write_input(self, e: Emitter, value: ir.Value, graph: QuantizedGraph) -> None:
        shape, name = shape_of(value), value.name or ""
        wanted = e.wanted.get(value, ())
        spatial = self.layout == "nhwc" and len(shape) == 4 and bool(wanted) and wanted[0] == lay.NHWC
        layout = lay.plain(shape, lay.NHWC if spatial else None)
        stored_shape = lay.stored_shape(layout)
        if self.io == "float32" or value.dtype != ir.DataType.FLOAT:
            index = e.tensor(name, stored_shape, dtype_of(value))
            e.floats[value] = Stored(index, layout)
        else:
            grid = _grid(value, graph)
            index = _integer_tensor(e, name, stored_shape, grid, self.io)
            integers = index
            if self.io == "uint8":
                integers = e.tensor(f"{name}__q", stored_shape, "int8", grid=grid)
                e.operator("QUANTIZE", (index,), (integers,))
            if e.grid(value) is not None:
                e.integers[value] = Stored(integers, layout)
            floats = e.tensor(f"{name}__dq", stored_shape)
            e.operator("DEQUANTIZE", (integers,), (floats,))
            e.floats[value] = Stored(floats, layout)
        e.ports[index] = layout
        e.model.inputs.append(index)
        e.model.signature_inputs[name] = index

    def _write_output(self, e: Emitter, value: ir.Value, graph: QuantizedGraph) -> None:
        shape, name = shape_of(value), value.name or ""
        integer_io = self.io != "float32" and value.dtype == ir.DataType.FLOAT
        stored = e.read_integers(value) if integer_io and e.is_integers(value) else e.read_float(value)
        nhwc = self.layout == "nhwc" and lay.is_plain(stored.layout) and stored.perm == lay.NHWC and len(shape) == 4
        moved = e.moved(stored, lay.NHWC if nhwc else lay.identity(len(shape)))
        index = moved.index
        if integer_io:
            grid = _grid(value, graph)
            if e.model.tensors[index].dtype == "float32":
                integers = e.tensor(f"{name}__q", e.shape(index), "int8", grid=grid)
                e.operator("QUANTIZE", (index,), (integers,))
                index = integers
            if self.io == "uint8":
                shifted = _integer_tensor(e, f"{name}__uint8", e.shape(index), grid, "uint8")
                e.operator("QUANTIZE", (index,), (shifted,))
                index = shifted
        record = e.model.tensors[index]
        if index in e.model.inputs or index in e.model.outputs or record.data is not None:
            # The interpreter must be given a tensor of its own to write.
            index = e.reshape(index, e.shape(index), out=e.temporary("output", e.shape(index), like=index))
        _rename(e.model, index, name)
        e.model.outputs.append(index)
        e.model.signature_outputs[name] = index
        e.ports[index] = moved.layout


def _grid(value: ir.Value, graph: QuantizedGraph) -> QuantParams:
    name = value.name or ""
    table = graph.quantization
    if table is not None:
        if name in table.activations:
            return table.activations[name]
        if name in table.ranges:
            return QuantParams.from_range(table.ranges[name])
    raise TargetError(
        "has no scale in the table, which integer inputs and outputs need",
        where=f"tensor {name}",
        hint="Quantize with scheme int8 and calibration data, or leave io at float32.",
    )


def _integer_tensor(
    e: Emitter, name: str, shape: tuple[int, ...], grid: QuantParams, dtype: Literal["int8", "uint8"] | IoType
) -> int:
    offset = 128 if dtype == "uint8" else 0
    return e.tensor(name, shape, dtype, grid=QuantParams(grid.scale, grid.zero_point + offset))


def _rename(model: tflite.Model, index: int, name: str) -> None:
    """Give the tensor this name; whoever has it gets another."""
    for other, tensor in enumerate(model.tensors):
        if tensor.name == name and other != index:
            suffix = "__q" if tensor.dtype == "int8" else "__inner"
            taken = {t.name for t in model.tensors}
            fresh = name + suffix
            while fresh in taken:
                fresh += "_"
            tensor.name = fresh
    model.tensors[index].name = name


def _layouts(e: Emitter) -> dict[str, tflite.Layout]:
    """Tensor name → layout, for every value's tensor that does not lie as in the graph."""
    found = {
        e.model.tensors[index].name: layout for index, layout in e.ports.items() if layout != lay.plain(layout.shape)
    }
    for held in (e.integers, e.floats):
        for value, stored in held.items():
            name = e.model.tensors[stored.index].name
            own = value.name or ""
            identical = stored.layout == lay.plain(stored.layout.shape)
            # A tensor can be two values (a reshape that moves nothing); it is noted under its own name only.
            if name in (own, own + INTEGERS_SUFFIX, own + FLOAT_SUFFIX) and not identical:
                found[name] = stored.layout
    return found


def _entries(metadata: Metadata, layouts: dict[str, tflite.Layout]) -> dict[str, bytes]:
    entries: dict[str, bytes] = {}
    if metadata.preprocess is not None:
        entries[PREPROCESS] = _json(metadata.preprocess.model_dump(mode="json"))
    if metadata.labels:
        entries[LABELS] = _json(list(metadata.labels))
    if metadata.confidence is not None:
        entries[CONFIDENCE] = _json(metadata.confidence.model_dump(mode="json"))
    if layouts:
        entries[tflite.LAYOUTS] = _json({n: [y.shape, y.view, y.perm] for n, y in sorted(layouts.items())})
    return entries


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _in_file(preprocess: Preprocess | None, layouts: dict[str, lay.Perm]) -> Preprocess | None:
    """The contract as the file keeps it: its image input may be channels last."""
    if preprocess is None:
        return None
    return preprocess.model_copy(update={"layout": "nhwc" if lay.NHWC in layouts.values() else preprocess.layout})


def _spec(model: tflite.Model, name: str, index: int) -> TensorSpec:
    tensor = model.tensors[index]
    return TensorSpec(name=name, dtype=tensor.dtype, shape=tensor.shape)
