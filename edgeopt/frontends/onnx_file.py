"""What is wrong with an ONNX file, found before anything is made of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from edgeopt.errors import ModelError, UnsupportedOperator
from edgeopt.graph.model import OPSET

OLDEST_OPSET = 9
DAMAGED = "The file is damaged: export or download it again."
_MAY_READ_INF = frozenset({"Clip", "Min", "Max", "Where", "Pad", "Expand", "Cast", "ConstantOfShape", "Equal", "Trilu"})
"""Operators for which ±∞ is a bound or a mask and no broken weight; Add may read −∞ (an attention mask)."""
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def read_file(path: Path) -> tuple[onnx.ModelProto, list[Path]]:
    """The file's content, checked, and the other files that hold weights of it (external data), in its folder.

    Raises:
        ModelError: missing, truncated, damaged or no ONNX; external data that is missing, short or elsewhere.
        UnsupportedOperator: a node outside of ONNX's operators.
    """
    proto = _read(path)
    files = _external_files(proto, path)
    _check(proto, path)
    return proto, files


def refuse_unusable(model: ir.Model, path: Path) -> None:
    """Raise for weights that hold NaN or Inf, and for a model that was exported in train mode.

    Raises:
        ModelError: with the name of the tensor or the nodes.
    """
    _refuse_broken_weights(model, path)
    _refuse_train_mode(model, path)


def shortened(error: BaseException, limit: int = 400) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + " …"


def _read(path: Path) -> onnx.ModelProto:
    if not path.exists():
        near = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, 1)
        raise ModelError(
            "there is no such file",
            where=str(path),
            hint=f"Did you mean {close[0]!r}?" if close else "Check the path; it is relative to the recipe.",
        )
    if path.is_dir():
        raise ModelError("this is a folder, not an ONNX file", where=str(path), hint="Name the .onnx file in it.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    hint = "Export or download the model again; a file that was cut short or a web page saved as .onnx looks like this."
    if not data:
        raise ModelError("the file is empty", where=str(path), hint=hint)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError("this is no ONNX model, or only a part of one", where=str(path), hint=hint) from error
    if not _has_text(proto):
        raise ModelError("this file is damaged: its names are no text", where=str(path), hint=hint)
    if not proto.ir_version or not proto.graph.node or not proto.opset_import:
        raise ModelError("this is no ONNX model: it has no graph or no opset", where=str(path), hint=hint)
    return proto


def _has_text(message: Message) -> bool:
    """Whether all strings in the file are UTF-8; protobuf only finds out when one is read."""
    try:
        for field, value in message.ListFields():
            many = value if field.is_repeated else (value,)
            if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in many):
                return False
            if field.type == field.TYPE_MESSAGE and not all(_has_text(inner) for inner in many):
                return False
    except UnicodeDecodeError:
        return False
    return True


def _check(proto: onnx.ModelProto, path: Path) -> None:
    """ONNX's own rules, and the operators that we can know anything about."""
    known = {"", "ai.onnx"}
    functions = {(function.domain, function.name) for function in proto.functions}
    for node in proto.graph.node:
        if node.domain not in known and (node.domain, node.op_type) not in functions:
            raise UnsupportedOperator(
                f"{node.op_type} belongs to the domain {node.domain!r}, which is no part of ONNX",
                where=f"{path}: node {_node_name(node)!r} ({node.op_type})",
                hint="Export the model without custom or runtime-specific operators (unoptimised, for ONNX Runtime's).",
            )
        if node.domain in known and not onnx.defs.has(node.op_type):
            raise UnsupportedOperator(
                f"ONNX has no operator {node.op_type}",
                where=f"{path}: node {_node_name(node)!r} ({node.op_type})",
                hint="Export the model with standard ONNX operators.",
            )
    version = next((o.version for o in proto.opset_import if o.domain in known), 0)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= version <= newest:
        raise ModelError(
            f"the model uses opset {version}; edgeopt reads {OLDEST_OPSET} to {newest}",
            where=str(path),
            hint=f"Export it again with opset_version={OPSET}.",
        )
    for tensor in _tensors(proto.graph):
        if tensor.data_type not in onnx.TensorProto.DataType.values():
            raise ModelError(f"the weight {tensor.name!r} has no known dtype", where=str(path), hint=DAMAGED)
    try:
        onnx.checker.check_model(_structure(proto))
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"the file breaks ONNX's rules: {shortened(error)}",
            where=str(path),
            hint="The file is damaged, or its exporter is: export it again.",
        ) from error


