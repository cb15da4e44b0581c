"""What every target does with a graph: reads it, writes one file from it, and says truly what stands there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import PASSES, canonicalise
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.base import Target
from edgeopt.types import Preprocess, SchemeName
from tests.contracts.catalogue import TARGETS
from tests.integration.minmax_table import minmax_table

SCHEMES: tuple[SchemeName, ...] = ("fp32", "fp16", "int8", "int8-weights", "int8-dynamic")
every_target = pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.__name__)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def imported() -> ir.Model:
    """Two convolutions, one depthwise, a skip connection, a mean and a Gemm: image [1, 3, 8, 8] → logits [1, 5]."""
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[1,3,8,8] image, float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[8,5] w3)
            => (float[1,5] logits) {
            c1 = Conv <pads = [1,1,1,1]> (image, w1, b1)
            a1 = Relu (c1)
            c2 = Conv <pads = [1,1,1,1], group = 8> (a1, w2, b2)
            s = Add (a1, c2)
            p = GlobalAveragePool (s)
            f = Flatten (p)
            logits = MatMul (f, w3)
        }
        """
    )
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        array = random.normal(size=tuple(value.shape.numpy())).astype(np.float32) / 3
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def feeds(count: int = 8) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"image": random.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def canonical(tmp_path: Path) -> ir.Model:
    return canonicalise(QuantizedGraph(imported()), Context(scratch=tmp_path)).model


def table(scheme: SchemeName, tmp_path: Path) -> QuantizedGraph:
    return minmax_table(canonical(tmp_path), feeds(), scheme=scheme)


def content(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def lowered(kind: type[Target], graph: QuantizedGraph, out: Path):
    out.mkdir()
    return kind().lower(graph, out, preprocess=Preprocess(resize=8, crop=8), labels=tuple("abcde"))


@pytest.mark.parametrize("one", PASSES, ids=lambda one: one.use)
def test_a_canonicalising_pass_leaves_a_canonical_graph_as_it_is(one, tmp_path):
    context = Context(scratch=tmp_path)
    model = canonical(tmp_path)
    before = content(model)
    assert content(one.run(QuantizedGraph(model), context).model) == before


def test_canonicalising_keeps_the_function(tmp_path):
    model, source = canonical(tmp_path), imported()
    with Session(content(source)) as wanted, Session(content(model)) as found:
        for feed in feeds():
            np.testing.assert_allclose(found.run(feed)["logits"], wanted.run(feed)["logits"], rtol=1e-4, atol=1e-5)


@every_target
@every_scheme
def test_lower_writes_what_it_says_and_leaves_the_graph_alone(kind, scheme, tmp_path):
    graph = table(scheme, tmp_path)
    before = content(graph.model)
    out = tmp_path / "out"
    artifact = lowered(kind, graph, out)
    assert content(graph.model) == before

    written = out / artifact.path
    assert not Path(artifact.path).is_absolute()
    assert written.is_file()
    assert artifact.target == kind.name
    assert artifact.size_bytes == written.stat().st_size
    assert artifact.digest == hashlib.sha256(written.read_bytes()).hexdigest()
    assert [one.name for one in artifact.signature.inputs] == [artifact.names.get("image", "image")]
    assert [one.name for one in artifact.signature.outputs] == [artifact.names.get("logits", "logits")]


@every_target
@every_scheme
def test_the_same_graph_gives_the_same_bytes(kind, scheme, tmp_path):
    graph = table(scheme, tmp_path)
    first, second = (lowered(kind, graph, tmp_path / name) for name in ("first", "second"))
    assert first.digest == second.digest


@every_target
def test_precision_is_read_back(kind, tmp_path):
    integers = lowered(kind, table("int8", tmp_path), tmp_path / "int8")
    assert integers.realised.unasked_float == ()
    assert sum(integers.realised.int8_ops.values()) >= 3

    floats = lowered(kind, table("fp32", tmp_path), tmp_path / "fp32")
    assert floats.realised.int8_ops == {}

    # the file is the witness, not the graph: a float file does not become int8 by being asked about an int8 graph
    asked = kind().realised(tmp_path / "fp32" / floats.path, table("int8", tmp_path))
    assert len(asked.unasked_float) == 3


def test_the_reference_runs_the_table(tmp_path):
    graph = table("int8", tmp_path)
    reference = to_qdq(graph)
    with (
        Session(content(graph.model)) as exact,
        Session(content(reference), optimize=False) as rounded,
    ):
        for feed in feeds():
            wanted, found = exact.run(feed)["logits"], rounded.run(feed)["logits"]
            assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max() + 0.05
