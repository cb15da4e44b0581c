"""The ONNX target: Q/DQ in the form that ONNX Runtime's CPU provider fuses.

It starts from the integer reference (``graph.qdq``) and changes only what leaves the meaning of the table as it is:

- Activations are uint8 (integers and zero points + 128: the same grid), because the CPU provider has its fast kernels
  for uint8 × int8. ``activations: int8`` is for other providers.
- A Relu or Clip between a node and its QuantizeLinear stops fusion. Where the grid implies it, it goes; where it does
  not (a grid shared with a tensor that has negative values), it becomes a Clip of the integers behind the
  QuantizeLinear. Both are exact: rounding is monotone, so ``q(clip(x, a, b)) = clip(q(x), q(a), q(b))``.
- An int8 Gemm or MatMul whose result only float nodes or the caller read keeps its float result: its last Q/DQ pair
  is dropped (QGemm with float output, MatMulIntegerToFloat), which saves one rounding and is nearer to float. The
  table's grid still says how far.
- Zero points of weights and biases are 0 and left out.
- **Guard.** ONNX Runtime (WeightBiasQuantization, level 1) turns a float Conv, ConvTranspose or Gemm that sits between
  a per-tensor DequantizeLinear and a QuantizeLinear into per-tensor int8, silently: a MobileNetV1 fell from 26 dB to
  0 dB. It only looks at scalar scales, so such a node reads its input through a DequantizeLinear of its own with the
  same scale written once per channel: the same numbers, the same time, and nothing to rewrite.
- Names stay: a tensor ``X`` of the table is ``X`` before rounding, ``X__q`` as integers, ``X__dq`` as read.

- **Weights** are int8, for which VNNI and ARM have their fastest kernels. On x86 without VNNI those kernels saturate
  pairs of products at 16 bits, and results are wrong without a word: an int8 ResNet20 fell from 32 to 11 dB. The
  table's weights have no such pairs, unless that cost accuracy (``graph.overflow``). A weight that has is uint8
  (integers and zero points + 128: the same grid), whose kernels are exact on every processor, and slower.

Bytes are a function of the graph, the table and the options: no times, no versions, and one order.
"""

from edgeopt.targets.onnx.target import Onnx

__all__ = ["Onnx"]
