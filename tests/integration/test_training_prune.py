"""Pruning: what belongs together goes together, what cannot be shown to be right stays, and the goal is met."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import DataError, ModelError, UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

from edgeopt.frontends import torch_structure  # noqa: E402
from edgeopt.frontends.torch_loading import Loaded  # noqa: E402
from edgeopt.graph.cost import operations  # noqa: E402
from edgeopt.pipeline.jobs.inputs import Inputs  # noqa: E402
from edgeopt.pipeline.jobs.training import MANY_EPOCHS, TrainingJob, train_module  # noqa: E402
from edgeopt.recipe.schema import ModelSource  # noqa: E402
from edgeopt.training.base import Work, write_module  # noqa: E402
from edgeopt.training.channels import Channels, Graph  # noqa: E402
from edgeopt.training.data import ArraySet  # noqa: E402
from edgeopt.training.exported import Resized, exported  # noqa: E402
from edgeopt.training.latency import Latency, cut_for, least  # noqa: E402
from edgeopt.training.prune import Prune  # noqa: E402
from edgeopt.training.sparsify import Sparsify  # noqa: E402
from edgeopt.training.train import Finetune  # noqa: E402
from edgeopt.training.work import open_work  # noqa: E402

NETS = """
import torch
from torch import nn
from torch.nn import functional

def conv(i, o, k=3, s=1, g=1):
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), nn.ReLU())

class Mixed(nn.Module):
    '''A residual, a depthwise and a grouped convolution, a concat, a flatten in front of the head.'''
    def __init__(self):
        super().__init__()
        self.stem = conv(3, 32)
        self.inner = nn.Sequential(conv(32, 48), nn.Conv2d(48, 32, 1))
        self.depthwise = conv(32, 32, g=32)
        self.grouped = conv(32, 64, s=2, g=4)
        self.side = conv(32, 32, s=2)
        self.last = conv(96, 64, s=2)
        self.head = nn.Linear(64 * 16, 10)

    def forward(self, x):
        x = self.stem(x)
        x = functional.relu(x + self.inner(x))
        x = torch.cat([self.grouped(self.depthwise(x)), self.side(x)], 1)
        return self.head(self.last(x).flatten(1))

class Padded(nn.Module):
    '''A shortcut that pads the channel axis: its channels have other numbers behind it.'''
    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.a, self.b = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(functional.relu(self.a(x)))
        x = functional.relu(y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
        return self.head(x.mean((2, 3)))

class Attention(nn.Module):
    '''Heads by a reshape: channels of qkv cannot go one by one; those of the multilayer perceptron can.'''
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.project = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 16, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2) * 8 ** -0.5, -1) @ v
        x = x + self.project(y.transpose(1, 2).reshape(-1, 16, 32))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))

class Heads(nn.Module):
    '''As vision transformers are written: the number of heads is an attribute.'''
    def __init__(self, fused=True):
        super().__init__()
        self.num_heads, self.attn_dim = 4, 32
        if fused:
            self.qkv = nn.Linear(24, 96)
        else:
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(24, 32), nn.Linear(24, 32), nn.Linear(24, 32)
        self.proj = nn.Linear(32, 24)

    def forward(self, x):
        n = x.shape[1]
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).reshape(-1, n, 3, self.num_heads, 8).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            one = lambda layer: layer(x).reshape(-1, n, self.num_heads, 8).transpose(1, 2)
            q, k, v = one(self.q_proj), one(self.k_proj), one(self.v_proj)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(-1, n, self.attn_dim))

class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 16, 24))
        self.first, self.second = Heads(), Heads(fused=False)
        self.up, self.down = nn.Linear(24, 96), nn.Linear(96, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        x = x + self.first(x)
        x = x + self.second(x)
        x = x + self.down(functional.gelu(self.up(x)))
        return self.head(x.mean(1))

class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x.detach().mean((2, 3))[:, :3].sum(1, keepdim=True).expand(-1, 4)).detach()

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 10)

    def forward(self, x):
        if x.mean() > 0:  # which way depends on the image
            x = -x
        return self.layer(x[:, :1, 0, :4].flatten(1))

def build(kind):
    torch.manual_seed(0)
    kinds = {"mixed": Mixed, "padded": Padded, "attention": Attention, "untraceable": Untraceable}
    module = {**kinds, "transformer": Transformer, "branching": Branching}[kind]()
    for inner in module.modules():
        if isinstance(inner, nn.BatchNorm2d):
            nn.init.uniform_(inner.weight, 0.5, 1.5)
            nn.init.uniform_(inner.bias, -0.5, 0.5)
    return module.eval()

