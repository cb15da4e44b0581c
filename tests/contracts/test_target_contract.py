"""What every target does with a graph: reads it, writes one file from it, and says truly what stands there."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from edgeopt import digest
from edgeopt.errors import UsageError
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.runners import runnable
from edgeopt.pipeline import confidence
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.base import Target
from edgeopt.types import Confidence, Metadata, Preprocess, SchemeName
from tests.contracts.catalogue import TARGETS
from tests.contracts.net import canonical, content, feeds
from tests.integration.minmax_table import minmax_table

SURE = Confidence(temperature=1.3, threshold=0.62, coverage=0.9, error=0.01, max_error=0.01, samples=200)
SCHEMES: tuple[SchemeName, ...] = ("fp32", "fp16", "int8", "int8-weights", "int8-dynamic")
every_target = pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.__name__)
every_pair = pytest.mark.parametrize(
    ("kind", "scheme"),
    [(kind, scheme) for kind in TARGETS for scheme in SCHEMES if scheme in kind.schemes],
    ids=lambda one: getattr(one, "__name__", one),
)


def table(scheme: SchemeName, tmp_path: Path) -> QuantizedGraph:
    return minmax_table(canonical(tmp_path), feeds(), scheme=scheme)


def lowered(kind: type[Target], graph: QuantizedGraph, out: Path):
    out.mkdir()
    told = Metadata(preprocess=Preprocess(resize=8, crop=8), labels=tuple("abcde"), confidence=SURE)
    return kind().lower(graph, out, told)


@every_target
def test_a_scheme_that_the_format_has_not_is_refused_before_work(kind):
    everything = frozenset(get_args(SchemeName))
    kind().check_schemes(kind.schemes)
    for scheme in everything - kind.schemes:
        with pytest.raises(UsageError, match=scheme):
            kind().check_schemes(frozenset({scheme}))


@every_pair
def test_lower_writes_what_it_says_and_leaves_the_graph_alone(kind, scheme, tmp_path):
    graph = table(scheme, tmp_path)
    before = content(graph.model)
    out = tmp_path / "out"
    artifact = lowered(kind, graph, out)
    assert content(graph.model) == before

    written, run_here = out / artifact.path, runnable(out, artifact)
    assert not Path(artifact.path).is_absolute()
    assert run_here.exists()
    assert artifact.target == kind.name
    assert artifact.size_bytes == digest.size_bytes(run_here)
    assert artifact.digest == digest.of_path(written)
    assert [one.name for one in artifact.signature.inputs] == [artifact.names.get("image", "image")]
    assert [one.name for one in artifact.signature.outputs] == [artifact.names.get("logits", "logits")]


@every_target
def test_confidence_travels_in_the_file(kind, tmp_path):
    artifact = lowered(kind, table("int8", tmp_path), tmp_path / "out")
    assert confidence.read(runnable(tmp_path / "out", artifact)) == SURE == artifact.confidence


@every_pair
def test_the_same_graph_gives_the_same_bytes(kind, scheme, tmp_path):
    graph = table(scheme, tmp_path)
    first, second = (lowered(kind, graph, tmp_path / name) for name in ("first", "second"))
    assert first.digest == second.digest


@every_target
def test_precision_is_read_back(kind, tmp_path):
    integers = lowered(kind, table("int8", tmp_path), tmp_path / "int8")
    assert integers.realised.unasked_float == ()
    assert sum(integers.realised.int8_ops.values()) >= 4

    floats = lowered(kind, table("fp32", tmp_path), tmp_path / "fp32")
    assert floats.realised.int8_ops == {}

    # the file is the witness, not the graph: a float file does not become int8 by being asked about an int8 graph
    asked = kind().realised(tmp_path / "fp32" / floats.path, table("int8", tmp_path))
    assert len(asked.unasked_float) == 4


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
