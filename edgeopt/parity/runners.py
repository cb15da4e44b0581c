"""Runs any model file the way its source is called: source names, source layout, real numbers.

Names, permutations and integer grids of an artifact are undone here, so that everything above compares like with like.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import MissingPackage, ModelError, TargetError
from edgeopt.formats import onnx as onnx_format
from edgeopt.types import Artifact, Preprocess

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


WHOLE_PIXELS = 0.2
"""How far from whole numbers values may be to be taken for the pixels they were: scales in fp16 move 255 by 0.12."""


@dataclass(frozen=True)
class PixelScaling:
    """What a file makes of an image input's pixels: ``scale · pixels + bias``, each per channel, (1, C, 1, 1)."""

    scale: Array
    bias: Array

    def to_pixels(self, array: Array) -> Array:
        """The pixels that a normalised array was made from.

        Whole numbers where it was an image. Other data gives fractions, which no app can feed but which keep the
        comparison free of a rounding that is not the file's.
        """
        pixels = (array.astype(np.float64) - self.bias) / self.scale
        whole = np.rint(pixels)
        close = pixels.size > 0 and np.abs(pixels - whole).max() <= WHOLE_PIXELS
        return (whole if close else pixels).astype(np.float32)


@dataclass(frozen=True)
class Port:
    """One input or output of a file, and how to get from the source's array to the file's.

    Args:
        file_name: its name in the file.
        dtype: numpy dtype name in the file.
        shape: in the file.
        scale: of its grid if it is integers of one, else None.
        zero_point: of its grid.
        permutation: of the source's axes in the file; None: as in the source.
        pixels: how the file normalises an image input, whose source takes the normalised array.
    """

    file_name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0
    permutation: tuple[int, ...] | None = None
    pixels: PixelScaling | None = None

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape before the permutation."""
        if self.permutation is None:
            return self.shape
        return tuple(self.shape[axis] for axis in np.argsort(self.permutation))

    def to_file(self, array: Array) -> Array:
        if self.permutation is not None:
            array = array.transpose(self.permutation)
        if self.scale is not None and array.dtype.kind == "f":
            limits = np.iinfo(self.dtype)
            steps = np.rint(array.astype(np.float32) / np.float32(self.scale)) + self.zero_point
            array = np.clip(steps, limits.min, limits.max)
        if self.pixels is not None:
            array = self.pixels.to_pixels(array)
        return np.ascontiguousarray(array.astype(self.dtype, copy=False))

    def rounded(self, array: Array) -> Array:
        """``array`` as it is after a passage through this port, in the source's layout."""
        return array if self.scale is None else self.to_source(self.to_file(array))

    def to_source(self, array: Array) -> Array:
        if self.scale is not None:
            array = ((array.astype(np.int32) - self.zero_point) * np.float32(self.scale)).astype(np.float32)
        if self.permutation is not None:
            array = array.transpose(np.argsort(self.permutation))
        return array.astype(np.float32) if array.dtype == np.float16 else array


class FileRunner:
    """A model file on its own runtime."""

    def __init__(self, session: Any, label: str, inputs: Mapping[str, Port], outputs: Mapping[str, Port]) -> None:
        self._session = session
        self.label = label
        self.input_ports = dict(inputs)
        self.output_ports = dict(outputs)

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Say what arrays inputs of open sizes are given; the file keeps their axes in the source's order."""
        self.input_ports |= {
            name: replace(port, shape=shapes[name]) for name, port in self.input_ports.items() if name in shapes
        }

    def run(self, samples: Iterable[Feed]) -> Iterator[dict[str, Array]]:
        """Outputs by source name, one dictionary per sample: what a frontend's ``Source`` does."""
        return map(self.call, samples)

    def call(self, feed: Feed) -> dict[str, Array]:
        """Outputs of one sample by source name. ValueError if an input is missing or does not fit."""
        if missing := [name for name in self.input_ports if name not in feed]:
            raise ValueError(f"no array for input {', '.join(missing)}; given: {', '.join(feed)}")
        given = {port.file_name: port.to_file(feed[name]) for name, port in self.input_ports.items()}
        made = self._session.run(given)
        return {name: port.to_source(made[port.file_name]) for name, port in self.output_ports.items()}


def runnable(folder: Path, artifact: Artifact) -> Path:
    """The file that is run for an artifact which was written into ``folder``."""
    path = folder / artifact.path
    return path / artifact.emulation if artifact.emulation is not None else path


