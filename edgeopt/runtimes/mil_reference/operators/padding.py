"""How MIL pads windows: ``pad_type`` and ``pad`` of convolutions and pools as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Pads = tuple[tuple[int, int], ...]


def integers(values: Any, count: int, default: int) -> tuple[int, ...]:
    """``count`` integers, or so many times the default where nothing is given."""
    if values is None:
        return (default,) * count
    found = tuple(int(value) for value in np.asarray(values).reshape(-1))
    if len(found) != count:
        raise ValueError(f"{len(found)} values {list(found)} for {count} axes")
    return found


def window_pads(
    pad_type: str,
    pad: Any,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pads:
    """Elements before and after each spatial axis.

    ``same`` makes the output ``ceil(size / stride)``; an odd element goes behind (``same_lower``: before).
    """
    if pad_type == "valid":
        return ((0, 0),) * len(sizes)
    if pad_type == "custom":
        flat = integers(pad, 2 * len(sizes), 0)
        return tuple(zip(flat[::2], flat[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type '{pad_type}' is not known")
    found = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1
        total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        small, large = total // 2, total - total // 2
        found.append((small, large) if pad_type == "same" else (large, small))
    return tuple(found)
