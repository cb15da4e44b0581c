"""Pairs of weights whose products overflow 16 bits on x86 without VNNI, and how to keep them from it.

There ONNX Runtime's kernels for uint8 × int8 multiply with ``VPMADDUBSW``, which adds the products of two neighbours
and saturates the sum at int16. Neighbours are consecutive columns of a filter with its channels last. An activation
reaches 255, so a pair is safe if its weights of one sign add up to at most ``PAIR_LIMIT`` in absolute value:
255 · 128 < 2¹⁵ ≤ 255 · 129. A filter whose every pair is safe is exact in the fastest kernel of every processor.

The usual remedy, weights of 7 bits ("reduce range", "overflow fix"), halves the resolution of all weights for the sake
of the few pairs that need it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PAIR_LIMIT = 128
SCHEMES = frozenset({"int8", "int8-dynamic"})
"""Of nodes that multiply integers."""


def pairs(op_type: str, shape: tuple[int, ...], groups: int) -> npt.NDArray[np.intp]:
    """Which columns of a filter are multiplied and added in 16 bits: (pairs, 2), indices into a flattened filter.

    Args:
        op_type: Conv or Gemm; whatever else has no such kernel.
        shape: of the weight: (outputs, inputs of a group, *taps), or (outputs, inputs).
        groups: of the convolution.

    A depthwise convolution with one filter per channel has none: its kernels multiply in 32 bits.
    """
    depthwise = op_type == "Conv" and groups > 1 and shape[1] == 1 and shape[0] == groups
    if op_type not in ("Conv", "Gemm") or depthwise:
        return np.empty((0, 2), np.intp)
    columns = np.arange(int(np.prod(shape[1:]))).reshape(shape[1], -1).T.ravel()  # channels last
    return columns[: len(columns) // 2 * 2].reshape(-1, 2)


def excess(rows: Array, pairs: Array) -> Array:
    """By how much each pair goes beyond the limit: (..., columns) → (..., pairs), 0 where it is safe."""
    first, second = (rows[..., pairs[:, side]].astype(np.int32) for side in (0, 1))
    result: Array = np.maximum(np.abs(first) + np.abs(second) - PAIR_LIMIT, 0) * (first * second > 0)
    return result


def within(rows: Array, pairs: Array) -> Array:
    """The nearest integers of which every pair is safe; both weights of a pair give up half of the excess.

    Args:
        rows: integers (..., columns), any dtype; −127…127.
        pairs: of ``pairs``.
    """
    over, kept = excess(rows, pairs), np.array(rows)
    for side, share in ((0, over // 2), (1, over - over // 2)):
        column = pairs[:, side]
        kept[..., column] = kept[..., column] - (np.sign(kept[..., column]) * share).astype(kept.dtype)
    return kept


def is_safe(integers: Array, op_type: str, groups: int) -> bool:
    """Whether no pair of a weight can overflow.

    Args:
        integers: int8, the shape of the weight as the graph has it.
        op_type, groups: of the node that reads it.
    """
    return not excess(integers.reshape(len(integers), -1), pairs(op_type, integers.shape, groups)).any()
