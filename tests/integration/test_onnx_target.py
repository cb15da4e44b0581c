"""The ONNX target on ONNX Runtime: what is fused, what is guarded, and that files mean what the table says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from edgeopt.errors import TargetError
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats.onnx_overflow import saturated
from edgeopt.graph import overflow
from edgeopt.graph.overflow import is_safe
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.levels import check_artifact, check_quantization
from edgeopt.runtimes.onnxruntime import Session, saturates
from edgeopt.targets.onnx import Onnx
from edgeopt.types import Metadata, Preprocess, SchemeName
from tests.integration.minmax_table import minmax_table
from tests.integration.small_nets import Net, attention, classifier, detector, samples

NETS: dict[str, Callable[[], ir.Model]] = {"classifier": classifier, "detector": detector, "attention": attention}
every_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())


def quantized(model: ir.Model, scheme: SchemeName = "int8", *rules: tuple[str, SchemeName]) -> QuantizedGraph:
    return minmax_table(model, samples(model, 16), scheme=scheme, rules=rules)


def run(path: Path, feed: dict[str, np.ndarray], **how: bool) -> dict[str, np.ndarray]:
    with Session(path, **how) as session:
        return session.run(feed)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@every_net
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_every_segment_of_an_int8_file_is_within_one_step(
    net: Callable[[], ir.Model], activations: str, tmp_path: Path
) -> None:
    model = net()
    graph = quantized(model)
    artifact = Onnx(activations=activations).lower(graph, tmp_path)
    feeds = samples(model, 12, seed=8)
    reference = check_quantization(graph, feeds)
    report = check_artifact(graph, artifact, tmp_path / artifact.path, feeds, reference=reference, segment_samples=12)
    assert not report.failures
    assert not report.unmatched
    assert report.lsb_max is not None and report.lsb_max < 1.01
    assert len(report.segments) > 10
    assert artifact.realised is not None and artifact.realised.unasked_float == ()


@every_net
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8-weights", "int8-dynamic"])
def test_other_schemes_keep_their_tolerance(net: Callable[[], ir.Model], scheme: SchemeName, tmp_path: Path) -> None:
    model = net()
    graph = quantized(model, scheme)
    artifact = Onnx().lower(graph, tmp_path)
    feeds = samples(model, 6, seed=8)
    report = check_artifact(
        graph, artifact, tmp_path / artifact.path, feeds, reference=check_quantization(graph, feeds), segment_samples=6
    )
    assert not report.failures
    on, off = (run(tmp_path / artifact.path, feeds[0], optimize=optimize) for optimize in (True, False))
    for name, value in on.items():
        assert value.dtype == np.float32, "inputs and outputs stay float32"
        np.testing.assert_allclose(value, off[name], atol=0.02 * np.abs(off[name]).max(), rtol=0)


def test_all_weighted_nodes_are_integer_kernels_in_what_the_runtime_makes_of_it(tmp_path: Path) -> None:
    graph = quantized(classifier())
    realised = Onnx().lower(graph, tmp_path).realised
    assert realised is not None
    assert realised.int8_ops["QLinearConv"] == 6
    assert realised.int8_ops["QGemm"] == 1
    assert realised.int8_ops["QLinearAdd"] == 1
    assert realised.float_ops == {}
    assert realised.leftovers == realised.unasked_float == ()
    written = operators(tmp_path / "model.onnx")
    assert "Relu" not in written, "grids from zero imply it"
    assert written.count("Clip") == 1, "one Relu shares a grid with a signed tensor: it clips integers"


@pytest.mark.parametrize("bounds", [None, (-0.25, 0.5)])
def test_an_activation_behind_the_last_gemm_is_not_lost(bounds: tuple[float, float] | None, tmp_path: Path) -> None:
    net = Net(4)
    gemm = net.add("Gemm", "gemm", ["x", net.weight("w", 8, 6), net.weight("b", 8)], transB=1)
    if bounds is None:
        net.add("Relu", "y", [gemm])
    else:
        ends = [net.constant(name, np.float32(end)) for name, end in zip(("low", "high"), bounds, strict=True)]
        net.add("Clip", "y", [gemm, *ends])
    model = net.model({"x": [3, 6]}, {"y": [3, 8]})
    graph = quantized(model)
    artifact = Onnx().lower(graph, tmp_path)
    low, high = bounds or (0, np.inf)
    for feed in samples(model, 8, seed=8):
        value = run(tmp_path / artifact.path, feed)["y"]
        assert value.min() >= low - 0.01
        assert value.max() <= high + 0.01
    report = check_artifact(graph, artifact, tmp_path / artifact.path, samples(model, 8, seed=8), segment_samples=8)
    assert not report.failures
    assert artifact.realised is not None and artifact.realised.int8_ops == {"QGemm": 1}


def test_what_the_runtime_has_no_kernel_for_is_a_leftover_not_a_failure(tmp_path: Path) -> None:
    realised = Onnx().lower(quantized(detector()), tmp_path).realised
    assert realised is not None
    assert realised.unasked_float == ()
    assert [text.split()[0] for text in realised.leftovers] == ["ConvTranspose"]
    assert realised.float_ops["ConvTranspose"] == 1
    assert realised.int8_ops["QLinearSigmoid"] == 1, "the sigmoid of a SiLU"
    assert realised.int8_ops["QLinearMul"] == 3, "SiLU, the gated tensor, HardSwish"


@pytest.mark.parametrize("gates", ["int8", "float32"])
def test_gates_are_within_a_step_of_the_exact_function_and_float_ones_are_it(gates: str, tmp_path: Path) -> None:
    model = detector()
    graph = quantized(model)
    artifact = Onnx(gates=gates).lower(graph, tmp_path)
    report = check_artifact(graph, artifact, tmp_path / artifact.path, samples(model, 12, seed=8), segment_samples=12)
    assert not report.failures
    same = {segment.tensor: segment.parity.lsb_max for segment in report.segments}
    if gates == "float32":
        assert artifact.realised is not None
        assert len(artifact.realised.leftovers) > 1
        assert same["silu_out"] == same["hard_out"] == 0
    else:
        assert same["silu_out"] is not None and 0 < same["silu_out"] < 1.01


def test_a_weighted_node_found_in_float_is_named(tmp_path: Path) -> None:
    graph = quantized(classifier())
    Onnx().lower(graph, tmp_path)
    path = tmp_path / "model.onnx"
    model = ir.load(path)
    relu = next(node for node in model.graph if node.name == "wide")
    quantize = next(iter(relu.outputs[0].uses())).node
    extra = ir.node("Neg", [relu.outputs[0]])  # a second reader stops the fusion, as a stray operator would
    extra.outputs[0].name = "stray"
    extra.outputs[0].type, extra.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 16, 8, 8])
    model.graph.insert_before(quantize, [extra])
    model.graph.outputs.append(extra.outputs[0])
    ir.save(model, path)
    assert Onnx().realised(path, graph).unasked_float == ("wide",)


RULES = [
    ("pointwise",),
    ("wide",),
    ("depthwise", "relu_dw"),
    ("stem", "relu6"),
    ("signed", "wide", "relu_wide"),
    ("last",),
]


@pytest.mark.parametrize("names", RULES, ids="+".join)
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8-weights"])
def test_a_float_layer_between_integers_stays_float(names: tuple[str, ...], scheme: SchemeName, tmp_path: Path) -> None:
    """ONNX Runtime would make it per-tensor int8, silently; with and without optimisations it must be the same."""
    model = classifier()
    graph = quantized(model, "int8", *((name, scheme) for name in names))
    artifact = Onnx().lower(graph, tmp_path)
    feeds = samples(model, 8, seed=8)
    report = check_artifact(
        graph, artifact, tmp_path / artifact.path, feeds, reference=check_quantization(graph, feeds), segment_samples=8
    )
    assert not report.failures
    assert artifact.realised is not None
    weighted = sum(name in ("pointwise", "wide", "depthwise", "stem", "signed", "last") for name in names)
    assert artifact.realised.int8_ops["QLinearConv"] == 6 - weighted
    assert artifact.realised.unasked_float == ()
    table = graph.quantization
    assert table is not None
    step = float(table.activations["logits"].scale)
    for feed in feeds:
        on, off = (run(tmp_path / artifact.path, feed, optimize=optimize)["logits"] for optimize in (True, False))
        assert np.abs(on - off).max() <= 3 * step


def test_the_guard_is_needed_and_holds(tmp_path: Path) -> None:
    """One float convolution with channels of very different size between two int8 ones: per tensor it collapses."""
    net = Net(3)
    a = net.add("Relu", "relu_a", [net.conv("a", "x", 3, 8)])
    pool = net.add("MaxPool", "pool", [a], kernel_shape=[2, 2], strides=[2, 2])
    b = net.add("Relu", "relu_b", [net.conv("b", pool, 8, 8)])
    net.conv("y", b, 8, 4)
    model = net.model({"x": [1, 3, 16, 16]}, {"y": [1, 4, 8, 8]})
    weight = next(v for v in model.graph.initializers.values() if v.name == "b.weight")
    spread = weight.const_value.numpy() * np.logspace(0, -4, 8, dtype=np.float32).reshape(-1, 1, 1, 1)
    weight.const_value = ir.tensor(spread, name="b.weight")
    graph = quantized(model, "int8", ("b", "fp32"), ("pool", "fp32"))
    feed = samples(model, 1, seed=8)[0]

    plain = tmp_path / "plain.onnx"
    ir.save(to_qdq(graph, unsigned=True), plain)
    with Session(plain, save_optimized=tmp_path / "optimised.onnx"):
        pass
    assert operators(tmp_path / "optimised.onnx").count("QLinearConv") == 3, (
        "ONNX Runtime no longer does it: drop the guard"
    )

    artifact = Onnx().lower(graph, tmp_path)
    assert artifact.realised is not None and artifact.realised.int8_ops["QLinearConv"] == 2
    on, off = (run(tmp_path / artifact.path, feed, optimize=optimize)["y"] for optimize in (True, False))
    step = float(graph.quantization.activations["y"].scale) if graph.quantization else 0
    assert np.abs(on - off).max() <= 3 * step


@every_net
def test_uint8_and_int8_are_the_same_grid(net: Callable[[], ir.Model], tmp_path: Path) -> None:
    model = net()
    graph = quantized(model)
    found = {}
    for kind in ("uint8", "int8"):
        (tmp_path / kind).mkdir()
        artifact = Onnx(activations=kind).lower(graph, tmp_path / kind)
        found[kind] = [run(tmp_path / kind / artifact.path, feed, optimize=False) for feed in samples(model, 4)]
    for ours, theirs in zip(found["uint8"], found["int8"], strict=True):
        for name, value in ours.items():
            assert np.array_equal(value, theirs[name])


@every_net
def test_weights_of_either_sign_are_the_same_numbers(net: Callable[[], ir.Model], tmp_path: Path) -> None:
    model = net()
    graph, feed = quantized(model), samples(model, 1, seed=5)[0]
    outputs = {}
    for weights in ("int8", "uint8"):
        folder = tmp_path / weights
        folder.mkdir()
        Onnx(weights=weights).lower(graph, folder)
        outputs[weights] = run(folder / "model.onnx", feed, optimize=False)
    for name, array in outputs["int8"].items():
        np.testing.assert_array_equal(array, outputs["uint8"][name])


def test_unsigned_weights_are_exact_on_every_processor(tmp_path: Path) -> None:
    model = classifier()
    graph, feeds = quantized(model), samples(model, 12, seed=8)
    artifact = Onnx(weights="uint8").lower(graph, tmp_path)
    report = check_artifact(graph, artifact, tmp_path / artifact.path, feeds)
    assert not report.failures
    assert report.lsb_max is not None and report.lsb_max < 1.01
    assert artifact.realised is not None and artifact.realised.unasked_float == ()


def test_kernels_that_saturate_are_avoided_or_named(tmp_path: Path) -> None:
    """On both kinds of processor alike: int8 weights by default only where every kernel is exact."""
    graph = quantized(classifier())
    default, signed = tmp_path / "default", tmp_path / "int8"
    default.mkdir()
    signed.mkdir()
    Onnx().lower(graph, default)
    realised = Onnx(weights="int8").lower(graph, signed).realised
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(default / "model.onnx").graph.initializer}
    assert graph.quantization is not None
    for node in graph.model.graph:
        weight = node.inputs[1].name if node.op_type in ("Conv", "Gemm") and node.inputs[1] is not None else None
        if weight in graph.quantization.weights:
            integers = graph.quantization.weights[weight].integers
            safe = is_safe(integers, node.op_type, node.attributes.get_int("group", 1))
            right = onnx.TensorProto.INT8 if safe else onnx.TensorProto.UINT8
            assert stored[f"{weight}__q"] == right
    assert realised is not None
    (told,) = (text for text in realised.leftovers if "can saturate" in text)
    assert ("this machine is one" in told) == saturates()


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "weights quantized when loaded", "signed activations", "dynamic"])
def test_products_that_saturate_are_found_in_the_files_of_other_tools(form: str, tmp_path: Path) -> None:
    """Held against what ONNX Runtime computes here, where this processor is such a one."""
    import onnxruntime
    from onnxruntime import quantization as ort

    rng = np.random.default_rng(3)
    weight, head = rng.choice([-1.0, 1.0], (16, 16, 3, 3)), rng.choice([-1.0, 1.0], (16 * 64, 10))
    graph = onnx.parser.parse_graph(
        "g (float[1,16,8,8] x) => (float[1,10] y) { c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) "
        "f = Flatten(r) y = MatMul(f, h) }"
    )
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for array, name in ((weight, "w"), (head, "h"))
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "float.onnx",
    )
    feeds = [{"x": rng.uniform(0, 1, (1, 16, 8, 8)).astype(np.float32)} for _ in range(4)]
    made, signed = tmp_path / "int8.onnx", form == "signed activations"
    if form == "dynamic":
        ort.quantize_dynamic(tmp_path / "float.onnx", made, op_types_to_quantize=["MatMul"])
    else:
        ort.quantize_static(
            tmp_path / "float.onnx", made, Feeds(feeds),
            quant_format=ort.QuantFormat.QOperator if form == "QOperator" else ort.QuantFormat.QDQ,
            activation_type=ort.QuantType.QInt8 if signed else ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
            per_channel=True, extra_options={"AddQDQPairToWeight": form == "weights quantized when loaded"},
        )  # fmt: skip
    found = saturated(onnx_format.load(made))
    assert len(found) == (1 if form == "dynamic" else 2)
    exact = onnxruntime.SessionOptions()
    exact.add_session_config_entry("session.x64quantprecision", "1")
    wanted, got = (
        onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"]).run(None, feeds[0])[0]
        for options in (exact, None)
    )
    assert (np.abs(got - wanted).max() > 0.1 * np.abs(wanted).max()) == saturates()


class Feeds:
    """What ONNX Runtime's quantizer reads its calibration from."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def test_a_product_at_run_time_that_saturates_is_avoided_or_named(tmp_path: Path) -> None:
    graph = quantized(classifier(), "int8-dynamic")
    for weights, named in ((None, False), ("int8", True)):
        folder = tmp_path / str(weights)
        folder.mkdir()
        realised = Onnx(weights=weights).lower(graph, folder).realised
        assert realised is not None
        assert any("can saturate" in text for text in realised.leftovers) == named