def _structure(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker whose weights are graph inputs; their data is checked where it is read."""
    small = onnx.ModelProto()
    for field in ("ir_version", "producer_name", "model_version", "domain"):
        setattr(small, field, getattr(proto, field))
    small.opset_import.extend(proto.opset_import)
    small.functions.extend(proto.functions)
    graph = small.graph
    graph.name = proto.graph.name
    for field in ("node", "input", "output", "value_info", "quantization_annotation", "sparse_initializer"):
        getattr(graph, field).extend(getattr(proto.graph, field))
    have = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in have:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return small


def _node_name(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type}_{node.output[0] if node.output else ''}"


def _external_files(proto: onnx.ModelProto, path: Path) -> list[Path]:
    """Files that hold weights. They must lie in the model's folder: a path out of it could read any file."""
    files: dict[Path, None] = {}
    root = path.parent.resolve()
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = (root / location).resolve()
        if not location or Path(location).is_absolute() or not file.is_relative_to(root):
            raise ModelError(
                f"the weight {tensor.name!r} says that its data lies in {location!r}, outside of the model's folder",
                where=str(path),
                hint="Such a file can read anything on this machine. Save the model again, with its data beside it.",
            )
        if not file.is_file():
            raise ModelError(
                f"the weight {tensor.name!r} lies in {location!r}, and that file is not there",
                where=str(path),
                hint="A model with external data is several files: keep them together.",
            )
        try:
            offset = int(entries.get("offset") or 0)
            element = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            length = int(entries.get("length") or int(np.prod(tensor.dims, dtype=np.int64)) * element)
        except (ValueError, KeyError) as error:
            raise ModelError(f"the weight {tensor.name!r} has a broken place in its file", where=str(path)) from error
        if offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise ModelError(
                f"the file ends before the weight {tensor.name!r} does",
                where=str(file),
                hint="The file was cut short: export or download it again.",
            )
        files[file] = None
    return sorted(files)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _refuse_broken_weights(model: ir.Model, path: Path) -> None:
    for name, value in model.graph.initializers.items():
        readers = [use.node for use in value.uses()]
        _refuse_broken(name, value.const_value, readers, path)
    for node in model.graph:
        if node.op_type == "Constant" and (attribute := node.attributes.get("value")) is not None:
            readers = [use.node for use in node.outputs[0].uses()]
            _refuse_broken(node.outputs[0].name or "", attribute.as_tensor(), readers, path)


def _refuse_broken(name: str, tensor: ir.TensorProtocol | None, readers: list[ir.Node], path: Path) -> None:
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return
    try:
        array = tensor.numpy()
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"the weight {name!r} has not the data that its shape {list(tensor.shape)} asks for",
            where=str(path),
            hint=DAMAGED,
        ) from error
    if tensor.dtype not in _FLOATS:
        return
    if np.isfinite(array).all():
        return
    has_nan = bool(np.isnan(array).any())
    users = {node.op_type for node in readers}
    allowed = _MAY_READ_INF | ({"Add"} if not np.isposinf(array).any() else set())
    if not has_nan and users <= allowed:
        return
    count = int((~np.isfinite(array)).sum())
    readers_text = ", ".join(f"{node.name or node.outputs[0].name!r} ({node.op_type})" for node in readers[:3])
    raise ModelError(
        f"the weight {name!r} holds {'NaN' if has_nan else 'Inf'}: {count} of {array.size} values",
        where=f"{path}: read by {readers_text}" if readers else str(path),
        hint="A training that diverged leaves such weights. Take an earlier checkpoint.",
    )


def _refuse_train_mode(model: ir.Model, path: Path) -> None:
    """Dropout that drops and BatchNormalization that takes its statistics from the batch."""
    version = model.opset_imports.get("", OPSET)
    training = []
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            by_outputs = version < 14 and len(node.outputs) > 1
            is_training = by_outputs or node.attributes.get_int("training_mode", 0) == 1
        else:
            flag = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
            array = ir.convenience.get_const_tensor(flag) if flag is not None else None
            is_training = array is not None and bool(array.numpy().all())
        if is_training:
            training.append(f"{node.name!r} ({node.op_type})")
    if training:
        more = f" and {len(training) - 5} more" if len(training) > 5 else ""
        raise ModelError(
            f"the model was exported in train mode: {', '.join(training[:5])}{more}",
            where=str(path),
            hint="Dropout and BatchNorm behave differently there. Call model.eval() before the export.",
        )
