"""What was trained on the graph, in the user's own module: the same outputs, the same keys, or a name and nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from edgeopt.frontends.torch_loading import Loaded  # noqa: E402
from edgeopt.graph.quantization import QuantizedGraph  # noqa: E402
from edgeopt.passes.quantize.quantize import Quantize  # noqa: E402
from edgeopt.targets.registry import all_constraints  # noqa: E402
from edgeopt.training.base import write_module  # noqa: E402
from edgeopt.training.data import ArraySet  # noqa: E402
from edgeopt.training.exported import exported  # noqa: E402
from edgeopt.training.graph_module import GraphModule  # noqa: E402
from edgeopt.training.program import read_program  # noqa: E402
from edgeopt.training.qat import Qat, TrainingContext, keep_module  # noqa: E402
from edgeopt.training.work import open_work  # noqa: E402
from edgeopt.training.write_back import _apart, load_into  # noqa: E402

from .minmax_table import minmax_table  # noqa: E402
from .small_nets import Net as Graph  # noqa: E402

NETS = """
import torch
from torch import nn
from torch.nn import functional

class Block(nn.Sequential):
    def __init__(self, i, o, s=1, g=1, bias=False):
        super().__init__(nn.Conv2d(i, o, 3, s, 1, groups=g, bias=bias), nn.BatchNorm2d(o), nn.ReLU(inplace=True))

class Whole(nn.Module):
    '''BatchNorm behind convolutions with and without bias, transposed and depthwise ones, a linear layer, and nothing;
    a residual; a layer without BatchNorm.'''
    def __init__(self):
        super().__init__()
        self.stem = Block(3, 8)
        self.depthwise = Block(8, 8, g=8, bias=True)
        self.a, self.b = Block(8, 16), nn.Conv2d(16, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.down = Block(8, 12, s=2)
        self.up, self.up_norm = nn.ConvTranspose2d(12, 6, 2, 2, groups=2, bias=False), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Linear(6 * 16, 12, bias=False), nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.depthwise(self.stem(x))
        x = functional.relu(self.norm(x + self.b(self.a(x))))
        x = functional.relu(self.up_norm(self.up(self.down(x))))
        x = functional.avg_pool2d(x, 2).flatten(1)
        return self.head(functional.relu(self.inner_norm(self.inner(x))))

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return functional.relu(self.again(functional.relu(self.again(x))))

class Scaled(nn.Module):
    '''A scale of the user's own, which the graph does not have.'''
    def __init__(self):
        super().__init__()
        self.second, self.third = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.bare = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.rand(1, 3, 1, 1) + 0.5)

    def forward(self, x):
        return functional.relu(self.third(functional.relu(self.second(x)) * self.scale))

def seeded(kind):
    torch.manual_seed(0)
    module = kind()
    for inner in module.modules():
        if isinstance(inner, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(inner.weight, 0.2, 2.0)
            nn.init.uniform_(inner.bias, -0.5, 0.5)
            nn.init.uniform_(inner.running_mean, -0.5, 0.5)
            nn.init.uniform_(inner.running_var, 0.3, 3.0)
    return module.eval()

def whole(): return seeded(Whole)
def twice(): return seeded(Twice)
def scaled(): return seeded(Scaled)
"""


@pytest.fixture(autouse=True)
def no_trace_log():
    """pytest listens at every level, and then torch's exporter writes its trace log: a hundred times the work."""
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


class Net:
    """A factory in a folder, trained for int8 on noise."""

    def __init__(self, root: Path, name: str) -> None:
        (root / "nets_to_write_back.py").write_text(NETS)
        self.root, self.out = root, root / "out"
        self.request = {
            "factory": f"nets_to_write_back:{name}", "root": str(root), "weights": None, "trained": None,
            "inputs": {"x": [1, 3, 8, 8]},
        }  # fmt: skip
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (32, 3, 8, 8)) / 255  # whose normalisation the quantizer moves into the graph
        mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in ((0.45, 0.5, 0.4), (0.2, 0.25, 0.22)))
        self.images = ((pixels - mean) / std).astype(np.float32)
        self.labels = rng.integers(0, 4, 32)

    def data(self) -> ArraySet:
        return ArraySet({"x": self.images}, self.labels, "noise")

    def train(self, quantize: bool = False) -> QuantizedGraph:
        """With the pass ``quantize``, which scales channels against each other, or a table of minima and maxima."""
        context = TrainingContext(
            self.root,
            constraints=all_constraints(),
            calibration=[{"x": image[None]} for image in self.images[:16]],
            training=self.data,
            module=self.request,
            module_folder=self.out,
            root=self.root,
            checkpoints=self.root / "checkpoints",
            threads=1,
        )
        graph = QuantizedGraph(exported(Loaded(self.request)))
        if quantize:
            whole = Quantize(
                ranges="minmax", equalize="all", rounding="nearest", bias_correction=True, input_lattice=True
            )
            graph = whole.run(graph, context)
        else:
            graph = minmax_table(graph.model, context.calibration, constraints=context.constraints)
        return Qat(epochs=1, batch=8, lr=3e-3).run(graph, context)

    def factory(self):
        return Loaded({**self.request, "trained": None}).module

    def agrees(self, module, graph: QuantizedGraph) -> bool:
        feed = {"x": torch.from_numpy(self.images)}
        with torch.no_grad():
            (wanted,) = GraphModule(read_program(graph.model, None))(feed).values()
            found = module.eval()(feed["x"])
        return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Net, QuantizedGraph]:
    logging.disable(logging.DEBUG)
    net = Net(tmp_path_factory.mktemp("whole"), "whole")
    graph = net.train(quantize=True)
    logging.disable(logging.NOTSET)
    return net, graph


