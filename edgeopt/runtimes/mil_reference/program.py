"""What an ML program is: functions of blocks of operators, with typed variables and constants.

Apple's ``coremltools/mlmodel/format/*.proto`` say what the fields mean; ``package`` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FeatureKind = Literal["array", "image", "string", "int64", "double", "dictionary", "sequence", "state"]

DEPLOYMENT_TARGETS = {6: "iOS15", 7: "iOS16", 8: "iOS17", 9: "iOS18", 10: "iOS26"}
"""Specification version → the lowest deployment target that reads it."""


@dataclass(frozen=True)
class TensorType:
    """Dtype by MIL's name (``float16``, ``int4``, ``string``…) and shape.

    A size that is None is open, a shape that is None has an open rank.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class OtherType:
    """A list, tuple, dictionary or state."""

    kind: str
    elements: tuple[ValueType, ...] = ()


ValueType = TensorType | OtherType


@dataclass(frozen=True)
class Variable:
    name: str
    type: ValueType


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that stands in the program.

    Args:
        type: what the program declares.
        value: an array (read-only; values smaller than a byte take one each, strings are ``object``), or a tuple of
            constants for lists and tuples, or a dictionary of Python values.
        stored_bytes: how many bytes it takes in the weight file, or would take in the program.
        offset: of its metadata in the weight file; None: the value stands in the program itself.
    """

    type: ValueType
    value: Array | tuple[Constant, ...] | Mapping[Any, Any]
    stored_bytes: int
    offset: int | None = None

    def python(self) -> Any:
        """A scalar as a Python value, a list or tuple as a list of such, an array as it is."""
        if isinstance(self.value, tuple):
            return [item.python() for item in self.value]
        if isinstance(self.value, np.ndarray) and self.value.ndim == 0:
            return self.value.item()
        return self.value


@dataclass(frozen=True)
class Reference:
    """The use of a variable by its name."""

    name: str


Argument = Reference | Constant


@dataclass(frozen=True, eq=False)
class Operation:
    """One operator: every input has one or more arguments (``concat`` takes several for ``values``)."""

    type: str
    name: str
    inputs: Mapping[str, tuple[Argument, ...]]
    attributes: Mapping[str, Constant]
    outputs: tuple[Variable, ...]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, eq=False)
class Block:
    inputs: tuple[Variable, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Feature:
    """One input, output or state, as the model's description gives it.

    Args:
        name: as in the program.
        kind: what it is to an app.
        dtype: of an array, ``uint8`` for an image, else None.
        shape: of an array, or ``(height, width)`` of an image; empty if nothing is said.
        color: ``RGB``, ``BGR``, ``GRAYSCALE`` or ``GRAYSCALE_FLOAT16`` of an image.
        enumerated: the shapes that are allowed, where they are listed.
        ranges: lowest and highest size of each axis where they are open; −1: no highest.
        optional: may be left out.
        description: in words.
    """

    name: str
    kind: FeatureKind
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    color: str | None = None
    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    optional: bool = False
    description: str = ""


@dataclass(frozen=True, eq=False)
class Function:
    """One entry point: its block is the one for ``opset``."""

    name: str
    opset: str
    inputs: tuple[Variable, ...]
    block: Block
    features_in: tuple[Feature, ...]
    features_out: tuple[Feature, ...]
    states: tuple[Feature, ...] = ()
    predicted_feature: str | None = None
    predicted_probabilities: str | None = None


@dataclass(frozen=True)
class Metadata:
    description: str
    author: str
    license: str
    version: str
    user_defined: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Package:
    """All of an ``.mlpackage`` that holds an ML program."""

    path: Path
    specification_version: int
    metadata: Metadata
    functions: Mapping[str, Function]
    default_function: str
    model_bytes: int
    weight_bytes: int
    attributes: Mapping[str, Constant]

    @property
    def deployment_target(self) -> str:
        """The lowest that reads this file, such as ``iOS17``."""
        version = self.specification_version
        return DEPLOYMENT_TARGETS.get(version, f"specification version {version}")

    @property
    def main(self) -> Function:
        return self.functions[self.default_function]


def operations(block: Block) -> Iterator[Operation]:
    """Every operator in file order, those of inner blocks after the one that holds them."""
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from operations(inner)
