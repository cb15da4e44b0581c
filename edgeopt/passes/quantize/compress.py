"""Weights for the schemes that only some formats store: palettes and 4-bit integers per block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.compression import COMPRESSED, INT4_MAX, INT4_MIN, PALETTE_BITS, Blocks, Palette
from edgeopt.graph.placement import WEIGHTED, Placement

Array = npt.NDArray[Any]

BLOCK = 32
"""Input channels per scale: what coremltools' block-wise quantization takes by default
(``OpLinearQuantizerConfig.block_size``)."""
ROUNDS = 60
"""Of k-means at most; from where it starts, 64 values of a normal distribution are within 1 % of the least error."""
BINS = 4096
SHRINK = np.linspace(1.0, 0.6, 9)
"""Shares of a block's largest value that its scale is tried for: clipping few values can pay for finer steps."""


def compress(model: ir.Model, placement: Placement) -> tuple[dict[str, Palette | Blocks], frozenset[str]]:
    """Compressed weights by name, and the nodes whose weight is so small that a palette would not make it smaller."""
    found: dict[str, Palette | Blocks] = {}
    too_small: set[str] = set()
    for node in model.graph:
        scheme = placement.schemes.get(node.name or "", "fp32")
        value = node.inputs[1] if node.op_type in WEIGHTED else None
        if scheme not in COMPRESSED or value is None or value.const_value is None:
            continue
        weight = value.const_value.numpy()
        bits = PALETTE_BITS.get(scheme)
        if bits is None:
            found[value.name or ""] = blocks(weight, 1 if node.op_type == "ConvTranspose" else 0)
        elif weight.size * bits / 8 + 2 * 2**bits < 2 * weight.size:
            found[value.name or ""] = palettize(weight, bits)
        else:
            too_small.add(node.name or "")
    return found, frozenset(too_small)


def palettize(weight: Array, bits: int) -> Palette:
    """The palette of least squared error, by k-means on one axis (Lloyd, 1982).

    It starts from values as dense as the cube root of the weights' density, which is optimal for many of them
    (Panter and Dite, 1951).

    Args:
        weight: float32, any shape.
        bits: of an index.
    """
    flat = np.sort(weight.reshape(-1).astype(np.float64))
    count = 2**bits
    totals = np.concatenate(([0.0], np.cumsum(flat)))
    filled, borders = np.histogram(flat, BINS)
    spread = np.concatenate(([0.0], np.cumsum(np.cbrt(filled))))
    middles = np.interp((np.arange(count) + 0.5) / count, spread / spread[-1], borders)
    for _ in range(ROUNDS):
        borders = np.searchsorted(flat, (middles[1:] + middles[:-1]) / 2)
        edges = np.concatenate(([0], borders, [flat.size]))
        sizes = np.diff(edges)
        means = (totals[edges[1:]] - totals[edges[:-1]]) / np.maximum(sizes, 1)
        # A value that nothing is nearest to takes its place among its neighbours' and waits there.
        moved = np.sort(np.where(sizes > 0, means, middles))
        if np.array_equal(moved, middles):
            break
        middles = moved
    values = middles.astype(np.float32)
    borders = (values[1:].astype(np.float64) + values[:-1]) / 2
    return Palette(np.searchsorted(borders, weight).astype(np.uint8), values)


def blocks(weight: Array, channel_axis: int) -> Blocks:
    """4-bit integers with the scale, per output channel and block of input channels, of least squared error.

    Args:
        weight: float32, (O, I, …), or (I, O, …) with ``channel_axis`` 1.
        channel_axis: of output channels.
    """
    inner = 1 - channel_axis
    size = BLOCK if weight.shape[inner] % BLOCK == 0 else weight.shape[inner]
    counts = [1] * weight.ndim
    counts[channel_axis], counts[inner] = weight.shape[channel_axis], weight.shape[inner] // size
    apart = [part for n, count in zip(weight.shape, counts, strict=True) for part in (count, n // count)]
    blocked = weight.astype(np.float32).reshape(apart)
    within = tuple(range(1, 2 * weight.ndim, 2))
    largest = np.maximum(np.abs(blocked).max(within, keepdims=True), np.finfo(np.float32).tiny * 2.0**20)
    best, least = np.zeros_like(largest), np.full(largest.shape, np.inf)
    for share in SHRINK:
        scale = (largest * share / INT4_MAX).astype(np.float32)
        made = np.clip(np.rint(blocked / scale), INT4_MIN, INT4_MAX) * scale
        error = np.square(made - blocked).sum(within, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    integers = np.clip(np.rint(blocked / best), INT4_MIN, INT4_MAX).astype(np.int8)
    return Blocks(integers.reshape(weight.shape), best.reshape(counts).astype(np.float32))
