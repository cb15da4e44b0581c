"""What each of several processes runs in ``test_training_distributed``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt.training import base
from edgeopt.training.ranks import is_first
from edgeopt.training.settings import Training
from edgeopt.training.trainee import ModuleTrainee

from .test_training_engine import quadrants


def plain_net() -> Any:
    """Nothing in it depends on how a batch is shared."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)
    ).eval()


Asked = tuple[str, dict[str, Any], str]
"""Folder, settings, file for the weights."""


def train_all(asked: list[Asked]) -> None:
    """One training after the other: starting processes is what takes time."""
    for one in asked:
        train(one)


def train(asked: Asked) -> None:
    import torch

    folder, settings, file = asked
    model = ModuleTrainee(plain_net(), ["x"], ["output"])
    base.train(
        model,
        Training(**settings),
        quadrants(),
        {"x": torch.zeros(1, 1, 8, 8)},
        teacher=None,
        root=Path(folder),
        folder=Path(folder) / "work",
        identity="one",
        seed=5,
        text="test",
    )
    if is_first():
        torch.save(model.state(), file)
