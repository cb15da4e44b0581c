"""Reading a TFLite file, and refusing what is broken."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import ModelError
from edgeopt.formats.tflite.model import Model, Operator, Tensor
from edgeopt.formats.tflite.schema import IDENTIFIER, dtype_names, operator_names

Array = npt.NDArray[Any]


def read(source: Path | bytes) -> Model:
    """Read and check a TFLite file.

    Raises:
        ModelError: not TFLite, truncated, or inconsistent: an index, a size or a channel axis that cannot be.
    """
    where = "TFLite model" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = source.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot be read: {error.strerror}", where=where) from error
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ModelError("is not a TFLite file", where=where, hint="A TFLite file has the identifier TFL3 at byte 4.")
    try:
        model = _unpack(data)
        problem = _problem(model)
    except (
        struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError
    ) as error:  # fmt: skip  # whatever the flatbuffers reader meets in bytes that are none
        raise ModelError(f"is broken or truncated ({error})", where=where, hint="Get the file again.") from error
    if problem:
        raise ModelError(problem, where=where, hint="The file is broken; convert the model again.")
    return model


def _unpack(data: bytes) -> Model:
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAsModel(data, 0)
    # A vector longer than the file can hold would be walked for hours before its end is missed.
    limit = len(data) // 4
    graph = root.Subgraphs(0)
    if graph is None:
        raise ValueError("no subgraph")
    lengths = (
        root.BuffersLength(), root.SubgraphsLength(), root.OperatorCodesLength(), root.MetadataLength(),
        root.SignatureDefsLength(), graph.TensorsLength(), graph.OperatorsLength(),
    )  # fmt: skip
    if max(lengths) > limit:
        raise ValueError("a vector is longer than the file")
    codes = [_operator_code(root.OperatorCodes(i)) for i in range(root.OperatorCodesLength())]
    buffers = [_buffer(root.Buffers(i), data) for i in range(root.BuffersLength())]
    dtypes = dtype_names()
    tensors: list[Tensor] = []
    for i in range(graph.TensorsLength()):
        record = schema.TensorT.InitFromObj(graph.Tensors(i))
        shape = tuple(int(size) for size in _listed(record.shape))
        dtype = dtypes[record.type]
        tensor = Tensor(_text(record.name), shape, dtype, source=record)
        stored = buffers[record.buffer]
        if stored is not None and stored.size:
            tensor.data = _typed(stored, dtype, shape)
        grid = record.quantization
        if grid is not None and grid.scale is not None and len(grid.scale):
            tensor.scale = np.asarray(grid.scale, np.float32)
            zero_point = np.zeros(tensor.scale.size) if grid.zeroPoint is None else np.asarray(grid.zeroPoint)
            tensor.zero_point = zero_point.astype(np.int64)
            tensor.axis = int(grid.quantizedDimension)
        tensors.append(tensor)
    operators: list[Operator] = []
    for i in range(graph.OperatorsLength()):
        record = schema.OperatorT.InitFromObj(graph.Operators(i))
        code, version = codes[record.opcodeIndex]
        inputs = tuple(int(index) for index in _listed(record.inputs))
        outputs = tuple(int(index) for index in _listed(record.outputs))
        operators.append(Operator(code, inputs, outputs, record.builtinOptions, version, record))
    model = Model(tensors, operators, [int(i) for i in graph.InputsAsNumpy()], [int(i) for i in graph.OutputsAsNumpy()])
    model.subgraphs = root.SubgraphsLength()
    model.description = _text(root.Description())
    for i in range(root.MetadataLength()):
        entry = root.Metadata(i)
        content = buffers[entry.Buffer()]
        model.metadata[_text(entry.Name())] = b"" if content is None else content.tobytes()
    if root.SignatureDefsLength():
        signature = schema.SignatureDefT.InitFromObj(root.SignatureDefs(0))
        model.signature_inputs = {_text(entry.name): int(entry.tensorIndex) for entry in _listed(signature.inputs)}
        model.signature_outputs = {_text(entry.name): int(entry.tensorIndex) for entry in _listed(signature.outputs)}
    return model


def _problem(model: Model) -> str | None:
    """What is inconsistent, in words."""
    count = len(model.tensors)
    for index in (*model.inputs, *model.outputs, *model.signature_inputs.values(), *model.signature_outputs.values()):
        if not 0 <= index < count:
            return f"an input or output refers to tensor {index} of {count}"
    for tensor in model.tensors:
        if any(size < 0 for size in tensor.shape):
            return f"tensor '{tensor.name}' has the shape {tensor.shape}"
        if tensor.scale is not None and tensor.scale.size > 1:
            if tensor.axis < 0 or tensor.axis >= len(tensor.shape):
                return f"tensor '{tensor.name}' of shape {tensor.shape} has its channels on axis {tensor.axis}"
            if tensor.scale.size != tensor.shape[tensor.axis]:
                return (
                    f"tensor '{tensor.name}' has {tensor.scale.size} scales on an axis of {tensor.shape[tensor.axis]}"
                )
        if tensor.scale is not None and tensor.zero_point is not None:
            if tensor.zero_point.size not in (1, tensor.scale.size):
                return f"tensor '{tensor.name}' has {tensor.zero_point.size} zero points, {tensor.scale.size} scales"
            if not np.isfinite(tensor.scale).all():
                return f"tensor '{tensor.name}' has a scale that is no number"
    written: set[int] = set()
    for position, operator in enumerate(model.operators):
        for index in operator.inputs:
            if not -1 <= index < count:
                return f"operator {position} ({operator.code}) reads tensor {index} of {count}"
        for index in operator.outputs:
            if not 0 <= index < count:
                return f"operator {position} ({operator.code}) writes tensor {index} of {count}"
            if index in written or model.tensors[index].data is not None:
                return f"operator {position} ({operator.code}) writes '{model.tensors[index].name}', which is taken"
            written.add(index)
    return None


def _operator_code(record: Any) -> tuple[str, int]:
    names = operator_names()
    # Files from before 2020 hold the type in the old byte-sized field alone.
    code = max(int(record.BuiltinCode()), int(record.DeprecatedBuiltinCode()))
    name = names.get(code)
    if name is None:
        raise ValueError(f"operator code {code}")
    return (f"CUSTOM:{_text(record.CustomCode())}" if name == "CUSTOM" else name), int(record.Version())


def _buffer(record: Any, data: bytes) -> npt.NDArray[np.uint8] | None:
    if record.Offset() > 1:  # contents behind the flatbuffer, for files over 2 GB
        end = record.Offset() + record.Size()
        if end > len(data):
            raise ValueError("a buffer ends behind the file")
        return np.frombuffer(data, np.uint8, record.Size(), record.Offset())
    if record.DataIsNone() or not record.DataLength():
        return None
    values: npt.NDArray[np.uint8] = record.DataAsNumpy()
    return values


def _typed(stored: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype not in _NUMPY:
        return stored
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(_NUMPY[dtype]).itemsize
    if stored.size != size:
        raise ValueError(f"{stored.size} bytes for {dtype} of shape {shape}")
    return stored.view(_NUMPY[dtype]).reshape(shape)


_NUMPY = {
    "float32": "float32", "float16": "float16", "float64": "float64", "int8": "int8", "uint8": "uint8",
    "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32", "int64": "int64",
    "uint64": "uint64", "bool": "bool",
}  # fmt: skip


def _listed(values: Any) -> list[Any]:
    return [] if values is None or isinstance(values, int) else list(values)


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else (value or "")