CONVOLUTIONS = [
    # outputs, inputs of a group, groups, taps, size: ONNX Runtime has another kernel for nearly each
    (16, 16, 1, 3, 8),
    (8, 16, 1, 3, 8),
    (16, 3, 1, 3, 8),
    (24, 5, 1, 3, 9),
    (32, 32, 1, 1, 8),
    (16, 6, 2, 3, 8),
    (16, 1, 16, 3, 8),
    (8, 1, 8, 3, 8),
    (32, 1, 16, 3, 8),
    (20, 4, 1, 2, 8),
]


@pytest.mark.parametrize(("outputs", "inputs", "groups", "taps", "size"), CONVOLUTIONS)
def test_safe_pairs_are_exact_in_every_kernel(outputs: int, inputs: int, groups: int, taps: int, size: int) -> None:
    """Every pair at the very limit, inputs at theirs: exact here, whatever this processor's instructions.

    Which columns are neighbours is ONNX Runtime's business: any other pairing than ``overflow.pairs`` says would sum
    two large weights, and be wrong here where kernels saturate.
    """
    shape, rng = (outputs, inputs, taps, taps), np.random.default_rng(outputs)
    columns = inputs * taps * taps
    weight = rng.choice([-127, 127], (outputs, columns))
    pairs = overflow.pairs("Conv", shape, groups)
    if len(pairs):
        part = rng.integers(1, overflow.PAIR_LIMIT, (outputs, len(pairs)))
        sign = rng.choice([-1, 1], part.shape)
        weight[:, pairs[:, 0]], weight[:, pairs[:, 1]] = part * sign, (overflow.PAIR_LIMIT - part) * sign
    weight = weight.astype(np.int8).reshape(shape)
    assert is_safe(weight, "Conv", groups)
    for x in (np.full((1, inputs * groups, size, size), 255), rng.choice([0, 255], (1, inputs * groups, size, size))):
        signed, unsigned = (qlinear_conv(weight, x.astype(np.uint8), groups, shift) for shift in (0, 128))
        assert np.array_equal(signed, unsigned)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (7, 5), (130, 10), (33, 1), (256, 24)])