def mixed(): return build("mixed")
def padded(): return build("padded")
def attention(): return build("attention")
def transformer(): return build("transformer")
def untraceable(): return build("untraceable")
def branching(): return build("branching")
"""


@pytest.fixture(autouse=True)
def no_trace_log():
    """pytest listens at every level, and then torch's exporter writes its trace log: a hundred times the work."""
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def opened(tmp_path):
    (tmp_path / "nets_to_prune.py").write_text(NETS)

    def open_(name: str, data=None, trained: Path | None = None) -> Work:
        request = {
            "factory": f"nets_to_prune:{name}", "root": str(tmp_path), "weights": None,
            "trained": None if trained is None else str(trained), "inputs": {"x": [1, 3, 16, 16]},
        }  # fmt: skip
        return open_work(request, data, folder=tmp_path / "work", identity="test", seed=3)

    return open_


def noise(count: int = 48):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, count)
    images = rng.normal(0, 1, (count, 3, 16, 16)).astype(np.float32)
    return lambda: ArraySet({"x": images}, labels, "noise")


def outputs(work: Work) -> torch.Tensor:
    work.model.train(False)
    with torch.no_grad():
        return work.model({"x": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(9))})["output"]


def losses(record) -> set[str]:
    return {one.layer for one in record.layers if one.outputs[1] < one.outputs[0]}


@pytest.mark.parametrize(
    ("importance", "scope"),
    [("l1", "layer"), ("l2", "global"), ("taylor", "global"), ("bn_scale", "layer"), ("random", "global")],
)
def test_every_structure_is_pruned_to_the_goal(opened, importance, scope):
    work = opened("mixed", noise())
    record = Prune(macs=0.5, importance=importance, scope=scope, batch=16).run(work)
    assert record.after.macs <= 0.5 * record.before.macs
    assert record.after.params < record.before.params
    assert {"inner.0.0", "last.0"} & losses(record)
    assert "head" not in losses(record)
    assert outputs(work).shape == (4, 10)
    for one in record.layers:
        if one.layer != "head" and one.outputs[1] != one.outputs[0]:
            assert one.outputs[1] % 8 == 0


@pytest.mark.parametrize(("goal", "what"), [({"params": 0.4}, "params"), ({"macs": 0.7}, "macs")])
def test_goals(opened, goal, what):
    record = Prune(**goal, round_to=1).run(opened("mixed"))
    (share,) = goal.values()
    assert 0.85 * share <= getattr(record.after, what) / getattr(record.before, what) <= share


def test_a_ratio_takes_that_share_of_each_layer(opened):
    record = Prune(ratio=0.5, scope="layer", round_to=1).run(opened("mixed"))
    for one in record.layers:
        if one.layer in ("stem.0", "inner.0.0", "depthwise.0", "grouped.0", "side.0", "last.0"):
            assert one.outputs[1] * 2 == one.outputs[0]


def test_cutting_what_nobody_reads_changes_nothing(opened):
    """Channels whose readers have zero weights are the least important, and go: the function stays."""
    work = opened("mixed")
    module = work.loaded.module
    with torch.no_grad():
        for reader, channels in ((module.inner[1], range(24)), (module.last[0], range(64, 80))):
            reader.weight[:, list(channels)] = 0
        module.inner[0][0].weight[:24] *= 1e-3
        module.side[0].weight[:16] *= 1e-3
        module.inner[0][1].weight[:24] *= 1e-3
        module.side[1].weight[:16] *= 1e-3
    before = outputs(work)
    record = Prune(macs=0.85, round_to=8, leave=("stem.0", "grouped.0", "last.0")).run(work)
    assert losses(record) == {"inner.0.0", "side.0"}
    assert torch.allclose(outputs(work), before, atol=1e-5)


def test_a_padded_channel_axis_is_left_alone(opened):
    record = Prune(macs=0.7).run(opened("padded"))
    assert losses(record) == {"a"}
    assert any("stem.0" in note and "would not keep" in note for note in record.notes)


