"""Inputs and outputs of the file as integers of the table's grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.errors import TargetError
from edgeopt.graph.model import make_like
from edgeopt.graph.quantization import QuantParams
from edgeopt.targets.onnx.draft import Draft


def integer_io(draft: Draft, dtype: np.dtype[Any]) -> dict[str, dict[str, float | int | str]]:
    """Make float inputs and outputs integers of the table's grid; grids by name, zero points in ``dtype``."""
    grids: dict[str, dict[str, float | int | str]] = {}
    offset = 128 if dtype == np.uint8 else 0
    for value in list(draft.graph.inputs):
        if value.dtype != ir.DataType.FLOAT:
            continue
        params = _io_grid(draft, value)
        grids[value.name or ""] = _described(params, offset, dtype)
        _dequantize_input(draft, value, params, dtype, offset)
        value.type = ir.TensorType(ir.DataType.from_numpy(dtype))
    for index, value in enumerate(list(draft.graph.outputs)):
        if value.dtype != ir.DataType.FLOAT:
            continue
        params = _io_grid(draft, value)
        grids[value.name or ""] = _described(params, offset, dtype)
        _quantize_output(draft, index, value, params, dtype, offset)
    return grids


def _io_grid(draft: Draft, value: ir.Value) -> QuantParams:
    name = value.name or ""
    if (params := draft.table.activations.get(name)) is not None:
        return params
    if (bounds := draft.table.ranges.get(name)) is not None:
        return QuantParams.from_range(bounds)
    raise TargetError(
        f"'{name}' has no grid in the table of scales, so it cannot be {draft.dtype.name}",
        where="target onnx, io",
        hint="io: float32, or scheme int8, which finds a range for every input and output",
    )


def _dequantize_input(draft: Draft, value: ir.Value, params: QuantParams, dtype: np.dtype[Any], offset: int) -> None:
    name = value.name or ""
    uses = list(value.uses())
    scale = draft.constant(f"{name}__io_scale", params.scale)
    zero_point = draft.constant(f"{name}__io_zero_point", (params.zero_point + offset).astype(dtype))
    dequantize = ir.node("DequantizeLinear", [value, scale, zero_point])
    make_like(dequantize.outputs[0], value, f"{name}__real")
    for use in uses:
        quantize = use.node
        if quantize.op_type == "QuantizeLinear" and dtype == draft.dtype and draft.grid(quantize) == params:
            # The caller gives the integers that this node would have made.
            ir.convenience.replace_all_uses_with(quantize.outputs[0], value)
            draft.graph.remove(quantize, safe=True)
        else:
            use.node.replace_input_with(use.idx, dequantize.outputs[0])
    if dequantize.outputs[0].uses():
        draft.graph.insert_before(draft.graph[0], [dequantize])


def _quantize_output(
    draft: Draft, index: int, value: ir.Value, params: QuantParams, dtype: np.dtype[Any], offset: int
) -> None:
    name = value.name or ""
    before = value.producer()
    value.name = f"{name}__real"
    if before is not None and before.op_type == "DequantizeLinear" and dtype == draft.dtype:
        integers = before.inputs[0]
        made = integers is not None and integers.producer() is not None and not integers.is_graph_output()
        if integers is not None and made and draft.grid(before) == params:
            integers.name = name
            draft.graph.outputs[index] = integers
            return
    scale = draft.constant(f"{name}__io_scale", params.scale)
    zero_point = draft.constant(f"{name}__io_zero_point", (params.zero_point + offset).astype(dtype))
    quantize = ir.node("QuantizeLinear", [value, scale, zero_point])
    make_like(quantize.outputs[0], value, name)
    quantize.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(dtype))
    draft.graph.append(quantize)
    draft.graph.outputs[index] = quantize.outputs[0]


def _described(params: QuantParams, offset: int, dtype: np.dtype[Any]) -> dict[str, float | int | str]:
    return {"scale": float(params.scale), "zero_point": int(params.zero_point) + offset, "dtype": dtype.name}