def test_safe_pairs_are_exact_in_matrix_products(inputs: int, outputs: int) -> None:
    """QGemm is the same kernel with a scale behind it."""
    rng, pairs = np.random.default_rng(inputs), overflow.pairs("Gemm", (outputs, inputs), 1)
    weight = rng.choice([-127, 127], (outputs, inputs))
    part = rng.integers(1, overflow.PAIR_LIMIT, (outputs, len(pairs)))
    sign = rng.choice([-1, 1], part.shape)
    weight[:, pairs[:, 0]], weight[:, pairs[:, 1]] = part * sign, (overflow.PAIR_LIMIT - part) * sign
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "one",
        [value("x", onnx.TensorProto.UINT8, [4, inputs])],
        [value("y", onnx.TensorProto.INT32, [4, outputs])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T.astype(np.int8)), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    x = rng.choice([0, 255], (4, inputs), p=[0.2, 0.8]).astype(np.uint8)
    with Session(model.SerializeToString()) as session:
        assert np.array_equal(session.run({"x": x})["y"], x.astype(np.int64) @ weight.T)


def qlinear_conv(weight: np.ndarray, x: np.ndarray, groups: int, shift: int) -> np.ndarray:
    """One QLinearConv with weights int8, or shifted to uint8, which no kernel saturates."""
    stored = weight if not shift else (weight.astype(np.int16) + shift).astype(np.uint8)
    count = len(weight)
    given = {
        "xs": np.float32(1), "xz": np.uint8(0), "w": stored, "ws": np.ones(count, np.float32),
        "wz": np.full(count, shift, stored.dtype), "ys": np.float32(weight[0].size * 40), "yz": np.uint8(128),
    }  # fmt: skip
    node = onnx.helper.make_node("QLinearConv", ["x", *given], ["y"], group=groups, pads=[1] * 4)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [value("x", onnx.TensorProto.UINT8, x.shape)],
        [value("y", onnx.TensorProto.UINT8, None)],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in given.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    with Session(model.SerializeToString()) as session:
        return session.run({"x": x})["y"]


