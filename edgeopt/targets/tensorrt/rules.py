"""What makes TensorRT accept a file, and what makes it fast, as data. ``checks`` holds one function per rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.targets.tensorrt.operators import Release
from edgeopt.targets.tensorrt.versions import Version

Kind = Literal["acceptance", "speed", "dla", "advice"]
"""``acceptance``: broken, and no engine is built, or a wrong one. ``speed``: broken, and layers leave int8 or do not
fuse. ``dla``: broken, and the layer falls back to the GPU. ``advice``: worth knowing, never broken."""

DOCS = "TensorRT documentation"
QUANTIZED = f"{DOCS}, Working with Quantized Types"
EXPLICIT = f"{DOCS}, Explicit Quantization"
PLACEMENT = f"{DOCS}, Q/DQ Layer-Placement Recommendations"
OPERATORS = "onnx-tensorrt, docs/operators.md of the release"
DLA = f"{DOCS}, DLA Supported Layers and Restrictions"


@dataclass(frozen=True)
class Rule:
    """One condition.

    Args:
        id: its name, for people and CI.
        kind: see ``Kind``.
        text: what must be so.
        source: who says it.
        repair: what to do where it is not so.
        since, until: releases that it holds for, both included; None: no bound.
        only_dla: it holds for engines of the DLA only. not_dla: for those of the GPU only.
    """

    id: str
    kind: Kind
    text: str
    source: str
    repair: str
    since: Release | None = None
    until: Release | None = None
    only_dla: bool = False
    not_dla: bool = False

    def holds_for(self, version: Version) -> bool:
        if (self.only_dla and not version.dla) or (self.not_dla and version.dla):
            return False
        above = self.since is None or version.release >= self.since
        return above and (self.until is None or version.release <= self.until)

    @property
    def versions(self) -> str:
        """The releases in words."""
        ends = [".".join(map(str, end)) if end else "" for end in (self.since, self.until)]
        if not any(ends):
            return "all"
        return f"{ends[0]} and later" if not ends[1] else f"up to {ends[1]}" if not ends[0] else " to ".join(ends)


RULES: tuple[Rule, ...] = (
    Rule(
        "opset-range",
        "acceptance",
        "The opset of the default domain is one that the release's parser reads.",
        OPERATORS,
        "export with an opset of the range",
    ),
    Rule(
        "operators-read",
        "acceptance",
        "Every operator is in the release's table.",
        OPERATORS,
        "rewrite the nodes with operators of the table, or write a plugin",
    ),
    Rule(
        "operator-limits",
        "acceptance",
        "Pools are 2D or 3D without dilations and without an index output, Resize is nearest or linear in a mode that "
        "TensorRT knows, without antialiasing, and stretches.",
        f"{OPERATORS}, column Restrictions",
        "export with the modes that the table names",
    ),
    Rule(
        "tensor-types",
        "acceptance",
        "No tensor has a type outside of TensorRT's: 16-bit and unsigned integers, strings, complex numbers.",
        f"{OPERATORS}, list of data types",
        "cast to float32, int32 or int64",
    ),
    Rule(
        "no-integer-operators",
        "acceptance",
        "No operator computes on integers itself: QLinearConv, MatMulInteger, DynamicQuantizeLinear and their like.",
        OPERATORS,
        "write the model in Q/DQ form (quantize_static: quant_format=QuantFormat.QDQ)",
    ),
    Rule(
        "int8-integers",
        "acceptance",
        "Activations and weights are quantized to int8, not uint8.",
        QUANTIZED,
        "quantize to int8 (quantize_static: activation_type=QuantType.QInt8)",
    ),
    Rule(
        "zero-point-zero",
        "acceptance",
        "Every zero point is 0.",
        f"{QUANTIZED}; {OPERATORS}: `y_zero_point` must be 0",
        "quantize symmetrically (quantize_static: extra_options={'ActivationSymmetric': True})",
    ),
    Rule(
        "scale-constant-positive",
        "acceptance",
        "Every scale is a constant, finite and greater than 0.",
        QUANTIZED,
        "give a tensor that is always 0 a small scale; fold computed scales into constants",
    ),
    Rule(
        "activation-per-tensor",
        "acceptance",
        "A grid per channel is on weights only; an activation has one scale.",
        f"{QUANTIZED}: per-channel quantization is for weights",
        "give the activation one scale (nncf: activations per tensor; it gives depthwise convolutions one per channel)",
    ),
    Rule(
        "weight-axis",
        "acceptance",
        "A weight's channel axis is the output's: 0 of Conv and of a transposed Gemm, 1 of ConvTranspose, the last of "
        "MatMul.",
        QUANTIZED,
        "quantize along the output channels, or with one scale",
    ),
    Rule(
        "no-int32-bias",
        "acceptance",
        "No DequantizeLinear reads int32: biases are float.",
        f"{OPERATORS}: DequantizeLinear takes INT8, FP8, INT4",
        "leave biases in float (quantize_static: extra_options={'QuantizeBias': False})",
    ),
    Rule(
        "float-weights",
        "acceptance",
        "Weights are float constants with QuantizeLinear and DequantizeLinear; int8 constants are not read.",
        "TensorRT 8 documentation, Explicit Quantization: weights are quantized by a Q layer",
        "keep weights in float with both nodes (quantize_static: extra_options={'AddQDQPairToWeight': True})",
        until=(8, 6),
        not_dla=True,
    ),
    Rule(
        "integers-dequantized",
        "acceptance",
        "What QuantizeLinear makes is read by DequantizeLinear, at most moved in between.",
        f"{EXPLICIT}: int8 is a quantized type, it has no arithmetic of its own",
        "put DequantizeLinear before the operator and QuantizeLinear behind it",
    ),
    Rule(
        "dla-implicit",
        "acceptance",
        "A file for the DLA has no QuantizeLinear and DequantizeLinear: its scales come in a calibration cache.",
        "TensorRT documentation, Working with DLA: explicit quantization is not supported on DLA",
        "use the bundle's model.dla.onnx with calibration.cache (tensorrt: {dla: true})",
        only_dla=True,
    ),
    Rule(
        "weighted-both-inputs",
        "speed",
        "A Conv, ConvTranspose, Gemm or MatMul has both inputs quantized, or none.",
        f"{PLACEMENT}: quantize all inputs of weighted operations",
        "quantize the other input too, or neither",
        not_dla=True,
    ),
    Rule(
        "activation-unrounded",
        "speed",
        "Nothing is quantized between a weighted operator and its activation.",
        f"{PLACEMENT}: by default, do not quantize the outputs of weighted operations",
        "quantize behind the activation instead",
        not_dla=True,
    ),
    Rule(
        "add-skip-only",
        "speed",
        "Of a residual Add only the skip branch is quantized; the branch that a weighted operator computes is not.",
        f"{PLACEMENT}: quantize the residual input in skip connections",
        "drop the pair between the weighted operator and the Add, keep that of the skip",
        not_dla=True,
    ),
    Rule(
        "concat-one-scale",
        "speed",
        "All inputs of a Concat have one scale, or none is quantized.",
        f"{EXPLICIT}: a Concat fuses with its Q/DQ where the scales are equal",
        "give the inputs of the Concat one scale",
        not_dla=True,
    ),
    Rule(
        "weighted-in-float",
        "advice",
        "Weighted operators that are not quantized at all run in float.",
        EXPLICIT,
        "quantize them, if accuracy allows",
        not_dla=True,
    ),
    Rule(
        "dla-operators",
        "dla",
        "Every operator runs on the DLA by itself.",
        "NVIDIA/Deep-Learning-Accelerator-SW, operators/README.md",
        "let the layer fall back to the GPU, or rewrite it as that page says",
        only_dla=True,
    ),
    Rule(
        "dla-convolutions",
        "dla",
        "Convolutions are 2D with kernels of 1 to 32, strides of 1 to 8, pads of 0 to 31, dilations of 1 to 32 and at "
        "most 8192 channels.",
        f"{DLA}, Convolution",
        "let the layer fall back to the GPU",
        only_dla=True,
    ),
    Rule(
        "dla-pools",
        "dla",
        "Pools are 2D with windows of 1 to 8, strides of 1 to 16 and pads of 0 to 7.",
        f"{DLA}, Pooling",
        "split the pool, or let the layer fall back to the GPU",
        only_dla=True,
    ),
    Rule(
        "dla-resize",
        "dla",
        "Resize enlarges by whole numbers: nearest up to 32, linear up to 4.",
        f"{DLA}, Resize",
        "let the layer fall back to the GPU",
        only_dla=True,
    ),
    Rule(
        "dla-constant-weights",
        "dla",
        "The second input of Gemm and MatMul is a constant.",
        "NVIDIA/Deep-Learning-Accelerator-SW, operators/README.md",
        "let the layer fall back to the GPU",
        only_dla=True,
    ),
    Rule(
        "dla-sizes",
        "dla",
        "Shapes are static, with a batch of at most 4096 and no other dimension over 8192.",
        f"{DLA}, General Restrictions",
        "bind the input's shape (--input), or use a smaller batch",
        only_dla=True,
    ),
)
