"""Which artifacts carry the same integers: read back from the files, by tensor name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeopt.graph.qdq import INTEGERS_SUFFIX

if TYPE_CHECKING:
    from edgeopt.runtimes.mil_reference.program import Operation

Grids = dict[str, tuple[tuple[float, ...], tuple[int, ...]]]
"""Tensor name → scales and zero points on the int8 grid."""

UNSIGNED_SHIFT = 128
"""uint8 integers are int8 integers + 128: the same grid."""


_SHIFTS = {np.dtype(np.int8): UNSIGNED_SHIFT, np.dtype(np.uint8): 0}


@dataclass(frozen=True)
class Carried:
    """What a file carries.

    Args:
        grids: of activations and weights.
        weights: name → how often each int8 integer stands in it: the same whatever order a format keeps axes in
            (places are the parity levels' to judge).
        rounded: scales are float16, which rounds them: the file claims no grid.
    """

    grids: Grids
    weights: dict[str, tuple[int, ...]]
    rounded: bool = False


def carried(path: Path) -> Carried:
    grids = _grids(path)
    return Carried(grids or {}, _weights(path), rounded=grids is None)


def same_integers(files: Mapping[str, Carried]) -> dict[str, tuple[str, ...]]:
    """For each file the others with which it agrees in grids and weights, wherever both name a tensor.

    A file holds no grid for a tensor that it fused over, so only tensors that both have are compared; two files that
    share none are not called the same.
    """

    def agree(a: Carried, b: Carried) -> bool:
        return _agree(a.grids, b.grids) and (not (a.weights and b.weights) or _agree(a.weights, b.weights))

    return _pairs(files, agree)


def same_weights(files: Mapping[str, Carried]) -> dict[str, tuple[str, ...]]:
    """For each file the others that carry the same weight integers, whatever their activation grids."""
    return _pairs(files, lambda a, b: _agree(a.weights, b.weights))


def _pairs(files: Mapping[str, Carried], agree: Callable[[Carried, Carried], bool]) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(other for other in files if other != name and agree(files[name], files[other])) for name in files
    }


def _agree(a: Mapping[str, object], b: Mapping[str, object]) -> bool:
    """Whether there is something to compare, and it is equal."""
    shared = a.keys() & b.keys()
    return bool(shared) and all(a[name] == b[name] for name in shared)


def _weights(path: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, npt.NDArray[Any]] = {}
    if path.suffix == ".onnx":
        from edgeopt.formats import onnx

        for value in onnx.load(path).graph.initializers.values():
            if value.const_value is not None and len(value.const_value.shape) > 1:
                found[(value.name or "").removesuffix(INTEGERS_SUFFIX)] = value.const_value.numpy()
    elif path.suffix == ".tflite":
        from edgeopt.formats import tflite

        found = {t.name: t.data for t in tflite.read(path).tensors if t.data is not None and len(t.shape) > 1}
    elif path.suffix == ".mlpackage":
        from edgeopt.runtimes.mil_reference.package import read
        from edgeopt.runtimes.mil_reference.program import operations

        package = read(path)
        producers = {output.name: op for op in operations(package.main.block) for output in op.outputs}
        names: dict[str, str] = json.loads(package.metadata.user_defined.get("edgeopt.weights", "{}"))
        for name, variable in names.items():
            if (operation := producers.get(variable)) is None:
                continue
            for key in ("quantized_data", "data"):
                if (array := _constant_of(operation, key, producers)) is not None:
                    found[name] = array
    return {
        name: tuple(np.bincount(array.reshape(-1).astype(np.int16) + _SHIFTS[array.dtype], minlength=256).tolist())
        for name, array in found.items()
        if array.dtype in _SHIFTS
    }


def _grids(path: Path) -> Grids | None:
    """None: scales in float16."""
    if path.suffix == ".onnx":
        from edgeopt.formats import onnx

        return {
            grid.tensor: (
                tuple(float(np.float32(scale)) for scale in grid.scale),
                tuple(zero - UNSIGNED_SHIFT * (grid.dtype == "uint8") for zero in grid.zero_point),
            )
            for grid in onnx.summarise(path).grids
            if grid.dtype in ("int8", "uint8")
        }
    if path.suffix == ".tflite":
        from edgeopt.formats import tflite

        return {
            tensor.name: (
                tuple(float(scale) for scale in tensor.scale.reshape(-1)),
                tuple(int(zero) - UNSIGNED_SHIFT * (tensor.dtype == "uint8") for zero in tensor.zero_point.reshape(-1)),
            )
            for tensor in tflite.read(path).tensors
            if tensor.scale is not None and tensor.zero_point is not None and tensor.dtype in ("int8", "uint8")
        }
    if path.suffix == ".mlpackage":
        return _package_grids(path)
    return {}


def _package_grids(path: Path) -> Grids | None:
    """Of a Core ML program in float32; None of one in float16, which has rounded its scales."""
    from edgeopt.runtimes.mil_reference.package import read
    from edgeopt.runtimes.mil_reference.program import operations

    package = read(path)
    producers = {output.name: op for op in operations(package.main.block) for output in op.outputs}
    tensors: dict[str, list[str]] = json.loads(package.metadata.user_defined.get("edgeopt.tensors", "{}"))
    weights: dict[str, str] = json.loads(package.metadata.user_defined.get("edgeopt.weights", "{}"))
    found: Grids = {}
    for name, variable in (*((n, pair[0]) for n, pair in tensors.items()), *weights.items()):
        operation = producers.get(variable)
        if operation is None or not {"scale"} & {*operation.inputs, *operation.attributes}:
            continue
        scale = _constant_of(operation, "scale", producers)
        if scale is None or scale.dtype != np.float32:
            return None
        zero_point = _constant_of(operation, "zero_point", producers)
        zeros = (0,) * scale.size if zero_point is None else tuple(int(zero) for zero in zero_point.reshape(-1))
        if len(zeros) != scale.size:  # one zero point for all channels
            zeros = zeros * scale.size
        found[name] = tuple(float(one) for one in scale.reshape(-1)), zeros
    return found


def _constant_of(operation: Operation, key: str, producers: Mapping[str, Operation]) -> npt.NDArray[Any] | None:
    """A parameter of an operator, wherever the program keeps it."""
    from edgeopt.runtimes.mil_reference.program import Constant, Reference

    given: object = operation.attributes.get(key)
    if given is None and operation.inputs.get(key):
        given = operation.inputs[key][0]
    if isinstance(given, Reference):
        made = producers.get(given.name)
        given = made.attributes.get("val") if made is not None else None
    return given.value if isinstance(given, Constant) and isinstance(given.value, np.ndarray) else None
