"""TFLite files: a light model in memory, a reader that refuses what is broken, a writer, and ``cut``.

The schema is LiteRT's own (``ai_edge_litert.schema_py_generated``); neither tensorflow nor a converter is needed.
Only the first subgraph is held: that is the model, others are bodies of control flow.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import ModelError

IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
ALIGNMENT = 16
"""Of every constant, in bytes: the schema's own demand, so that kernels can read it where it is mapped."""
CONSUMED_SUFFIX = "__in"

Array = npt.NDArray[Any]


@dataclass
class Tensor:
    """One tensor of the file.

    Args:
        name: as in the file.
        shape: static shape.
        dtype: the schema's type in lower case: ``float32``, ``int8``, ``int4``, ``string``…
        data: a constant's values; raw bytes (uint8) for types that numpy lacks; None for what is computed.
        scale: float32, one or one per channel; None if not quantized.
        zero_point: int64, the shape of ``scale``.
        axis: channel axis of ``scale``.
        source: the file's own record with what has no place here (sparsity, variable, open shape).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    scale: Array | None = None
    zero_point: Array | None = None
    axis: int = 0
    source: Any = None

    @property
    def grid(self) -> tuple[float, int] | None:
        """Scale and zero point if quantized per tensor."""
        if self.scale is None or self.zero_point is None or self.scale.size != 1:
            return None
        return float(self.scale.reshape(-1)[0]), int(self.zero_point.reshape(-1)[0])


@dataclass
class Operator:
    """One operator.

    Args:
        code: the schema's name (``CONV_2D``), or ``CUSTOM:name``.
        inputs: tensor indices; −1 where an optional one is left out.
        outputs: tensor indices.
        options: an options object of the schema (``Conv2DOptionsT``), or None.
        version: operator version.
        source: the file's own record (custom options, second option field).
    """

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any = None
    version: int = 1
    source: Any = None


@dataclass
class Model:
    """A TFLite model. ``signature_inputs`` and ``_outputs`` map names to tensor indices; empty if it has none."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    signature_inputs: dict[str, int] = field(default_factory=dict)
    signature_outputs: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, bytes] = field(default_factory=dict)
    description: str = ""
    subgraphs: int = 1

    def names(self) -> dict[str, int]:
        """Tensor name → index. Where a file uses a name twice, the first."""
        found: dict[str, int] = {}
        for index, tensor in enumerate(self.tensors):
            found.setdefault(tensor.name, index)
        return found

    def producers(self) -> dict[int, int]:
        """Tensor index → index of the operator that writes it."""
        return {tensor: index for index, operator in enumerate(self.operators) for tensor in operator.outputs}

    def consumers(self) -> dict[int, list[int]]:
        """Tensor index → indices of the operators that read it."""
        found: dict[int, list[int]] = {}
        for index, operator in enumerate(self.operators):
            for tensor in dict.fromkeys(operator.inputs):
                found.setdefault(tensor, []).append(index)
        return found


# --- reading


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
    dtypes = _dtype_names()
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


