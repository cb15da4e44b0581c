"""Every operator that a canonical graph, or its Q/DQ form, can hold, and how it is written to Core ML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.errors import UnsupportedOperator
from edgeopt.graph.half import SMALLEST_HALF
from edgeopt.graph.model import shape
from edgeopt.targets.coreml import elementwise as el
from edgeopt.targets.coreml import movement as mv
from edgeopt.targets.coreml import pixels as px
from edgeopt.targets.coreml import reductions as rd
from edgeopt.targets.coreml import weighted as wt
from edgeopt.targets.coreml.deployment import OLDEST, number
from edgeopt.targets.coreml.emit import MOST_AXES, Array, Emitter
from edgeopt.targets.refusal import unfit, unknown, unwritable

Precision = Callable[[ir.Node], bool]
"""Whether a node computes in float16."""


@dataclass(frozen=True)
class Lowering:
    """How one operator is written.

    Args:
        emit: writes it.
        check: what about a node cannot be lowered, in words, or None.
        needs: the lowest deployment target that has what it is written with.
    """

    emit: Callable[[Emitter, ir.Node], None]
    check: Callable[[ir.Node], str | None] | None = None
    needs: str = OLDEST


def quantize(e: Emitter, node: ir.Node) -> None:
    """Divide, round half to even, add the zero point, saturate. A constant is quantized here and now."""
    scale, zero_point = e.known(node.inputs[1]), e.known(node.inputs[2])
    assert scale is not None and zero_point is not None
    array = e.known(node.inputs[0])
    if array is not None:
        steps = np.rint(array.astype(np.float32) / scale) + zero_point
        e.constants[node.outputs[0]] = np.clip(steps, -128, 127).astype(np.int8)
        return
    e.write(
        node,
        e.mb.quantize(
            input=e.read(node.inputs[0]),
            scale=_scale(e, scale),
            output_dtype="int8",
            name=e.name(node),
            **_zero_point(zero_point),
        ),
    )


def dequantize(e: Emitter, node: ir.Node) -> None:
    integers = e.known(node.inputs[0])
    scale, zero_point = e.known(node.inputs[1]), e.known(node.inputs[2])
    assert scale is not None and zero_point is not None
    if integers is not None:
        reader = next((use.node for use in node.outputs[0].uses()), None)
        if reader is None or reader.op_type not in wt.WITH_WEIGHTS:
            e.constants[node.outputs[0]] = wt.dequantized(e, node)
        return  # a weight or bias: written with its node
    assert node.inputs[0] is not None
    var = e.vars[node.inputs[0]]
    scaled = _scale(e, scale)
    e.write(node, e.mb.dequantize(input=var, scale=scaled, name=e.name(node), **_zero_point(zero_point)))


def _scale(e: Emitter, scale: Array) -> np.floating[Any]:
    value = float(scale)
    return e.number(max(value, SMALLEST_HALF) if e.half else value)


def _zero_point(zero_point: Array) -> dict[str, np.int8]:
    """Left out where it is 0, as MIL has it."""
    return {"zero_point": np.int8(zero_point)} if int(zero_point) else {}


LOWERINGS: Mapping[str, Lowering] = {
    "QuantizeLinear": Lowering(quantize, needs="iOS17"),
    "DequantizeLinear": Lowering(dequantize),
    "Conv": Lowering(wt.conv, wt.check_conv),
    "ConvTranspose": Lowering(wt.conv_transpose, wt.check_conv),
    "Gemm": Lowering(wt.gemm, wt.check_gemm),
    "MatMul": Lowering(wt.matmul, wt.check_matmul),
    "Add": Lowering(el.binary("add")),
    "Sub": Lowering(el.binary("sub")),
    "Mul": Lowering(el.binary("mul")),
    "Div": Lowering(el.binary("real_div"), el.check_division),
    "Pow": Lowering(el.power),
    "Max": Lowering(el.variadic("maximum")),
    "Min": Lowering(el.variadic("minimum")),
    "Sum": Lowering(el.variadic("add")),
    "Equal": Lowering(el.binary("equal")),
    "Greater": Lowering(el.binary("greater")),
    "GreaterOrEqual": Lowering(el.binary("greater_equal")),
    "Less": Lowering(el.binary("less")),
    "LessOrEqual": Lowering(el.binary("less_equal")),
    "And": Lowering(el.binary("logical_and")),
    "Or": Lowering(el.binary("logical_or")),
    "Xor": Lowering(el.binary("logical_xor")),
    "Not": Lowering(el.unary("logical_not")),
    "Where": Lowering(el.where, el.check_where),
    "PRelu": Lowering(el.prelu),
    "Relu": Lowering(el.unary("relu")),
    "Clip": Lowering(el.clip),
    "LeakyRelu": Lowering(el.with_attributes("leaky_relu", alpha=0.01)),
    "ThresholdedRelu": Lowering(el.with_attributes("thresholded_relu", alpha=1.0)),
    "Elu": Lowering(el.with_attributes("elu", alpha=1.0)),
    "Selu": Lowering(el.selu),
    "Celu": Lowering(el.celu),
    "Erf": Lowering(el.unary("erf")),
    "HardSwish": Lowering(el.hard_swish),
    "HardSigmoid": Lowering(el.with_attributes("sigmoid_hard", alpha=0.2, beta=0.5)),
    "Sigmoid": Lowering(el.unary("sigmoid")),
    "Tanh": Lowering(el.unary("tanh")),
    "Gelu": Lowering(el.gelu),
    "Softplus": Lowering(el.unary("softplus")),
    "Softsign": Lowering(el.unary("softsign")),
    "Mish": Lowering(el.mish),
    "Exp": Lowering(el.unary("exp")),
    "Log": Lowering(el.unary("log", epsilon=0.0)),
    "Sqrt": Lowering(el.unary("sqrt")),
    "Abs": Lowering(el.unary("abs")),
    "Neg": Lowering(el.negative),
    "Floor": Lowering(el.unary("floor")),
    "Ceil": Lowering(el.unary("ceil")),
    "Round": Lowering(el.unary("round")),
    "Sign": Lowering(el.unary("sign")),
    "Sin": Lowering(el.unary("sin")),
    "Cos": Lowering(el.unary("cos")),
    "Tan": Lowering(el.unary("tan")),
    "Asin": Lowering(el.unary("asin")),
    "Acos": Lowering(el.unary("acos")),
    "Atan": Lowering(el.unary("atan")),
    "Sinh": Lowering(el.unary("sinh")),
    "Cosh": Lowering(el.unary("cosh")),
    "Atanh": Lowering(el.unary("atanh")),
    "Reciprocal": Lowering(el.reciprocal),
    "Cast": Lowering(el.cast, el.check_cast),
    "Identity": Lowering(el.same),
    "Dropout": Lowering(el.same),
    "Reshape": Lowering(mv.reshape),
    "Flatten": Lowering(mv.reshape),
    "Squeeze": Lowering(mv.reshape),
    "Unsqueeze": Lowering(mv.reshape),
    "Transpose": Lowering(mv.transpose),
    "Expand": Lowering(mv.expand),
    "Tile": Lowering(mv.tile, mv.check_tile),
    "Concat": Lowering(mv.concat),
    "Split": Lowering(mv.split),
    "Slice": Lowering(mv.slice_, mv.check_slice),
    "Gather": Lowering(mv.gather),
    "GatherElements": Lowering(mv.gather_elements),
    "Pad": Lowering(mv.pad, mv.check_pad),
    "MaxPool": Lowering(px.max_pool, px.check_pool),
    "AveragePool": Lowering(px.average_pool, px.check_pool),
    "DepthToSpace": Lowering(px.depth_to_space, px.check_blocks),
    "SpaceToDepth": Lowering(px.space_to_depth, px.check_blocks),
    "Resize": Lowering(px.resize, px.check_resize),
    "GlobalAveragePool": Lowering(rd.global_pool("reduce_mean")),
    "GlobalMaxPool": Lowering(rd.global_pool("reduce_max")),
    "ReduceMean": Lowering(rd.reduce("reduce_mean"), rd.check_reduce),
    "ReduceSum": Lowering(rd.reduce("reduce_sum"), rd.check_reduce),
    "ReduceMax": Lowering(rd.reduce("reduce_max"), rd.check_reduce),
    "ReduceMin": Lowering(rd.reduce("reduce_min"), rd.check_reduce),
    "ReduceProd": Lowering(rd.reduce("reduce_prod"), rd.check_reduce),
    "ReduceSumSquare": Lowering(rd.reduce("reduce_sum_square"), rd.check_reduce),
    "ReduceL1": Lowering(rd.reduce("reduce_l1_norm"), rd.check_reduce),
    "ReduceL2": Lowering(rd.reduce("reduce_l2_norm"), rd.check_reduce),
    "ReduceLogSum": Lowering(rd.reduce_log_sum, rd.check_reduce),
    "ReduceLogSumExp": Lowering(rd.reduce("reduce_log_sum_exp"), rd.check_reduce),
    "Softmax": Lowering(rd.softmax),
    "LogSoftmax": Lowering(rd.log_softmax),
    "ArgMax": Lowering(rd.arg("reduce_argmax"), rd.check_arg),
    "ArgMin": Lowering(rd.arg("reduce_argmin"), rd.check_arg),
    "LayerNormalization": Lowering(rd.layer_normalization, rd.check_normalization),
    "InstanceNormalization": Lowering(rd.instance_normalization, rd.check_normalization),
    "BatchNormalization": Lowering(rd.batch_normalization, rd.check_normalization),
    "LpNormalization": Lowering(rd.lp_normalization, rd.check_lp_normalization),
    "LRN": Lowering(rd.local_response_normalization, rd.check_local_response),
}


def check(graph: ir.Graph, minimum: str) -> None:
    """Refuse, before any work, the first node that Core ML, or this deployment target of it, cannot be given.

    Raises:
        UnsupportedOperator: with the node's name, type and, where it is known, the user's source line.
    """
    for value in graph.inputs:
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64):
            raise UnsupportedOperator(
                f"an input of {value.dtype} cannot be given to a Core ML model",
                where=f"input '{value.name}'",
                hint="Let the model take float32 or int32, and cast inside.",
            )
    for node in graph:
        reason = unsupported(node, minimum)
        if reason is not None:
            raise unwritable(node, "Core ML", reason)


def unsupported(node: ir.Node, minimum: str) -> str | None:
    """Why a node cannot be lowered, in words; None if it can."""
    if (reason := unknown(node, LOWERINGS, "MIL")) is not None:
        return reason
    lowering = LOWERINGS[node.op_type]
    if number(lowering.needs) > number(minimum):
        return f"it needs {lowering.needs} or later, and {minimum} was asked"
    rank = max((len(shape(value)) for value in (*node.inputs, *node.outputs) if value and value.name), default=0)
    if rank > MOST_AXES:
        return f"a tensor of {rank} axes; Core ML has at most {MOST_AXES}"
    return unfit(node, lowering.check)


def emit(e: Emitter, node: ir.Node) -> None:
    """Write one node."""
    with e.working_on(node):
        LOWERINGS[node.op_type].emit(e, node)
