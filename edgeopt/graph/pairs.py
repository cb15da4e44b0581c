"""What a DequantizeLinear of constants stands for, for all that rewrite Q/DQ pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]


def along_axis(dequantize: ir.Node) -> Array:
    """The constant scale of a pair's node, shaped so that it multiplies what the node reads: scalar, or per channel."""
    stored, scale = dequantize.inputs[0], dequantize.inputs[1]
    assert stored is not None and stored.shape is not None and scale is not None and scale.const_value is not None
    factor = scale.const_value.numpy()
    if factor.ndim == 0:
        return factor
    shape = [1] * len(stored.shape)
    shape[dequantize.attributes.get_int("axis", 1) % len(shape)] = -1
    return factor.reshape(shape)


def real_values(dequantize: ir.Node) -> Array:
    """What a DequantizeLinear of constants with zero point 0 makes, float32: a weight or a bias."""
    stored = dequantize.inputs[0]
    assert stored is not None and stored.const_value is not None
    real: Array = (stored.const_value.numpy().astype(np.float32) * along_axis(dequantize)).astype(np.float32)
    return real
