"""Builds TensorRT engines and times them with TensorRT's Python API, on boards without ``trtexec``.

``tensorrt.py`` beside it does the work; here it has the shape of a session that is measured. Python 3.8 and later.
Tried with a stand-in only, never on a board.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import tensorrt as engine

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


class Session:
    """An engine, built from a model.

    Args:
        model: an ONNX file, or a bundle: a folder with ``model.onnx``.
        threads: not used: the GPU has no such setting.

    Raises:
        ValueError: TensorRT refuses the model; the message is its own.
    """

    builds = True

    def __init__(self, model: Path, *, threads: int = 1) -> None:
        onnx = Path(model) / "model.onnx" if Path(model).is_dir() else Path(model)
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
            plan = Path(folder) / "model.plan"
            try:
                engine.build(onnx, plan)
            except RuntimeError as error:
                raise ValueError(str(error)) from error
            self._engine = engine.Session(plan)

    def specs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Inputs: dtype and shape."""
        return self._engine.inputs

    def reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """An engine has the shapes of its file; ValueError for others."""
        for name, shape in shapes.items():
            built = self._engine.inputs[name][1]
            if tuple(shape) != built:
                raise ValueError(f"an engine has the shapes of its file: '{name}' is {list(built)}")

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; the copies to and from the GPU included."""
        return self._engine.run(feed)

    def profile(self, feed: Mapping[str, Array], runs: int) -> list[dict[str, Any]]:
        """Mean time per layer of the engine in ms, costliest first, by TensorRT's own profiler."""
        self._engine.run(feed)
        layers = self._engine.layer_ms(runs)
        everything = sum(layers.values()) or 1.0
        return [
            {"name": name, "op": "layer", "ms": ms, "share": ms / everything}
            for name, ms in sorted(layers.items(), key=lambda layer: -layer[1])
        ]

    def placement(self) -> dict[str, Any]:
        """All of an engine runs in TensorRT."""
        return {"delegate": "TensorRT", "coverage": 1.0, "partitions": 1, "undelegated": []}

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.__exit__(kind, error, trace)


def version() -> str:
    """TensorRT's, with how it was reached.

    Raises:
        ModuleNotFoundError: there is no such package.
        ImportError: it is there, and CUDA or a GPU is not.
    """
    import tensorrt

    if reason := engine.missing():
        raise ImportError(reason)
    return f"{tensorrt.__version__}, Python API"