def test_heads_are_left_alone_and_the_perceptron_is_not(opened):
    record = Prune(ratio=0.5).run(opened("attention"))
    assert losses(record) == {"up"}
    assert any("qkv" in note for note in record.notes)


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_whole_heads_go_and_the_others_compute_what_they_did(opened, tmp_path, importance):
    work = opened("transformer", noise())
    module = work.loaded.module
    with torch.no_grad():
        module.first.proj.weight[:, 8:16] = 0  # nobody reads the second head, nor the last two of the second block
        module.second.proj.weight[:, 16:] = 0
        for layer in (module.second.q_proj, module.second.k_proj, module.second.v_proj):
            layer.weight[16:] *= 1e-3
        module.first.qkv.weight.reshape(3, 4, 8, 24)[:, 1] *= 1e-3
    before = outputs(work)
    record = Prune(ratio=0.4, importance=importance, leave=("up",), most=0.5, batch=16).run(work)
    assert (module.first.num_heads, module.first.attn_dim, module.second.num_heads) == (3, 24, 2)
    assert {one.layer: one.outputs for one in record.layers}["first.qkv"] == (96, 72)
    assert torch.allclose(outputs(work), before, atol=1e-4)
    write_module(tmp_path / "module.safetensors", work.model, work.changes())
    again = opened("transformer", trained=tmp_path / "module.safetensors")
    assert torch.equal(outputs(again), outputs(work))
    if importance == "l1":
        exported(again.loaded)  # and it has an ONNX form


def test_a_latency_goal_is_met_by_the_graph_that_is_left(opened, monkeypatch):
    work = opened("mixed")
    latency = Latency(work.loaded, "raspberry-pi-5", None, "int8")
    before = latency.before.median_ms
    monkeypatch.setattr(Prune, "_latency", lambda self, asked: latency)  # exported once
    record = Prune(latency_ms=0.85 * before, device="raspberry-pi-5", device_precision="int8").run(work)
    (note,) = (note for note in record.notes if "predicted" in note)
    assert f"predicted {before:.3g} ms before" in note
    assert "on raspberry-pi-5 (" in note
    now = float(re.findall(r"([\d.]+) ms now", note)[0])
    assert 0.6 * before < now <= 0.851 * before
    assert losses(record)


def test_a_latency_out_of_reach_names_the_nearest(opened):
    with pytest.raises(UsageError, match=r"0\.001 ms cannot be reached on raspberry-pi-5 .* with all cut that may be"):
        Prune(latency_ms=0.001, device="raspberry-pi-5", device_precision="int8").run(opened("padded"))