def test_unsigned_weights_between_signed_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="goes with 'activations: uint8'"):
        Onnx(weights="uint8", activations="int8")


@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize("activations", ["uint8", "int8"])
@every_net
def test_integer_inputs_and_outputs(net: Callable[[], ir.Model], io: str, activations: str, tmp_path: Path) -> None:
    model = net()
    graph = quantized(model)
    artifact = Onnx(io=io, activations=activations).lower(graph, tmp_path)
    path = tmp_path / artifact.path
    assert {spec.dtype for spec in (*artifact.signature.inputs, *artifact.signature.outputs)} == {io}
    assert {spec.name for spec in artifact.signature.outputs} == {value.name for value in model.graph.outputs}
    grids = json.loads(onnx_format.metadata(path)["edgeopt.io"])
    assert set(grids) == {"x", *(value.name for value in model.graph.outputs)}
    feeds = samples(model, 8, seed=8)
    report = check_artifact(graph, artifact, path, feeds, reference=check_quantization(graph, feeds), segment_samples=8)
    assert not report.failures
    if activations == io and net is not attention:  # whose input is read by a float node
        made = {name for node in onnx.load(path).graph.node for name in node.output}
        assert "x__real" not in made, "the given integers are read as they are"


@pytest.mark.parametrize("opset", [13, 16, 17, 18, 19, 21, 23])
@every_net
def test_every_opset_means_the_same(net: Callable[[], ir.Model], opset: int, tmp_path: Path) -> None:
    model = net()
    graph = quantized(model)
    artifact = Onnx(opset=opset).lower(graph, tmp_path)
    written = onnx.load(tmp_path / artifact.path)
    assert {entry.domain: entry.version for entry in written.opset_import}[""] == opset
    onnx.checker.check_model(written, full_check=True)
    feeds = samples(model, 4, seed=8)
    report = check_artifact(
        graph, artifact, tmp_path / artifact.path, feeds, reference=check_quantization(graph, feeds), segment_samples=4
    )
    assert not report.failures
    assert artifact.realised is not None and artifact.realised.unasked_float == ()


