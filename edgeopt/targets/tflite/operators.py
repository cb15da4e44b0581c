"""The table of operators: how each is written, when it is written on integers, and what of it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.model import place
from edgeopt.targets.refusal import unfit, unknown, unwritable
from edgeopt.targets.tflite import elementwise as el
from edgeopt.targets.tflite import gather, padding
from edgeopt.targets.tflite import movement as mv
from edgeopt.targets.tflite import pixels as px
from edgeopt.targets.tflite import reductions as rd
from edgeopt.targets.tflite import weighted as wt
from edgeopt.targets.tflite.emit import Emitter


@dataclass(frozen=True)
class Lowering:
    """How one ONNX operator becomes TFLite operators.

    Args:
        emit: writes it, float or (``Emitter.native``) on integers.
        native: whether the node can be computed on integers as the table has them. None: never. A node that is int8
            in the table and not native is written as an island: dequantize, float operator, quantize.
        check: what about a node cannot be lowered, in words, or None.
    """

    emit: Callable[[Emitter, ir.Node], None]
    native: Callable[[Emitter, ir.Node], bool] | None = None
    check: Callable[[ir.Node], str | None] | None = None


def _mover(emit: Callable[[Emitter, ir.Node], None], check: Callable[[ir.Node], str | None] | None = None) -> Lowering:
    return Lowering(emit, mv.native_mover, check)


def _float(emit: Callable[[Emitter, ir.Node], None], check: Callable[[ir.Node], str | None] | None = None) -> Lowering:
    return Lowering(emit, None, check)


LOWERINGS: Mapping[str, Lowering] = {
    "Conv": Lowering(wt.conv, wt.native_weighted, wt.check_conv),
    "ConvTranspose": Lowering(wt.conv_transpose, wt.native_weighted, wt.check_conv_transpose),
    "Gemm": Lowering(wt.gemm, wt.native_weighted, wt.check_gemm),
    "MatMul": Lowering(wt.matmul, wt.native_matmul, wt.check_matmul),
    "Add": Lowering(el.binary("ADD"), el.native_arithmetic),
    "Sub": Lowering(el.binary("SUB"), el.native_arithmetic),
    "Mul": Lowering(el.binary("MUL"), el.native_arithmetic),
    "Div": _float(el.binary("DIV")),
    "Pow": _float(el.power),
    "Max": _float(el.variadic("MAXIMUM")),
    "Min": _float(el.variadic("MINIMUM")),
    "Sum": _float(el.variadic("ADD")),
    "Equal": _float(el.binary("EQUAL")),
    "Greater": _float(el.binary("GREATER")),
    "GreaterOrEqual": _float(el.binary("GREATER_EQUAL")),
    "Less": _float(el.binary("LESS")),
    "LessOrEqual": _float(el.binary("LESS_EQUAL")),
    "And": _float(el.binary("LOGICAL_AND")),
    "Or": _float(el.binary("LOGICAL_OR")),
    "Not": _float(el.unary("LOGICAL_NOT")),
    "Where": _float(el.where),
    "PRelu": _float(el.prelu),
    "Relu": _float(el.clip),
    "Clip": _float(el.clip),
    "LeakyRelu": _float(el.leaky_relu),
    "Elu": _float(el.elu),
    "Selu": _float(el.selu),
    "Celu": _float(el.celu),
    "Erf": _float(el.erf),
    "HardSwish": _float(el.unary("HARD_SWISH")),
    "HardSigmoid": _float(el.hard_sigmoid),
    "Sigmoid": _float(el.gate),
    "Tanh": _float(el.gate),
    "Gelu": _float(el.gelu),
    "Softplus": _float(el.softplus),
    "Softsign": _float(el.softsign),
    "Mish": _float(el.mish),
    "Exp": _float(el.unary("EXP", "Exp")),
    "Log": _float(el.unary("LOG")),
    "Sqrt": _float(el.unary("SQRT")),
    "Abs": _float(el.unary("ABS")),
    "Neg": _float(el.unary("NEG", "Neg")),
    "Floor": _float(el.unary("FLOOR")),
    "Ceil": _float(el.unary("CEIL")),
    "Round": _float(el.unary("ROUND")),
    "Sign": _float(el.unary("SIGN")),
    "Sin": _float(el.unary("SIN")),
    "Cos": _float(el.unary("COS")),
    "Reciprocal": _float(el.reciprocal),
    "Cast": _float(el.cast, el.check_cast),
    "Identity": _mover(el.alias),
    "Dropout": _mover(el.alias),
    "Reshape": _mover(mv.reshape),
    "Flatten": _mover(mv.reshape),
    "Squeeze": _mover(mv.reshape),
    "Unsqueeze": _mover(mv.reshape),
    "Transpose": _mover(mv.transpose),
    "Expand": _mover(mv.expand),
    "Tile": _mover(mv.tile, mv.check_tile),
    "Concat": Lowering(mv.concat, mv.native_concat),
    "Split": _mover(mv.split),
    "Slice": _mover(mv.slice_, mv.check_slice),
    "Gather": _mover(gather.gather, gather.check_gather),
    "Pad": _mover(padding.pad, padding.check_pad),
    "MaxPool": _mover(px.max_pool, px.check_max_pool),
    "DepthToSpace": _mover(px.depth_to_space, px.check_blocks),
    "SpaceToDepth": _mover(px.space_to_depth, px.check_blocks),
    "Resize": _mover(px.resize, px.check_resize),
    "GlobalAveragePool": Lowering(rd.global_pool("MEAN"), rd.native_mean),
    "GlobalMaxPool": _float(rd.global_pool("REDUCE_MAX")),
    "AveragePool": Lowering(rd.average_pool, rd.native_average_pool, rd.check_average_pool),
    "ReduceMean": _float(rd.reduce("MEAN"), rd.check_reduce),
    "ReduceSum": _float(rd.reduce("SUM"), rd.check_reduce),
    "ReduceMax": _float(rd.reduce("REDUCE_MAX"), rd.check_reduce),
    "ReduceMin": _float(rd.reduce("REDUCE_MIN"), rd.check_reduce),
    "ReduceProd": _float(rd.reduce("REDUCE_PROD"), rd.check_reduce),
    "ReduceSumSquare": _float(rd.reduce("SUM", before="SQUARE"), rd.check_reduce),
    "ReduceL1": _float(rd.reduce("SUM", before="ABS"), rd.check_reduce),
    "ReduceLogSum": _float(rd.reduce("SUM", behind="LOG"), rd.check_reduce),
    "ReduceLogSumExp": _float(rd.reduce("SUM", before="EXP", behind="LOG"), rd.check_reduce),
    "ReduceL2": _float(rd.reduce("SUM", before="SQUARE", behind="SQRT"), rd.check_reduce),
    "Softmax": _float(rd.softmax),
    "LogSoftmax": _float(rd.log_softmax),
    "ArgMax": _float(rd.arg("ARG_MAX")),
    "ArgMin": _float(rd.arg("ARG_MIN")),
    "LayerNormalization": _float(rd.layer_normalization, rd.check_normalization),
    "LpNormalization": _float(rd.lp_normalization, rd.check_lp_normalization),
    "LRN": _float(rd.local_response_normalization, rd.check_local_response),
    "InstanceNormalization": _float(rd.instance_normalization, rd.check_normalization),
    "BatchNormalization": _float(rd.batch_normalization, rd.check_normalization),
}


def check(graph: ir.Graph) -> None:
    """Refuse, before any work, the first node that TFLite cannot be given.

    Raises:
        UnsupportedOperator: with the node's name, type and, where it is known, the user's source line.
    """
    for node in graph:
        reason = unsupported(node)
        if reason is not None:
            raise unwritable(node, "TFLite", reason)


def unsupported(node: ir.Node) -> str | None:
    """Why a node cannot be lowered, in words; None if it can."""
    return unknown(node, LOWERINGS, "TFLite") or unfit(node, LOWERINGS[node.op_type].check)


def emit(e: Emitter, node: ir.Node) -> None:
    """Write one node, on integers where the table and the delegate allow it."""
    lowering = LOWERINGS.get(node.op_type)
    if lowering is None:
        raise ModelError(f"operator {node.op_type} cannot be written to TFLite", where=place(node))
    e.node = node
    e.native = e.scheme == "int8" and lowering.native is not None and lowering.native(e, node)
    lowering.emit(e, node)
    e.node, e.native = None, False
