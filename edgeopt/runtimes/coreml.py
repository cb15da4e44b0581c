"""Runs Core ML packages with Core ML itself, on macOS only. Written from its documentation and not yet run on a Mac.

Elsewhere ``mil_reference`` evaluates the same packages by the meaning of their operators.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ComputeUnit = Literal["cpu", "gpu", "ane", "all"]
COMPUTE_UNITS: Mapping[ComputeUnit, str] = {
    "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE", "all": "ALL",
}  # fmt: skip
"""Our word → ``coremltools.ComputeUnit``. Core ML may use less than it is allowed."""
_DTYPES = {65568: "float32", 65600: "float64", 65552: "float16", 131104: "int32"}
"""``ArrayFeatureType.ArrayDataType`` → numpy dtype name."""
_CHANNELS = {10: 1, 20: 3, 30: 3, 40: 1}
"""``ImageFeatureType.ColorSpace``: grey, RGB, BGR, grey of 16 bits."""
_BGR = 30


@dataclass(frozen=True)
class TensorInfo:
    """What one input or output is.

    Args:
        dtype: numpy dtype name; ``uint8`` for an image.
        shape: of the array; (1, channels, height, width) for an image.
        image: whether Core ML takes an image here; its array holds pixels, 0–255, in the model's order of channels.
        bgr: whether that order is blue, green, red.
    """

    dtype: str
    shape: tuple[int, ...]
    image: bool = False
    bgr: bool = False


class Session:
    """One loaded package; a context manager so that its memory has an end.

    Args:
        path: the ``.mlpackage``.
        compute_unit: what Core ML may use.
        threads: Core ML chooses its own; here so that every runtime is opened alike.

    Raises:
        ValueError: this is no Mac, or Core ML refuses the package; the message is its own.
        ImportError: coremltools is not installed.
    """

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    def __init__(self, path: Path, *, compute_unit: ComputeUnit = "cpu", threads: int = 1) -> None:
        if sys.platform != "darwin":
            raise ValueError("Core ML runs on macOS only")
        import coremltools as ct

        try:
            self._model: Any = ct.models.MLModel(
                str(path), compute_units=getattr(ct.ComputeUnit, COMPUTE_UNITS[compute_unit])
            )
        except (RuntimeError, OSError) as error:
            raise ValueError(str(error)) from error
        self.inputs, self.outputs = described(self._model.get_spec().description)

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name. ValueError where an input is missing or does not fit, or Core ML fails."""
        unknown = [name for name in self.inputs if name not in feed]
        if unknown:
            raise ValueError(f"no array for input {', '.join(unknown)}")
        given = {name: as_image(feed[name], info) if info.image else feed[name] for name, info in self.inputs.items()}
        try:
            made = self._model.predict(given)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return {name: np.asarray(made[name]) for name in (self.outputs if outputs is None else outputs)}

    def specs(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Input name → dtype and shape."""
        return {name: (info.dtype, info.shape) for name, info in self.inputs.items()}

    def reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Core ML takes what it is given; ValueError for a picture of another size, which has a fixed one."""
        for name, shape in shapes.items():
            if self.inputs[name].image and tuple(shape) != self.inputs[name].shape:
                raise ValueError(f"{name} is an image of {self.inputs[name].shape}, not {tuple(shape)}")

    def placement(self) -> dict[str, Any]:
        """What Core ML was allowed to use; what it did use only Xcode's report says."""
        return {"delegate": None, "coverage": None, "partitions": None, "undelegated": []}

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._model


def version() -> str:
    """Of the operating system, which brings Core ML."""
    return f"macOS {platform.mac_ver()[0]}"


def described(description: Any) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Inputs and array outputs of a ``ModelDescription`` message; a classifier's label and shares are left out."""

    def info(feature: Any) -> TensorInfo | None:
        kind = feature.type.WhichOneof("Type")
        if kind == "imageType":
            image = feature.type.imageType
            shape = (1, _CHANNELS.get(image.colorSpace, 3), int(image.height), int(image.width))
            return TensorInfo("uint8", shape, image=True, bgr=image.colorSpace == _BGR)
        if kind == "multiArrayType":
            array = feature.type.multiArrayType
            return TensorInfo(_DTYPES.get(array.dataType, "float32"), tuple(int(size) for size in array.shape))
        return None

    inputs = {feature.name: found for feature in description.input if (found := info(feature)) is not None}
    outputs = {feature.name: found for feature in description.output if (found := info(feature)) is not None}
    return inputs, outputs


def as_image(array: Array, info: TensorInfo) -> Any:
    """Pixels (1, C, H, W) as the picture that Core ML takes; rounded to whole numbers, as pixels are."""
    from PIL import Image

    pixels = np.clip(np.rint(np.asarray(array, np.float32)), 0, 255).astype(np.uint8)[0]
    if len(pixels) == 1:
        return Image.fromarray(pixels[0])
    ordered = pixels[::-1] if info.bgr else pixels  # a picture is red, green, blue whatever the model takes
    return Image.fromarray(np.ascontiguousarray(ordered.transpose(1, 2, 0)))