def test_same_graph_same_bytes_and_the_graph_is_left_alone(tmp_path: Path) -> None:
    graph = quantized(detector())
    before = ir.to_proto(graph.model).SerializeToString(deterministic=True)
    found = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        artifact = Onnx().lower(graph, tmp_path / name)
        found.add(hashlib.sha256((tmp_path / name / artifact.path).read_bytes()).hexdigest())
        assert artifact.digest in found
    assert len(found) == 1
    assert ir.to_proto(graph.model).SerializeToString(deterministic=True) == before


def test_the_contract_travels_with_the_file(tmp_path: Path) -> None:
    preprocess = Preprocess(resize=20, crop=16, mean=(0.5,), std=(0.25,))
    Onnx().lower(quantized(classifier()), tmp_path, Metadata(preprocess=preprocess, labels=("cat", "dog")))
    summary = onnx_format.summarise(tmp_path / "model.onnx")
    assert summary.preprocess == preprocess
    assert summary.labels == ("cat", "dog")


def test_inspection_shows_every_scale_and_every_layer(tmp_path: Path) -> None:
    graph = quantized(classifier())
    Onnx().lower(graph, tmp_path)
    summary = onnx_format.summarise(tmp_path / "model.onnx")
    table = graph.quantization
    assert table is not None
    grids = {grid.tensor: grid for grid in summary.grids}
    for name, params in table.activations.items():
        if name in grids:
            assert grids[name].scale == (float(params.scale),)
            assert grids[name].zero_point == (int(params.zero_point) + 128,)
    assert set(table.activations) - set(grids) == {"logits"}, "its last pair was dropped"
    assert len(grids["wide.weight"].scale) == 16
    assert summary.ops["int8"]["Conv"] == 6
    assert {layer.name: layer.bytes for layer in summary.layers}["wide"] >= 16 * 16 * 9


