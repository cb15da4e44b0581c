"""The program under construction: which MIL variable holds which value of the graph, and in which precision.

What is lowered is the Q/DQ form of the table (``graph.qdq``), so that the program means what the integer reference
means. coremltools' builder makes the operators; none of its passes that rewrite arithmetic run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import TargetError
from edgeopt.graph.half import SMALLEST_HALF
from edgeopt.graph.model import constant, place
from edgeopt.targets.refusal import unwritable

Array = npt.NDArray[Any]

FLOAT16_MAX = float(np.finfo(np.float16).max)
MOST_AXES = 5
"""A tensor of a Core ML program has at most five axes."""
_RESERVED = frozenset(
    {"any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "bf16", "fp16",
     "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "state"}
)  # fmt: skip
"""Words of MIL's text form."""


class Var(Protocol):
    """A MIL variable, as far as lowering looks at it (``coremltools.converters.mil.mil.Var``)."""

    name: str
    shape: tuple[Any, ...]


class Names:
    """Names of the graph as MIL identifiers, each given once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def give(self, wanted: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_]", "_", wanted) or "value"
        if not re.match(r"[A-Za-z_]", base):
            base = f"_{base}"
        if base in _RESERVED:
            base += "_"
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base}__{count}"
        self._taken.add(name)
        return name


class Emitter:
    """Writes operators and keeps account of values.

    Args:
        half: whether a node computes in float16.
        weights: name of a weight in the graph → what makes its variable in float16 or float32, where the weight is
            stored compressed otherwise than by a DequantizeLinear.
        integers: makes the variable of a weight whose integers a DequantizeLinear reads.
        names: of the program; inputs have theirs already.
        outputs: graph outputs and their names in the program.
    """

    def __init__(
        self,
        half: Callable[[ir.Node], bool],
        weights: Mapping[str, Callable[[Emitter, str], Var]],
        integers: Callable[[Emitter, ir.Node], Var],
        names: Names,
        outputs: Mapping[ir.Value, str],
    ) -> None:
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil import types

        self.mb: Any = Builder
        self._types: Any = types
        self._half = half
        self._weights = weights
        self._integers = integers
        self._names = names
        self._outputs = outputs
        self.node: ir.Node | None = None
        self.vars: dict[ir.Value, Var] = {}
        self.constants: dict[ir.Value, Array] = {}
        """Values that are known although nodes compute them: quantized constants."""
        self.weight_vars: dict[str, str] = {}
        """Weight of the table → variable that holds its integers' values."""
        self._cast: dict[tuple[ir.Value, bool], Var] = {}
        self.open_axis: str | None = None
        """What axis of the input is open, for messages; None: all shapes are fixed."""

    # --- what is known

    @property
    def half(self) -> bool:
        """Whether the node at work computes in float16."""
        return self.node is not None and self._half(self.node)

    def number(self, value: float) -> np.floating[Any]:
        """A scalar in the precision of the node at work; what float16 would make zero stays above it."""
        if not self.half:
            return np.float32(value)
        if value and abs(value) < SMALLEST_HALF:
            value = float(np.copysign(SMALLEST_HALF, value))
        return np.float16(np.clip(value, -FLOAT16_MAX, FLOAT16_MAX))

    def floats(self, array: Array, what: str) -> Array:
        """A constant in the precision of the node at work.

        Raises:
            TargetError: a value is beyond float16.
        """
        array = np.asarray(array, np.float32)
        if not self.half:
            return array
        if array.size and float(np.abs(np.where(np.isfinite(array), array, 0)).max()) > FLOAT16_MAX:
            raise TargetError(
                f"holds a value beyond the largest of float16, {FLOAT16_MAX:g}",
                where=f"{what}, {place(self.node)}" if self.node is not None else what,
                hint="Ask for `precision: fp32`, or keep this node in float32 (keep_float) with the scheme fp16.",
            )
        return array.astype(np.float16)

    def known(self, value: ir.Value | None) -> Array | None:
        """The array of a constant, or of what was computed from constants."""
        if value is None:
            return None
        return self.constants[value] if value in self.constants else constant(value)

    def is_float(self, value: ir.Value) -> bool:
        return value.dtype == ir.DataType.FLOAT

    # --- reading

    def read(self, value: ir.Value | None) -> Any:
        """The value as an operator of the node at work takes it: a variable, or a constant's array."""
        if value is None:
            raise ValueError("an operator lacks an input that it cannot be without")
        array = self.known(value)
        if array is not None:
            return self.array(array, value.name or "constant")
        var = self.vars[value]
        if not self.is_float(value):
            return var
        return self.as_precision(value, var)

    def array(self, array: Array, what: str) -> Any:
        """A constant as MIL takes it: floats in the node's precision, integers in int32."""
        if array.dtype.kind == "f":
            return self.floats(array, what)
        if array.dtype.kind == "b":
            return np.asarray(array, bool)
        limits = np.iinfo(np.int32)
        return np.clip(array, limits.min, limits.max).astype(np.int32)

    def var(self, value: ir.Value | None) -> Any:
        """As ``read``, and a constant as a variable of its own: for what must have a type."""
        found = self.read(value)
        if isinstance(found, np.ndarray):
            return self.mb.const(val=found, name=self.temporary("const"))
        return found

    def as_precision(self, value: ir.Value, var: Var) -> Var:
        if self._is_half(var) == self.half:
            return var
        key = (value, self.half)
        if key not in self._cast:
            name = self._names.give(f"{value.name}__{'fp16' if self.half else 'fp32'}")
            self._cast[key] = self.mb.cast(x=var, dtype="fp16" if self.half else "fp32", name=name)
        return self._cast[key]

    def _is_half(self, var: Any) -> bool:
        return bool(var.dtype == self._types.fp16)

    # --- weights

    def weight(self, node: ir.Node) -> Any:
        """The weight of a weighted node: plain, or as the compressed constant that its scheme stores."""
        value = node.inputs[1]
        assert value is not None and value.name is not None
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            return self._integers(self, producer)
        if (make := self._weights.get(value.name)) is not None:
            return make(self, value.name)
        return self.read(value)

    # --- writing

    def name(self, node: ir.Node, index: int = 0) -> str:
        """The variable's name for an output of the node."""
        return self.name_of(node.outputs[index])

    def name_of(self, value: ir.Value) -> str:
        if value in self._outputs:
            # An output leaves the program in float32, by a cast that then has the output's name.
            if not (self.half and self.is_float(value)) and value.dtype != ir.DataType.BOOL:
                return self._outputs[value]
            return self._names.give(f"{self._outputs[value]}__inner")
        return self._names.give(value.name or "value")

    def finish(self, value: ir.Value, taken: set[str]) -> Var:
        """The variable that leaves the program as an output, under the output's name."""
        name = self._outputs[value]
        array = self.known(value)
        if array is not None:
            self.vars[value] = self.mb.const(val=self.array(array, name), name=self.temporary("const"))
        var = self.vars[value]
        found: Var
        if self._is_half(var):
            found = self.mb.cast(x=var, dtype="fp32", name=name)
        elif value.dtype == ir.DataType.BOOL:
            found = self.mb.cast(x=var, dtype="int32", name=name)
        elif var.name != name or name in taken:
            found = self.mb.identity(x=var, name=name)
        else:
            found = var
        taken.add(name)
        return found

    def temporary(self, hint: str) -> str:
        """A name that no value of the graph has."""
        return self._names.give(f"{self.node.name if self.node is not None else 'edgeopt'}_{hint}")

    def write(self, node: ir.Node, var: Any, index: int = 0) -> None:
        """``var`` is the node's output."""
        self.vars[node.outputs[index]] = var

    @contextmanager
    def working_on(self, node: ir.Node) -> Iterator[None]:
        self.node = node
        try:
            yield
        except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
            # What coremltools' own type inference refuses: its message says which operand.
            open_ = f" with {self.open_axis} open" if self.open_axis else ""
            raise unwritable(node, f"Core ML{open_}", str(error)) from error
        finally:
            self.node = None

    # --- pieces that many operators need

    def reshape(self, x: Any, target: Sequence[int], name: str, source: Sequence[int]) -> Any:
        """``x`` in another shape. ``source`` is its shape in the graph; an axis that is open stays so."""
        if not any(is_open(size) for size in x.shape):
            return self.mb.reshape(x=x, shape=np.asarray(target, np.int32), name=name)
        sizes = list(target)
        sizes[_open_position(x.shape, source, target)] = -1
        return self.mb.reshape(x=x, shape=np.asarray(sizes, np.int32), name=name)


def is_open(size: object) -> bool:
    return not isinstance(size, int | np.integer)


def _open_position(now: Sequence[object], source: Sequence[int], target: Sequence[int]) -> int:
    """Where the open axes of ``now`` end up in ``target``, so that it may be left to −1.

    Raises:
        ValueError: they are mixed with others there.
    """
    first = next(index for index, size in enumerate(now) if is_open(size))
    last = max(index for index, size in enumerate(now) if is_open(size))
    before, behind = int(np.prod(source[:first])), int(np.prod(source[last + 1 :]))
    for index in range(len(target)):
        left, right = int(np.prod(target[:index])), int(np.prod(target[index + 1 :]))
        if first == 0 and index == 0 and behind % right == 0:
            return index
        if left == before and right == behind:
            return index
    raise ValueError(f"a reshape from {list(source)} to {list(target)} that mixes an open axis with others")
