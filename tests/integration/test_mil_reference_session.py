"""Whole programs on the MIL reference: of coremltools' PyTorch route, compressed, in float16, cut, as images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeopt.cli import run
from edgeopt.errors import MissingPackage, ModelError, TargetError
from edgeopt.parity.runners import open_file
from edgeopt.runtimes.mil_reference import Session

ct = pytest.importorskip("coremltools")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(2)


class Convolutional(torch.nn.Module):
    """What a detector or a segmenter is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.SiLU())
        self.depthwise = torch.nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.down = torch.nn.Sequential(torch.nn.MaxPool2d(3, 2, 1), torch.nn.Conv2d(16, 32, 1), torch.nn.ReLU6())
        self.up = torch.nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.gate = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(32, 32, 1), torch.nn.Hardsigmoid()
        )
        self.head = torch.nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        a = torch.nn.functional.hardswish(self.depthwise(self.stem(x)))
        b = self.down(a)
        c = torch.cat([self.up(b * self.gate(b)), a], 1)
        d = torch.nn.functional.interpolate(b, scale_factor=2.0, mode="bilinear")
        return self.head((c + d).mean((2, 3)))


class Attention(torch.nn.Module):
    """A block of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 16, 4, 4)
        self.norm = torch.nn.LayerNorm(16)
        self.qkv = torch.nn.Linear(16, 48)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 16))

    def forward(self, x: Any) -> Any:
        y = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(y)).reshape(y.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        z = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return y + self.mlp(y + z)


class Small(torch.nn.Module):
    """Weights enough to compress, and little else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 8, 1)

    def forward(self, x: Any) -> Any:
        return self.second(torch.relu(self.first(x)))


def seeded(kind: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    net = kind()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
    return net.eval().requires_grad_(False)


X = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)


def converted(net: Any, opset: str = "iOS16", precision: str = "FLOAT32", **more: Any) -> Any:
    exported = torch.export.export(net, (torch.from_numpy(X),)).run_decompositions({})
    return ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, opset),
        compute_precision=getattr(ct.precision, precision),
        skip_model_load=True,
        **more,
    )


def saved(model: Any, path: Path) -> Path:
    model.save(str(path))
    return path


def only(path: Path, x: np.ndarray = X, **options: Any) -> np.ndarray:
    """The only output for the only input."""
    with Session(path, **options) as session:
        (output,) = session.run({next(iter(session.inputs)): x}).values()
        return output


def relative(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right.astype(np.float64)))


@pytest.mark.parametrize("kind", [Convolutional, Attention])
def test_programs_of_the_pytorch_route_compute_what_pytorch_does(kind, tmp_path):
    net = seeded(kind)
    expected = net(torch.from_numpy(X)).numpy()
    path = saved(converted(net), tmp_path / "net.mlpackage")
    assert relative(only(path), expected) <= 1e-5
    assert relative(only(path, use_torch=False), expected) <= 1e-5
    exact = net.double()(torch.from_numpy(X).double()).numpy()
    for use_torch in (False, True):
        assert relative(only(path, use_torch=use_torch, wide_sums=True), exact) <= 1e-6
    net.float()
    half = saved(converted(net, precision="FLOAT16"), tmp_path / "half.mlpackage")
    rounded, unrounded = (only(half, rounding=rounding) for rounding in (True, False))
    assert rounded.dtype == np.float16
    assert unrounded.dtype == np.float32
    # What is left without rounding is that of the stored weights; fp16 has 11 bits.
    assert 1e-6 < relative(unrounded, expected) < 1e-2
    assert 1e-6 < relative(rounded, unrounded) < 1e-2


def compressed(opset: str) -> dict[str, Callable[[Any], Any]]:
    from coremltools.optimize import coreml as cto

    def config(one: Any) -> Any:
        return cto.OptimizationConfig(global_config=one)

    def palettes(**options: Any) -> Callable[[Any], Any]:
        return lambda model: cto.palettize_weights(
            model, config(cto.OpPalettizerConfig(mode="kmeans", weight_threshold=100, **options))
        )

    def linear(**options: Any) -> Callable[[Any], Any]:
        return lambda model: cto.linear_quantize_weights(
            model, config(cto.OpLinearQuantizerConfig(weight_threshold=100, **options))
        )

    def pruned(model: Any) -> Any:
        return cto.prune_weights(model, config(cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=100)))

    if opset == "iOS16":
        return {
            "palette 6": palettes(nbits=6),
            "linear 8": linear(mode="linear_symmetric"),
            "affine 8": linear(mode="linear", dtype="uint8"),
            "sparse": pruned,
        }
    return {
        "palette 3 in groups": palettes(nbits=3, granularity="per_grouped_channel", group_size=8),
        "linear 4 in blocks": linear(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=8),
        "affine 4": linear(mode="linear", dtype="uint4"),
        "sparse": pruned,
    }