@contextmanager
def open_file(
    path: Path,
    artifact: Artifact | None = None,
    *,
    threads: int = 1,
    accelerated: bool = True,
    rounding: bool = True,
) -> Iterator[FileRunner]:
    """An ``.onnx``, ``.tflite`` or ``.mlpackage`` file, to be called as its source is.

    Args:
        path: the file.
        artifact: what edgeopt knows of it: source names and permutations. Without it names are the file's own.
        threads: fixed, so that results repeat.
        accelerated: graph optimisations (ONNX Runtime) or the XNNPACK delegate (LiteRT) on.
        rounding: off: an ``.mlpackage`` is evaluated without fp16's rounding, which tells what that costs.

    Raises:
        ModelError: none of these formats.
        MissingPackage: coremltools, which reading an ``.mlpackage`` needs.
        TargetError: the runtime refuses the file.
    """
    session: Any
    many = f"{threads} thread{'s' * (threads > 1)}"
    emulated = artifact is not None and artifact.emulation is not None
    accelerated = accelerated and not emulated
    try:
        if path.suffix == ".onnx":
            from edgeopt.runtimes import onnxruntime

            session = onnxruntime.Session(path, threads=threads, optimize=accelerated)
            how = "CPU" if accelerated else "CPU, optimisations off"
            label = f"{'emulated: ' * emulated}ONNX Runtime {onnxruntime.version()}, {how}, {many}"
        elif path.suffix == ".tflite":
            from edgeopt.runtimes import litert

            session = litert.Session(path, threads=threads, delegate=accelerated)
            label = f"LiteRT {litert.version()}, {'XNNPACK' if accelerated else 'built-in kernels'}, {many}"
        elif path.suffix == ".mlpackage" and sys.platform == "darwin" and rounding:
            from edgeopt.runtimes import coreml

            session = coreml.Session(path)
            label = f"measured: Core ML, {coreml.version()}, compute unit cpu"
        elif path.suffix == ".mlpackage":
            from edgeopt.runtimes import mil_reference

            session = mil_reference.Session(path, threads=threads, rounding=rounding)
            label = f"emulated: MIL reference semantics ({mil_reference.version()}), {many}"
        else:
            hint = "an .onnx file, a .tflite file or an .mlpackage is needed"
            raise ModelError(f"cannot run '{path.suffix or path.name}' files", where=str(path), hint=hint)
    except ValueError as error:
        raise TargetError(f"the runtime refuses the file: {error}", where=str(path)) from error
    except ImportError as error:
        if error.name != "coremltools":
            raise
        raise MissingPackage("coremltools", "coreml", "running an .mlpackage") from error
    with session:
        yield FileRunner(session, label, *bind_ports(path, session, artifact))


def bind_ports(path: Path, session: Any, artifact: Artifact | None) -> tuple[dict[str, Port], dict[str, Port]]:
    """Inputs and outputs of a session by source name; grids from the file, permutations from ``artifact``."""
    names = artifact.names if artifact is not None else _known_names(path, session)
    layouts = artifact.layouts if artifact is not None else {}
    source_names = {theirs: ours for ours, theirs in names.items()}
    grids = onnx_format.io_grids(onnx_format.metadata(path)) if path.suffix == ".onnx" else {}

    def ports(found: Mapping[str, Any]) -> dict[str, Port]:
        bound = {}
        for file_name, info in found.items():
            name = source_names.get(file_name, file_name)
            dtype, shape = info if isinstance(info, tuple) else (info.dtype, info.shape)
            scale, zero_point = None, 0
            if dtype in ("int8", "uint8"):
                grid = grids.get(file_name) if isinstance(info, tuple) else info
                scale, zero_point = (grid.scale, grid.zero_point) if grid is not None else (None, 0)
            bound[name] = Port(
                file_name, dtype, tuple(shape), scale, zero_point, layouts.get(name), _pixels(path, session, file_name)
            )
        return bound

    return ports(session.inputs), ports(session.outputs)


def _known_names(path: Path, session: Any) -> dict[str, str]:
    """Source names that a file carries itself."""
    if path.suffix != ".mlpackage":
        return {}
    names: dict[str, str] = json.loads(session.package.metadata.user_defined.get("edgeopt.names", "{}"))
    return names


def _pixels(path: Path, session: Any, file_name: str) -> PixelScaling | None:
    """How a Core ML program normalises an image input: exactly, where edgeopt wrote it, else as it is stored."""
    if path.suffix != ".mlpackage" or getattr(session.inputs.get(file_name), "color", None) is None:
        return None
    scale, bias = session.pixel_scaling(file_name)
    told = session.package.metadata.user_defined.get("edgeopt.preprocess")
    if told is not None:
        preprocess = Preprocess.model_validate_json(told)
        std = np.asarray(preprocess.std, np.float64).reshape(1, -1, 1, 1)
        mean = np.asarray(preprocess.mean, np.float64).reshape(1, -1, 1, 1)
        scale, bias = preprocess.scale / std, -mean / std
    return PixelScaling(scale, bias)
