"""Attention maps: taken from where they can be had, shown to be the block's own, and learnt from."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.errors import UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")

from edgeopt.training.attention import AttentionMaps  # noqa: E402
from edgeopt.training.base import train  # noqa: E402
from edgeopt.training.data import ArraySet  # noqa: E402
from edgeopt.training.train import Distill  # noqa: E402
from edgeopt.training.trainee import ModuleTrainee  # noqa: E402

TOKENS, WIDTH = 6, 16


class Fused(torch.nn.Module):
    """As timm writes it: one projection, a fused kernel; ``scale`` may lie, and then no map is claimed."""

    def __init__(self, heads: int, sharp: float = 1.0) -> None:
        super().__init__()
        self.num_heads, self.sharp = heads, sharp
        self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(-1, TOKENS, 3, self.num_heads, WIDTH // self.num_heads).permute(2, 0, 3, 1, 4)
        x = torch.nn.functional.scaled_dot_product_attention(q * self.sharp, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Spoken(torch.nn.Module):
    """Keeps its probabilities in a module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Dropout(0.0)

    def forward(self, x):
        return self.drop((x @ self.a(x).transpose(1, 2)).softmax(-1)[:, None])[:, 0] @ x


class Torch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Net(torch.nn.Module):
    def __init__(self, *blocks: torch.nn.Module) -> None:
        super().__init__()
        self.blocks, self.head = torch.nn.ModuleList(blocks), torch.nn.Linear(WIDTH, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


def net(*blocks) -> ModuleTrainee:
    return ModuleTrainee(Net(*blocks).eval(), ["x"], ["output"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(3)


EXAMPLE = {"x": torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))}


def test_maps_are_found_and_spread_over_the_teachers_blocks():
    maps = AttentionMaps(net(Fused(2), Torch()), net(*[Fused(4) for _ in range(4)]), "auto", EXAMPLE)
    assert maps.pairs == {"blocks.0": "blocks.1", "blocks.1.inner": "blocks.3"}
    assert float(maps.loss()) > 0


def test_a_model_does_not_differ_from_itself():
    model = net(Fused(4), Torch(), Spoken())
    pairs = {"blocks.0": "blocks.0", "blocks.1.inner": "blocks.1.inner", "blocks.2.drop": "blocks.2.drop"}
    assert float(AttentionMaps(model, model, pairs, EXAMPLE).loss()) == pytest.approx(0, abs=1e-6)


def test_a_map_is_claimed_only_where_it_gives_the_blocks_output():
    with pytest.raises(UsageError, match=r"no attention map can be had from the student's 'blocks\.0'") as caught:
        AttentionMaps(net(Fused(4, sharp=2.0)), net(Fused(4)), {"blocks.0": "blocks.0"}, EXAMPLE)
    assert "scaled_dot_product_attention" in str(caught.value)


@pytest.mark.parametrize(
    ("student", "teacher", "pairs", "said"),
    [
        ((Spoken,), (Fused,), "auto", "the student has none"),
        ((Torch, Torch), (Torch,), "auto", "the student has 2, the teacher 1"),
        ((Torch,), (Torch,), {"nothing": "blocks.0.inner"}, "no module 'nothing'"),
        ((Torch,), (Torch,), {"head": "blocks.0.inner"}, "no attention map can be had from the student's 'head'"),
    ],
)
def test_what_cannot_be_compared(student, teacher, pairs, said):
    def built(kinds):
        return net(*[kind(4) if kind is Fused else kind() for kind in kinds])

    with pytest.raises(UsageError, match=said):
        AttentionMaps(built(student), built(teacher), pairs, EXAMPLE)


def test_a_student_learns_where_to_look(tmp_path):
    """Without labels."""
    teacher, student = net(Fused(4)), net(Fused(4))
    with torch.no_grad():
        teacher.module.blocks[0].qkv.weight *= 3  # a teacher that knows where to look
    images = np.random.default_rng(0).normal(0, 1, (64, TOKENS, WIDTH)).astype(np.float32)
    step = Distill(epochs=12, batch=8, lr=1e-2, distill={"mix": 1.0, "attention": "auto", "attention_weight": 4.0})
    history = train(
        student, step, ArraySet({"x": images}, None, "noise"), EXAMPLE, teacher=teacher, root=tmp_path,
        folder=tmp_path, identity="test", seed=0, text="distill",
    )  # fmt: skip
    first, last = (one["loss of attention"] for one in (history[0], history[-1]))
    assert last < 0.6 * first
