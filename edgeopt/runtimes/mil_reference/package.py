"""Reads an ``.mlpackage`` that holds an ML program: description, metadata, functions, operators and constants.

What is damaged or cut short gives a ValueError that says what and where, never a half-read model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference.program import (
    Argument,
    Block,
    Constant,
    Feature,
    Function,
    Metadata,
    Operation,
    OtherType,
    Package,
    Reference,
    TensorType,
    ValueType,
    Variable,
)
from edgeopt.runtimes.mil_reference.protobuf import message_module
from edgeopt.runtimes.mil_reference.weights import NUMPY_DTYPES, WeightFile, packed_bytes, unpack

Array = npt.NDArray[Any]

DTYPE_NAMES = {"FLOAT8E4M3FN": "float8e4m3fn", "FLOAT8E5M2": "float8e5m2", "UNUSED_TYPE": "no type"}
"""Data types whose name is not the enumerator in lower case."""


def read(path: Path) -> Package:
    """Read a package, with all its constants in memory.

    Raises:
        ValueError: no such folder, not an ML program, damaged or cut short; the message says what and where.
        ImportError: coremltools, whose message types are needed, is not installed.
    """
    model_file = _model_file(path)
    messages = message_module("Model_pb2")
    from google.protobuf.message import DecodeError

    try:
        data = model_file.read_bytes()
        spec = messages.Model.FromString(data)
    except OSError as error:
        raise ValueError(f"{model_file}: the model cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise ValueError(f"{model_file}: damaged or cut short: this is no Core ML model ({error})") from error
    kind = spec.WhichOneof("Type")
    if kind is None:
        raise ValueError(f"{model_file}: empty, damaged or cut short: the file holds no model")
    if kind != "mlProgram":
        raise ValueError(
            f"{model_file}: a model of type '{kind}', not an ML program: convert it again for iOS15 or later"
        )
    return _Reader(path, model_file, len(data), spec).package()


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path}: an .mlpackage is a folder; there is {'a file' if path.exists() else 'nothing'} here")
    manifest_file = path / "Manifest.json"
    try:
        manifest = json.loads(manifest_file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{manifest_file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # JSON's and Unicode's errors
        raise ValueError(f"{manifest_file}: damaged or cut short: {error}") from error
    try:
        relative = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        inside = PurePosixPath(relative)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{manifest_file}: does not say where the model is ({error!r})") from error
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"{manifest_file}: the model '{inside}' would lie outside of the package")
    model_file = path / "Data" / inside
    if not model_file.is_file():
        raise ValueError(f"{model_file}: missing; the manifest names it")
    return model_file


class _Reader:
    """Carries what the parts need to say where they are: the model's file and the open weight files."""

    def __init__(self, path: Path, model_file: Path, model_bytes: int, spec: Any) -> None:
        self._path = path
        self._file = model_file
        self._model_bytes = model_bytes
        self._spec = spec
        self._weights: dict[str, WeightFile] = {}
        self._dtypes = {
            number: DTYPE_NAMES.get(name, name.lower()) for name, number in message_module("MIL_pb2").DataType.items()
        }

    def package(self) -> Package:
        description = self._spec.description
        program = self._spec.mlProgram
        if not program.functions:
            raise ValueError(f"{self._file}: damaged or cut short: the program has no function")
        described = {function.name: function for function in description.functions}
        default = description.defaultFunctionName or "main"
        if default not in program.functions:
            raise ValueError(f"{self._file}: the program has no function '{default}'")
        functions = {}
        for name in sorted(program.functions):
            whose = described.get(name, description if not described else None)
            if whose is None:
                raise ValueError(f"{self._file}: function '{name}' has no description")
            functions[name] = self._function(name, program.functions[name], whose)
        metadata = description.metadata
        return Package(
            path=self._path,
            specification_version=int(self._spec.specificationVersion),
            metadata=Metadata(
                metadata.shortDescription,
                metadata.author,
                metadata.license,
                metadata.versionString,
                dict(metadata.userDefined),
            ),
            functions=functions,
            default_function=default,
            model_bytes=self._model_bytes,
            weight_bytes=sum(len(weights.data) for weights in self._weights.values()),
            attributes={
                key: self._constant(value, f"attribute '{key}' of the program")
                for key, value in program.attributes.items()
            },
        )

    def _function(self, name: str, function: Any, described: Any) -> Function:
        where = f"function '{name}'"
        if function.opset not in function.block_specializations:
            raise ValueError(f"{self._file}: {where} has no block for its opset '{function.opset}'")
        inputs = tuple(self._variable(value, where) for value in function.inputs)
        block = self._block(function.block_specializations[function.opset], where)
        self._check_references(block, {variable.name for variable in inputs}, where)
        return Function(
            name=name,
            opset=function.opset,
            inputs=inputs,
            block=block,
            features_in=tuple(self._feature(feature) for feature in described.input),
            features_out=tuple(self._feature(feature) for feature in described.output),
            states=tuple(self._feature(feature) for feature in described.state),
            predicted_feature=described.predictedFeatureName or None,
            predicted_probabilities=described.predictedProbabilitiesName or None,
        )

    def _check_references(self, block: Block, known: set[str], where: str) -> None:
        """Every name that is used must have been made before: a program whose tail is missing is found here."""
        known = known | {variable.name for variable in block.inputs}
        for operation in block.operations:
            for arguments in operation.inputs.values():
                for argument in arguments:
                    if isinstance(argument, Reference) and argument.name not in known:
                        raise ValueError(
                            f"{self._file}: damaged: {operation.type} '{operation.name}' in {where} reads"
                            f" '{argument.name}', which nothing before it makes"
                        )
            for inner in operation.blocks:
                self._check_references(inner, known, f"{operation.type} '{operation.name}'")
            known.update(variable.name for variable in operation.outputs)
        for name in block.outputs:
            if name not in known:
                raise ValueError(f"{self._file}: damaged: the output '{name}' of {where} is made by nothing")

    def _block(self, block: Any, where: str) -> Block:
        return Block(
            inputs=tuple(self._variable(value, where) for value in block.inputs),
            outputs=tuple(block.outputs),
            operations=tuple(self._operation(operation, where) for operation in block.operations),
        )

    def _operation(self, operation: Any, where: str) -> Operation:
        named = operation.attributes.get("name")
        name = operation.outputs[0].name if operation.outputs else operation.type
        if named is not None:
            name = str(self._constant(named, f"the name of a {operation.type} in {where}").python())
        here = f"{operation.type} '{name}'"
        if not operation.type:
            raise ValueError(f"{self._file}: damaged: an operator without a type in {where}")

        def argument(binding: Any, key: str) -> Argument:
            kind = binding.WhichOneof("binding")
            if kind == "name":
                return Reference(binding.name)
            if kind == "value":
                return self._constant(binding.value, f"input '{key}' of {here}")
            raise ValueError(f"{self._file}: damaged: input '{key}' of {here} is empty")

        return Operation(
            type=operation.type,
            name=name,
            inputs={
                key: tuple(argument(binding, key) for binding in bindings.arguments)
                for key, bindings in operation.inputs.items()
            },
            attributes={
                key: self._constant(value, f"attribute '{key}' of {here}")
                for key, value in operation.attributes.items()
                if key != "name"
            },
            outputs=tuple(self._variable(value, here) for value in operation.outputs),
            blocks=tuple(self._block(block, here) for block in operation.blocks),
        )

    def _variable(self, value: Any, where: str) -> Variable:
        if not value.name:
            raise ValueError(f"{self._file}: damaged: a variable without a name in {where}")
        return Variable(value.name, self._type(value.type, f"'{value.name}' in {where}"))

    def _type(self, value_type: Any, where: str) -> ValueType:
        kind = value_type.WhichOneof("type")
        if kind == "tensorType":
            tensor = value_type.tensorType
            dtype = self._dtypes.get(tensor.dataType)
            if dtype is None or dtype == "no type":
                raise ValueError(f"{self._file}: the dtype of {where} (code {tensor.dataType}) is not known")
            if tensor.rank < 0:
                return TensorType(dtype, None)
            if tensor.rank != len(tensor.dimensions):
                raise ValueError(
                    f"{self._file}: damaged: {where} has rank {tensor.rank} and {len(tensor.dimensions)} dimensions"
                )
            if any(dimension.unknown.variadic for dimension in tensor.dimensions):
                return TensorType(dtype, None)
            return TensorType(
                dtype,
                tuple(
                    int(dimension.constant.size) if dimension.WhichOneof("dimension") == "constant" else None
                    for dimension in tensor.dimensions
                ),
            )
        if kind == "listType":
            return OtherType("list", (self._type(value_type.listType.type, where),))
        if kind == "dictionaryType":
            both = value_type.dictionaryType
            return OtherType("dictionary", (self._type(both.keyType, where), self._type(both.valueType, where)))
        if kind == "tupleType":
            return OtherType("tuple", tuple(self._type(item, where) for item in value_type.tupleType.types))
        if kind == "stateType":
            return OtherType("state", (self._type(value_type.stateType.wrappedType, where),))
        raise ValueError(f"{self._file}: damaged: {where} has no type")

    def _constant(self, value: Any, where: str) -> Constant:
        declared = self._type(value.type, where)
        kind = value.WhichOneof("value")
        if kind == "blobFileValue":
            if not isinstance(declared, TensorType):
                raise ValueError(f"{self._file}: {where}: only tensors can lie in a weight file")
            return self._from_file(value.blobFileValue, declared, where)
        if kind != "immediateValue":
            raise ValueError(f"{self._file}: damaged: {where} has no value")
        immediate = value.immediateValue
        kind = immediate.WhichOneof("value")
        if kind == "tensor" and isinstance(declared, TensorType):
            return self._immediate(immediate.tensor, declared, where)
        if kind in ("list", "tuple"):
            items = tuple(self._constant(item, where) for item in getattr(immediate, kind).values)
            return Constant(declared, items, sum(item.stored_bytes for item in items))
        if kind == "dictionary":
            pairs = [
                (self._constant(pair.key, where), self._constant(pair.value, where))
                for pair in immediate.dictionary.values
            ]
            return Constant(
                declared,
                {key.python(): item.python() for key, item in pairs},
                sum(key.stored_bytes + item.stored_bytes for key, item in pairs),
            )
        raise ValueError(f"{self._file}: damaged: the value of {where} is not of the type that it declares")

    def _shape(self, declared: TensorType, where: str) -> tuple[int, ...]:
        if declared.shape is None or any(size is None for size in declared.shape):
            raise ValueError(f"{self._file}: damaged: {where} is a constant of open shape")
        return tuple(size for size in declared.shape if size is not None)

    def _immediate(self, tensor: Any, declared: TensorType, where: str) -> Constant:
        shape = self._shape(declared, where)
        count = math.prod(shape)
        kind = tensor.WhichOneof("value")
        dtype = declared.dtype
        if kind is None and count:
            raise ValueError(f"{self._file}: damaged: {where} has no values")
        values: Any = getattr(tensor, kind).values if kind is not None else ()
        if dtype == "string":
            array = np.array(list(values), object)
            stored = sum(len(text.encode()) for text in values)
        elif dtype not in NUMPY_DTYPES:
            raise ValueError(f"{self._file}: {where}: values of {dtype} cannot be read")
        elif kind == "bytes":
            try:
                array = unpack(values, count, dtype)
            except ValueError as error:
                raise ValueError(f"{self._file}: damaged: {where}: {error}") from error
            stored = len(values)
        else:
            try:
                array = np.array(values, NUMPY_DTYPES[dtype])
            except (OverflowError, ValueError, TypeError) as error:
                raise ValueError(f"{self._file}: damaged: {where}: {error}") from error
            stored = packed_bytes(count, dtype)
        if array.size != count:
            raise ValueError(f"{self._file}: damaged: {where} has {array.size} values; its shape {list(shape)} {count}")
        return Constant(declared, self._shaped(array, shape, where), stored)

    def _from_file(self, blob: Any, declared: TensorType, where: str) -> Constant:
        shape = self._shape(declared, where)
        weights = self._weights.get(blob.fileName)
        if weights is None:
            inside = PurePosixPath(blob.fileName.removeprefix("@model_path/"))
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"{self._file}: {where}: the weight file '{inside}' would lie outside of the package")
            weights = self._weights[blob.fileName] = WeightFile.read(self._file.parent / inside)
        try:
            array = weights.values(int(blob.offset), declared.dtype, math.prod(shape))
        except ValueError as error:
            raise ValueError(f"{error} ({where})") from error
        array = self._shaped(array, shape, where)
        return Constant(declared, array, packed_bytes(array.size, declared.dtype), int(blob.offset))

    def _shaped(self, array: Array, shape: tuple[int, ...], where: str) -> Array:
        try:
            array = array.reshape(shape)
        except (ValueError, OverflowError) as error:  # no values, and sizes beyond what an array may have
            raise ValueError(f"{self._file}: damaged: {where}: {error}") from error
        array.flags.writeable = False
        return array

    def _feature(self, feature: Any) -> Feature:
        kind = feature.type.WhichOneof("Type")
        more: dict[str, Any] = {}
        try:
            if kind == "imageType":
                more = {"kind": "image", **_image(feature.type.imageType)}
            elif kind == "multiArrayType":
                more = {"kind": "array", **_array(feature.type.multiArrayType)}
            elif kind == "stateType":
                more = {"kind": "state", **_array(feature.type.stateType.arrayType)}
            elif kind is not None:
                more = {"kind": kind.removesuffix("Type")}
            else:
                raise ValueError("it has no type")
        except ValueError as error:  # also protobuf's, of an enumerator that is not known
            raise ValueError(f"{self._file}: damaged: input or output '{feature.name}': {error}") from error
        return Feature(
            name=feature.name, optional=feature.type.isOptional, description=feature.shortDescription, **more
        )


def _array(array: Any) -> dict[str, Any]:
    name = type(array).ArrayDataType.Name(array.dataType) if array.dataType else "FLOAT32"
    return {
        "dtype": {"DOUBLE": "float64"}.get(name, name.lower()),
        "shape": _sizes(array.shape),
        "enumerated": tuple(_sizes(shape.shape) for shape in array.enumeratedShapes.shapes),
        "ranges": tuple((int(size.lowerBound), int(size.upperBound)) for size in array.shapeRange.sizeRanges),
    }


def _image(image: Any) -> dict[str, Any]:
    color = type(image).ColorSpace.Name(image.colorSpace)
    found: dict[str, Any] = {
        "dtype": "float16" if color.endswith("FLOAT16") else "uint8",
        "shape": (int(image.height), int(image.width)),
        "color": color,
        "enumerated": tuple((int(size.height), int(size.width)) for size in image.enumeratedSizes.sizes),
    }
    if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
        both = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        found["ranges"] = tuple((int(size.lowerBound), int(size.upperBound)) for size in both)
    return found


def _sizes(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
