"""Two files carry the same integers only if every integer agrees, not the scales alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.pipeline.integers import Carried, carried, same_integers, same_weights
from edgeopt.targets.onnx import Onnx
from edgeopt.targets.tflite.target import TfliteTarget
from tests.integration.minmax_table import minmax_table
from tests.integration.small_nets import classifier, samples


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    model = classifier()
    graph = minmax_table(model, samples(model, 8))
    found = {}
    for name, target in (("onnx", Onnx()), ("uint8", Onnx(weights="uint8")), ("tflite", TfliteTarget())):
        folder = tmp_path / name
        folder.mkdir()
        found[name] = folder / target.lower(graph, folder).path
    return found


def read(files: dict[str, Path]) -> dict[str, Carried]:
    return {name: carried(path) for name, path in files.items()}


def test_files_of_one_table_are_the_same(files: dict[str, Path]) -> None:
    assert same_integers(read(files)) == {
        "onnx": ("uint8", "tflite"),
        "uint8": ("onnx", "tflite"),
        "tflite": ("onnx", "uint8"),
    }


def test_one_other_integer_is_another_model(files: dict[str, Path]) -> None:
    model = onnx.load(files["onnx"])
    (weight, *_) = (t for t in model.graph.initializer if len(t.dims) == 4 and t.data_type in (2, 3))
    integers = numpy_helper.to_array(weight).copy()
    integers.reshape(-1)[0] += np.array(1, integers.dtype)
    weight.CopyFrom(numpy_helper.from_array(integers, weight.name))
    onnx.save(model, files["onnx"])
    assert same_integers(read(files)) == {"onnx": (), "uint8": ("tflite",), "tflite": ("uint8",)}
    assert same_weights(read(files)) == {"onnx": (), "uint8": ("tflite",), "tflite": ("uint8",)}


def test_other_grids_of_the_same_weights_are_told_apart(files: dict[str, Path]) -> None:
    model = onnx.load(files["onnx"])
    (scale,) = (t for t in model.graph.initializer if t.name == "pointwise_out__scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(2), scale.name))
    onnx.save(model, files["onnx"])
    assert same_integers(read(files)) == {"onnx": (), "uint8": ("tflite",), "tflite": ("uint8",)}
    assert same_weights(read(files))["onnx"] == ("uint8", "tflite")
