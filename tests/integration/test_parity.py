"""Parity on real runtimes: right files pass, and each kind of wrong one is found and named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import DataError, ModelError, TargetError
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import tflite as tflite_format
from edgeopt.graph.quantization import QuantizedGraph, QuantizedTensor, QuantParams
from edgeopt.parity.compare import LevelReport
from edgeopt.parity.levels import check_artifact, check_quantization, check_source
from edgeopt.parity.models import compare_models
from edgeopt.parity.runners import open_file
from edgeopt.parity.tolerances import LOW_DB
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.base import Target
from edgeopt.targets.onnx import Onnx
from edgeopt.targets.tflite.target import TfliteTarget
from tests.integration.minmax_table import minmax_table
from tests.integration.small_nets import attention, classifier, detector, samples

every_target = pytest.mark.parametrize("target", [Onnx(), TfliteTarget()], ids=lambda target: target.name)
every_net = pytest.mark.parametrize("net", [classifier, detector, attention], ids=lambda net: net.__name__)


class Model:
    """A float graph as a frontend's source, with a change to its outputs if wanted."""

    def __init__(self, model: ir.Model, change: Callable[[np.ndarray], np.ndarray] = lambda array: array) -> None:
        self.data = ir.to_proto(model).SerializeToString()
        self.change = change

    def run(self, feeds: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        with Session(self.data) as session:
            for feed in feeds:
                yield {name: self.change(array) for name, array in session.run(feed).items()}


def quantized(model: ir.Model) -> QuantizedGraph:
    return minmax_table(model, samples(model, 16))


def rewritten(path: Path, change: Callable[[ir.Model], None]) -> None:
    model = ir.load(path)
    change(model)
    ir.save(model, path)


@every_target
@every_net
def test_a_right_artifact_passes_all_levels(target: Target, net: Callable[[], ir.Model], tmp_path: Path) -> None:
    model = net()
    graph = quantized(model)
    artifact = target.lower(graph, tmp_path)
    feeds = samples(model, 40, seed=8)
    source = check_source(Model(model), model, feeds)
    reference = check_quantization(graph, feeds)
    report = check_artifact(graph, artifact, tmp_path / artifact.path, feeds, reference=reference)
    assert source.failures == reference.failures == report.failures == ()
    assert source.sqnr_db > 120
    assert report.reference_sqnr_db == reference.sqnr_db > LOW_DB
    assert report.sqnr_db > reference.sqnr_db - 0.5
    assert report.lsb_max is not None and report.within_one_step is not None
    assert report.samples == 40
    assert all(segment.parity.values > 0 for segment in report.segments)


def test_a_conversion_that_changes_the_function_fails_l0() -> None:
    model = classifier()
    report = check_source(Model(model, lambda array: array * np.float32(1.001)), model, samples(model, 4))
    assert len(report.failures) == 1
    assert "'logits'" in report.failures[0]
    assert "9.99e-04" in report.failures[0]


def corrupt_scale(model: ir.Model) -> None:
    scale = next(v for v in model.graph.initializers.values() if v.name == "relu_skip_out__scale")
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(1.05), name=scale.name)


def transpose_weight(model: ir.Model) -> None:
    weight = model.graph.initializers["wide.weight__q"]
    swapped = np.ascontiguousarray(weight.const_value.numpy().transpose(0, 1, 3, 2))
    weight.const_value = ir.tensor(swapped, name=weight.name)


def shift_bias(model: ir.Model) -> None:
    bias = model.graph.initializers["last.bias__q"]
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.int32(4000), name=bias.name)


