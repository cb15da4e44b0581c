"""The quantize pass on small nets: what the table promises to every target, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import DataError, UsageError
from edgeopt.graph import overflow
from edgeopt.graph.metrics import sqnr_db
from edgeopt.graph.placement import WEIGHTED, place
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.passes.base import Context, Feed
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.onnx import Onnx
from edgeopt.targets.registry import all_constraints

from .small_nets import attention, classifier, detector, samples

NETS = [classifier, detector, attention]


class Drawn:
    """Samples made when they are asked for, as files are read."""

    def __init__(self, model: ir.Model, count: int) -> None:
        self._shapes = {v.name or "": tuple(int(d) for d in v.shape.numpy()) for v in model.graph.inputs if v.shape}
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Feed]:
        for index in range(self._count):
            rng = np.random.default_rng(index)
            yield {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in self._shapes.items()}


def quantized(model: ir.Model, scratch: Path, count: int = 48, **options: object) -> QuantizedGraph:
    calibration = Drawn(model, count) if count else None
    effort = options.pop("effort", "fast")
    context = Context(scratch, calibration, all_constraints(), effort=effort, threads=1)  # type: ignore[arg-type]
    return Quantize.model_validate({"use": "quantize", **options}).run(QuantizedGraph(model), context)


def table_of(graph: QuantizedGraph) -> Quantization:
    assert graph.quantization is not None
    return graph.quantization


def fidelity_db(model: ir.Model, graph: QuantizedGraph) -> float:
    feeds = samples(model, 16, seed=99)
    outputs = []
    for one, optimize in ((model, True), (to_qdq(graph), False)):
        with Session(ir.to_proto(one).SerializeToString(), optimize=optimize) as session:
            outputs.append([np.concatenate([a.ravel() for a in session.run(feed).values()]) for feed in feeds])
    return sqnr_db(np.array(outputs[0]), np.array(outputs[1]))


@pytest.mark.parametrize("net", NETS)
def test_every_tensor_and_weight_that_int8_needs_is_in_the_table(net: Callable[[], ir.Model], tmp_path: Path) -> None:
    model = net()
    placement = place(model, constraints=all_constraints())
    graph = quantized(model, tmp_path)
    table = table_of(graph)
    assert set(placement.activations) <= set(table.activations)
    for group in placement.groups:
        assert len({(float(table.activations[n].scale), int(table.activations[n].zero_point)) for n in group}) == 1
    for name in placement.symmetric:
        assert int(table.activations[name].zero_point) == 0
    for node in graph.model.graph:
        if node.op_type in WEIGHTED:
            weight, bias = (value.name or "" for value in node.inputs[1:3] if value is not None)
            assert np.abs(table.weights[weight].integers.astype(int)).max() <= 127
            assert table.biases[bias].dtype == np.int32
    assert graph.record, "what was tried is said"


@pytest.mark.parametrize("net", NETS)
def test_it_is_better_than_rounding_to_nearest_on_full_ranges(net: Callable[[], ir.Model], tmp_path: Path) -> None:
    model = net()
    plain = {"ranges": "minmax", "equalize": "none", "rounding": "nearest", "bias_correction": False}
    best = fidelity_db(model, quantized(net(), tmp_path))
    assert best > fidelity_db(model, quantized(net(), tmp_path, **plain, input_lattice=False)) - 0.3
    assert best > 20


def test_the_float_graph_is_left_as_it_is(tmp_path: Path) -> None:
    model = classifier()
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    graph = quantized(model, tmp_path, input_lattice=False)
    for name, array in before.items():
        assert np.array_equal(graph.model.graph.initializers[name].const_value.numpy(), array), name  # type: ignore[union-attr]


def test_the_same_data_gives_the_same_table(tmp_path: Path) -> None:
    paths = []
    for index in range(2):
        path = tmp_path / f"{index}.npz"
        table_of(quantized(classifier(), tmp_path, effort="default")).save(path)
        paths.append(path.read_bytes())
    assert paths[0] == paths[1]


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    peaks = []
    for count in (200, 1200):
        tracemalloc.start()
        quantized(classifier(), tmp_path, count=count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.1


def test_images_on_256_levels_are_quantized_exactly(tmp_path: Path) -> None:
    model = classifier()
    name, shape = model.graph.inputs[0].name or "", model.graph.inputs[0].shape

    class Images:
        def __len__(self) -> int:
            return 48

        def __iter__(self) -> Iterator[Feed]:
            for index in range(48):
                pixels = np.random.default_rng(index).integers(0, 256, [int(d) for d in shape.numpy()])  # type: ignore[union-attr]
                yield {name: ((pixels / 255 - 0.45) / 0.22).astype(np.float32)}

    context = Context(tmp_path, Images(), all_constraints(), effort="fast", threads=1)
    graph = Quantize(use="quantize", input_lattice=True).run(QuantizedGraph(model), context)
    (levels,) = [n for n in table_of(graph).activations if n.endswith("__levels")]
    exposed = graph.model.clone()
    exposed.graph.outputs.append(next(v for n in exposed.graph for v in n.outputs if v.name == levels))
    with Session(ir.to_proto(exposed).SerializeToString()) as session:
        made = session.run(next(iter(Images())))[levels]
    params = table_of(graph).activations[levels]
    inner = made[:, :, 1:-1, 1:-1]  # the padding around the image is no pixel
    assert np.abs(params.dequantize(params.quantize(inner)) - inner).max() < 1e-3


def test_int8_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="calibration"):
        quantized(classifier(), tmp_path, count=0)


@pytest.mark.parametrize("scheme", ["int8-weights", "int8-dynamic"])
def test_weights_alone_need_no_data(scheme: str, tmp_path: Path) -> None:
    model = classifier()
    graph = quantized(model, tmp_path, count=0, scheme=scheme)
    assert table_of(graph).weights
    assert not table_of(graph).biases
    assert fidelity_db(model, graph) > 25


def test_patterns_keep_layers_in_float_and_one_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    graph = quantized(classifier(), tmp_path, keep_float=["logits"])
    node = next(node for node in graph.model.graph if node.name == "logits")
    assert table_of(graph).scheme(node) == "fp32"
    assert node.inputs[1] is not None
    assert node.inputs[1].name not in table_of(graph).weights
    with pytest.raises(UsageError, match="nothing_like_it"):
        quantized(classifier(), tmp_path, keep_float=["nothing_like_it*"])


def test_one_scale_per_weight_is_told_with_what_it_costs(tmp_path: Path) -> None:
    graph = quantized(classifier(), tmp_path, weights="per-tensor")
    weight = next(iter(table_of(graph).weights.values()))
    assert len(np.unique(weight.params.scale)) == 1
    assert any("dB" in warning and "one scale per weight" in warning for warning in graph.warnings)


@pytest.mark.parametrize("net", NETS)
def test_the_overflow_fix_leaves_no_unsafe_pair(net: Callable[[], ir.Model], tmp_path: Path) -> None:
    graph = quantized(net(), tmp_path, overflow_fix=True)
    table = table_of(graph)
    weighted = [node for node in graph.model.graph if node.op_type in WEIGHTED and table.scheme(node) == "int8"]
    assert weighted
    for node in weighted:
        assert node.inputs[1] is not None
        integers = table.weights[node.inputs[1].name or ""].integers
        assert overflow.is_safe(integers, node.op_type, node.attributes.get_int("group", 1)), node.name
    realised = Onnx(weights="int8").lower(graph, tmp_path).realised
    assert realised is not None
    assert not any("can saturate" in text for text in realised.leftovers), "safe weights are exact everywhere"


def test_what_the_overflow_fix_costs_is_told(tmp_path: Path) -> None:
    (line,) = (
        kept for kept in quantized(classifier(), tmp_path, effort="default").record if "overflow" in kept.what[:16]
    )
    assert line.brought_db is not None
    assert line.kept == (line.brought_db > 0.3 and "dB" in line.why)


def test_the_overflow_fix_is_not_for_another_engine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="overflow_fix"):
        quantized(classifier(), tmp_path, overflow_fix=True, engine="nncf")


def test_few_samples_are_enough_to_fit_and_too_few_to_choose(tmp_path: Path) -> None:
    graph = quantized(classifier(), tmp_path, count=3)
    assert len(graph.record) == 1
    assert "too few" in graph.record[0].why


def test_nncf_as_the_engine_lands_in_the_same_table(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    model = classifier()
    graph = quantized(model, tmp_path, engine="nncf")
    table = table_of(graph)
    assert set(place(model, constraints=all_constraints()).activations) <= set(table.activations)
    assert "nncf" in table.labels.values()
    assert fidelity_db(model, graph) > 15
    with pytest.raises(UsageError, match="nncf"):
        quantized(classifier(), tmp_path, engine="nncf", scheme="int8-weights")
