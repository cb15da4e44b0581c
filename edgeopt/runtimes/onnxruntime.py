"""Runs ONNX models with ONNX Runtime's CPU provider.

Determinism: threads are fixed by the caller, and with ``optimize=False`` no graph optimisation changes int8 results
(they do by about 2 % of the values otherwise).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Session:
    """One loaded model; a context manager so that its memory has an end.

    Args:
        model: path, or the serialised model.
        threads: intra-op threads.
        optimize: all of ONNX Runtime's graph optimisations, or none.
        arena: keep freed memory for the next run. Off for sessions that run a few large inputs once.
        save_optimized: write the graph as optimised to this file (to see what was fused).

    Raises:
        ValueError: ONNX Runtime cannot load the model; the message is its own.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 1,
        optimize: bool = True,
        arena: bool = True,
        save_optimized: Path | None = None,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = arena
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimize else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        if save_optimized is not None:
            options.optimized_model_filepath = str(save_optimized)
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exception classes have no common base
            raise ValueError(str(error)) from error
        self.inputs = {i.name: (_numpy_type(i.type), tuple(i.shape)) for i in self._session.get_inputs()}
        self.outputs = {o.name: (_numpy_type(o.type), tuple(o.shape)) for o in self._session.get_outputs()}

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name. Arrays must have the model's dtypes and shapes; ValueError otherwise."""
        names = list(outputs) if outputs is not None else list(self.outputs)
        try:
            values = self._session.run(names, {name: np.ascontiguousarray(array) for name, array in feed.items()})
        except Exception as error:
            raise ValueError(str(error)) from error
        return dict(zip(names, values, strict=True))

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session


@functools.cache
def saturates() -> bool:
    """Whether this machine's kernels for uint8 × int8 clip sums of two products at 16 bits.

    They do on x86 processors without VNNI (``VPMADDUBSW``; ONNX Runtime's documentation, "Quantize ONNX models"): an
    int8 ResNet20 fell from 32 to 11 dB there, and nothing says so. Found out by multiplying, not by asking for flags.
    """
    from onnx import TensorProto, helper

    names, size = ("a", "b"), 64
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", list(names), ["sum"])],
        "largest products",
        [
            helper.make_tensor_value_info("a", TensorProto.UINT8, [size, size]),
            helper.make_tensor_value_info("b", TensorProto.INT8, [size, size]),
        ],
        [helper.make_tensor_value_info("sum", TensorProto.INT32, [size, size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    feed = {"a": np.full((size, size), 255, np.uint8), "b": np.full((size, size), 127, np.int8)}
    with Session(model.SerializeToString()) as session:
        return bool((session.run(feed)["sum"] != size * 255 * 127).any())


def version() -> str:
    import onnxruntime as ort

    return str(ort.__version__)


def _numpy_type(text: str) -> str:
    name = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