@pytest.mark.parametrize("opset", ["iOS16", "iOS18"])
def test_compressed_programs_compute_what_their_expanded_form_does(opset, tmp_path):
    from coremltools.optimize.coreml import decompress_weights

    model = converted(seeded(Small), opset)
    plain = only(saved(model, tmp_path / "plain.mlpackage"))
    for name, compress in compressed(opset).items():
        small = compress(model)
        found = only(saved(small, tmp_path / f"{name}.mlpackage"))
        expanded = only(saved(decompress_weights(small), tmp_path / f"{name} expanded.mlpackage"))
        assert relative(found, expanded) < 1e-6, name
        assert not np.array_equal(found, plain), name


def program(
    path: Path, inputs: dict[str, tuple[int, ...]], body: Callable[..., Any], opset: str = "iOS17", **more: Any
) -> Path:
    """A program as it is written, in float32 or float16, without coremltools' passes."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program

    target = getattr(ct.target, opset)
    with Function({n: mb.placeholder(shape=s) for n, s in inputs.items()}, opset_version=target) as function:
        results = body(mb, *function.inputs.values())
        function.set_outputs(list(results) if isinstance(results, tuple) else [results])
    written = Program()
    written.add_function("main", function)
    model = ct.convert(
        written,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        **more,
    )
    return saved(model, path)


def test_float16_is_rounded_after_every_operator_and_overflow_is_counted(tmp_path):
    a, b = np.float16(1.2345), RNG.standard_normal(8).astype(np.float16)

    def body(mb: Any, x: Any) -> Any:
        half = mb.cast(x=x, dtype="fp16")
        y = mb.mul(x=mb.add(x=half, y=a), y=b)
        return mb.cast(x=y, dtype="fp32", name="y"), mb.cast(x=mb.exp(x=half, name="grows"), dtype="fp32", name="e")

    path = program(tmp_path / "half.mlpackage", {"x": (8,)}, body)
    x = np.linspace(-3, 20, 8).astype(np.float32)
    half = x.astype(np.float16)
    with Session(path) as session:
        found = session.run({"x": x})
        # numpy computes float16 in float32 and rounds each result: the same semantics, written by others.
        np.testing.assert_array_equal(found["y"], ((half + a) * b).astype(np.float32))
        infinite = int(np.isinf(np.exp(half)).sum())
        assert infinite >= 2
        assert session.non_finite["grows"] == infinite
        assert "y" not in session.non_finite
    with Session(path, rounding=False) as session:
        found = session.run({"x": x})
        np.testing.assert_allclose(found["y"], (x + np.float32(a)) * b.astype(np.float32), rtol=1e-6)
        assert not session.non_finite


def test_segments_are_made_from_what_is_fed(tmp_path):
    weights = RNG.standard_normal((4, 3, 1, 1)).astype(np.float32)

    def grid(mb: Any, x: Any, scale: float, name: str) -> Any:
        q = mb.quantize(input=x, scale=np.float32(scale), zero_point=np.int8(2), output_dtype="int8", name=name)
        return mb.dequantize(input=q, scale=np.float32(scale), zero_point=np.int8(2), name=f"{name}_real")

    def body(mb: Any, x: Any) -> Any:
        first = grid(mb, x, 0.05, "first")
        second = grid(mb, mb.conv(x=first, weight=weights, name="conv"), 0.1, "second")
        return grid(mb, mb.relu(x=second, name="relu"), 0.1, "third")

    path = program(tmp_path / "int8.mlpackage", {"x": (1, 3, 4, 4)}, body)
    fed = {
        name: RNG.integers(-128, 128, (1, size, 4, 4)).astype(np.int8)
        for name, size in (("first", 3), ("second", 4), ("third", 4))
    }
    x = RNG.standard_normal((1, 3, 4, 4)).astype(np.float32)

    def quantized(values: np.ndarray, scale: float) -> np.ndarray:
        return np.clip(np.rint(values / np.float32(scale)) + 2, -128, 127).astype(np.int8)

    with Session(path) as session:
        made = session.run({"x": x, **fed}, list(fed))
        real = (fed["first"].astype(np.float32) - 2) * np.float32(0.05)
        sums = np.einsum("oc,nchw->nohw", weights[:, :, 0, 0], real)
        np.testing.assert_array_equal(made["first"], quantized(x, 0.05))
        assert np.abs(made["second"].astype(int) - quantized(sums, 0.1)).max() <= 1
        np.testing.assert_array_equal(made["third"], np.maximum(fed["second"], 2))
        assert session.run(fed, ["third"])["third"].shape == (1, 4, 4, 4)  # x is not needed for that
        end_to_end = session.run({"x": x}, ["third", "first"])
        np.testing.assert_array_equal(end_to_end["first"], quantized(x, 0.05))


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    path = program(tmp_path / "p.mlpackage", {"x": (2, 3)}, lambda mb, x: mb.relu(x=mb.square(x=x, name="s"), name="y"))
    with Session(path) as session:
        for feed, outputs, message in (
            ({"z": np.zeros((2, 3))}, None, "no input named 'z'"),
            ({}, None, "no array for input x"),
            ({"x": np.zeros((3, 2))}, None, r"'x' is \[3, 2\] and should be \[2, 3\]"),
            ({"x": np.full((2, 3), "a")}, None, "no array of numbers"),
            ({"x": np.zeros((2, 3))}, ["w"], "no variable named 'w'"),
        ):
            with pytest.raises(ValueError, match=message):
                session.run(feed, outputs)
        assert session.info("s").shape == (2, 3)
        with pytest.raises(ValueError, match="no function 'other'"):
            Session(path, function="other")


def test_an_unknown_operator_is_named(tmp_path):
    def body(mb: Any, x: Any) -> Any:
        return mb.random_uniform(shape=np.array([2, 3], np.int32), name="chance")

    path = program(tmp_path / "p.mlpackage", {"x": (2, 3)}, body)
    with pytest.raises(ValueError, match=r"does not know: random_uniform \('chance'\)"):
        Session(path)
    with pytest.raises(TargetError, match="random_uniform"), open_file(path):
        pass


def image_model(folder: Path, precision: str = "FLOAT32") -> tuple[Path, Path]:
    """The same classifier with an image input and with a tensor."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Softmax(1)
    )
    torch.manual_seed(1)
    net = net.eval().requires_grad_(False)
    config = ct.ClassifierConfig([f"class {i}" for i in range(5)])
    image = ct.ImageType("x", X.shape, scale=1 / 127.5, bias=[-1, -0.5, -0.75], color_layout=ct.colorlayout.RGB)
    with_image = converted(net, precision=precision, inputs=[image], classifier_config=config)
    return saved(with_image, folder / "image.mlpackage"), saved(converted(net), folder / "tensor.mlpackage")


