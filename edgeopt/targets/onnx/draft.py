"""The Q/DQ graph while it is rewritten, with what every rewriting step asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.model import named_initializer
from edgeopt.graph.quantization import Quantization, QuantParams

Array = npt.NDArray[Any]


NO_INT8_KERNEL = frozenset({"ConvTranspose"})
"""Weighted operators that ONNX Runtime's CPU provider computes in float whatever stands around them."""


@dataclass(frozen=True)
class Draft:
    """One Q/DQ graph, changed in place, for the length of one lowering.

    Args:
        graph: the integer reference, on its way to the file.
        table: what was asked, and the grids.
        dtype: of activations: int8 or uint8.
    """

    graph: ir.Graph
    table: Quantization
    dtype: np.dtype[Any]

    @property
    def offset(self) -> int:
        """What is added to the table's integers."""
        return 128 if self.dtype == np.uint8 else 0

    def of_type(self, op_type: str) -> list[ir.Node]:
        return [node for node in self.graph if node.op_type == op_type]

    def grid(self, node: ir.Node) -> QuantParams:
        """Per-tensor parameters of a Q or DQ node of this graph, on the int8 grid."""
        scale, zero_point = node.inputs[1], node.inputs[2]
        assert scale is not None and scale.const_value is not None
        assert zero_point is not None and zero_point.const_value is not None
        stored = zero_point.const_value.numpy()
        return QuantParams(
            scale.const_value.numpy(), stored.astype(np.int32) - (128 if stored.dtype == np.uint8 else 0)
        )

    def constant(self, name: str, array: Array) -> ir.Value:
        return named_initializer(self.graph, name, array)

    def has_int8_kernel(self, node: ir.Node) -> bool:
        return self.table.scheme(node) == "int8" and node.op_type not in NO_INT8_KERNEL