@cache
def operator_names() -> Mapping[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


@cache
def operator_codes() -> Mapping[str, int]:
    return {name: code for code, name in operator_names().items()}


@cache
def _dtype_names() -> Mapping[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}


# --- writing


def write(model: Model) -> bytes:
    """The file. Equal constants are stored once; equal models give equal bytes."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # the schema has no types
        """Packs its bytes in one copy, aligned, where the generated code would neither align nor hurry."""

        def Pack(self, builder: Any) -> int:
            position = None
            if self.data is not None:
                raw = self.data
                builder.StartVector(1, raw.size, ALIGNMENT)
                builder.head = builder.Head() - raw.size
                builder.Bytes[builder.head : builder.head + raw.size] = raw.data
                position = builder.EndVector()
            schema.BufferStart(builder)
            if position is not None:
                schema.BufferAddData(builder, position)
            return int(schema.BufferEnd(builder))

    vectors: dict[tuple[str, bytes], int] = {}

    class SharedQuantization(schema.QuantizationParametersT):  # type: ignore[misc]
        """Points at equal vectors that are written already: zero points of channels alone are 8 bytes each."""

        def Pack(self, builder: Any) -> int:
            positions = []
            for values in (self.scale, self.zeroPoint):
                key = (values.dtype.str, values.tobytes())
                if key not in vectors:
                    vectors[key] = builder.CreateNumpyVector(values)
                positions.append(vectors[key])
            schema.QuantizationParametersStart(builder)
            schema.QuantizationParametersAddScale(builder, positions[0])
            schema.QuantizationParametersAddZeroPoint(builder, positions[1])
            schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
            return int(schema.QuantizationParametersEnd(builder))

    buffers = [AlignedBuffer()]  # buffer 0 is empty by convention: tensors that are computed point at it
    known: dict[tuple[int, bytes], int] = {}

    def buffer_of(raw: npt.NDArray[np.uint8]) -> int:
        import hashlib

        key = (raw.size, hashlib.blake2b(raw.data, digest_size=16).digest())
        if key not in known:
            known[key] = len(buffers)
            buffers.append(AlignedBuffer(data=raw))
        return known[key]

    types = {name: code for code, name in _dtype_names().items()}
    tensors = []
    for tensor in model.tensors:
        record = schema.TensorT() if tensor.source is None else _copied(tensor.source)
        record.shape = np.asarray(tensor.shape, np.int32)
        record.type = types[tensor.dtype]
        record.name = tensor.name
        record.hasRank = True
        record.buffer = 0 if tensor.data is None else buffer_of(_raw(tensor.data))
        if tensor.source is None and tensor.scale is not None and tensor.zero_point is not None:
            record.quantization = SharedQuantization(
                scale=np.atleast_1d(np.asarray(tensor.scale, np.float32)),
                zeroPoint=np.atleast_1d(np.asarray(tensor.zero_point, np.int64)),
                quantizedDimension=tensor.axis,
            )
        tensors.append(record)
    codes: dict[tuple[str, int], int] = {}
    operators = []
    for operator in model.operators:
        record = schema.OperatorT() if operator.source is None else _copied(operator.source)
        record.opcodeIndex = codes.setdefault((operator.code, operator.version), len(codes))
        record.inputs = np.asarray(operator.inputs, np.int32)
        record.outputs = np.asarray(operator.outputs, np.int32)
        if operator.source is None and operator.options is not None:
            record.builtinOptions = operator.options
            record.builtinOptionsType = getattr(schema.BuiltinOptions, type(operator.options).__name__[:-1])
        operators.append(record)
    graph = schema.SubGraphT(
        tensors=tensors,
        inputs=np.asarray(model.inputs, np.int32),
        outputs=np.asarray(model.outputs, np.int32),
        operators=operators,
        name="main",
    )
    metadata = [
        schema.MetadataT(name=name, buffer=buffer_of(np.frombuffer(content, np.uint8)))
        for name, content in model.metadata.items()
    ]
    signatures = []
    if model.signature_inputs or model.signature_outputs:
        signatures.append(
            schema.SignatureDefT(
                inputs=[schema.TensorMapT(name, index) for name, index in model.signature_inputs.items()],
                outputs=[schema.TensorMapT(name, index) for name, index in model.signature_outputs.items()],
                signatureKey="serving_default",
                subgraphIndex=0,
            )
        )
    root = schema.ModelT(
        version=SCHEMA_VERSION,
        operatorCodes=[_code_record(schema, name, version) for name, version in codes],
        subgraphs=[graph],
        description=model.description,
        buffers=buffers,
        metadata=metadata or None,
        signatureDefs=signatures or None,
    )
    size = sum(buffer.data.size + 64 for buffer in buffers if buffer.data is not None)
    builder = flatbuffers.Builder(size + 512 * (len(tensors) + len(operators)) + 4096)
    builder.Finish(root.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _code_record(schema: Any, name: str, version: int) -> Any:
    kind, _, custom = name.partition(":")
    code = operator_codes()[kind]
    return schema.OperatorCodeT(
        builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=version, customCode=custom or None
    )


def _copied(record: Any) -> Any:
    copied = type(record)()
    vars(copied).update(vars(record))
    return copied


def _raw(array: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def with_files(data: bytes, files: Mapping[str, bytes]) -> bytes:
    """A file with others packed behind it as a zip archive, where TFLite's tools look for label lists."""
    if not files:
        return data
    packed = io.BytesIO(data)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # its date is 1980, whenever it is written
    return packed.getvalue()


# --- cutting into segments


@dataclass(frozen=True)
class Cut:
    """A model whose segments lie side by side.

    Args:
        data: the file.
        produced: given name → output name: the tensor as its segment computes it.
        consumed: given name → input name: the tensor as the next segments read it.
        missing: given names that no tensor of the file carries.
    """

    data: bytes
    produced: Mapping[str, str]
    consumed: Mapping[str, str]
    missing: tuple[str, ...] = ()


def cut(model: Model, names: Iterable[str]) -> Cut:
    """Cut a model at tensors: each becomes a graph output, as produced, and a fresh graph input, as consumed.

    So one run computes every segment on inputs of the caller's choice, and no error of one reaches another. Inputs
    and outputs of the model itself stay. A name may be the tensor's or, if that one is float, its integers' (the
    name with ``__q`` behind it).

    Raises:
        ModelError: the model has control flow.
    """
    if model.subgraphs != 1:
        raise ModelError("has control flow (several subgraphs) and cannot be cut")
    index_of = model.names()
    tensors = list(model.tensors)
    producers, consumers = model.producers(), model.consumers()
    replaced: dict[int, int] = {}
    inputs = _labels(model.signature_inputs, model.inputs, tensors)
    outputs = _labels(model.signature_outputs, model.outputs, tensors)
    produced: dict[str, str] = {}
    consumed: dict[str, str] = {}
    missing: list[str] = []
    for name in dict.fromkeys(names):
        index = integers_of(model, name, index_of)
        if index is None or tensors[index].data is not None:
            missing.append(name)
            continue
        if index in model.inputs:
            consumed[name] = next(label for label, at in inputs.items() if at == index)
            continue
        if index not in producers:
            missing.append(name)
            continue
        label = next((label for label, at in outputs.items() if at == index), None)
        if label is None:
            label = _free(name, outputs)
            outputs[label] = index
        produced[name] = label
        if index not in consumers:
            continue
        if index not in replaced:
            replaced[index] = len(tensors)
            tensors.append(replace(tensors[index], name=tensors[index].name + CONSUMED_SUFFIX))
            inputs[_free(name + CONSUMED_SUFFIX, inputs)] = replaced[index]
        consumed[name] = next(label for label, at in inputs.items() if at == replaced[index])
    operators = [
        replace(operator, inputs=tuple(replaced.get(index, index) for index in operator.inputs))
        for operator in model.operators
    ]
    result = replace(
        model,
        tensors=tensors,
        operators=operators,
        inputs=list(dict.fromkeys(inputs.values())),
        outputs=list(dict.fromkeys(outputs.values())),
        signature_inputs=inputs,
        signature_outputs=outputs,
    )
    return Cut(write(result), produced, consumed, tuple(missing))


def drop_unused(model: Model) -> None:
    """Remove operators whose results nobody reads, then tensors that nobody names; order is kept. In place."""
    needed = set(model.outputs)
    kept: list[Operator] = []
    for operator in reversed(model.operators):
        if needed.intersection(operator.outputs):
            kept.append(operator)
            needed.update(operator.inputs)
    model.operators = kept[::-1]
    used = set(model.inputs) | set(model.outputs)
    for operator in model.operators:
        used.update(operator.inputs)
        used.update(operator.outputs)
    order = sorted(used)
    place = {old: new for new, old in enumerate(order)}
    model.tensors = [model.tensors[old] for old in order]
    for operator in model.operators:
        operator.inputs = tuple(place[index] for index in operator.inputs)
        operator.outputs = tuple(place[index] for index in operator.outputs)
    model.inputs = [place[index] for index in model.inputs]
    model.outputs = [place[index] for index in model.outputs]
    model.signature_inputs = {name: place[index] for name, index in model.signature_inputs.items()}
    model.signature_outputs = {name: place[index] for name, index in model.signature_outputs.items()}


def integers_of(model: Model, name: str, index_of: Mapping[str, int] | None = None) -> int | None:
    """Index of the integer tensor of a value: called ``name``, or ``name__q`` if a float one has that name."""
    index_of = model.names() if index_of is None else index_of
    for candidate in (name, name + "__q"):
        index = index_of.get(candidate)
        if index is not None and model.tensors[index].dtype in ("int8", "uint8"):
            return index
    return None


def _labels(signature: Mapping[str, int], indices: Iterable[int], tensors: list[Tensor]) -> dict[str, int]:
    return dict(signature) if signature else {tensors[index].name: index for index in indices}


def _free(name: str, taken: Mapping[str, int]) -> str:
    while name in taken:
        name += "_"
    return name


# --- how its tensors lie

LAYOUTS = "edgeopt.layouts"
"""Metadata entry: tensor name → layout, for every tensor that is not as the source graph has it."""


@dataclass(frozen=True)
class Layout:
    """How a tensor of the file lies, against the graph's: ``graph.reshape(view).transpose(perm).reshape(file)``.

    Args:
        shape: in the graph.
        view: the graph's axes, split where the file keeps parts of one apart (a flattened image, channels last).
        perm: order of the view's axes in the file.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    perm: tuple[int, ...]

    def to_file(self, array: Array, shape: tuple[int, ...]) -> Array:
        """An array in the graph's layout, in the file's, which has ``shape``."""
        return np.ascontiguousarray(array.reshape(self.view).transpose(self.perm)).reshape(shape)

    def to_graph(self, array: Array) -> Array:
        """An array in the file's layout, in the graph's."""
        stored = tuple(self.view[axis] for axis in self.perm)
        return np.ascontiguousarray(array.reshape(stored).transpose(np.argsort(self.perm))).reshape(self.shape)


def layouts(model: Model) -> dict[str, Layout]:
    """Tensor name → layout as edgeopt's writer noted it; tensors that are not named lie as in the graph."""
    stored = json.loads(model.metadata.get(LAYOUTS, b"{}"))
    return {name: Layout(*(tuple(part) for part in parts)) for name, parts in stored.items()}


# --- what is in it

WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D"})
MOVERS = frozenset(
    {
        "RESHAPE", "TRANSPOSE", "CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "PAD", "PADV2",
        "MIRROR_PAD", "GATHER", "GATHER_ND", "PACK", "UNPACK", "SQUEEZE", "EXPAND_DIMS", "TILE", "BROADCAST_TO",
        "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "CAST", "SHAPE",
    }
)  # fmt: skip
CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})


