"""Weights that only some formats can store compressed: palettes, and 4-bit integers with a scale per block.

They stand in the table beside the int8 weights (``Quantization.compressed``). The float graph keeps its weights; the
integer reference computes with what these decompress to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.types import SchemeName

Array = npt.NDArray[Any]

PALETTE_BITS: dict[SchemeName, int] = {"palette4-weights": 4, "palette6-weights": 6, "palette8-weights": 8}
"""Scheme → bits of an index; a palette has 2 to the power of as many values."""
COMPRESSED: frozenset[SchemeName] = frozenset({*PALETTE_BITS, "int4-weights"})
INT4_MIN, INT4_MAX = -8, 7


@dataclass(frozen=True, eq=False)
class Palette:
    """A weight as indices into a few values.

    Args:
        indices: uint8, the weight's shape.
        values: float32, (2 ** bits,), ascending.
    """

    indices: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32]

    @property
    def bits(self) -> int:
        return len(self.values).bit_length() - 1

    def dequantize(self) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self.values[self.indices]
        return found


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight as 4-bit integers, zero point 0, with one scale per block.

    Args:
        integers: int8 in [−8, 7], the weight's shape.
        scale: float32, of the weight's rank; each size divides the weight's, and the quotient is the block's.
    """

    integers: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]

    def dequantize(self) -> npt.NDArray[np.float32]:
        scale = self.scale
        for axis, (size, count) in enumerate(zip(self.integers.shape, self.scale.shape, strict=True)):
            scale = np.repeat(scale, size // count, axis)
        product: npt.NDArray[np.float32] = self.integers.astype(np.float32) * scale
        return product
