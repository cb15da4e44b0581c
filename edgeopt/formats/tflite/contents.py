"""What is in a TFLite file: operators by precision, size by layer."""

from __future__ import annotations

from collections import Counter

from edgeopt.formats.tflite.model import Model, Operator

WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D"})
MOVERS = frozenset(
    {
        "RESHAPE", "TRANSPOSE", "CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "PAD", "PADV2",
        "MIRROR_PAD", "GATHER", "GATHER_ND", "PACK", "UNPACK", "SQUEEZE", "EXPAND_DIMS", "TILE", "BROADCAST_TO",
        "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "CAST", "SHAPE",
    }
)  # fmt: skip
CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})


def precision(model: Model, operator: Operator) -> str:
    """``int8``, ``int8-dynamic`` (float activations, int8 weights), ``fp16``, ``fp32`` or ``other`` of one operator.

    A weight that a DEQUANTIZE makes float from float16 or int8 counts as what is stored: ``fp16``, ``int8-weights``.
    """
    dtypes = [model.tensors[index].dtype for index in operator.inputs if index >= 0]
    if not dtypes:
        return "other"
    activation = dtypes[0] if operator.code != "TRANSPOSE_CONV" else model.tensors[operator.inputs[2]].dtype
    if activation in ("int8", "uint8", "int16"):
        return "int8"
    if activation != "float32":
        return "other"
    if operator.code not in WEIGHTED:
        return "fp32"
    weight = model.tensors[operator.inputs[1]]
    if weight.dtype in ("int8", "int4"):
        return "int8-dynamic"
    if weight.data is None:
        producer = model.producers().get(operator.inputs[1])
        if producer is not None and model.operators[producer].code == "DEQUANTIZE":
            stored = model.tensors[model.operators[producer].inputs[0]].dtype
            return {"float16": "fp16", "int8": "int8-weights"}.get(stored, "fp32")
    return "fp32"


def operator_counts(model: Model) -> dict[str, Counter[str]]:
    """Precision → operator type → how many."""
    counts: dict[str, Counter[str]] = {}
    for operator in model.operators:
        counts.setdefault(precision(model, operator), Counter())[operator.code] += 1
    return counts


def constant_bytes(model: Model) -> dict[str, int]:
    """Size by layer: name of each constant tensor → bytes, largest first."""
    sizes = {tensor.name: tensor.data.nbytes for tensor in model.tensors if tensor.data is not None}
    return dict(sorted(sizes.items(), key=lambda entry: -entry[1]))
