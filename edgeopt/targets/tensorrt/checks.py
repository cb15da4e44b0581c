"""One function per rule: which nodes of a file break it, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.targets.tensorrt.operators import DLA_AT_BUILD, DLA_NATIVE, repair
from edgeopt.targets.tensorrt.reading import (
    ACTIVATIONS,
    DEQUANTIZE,
    MOVES,
    QUANTIZE,
    WEIGHTED,
    QdqFile,
    array_of,
    dequantized,
    equal_scales,
    integer_type,
    ints,
    is_quantized,
    is_weight,
    name_of,
    producer,
    readers,
    rounded_from,
    scale_of,
    shape_of,
)
from edgeopt.targets.tensorrt.versions import Version

Check = Callable[[QdqFile, Version], list[str]]

STANDARD = ("", "ai.onnx")
REFUSED_TYPES = frozenset(
    {
        ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.STRING,
        ir.DataType.COMPLEX64, ir.DataType.COMPLEX128,
    }
)  # fmt: skip
QUANTIZED_TYPES: Mapping[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT8: (8, 0),
    ir.DataType.FLOAT8E4M3FN: (9, 0),
    ir.DataType.INT4: (10, 0),
    ir.DataType.FLOAT4E2M1: (10, 8),
}
"""Type → release that brought it. Source: onnx-tensorrt, ``docs/Changelog.md``."""
RESIZE_MODES = frozenset({"nearest", "linear"})
RESIZE_COORDINATES = frozenset(
    {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
)
RESIZE_NEAREST = frozenset({"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"})


def is_integer_operator(node: ir.Node) -> bool:
    return (
        node.op_type.startswith("QLinear")
        or node.op_type in ("QGemm", "QAttention")
        or node.op_type.endswith(("Integer", "IntegerToFloat"))
        or node.op_type.startswith("DynamicQuantize")
    )


# --- acceptance


def opset_range(file: QdqFile, version: Version) -> list[str]:
    low, high = version.opsets
    return [] if low <= file.opset <= high else [f"opset {file.opset}, and {version.label} reads {low} to {high}"]


def operators_read(file: QdqFile, version: Version) -> list[str]:
    return [
        f"{name_of(node)} ({node.op_type}): {repair(node.op_type, node.domain)}"
        for node in file.all_nodes
        if not is_integer_operator(node) and not (node.domain in STANDARD and version.reads(node.op_type))
    ]


def operator_limits(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in file.of_type("AveragePool", "MaxPool"):
        if any(step != 1 for step in ints(node, "dilations", [])):
            found.append(f"{name_of(node)}: dilations")
        if len(node.outputs) > 1 and node.outputs[1].name and node.outputs[1].uses():
            found.append(f"{name_of(node)}: its indices are read")
        if len(ints(node, "kernel_shape", [1, 1])) not in (2, 3):
            found.append(f"{name_of(node)}: 1D")
    for node in file.of_type("Resize"):
        attributes = node.attributes
        mode = attributes.get_string("mode", "nearest")
        if mode not in RESIZE_MODES:
            found.append(f"{name_of(node)}: mode {mode}")
        coordinates = attributes.get_string("coordinate_transformation_mode", "half_pixel")
        if coordinates not in RESIZE_COORDINATES:
            found.append(f"{name_of(node)}: {coordinates}")
        if mode == "nearest" and attributes.get_string("nearest_mode", "round_prefer_floor") not in RESIZE_NEAREST:
            found.append(f"{name_of(node)}: nearest mode")
        if attributes.get_int("antialias", 0):
            found.append(f"{name_of(node)}: antialias")
        if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
            found.append(f"{name_of(node)}: keeps the aspect ratio")
    return found


def tensor_types(file: QdqFile, version: Version) -> list[str]:
    graph = file.model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in file.nodes for value in node.outputs)]
    return [f"{value.name}: {value.dtype.name.lower()}" for value in values if value.dtype in REFUSED_TYPES]


def no_integer_operators(file: QdqFile, version: Version) -> list[str]:
    return [f"{name_of(node)} ({node.op_type})" for node in file.nodes if is_integer_operator(node)]


def _pairs(file: QdqFile) -> list[ir.Node]:
    return [node for node in file.nodes if node.op_type in (QUANTIZE, DEQUANTIZE)]


def int8_integers(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in _pairs(file):
        kind = integer_type(node)
        if kind is None or kind == ir.DataType.INT32:  # a rule of its own
            continue
        if kind not in QUANTIZED_TYPES or version.release < QUANTIZED_TYPES[kind]:
            found.append(f"{name_of(node)}: {kind.name.lower()}")
    return found


def zero_point_zero(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in _pairs(file):
        point = node.inputs[2] if len(node.inputs) > 2 else None
        if point is None:
            continue
        array = array_of(point)
        if array is None:
            found.append(f"{name_of(node)}: computed")
        elif np.asarray(array, np.float64).any():
            largest = np.asarray(array).ravel()[np.abs(np.asarray(array, np.float64)).argmax()]
            found.append(f"{name_of(node)}: {int(largest)}")
    return found


def scale_constant_positive(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in _pairs(file):
        scale = scale_of(node)
        if scale is None:
            found.append(f"{name_of(node)}: computed")
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            found.append(f"{name_of(node)}: {float(np.min(scale)):g}")
    return found


def activation_per_tensor(file: QdqFile, version: Version) -> list[str]:
    return [
        f"{name_of(node)}: {scale.size} scales"
        for node in _pairs(file)
        if (scale := scale_of(node)) is not None and scale.size > 1 and not is_weight(node)
    ]


def weight_axis(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in file.of_type(*WEIGHTED):
        dequantize = dequantized(node.inputs[1]) if len(node.inputs) > 1 else None
        scale = scale_of(dequantize) if dequantize is not None else None
        if dequantize is None or scale is None or scale.size < 2:
            continue
        rank = len(shape_of(dequantize.inputs[0])) or len(shape_of(dequantize.outputs[0]))
        axis = dequantize.attributes.get_int("axis", 1) % max(rank, 1)
        if axis != _output_axis(node, rank):
            found.append(f"{name_of(node)}: axis {axis}")
    return found


def _output_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return rank - 1


def no_int32_bias(file: QdqFile, version: Version) -> list[str]:
    return [name_of(node) for node in file.of_type(DEQUANTIZE) if integer_type(node) == ir.DataType.INT32]


def float_weights(file: QdqFile, version: Version) -> list[str]:
    return [
        name_of(node)
        for node in file.of_type(DEQUANTIZE)
        if integer_type(node) == ir.DataType.INT8 and array_of(node.inputs[0]) is not None
    ]


def integers_dequantized(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in file.of_type(QUANTIZE):
        open_values = [node.outputs[0]]
        while open_values:
            value = open_values.pop()
            if value.is_graph_output():
                found.append(f"{name_of(node)}: its integers leave the model")
            for reader in readers(value):
                if reader.op_type in MOVES - {"Cast", "Pad", "Resize"}:
                    open_values += reader.outputs
                elif reader.op_type != DEQUANTIZE and not is_integer_operator(reader):
                    found.append(f"{name_of(node)}: read by {name_of(reader)} ({reader.op_type})")
    return found


def dla_implicit(file: QdqFile, version: Version) -> list[str]:
    return [name_of(node) for node in _pairs(file)]


# --- speed


def weighted_both_inputs(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in file.of_type(*WEIGHTED):
        first, second = is_quantized(node, 0), is_quantized(node, 1)
        if first != second:
            found.append(f"{name_of(node)} ({node.op_type}): only its {'first' if first else 'second'} input")
    return found


def activation_unrounded(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in file.of_type(*ACTIVATIONS):
        dequantize = dequantized(node.inputs[0])
        real = rounded_from(dequantize) if dequantize is not None else None
        before = producer(real)
        if before is None or before.op_type not in WEIGHTED or len(before.outputs[0].uses()) != 1:
            continue
        after = readers(dequantize.outputs[0]) if dequantize is not None else []
        if all(one.op_type in ACTIVATIONS or _multiplies_own_activation(one, after) for one in after):
            found.append(f"{name_of(before)} and {name_of(node)}")
    return found


def _multiplies_own_activation(node: ir.Node, siblings: list[ir.Node]) -> bool:
    own = {one.outputs[0] for one in siblings if one.op_type in ACTIVATIONS}
    return node.op_type == "Mul" and any(value in own for value in node.inputs)


def add_skip_only(file: QdqFile, version: Version) -> list[str]:
    """An Add whose inputs are all rounded though a weighted operator computes one of them for it alone."""
    found = []
    for node in file.of_type("Add"):
        pairs = [dequantized(value) for value in node.inputs]
        if len(pairs) < 2 or any(pair is None or is_weight(pair) for pair in pairs):
            continue
        for pair in pairs:
            real = rounded_from(pair) if pair is not None else None
            before = producer(real)
            if pair is None or real is None or before is None or before.op_type not in WEIGHTED - {"MatMul"}:
                continue
            if len(real.uses()) == 1 and len(pair.outputs[0].uses()) == 1 and not real.is_graph_output():
                found.append(f"{name_of(node)}: between {name_of(before)} and it")
                break
    return found


def concat_one_scale(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in file.of_type("Concat"):
        pairs = [pair for value in node.inputs if (pair := dequantized(value)) is not None]
        if pairs and len(pairs) < len([value for value in node.inputs if array_of(value) is None]):
            found.append(f"{name_of(node)}: {len(pairs)} of {len(node.inputs)} inputs are quantized")
        elif pairs and not equal_scales(pairs):
            found.append(f"{name_of(node)}: its scales differ")
    return found


def weighted_in_float(file: QdqFile, version: Version) -> list[str]:
    if not _pairs(file):
        return []
    return [
        f"{name_of(node)} ({node.op_type})"
        for node in file.of_type(*WEIGHTED)
        if not is_quantized(node, 0) and not is_quantized(node, 1)
    ]


# --- DLA


def dla_operators(file: QdqFile, version: Version) -> list[str]:
    skipped = {QUANTIZE, DEQUANTIZE} | DLA_AT_BUILD
    return [f"{name_of(n)} ({n.op_type})" for n in file.nodes if n.op_type not in DLA_NATIVE | skipped]


def dla_convolutions(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in file.of_type("Conv", "ConvTranspose"):
        weight = shape_of(node.inputs[1])
        spatial = len(weight) - 2
        kernel = ints(node, "kernel_shape", [size or 0 for size in weight[2:]])
        limits = (
            (kernel, 1, 32),
            (ints(node, "strides", [1]), 1, 8),
            (ints(node, "pads", [0]), 0, 31),
            (ints(node, "dilations", [1]), 1, 32),
            ([size or 0 for size in weight[:2]], 1, 8192),
        )
        if spatial != 2 or not all(low <= size <= high for sizes, low, high in limits for size in sizes):
            found.append(name_of(node))
    return found


def dla_pools(file: QdqFile, version: Version) -> list[str]:
    return [
        name_of(node)
        for node in file.of_type("AveragePool", "MaxPool")
        if not (
            len(kernel := ints(node, "kernel_shape", [])) == 2
            and all(1 <= size <= 8 for size in kernel)
            and all(1 <= step <= 16 for step in ints(node, "strides", [1]))
            and all(0 <= pad <= 7 for pad in ints(node, "pads", [0]))
        )
    ]


def dla_resize(file: QdqFile, version: Version) -> list[str]:
    found = []
    for node in file.of_type("Resize"):
        before, after = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
        largest = 32 if node.attributes.get_string("mode", "nearest") == "nearest" else 4
        known = before and len(before) == len(after)
        if not known or any(
            not a or not b or b % a or not 1 <= b // a <= largest for a, b in zip(before, after, strict=True)
        ):
            found.append(name_of(node))
    return found


def dla_constant_weights(file: QdqFile, version: Version) -> list[str]:
    return [name_of(node) for node in file.of_type("Gemm", "MatMul") if array_of(node.inputs[1]) is None]


def dla_sizes(file: QdqFile, version: Version) -> list[str]:
    found = []
    for value in file.model.graph.inputs:
        if value.const_value is not None:
            continue
        sizes = shape_of(value)
        if None in sizes:
            found.append(f"{value.name}: open shape")
        elif sizes and ((sizes[0] or 0) > 4096 or any((size or 0) > 8192 for size in sizes[1:])):
            found.append(f"{value.name}: {sizes}")
    return found


CHECKS: Mapping[str, Check] = {
    "opset-range": opset_range,
    "operators-read": operators_read,
    "operator-limits": operator_limits,
    "tensor-types": tensor_types,
    "no-integer-operators": no_integer_operators,
    "int8-integers": int8_integers,
    "zero-point-zero": zero_point_zero,
    "scale-constant-positive": scale_constant_positive,
    "activation-per-tensor": activation_per_tensor,
    "weight-axis": weight_axis,
    "no-int32-bias": no_int32_bias,
    "float-weights": float_weights,
    "integers-dequantized": integers_dequantized,
    "dla-implicit": dla_implicit,
    "weighted-both-inputs": weighted_both_inputs,
    "activation-unrounded": activation_unrounded,
    "add-skip-only": add_skip_only,
    "concat-one-scale": concat_one_scale,
    "weighted-in-float": weighted_in_float,
    "dla-operators": dla_operators,
    "dla-convolutions": dla_convolutions,
    "dla-pools": dla_pools,
    "dla-resize": dla_resize,
    "dla-constant-weights": dla_constant_weights,
    "dla-sizes": dla_sizes,
}
"""Rule id → its check."""