def test_shapes_alone_say_what_an_export_says(opened):
    """Depthwise and grouped convolutions, a concat, a flatten; not heads, which are written into a reshape."""
    work = opened("mixed")
    graph = Graph(work.model, work.example, frozenset())
    groups = {group.root: group for group in graph.groups("l2", 0)}
    resized = Resized(work.loaded)
    with graph.trial({root: groups[root].members(range(groups[root].stride // 2)) for root in ("stem.0", "grouped.0")}):
        found = resized.now()
        assert found is not None
        assert operations(found) == operations(exported(work.loaded))
    work = opened("transformer")
    graph, resized = Graph(work.model, work.example, frozenset()), Resized(work.loaded)
    with graph.trial({"first": [0, 1]}):
        assert resized.now() is None


def _lost_per_saved(cost: dict[str, float]):
    groups = [Channels(root, 16, 16, np.ones(16)) for root in cost]
    return groups, lambda cut: sum(cost[root] * (16 - len(cut.get(root, []))) for root in cost)


def test_the_cut_is_made_where_a_millisecond_costs_least():
    groups, left = _lost_per_saved({"cheap": 1.0, "dear": 10.0})
    cut = cut_for(groups, left, 100.0, lambda group, wanted: max(wanted, 4))
    assert cut is not None
    assert (len(cut["cheap"]), len(cut["dear"])) == (0, 8)
    assert cut_for(groups, left, 43.9, lambda group, wanted: max(wanted, 4)) is None
    assert left(least(groups, lambda group, wanted: max(wanted, 4))) == 44.0


def test_the_factorys_module_is_rebuilt_from_data(opened, tmp_path):
    work = opened("mixed")
    Prune(macs=0.5).run(work)
    expected = outputs(work)
    write_module(tmp_path / "module.safetensors", work.model, work.changes())
    again = opened("mixed", trained=tmp_path / "module.safetensors")
    assert torch.equal(outputs(again), expected)
    pruned_twice = Prune(macs=0.7).run(again)
    assert pruned_twice.after.macs < again.loaded.module.stem[0].weight.numel() * 1e6
    write_module(tmp_path / "second.safetensors", again.model, again.changes())
    assert torch.equal(outputs(opened("mixed", trained=tmp_path / "second.safetensors")), outputs(again))


def test_another_factory_is_refused(opened, tmp_path):
    work = opened("mixed")
    Prune(macs=0.5).run(work)
    write_module(tmp_path / "module.safetensors", work.model, work.changes())
    with pytest.raises(ModelError, match="factory"):
        opened("padded", trained=tmp_path / "module.safetensors")


def test_rounds_with_recovery_resume(opened, tmp_path):
    step = Prune(macs=0.5, steps=2, epochs=1, batch=16)
    one = opened("mixed", noise())
    step.run(one)
    expected = one.model.state()
    # The second round's training alone is done again; its module is that of the stage before.
    (tmp_path / "work" / "recover-2" / "checkpoint.safetensors").unlink()
    again = opened("mixed", noise())
    record = step.run(again)
    assert len(record.epochs) == 2
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state().items())


def test_a_goal_out_of_reach_names_the_nearest(opened):
    with pytest.raises(
        UsageError, match=r"5% of the multiply–accumulates cannot be reached: at most, \d+\.\d% are left"
    ):
        Prune(macs=0.05, most=0.5).run(opened("mixed"))


def test_a_model_that_cannot_be_traced(opened):
    with pytest.raises((ModelError, UsageError), match=r"traced|no channels that can be pruned"):
        Prune().run(opened("untraceable"))


def test_it_is_refused_before_a_long_training_and_says_what_to_change(opened, tmp_path):
    """Which fails for want of data where it begins: the refusal came before that."""
    opened("branching")  # writes the nets
    source = ModelSource(factory="nets_to_prune:branching", inputs={"x": (1, 3, 16, 16)})
    inputs = Inputs(None, None, None, None, tmp_path)

    def job(epochs: int) -> TrainingJob:
        return TrainingJob(source, None, Finetune(epochs=epochs), inputs, 0, tmp_path / "work", "key", tmp_path / "out")

    with pytest.raises(ModelError, match=r"torch\.export cannot trace the model") as caught:
        train_module(job(MANY_EPOCHS))
    assert re.search(r"nets_to_prune\.py:\d+", caught.value.where)
    assert "torch.where" in caught.value.hint
    with pytest.raises(DataError, match="needs training data"):
        train_module(job(MANY_EPOCHS - 1))


def test_a_pattern_without_a_layer(opened):
    with pytest.raises(UsageError, match=r"'nothing\.\*' matches no layer"):
        Prune(leave=("nothing.*",)).run(opened("mixed"))


def test_the_same_module_without_changes(opened):
    module = opened("mixed").loaded.module
    numbers = torch_structure.numbers(module)
    assert torch_structure.changed(numbers, numbers) == {}
    assert numbers["stem.0"]["out_channels"] == 32


# --- sparsity


def test_two_of_four_are_kept_through_training(opened, tmp_path):
    work = opened("mixed", noise())
    record = Sparsify(pattern="2:4", epochs=1, batch=16).run(work)
    weight = work.loaded.module.side[0].weight.detach()
    groups = (weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1)
    assert groups.max() <= 2
    assert record.sparsity["side.0"] == pytest.approx(0.5, abs=0.01)
    assert "stem.0" not in record.sparsity
    assert "head" not in record.sparsity
    write_module(tmp_path / "module.safetensors", work.model, work.changes())
    later = opened("mixed", noise(), trained=tmp_path / "module.safetensors")
    Finetune(epochs=2, batch=16, lr=1e-3).run(later)
    tuned = later.loaded.module.side[0].weight.detach()
    assert torch.equal(tuned != 0, weight != 0)
    assert not torch.equal(tuned, weight)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_unstructured_sparsity(opened, scope):
    work = opened("mixed")
    record = Sparsify(sparsity=0.75, scope=scope).run(work)
    weights = [work.loaded.module.get_parameter(f"{name}.weight") for name in record.sparsity]
    assert sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights) == pytest.approx(0.75, abs=0.01)
    if scope == "layer":
        assert all(share == pytest.approx(0.75, abs=0.01) for share in record.sparsity.values())
    assert any("tflite" in note for note in record.notes)


def test_nm_that_leaves_nothing_out(opened):
    with pytest.raises(UsageError, match="leaves nothing out"):
        Sparsify(pattern="4:4").run(opened("mixed"))


def test_loaded_is_in_eval_mode_after_training(opened):
    work = opened("mixed", noise())
    Finetune(epochs=1, batch=16).run(work)
    assert isinstance(work.loaded, Loaded)
    assert not any(inner.training for inner in work.loaded.module.modules() if isinstance(inner, torch.nn.Module))
