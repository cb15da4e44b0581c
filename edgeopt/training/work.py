"""Opening a module for a training pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeopt.frontends.torch_loading import Loaded
from edgeopt.frontends.torch_structure import Structure
from edgeopt.training.base import Work, need_torch, read_module
from edgeopt.training.data import TrainingSet


def open_work(
    request: Mapping[str, Any], data: Callable[[], TrainingSet] | None, *, folder: Path, identity: str, seed: int
) -> Work:
    """Load the module and what earlier passes made of it.

    Args:
        request: of ``frontends.torch.module_request``.
        data: reads the training data; None if the recipe names none.
        folder: of checkpoints.
        identity: of all that the result depends on.
        seed: of every draw.

    Raises:
        MissingPackage: torch is not installed.
        ModelError: what the frontend refuses.
    """
    need_torch()
    structure: Structure = {}
    masks: dict[str, Any] = {}
    if request.get("trained"):
        _, structure, masks, _ = read_module(Path(request["trained"]))
    return Work(Loaded(dict(request)), request, structure, masks, data, folder, identity, seed)
