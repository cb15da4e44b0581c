"""The canonical float graph: what quantize, targets and parity rely on, whatever the model came from.

1. One graph, opset 20, no functions, no subgraphs; every shape static, every value named and typed, every node named,
   names unique; initializers are no graph inputs; no Constant, Identity or Dropout; constant subgraphs folded.
2. Weighted operators are Conv, ConvTranspose and Gemm (transB=1, weight (N, K), rank-2 input). Each has a bias, its
   weight and bias have one reader, pads are written out, BatchNormalization and per-channel constants are folded.
   MatMul reads two activations (or a constant of rank > 2); scalar factors of its inputs stand behind it.
3. A mean over all of H and W is GlobalAveragePool. Flatten, Squeeze, Unsqueeze are Reshape with its target written
   out; Slice has constant starts, ends, axes, steps; Gather of evenly spaced indices is Slice.
4. Clip has constant bounds; Clip(0, ∞) is Relu. Gelu, HardSwish, HardSigmoid, LayerNormalization are one node each.
5. Names and order of graph inputs and outputs are the source's. Layout is NCHW.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.model import (
    OPSET,
    add_initializer,
    constant,
    name_uniquely,
    open_values,
    place,
)
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass
from edgeopt.passes.canonicalise_activations import CanonicaliseActivations
from edgeopt.passes.canonicalise_linear import CanonicaliseLinear
from edgeopt.passes.canonicalise_movement import CanonicaliseMovement
from edgeopt.passes.canonicalise_normalization import CanonicaliseNormalization
from edgeopt.passes.canonicalise_pools import CanonicalisePools
from edgeopt.passes.fold_batch_norm import FoldBatchNorm
from edgeopt.passes.fold_constants import FoldConstants
from edgeopt.passes.simplify import Simplify
from edgeopt.passes.sink_transposes import SinkTransposes

PASSES: tuple[Pass, ...] = (
    FoldConstants(),
    Simplify(),
    SinkTransposes(),
    Simplify(),
    CanonicaliseMovement(),
    CanonicalisePools(),
    CanonicaliseActivations(),
    CanonicaliseNormalization(),
    Simplify(),
    CanonicaliseLinear(),
    FoldBatchNorm(),
    Simplify(),
)
"""In order. Each keeps the function of the graph."""


def canonicalise(graph: QuantizedGraph, context: Context) -> QuantizedGraph:
    """Bring an imported graph (opset 20, static inputs) into the canonical form, in place.

    Raises:
        ModelError: shapes that contradict each other or stay open, weights that become NaN or Inf.
        UnsupportedOperator: a shape or a weight that depends on data.
    """
    if graph.model.opset_imports.get("") != OPSET:
        raise ValueError(f"a graph is lifted to opset {OPSET} when it is imported")
    name_uniquely(graph.model.graph)
    for step in PASSES:
        graph = step.run(graph, context)
    model = graph.model
    _untie(model.graph)
    name_uniquely(model.graph)
    _refuse_dtypes(model)
    if still_open := open_values(model):
        raise ModelError(f"the shape of {still_open[0].name!r} cannot be found out")
    return graph


def _untie(graph: ir.Graph) -> None:
    """Weight and bias have one reader each: scales are per reader. The arrays are shared, not copied."""
    for node in graph:
        if node.op_type in WEIGHTED:
            for index in (1, 2):
                value = node.inputs[index]
                array = constant(value)
                if value is not None and array is not None and len(value.uses()) > 1:
                    node.replace_input_with(index, add_initializer(graph, value.name or "weight", array))


def _refuse_dtypes(model: ir.Model) -> None:
    for node in model.graph:
        for value in node.outputs:
            if value.dtype in {ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, *_COMPLEX}:
                raise ModelError(
                    f"this node computes in {value.dtype.name.lower()}; edgeopt takes float32 graphs",
                    where=place(node),
                    hint="Export the model in float32; the schemes fp16 and int8 lower it from there.",
                )


_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
