"""Real models from other exporters, frameworks and years in the canonical form: the function stays, within float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from edgeopt.graph.model import shape
from tests.unit.canonical_form import assert_same_function, canonical, operators


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("imagenet/mobilenet_v1_075.onnx", {"Conv": 27, "Clip": 27, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1}),
        ("cifar10/resnet20.onnx", {"Conv": 19, "Relu": 19, "Add": 9, "GlobalAveragePool": 1, "Gemm": 1}),
        ("visual_wake_words/mobilenet_v1_025.onnx", {"Conv": 27, "Relu": 27, "GlobalAveragePool": 1, "Gemm": 1}),
        ("coco128/fastestdet.onnx", {"Conv": 70, "Slice": 26, "Reshape": 0, "Gather": 0, "Concat": 19}),
        ("faces/ultraface_rfb_320.onnx", {"Conv": 52, "BatchNormalization": 0, "Softmax": 1, "Gather": 0, "Shape": 0}),
    ],
)
def test_models_of_many_origins(bench_data: Path, file: str, expected: dict[str, int]) -> None:
    path = bench_data / file
    model = canonical(path)
    counts = Counter(operators(model))
    assert {op: counts[op] for op in expected} == expected
    assert_same_function(path, model, samples=1, tolerance=2e-5)
    assert all(shape(value)[0] == 1 for value in model.graph.inputs)
