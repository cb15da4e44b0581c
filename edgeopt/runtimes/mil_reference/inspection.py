"""What stands in an ML program: precision of every operator, compression of its weights, bytes, quantization grids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference.program import (
    Argument,
    Constant,
    Function,
    Operation,
    Reference,
    TensorType,
    operations,
)

Array = npt.NDArray[Any]

WEIGHTED = frozenset({"conv", "conv_transpose", "linear", "matmul", "add"})
ACTIVATIONS = frozenset(
    {"relu", "relu6", "clip", "leaky_relu", "prelu", "sigmoid", "sigmoid_hard", "silu", "tanh", "gelu", "elu"}
)
"""What Core ML fuses behind a weighted operator or a residual sum."""
FLOAT_BYTES = {"float16": 2, "float32": 4}
CONSTANTS = ("const", "constexpr_")
"""Beginnings of the types that hold values and compute nothing at run time."""


@dataclass(frozen=True)
class Layer:
    """One operator that holds constants.

    Args:
        bytes: of all its constants as they are stored.
        compression: of its largest constant: ``float16``, ``8-bit linear``, ``4-bit palette``, ``sparse``…
    """

    name: str
    op_type: str
    precision: str
    bytes: int
    compression: str


@dataclass(frozen=True)
class Compression:
    """How many constants are stored in one way, and what it takes.

    Args:
        values: how many they hold.
        stored_bytes: as stored, with scales and palettes.
        float_bytes: in the float dtype that they are expanded to.
    """

    constants: int
    values: int
    stored_bytes: int
    float_bytes: int


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of integers: one of each, or one per channel of ``axis``."""

    tensor: str
    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None