@pytest.mark.parametrize(
    ("change", "node"),
    [(corrupt_scale, "relu_skip"), (transpose_weight, "relu_wide"), (shift_bias, "relu_last")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_onnx_file_is_found_and_its_layer_named(
    change: Callable[[ir.Model], None], node: str, tmp_path: Path
) -> None:
    model = classifier()
    graph = quantized(model)
    artifact = Onnx().lower(graph, tmp_path)
    rewritten(tmp_path / artifact.path, change)
    report = check_artifact(graph, artifact, tmp_path / artifact.path, samples(model, 4))
    assert report.failures
    assert report.located is not None
    assert report.located.node == node
    assert f"node {node}" in report.failures[0]
    wrong = [segment.node for segment in report.segments if segment.failure is not None]
    if change is not corrupt_scale:  # what reads a tensor of another scale is wrong too
        assert wrong == [node], "its neighbours read the reference's integers and are right"


def test_a_wrong_tflite_file_is_found_and_its_layer_named(tmp_path: Path) -> None:
    model = classifier()
    graph = quantized(model)
    artifact = TfliteTarget().lower(graph, tmp_path)
    path = tmp_path / artifact.path
    stored = tflite_format.read(path)
    operator = next(
        operator
        for operator in stored.operators
        if any(stored.tensors[index].name == "relu_wide_out" for index in operator.outputs)
    )
    weight = stored.tensors[operator.inputs[1]]
    assert weight.data is not None
    tensors = list(stored.tensors)
    tensors[operator.inputs[1]] = replace(weight, data=np.ascontiguousarray(weight.data.transpose(0, 2, 1, 3)))
    path.write_bytes(tflite_format.write(replace(stored, tensors=tensors)))
    report = check_artifact(graph, artifact, path, samples(model, 4))
    assert report.located is not None
    assert report.located.node == "relu_wide"
    assert [segment.node for segment in report.segments if segment.failure is not None] == ["relu_wide"]


def test_noise_that_no_segment_explains_fails_end_to_end(tmp_path: Path) -> None:
    model = classifier()
    graph = quantized(model)
    artifact = Onnx().lower(graph, tmp_path)
    feeds = samples(model, 40, seed=8)
    better = check_quantization(graph, feeds).model_copy(update={"sqnr_db": 60.0})
    report = check_artifact(graph, artifact, tmp_path / artifact.path, feeds, reference=better)
    assert report.located is None
    assert len(report.failures) == 1
    assert "more than 0.5 dB less" in report.failures[0]


def test_limits_of_the_user_are_held(tmp_path: Path) -> None:
    model = classifier()
    graph = quantized(model)
    artifact = Onnx().lower(graph, tmp_path)
    report = check_artifact(
        graph, artifact, tmp_path / artifact.path, samples(model, 8), min_sqnr_db=90, min_top1_agreement=1.01
    )
    assert ["90 dB" in report.failures[0], "101.00%" in report.failures[1]] == [True, True]


def test_the_layer_that_quantization_breaks_is_named() -> None:
    model = classifier()
    graph = quantized(model)
    table = graph.quantization
    assert table is not None
    coarse = QuantParams(table.weights["wide.weight"].params.scale * 60, np.zeros(16), 0)
    weights = dict(table.weights)
    weights["wide.weight"] = QuantizedTensor(coarse.quantize(table.weights["wide.weight"].dequantize()), coarse)
    scale = table.activations["relu_skip_out"].scale * coarse.scale
    bias = model.graph.initializers["wide.bias"].const_value.numpy()
    biases = {**table.biases, "wide.bias": np.rint(bias / scale).astype(np.int32)}
    broken = QuantizedGraph(model, replace(table, weights=weights, biases=biases))
    report = check_quantization(broken, samples(model, 4), localize=True)
    assert report.located is not None
    assert report.located.node == "relu_wide"
    assert report.located.before_db - report.located.after_db > 6
    assert list(report.tensors_db)[:2] == ["x", "relu6_out"], "in graph order"
    assert check_quantization(broken, samples(model, 4)).located is None


@every_target
def test_the_layer_that_a_float_file_gets_wrong_is_named(target: Target, tmp_path: Path) -> None:
    model = classifier()
    wrong = model.clone()
    weight = wrong.graph.initializers["pointwise.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
    artifact = target.lower(QuantizedGraph(wrong), tmp_path)
    report = check_artifact(QuantizedGraph(model), artifact, tmp_path / artifact.path, samples(model, 4))
    assert report.failures
    assert report.located is not None
    assert report.located.node in ("pointwise", "skip", "relu_skip"), "what a target fuses has no tensor of its own"


def test_a_float_file_may_be_as_far_off_as_the_order_of_sums_alone_and_no_further(tmp_path: Path) -> None:
    """A deep network can amplify float32's roundings beyond the tolerance: the reference shows it."""
    model, wrong = classifier(), classifier()
    weight = wrong.graph.initializers["pointwise.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.001), name=weight.name)
    artifact = Onnx().lower(QuantizedGraph(wrong), tmp_path)
    feeds, graph = samples(model, 4), QuantizedGraph(model)
    exact = check_quantization(graph, feeds)

    def failures(reference: LevelReport, tolerance: float | None = None) -> tuple[str, ...]:
        path = tmp_path / artifact.path
        return check_artifact(graph, artifact, path, feeds, reference=reference, tolerance=tolerance).failures

    assert failures(exact)

    def amplifying(rel: float) -> LevelReport:
        outputs = {name: one.model_copy(update={"rel": rel}) for name, one in exact.outputs.items()}
        return exact.model_copy(update={"outputs": outputs})

    assert not failures(amplifying(2e-4)), "twice what another order makes of it"
    assert failures(amplifying(1e-5))
    assert failures(amplifying(2e-4), tolerance=1e-4), "what the user asks for is held"


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("io", ["float32", "int8", "uint8"])
def test_any_two_files_of_one_model_compare(layout: str, io: str, tmp_path: Path) -> None:
    model = detector()
    graph = quantized(model)
    onnx = Onnx().lower(graph, tmp_path)
    tflite = TfliteTarget(layout=layout, io=io).lower(graph, tmp_path)
    feeds = samples(model, 8, seed=8)
    with open_file(tmp_path / onnx.path) as reference, open_file(tmp_path / tflite.path) as candidate:
        report = compare_models(reference, candidate, feeds, label="ONNX against TFLite")
    assert set(report.outputs) == {"boxes", "scores"}
    assert report.sqnr_db > 25
    assert report.label == "8 samples, ONNX against TFLite"
    with open_file(tmp_path / tflite.path, tflite) as candidate:
        report = compare_models(Model(model), candidate, feeds, min_sqnr_db=80, tolerance=1e-6)
    assert 20 < report.sqnr_db < 80
    assert len(report.failures) == 3, "two outputs by tolerance, and the decibels"


def test_a_sample_that_fits_no_input_is_refused(tmp_path: Path) -> None:
    model = classifier()
    artifact = Onnx().lower(QuantizedGraph(model), tmp_path)
    feeds = [{"x": np.zeros((1, 3, 9, 9), np.float32)}]
    with open_file(tmp_path / artifact.path) as candidate, pytest.raises(DataError, match="'x'"):
        compare_models(candidate, candidate, feeds)
    with open_file(tmp_path / artifact.path) as candidate, pytest.raises(DataError, match="no samples"):
        compare_models(candidate, candidate, [])


def test_cut_segments_of_an_onnx_file_are_independent(tmp_path: Path) -> None:
    model = classifier()
    graph = quantized(model)
    artifact = Onnx().lower(graph, tmp_path)
    cut = onnx_format.cut(tmp_path / artifact.path, ["relu6_out", "relu_dw_out", "logits", "nothing"])
    assert cut.missing == ("nothing",)
    assert cut.produced == {"relu6_out": "relu6_out__q", "relu_dw_out": "relu_dw_out__q", "logits": "logits"}
    assert set(cut.consumed) == {"relu6_out", "relu_dw_out"}
    feed = samples(model, 1)[0]
    with Session(cut.data) as session:
        fresh = {name: np.full(session.inputs[name][1], 7, np.uint8) for name in cut.consumed.values()}
        one, other = session.run(feed | fresh), session.run({"x": feed["x"] + 1} | fresh)
    assert np.array_equal(one["logits"], other["logits"]), "it depends on the fresh inputs alone"
    assert not np.array_equal(one["relu6_out__q"], other["relu6_out__q"])


def test_what_is_no_model_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        onnx_format.summarise(path)
    with pytest.raises(TargetError, match=r"broken\.onnx"), open_file(path):
        pass
    with pytest.raises(ModelError, match=r"'\.txt'"), open_file(tmp_path / "model.txt"):
        pass
