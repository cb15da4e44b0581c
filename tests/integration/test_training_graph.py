"""A canonical graph in torch: the same function, the same grid, the same integers as the files that targets write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import UnsupportedOperator, UsageError
from edgeopt.graph import overflow
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import INT8_MAX, INT8_MIN, QuantizedGraph
from edgeopt.graph.read_qdq import read_qdq
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.onnx import Onnx
from edgeopt.targets.registry import all_constraints

torch = pytest.importorskip("torch", reason="torch is not installed")

from edgeopt.training.data import ArraySet  # noqa: E402
from edgeopt.training.graph_module import GraphModule, on_grid  # noqa: E402
from edgeopt.training.program import Program, read_program  # noqa: E402
from edgeopt.training.qat import Qat, TrainingContext  # noqa: E402

from .minmax_table import minmax_table  # noqa: E402
from .small_nets import Net, attention, classifier, detector, samples  # noqa: E402

NETS = [classifier, detector, attention]
CONSTRAINTS = all_constraints()


def table_of(build) -> QuantizedGraph:
    model = build()
    return minmax_table(model, samples(model, 8), constraints=CONSTRAINTS)


def program_of(graph: QuantizedGraph) -> Program:
    return read_program(graph.model, graph.quantization, CONSTRAINTS.equal_scales)


def tensors(feed: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}


@pytest.mark.parametrize("build", NETS)
def test_the_float_graph_computes_the_same(build):
    model = build()
    module = GraphModule(read_program(model, None))
    with Session(ir.to_proto(model).SerializeToString(), optimize=False) as session, torch.no_grad():
        for feed in samples(model, 3):
            for name, expected in session.run(feed).items():
                np.testing.assert_allclose(module(tensors(feed))[name].numpy(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("build", [classifier, detector])
def test_a_batch_gives_what_its_samples_give(build):
    module = GraphModule(program_of(table_of(build)))
    feeds = samples(build(), 4)
    batch = {name: torch.from_numpy(np.concatenate([feed[name] for feed in feeds])) for name in feeds[0]}
    with torch.no_grad():
        together = module(batch)
        for index, feed in enumerate(feeds):
            for name, value in module(tensors(feed)).items():
                assert torch.allclose(together[name][index : index + 1], value, atol=0.2)  # a value may round apart


@pytest.mark.parametrize("build", NETS)
def test_every_segment_is_within_one_step_of_the_integer_reference(build):
    """Every rounded tensor, computed from the reference's own integers before it."""
    graph = table_of(build)
    table = graph.quantization
    module = GraphModule(program_of(graph))
    reference = to_qdq(graph, expose_integers=True)
    differing, count = 0, 0
    with Session(ir.to_proto(reference).SerializeToString(), optimize=False) as session, torch.no_grad():
        for feed in samples(graph.model, 4, seed=3):
            integers = {
                name.removesuffix(INTEGERS_SUFFIX): value
                for name, value in session.run(feed).items()
                if name.endswith(INTEGERS_SUFFIX)
            }
            exact = {name: table.activations[name].dequantize(value) for name, value in integers.items()}
            with module.exposing(tensors(exact)) as seen:
                module(tensors(feed))
            made_here = {name for op in rounding(module) for name in op.outputs}
            compared = [name for name in integers if name in seen and name in made_here]
            assert compared
            for name in compared:
                params = table.activations[name]
                made = params.quantize(seen[name].numpy()).astype(int)
                steps = np.abs(made - integers[name].astype(int))
                assert steps.max() <= 1, name
                differing += int((steps > 0).sum())
                count += steps.size
    assert differing <= 0.005 * count


def rounding(module: GraphModule):
    return [op for op in module._program.ops if op.rounded]


@pytest.mark.parametrize("build", NETS)
def test_nothing_trained_gives_the_table_back(build):
    graph = table_of(build)
    trained = GraphModule(program_of(graph)).trained()
    table = graph.quantization
    for name, (integers, scale) in trained.weights.items():
        assert np.array_equal(integers, table.weights[name].integers)
        assert np.array_equal(scale, table.weights[name].params.scale)
    for name, integers in trained.biases.items():
        assert np.array_equal(integers, table.biases[name])
    for name, scale in trained.scales.items():
        assert np.array_equal(scale, table.activations[name].scale)


def train(build, tmp_path: Path, table_of=table_of, **options) -> tuple[QuantizedGraph, QuantizedGraph]:
    """The graph before and after a short training on noise."""
    before, after = table_of(build), table_of(build)
    rng = np.random.default_rng(0)
    shapes = {value.name: tuple(value.shape.numpy()) for value in after.model.graph.inputs}
    arrays = {name: rng.normal(0, 1, (32, *shape[1:])).astype(np.float32) for name, shape in shapes.items()}
    labels = rng.integers(0, 10, 32)
    context = TrainingContext(
        tmp_path,
        constraints=CONSTRAINTS,
        training=lambda: ArraySet(arrays, labels, "noise"),
        root=tmp_path,
        checkpoints=tmp_path / "checkpoints",
    )
    return before, Qat(**{"epochs": 2, "batch": 8, "lr": 3e-3} | options).run(after, context)