class Program:
    """One function, with the ways from a variable to its maker and its readers."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.operations = tuple(operations(function.block))
        self.makers = {output.name: one for one in self.operations for output in one.outputs}
        self.readers: dict[str, list[Operation]] = {}
        for operation in self.operations:
            for argument in arguments(operation):
                if isinstance(argument, Reference):
                    self.readers.setdefault(argument.name, []).append(operation)

    def computing(self) -> Iterator[Operation]:
        """Operators that do something at run time."""
        return (one for one in self.operations if not one.type.startswith(CONSTANTS))

    def maker(self, argument: Argument) -> Operation | None:
        return self.makers.get(argument.name) if isinstance(argument, Reference) else None

    def weight(self, argument: Argument) -> Operation | None:
        """What makes an argument of constant floats; None for variables, and for parameters of other dtypes."""
        maker = self.maker(argument)
        if maker is None or not maker.type.startswith(CONSTANTS):
            return None
        kind = maker.outputs[-1].type
        return maker if isinstance(kind, TensorType) and kind.dtype in FLOAT_BYTES else None

    def constant(self, argument: Argument | None) -> Constant | None:
        """The value of an argument that the program holds as it is."""
        if isinstance(argument, Constant):
            return argument
        maker = self.maker(argument) if argument is not None else None
        return maker.attributes["val"] if maker is not None and maker.type == "const" else None

    def parameter(self, operation: Operation, key: str) -> Constant | None:
        """A parameter, wherever the program keeps it: attribute (iOS16), input (iOS18) or variable."""
        if key in operation.attributes:
            return operation.attributes[key]
        found = operation.inputs.get(key)
        return self.constant(found[0]) if found else None

    def precision(self, operation: Operation) -> str:
        """``int8`` where every data input comes from ``dequantize`` and every result goes to ``quantize``, else the
        dtype of the first output. An activation may lie between a weighted operator and ``quantize``: Core ML fuses it.
        """
        if operation.type in ("quantize", "dequantize") or (
            self._comes_from_integers(operation) and self._goes_to_integers(operation)
        ):
            return "int8"
        kind = operation.outputs[0].type if operation.outputs else None
        return kind.dtype if isinstance(kind, TensorType) else "other"

    def _comes_from_integers(self, operation: Operation) -> bool:
        data = [self.maker(argument) for argument in arguments(operation)]
        data = [one for one in data if one is None or not one.type.startswith(CONSTANTS)]
        if operation.type in ACTIVATIONS and len(data) == 1 and data[0] is not None and data[0].type in WEIGHTED:
            return self._comes_from_integers(data[0])
        return bool(data) and all(one is not None and one.type == "dequantize" for one in data)

    def _goes_to_integers(self, operation: Operation) -> bool:
        readers = [reader for output in operation.outputs for reader in self.readers.get(output.name, [])]
        if operation.type in WEIGHTED and len(readers) == 1 and readers[0].type in ACTIVATIONS:
            return self._goes_to_integers(readers[0])
        return bool(readers) and all(reader.type == "quantize" for reader in readers)

    def stored_bytes(self, operation: Operation) -> int:
        """Of all constants that belong to an operator, through what expands them."""
        total = sum(value.stored_bytes for value in operation.attributes.values())
        for argument in arguments(operation):
            if isinstance(argument, Constant):
                total += argument.stored_bytes
                continue
            maker = self.makers.get(argument.name)
            if maker is not None and maker.type.startswith(CONSTANTS):
                total += self.stored_bytes(maker)
        return total

    def compression(self, operation: Operation) -> str:
        """How a ``const`` or ``constexpr_*`` stores its values."""
        if operation.type == "const":
            kind = operation.outputs[0].type
            return kind.dtype if isinstance(kind, TensorType) else "other"
        parts = [self.maker(argument) for argument in arguments(operation)]
        inner = [self.compression(one) for one in parts if one is not None and one.type.startswith("constexpr_")]
        return " of ".join([self._own_compression(operation), *inner[:1]])

    def _own_compression(self, operation: Operation) -> str:
        if "lut" in operation.type:
            lut = self.parameter(operation, "lut")
            entries = 0
            if lut is not None and isinstance(lut.value, np.ndarray):
                entries = lut.value.size if lut.value.ndim == 1 else lut.value.shape[-2]
            return f"{int(np.log2(entries)) if entries else 0}-bit palette" + (
                ", sparse" if "sparse" in operation.type else ""
            )
        if operation.type.endswith(("affine_dequantize", "blockwise_shift_scale")):
            data = next(
                (d for key in ("quantized_data", "data", "nonzero_data") if (d := self.parameter(operation, key))), None
            )
            dtype = data.type.dtype if data is not None and isinstance(data.type, TensorType) else "?"
            bits = dtype.removeprefix("u").removeprefix("int")
            return f"{bits}-bit linear" + (", sparse" if "sparse" in operation.type else "")
        return "sparse" if "sparse" in operation.type else operation.type.removeprefix("constexpr_")


def arguments(operation: Operation) -> Iterator[Argument]:
    for values in operation.inputs.values():
        yield from values


def operator_counts(program: Program) -> dict[str, dict[str, int]]:
    """Precision → type → how many."""
    found: dict[str, Counter[str]] = {}
    for operation in program.computing():
        found.setdefault(program.precision(operation), Counter())[operation.type] += 1
    return {precision: dict(sorted(counts.items())) for precision, counts in sorted(found.items())}


SMALL_BYTES = 16
"""Parameters such as an epsilon are no weights."""


def layers(program: Program) -> list[Layer]:
    """Every operator that holds more than a few parameters, in program order."""
    found = []
    for operation in program.computing():
        held = [maker for argument in arguments(operation) if (maker := program.weight(argument)) is not None]
        total = sum(map(program.stored_bytes, held))
        if total > SMALL_BYTES:
            kind = program.compression(max(held, key=program.stored_bytes))
            found.append(Layer(operation.name, operation.type, program.precision(operation), total, kind))
    return found


def compressions(program: Program) -> dict[str, Compression]:
    """Way of storing → what is stored so. Only constants that operators read, each once."""
    found: dict[str, Compression] = {}
    seen: set[str] = set()
    for operation in program.computing():
        for argument in arguments(operation):
            maker = program.weight(argument)
            if maker is None or maker.outputs[0].name in seen:
                continue
            seen.add(maker.outputs[0].name)
            kind, stored = maker.outputs[-1].type, program.stored_bytes(maker)
            if not isinstance(kind, TensorType) or kind.shape is None or stored <= SMALL_BYTES:
                continue
            values = int(np.prod([size or 1 for size in kind.shape]))
            width = FLOAT_BYTES[kind.dtype]
            key = program.compression(maker)
            old = found.get(key, Compression(0, 0, 0, 0))
            found[key] = Compression(
                old.constants + 1, old.values + values, old.stored_bytes + stored, old.float_bytes + values * width
            )
    return dict(sorted(found.items()))


def grids(program: Program, names: Mapping[str, str] | None = None) -> list[Grid]:
    """Every grid of the program: of activations, and of weights that are stored as integers.

    Args:
        program: to read.
        names: variable → the name that it goes by; others go by their own.
    """
    found = []
    for operation in program.operations:
        if not operation.type.endswith(("quantize", "shift_scale")) or operation.type == "dequantize":
            continue
        scale, zero = program.parameter(operation, "scale"), program.parameter(operation, "zero_point")
        zero = zero or program.parameter(operation, "offset")
        if scale is None or not isinstance(scale.value, np.ndarray):
            continue
        axis = program.parameter(operation, "axis")
        kind = operation.outputs[0].type
        data = program.parameter(operation, "quantized_data") or program.parameter(operation, "data")
        kind = data.type if data is not None else kind
        zeros = np.zeros(scale.value.shape) if zero is None or not isinstance(zero.value, np.ndarray) else zero.value
        name = operation.outputs[-1].name
        channels = [place for place, size in enumerate(scale.value.shape) if size > 1]
        found.append(
            Grid(
                (names or {}).get(name, name),
                kind.dtype if isinstance(kind, TensorType) else "?",
                tuple(float(one) for one in scale.value.reshape(-1)),
                tuple(int(one) for one in np.broadcast_to(zeros, scale.value.shape).reshape(-1)),
                None if scale.value.size == 1 else int(axis.python()) if axis is not None else channels[0],
            )
        )
    return found
