"""Runs TFLite models with LiteRT's interpreter, on the CPU, with or without its XNNPACK delegate.

A broken file can crash the interpreter, process and all: run foreign files in a worker process.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorInfo:
    """What one input or output is.

    Args:
        dtype: numpy dtype name.
        shape: as the file has it (NHWC where the file is NHWC).
        scale: of its grid, or None if the tensor is not quantized per tensor.
        zero_point: of its grid; 0 without one.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0


class Session:
    """One loaded model; a context manager so that its memory has an end.

    Inputs and outputs go by their names in the file's signature, or by tensor names if it has none.

    Args:
        model: path, or the file's bytes.
        threads: of the interpreter and its delegate.
        delegate: XNNPACK, or LiteRT's built-in kernels alone.

    Raises:
        ValueError: LiteRT refuses the model; the message is its own.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 1, delegate: bool = True) -> None:
        interpreter, _ = _library()
        Interpreter, OpResolverType = interpreter.Interpreter, interpreter.OpResolverType
        kind = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        source = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        try:
            self._interpreter = Interpreter(**source, num_threads=threads, experimental_op_resolver_type=kind)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(str(error)) from error
        signatures = self._interpreter.get_signature_list()
        if signatures:
            runner = self._interpreter.get_signature_runner(next(iter(signatures)))
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        else:
            inputs = {details["name"]: details for details in self._interpreter.get_input_details()}
            outputs = {details["name"]: details for details in self._interpreter.get_output_details()}
        self._input_index = {name: details["index"] for name, details in inputs.items()}
        self._output_index = {name: details["index"] for name, details in outputs.items()}
        self._open = {
            name: tuple(None if size < 0 else int(size) for size in details.get("shape_signature", details["shape"]))
            for name, details in inputs.items()
        }
        self.inputs = {name: _info(details) for name, details in inputs.items()}
        self.outputs = {name: _info(details) for name, details in outputs.items()}

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name, as copies. Arrays must have the file's dtypes and shapes; ValueError otherwise.

        An input that ``feed`` does not name keeps what it held before.
        """
        try:
            for name, array in feed.items():
                self._interpreter.set_tensor(self._input_index[name], np.ascontiguousarray(array))
            self._interpreter.invoke()
        except KeyError as error:
            raise ValueError(f"no input named {error}; the model has {', '.join(self._input_index)}") from error
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        names = self._output_index if outputs is None else outputs
        return {name: self._interpreter.get_tensor(self._output_index[name]) for name in names}

    def partitions(self) -> int:
        """How many parts of the graph the delegate took; 0 without one.

        Two parts mean that something between them runs on the built-in kernels.
        """
        return sum(details["op_name"] == "DELEGATE" for details in self._interpreter._get_ops_details())

    def undelegated(self) -> tuple[str, ...]:
        """Types of the operators that the built-in kernels run, in file order."""
        nodes = self._interpreter._get_ops_details()
        # Operators that a delegate replaced stay in the list. What really runs is found by walking back from the
        # outputs, through a delegate's node wherever one writes the tensor: those come last and win.
        writer = {int(tensor): node for node in nodes for tensor in node["outputs"]}
        open_tensors = list(self._output_index.values())
        seen: set[int] = set()
        runs: dict[int, str] = {}
        while open_tensors:
            node = writer.get(open_tensors.pop())
            if node is None or node["index"] in seen:
                continue
            seen.add(node["index"])
            if node["op_name"] != "DELEGATE":
                runs[node["index"]] = str(node["op_name"])
            open_tensors.extend(int(tensor) for tensor in node["inputs"])
        return tuple(runs[index] for index in sorted(runs))

    def specs(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Inputs: numpy dtype name and shape, None where a size is open."""
        return {name: (info.dtype, self._open[name] or info.shape) for name, info in self.inputs.items()}

    def reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give inputs other shapes; ValueError where the graph does not go along."""
        changed = {name: shape for name, shape in shapes.items() if shape != self.inputs[name].shape}
        if not changed:
            return
        try:
            for name, shape in changed.items():
                self._interpreter.resize_tensor_input(self._input_index[name], shape)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(str(error)) from error

    def placement(self) -> dict[str, Any]:
        """What runs it, and which share of its operators the delegate took."""
        partitions, left = self.partitions(), self.undelegated()
        nodes = self._interpreter._get_ops_details()
        total = sum(details["op_name"] != "DELEGATE" for details in nodes)
        return {
            "delegate": "XNNPACK" if partitions else None,
            "coverage": 1.0 - len(left) / total if partitions and total else None,
            "partitions": partitions,
            "undelegated": list(left) if partitions else [],
        }

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._interpreter


def version() -> str:
    package = _library()[1]
    forerunner = " (tflite-runtime)" if package.__name__ == "tflite_runtime" else ""
    return str(getattr(package, "__version__", "of unknown version")) + forerunner


def _library() -> tuple[Any, Any]:
    """The module of the interpreter and its package: LiteRT, or its forerunner where a board has only that.

    Raises:
        ModuleNotFoundError: neither is installed.
    """
    for name in ("ai_edge_litert", "tflite_runtime"):
        try:
            return importlib.import_module(f"{name}.interpreter"), importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, f"{name}.interpreter"):
                raise
    raise ModuleNotFoundError("No module named 'ai_edge_litert'", name="ai_edge_litert")


def _info(details: Mapping[str, Any]) -> TensorInfo:
    quantization = details["quantization_parameters"]
    per_tensor = len(quantization["scales"]) == 1
    return TensorInfo(
        dtype=np.dtype(details["dtype"]).name,
        shape=tuple(int(size) for size in details["shape"]),
        scale=float(quantization["scales"][0]) if per_tensor else None,
        zero_point=int(quantization["zero_points"][0]) if per_tensor else 0,
    )
