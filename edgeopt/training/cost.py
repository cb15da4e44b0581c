"""What a module costs: multiply–accumulates and parameters, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeopt.training.trainee import Feed, ModuleTrainee
from edgeopt.types import Frozen


class Cost(Frozen):
    """Of one sample: multiply–accumulates of weighted layers, and parameters of the whole module."""

    macs: int
    params: int


@dataclass(frozen=True)
class Layer:
    """One weighted layer.

    Args:
        positions: how often its weight is applied per sample.
        inputs, outputs: channels.
        groups: of a convolution.
        kernel: weights per pair of channels.
    """

    positions: int
    inputs: int
    outputs: int
    groups: int
    kernel: int

    def macs(self, inputs: int | None = None, outputs: int | None = None) -> int:
        """With other channel counts, if given; a depthwise convolution stays one."""
        into = self.inputs if inputs is None else inputs
        out = self.outputs if outputs is None else outputs
        groups = self.groups
        if groups > 1 and groups == self.inputs:
            groups = into
        return self.positions * out * (into // max(groups, 1)) * self.kernel


def layers(model: ModuleTrainee, example: Feed) -> dict[str, Layer]:
    """Every Conv, ConvTranspose and Linear that runs, by module name."""
    import torch

    found: dict[str, Layer] = {}
    convolution = torch.nn.modules.conv._ConvNd

    def look(name: str, module: Any, given: Any, result: Any) -> None:
        batch = given[0].shape[0] if given[0].ndim > 1 else 1
        if isinstance(module, convolution):
            # A transposed convolution applies its weight once per input position.
            at = given[0] if module.transposed else result
            positions, kernel = at[0, 0].numel(), math.prod(module.kernel_size)
            found[name] = Layer(positions, module.in_channels, module.out_channels, module.groups, kernel)
        else:
            positions = result.numel() // (result.shape[-1] * batch)
            found[name] = Layer(positions, module.in_features, module.out_features, 1, 1)

    model.watch(example, look, (convolution, torch.nn.Linear))
    return found


def cost(model: ModuleTrainee, example: Feed) -> Cost:
    """Of the module as it is."""
    params = sum(parameter.numel() for parameter in model.named_parameters().values())
    return Cost(macs=sum(layer.macs() for layer in layers(model, example).values()), params=params)


def total_macs(found: Mapping[str, Layer]) -> int:
    return sum(layer.macs() for layer in found.values())