@pytest.mark.parametrize("precision", ["FLOAT32", "FLOAT16"])
def test_an_image_input_takes_pixels_and_parity_gives_it_the_normalised_array(precision, tmp_path):
    image, tensor = image_model(tmp_path, precision)
    pixels = RNG.integers(0, 256, X.shape).astype(np.uint8)
    bias = np.array([-1, -0.5, -0.75], np.float32).reshape(1, 3, 1, 1)
    normalised = pixels.astype(np.float32) / np.float32(127.5) + bias
    expected = only(tensor, normalised)
    tolerance = 1e-6 if precision == "FLOAT32" else 2e-3
    with Session(image) as session:
        assert session.inputs["x"].color == "RGB"
        assert session.labels == tuple(f"class {i}" for i in range(5))
        found = session.run({"x": pixels})
        assert list(found) == ["classLabel_probs"]
        np.testing.assert_allclose(found["classLabel_probs"], expected, rtol=tolerance)
        label = session.run({"x": pixels}, ["classLabel"])["classLabel"]
        assert label.tolist() == [f"class {expected.argmax()}"]
        scale, offset = session.pixel_scaling("x")
        np.testing.assert_allclose(scale.reshape(-1), [1 / 127.5] * 3, rtol=1e-3)
        np.testing.assert_allclose(offset, bias)
    with open_file(image) as runner:
        assert runner.label.startswith("emulated: MIL reference semantics")
        (port,) = runner.input_ports.values()
        np.testing.assert_array_equal(port.to_file(normalised), pixels)
        fractions = normalised + np.float32(0.3 / 127.5)
        np.testing.assert_allclose(port.to_file(fractions), pixels + 0.3, atol=0.15 if precision == "FLOAT16" else 1e-3)
        np.testing.assert_allclose(runner.call({"x": normalised})["classLabel_probs"], expected, rtol=tolerance)


