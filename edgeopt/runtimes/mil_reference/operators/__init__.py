"""Operators of MIL by name: one function each, which takes MIL's inputs as keywords.

Arrays of float dtypes arrive in float32; scalars that stand in the program arrive as Python values. A result is brought
to its declared dtype by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeopt.runtimes.mil_reference.operators import (
    activations,
    compression,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalization,
    pools,
    reductions,
    resizing,
)

OPERATORS: dict[str, Callable[..., Any]] = {
    **elementwise.OPERATORS,
    **activations.OPERATORS,
    **convolution.operators(convolution.NUMPY),
    **pools.OPERATORS,
    **linear.OPERATORS,
    **normalization.OPERATORS,
    **reductions.OPERATORS,
    **movement.OPERATORS,
    **indexing.OPERATORS,
    **resizing.OPERATORS,
    **compression.OPERATORS,
}
WITH_TORCH = convolution.operators(convolution.TORCH)
"""Those that torch does faster."""