def test_what_was_trained_is_what_the_file_holds(tmp_path):
    """Weights, biases and scales of the forward pass and of the written ONNX file: equal, to the bit."""
    before, after = train(classifier, tmp_path)
    table = after.quantization
    module = GraphModule(read_program(after.model, table, CONSTRAINTS.equal_scales))
    found = module.trained()
    moved = [name for name, params in table.activations.items() if params != before.quantization.activations[name]]
    assert moved
    assert any(
        not np.array_equal(weight.integers, before.quantization.weights[name].integers)
        for name, weight in table.weights.items()
    )
    written = read_qdq(to_qdq(after))
    assert len(written.weights) == len(found.weights)
    for weight in written.weights.values():
        assert any(
            np.array_equal(weight.integers, integers) and np.array_equal(weight.params.scale, scale)
            for integers, scale in found.weights.values()
        )
    for name, params in written.activations.items():
        assert np.array_equal(params.scale, found.scales[name.removesuffix("__float")])
    artifact = Onnx(weights="int8", activations="int8").lower(after, tmp_path)
    stored = [value.const_value.numpy() for value in ir.load(tmp_path / artifact.path).graph.initializers.values()]
    for integers in (*(pair[0] for pair in found.weights.values()), *found.biases.values()):
        assert any(array.dtype == integers.dtype and np.array_equal(array, integers) for array in stored)
    for name, integers in found.biases.items():
        assert np.array_equal(integers, table.biases[name])


def test_tensors_that_share_a_grid_still_do_after_training(tmp_path):
    _, after = train(classifier, tmp_path)
    table = after.quantization
    (cat,) = (node for node in after.model.graph if node.op_type == "Concat")
    grids = [table.activations[value.name] for value in (*cat.inputs, *cat.outputs)]
    assert all(grid == grids[0] for grid in grids)


def test_ranges_can_stay(tmp_path):
    before, after = train(classifier, tmp_path, learn_ranges=0)
    assert after.quantization.activations == before.quantization.activations
    assert after.quantization.weights != before.quantization.weights


def test_a_graph_without_a_module_teaches_itself(tmp_path):
    """A model that came as ONNX: its float graph is the teacher."""
    _, after = train(classifier, tmp_path, distill={"mix": 1.0})
    (line,) = (kept for kept in after.record if "quantization-aware" in kept.what)
    assert {"loss of teacher logits"} <= set(line.details["epochs"][0])


def test_a_sparse_weight_stays_sparse(tmp_path):
    def sparse() -> ir.Model:
        model = classifier()
        value = model.graph.initializers["wide.weight"]
        array = value.const_value.numpy().copy()
        array[:, ::2] = 0
        value.const_value = ir.tensor(array, name="wide.weight")
        return model

    _, after = train(sparse, tmp_path)
    assert not after.quantization.weights["wide.weight"].integers[:, ::2].any()
    assert after.quantization.weights["wide.weight"].integers[:, 1::2].any()


def test_pairs_that_were_safe_stay_safe(tmp_path):
    """However far weights are trained, and the file holds what the forward pass computed with."""

    def fixed(build) -> QuantizedGraph:
        model = build()
        context = Context(tmp_path, samples(model, 12), CONSTRAINTS, effort="fast", threads=1)
        return Quantize(overflow_fix=True).run(QuantizedGraph(model), context)

    _, after = train(classifier, tmp_path, fixed, lr=3e-2)
    at_the_limit = 0
    for node in after.model.graph:
        weight = after.quantization.weights.get(node.inputs[1].name) if node.op_type in WEIGHTED else None
        if weight is not None:
            pairs = overflow.pairs(node.op_type, weight.integers.shape, node.attributes.get_int("group", 1))
            rows = weight.integers.reshape(len(weight.integers), -1).astype(int)
            assert not overflow.excess(rows, pairs).any()
            sums = np.abs(rows[:, pairs[:, 0]] + rows[:, pairs[:, 1]])
            at_the_limit += int((sums == overflow.PAIR_LIMIT).sum())
    assert at_the_limit > 10, "training pressed against the limit"
    again = GraphModule(program_of(after)).trained()
    for name, (integers, scale) in again.weights.items():
        assert np.array_equal(integers, after.quantization.weights[name].integers)
        assert np.array_equal(scale, after.quantization.weights[name].params.scale)


def test_a_program_survives_a_file(tmp_path):
    graph = table_of(detector)
    program = program_of(graph)
    program.save(tmp_path / "program.npz")
    again = Program.load(tmp_path / "program.npz")
    feed = tensors(samples(graph.model, 1)[0])
    with torch.no_grad():
        for name, value in GraphModule(program)(feed).items():
            assert torch.equal(GraphModule(again)(feed)[name], value)


def test_the_grid_is_the_tables():
    """Against numpy's own rounding: ties, both ends, and many ordinary values."""
    rng = np.random.default_rng(5)
    scale = np.float32(0.0371)
    values = np.concatenate([rng.normal(0, 3, 20000), (np.arange(-300, 300) + 0.5) * scale, [0.0, -0.0]])
    values = values.astype(np.float32)
    expected = (np.clip(np.rint(values / scale) + 7, INT8_MIN, INT8_MAX) - 7).astype(np.float32) * scale
    made = on_grid(torch.from_numpy(values), torch.tensor(scale), 7, INT8_MIN, INT8_MAX)
    assert np.array_equal(made.numpy(), expected)


def test_it_needs_a_table(tmp_path):
    with pytest.raises(UsageError, match="nothing quantized"):
        Qat().run(QuantizedGraph(classifier()), Context(tmp_path))


def test_an_unknown_operator_is_named():
    net = Net()
    net.add("Det", "odd", ["x"])
    model = net.model({"x": [1, 3, 3]}, {"odd": [1]})
    with pytest.raises(UnsupportedOperator, match=r"node 'odd'.*Det"):
        GraphModule(read_program(model, None))
