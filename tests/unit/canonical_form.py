"""The canonical float graph, as assertions: ``edgeopt/passes/canonical.py`` says them in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.frontends.onnx import load_onnx
from edgeopt.graph.model import OPSET, constant, serialise, shape
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise
from edgeopt.runtimes.onnxruntime import Session

GONE = {"Constant", "Identity", "Dropout", "Flatten", "Squeeze", "Unsqueeze", "BatchNormalization", "Upsample", "Sum"}


def canonical(path: Path, inputs: dict[str, tuple[int, ...]] | None = None) -> ir.Model:
    """The file at ``path`` imported and brought into the canonical form, which is asserted."""
    graph = QuantizedGraph(load_onnx(path, inputs).model)
    model = canonicalise(graph, Context(scratch=path.parent)).model
    assert_canonical(model)
    return model


def assert_canonical(model: ir.Model) -> None:
    assert dict(model.opset_imports) == {"": OPSET}
    assert not model.functions
    graph = model.graph
    values = [v for node in graph for v in node.outputs if v.name]
    names = [v.name for v in [*graph.inputs, *values]] + list(graph.initializers)
    assert len(set(names)) == len(names)
    assert all(v.name not in graph.initializers for v in graph.inputs)
    assert len({node.name for node in graph}) == len(list(graph))
    assert all(node.name and node.op_type not in GONE for node in graph)
    for value in values:
        assert shape(value) is not None and value.dtype is not None
    for node in graph:
        assert not all(constant(v) is not None for v in node.inputs) or node.op_type == "Reshape", node
        if node.op_type in WEIGHTED:
            assert len(node.inputs) == 3 and constant(node.inputs[0]) is None
            for value in node.inputs[1:]:
                assert constant(value) is not None and len(value.uses()) == 1
        if node.op_type == "Gemm":
            assert {k: v.value for k, v in node.attributes.items()} == {"transB": 1}
            assert len(shape(node.inputs[0])) == 2
            assert shape(node.inputs[2]) == (shape(node.inputs[1])[0],)
        if node.op_type in {"Conv", "ConvTranspose", "MaxPool", "AveragePool"}:
            assert "pads" in node.attributes and "auto_pad" not in node.attributes
        if node.op_type in {"Reshape", "Slice"}:
            assert all(constant(v) is not None for v in node.inputs[1:])
        if node.op_type == "Clip":
            assert all(v is None or constant(v) is not None for v in node.inputs[1:])
    onnx.checker.check_model(serialise(model), full_check=True)


def random_feed(model: ir.Model, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        v.name: rng.normal(0, 1, shape(v)).astype(np.float32)
        if v.dtype == ir.DataType.FLOAT
        else rng.integers(0, 3, shape(v)).astype(v.dtype.numpy())
        for v in model.graph.inputs
    }


def assert_same_function(path: Path, model: ir.Model, *, samples: int = 2, tolerance: float = 2e-6) -> None:
    """The original file and the canonical graph agree on random inputs, outputs in the same order by name."""
    with Session(path, optimize=False) as source, Session(serialise(model), optimize=False) as result:
        assert list(source.outputs) == list(result.outputs)
        assert set(source.inputs) == set(result.inputs)
        for seed in range(samples):
            feed = random_feed(model, seed)
            wanted, got = source.run(feed), result.run(feed)
            for name, value in wanted.items():
                assert value.shape == got[name].shape
                assert value.dtype == got[name].dtype
                scale = max(float(np.abs(value).max()), 1e-6) if value.size else 1.0
                assert float(np.abs(value.astype(float) - got[name]).max(initial=0)) <= tolerance * scale, name


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]