def precision(model: Model, operator: Operator) -> str:
    """``int8``, ``int8-dynamic`` (float activations, int8 weights), ``fp16``, ``fp32`` or ``other`` of one operator.

    A weight that a DEQUANTIZE makes float from float16 or int8 counts as what is stored: ``fp16``, ``int8-weights``.
    """
    dtypes = [model.tensors[index].dtype for index in operator.inputs if index >= 0]
    if not dtypes:
        return "other"
    activation = dtypes[0] if operator.code != "TRANSPOSE_CONV" else model.tensors[operator.inputs[2]].dtype
    if activation in ("int8", "uint8", "int16"):
        return "int8"
    if activation != "float32":
        return "other"
    if operator.code not in WEIGHTED:
        return "fp32"
    weight = model.tensors[operator.inputs[1]]
    if weight.dtype in ("int8", "int4"):
        return "int8-dynamic"
    if weight.data is None:
        producer = model.producers().get(operator.inputs[1])
        if producer is not None and model.operators[producer].code == "DEQUANTIZE":
            stored = model.tensors[model.operators[producer].inputs[0]].dtype
            return {"float16": "fp16", "int8": "int8-weights"}.get(stored, "fp32")
    return "fp32"


def operator_counts(model: Model) -> dict[str, Counter[str]]:
    """Precision → operator type → how many."""
    counts: dict[str, Counter[str]] = {}
    for operator in model.operators:
        counts.setdefault(precision(model, operator), Counter())[operator.code] += 1
    return counts


def constant_bytes(model: Model) -> dict[str, int]:
    """Size by layer: name of each constant tensor → bytes, largest first."""
    sizes = {tensor.name: tensor.data.nbytes for tensor in model.tensors if tensor.data is not None}
    return dict(sorted(sizes.items(), key=lambda entry: -entry[1]))
