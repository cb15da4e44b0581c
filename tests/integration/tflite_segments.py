"""Segments of a written TFLite file, each on the integers of the reference, compared with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt.formats import tflite
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.runtimes import litert, onnxruntime


def steps_off(
    graph: QuantizedGraph, path: Path, feeds: Iterable[dict[str, np.ndarray]], *, delegate: bool = True
) -> dict[str, np.ndarray]:
    """Tensor name → absolute difference in steps of every value, over all feeds; every tensor that the file has."""
    reference = to_qdq(graph, expose_integers=True)
    model = tflite.read(path)
    layouts, index_of = tflite.layouts(model), model.names()
    cut = tflite.cut(model, graph.quantization.activations)

    def layout(name: str) -> tflite.Layout | None:
        return layouts.get(model.tensors[tflite.integers_of(model, name, index_of)].name)

    off: dict[str, list[np.ndarray]] = {}
    with (
        onnxruntime.Session(ir.to_proto(reference).SerializeToString(), optimize=False) as wanted,
        litert.Session(cut.data, delegate=delegate) as found,
    ):
        for feed in feeds:
            integers = wanted.run(feed)
            given = {name: in_file(array, layouts.get(name), found.inputs[name].shape) for name, array in feed.items()}
            for name, label in cut.consumed.items():
                given[label] = in_file(integers[name + INTEGERS_SUFFIX], layout(name), found.inputs[label].shape)
            written = found.run(given)
            for name, label in cut.produced.items():
                there = layout(name)
                array = written[label] if there is None else there.to_graph(written[label])
                exact = integers[name + INTEGERS_SUFFIX].astype(np.int32)
                off.setdefault(name, []).append(np.abs(array.reshape(exact.shape).astype(np.int32) - exact).ravel())
    return {name: np.concatenate(parts) for name, parts in off.items()}


def in_file(array: np.ndarray, layout: tflite.Layout | None, shape: tuple[int, ...]) -> np.ndarray:
    return array.reshape(shape) if layout is None else layout.to_file(array, shape)


def run_both(
    graph: QuantizedGraph, path: Path, feed: dict[str, np.ndarray], *, delegate: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per output: float model's values and the file's, in the graph's layout."""
    layouts = tflite.layouts(tflite.read(path))
    with (
        onnxruntime.Session(ir.to_proto(graph.model).SerializeToString(), optimize=False) as wanted,
        litert.Session(path, delegate=delegate) as found,
    ):
        exact = wanted.run(feed)
        given = {name: in_file(array, layouts.get(name), found.inputs[name].shape) for name, array in feed.items()}
        written = found.run(given)
    pairs = []
    for name, array in exact.items():
        there = layouts.get(name)
        pairs.append((array, written[name] if there is None else there.to_graph(written[name])))
    return pairs
