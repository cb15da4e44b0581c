"""Operators become fused kernels, and kernels become the quantities that their time depends on.

The fused kernel is the unit of cost (Zhang et al., nn-Meter, MobiSys 2021): what a runtime computes in one pass is
measured and predicted as one. Which operators it joins is data, per runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeopt.graph.cost import WEIGHTED, Operation

Array = npt.NDArray[np.float64]

QUANTITIES = (
    "weighted_kernels",
    "other_kernels",
    "macs_3x3",
    "macs_conv",
    "macs_1x1",
    "macs_depthwise",
    "macs_grouped",
    "macs_product",
    "weights_conv",
    "weights_product",
    "moved_conv",
    "moved_depthwise",
    "moved_elementwise",
    "moved_activation",
    "moved_pool",
)
"""What a kernel's time is made of: counts, multiply-accumulates, elements of weights, elements read and written.
``macs_3x3`` are those of dense 3×3 convolutions of stride 1, for which runtimes have the Winograd algorithm."""

UNITS: Array = np.array([1, 1, 1e8, 1e8, 1e8, 1e7, 1e8, 1e8, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6])
"""What one stands for in each quantity, so that fitted rates are of like size."""

COMPUTE = frozenset(name for name in QUANTITIES if name.startswith("macs"))
OVERHEAD = frozenset({"weighted_kernels", "other_kernels"})

SIMPLE_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "act"})
"""``act`` is an activation of which the published operator lists say no more."""


@dataclass(frozen=True)
class FusionRules:
    """What a runtime takes into the kernel before it.

    Args:
        activations: operator types that end a kernel at no cost of their own.
        elementwise: whether a residual addition becomes part of the convolution before it.
        after: kinds of kernel that take an activation in.
    """

    activations: frozenset[str]
    elementwise: bool
    after: frozenset[str] = frozenset((*WEIGHTED, "elt", "norm"))


_ALL = SIMPLE_ACTIVATIONS | {"Sigmoid", "HardSigmoid", "HardSwish", "Silu", "Gelu", "Tanh", "Elu", "Mish"}

FUSION = {
    "tflite": FusionRules(frozenset({"Relu", "Clip", "act"}), False),
    "onnxruntime": FusionRules(SIMPLE_ACTIVATIONS | {"Sigmoid", "Tanh", "HardSigmoid"}, True),
    "ncnn": FusionRules(SIMPLE_ACTIVATIONS | {"Sigmoid", "HardSwish", "Mish"}, False),
    "tensorrt": FusionRules(_ALL, True),
    "coreml": FusionRules(_ALL, False),
    "qnn": FusionRules(_ALL, False),
    "pytorch": FusionRules(frozenset(), False),
}
"""By runtime. Sources: LiteRT's converter (fused_activation_function), ONNX Runtime's ConvActivationFusion and
ConvAddActivationFusion, ncnn's ncnnoptimize (fuse_*_activation), TensorRT's layer fusion list, QNN's HTP guide."""


@dataclass(frozen=True)
class Kernel:
    """A fused kernel: its leading operation with what it took in."""

    lead: Operation
    fused: tuple[str, ...]

    @property
    def known(self) -> bool:
        return self.lead.kind != "other"


def fuse(operations: Iterable[Operation], rules: FusionRules) -> tuple[Kernel, ...]:
    """Join each operation that ``rules`` let into the kernel before it."""
    kernels: list[Kernel] = []
    for operation in operations:
        before = kernels[-1] if kernels else None
        if before is not None and operation.follows:
            activation = operation.kind == "act" and operation.operator in rules.activations
            residual = operation.kind == "elt" and rules.elementwise and before.lead.kind in WEIGHTED
            if (activation and before.lead.kind in rules.after) or residual:
                read = max(0, operation.inputs - before.lead.outputs)
                lead = replace(before.lead, inputs=before.lead.inputs + read)
                kernels[-1] = Kernel(lead, (*before.fused, operation.operator))
                continue
        kernels.append(Kernel(operation, (operation.operator,)))
    return tuple(kernels)


def quantities(kernel: Kernel) -> Array:
    """The ``QUANTITIES`` of one kernel, in ``UNITS``. An unknown operator moves its bytes, as an addition would."""
    values = dict.fromkeys(QUANTITIES, 0.0)
    lead = kernel.lead
    moved = lead.inputs + lead.outputs
    if lead.kind not in WEIGHTED:
        values["other_kernels"] = 1
        kind = {"act": "activation", "softmax": "activation", "norm": "activation", "pool": "pool", "move": "pool"}
        values[f"moved_{kind.get(lead.kind, 'elementwise')}"] = moved
        return np.array([values[name] for name in QUANTITIES]) / UNITS
    values["weighted_kernels"] = 1
    if lead.kind == "conv_dw":
        values["macs_depthwise"], values["moved_depthwise"] = lead.macs, moved
        values["weights_conv"] = lead.weights
    elif lead.kind in ("linear", "matmul"):
        values["macs_product"], values["weights_product"] = lead.macs, lead.weights
        values["moved_conv"] = moved
    else:
        dense = lead.kind == "conv" and lead.groups == 1
        winograd = dense and lead.kernel == 9 and lead.stride == 1 and lead.channels_in >= 8
        name = {"conv_pw": "macs_1x1", "conv_grp": "macs_grouped"}.get(lead.kind, "macs_conv")
        values["macs_3x3" if winograd else name] = lead.macs
        values["weights_conv"], values["moved_conv"] = lead.weights, moved
    return np.array([values[name] for name in QUANTITIES]) / UNITS


def matrix(kernels: Sequence[Kernel]) -> Array:
    """Shape (kernels, QUANTITIES)."""
    return np.array([quantities(kernel) for kernel in kernels]).reshape(len(kernels), len(QUANTITIES))
