"""ResNet-20 for CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2; shortcuts of option A): image float32
[N, 3, 32, 32], normalised as for ImageNet → logits float32 [N, 10]. Names are those of the trained weights."""
# ruff: noqa: TID253

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

BLOCKS = 9
FULL = (16, 16, 16, 32, 32, 32, 64, 64, 64)


class Block(nn.Module):
    """Two convolutions; ``inner`` channels between. A shortcut that changes size skips pixels and pads channels."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.added = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.added:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return functional.relu(out + x)


class ResNet20(nn.Module):
    """``inner``: channels inside each of the nine blocks; ``widths``: of the three stages."""

    def __init__(self, inner: Sequence[int] = FULL, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            blocks = []
            for middle in inner[3 * stage : 3 * stage + 3]:
                blocks.append(Block(inputs, middle, width))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def sizes(state: dict[str, Tensor]) -> tuple[list[int], list[int]]:
    """``inner`` and ``widths`` of a state dictionary."""
    inner = [len(state[f"layer{stage}.{block}.conv1.weight"]) for stage in (1, 2, 3) for block in range(3)]
    return inner, [len(state[f"layer{stage}.0.conv2.weight"]) for stage in (1, 2, 3)]


def like(state: dict[str, Tensor]) -> ResNet20:
    """The network that a state dictionary fits, with its weights, in eval mode."""
    module = ResNet20(*sizes(state))
    module.load_state_dict(state)
    return module.eval()


def build() -> ResNet20:
    """As the trained weights want it."""
    return ResNet20().eval()
