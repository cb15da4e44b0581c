"""The file under construction: which tensor of it holds which value of the graph, in which precision and layout.

A value can be there twice: as float and as the integers of the table. ``Emitter.read`` gives a node what the table's
semantics says it reads (see ``graph.quantization``), converting and moving only where it must, once per value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import TargetError
from edgeopt.formats.tflite import Layout
from edgeopt.graph.placement import WEIGHTED, fused_activation
from edgeopt.graph.quantization import INT8_MAX, INT8_MIN, Quantization, QuantParams
from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite.attributes import clip_bounds, constant
from edgeopt.targets.tflite.draft import Draft, one_grid, options
from edgeopt.types import SchemeName

Array = npt.NDArray[Any]

INTEGERS_SUFFIX = "__q"
FLOAT_SUFFIX = "__dq"

NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3
"""The schema's ActivationFunctionType."""
FUSED_FLOAT = {(0.0, float("inf")): RELU, (-1.0, 1.0): RELU_N1_TO_1, (0.0, 6.0): RELU6}


@dataclass(frozen=True)
class Stored:
    """A value of the graph as a tensor of the file."""

    index: int
    layout: Layout

    @property
    def perm(self) -> lay.Perm:
        return self.layout.perm


class Emitter(Draft):
    """Writes operators and keeps account of values.

    Args:
        graph: the canonical float graph.
        table: the table of scales, or None.
        spatial_outputs: rank-4 inputs and outputs may be channels last.
    """

    def __init__(self, graph: ir.Graph, table: Quantization | None, *, spatial_outputs: bool) -> None:
        super().__init__()
        self.table = table or Quantization()
        self.wanted = lay.wanted_perms(graph, spatial_outputs=spatial_outputs)
        self.floats: dict[ir.Value, Stored] = {}
        self.integers: dict[ir.Value, Stored] = {}
        self.ports: dict[int, Layout] = {}
        """Tensors that are inputs and outputs of the file."""
        self.done: set[ir.Node] = set()
        self.native = False
        """Whether the node at work computes on integers in the file."""
        self._outputs = set(graph.outputs)
        self._moved: dict[tuple[int, Layout], Stored] = {}
        self._islands: dict[tuple[ir.Value, ir.Node | None], Stored] = {}
        self._clamp: tuple[float, float] | None = None
        self._coarse: float | None = None

    # --- what the table says

    @property
    def scheme(self) -> SchemeName:
        """Of the node at work."""
        return self.table.scheme(self.node) if self.node is not None else "fp32"

    def grid(self, value: ir.Value | None) -> QuantParams | None:
        return None if value is None else self.table.activations.get(value.name or "")

    def is_integers(self, value: ir.Value) -> bool:
        """Whether the value *is* its integers: in the table, and an int8 node writes it."""
        producer = value.producer()
        return producer is not None and self.grid(value) is not None and self.table.scheme(producer) == "int8"

    # --- reading

    def read(self, value: ir.Value | None, perm: lay.Perm | None = None) -> Stored:
        """The value as the node at work reads it, in the given order of axes (any plain one if None is given)."""
        assert value is not None
        return self.moved(self.read_as_it_lies(value), perm)

    def read_as_it_lies(self, value: ir.Value) -> Stored:
        """As ``read``, with parts of axes left apart where they are."""
        if self.native:
            return self.read_integers(value)
        if self.scheme == "int8" and self.grid(value) is not None:
            return self._read_island(value)
        return self.read_float(value)

    def read_integers(self, value: ir.Value) -> Stored:
        """The integers of a value of the table: as produced, or made from the float value, or of the constant."""
        if value in self.integers:
            return self.integers[value]
        grid = self._required_grid(value)
        if (array := constant(value)) is not None:
            integers = grid.quantize(array)
            index = self.tensor(self.name(value, "int8"), array.shape, "int8", data=integers, grid=grid)
            self.integers[value] = Stored(index, lay.plain(array.shape))
            return self.integers[value]
        source = self.floats[value]
        index = self.tensor(self.name(value, "int8"), self.shape(source.index), "int8", grid=grid)
        self.operator("QUANTIZE", (source.index,), (index,))
        self.integers[value] = Stored(index, source.layout)
        return self.integers[value]

    def read_float(self, value: ir.Value) -> Stored:
        """The float value: as produced, or of its integers where the value is those, or the constant."""
        if value in self.floats:
            return self.floats[value]
        if (array := constant(value)) is not None:
            self.floats[value] = Stored(self.constant(value.name or "", array), lay.plain(array.shape))
            return self.floats[value]
        source = self.integers[value]
        index = self.tensor(self.name(value, "float32"), self.shape(source.index))
        self.operator("DEQUANTIZE", (source.index,), (index,))
        self.floats[value] = Stored(index, source.layout)
        return self.floats[value]

    def _read_island(self, value: ir.Value) -> Stored:
        """Integers made float for one chain alone, so that XNNPACK can fold the chain into a table."""
        key = (value, chain_of(self.node))
        if key not in self._islands:
            source = self.read_integers(value)
            index = self.temporary("dequantize", self.shape(source.index))
            self.operator("DEQUANTIZE", (source.index,), (index,))
            self._islands[key] = Stored(index, source.layout)
        return self._islands[key]

    def dequantized(self, index: int, hint: str) -> int:
        """Float values of a stored constant; the delegate computes them once, when it loads."""
        result = self.tensor(hint + FLOAT_SUFFIX, self.shape(index))
        self.operator("DEQUANTIZE", (index,), (result,))
        return result

    def _required_grid(self, value: ir.Value) -> QuantParams:
        grid = self.grid(value)
        if grid is None:
            raise TargetError("is read as integers and is not in the table of scales", where=f"tensor {value.name}")
        return grid

    # --- moving

    def moved(self, stored: Stored, perm: lay.Perm | None) -> Stored:
        """The same values with whole axes in the order ``perm``; cached. None: as it lies, if axes are whole."""
        layout = stored.layout
        if perm is None:
            if lay.is_plain(layout):
                return stored
            perm = lay.identity(len(layout.shape))
        target = lay.plain(layout.shape, perm)
        if layout == target:
            return stored
        key = (stored.index, target)
        if key not in self._moved:
            self._moved[key] = Stored(self._move(stored, target), target)
        return self._moved[key]

    def _move(self, stored: Stored, target: Layout) -> int:
        index, layout = stored.index, stored.layout
        constant_data = self.model.tensors[index].data
        if constant_data is not None:
            moved = target.to_file(layout.to_graph(constant_data), lay.stored_shape(target))
            record = self.model.tensors[index]
            fresh = self.temporary("constant", moved.shape, like=index)
            self.model.tensors[fresh].data = np.ascontiguousarray(moved)
            self.model.tensors[fresh].axis = record.axis
            return fresh
        if not lay.is_plain(layout):
            apart = tuple(layout.view[axis] for axis in layout.perm)
            index = self.reshape(index, apart)
            index = self.transpose(index, tuple(int(axis) for axis in np.argsort(layout.perm)))
            index = self.reshape(index, layout.shape)
            layout = lay.plain(layout.shape)
        if lay.moves_nothing(layout.shape, layout.perm, target.perm):
            return self.reshape(index, lay.stored_shape(target))
        return self.transpose(index, tuple(layout.perm.index(axis) for axis in target.perm))

    # --- writing

    def name(self, value: ir.Value, dtype: str) -> str:
        """Tensor name: the value's own for its main form, with a suffix for its other one."""
        own = value.name or ""
        if value.const_value is not None:
            return own
        if value in self._outputs or not self.is_integers(value):
            return own + INTEGERS_SUFFIX if dtype == "int8" else own
        return own if dtype == "int8" else own + FLOAT_SUFFIX

    def result(self, value: ir.Value, layout: Layout, shape: Sequence[int] | None = None) -> int:
        """The tensor into which the node at work writes ``value``, as integers or float.

        A float result that the table wants as integers is quantized behind.
        """
        shape = lay.stored_shape(layout) if shape is None else shape
        if self.native:
            grid = self.result_grid(value)
            if self._coarse is not None:
                return self.tensor(f"{self._scope}/coarse", shape, "int8", grid=grid)
            name = f"{self._scope}/unclamped" if self._clamp is not None else self.name(value, "int8")
            index = self.tensor(name, shape, "int8", grid=grid)
            self.integers[value] = Stored(index, layout)
            return index
        dtype = _DTYPES.get(value.dtype, "float32")
        if self.is_integers(value):
            return self.temporary("float", shape)
        index = self.tensor(self.name(value, "float32"), shape, dtype)
        self.floats[value] = Stored(index, layout)
        return index

    def write(
        self,
        value: ir.Value,
        code: str,
        inputs: Sequence[int],
        layout: Layout,
        options_: Any = None,
        *,
        shape: Sequence[int] | None = None,
    ) -> int:
        """An operator whose output is ``value``."""
        index = self.result(value, layout, shape)
        self.operator(code, inputs, (index,), options_)
        self.written(value, index, layout)
        return index

    def result_grid(self, value: ir.Value) -> QuantParams | None:
        """The grid on which the node at work computes ``value``; None in float."""
        if not self.native:
            return None
        return self._required_grid(value) if self._coarse is None else one_grid(self._coarse)

    def written(self, value: ir.Value, index: int, layout: Layout) -> None:
        """``index`` holds the computed ``value``: quantize it where the table has a float node's result as integers."""
        if self.native and (self._clamp is not None or self._coarse is not None):
            index = self._clamped(index)
        elif self.native or not self.is_integers(value):
            return
        grid = self._required_grid(value)
        integers = self.tensor(self.name(value, "int8"), self.shape(index), "int8", grid=grid)
        self.operator("QUANTIZE", (index,), (integers,))
        self.integers[value] = Stored(integers, layout)

    def _clamped(self, index: int) -> int:
        """Float values of integers within the bounds of an activation that no fused one says; XNNPACK makes a table."""
        low, high = self._clamp or (-np.inf, np.inf)
        self._clamp = self._coarse = None
        shape = self.shape(index)
        index = self.step("DEQUANTIZE", (index,), shape)
        for code, bound in (("MAXIMUM", low), ("MINIMUM", high)):
            if np.isfinite(bound):
                limit = self.constant("bound", np.asarray([bound], np.float32))
                index = self.step(code, (index, limit), shape, options("MaximumMinimum"))
        return index

    def adopt(self, value: ir.Value, index: int, layout: Layout) -> None:
        """``value`` is the tensor ``index``; if it was made for the node at work, it takes the value's name."""
        record = self.model.tensors[index]
        if record.name.startswith(f"{self._scope}/") and (self.native or not self.is_integers(value)):
            name = self.name(value, "int8" if self.native else "float32")
            if name not in self._taken:
                self._taken.add(name)
                record.name = name
        self.alias(value, Stored(index, layout))

    def alias(self, value: ir.Value, stored: Stored) -> None:
        """``value`` is an existing tensor under another name or layout."""
        if self.native:
            self.integers[value] = stored
        elif self.is_integers(value):
            self.written(value, stored.index, stored.layout)
        else:
            self.floats[value] = stored

    # --- activations that are part of the operator in front

    def fused(self, node: ir.Node) -> tuple[int, ir.Value]:
        """The activation to write into ``node``'s operator, and the value that the operator then computes.

        On integers, a bound that the grid's own end implies costs nothing; what no fused activation says stays a
        node of its own.
        """
        value = node.outputs[0]
        behind = fused_activation(node)
        if behind is None or self.grid(value) is not None:
            return NONE, value
        if (self.table.scheme(behind) == "int8") != (self.scheme == "int8"):
            return NONE, value
        low, high = clip_bounds(behind)
        kind = FUSED_FLOAT.get((low, high))
        if self.native:
            grid = self.grid(behind.outputs[0])
            if grid is None:
                return NONE, value
            kind = _fused_integers(grid, low, high)
            if kind is None:
                self._clamp = (low, high)
                kind = NONE
        if kind is None:
            return NONE, value
        self.done.add(behind)
        return kind, behind.outputs[0]

    def coarsen(self, value: ir.Value, ratio: float, limit: float) -> None:
        """Let the kernel write ``value`` on a grid coarse enough for it, and its own grid be reached by a table behind.

        Args:
            value: what the node at work is about to write.
            ratio: largest input scale · weight scale / output scale.
            limit: what ``ratio`` must stay below. A tensor that was constant in calibration has a tiny scale.
        """
        if self.native and ratio >= limit:
            self._coarse = float(self._required_grid(value).scale) * ratio / (limit / 2)

    def native_result(self, node: ir.Node) -> ir.Value | None:
        """The value that ``node`` would write as integers: its output, or that of a fused activation; or None."""
        if self.grid(node.outputs[0]) is not None:
            return node.outputs[0]
        behind = fused_activation(node)
        if behind is None or self.table.scheme(behind) != "int8":
            return None
        return behind.outputs[0] if self.grid(behind.outputs[0]) is not None else None


def _fused_integers(grid: QuantParams, low: float, high: float) -> int | None:
    """The fused activation that clamps integers of ``grid`` to [low, high], or None."""
    far = float(grid.scale) * 2**10
    bottom, top = grid.quantize(np.clip([low, high], -far, far))
    if bottom == INT8_MIN and top == INT8_MAX:
        return NONE
    if low == 0 and top == INT8_MAX:
        return RELU
    return FUSED_FLOAT.get((low, high))


def chain_of(node: ir.Node | None) -> ir.Node | None:
    """The node at the end of a chain of one variable, ``x · f(x)``: both readers of ``x`` share one DEQUANTIZE."""
    if node is None or node.op_type in WEIGHTED or not node.outputs:
        return node
    uses = tuple(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Mul" and node.inputs[0] in uses[0].node.inputs:
        return uses[0].node
    return node


_DTYPES: Mapping[ir.DataType | None, str] = {
    ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.INT8: "int8", ir.DataType.UINT8: "uint8",
    ir.DataType.INT32: "int32", ir.DataType.INT64: "int64", ir.DataType.BOOL: "bool",
}  # fmt: skip


def dtype_of(value: ir.Value) -> str:
    return _DTYPES.get(value.dtype, "float32")
