"""One process of several that share a training: which it is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank_and_world()[0] == 0


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are, as ``torchrun`` says; (0, 1) alone."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def summed(sums: dict[str, float], world: int) -> dict[str, float]:
    """Over all processes."""
    if world == 1:
        return sums
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    values = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(sums, values.tolist(), strict=True))


def average_gradients(parameters: Sequence[Any], world: int) -> None:
    """Over all processes, in place."""
    if world == 1:
        return
    import torch.distributed as dist

    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
