"""Two files carry the same integers only if every integer agrees, not the scales alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.pipeline.integers import same_integers
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


def test_files_of_one_table_are_the_same(files: dict[str, Path]) -> None:
    assert same_integers(files) == {
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
    assert same_integers(files) == {"onnx": (), "uint8": ("tflite",), "tflite": ("uint8",)}
