"""Keras models: the same function, channels first, by their layers' names, and nothing that a file holds is run."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.cli import run as run_command
from edgeopt.errors import ModelError
from edgeopt.frontends.torch import load_keras
from edgeopt.frontends.torch_loading import Loaded
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise
from edgeopt.runtimes.onnxruntime import Session

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras on PyTorch, with a home of its own."""
    os.environ["KERAS_BACKEND"] = "torch"
    os.environ["KERAS_HOME"] = str(tmp_path_factory.mktemp("keras"))
    found = pytest.importorskip("keras", reason="keras is not installed")
    found.utils.set_random_seed(3)
    return found


def image_net(keras, *, size: int | None = 12, last: str = "channels_last"):
    """What Keras's image models are made of: BatchNormalization with statistics, depthwise, a gate, a skip, Flatten."""
    layers, axis = keras.layers, 3 if last == "channels_last" else 1
    options = {"data_format": last}
    shape = (size, size, 3) if last == "channels_last" else (3, size, size)
    x = start = keras.Input(shape, name="photo")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), **options)(x)
    x = layers.Conv2D(8, 3, strides=2, name="stem", use_bias=False, **options)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(axis=axis, name="norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="deep", **options)(x)
    y = layers.Activation("swish")(layers.BatchNormalization(axis=axis)(y))
    gate = layers.GlobalAveragePooling2D(keepdims=True, **options)(y)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="gate", **options)(gate)
    y = layers.Multiply()([y, gate])
    x = layers.Add()([x, layers.Conv2D(8, 1, name="point", **options)(y)])
    x = layers.MaxPooling2D(2, **options)(x)
    x = layers.Dropout(0.5)(layers.Flatten(**options)(x)) if size else layers.GlobalAveragePooling2D(**options)(x)
    model = keras.Model(start, layers.Dense(5, activation="softmax", name="answer")(x))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def images(count: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, 3, size, size)).astype(np.float32)


def agree(path: Path, scratch: Path, feeds: list[dict[str, np.ndarray]], **inputs: tuple[int, ...]) -> ir.Model:
    """The canonical graph, after it was compared with the model as Keras runs it."""
    model = canonicalise(QuantizedGraph(load_keras(path, inputs).model), Context(scratch)).model
    right = as_keras(path, feeds, **inputs)
    with Session(ir.to_proto(model).SerializeToString()) as session:
        for feed, expected in zip(feeds, right, strict=True):
            for name, found in session.run(feed).items():
                np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)
    return model


