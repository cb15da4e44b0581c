"""Which artifacts carry the same integers: read back from the files, by tensor name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

Grids = dict[str, tuple[tuple[float, ...], tuple[int, ...]]]
"""Tensor name → scales and zero points on the int8 grid."""

UNSIGNED_SHIFT = 128
"""uint8 integers are int8 integers + 128: the same grid."""


def same_integers(paths: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """For each artifact the others whose grids agree wherever both files name a tensor, weights and activations.

    A file holds no grid for a tensor that it fused over, so only tensors that both have are compared; two files that
    share none are not called the same.
    """
    grids = {name: _grids(path) for name, path in paths.items()}
    return {
        name: tuple(other for other in grids if other != name and _agree(grids[name], grids[other])) for name in grids
    }


def _agree(a: Grids, b: Grids) -> bool:
    both = a.keys() & b.keys()
    return bool(both) and all(a[name] == b[name] for name in both)


def _grids(path: Path) -> Grids:
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
    return {}
