"""What a weighted node's columns hold: mean and covariance of the inputs that each weight multiplies.

For quantized inputs everything is summed in integers: a block of 1,024 rows of int8 values has products that float32
adds without rounding (128² · 1024 = 2²⁴), so the result does not depend on the number of threads or on the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.passes.quantize.rounding import Layout

Array = npt.NDArray[Any]

BLOCK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one node's columns: mean (groups, columns) and covariance (groups, columns, columns), float64, real units."""

    mean: Array
    covariance: Array

    @property
    def second(self) -> Array:
        """E[x xᵀ]."""
        result: Array = self.covariance + self.mean[:, :, None] * self.mean[:, None, :]
        return result


def enough_rows(columns: int, effort: float) -> int:
    """Output positions to look at: 64 for each column of a small layer, 30 GFLOP in all for a wide one.

    Args:
        columns: of one group.
        effort: factor on the number.
    """
    wanted = effort * min(64 * columns, 1.5e10 / columns**2)
    return int(np.clip(wanted, max(4096, 2 * columns), 131_072))


def moments(
    node: ir.Node,
    layout: Layout,
    inputs: Sequence[Array],
    *,
    output_shape: Sequence[int],
    rows: int,
    seed: int,
    scale: float = 1.0,
    zero_point: int = 0,
) -> Moments:
    """Mean and covariance of the columns over randomly drawn output positions.

    Args:
        node: Conv (1-D or 2-D), ConvTranspose (2-D) or Gemm.
        layout: of its weight.
        inputs: one array per sample: int8 integers with ``scale`` and ``zero_point``, or float32.
        output_shape: of the node's output, with the batch axis.
        rows: about how many output positions to look at in all.
        seed: of the draw.
    """
    columns = layout.rows(np.empty(layout.shape, np.int8)).shape[2]
    total = np.zeros((layout.groups, columns, columns))
    sums = np.zeros((layout.groups, columns))
    count = 0
    per_sample = max(1, -(-rows // max(1, len(inputs))))
    for index, sample in enumerate(inputs):
        random = np.random.default_rng((seed, index))
        taken = _columns(node, layout, sample, output_shape, per_sample, random, zero_point)
        for start in range(0, taken.shape[1], BLOCK_ROWS):
            block = np.ascontiguousarray(taken[:, start : start + BLOCK_ROWS]).astype(np.float32)
            total += block.transpose(0, 2, 1) @ block
            sums += (np.ones((1, block.shape[1]), np.float32) @ block)[:, 0]
        count += taken.shape[1]
    mean = sums / count
    covariance = total / count - mean[:, :, None] * mean[:, None, :]
    return Moments((mean - zero_point) * scale, covariance * scale**2)


def _columns(
    node: ir.Node,
    layout: Layout,
    sample: Array,
    output_shape: Sequence[int],
    wanted: int,
    random: np.random.Generator,
    fill: int,
) -> Array:
    """(groups, positions, columns) of one sample."""
    if layout.op == "Gemm":
        rows = sample if wanted >= len(sample) else sample[np.sort(random.choice(len(sample), wanted, replace=False))]
        return rows[None]
    sample = sample if sample.ndim == 4 else sample[:, :, None, :]
    taps = (layout.shape[2:]) if len(layout.shape) == 4 else (1, *layout.shape[2:])
    height, width = output_shape[2:] if len(output_shape) == 4 else (1, output_shape[2])
    strides = _two(node, "strides", 1)
    dilations = _two(node, "dilations", 1)
    pads = node.attributes.get_ints("pads", [0, 0, 0, 0])
    before = (pads[0], pads[1]) if len(pads) == 4 else (0, pads[0])
    offsets = [np.arange(size) * dilation for size, dilation in zip(taps, dilations, strict=True)]
    if layout.op == "ConvTranspose":
        # The same sum, seen from the output: the input spread out by the strides, the taps in reverse.
        sample = _spread_out(sample, strides, fill)
        reach = [int(o[-1]) for o in offsets]
        before = (reach[0] - before[0], reach[1] - before[1])
        offsets = [o[::-1] for o in offsets]
        strides = (1, 1)
    if before[0] < 0 or before[1] < 0:
        sample = sample[:, :, max(0, -before[0]) :, max(0, -before[1]) :]
        before = (max(0, before[0]), max(0, before[1]))
    reach_y = (height - 1) * strides[0] + int(offsets[0].max()) + 1 - before[0] - sample.shape[2]
    reach_x = (width - 1) * strides[1] + int(offsets[1].max()) + 1 - before[1] - sample.shape[3]
    padding = ((0, 0), (0, 0), (before[0], max(0, reach_y)), (before[1], max(0, reach_x)))
    padded = np.pad(sample, padding, constant_values=fill)
    places = len(sample) * height * width
    chosen = np.arange(places) if wanted >= places else np.sort(random.choice(places, wanted, replace=False))
    image, y, x = np.unravel_index(chosen, (len(sample), height, width))
    rows_y = (y * strides[0])[:, None, None] + offsets[0][None, :, None]
    rows_x = (x * strides[1])[:, None, None] + offsets[1][None, None, :]
    windows = padded[image[:, None, None], :, rows_y, rows_x]  # (positions, taps y, taps x, channels)
    taken = windows.transpose(0, 3, 1, 2).reshape(len(chosen), layout.groups, -1)
    return taken.transpose(1, 0, 2)


def _two(node: ir.Node, name: str, default: int) -> tuple[int, int]:
    values = node.attributes.get_ints(name, [default, default])
    return (values[0], values[1]) if len(values) == 2 else (1, values[0])


def _spread_out(sample: Array, strides: tuple[int, int], fill: int) -> Array:
    batch, channels, height, width = sample.shape
    shape = (batch, channels, (height - 1) * strides[0] + 1, (width - 1) * strides[1] + 1)
    result = np.full(shape, fill, sample.dtype)
    result[:, :, :: strides[0], :: strides[1]] = sample
    return result
