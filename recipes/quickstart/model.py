"""A MobileNet-style recogniser of handwritten digits: image float32 [N, 1, 8, 8] in 0–1 → logits float32 [N, 10]."""

from __future__ import annotations

from torch import Tensor, nn

CLASSES = tuple("0123456789")


def _activated(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6())


class SeparableBlock(nn.Module):
    """A depthwise 3×3 and a pointwise convolution, each with BatchNorm and ReLU6 (Howard et al. 2017, MobileNets)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = _activated(nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False))
        self.pointwise = _activated(nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Digits(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = _activated(nn.Conv2d(1, 32, 3, padding=1, bias=False))
        self.blocks = nn.Sequential(
            SeparableBlock(32, 64),
            SeparableBlock(64, 64),
            SeparableBlock(64, 128, stride=2),
            SeparableBlock(128, 128),
            SeparableBlock(128, 256, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(256, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.pool(self.blocks(self.stem(image))).flatten(1))


def build() -> nn.Module:
    """The model as the recipe wants it: in eval mode, weights not yet loaded."""
    return Digits().eval()
