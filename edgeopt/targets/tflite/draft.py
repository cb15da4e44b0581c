"""Tensors and operators of a TFLite file under construction, whatever they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.formats import tflite
from edgeopt.graph.quantization import QuantParams
from edgeopt.targets.tflite import layout as lay

Array = npt.NDArray[Any]

INT8_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "TRANSPOSE_CONV": 3, "ADD": 2, "SUB": 2, "MUL": 2,
    "CONCATENATION": 2, "PAD": 2, "PADV2": 2, "MAX_POOL_2D": 2, "AVERAGE_POOL_2D": 2, "MEAN": 2, "TRANSPOSE": 2,
    "SPLIT": 2, "SLICE": 2, "STRIDED_SLICE": 2, "RESIZE_BILINEAR": 2, "RESIZE_NEAREST_NEIGHBOR": 2, "LOGISTIC": 2,
    "TANH": 2, "BATCH_MATMUL": 2, "DEQUANTIZE": 2, "SPACE_TO_DEPTH": 2, "SUM": 2, "REDUCE_MAX": 2, "GATHER": 2,
    "MIRROR_PAD": 2,
}  # fmt: skip
"""First operator version that takes int8, so that a runtime too old says so (tensorflow/lite/tools/versioning)."""


class Draft:
    """The file as far as it is written; temporaries carry the name of the node at work."""

    def __init__(self) -> None:
        self.model = tflite.Model(description="edgeopt")
        self.node: ir.Node | None = None
        self._taken: set[str] = set()
        self._constants: dict[tuple[object, ...], int] = {}
        self._shared: dict[tuple[object, ...], int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        *,
        data: Array | None = None,
        grid: QuantParams | None = None,
        axis: int = 0,
    ) -> int:
        """A new tensor; its name is made unique."""
        unique, count = name, 2
        while unique in self._taken:
            unique, count = f"{name}__{count}", count + 1
        self._taken.add(unique)
        record = tflite.Tensor(unique, tuple(int(size) for size in shape), dtype, data, axis=axis)
        if grid is not None:
            record.scale, record.zero_point = np.atleast_1d(grid.scale), np.atleast_1d(grid.zero_point)
        self.model.tensors.append(record)
        return len(self.model.tensors) - 1

    def temporary(self, hint: str, shape: Sequence[int], like: int | None = None) -> int:
        """A tensor that no value of the graph has: float, or of the type and grid of tensor ``like``."""
        name = f"{self._scope}/{hint}"
        if like is None:
            return self.tensor(name, shape)
        index = self.tensor(name, shape, self.model.tensors[like].dtype)
        self.model.tensors[index].scale = self.model.tensors[like].scale
        self.model.tensors[index].zero_point = self.model.tensors[like].zero_point
        return index

    def constant(self, hint: str, array: Array, *, grid: QuantParams | None = None, axis: int = 0) -> int:
        """A constant tensor; equal small constants of one type share one."""
        array = np.ascontiguousarray(array)
        key: tuple[object, ...] | None = None
        if grid is None and array.size <= 64:
            key = (array.dtype.str, array.shape, array.tobytes())
            if key in self._constants:
                return self._constants[key]
        index = self.tensor(hint, array.shape, array.dtype.name, data=array, grid=grid, axis=axis)
        if key is not None:
            self._constants[key] = index
        return index

    def operator(self, code: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> None:
        activation = inputs[2] if code == "TRANSPOSE_CONV" else inputs[0]
        first = self.model.tensors[activation]
        version = INT8_VERSIONS.get(code, 1) if first.dtype in ("int8", "uint8") else 1
        if code == "DEQUANTIZE":
            version = {"float16": 3}.get(first.dtype, 5 if first.scale is not None and first.scale.size > 1 else 2)
        elif code in ("CONV_2D", "DEPTHWISE_CONV_2D") and first.dtype == "float32":
            version = 5 if self.model.tensors[inputs[1]].dtype == "int8" else 1
        elif code == "FULLY_CONNECTED" and first.dtype == "float32" and self.model.tensors[inputs[1]].dtype == "int8":
            version = 12
        elif code == "TRANSPOSE_CONV":
            version = 3  # with a bias
        elif code == "BROADCAST_TO":
            version = 2  # LiteRT registers no first one
        self.model.operators.append(tflite.Operator(code, tuple(inputs), tuple(outputs), options, version))

    def step(
        self, code: str, inputs: Sequence[int], shape: Sequence[int], options: Any = None, *, like: int | None = None
    ) -> int:
        """An operator into a fresh temporary."""
        index = self.temporary(code.lower(), shape, like)
        self.operator(code, inputs, (index,), options)
        return index

    def shape(self, index: int) -> tuple[int, ...]:
        return self.model.tensors[index].shape

    def shared(self, key: tuple[object, ...], make: Callable[[], int]) -> int:
        """The tensor that ``make`` wrote for ``key``, written once."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    @property
    def _scope(self) -> str:
        return (self.node.name if self.node is not None else None) or "edgeopt"

    def reshape(self, index: int, shape: Sequence[int], out: int | None = None) -> int:
        """RESHAPE, or nothing where the shape is that already and no output tensor is given."""
        shape = tuple(shape)
        if out is None:
            if self.shape(index) == shape:
                return index
            out = self.temporary("reshape", shape, like=index)
            if (data := self.model.tensors[index].data) is not None:
                self.model.tensors[out].data = data.reshape(shape)
                return out
        target = self.constant("shape", np.asarray(shape, np.int32))
        self.operator("RESHAPE", (index, target), (out,), options("Reshape", newShape=list(shape)))
        return out

    def transpose(self, index: int, perm: Sequence[int], out: int | None = None) -> int:
        perm = tuple(perm)
        if out is None:
            if perm == lay.identity(len(perm)):
                return index
            out = self.temporary("transpose", [self.shape(index)[axis] for axis in perm], like=index)
        order = self.constant("perm", np.asarray(perm, np.int32))
        self.operator("TRANSPOSE", (index, order), (out,), options("Transpose"))
        return out


def one_grid(scale: float | Array) -> QuantParams:
    """Per-tensor parameters with zero point 0."""
    return QuantParams(np.asarray(scale, np.float32).reshape(()), np.zeros((), np.int32))


def options(kind: str, **fields: Any) -> Any:
    """An options object of the schema: ``options("Conv2D", strideW=2)``."""
    return _options_type(kind)(**fields)


@cache
def _options_type(kind: str) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return getattr(schema, f"{kind}OptionsT")
