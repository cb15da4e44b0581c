"""Writing a TFLite file, with others packed behind it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.formats.tflite.model import Model
from edgeopt.formats.tflite.schema import (
    ALIGNMENT,
    IDENTIFIER,
    SCHEMA_VERSION,
    dtype_names,
    operator_codes,
)

Array = npt.NDArray[Any]


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

    types = {name: code for code, name in dtype_names().items()}
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
