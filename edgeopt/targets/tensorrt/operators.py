"""Which ONNX operators each TensorRT release reads, as data.

Two published tables and the dates of what was added between them. An operator of the later table whose date no
changelog gives (``UNDATED``) is counted as read from 10.0 on, and said to be unsure before the release of that table.

Sources: onnx-tensorrt, ``docs/operators.md`` of release 8.5-GA (``LISTED_8_5``) and of 10.15 (what ``ADDED`` and
``UNDATED`` bring on top), and ``docs/Changelog.md`` up to 10.15 (the dates).
"""

from __future__ import annotations

from collections.abc import Mapping

Release = tuple[int, int]
"""Major and minor version."""

LISTED_8_5 = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
        "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
        "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu",
        "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND",
        "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample",
        "HardSigmoid", "HardSwish", "Identity", "If", "ImageScaler", "InstanceNormalization", "IsNaN", "LRN", "LSTM",
        "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul", "Max",
        "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero",
        "Not", "OneHot", "Or", "PRelu", "Pad", "ParametricSoftplus", "Pow", "QuantizeLinear", "RNN", "RandomNormal",
        "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
        "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round", "ScaledTanh", "Scan",
        "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
        "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan",
        "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
    }
)  # fmt: skip
LATER_TABLE: Release = (10, 15)
ADDED: Mapping[str, Release] = {
    "GroupNormalization": (8, 6),
    "IsInf": (8, 6),
    "LayerNormalization": (8, 6),
    "Hardmax": (9, 2),
    "DeformConv": (10, 1),
    "BlackmanWindow": (10, 4),
    "HammingWindow": (10, 4),
    "HannWindow": (10, 4),
    "STFT": (10, 5),
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
}
"""Operator → the release whose changelog names it."""
UNDATED = frozenset({"CastLike", "Gelu", "Mish"})
UNDATED_FROM: Release = (10, 0)

UNQUANTIZED_ONLY = "TensorRT quantizes by QuantizeLinear and DequantizeLinear alone"
REPAIRS: Mapping[str, str] = {
    "Gelu": "export with opset 17, in which it is a few elementary operators",
    "Mish": "export with opset 17, in which it is Softplus, Tanh and Mul",
    "LayerNormalization": "export with opset 16, in which it is a few elementary operators",
    "DynamicQuantizeLinear": f"quantize statically: {UNQUANTIZED_ONLY}",
}
"""What to do about an operator that a release does not read; others: rewrite the graph, or write a plugin."""

DLA_NATIVE = frozenset(
    {
        "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Constant", "Conv", "ConvTranspose",
        "Equal", "Gemm", "LRN", "LeakyRelu", "MatMul", "Max", "MaxPool", "Mul", "PRelu", "Relu", "Reshape", "Resize",
        "Sigmoid", "Slice", "Softmax", "Split", "Sub", "Sum", "Tanh", "Transpose", "Upsample",
    }
)  # fmt: skip
"""What the DLA of an Orin runs by itself. Source: NVIDIA/Deep-Learning-Accelerator-SW, ``operators/README.md``, column
"Orin DLA support through TensorRT", value "Native" (TensorRT 8.5.2 to 8.6)."""
DLA_AT_BUILD = frozenset({"ConstantOfShape", "Shape"})
"""Same table: inferred when the engine is built."""


def is_read(operator: str, release: Release) -> bool:
    """Whether a release's parser reads the operator of the default domain."""
    if operator in LISTED_8_5:
        return True
    if operator in UNDATED:
        return release >= UNDATED_FROM
    return operator in ADDED and release >= ADDED[operator]


def is_unsure(operator: str, release: Release) -> bool:
    """Read, as far as is known: a later release's table has it, and nobody says since when."""
    return operator in UNDATED and UNDATED_FROM <= release < LATER_TABLE


def repair(operator: str, domain: str) -> str:
    """What to do about an operator that is not read."""
    if operator.startswith("QLinear") or operator.endswith("Integer"):
        return f"write the model in Q/DQ form (quant_format=QDQ): {UNQUANTIZED_ONLY}"
    if domain not in ("", "ai.onnx"):
        return f"'{domain}' is no standard domain: write the node with standard operators, or write a plugin"
    return REPAIRS.get(operator, "rewrite it with operators of the table, or write a plugin")