def as_keras(path: Path, feeds: list[dict[str, np.ndarray]], **inputs: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """What the frontend's worker would answer, in this process, which has Keras already."""
    import torch

    loaded = Loaded({"keras": str(path), "inputs": inputs})
    return [loaded.run({name: torch.from_numpy(array) for name, array in feed.items()}) for feed in feeds]


def test_an_image_net_is_the_same_function_channels_first(keras, tmp_path: Path) -> None:
    """As an .h5 file of Keras 2; ``.keras`` goes the whole way below."""
    model, path = image_net(keras), tmp_path / "net.h5"
    model.save(path)
    as_keras_2_wrote(path)
    feeds = [{"photo": image[None]} for image in images(3)]
    graph = agree(path, tmp_path, feeds)
    own = np.asarray(model.predict(images(3).transpose(0, 2, 3, 1), verbose=0))
    right = np.concatenate([one["answer"] for one in as_keras(path, feeds)])
    np.testing.assert_allclose(own, right, rtol=1e-4, atol=1e-5)
    found = Counter(node.op_type for node in graph.graph)
    assert found["Conv"] == 4
    assert not found["Sub"], "BatchNormalization is in the weights"
    assert found["Transpose"] <= 1, "Flatten reads channels last"
    assert {"stem", "deep", "gate", "point", "answer"} <= {node.name for node in graph.graph}
    assert [value.name for value in graph.graph.inputs] == ["photo"]
    assert [value.name for value in graph.graph.outputs] == ["answer"]


def as_keras_2_wrote(path: Path) -> None:
    """``groups`` of a DepthwiseConv2D, and ``batch_input_shape`` of an input."""
    import h5py

    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "DepthwiseConv2D":
                layer["config"]["groups"] = 1
            if layer["class_name"] == "InputLayer":
                layer["config"]["batch_input_shape"] = layer["config"].pop("batch_shape")
        file.attrs["model_config"] = json.dumps(config)


def test_open_sizes_and_channels_first(keras, tmp_path: Path) -> None:
    path = tmp_path / "open.keras"
    image_net(keras, size=None, last="channels_first").save(path)
    for inputs, said in (
        ({}, r"'photo' is \['\?', 3, '\?', '\?'\] .*left open"),
        ({"photo": (1, 1, 12, 12)}, "cannot be"),
        ({"picture": (1, 3, 12, 12)}, "no input 'picture'; it has 'photo'"),
    ):
        with pytest.raises(ModelError, match=said):
            Loaded({"keras": str(path), "inputs": inputs})
    agree(path, tmp_path, [{"photo": images(1, 16)}], photo=(1, 3, 16, 16))


def test_maps_and_several_outputs_come_channels_first(keras, tmp_path: Path) -> None:
    layers = keras.layers
    a, b = keras.Input((8, 8, 3), name="left"), keras.Input((4,), name="right")
    x = layers.Conv2D(4, 3, padding="same")(a)
    x = layers.Conv2DTranspose(4, 2, strides=2, padding="same", name="up")(x)
    x = layers.Concatenate()(
        [layers.UpSampling2D(2, interpolation="bilinear")(layers.ReLU()(layers.MaxPooling2D(2)(x))), x]
    )
    mask = layers.Conv2D(2, 1, name="mask")(x)
    score = layers.Dense(3, name="score")(layers.Concatenate()([layers.GlobalMaxPooling2D()(x), b]))
    path = tmp_path / "two.keras"
    keras.Model([a, b], [mask, score]).save(path)
    feed = {"left": images(1, 8), "right": np.ones((1, 4), np.float32)}
    graph = agree(path, tmp_path, [feed])
    assert [tuple(value.shape.numpy()) for value in graph.graph.outputs] == [(1, 2, 16, 16), (1, 3)]
    assert [value.name for value in graph.graph.outputs] == ["mask", "score"]


def custom(keras, path: Path) -> None:
    class Ours(keras.layers.Layer):
        def call(self, x):
            return x * 2

    start = keras.Input((4,))
    keras.Model(start, Ours()(start)).save(path)


def function(keras, path: Path) -> None:
    start = keras.Input((4,))
    keras.Model(start, keras.layers.Lambda(lambda x: x * 2)(start)).save(path)


def function_in_h5(keras, path: Path) -> Path:
    function(keras, path.with_suffix(".h5"))
    return path.with_suffix(".h5")


def pickled(keras, path: Path) -> None:
    """A module of PyTorch inside, whose pickle would leave a file behind when it is read."""
    start = keras.Input((4,))
    plain, left = path.with_name("plain.keras"), path.with_name("left")
    keras.Model(start, keras.layers.Activation("relu")(start)).save(plain)
    bomb = base64.b64encode(pickle.dumps(Touch(str(left)))).decode()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                config = json.loads(data)
                config["config"]["layers"][1] |= {
                    "class_name": "TorchModuleWrapper", "module": "keras.layers",
                    "config": {"name": "bomb", "trainable": True, "dtype": "float32", "module": bomb},
                }  # fmt: skip
                data = json.dumps(config).encode()
            target.writestr(name, data)


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def weights(keras, path: Path) -> Path:
    model = image_net(keras)
    model.save_weights(path.with_name("net.weights.h5"))
    return path.with_name("net.weights.h5")


def half(keras, path: Path) -> None:
    start = keras.Input((4,))
    keras.Model(start, keras.layers.Dense(2, dtype="mixed_float16")(start)).save(path)


def unbuilt(keras, path: Path) -> None:
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([keras.layers.Dense(2)]).save(path)


def cut(keras, path: Path) -> None:
    whole = path.with_name("whole.keras")
    image_net(keras).save(whole)
    path.write_bytes(whole.read_bytes()[:3000])


def diverged(keras, path: Path) -> None:
    model = image_net(keras)
    weights = model.get_layer("point").get_weights()
    weights[0][0, 0, 0, 0] = np.nan
    model.get_layer("point").set_weights(weights)
    model.save(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (function, "would run it"),
        (function_in_h5, "would run it"),
        (pickled, "would run it"),
        (custom, "not Keras's own"),
        (half, "computes in float16"),
        (weights, "weights alone"),
        (unbuilt, "before it was built"),
        (cut, "cannot read this file"),
        (diverged, "holds NaN"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_cannot_be_accepted_is_said(keras, make: Callable[..., Path | None], said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    path = make(keras, path) or path
    with pytest.raises(ModelError, match=said) as refused:
        Loaded({"keras": str(path), "inputs": {}})
    assert not (tmp_path / "left").exists()
    assert refused.value.where
    assert refused.value.hint


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and the error message that was printed."""
    code = run_command(arguments)
    said = capsys.readouterr().err
    return code, said[said.index("error:") :] if "error:" in said else ""


def test_the_whole_way_from_the_command_line(keras, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """int8 ONNX and TFLite of a Keras file; the TFLite file takes images as Keras does."""
    from edgeopt.runtimes.litert import Session as LiteRT

    path, data, out = tmp_path / "net.keras", tmp_path / "data.npz", tmp_path / "out"
    image_net(keras).save(path)
    np.savez(data, photo=images(24))
    command = ["convert", str(path), "--calibration", str(data), "--effort", "fast", "--out", str(out)]
    assert run(command, capsys) == (0, "")
    report = json.loads((out / "report.json").read_text())
    assert report["source"]["kind"] == "keras"
    assert {name: target["status"] for name, target in report["targets"].items()} == {"onnx": "ok", "tflite": "ok"}
    with LiteRT(out / "tflite" / "model.tflite") as session:
        assert [info.shape for info in session.inputs.values()] == [(1, 12, 12, 3)]
    compare = ["parity", str(path), str(out / "onnx" / "model.onnx"), "--data", str(data)]
    assert run(compare, capsys) == (0, "")


def test_a_saved_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"")
    code, error = run(["convert", str(tmp_path)], capsys)
    assert code == 2
    assert "SavedModel" in error
