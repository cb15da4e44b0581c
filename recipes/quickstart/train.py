"""Train the quickstart model and write everything its recipe names. About a minute and a half on one core:

    .venv/bin/python recipes/quickstart/train.py

Data: the 1797 digits that ship with scikit-learn (UCI Optical Recognition of Handwritten Digits). A seeded, stratified
split gives 997 to training, 200 to calibration and 600 to evaluation; no image is in two of them.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import torch
from model import build
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
SEED = 0
EPOCHS = 120
BATCH = 64
CALIBRATION, EVALUATION = 200, 600


def split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name → images float32 [N, 1, 8, 8] in 0–1 and labels int64 [N]."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]  # a pixel counts the set ones of 4×4: 0–16
    labels = digits.target.astype(np.int64)
    train_x, rest_x, train_y, rest_y = train_test_split(
        images, labels, test_size=CALIBRATION + EVALUATION, stratify=labels, random_state=SEED
    )
    calibration_x, evaluation_x, calibration_y, evaluation_y = train_test_split(
        rest_x, rest_y, test_size=EVALUATION, stratify=rest_y, random_state=SEED
    )
    return {
        "train": (train_x, train_y),
        "calibration": (calibration_x, calibration_y),
        "evaluation": (evaluation_x, evaluation_y),
    }


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate up to 12°, scale and shear up to 12 %, shift up to one pixel, each image by its own draw."""
    n = len(images)
    rotation, scale, shear, dx, dy = (torch.rand(5, n, generator=generator) * 2 - 1).unbind()
    angle, size = rotation * math.radians(12), 1 + 0.12 * scale
    pixel = 2 / images.shape[-1]
    matrix = torch.stack(
        [
            torch.stack([size * angle.cos(), -angle.sin() + 0.12 * shear, dx * pixel], 1),
            torch.stack([angle.sin(), size * angle.cos(), dy * pixel], 1),
        ],
        1,
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(images: Tensor, labels: Tensor) -> nn.Module:
    """A moving average of the weights over the last epochs; in eval mode."""
    model = build().train()
    average = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(SEED)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in range(steps):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        logits = model(augment(images[batch], generator))
        loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = min(0.995, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                kept.copy_(kept.lerp(new, 1 - decay) if kept.is_floating_point() else new)
    return average.eval()


def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    with torch.inference_mode():
        return float((model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # layers this small gain nothing from more, and one thread repeats on every machine
    parts = split()
    model = train(*(torch.from_numpy(array) for array in parts["train"]))
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, HERE / "model.safetensors")
    for name in ("calibration", "evaluation"):
        images, labels = parts[name]
        np.savez_compressed(HERE / f"{name}.npz", image=images, labels=labels)
    for name, (images, labels) in parts.items():
        print(f"{name:12s} {len(labels):5d} images, accuracy {accuracy(model, images, labels):.2%}")


if __name__ == "__main__":
    main()
