"""What every pass keeps to: the float graph's function is the source's, whatever is done to it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import DataError
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass
from edgeopt.passes.canonical import PASSES as CANONICAL
from edgeopt.passes.registry import PASSES
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.registry import all_constraints
from tests.contracts.net import canonical, content, feeds, imported

every_pass = pytest.mark.parametrize("kind", PASSES, ids=lambda kind: kind.__name__)


def answers(model: ir.Model) -> np.ndarray:
    """On other samples than calibration has seen, and larger ones: what holds on those alone is no equality."""
    with Session(content(model)) as session:
        return np.concatenate([session.run(feed)["logits"] for feed in feeds(seed=2, scale=3)])


def context(tmp_path, *, calibration=True) -> Context:
    samples = feeds() if calibration else None
    return Context(scratch=tmp_path, calibration=samples, constraints=all_constraints(), threads=1)


def test_canonicalising_keeps_the_function(tmp_path):
    np.testing.assert_allclose(answers(canonical(tmp_path)), answers(imported()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("one", CANONICAL, ids=lambda one: one.use)
def test_a_canonicalising_pass_leaves_a_canonical_graph_as_it_is(one, tmp_path):
    model = canonical(tmp_path)
    before = content(model)
    assert content(one.run(QuantizedGraph(model), context(tmp_path)).model) == before


@every_pass
def test_a_pass_keeps_the_function_of_the_float_graph(kind: type[Pass], tmp_path):
    """What it changes in the numbers belongs into the table: float targets, and every comparison, read the graph."""
    before = answers(canonical(tmp_path))
    graph = kind().run(QuantizedGraph(canonical(tmp_path)), context(tmp_path))
    np.testing.assert_allclose(answers(graph.model), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


@every_pass
def test_a_pass_keeps_names_and_order_of_inputs_and_outputs(kind: type[Pass], tmp_path):
    model = kind().run(QuantizedGraph(canonical(tmp_path)), context(tmp_path)).model
    assert [value.name for value in model.graph.inputs] == ["image"]
    assert [value.name for value in model.graph.outputs] == ["logits"]


@every_pass
def test_a_pass_repeats_exactly(kind: type[Pass], tmp_path):
    written = []
    for name in ("first", "second"):
        graph = kind().run(QuantizedGraph(canonical(tmp_path)), context(tmp_path))
        if graph.quantization is not None:
            graph.quantization.save(tmp_path / name)
            written.append((tmp_path / name).read_bytes())
        written.append(content(graph.model))
    half = len(written) // 2
    assert written[:half] == written[half:]


@every_pass
def test_a_pass_says_what_it_tried(kind: type[Pass], tmp_path):
    graph = kind().run(QuantizedGraph(canonical(tmp_path)), context(tmp_path))
    for kept in graph.record:
        assert kept.what
        assert kept.why


def test_int8_is_never_calibrated_on_nothing(tmp_path):
    (quantize,) = (kind for kind in PASSES if kind().use == "quantize")
    with pytest.raises(DataError, match="calibration"):
        quantize().run(QuantizedGraph(canonical(tmp_path)), context(tmp_path, calibration=False))