def test_the_module_computes_what_the_trained_graph_does(whole):
    net, graph = whole
    assert "x__levels" in graph.quantization.activations
    assert graph.record[-1].kept, graph.record[-1].why
    before, module = net.factory(), net.factory()
    assert not net.agrees(before, graph)
    state = torch.load(net.out / "module.pth", weights_only=True)
    module.load_state_dict(state)
    assert net.agrees(module, graph)
    own = before.state_dict()
    assert list(state) == list(own)
    assert all(torch.equal(state[name], own[name]) for name in own if "running" in name)
    assert [path.name for path in net.out.iterdir()] == ["module.pth"]


def test_it_can_go_on_being_trained(whole):
    """BatchNorm's weight follows what a channel was scaled with, so its statistics still mean something in training."""
    net, graph = whole
    module, own = load_into(net.factory(), net.out), net.factory()
    feed = torch.from_numpy(net.images)
    spreads = [spread(one, "down.0", feed) for one in (module, own)]
    assert torch.allclose(*spreads, rtol=0.3)
    assert net.agrees(module, graph)


def spread(module, name, feed):
    """Of a layer's output, per channel."""
    seen = []
    module.get_submodule(name).register_forward_hook(lambda layer, given, result: seen.append(result.clone()))
    with torch.no_grad():
        module(feed)
    return seen[0].transpose(0, 1).flatten(1).std(1)


def test_a_pruned_module_too(tmp_path):
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    from edgeopt.training.prune import Prune

    net = Net(tmp_path, "whole")
    work = open_work(net.request, None, folder=tmp_path / "work", identity="test", seed=3)
    Prune(macs=0.75).run(work)
    write_module(tmp_path / "module.safetensors", work.model, work.changes())
    net.request["trained"] = str(tmp_path / "module.safetensors")
    graph = net.train()
    assert graph.record[-1].kept, graph.record[-1].why
    module = load_into(net.factory(), net.out)
    assert net.agrees(module, graph)
    assert sum(map(torch.numel, module.parameters())) < sum(map(torch.numel, net.factory().parameters()))


@pytest.mark.parametrize(
    ("name", "layers", "said"),
    [
        ("scaled", ["second", "bare"], "'bare' has no bias and no BatchNorm"),
        ("scaled", ["second", "third"], "behind layer 'second' and in front of layer 'third'"),
        ("twice", ["again", "again__2"], "'again' is used more than once"),
        ("twice", ["again", "conv2d/Conv"], "'conv2d/Conv' of the graph is no layer of the module"),
    ],
)
def test_what_cannot_be_mapped_is_named_and_nothing_is_written(tmp_path, name, layers, said):
    graph, net = Graph(), Net(tmp_path, name)
    x = graph.add("Relu", "first", [graph.conv(layers[0], "x", 3, 3)])
    graph.add("Relu", "output", [graph.conv(layers[1], x, 3, 3)])
    model = graph.model({"x": [1, 3, 8, 8]}, {"output": [1, 3, 8, 8]})
    line = keep_module(model, net.request, net.out, net.data())
    assert not line.kept
    assert said in line.why
    assert not net.out.exists()


def test_an_output_that_is_no_number_is_never_the_same() -> None:
    nan, one = torch.tensor([1.0, float("nan")]), torch.ones(2)
    assert _apart(nan, one) == _apart(one, nan) == float("inf")
