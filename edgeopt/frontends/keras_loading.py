"""A Keras model as a PyTorch module: Keras itself, on its PyTorch backend; used in the worker process only.

Keras 3 reads ``.keras`` and the ``.h5`` files of Keras 2, and its layers compute with PyTorch then: what is exported,
run and compared is the model as Keras means it, and no TensorFlow is needed. Nothing that a file holds is executed:
Keras's safe mode refuses serialized functions (Lambda layers), and custom layers are not looked for.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt import digest
from edgeopt.errors import ModelError

LAST_TO_FIRST, FIRST_TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def build(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[Any, dict[str, tuple[int, ...]], dict[str, Any]]:
    """The model as a module in eval mode that takes its inputs in order and returns a dictionary of outputs.

    Images go in and out channels first, as everywhere in edgeopt: (N, C, H, W), whatever layout the model has.

    Args:
        path: ``.keras`` or ``.h5``.
        shapes: input name → shape, channels first; binds sizes that the model leaves open. A batch that alone is open
            is 1.

    Returns:
        The module, the shape of every input and its torch dtype, by the names that Keras knows.

    Raises:
        ModelError: a file that Keras cannot read, or would have to run code for; open sizes; another dtype.
    """
    keras = _import_keras()
    model = _load(keras, path)
    inputs, outputs = _ports(model.inputs, path, "input"), _ports(model.outputs, path, "output")
    names = _output_names(model, len(outputs))
    last = _is_channels_last(model)
    _refuse_precision(model, path)
    unknown = [name for name in shapes if name not in {tensor.name for tensor in inputs}]
    if unknown:
        raise ModelError(
            f"the model has no input {unknown[0]!r}; it has {', '.join(repr(tensor.name) for tensor in inputs)}",
            where=str(path),
            hint="Use one of these names.",
        )
    sizes = {tensor.name: _sizes(tensor, shapes.get(tensor.name), last, path) for tensor in inputs}
    dtypes = {tensor.name: _dtype(tensor, path) for tensor in inputs}
    return _module(model, names, last).eval(), sizes, dtypes


def _import_keras() -> Any:
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"
        kept = os.environ.get("KERAS_HOME")
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as home:
            os.environ["KERAS_HOME"] = home  # it would write a configuration into the user's home
            import keras
        del os.environ["KERAS_HOME"]
        if kept is not None:
            os.environ["KERAS_HOME"] = kept
    import keras

    return keras


def _load(keras: Any, path: Path) -> Any:
    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]  # keras leaves it untyped
        def __init__(self, *args: Any, groups: int = 1, **options: Any) -> None:
            """Keras 2 wrote ``groups: 1``, which Keras 3 does not know."""
            super().__init__(*args, **options)

    try:
        model = keras.saving.load_model(
            path, custom_objects={"DepthwiseConv2D": DepthwiseConv2D}, compile=False, safe_mode=True
        )
    except Exception as error:  # keras raises what its parts raise
        raise _refusal(error, path) from error
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise ModelError(
            "the model does not say what it takes: it was saved before it was built",
            where=str(path),
            hint="Give it an Input layer, or call it once, and save it again.",
        )
    return model


def _refusal(error: Exception, path: Path) -> ModelError:
    text = " ".join(str(error).split())
    if "unsafe" in text or "Lambda" in text or "lambda" in text:
        return ModelError(
            "the model holds code of its author (a Lambda layer, a wrapped module); loading it would run it, "
            "so nothing was loaded",
            where=str(path),
            hint="Write the step with Keras's own layers or operations, and save the model again.",
        )
    if "Could not locate" in text or "Unknown layer" in text or "custom_objects" in text or "custom object" in text:
        return ModelError(
            f"the model has a layer that is not Keras's own: {text[:200]}",
            where=str(path),
            hint='Build it in your own module: `model: {factory: "model:build", inputs: …}` with KERAS_BACKEND=torch, '
            "where a Keras model is a torch.nn.Module.",
        )
    if "No model config found" in text or "no model config" in text.lower():
        return ModelError(
            "this file holds weights alone, and no model",
            where=str(path),
            hint="Build the model, load them with model.load_weights, and save it whole: model.save('model.keras').",
        )
    return ModelError(
        f"Keras cannot read this file: {type(error).__name__}: {text[:300]}",
        where=str(path),
        hint="Is it whole, and a .keras or .h5 that model.save wrote? A SavedModel is loaded by TensorFlow and saved "
        "again as .keras.",
    )


def _ports(tensors: Any, path: Path, kind: str) -> list[Any]:
    found = list(tensors.values()) if isinstance(tensors, dict) else list(tensors)
    for tensor in found:
        if not hasattr(tensor, "shape") or tensor.shape is None:
            raise ModelError(f"an {kind} of the model is no tensor", where=str(path))
    return found


def _output_names(model: Any, count: int) -> list[str]:
    """What Keras calls the outputs, or the layers that make them."""
    names = [str(name) for name in getattr(model, "output_names", None) or ()]
    if len(names) != count or len(set(names)) != count:
        return [f"output_{index}" for index in range(count)] if count > 1 else ["output"]
    return names


def _is_channels_last(model: Any) -> bool:
    return not any(getattr(layer, "data_format", None) == "channels_first" for layer in _layers(model))


def _layers(model: Any) -> list[Any]:
    found = []
    for layer in getattr(model, "layers", []):
        found += _layers(layer) if getattr(layer, "layers", None) else [layer]
    return found


def _refuse_precision(model: Any, path: Path) -> None:
    for layer in _layers(model):
        if (dtype := getattr(layer, "compute_dtype", "float32")) not in ("float32", "int32", "int64", "uint8", "bool"):
            raise ModelError(
                f"the layer {layer.name!r} computes in {dtype}",
                where=str(path),
                hint="edgeopt takes float32 models. Save it with keras.config.set_dtype_policy('float32').",
            )


def _sizes(tensor: Any, wanted: tuple[int, ...] | None, last: bool, path: Path) -> tuple[int, ...]:
    own = list(tensor.shape)
    if len(own) == 4 and last:
        own = [own[axis] for axis in LAST_TO_FIRST]
    if wanted is not None:
        if len(wanted) != len(own) or any(a is not None and a != b for a, b in zip(own, wanted, strict=True)):
            shown = [size if size is not None else "?" for size in own]
            raise ModelError(
                f"the input {tensor.name!r} is {shown} in the model (channels first); it cannot be {list(wanted)}",
                where=str(path),
                hint="Sizes that are numbers in the model are fixed.",
            )
        return wanted
    if any(size is None for size in own[1:]):
        shown = [size if size is not None else "?" for size in own]
        raise ModelError(
            f"the input {tensor.name!r} is {shown} (channels first): sizes are left open",
            where=str(path),
            hint=f"Bind them: --input {tensor.name}=1,3,224,224, or model.inputs in the recipe.",
        )
    return (own[0] or 1, *own[1:])


def _dtype(tensor: Any, path: Path) -> Any:
    import torch

    known = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8}
    if tensor.dtype not in known:
        raise ModelError(f"the input {tensor.name!r} is {tensor.dtype}", where=str(path), hint="Make it float32.")
    return known[tensor.dtype]


def _weight_names(model: Any) -> dict[str, str]:
    """``weight_key`` of a layer's weight → the layer's name: the export keeps no trace of Keras's layers but those."""
    found = {}
    for layer in _layers(model):
        for attribute in ("kernel", "depthwise_kernel"):
            if getattr(layer, "built", False) and (weight := getattr(layer, attribute, None)) is not None:
                found[weight_key(weight.numpy())] = layer.name
    return found


def weight_key(array: npt.NDArray[Any]) -> str:
    """The same for a weight in whatever order of axes."""
    return digest.of_bytes(np.sort(array, axis=None).tobytes())


def _module(model: Any, names: list[str], last: bool) -> Any:
    import torch

    class ChannelsFirst(torch.nn.Module):  # type: ignore[misc]  # torch leaves it untyped
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.weight_names = _weight_names(model)

        def forward(self, *inputs: Any) -> dict[str, Any]:
            given = [x.permute(FIRST_TO_LAST) if last and x.ndim == 4 else x for x in inputs]
            made = self.model(self._packed(given), training=False)
            made = list(made.values()) if isinstance(made, dict) else made
            made = made if isinstance(made, list | tuple) else [made]
            return {
                name: y.permute(LAST_TO_FIRST) if last and y.ndim == 4 else y
                for name, y in zip(names, made, strict=True)
            }

        def _packed(self, given: list[Any]) -> Any:
            if isinstance(self.model.inputs, dict):
                return dict(zip(self.model.inputs, given, strict=True))
            return given[0] if len(given) == 1 else given

    return ChannelsFirst()
