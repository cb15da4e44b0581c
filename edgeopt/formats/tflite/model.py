"""A TFLite model in memory: tensors, operators, signature.

Only the first subgraph is held: that is the model, others are bodies of control flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass
class Tensor:
    """One tensor of the file.

    Args:
        name: as in the file.
        shape: static shape.
        dtype: the schema's type in lower case: ``float32``, ``int8``, ``int4``, ``string``…
        data: a constant's values; raw bytes (uint8) for types that numpy lacks; None for what is computed.
        scale: float32, one or one per channel; None if not quantized.
        zero_point: int64, the shape of ``scale``.
        axis: channel axis of ``scale``.
        source: the file's own record with what has no place here (sparsity, variable, open shape).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    scale: Array | None = None
    zero_point: Array | None = None
    axis: int = 0
    source: Any = None

    @property
    def grid(self) -> tuple[float, int] | None:
        """Scale and zero point if quantized per tensor."""
        if self.scale is None or self.zero_point is None or self.scale.size != 1:
            return None
        return float(self.scale.reshape(-1)[0]), int(self.zero_point.reshape(-1)[0])


@dataclass
class Operator:
    """One operator.

    Args:
        code: the schema's name (``CONV_2D``), or ``CUSTOM:name``.
        inputs: tensor indices; −1 where an optional one is left out.
        outputs: tensor indices.
        options: an options object of the schema (``Conv2DOptionsT``), or None.
        version: operator version.
        source: the file's own record (custom options, second option field).
    """

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any = None
    version: int = 1
    source: Any = None


@dataclass
class Model:
    """A TFLite model. ``signature_inputs`` and ``_outputs`` map names to tensor indices; empty if it has none."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    signature_inputs: dict[str, int] = field(default_factory=dict)
    signature_outputs: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, bytes] = field(default_factory=dict)
    description: str = ""
    subgraphs: int = 1

    def names(self) -> dict[str, int]:
        """Tensor name → index. Where a file uses a name twice, the first."""
        found: dict[str, int] = {}
        for index, tensor in enumerate(self.tensors):
            found.setdefault(tensor.name, index)
        return found

    def producers(self) -> dict[int, int]:
        """Tensor index → index of the operator that writes it."""
        return {tensor: index for index, operator in enumerate(self.operators) for tensor in operator.outputs}

    def consumers(self) -> dict[int, list[int]]:
        """Tensor index → indices of the operators that read it."""
        found: dict[int, list[int]] = {}
        for index, operator in enumerate(self.operators):
            for tensor in dict.fromkeys(operator.inputs):
                found.setdefault(tensor, []).append(index)
        return found


def drop_unused(model: Model) -> None:
    """Remove operators whose results nobody reads, then tensors that nobody names; order is kept. In place."""
    needed = set(model.outputs)
    kept: list[Operator] = []
    for operator in reversed(model.operators):
        if needed.intersection(operator.outputs):
            kept.append(operator)
            needed.update(operator.inputs)
    model.operators = kept[::-1]
    used = set(model.inputs) | set(model.outputs)
    for operator in model.operators:
        used.update(operator.inputs)
        used.update(operator.outputs)
    order = sorted(used)
    place = {old: new for new, old in enumerate(order)}
    model.tensors = [model.tensors[old] for old in order]
    for operator in model.operators:
        operator.inputs = tuple(place[index] for index in operator.inputs)
        operator.outputs = tuple(place[index] for index in operator.outputs)
    model.inputs = [place[index] for index in model.inputs]
    model.outputs = [place[index] for index in model.outputs]
    model.signature_inputs = {name: place[index] for name, index in model.signature_inputs.items()}
    model.signature_outputs = {name: place[index] for name, index in model.signature_outputs.items()}


def integers_of(model: Model, name: str, index_of: Mapping[str, int] | None = None) -> int | None:
    """Index of the integer tensor of a value: called ``name``, or ``name__q`` if a float one has that name."""
    index_of = model.names() if index_of is None else index_of
    for candidate in (name, name + "__q"):
        index = index_of.get(candidate)
        if index is not None and model.tensors[index].dtype in ("int8", "uint8"):
            return index
    return None