@pytest.mark.parametrize("scheme", ["int8-weights", "int8-dynamic"])
def test_integer_weights_of_float_arithmetic_are_floats_once_loaded(scheme: SchemeName, tmp_path: Path) -> None:
    graph = quantized(classifier(), scheme)
    artifact = Onnx().lower(graph, tmp_path)
    table = graph.quantization
    assert table is not None and artifact.realised is not None
    assert artifact.size_bytes < 1.6 * sum(weight.integers.nbytes for weight in table.weights.values())
    assert "DequantizeLinear" not in artifact.realised.other_ops, "nothing is left to every run"
    summary = onnx_format.summarise(tmp_path / artifact.path)
    scales = {grid.tensor: grid.scale for grid in summary.grids}
    assert scales["wide.weight"] == tuple(float(x) for x in table.weights["wide.weight"].params.scale)
    assert {layer.name: layer.bytes for layer in summary.layers}["wide"] == 16 * 16 * 9 + 2 * 16 * 4
    assert artifact.realised.int8_ops == ({"DynamicQuantizeMatMul": 1} if scheme == "int8-dynamic" else {})


def test_a_file_holds_little_besides_its_weights(tmp_path: Path) -> None:
    graph = quantized(classifier())
    artifact = Onnx().lower(graph, tmp_path)
    table = graph.quantization
    assert table is not None
    weights = sum(weight.integers.nbytes + 4 * weight.params.scale.size for weight in table.weights.values())
    biases = sum(8 * bias.size for bias in table.biases.values())
    nodes = len(operators(tmp_path / artifact.path))
    assert artifact.size_bytes < weights + biases + 180 * nodes