def test_open_sizes_are_those_that_the_description_allows(tmp_path):
    exported = torch.export.export(
        torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, 1, 1), torch.nn.ReLU()).eval(),
        (torch.from_numpy(X),),
        dynamic_shapes=({2: torch.export.Dim("h", min=8, max=64), 3: torch.export.Dim("w", min=8, max=64)},),
    ).run_decompositions({})
    shapes = ct.EnumeratedShapes([[1, 3, 32, 32], [1, 3, 16, 24]], default=[1, 3, 32, 32])
    model = ct.convert(
        exported,
        inputs=[ct.TensorType("x", shapes)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    with Session(saved(model, tmp_path / "open.mlpackage")) as session:
        assert session.inputs["x"].shape == (1, 3, 32, 32)
        (made,) = session.run({"x": X[:, :, :16, :24]}).values()
        assert made.shape == (1, 2, 16, 24)
        with pytest.raises(ValueError, match="allowed are"):
            session.run({"x": X[:, :, :16, :16]})


def convolution(folder: Path) -> tuple[Path, Path]:
    """The same convolution as ONNX and as a W8A8 program beside it."""
    weights = (RNG.integers(-127, 128, (4, 3, 3, 3)) * np.float32(0.01)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")
    step = np.float32(0.05)

    def body(mb: Any, x: Any) -> Any:
        real = mb.dequantize(input=mb.quantize(input=x, scale=step, output_dtype="int8", name="x_q"), scale=step)
        stored = mb.constexpr_affine_dequantize(
            quantized_data=np.rint(weights / np.float32(0.01)).astype(np.int8),
            zero_point=np.int8(0),
            scale=np.full(4, 0.01, np.float32),
            axis=0,
            name="w",
        )
        limits = {"alpha": np.float32(-20), "beta": np.float32(20)}
        bounded = mb.clip(x=mb.conv(x=real, weight=stored, name="c"), **limits)
        made = mb.quantize(input=bounded, scale=step * 4, output_dtype="int8", name="q")
        return mb.relu(x=mb.dequantize(input=made, scale=step * 4), name="y")

    return folder / "net.onnx", program(folder / "net.mlpackage", {"x": (1, 3, 8, 8)}, body)


def test_inspect_tells_precision_compression_and_what_the_neural_engine_minds(tmp_path, capsys):
    _, path = convolution(tmp_path)
    assert run(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "edgeopt.inspect/1"
    assert (found["deployment_target"], found["specification_version"]) == ("iOS17", 8)
    assert found["ops"] == {"float32": {"relu": 1}, "int8": {"clip": 1, "conv": 1, "dequantize": 2, "quantize": 2}}
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 3, 8, 8]}]
    stored = found["compression"]["8-bit linear"]
    assert (stored["constants"], stored["values"], stored["float_bytes"]) == (1, 108, 432)
    assert 108 + 16 <= stored["stored_bytes"] < 140
    (layer,) = found["layers"]
    assert (layer["name"], layer["precision"], layer["compression"]) == ("c", "int8", "8-bit linear")
    grids = {grid["tensor"]: grid for grid in found["scales"]}
    assert grids["q"]["scale"] == pytest.approx([0.2])
    assert (len(grids["w"]["scale"]), grids["w"]["axis"], grids["w"]["dtype"]) == (4, 0, "int8")
    warnings = {warning["id"]: warning for warning in found["warnings"]}
    assert set(warnings) == {"float32", "int8-activations"}
    assert warnings["float32"]["where"] == ["y"]
    assert len(warnings["int8-activations"]["where"]) == 2
    assert all(warning["source"].startswith("https://") for warning in warnings.values())
    assert run(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "stored as 8-bit linear: 1 constants" in text
    assert "Neural Engine, float32 (1: y)" in text


def test_parity_between_an_onnx_file_and_a_package(tmp_path, capsys):
    model, path = convolution(tmp_path)
    np.savez(tmp_path / "samples.npz", x=RNG.standard_normal((6, 3, 8, 8)).astype(np.float32))
    assert run(["parity", str(model), str(path), "--data", str(tmp_path / "samples.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "emulated: MIL reference semantics" in found["label"]
    assert 25 < found["sqnr_db"] < 60


def test_a_damaged_package_is_refused_in_one_line(tmp_path, capsys):
    _, path = convolution(tmp_path)
    blobs = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    blobs.write_bytes(blobs.read_bytes()[:100])
    assert run(["inspect", str(path)]) == ModelError.exit_code == 2
    assert "weight.bin" in (message := capsys.readouterr().err)
    assert "cut short" in message
    with pytest.raises(TargetError, match="cut short"), open_file(path):
        pass
    assert run(["inspect", str(tmp_path / "absent.mlpackage")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_without_coremltools_the_extra_is_named(tmp_path, monkeypatch):
    from edgeopt.cli.inspect import describe
    from edgeopt.runtimes.mil_reference import package

    _, path = convolution(tmp_path)

    def absent(name: str) -> Any:
        raise ImportError("reading an .mlpackage needs the package 'coremltools'", name="coremltools")

    monkeypatch.setattr(package, "message_module", absent)
    with pytest.raises(MissingPackage, match=r"edgeopt\[coreml\]"):
        describe(path)
    with pytest.raises(MissingPackage), open_file(path):
        pass
