"""MobileNetV1 (Howard et al. 2017, arXiv:1704.04861) of width 0.25 as MLPerf Tiny has it for visual wake words: image
float32 [N, 3, 96, 96] in 0–1 → logits float32 [N, 2]. BatchNorm is folded; names are those of the trained ONNX file."""
# ruff: noqa: TID253

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

OUTPUTS = (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
HALVED = (1, 3, 5, 11)
"""Blocks that step over every second pixel. They pad below and at the right alone, as TensorFlow does."""


class Block(nn.Module):
    """A depthwise convolution and a pointwise one, a ReLU behind each."""

    def __init__(self, inputs: int, outputs: int, *, halved: bool) -> None:
        super().__init__()
        self.halved = halved
        self.dw = nn.Conv2d(inputs, inputs, 3, 2 if halved else 1, 0 if halved else 1, groups=inputs)
        self.pw = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.halved:
            x = functional.pad(x, (0, 1, 0, 1))
        return functional.relu(self.pw(functional.relu(self.dw(x))))


class MobileNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2)
        widths = (8, *OUTPUTS)
        self.blocks = nn.Sequential(
            *(Block(widths[at], widths[at + 1], halved=at in HALVED) for at in range(len(OUTPUTS)))
        )
        self.fc = nn.Conv2d(256, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.conv1(functional.pad(x, (0, 1, 0, 1)))))
        return self.fc(x.mean((2, 3), keepdim=True)).flatten(1)


def from_onnx(path: Path) -> MobileNetV1:
    """With the weights of the ONNX file, in eval mode."""
    import onnx
    import torch

    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
    module = MobileNetV1()
    module.load_state_dict({name: torch.from_numpy(stored[name].copy()) for name in module.state_dict()})
    return module.eval()


def build() -> MobileNetV1:
    """As the trained weights want it."""
    return MobileNetV1().eval()