def test_fp16_says_which_weight_does_not_fit(tmp_path: Path) -> None:
    model = classifier()
    weight = model.graph.initializers["wide.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1e6), name="wide.weight")
    with pytest.raises(TargetError, match=r"wide\.weight"):
        Onnx().lower(quantized(model, "fp16"), tmp_path)


@pytest.mark.parametrize(("axis", "reshapes", "transposes"), [(1, 2, 6), (2, 0, 2)])
def test_slices_with_a_step_are_blocks_of_channels_and_rows_stay(
    axis: int, reshapes: int, transposes: int, tmp_path: Path
) -> None:
    net = Net(6)
    a = net.add("Relu", "relu", [net.conv("a", "x", 3, 8)])
    ends = [net.constant(name, np.array([value])) for name, value in (("s", 1), ("e", 99), ("i", axis), ("t", 2))]
    half = net.add("Slice", "half", [a, *ends])
    net.conv("y", net.add("Relu", "relu_b", [net.conv("b", half, 8 if axis > 1 else 4, 8)]), 8, 4)
    model = net.model({"x": [1, 3, 16, 16]}, {"y": [1, 4, 8 if axis > 1 else 16, 16]})
    graph = quantized(model)
    artifact = Onnx().lower(graph, tmp_path)
    assert not check_artifact(graph, artifact, tmp_path / artifact.path, samples(model, 4)).failures
    assert artifact.realised is not None
    assert artifact.realised.other_ops.get("Reshape", 0) == reshapes
    assert artifact.realised.other_ops["Transpose"] <= transposes


def test_an_opset_without_the_operator_is_refused_by_name(tmp_path: Path) -> None:
    net = Net()
    net.add("GridSample", "y", ["x", net.constant("grid", np.zeros((1, 4, 4, 2), np.float32))])
    model = net.model({"x": [1, 3, 8, 8]}, {"y": [1, 3, 4, 4]})
    with pytest.raises(TargetError, match="node y: GridSample"):
        Onnx(opset=14).lower(QuantizedGraph(model), tmp_path)


BETWEEN: dict[str, tuple[Callable[[Net, str, str], str], int]] = {
    "sub": (lambda n, a, b: n.add("Sub", "op", [a, b]), 8),
    "gated": (lambda n, a, b: n.add("Mul", "op", [b, n.add("GlobalAveragePool", "mean", [a])]), 8),
    "constant": (lambda n, a, b: n.add("Add", "op", [b, n.weight("k", 1, 8, 1, 1)]), 8),
    "average": (
        lambda n, a, b: n.add(
            "AveragePool", "op", [b], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, dilations=[1, 1]
        ),
        8,
    ),
    "dilated": (lambda n, a, b: n.add("AveragePool", "op", [b], kernel_shape=[2, 2], dilations=[2, 2]), 8),
    "leaky": (lambda n, a, b: n.add("LeakyRelu", "op", [b], alpha=0.1), 8),
    "tanh": (lambda n, a, b: n.add("Tanh", "op", [b]), 8),
    "relu": (lambda n, a, b: n.add("Relu", "op", [n.add("Concat", "both", [a, b], axis=1)]), 16),
    "pad": (
        lambda n, a, b: n.add("Pad", "op", [b, n.constant("p", np.array([1, 2])), "", n.constant("i", np.array([3]))]),
        8,
    ),
    "reflect": (
        lambda n, a, b: n.add("Pad", "op", [b, n.constant("p", np.array([0, 0, 1, 2, 0, 0, 0, 3]))], mode="reflect"),
        8,
    ),
    "linear": (
        lambda n, a, b: n.add(
            "Resize", "op", [b, "", n.constant("f", np.array([1, 1, 2, 2], np.float32))], mode="linear"
        ),
        8,
    ),
    "depth": (lambda n, a, b: n.add("DepthToSpace", "op", [b], blocksize=2), 2),
    "gather": (lambda n, a, b: n.add("Gather", "op", [b, n.constant("i", np.array([7, 3, 1]))], axis=1), 3),
    "multiplier": (
        lambda n, a, b: n.add("Conv", "op", [b, n.weight("w", 16, 1, 3, 3), n.weight("k", 16)], group=8, pads=[1] * 4),
        16,
    ),
    "transposed": (
        lambda n, a, b: n.add(
            "ConvTranspose", "op", [b, n.weight("w", 8, 4, 2, 2), n.weight("k", 8)], strides=[2, 2], group=2
        ),
        8,
    ),
    "volume": (
        lambda n, a, b: n.add(
            "Conv",
            "op",
            [
                n.add("Reshape", "cube", [b, n.constant("s", np.array([1, 8, 12, 3, 4]))]),
                n.weight("w", 8, 8, 3, 3, 3),
                n.weight("k", 8),
            ],
            pads=[1] * 6,
        ),
        8,
    ),
    "shuffle": (
        lambda n, a, b: n.add(
            "Slice",
            "op",
            [b, *(n.constant(name, np.array([k])) for name, k in zip("sfit", (1, 8, -3, 2), strict=True))],
        ),
        4,
    ),
    "softmax": (lambda n, a, b: n.add("Softmax", "op", [b], axis=1), 8),
    "product": (lambda n, a, b: n.add("MatMul", "op", [a, b]), 8),
}


@pytest.mark.parametrize("scheme", ["int8", "fp16", "int8-dynamic"])
@pytest.mark.parametrize(("make", "channels"), BETWEEN.values(), ids=BETWEEN.keys())
def test_operators_between_convolutions(
    make: Callable[[Net, str, str], str], channels: int, scheme: SchemeName, tmp_path: Path
) -> None:
    net = Net(5)
    a = net.add("Relu", "relu", [net.conv("a", "x", 3, 8)])
    made = make(net, a, net.conv("b", a, 8, 8))
    rank = 5 if any(node.name == "cube" for node in net.nodes) else 4
    net.add("Conv", "y", [made, net.weight("last.w", 4, channels, *[1] * (rank - 2)), net.weight("last.b", 4)])
    graph = helper.make_graph(
        [*net.nodes],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y_out", onnx.TensorProto.FLOAT, None)],
        net.constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    table = quantized(model, scheme)
    artifact = Onnx().lower(table, tmp_path)
    feeds = samples(model, 6, seed=8)
    report = check_artifact(
        table, artifact, tmp_path / artifact.path, feeds, reference=check_quantization(table, feeds), segment_samples=6
    )
    assert not report.failures
    assert artifact.realised is not None and artifact.realised.unasked_float == ()
