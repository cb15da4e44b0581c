"""Which parameters are trained, at what rate, by which optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.errors import UsageError
from edgeopt.training.objective import Objective
from edgeopt.training.trainee import Trainee

if TYPE_CHECKING:
    from edgeopt.training.settings import Training


def parameter_groups(trainee: Trainee, objective: Objective, settings: Training) -> list[dict[str, Any]]:
    """Groups of one rate and decay; parameters that are not to be trained are frozen.

    A parameter outside a weighted layer (BatchNorm) goes with the layer before it.
    """
    layers = list(trainee.weighted_layers())
    depth = {name: index for index, name in enumerate(layers)}
    count = len(layers)
    if settings.trainable == "all":
        first = 0
    elif settings.trainable == "head":
        first = count - 1
    else:
        first = count - math.ceil(count * float(settings.trainable))
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    layer = 0

    def add(name: str, parameter: Any, factor: float) -> None:
        decays = parameter.ndim > 1
        group = groups.setdefault(
            (factor, decays),
            {
                "params": [],
                "names": [],
                "factor": factor,
                "weight_decay": settings.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)

    for name, parameter in trainee.named_parameters().items():
        owner = name
        while owner and owner not in depth:
            owner = owner.rpartition(".")[0]
        layer = depth[owner] if owner else layer
        if not parameter.is_floating_point():
            continue
        parameter.requires_grad_(layer >= first)
        if layer >= first:
            add(name, parameter, settings.layer_decay ** (count - 1 - layer if count else 0))
    for name, parameter in objective.named_parameters().items():
        add(name, parameter, 1.0)
    if not groups:
        raise UsageError("nothing is left to train", hint="Look at 'trainable'.")
    return list(groups.values())


def make_optimizer(groups: Sequence[dict[str, Any]], settings: Training, *, fused: bool) -> Any:
    """Of the groups; ``fused``: one kernel for all parameters, where the device has it."""
    import torch

    given = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(given, settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=fused)
    return torch.optim.AdamW(given, settings.lr, fused=fused)
