"""Augmentation of a batch of images, and mixup, in plain torch on whatever device the batch is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.training.settings import Augment


def augment(images: Any, how: Augment, generator: Any) -> Any:
    """Each image by its own draw.

    Args:
        images: float tensor (samples, channels, height, width); zero is what comes in from outside.
        how: see ``Augment``.
        generator: of random numbers, on the images' device.
    """
    if how.rotate or how.scale or how.shear:
        images = _warp(images, how, generator)
    elif how.shift:
        images = _shift(images, how.shift, generator)
    if how.flip:
        images = _choose(images.flip(3), images, _uniform(len(images), generator, images) < 0.5)
    if how.cutout:
        images = _cut_out(images, how.cutout, generator)
    return images


def mix(feed: dict[str, Any], labels: Any, strength: float, generator: Any) -> tuple[dict[str, Any], Any, float]:
    """Every sample mixed with another of the batch; also the other's labels and this one's share (one per batch)."""
    import torch

    device = next(iter(feed.values())).device
    draws = torch.rand(2, generator=generator, device=device).tolist()
    share = _beta(strength, draws)
    order = torch.randperm(len(next(iter(feed.values()))), generator=generator, device=device)
    mixed = {
        name: value * share + value[order] * (1 - share) if value.is_floating_point() else value
        for name, value in feed.items()
    }
    return mixed, None if labels is None else labels[order], share


def _beta(strength: float, draws: list[float]) -> float:
    """A draw of Beta(strength, strength) from two uniform ones (Jöhnk 1964), the larger share to the sample itself."""
    a, b = (max(draw, 1e-12) ** (1 / strength) for draw in draws)
    share = a / (a + b) if a + b > 0 else 0.5
    return max(share, 1 - share)


def _uniform(count: int, generator: Any, like: Any) -> Any:
    import torch

    return torch.rand(count, generator=generator, device=like.device)


def _choose(one: Any, other: Any, which: Any) -> Any:
    import torch

    return torch.where(which.reshape(-1, 1, 1, 1), one, other)


def _shift(images: Any, most: int, generator: Any) -> Any:
    """Whole pixels, so that nothing is interpolated: the field's pad and random crop."""
    import torch
    from torch.nn import functional

    count, _, height, width = images.shape
    padded = functional.pad(images, (most, most, most, most))
    down = torch.randint(2 * most + 1, (count, 1), generator=generator, device=images.device)
    right = torch.randint(2 * most + 1, (count, 1), generator=generator, device=images.device)
    rows = (down + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=images.device))[:, None, None, :]
    sample = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[sample, channel, rows, columns]


def _warp(images: Any, how: Augment, generator: Any) -> Any:
    import torch
    from torch.nn import functional

    count = len(images)
    draws = torch.rand(5, count, generator=generator, device=images.device) * 2 - 1
    angle, size, shear = draws[0] * math.radians(how.rotate), 1 + how.scale * draws[1], how.shear * draws[2]
    right, down = draws[3] * 2 * how.shift / images.shape[3], draws[4] * 2 * how.shift / images.shape[2]
    first = torch.stack([size * angle.cos(), shear - angle.sin(), right], 1)
    second = torch.stack([angle.sin(), size * angle.cos(), down], 1)
    grid = functional.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid.to(images.dtype), align_corners=False)


def _cut_out(images: Any, side: int, generator: Any) -> Any:
    import torch

    count, _, height, width = images.shape
    row = torch.randint(height, (count, 1, 1, 1), generator=generator, device=images.device)
    column = torch.randint(width, (count, 1, 1, 1), generator=generator, device=images.device)
    rows = (torch.arange(height, device=images.device).reshape(1, 1, -1, 1) - row).abs() * 2 < side
    columns = (torch.arange(width, device=images.device).reshape(1, 1, 1, -1) - column).abs() * 2 < side
    return images.masked_fill(rows & columns, 0)
