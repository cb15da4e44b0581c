"""One small network for all contracts: every kind of weighted layer, both fused activations, a skip connection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise


def imported() -> ir.Model:
    """Three convolutions, one cut off at both ends and one depthwise: image [1, 3, 8, 8] → logits [1, 5]."""
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[1,3,8,8] image, float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[8,8,1,1] w3,
             float[8,5] w4) => (float[1,5] logits) {
            c1 = Conv <pads = [1,1,1,1]> (image, w1, b1)
            low = Constant <value = float {0.0}> ()
            high = Constant <value = float {1.0}> ()
            a1 = Clip (c1, low, high)
            c2 = Conv <pads = [1,1,1,1], group = 8> (a1, w2, b2)
            a2 = Relu (c2)
            c3 = Conv (a2, w3)
            s = Add (a2, c3)
            p = GlobalAveragePool (s)
            f = Flatten (p)
            logits = MatMul (f, w4)
        }
        """
    )
    random = np.random.default_rng(0)
    spread = np.geomspace(1 / 8, 1, 8).astype(np.float32)  # channels far apart: what equalisation is for
    for value in list(model.graph.inputs)[1:]:
        array = random.normal(size=tuple(value.shape.numpy())).astype(np.float32) / 3
        if value.name in ("w1", "b1"):
            array = (array.T * spread).T
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def feeds(*, seed: int = 1, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [{"image": (scale * random.normal(size=(1, 3, 8, 8))).astype(np.float32)} for _ in range(8)]


def canonical(tmp_path: Path) -> ir.Model:
    return canonicalise(QuantizedGraph(imported()), Context(scratch=tmp_path)).model


def content(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)
