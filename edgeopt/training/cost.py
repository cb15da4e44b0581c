"""What a module costs: multiply–accumulates and parameters, layer by layer."""

from __future__ import annotations

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

    def look(name: str) -> Any:
        def hook(module: Any, given: Any, result: Any) -> None:
            batch = given[0].shape[0] if given[0].ndim > 1 else 1
            if isinstance(module, convolution):
                kernel = 1
                for size in module.kernel_size:
                    kernel *= size
                # A transposed convolution applies its weight once per input position.
                at = given[0] if module.transposed else result
                positions = at[0, 0].numel()
                layer = Layer(positions, module.in_channels, module.out_channels, module.groups, kernel)
            else:
                positions = result.numel() // (result.shape[-1] * batch)
                layer = Layer(positions, module.in_features, module.out_features, 1, 1)
            found[name] = layer

        return hook

    kinds = (convolution, torch.nn.Linear)
    handles = [
        inner.register_forward_hook(look(name))
        for name, inner in model.module.named_modules()
        if isinstance(inner, kinds)
    ]
    model.train(False)
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def cost(model: ModuleTrainee, example: Feed) -> Cost:
    """Of the module as it is."""
    params = sum(parameter.numel() for parameter in model.named_parameters().values())
    return Cost(macs=sum(layer.macs() for layer in layers(model, example).values()), params=params)


def total_macs(found: Mapping[str, Layer]) -> int:
    return sum(layer.macs() for layer in found.values())
