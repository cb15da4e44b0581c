"""ONNX files, opset 9 and later, as float graphs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, InlinePass

from edgeopt import digest
from edgeopt.errors import ModelError, UnsupportedOperator
from edgeopt.frontends import Feed, Imported
from edgeopt.frontends.source_lines import note_lines, source_lines
from edgeopt.graph.constant_folding import fold_constants
from edgeopt.graph.model import OPSET, name_uniquely, on_small_copy, signature

OLDEST_OPSET = 9
_REFUSED_INPUTS = {
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.COMPLEX64: "complex64",
    ir.DataType.COMPLEX128: "complex128",
    ir.DataType.STRING: "string",
}
_DAMAGED = "The file is damaged: export or download it again."
_MAY_READ_INF = frozenset({"Clip", "Min", "Max", "Where", "Pad", "Expand", "Cast", "ConstantOfShape", "Equal", "Trilu"})
"""Operators for which ±∞ is a bound or a mask and no broken weight; Add may read −∞ (an attention mask)."""


@dataclass(frozen=True)
class OnnxSource:
    """The original file, run by ONNX Runtime without graph optimisations."""

    path: Path
    threads: int = 1

    def run(self, samples: Iterable[Feed]) -> Iterator[Feed]:
        from edgeopt.runtimes.onnxruntime import Session

        try:
            session = Session(self.path, threads=self.threads, optimize=False)
        except ValueError as error:
            raise self._refusal(error) from error
        with session:
            for feed in samples:
                try:
                    outputs = session.run(feed)
                except ValueError as error:
                    raise self._refusal(error) from error
                yield outputs

    def _refusal(self, error: ValueError) -> ModelError:
        return ModelError(
            f"ONNX Runtime cannot run the original model: {_short(error)}",
            where=str(self.path),
            hint="The reference for all parity is the original, so it must run. Does it run outside edgeopt?",
        )


def load_onnx(path: Path, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Imported:
    """Read an ONNX file.

    Args:
        path: the file; external data lies in its folder or below.
        inputs: input name → shape, for inputs with open sizes. A batch that alone is open becomes 1 without being
            named here; every other open size must be.

    Raises:
        ModelError: missing, truncated or no ONNX; NaN or Inf weights; an input that is not there, or has another
            shape; open sizes; float64 or complex inputs; an opset that cannot be lifted to 20.
        UnsupportedOperator: a node outside of ONNX's operators, or one whose output's shape depends on the data.
    """
    path = Path(path)
    proto = _read(path)
    files = _external_files(proto, path)
    _check(proto, path)
    try:
        model = ir.serde.deserialize_model(proto)
    except ir.serde.SerdeError as error:
        raise ModelError(
            f"the file cannot be read as a graph: {_short(error.__cause__ or error)}", where=str(path), hint=_DAMAGED
        ) from error
    if files:
        ir.external_data.set_base_dir(model.graph, path.parent)
        ir.external_data.load_to_model(model)
    where = source_lines(model)
    _refuse_broken_weights(model, path)
    _refuse_train_mode(model, path)
    bind_inputs(model, inputs or {}, path)
    lift(model, path, where)
    return Imported(
        model=model,
        signature=signature(model),
        source=OnnxSource(path),
        digest=digest.of_json(
            [digest.of_file(file) for file in (path, *files)]
            + [sorted((name, list(sizes)) for name, sizes in (inputs or {}).items())]
        ),
        kind="onnx",
        where=where,
    )


def _short(error: BaseException, limit: int = 400) -> str:
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
            raise ModelError(f"the weight {tensor.name!r} has no known dtype", where=str(path), hint=_DAMAGED)
    try:
        onnx.checker.check_model(_structure(proto))
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"the file breaks ONNX's rules: {_short(error)}",
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
            hint=_DAMAGED,
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


_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


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


def bind_inputs(model: ir.Model, inputs: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Make every input's shape static, in place, and forget all shapes behind. Initializers are no inputs after it."""
    graph = model.graph
    for value in [v for v in graph.inputs if v.name in graph.initializers]:
        graph.inputs.remove(value)
    names = [value.name or "" for value in graph.inputs]
    for name in inputs:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            raise ModelError(
                f"the model has no input {name!r}; it has {', '.join(map(repr, names))}",
                where=str(path),
                hint=f"Did you mean {close[0]!r}?" if close else "Use one of these names.",
            )
    symbols: dict[str, int] = {}
    for value in graph.inputs:
        if value.name is not None and value.name in inputs:
            value.shape = ir.Shape(_bound_shape(value, tuple(inputs[value.name]), symbols, path))
    for value in graph.inputs:
        value.shape = ir.Shape(_closed_shape(value, symbols, path))
        if value.dtype in _REFUSED_INPUTS:
            raise ModelError(
                f"the input {value.name!r} is {_REFUSED_INPUTS[value.dtype]}",
                where=str(path),
                hint="Export the model in float32; the schemes fp16 and int8 lower it from there.",
            )
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for output in node.outputs:
            output.shape = None


def _sizes(value: ir.Value) -> list[int | str]:
    """Sizes as numbers, open ones as their symbol; a size that is 0, negative or nameless is open too."""
    result: list[int | str] = []
    for axis, size in enumerate(value.shape or ()):
        if isinstance(size, int) and size > 0:
            result.append(size)
        else:
            symbol = None if isinstance(size, int) else size.value
            result.append(symbol or f"{value.name}.{axis}")
    return result


def _text(sizes: Iterable[int | str]) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]"


def _bound_shape(value: ir.Value, wanted: tuple[int, ...], symbols: dict[str, int], path: Path) -> tuple[int, ...]:
    if not wanted or any(size < 1 for size in wanted):
        raise ModelError(
            f"{_text(wanted)} is no shape for the input {value.name!r}",
            where=str(path),
            hint="Every size is at least 1.",
        )
    if value.shape is None:
        return wanted
    declared = _sizes(value)
    fits = len(declared) == len(wanted)
    for size, want in zip(declared, wanted, strict=False):
        fits = fits and (size == want if isinstance(size, int) else symbols.setdefault(size, want) == want)
    if not fits:
        raise ModelError(
            f"the input {value.name!r} is {_text(declared)} in the model; it cannot be {_text(wanted)}",
            where=str(path),
            hint="Sizes that are numbers in the model are fixed, and one name is one size in all inputs. "
            "Layout is the model's own (NCHW for most).",
        )
    return wanted


def _closed_shape(value: ir.Value, symbols: dict[str, int], path: Path) -> tuple[int, ...]:
    if value.shape is None:
        raise ModelError(
            f"the model does not say which shape the input {value.name!r} has",
            where=str(path),
            hint=f"Say it: --input {value.name}=1,3,224,224, or model.inputs in the recipe.",
        )
    declared = _sizes(value)
    closed = [symbols.get(size, size) if isinstance(size, str) else size for size in declared]
    if closed and isinstance(closed[0], str) and all(isinstance(size, int) for size in closed[1:]):
        closed[0] = symbols.setdefault(closed[0], 1)
    if any(isinstance(size, str) for size in closed):
        example = ",".join(str(size) if isinstance(size, int) else str(size).upper() for size in closed)
        raise ModelError(
            f"the input {value.name!r} is {_text(declared)}: sizes are left open",
            where=str(path),
            hint=f"Bind them: --input {value.name}={example} with numbers, or model.inputs in the recipe.",
        )
    return tuple(int(size) for size in closed)


def lift(model: ir.Model, path: Path, where: Mapping[str, str]) -> None:
    """Opset 20, functions inlined, shapes inferred, constants folded, in place. Of exporters' notes only ``where``
    (node name → source line) stays, at the nodes."""
    model.ir_version = 10  # an initializer need be no input any more
    if model.functions:
        InlinePass()(model)
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", OPSET))
    if version != OPSET:
        try:
            proto = on_small_copy(model, lambda p: onnx.version_converter.convert_version(p, OPSET))
        except (RuntimeError, onnx.version_converter.ConvertError, onnx.checker.ValidationError) as error:
            raise ModelError(
                f"the model's opset {version} cannot be lifted to {OPSET}: {_short(error)}",
                where=str(path),
                hint=f"Export it again with opset_version={OPSET}.",
            ) from error
        _take_graph(model, ir.serde.deserialize_model(proto))
    ClearMetadataAndDocStringPass()(model)
    note_lines(model, where)
    model.opset_imports.clear()
    model.opset_imports[""] = OPSET
    try:
        fold_constants(model)
    except ModelError as error:
        there = f"{path}: {error.where}" if error.where else str(path)
        raise type(error)(error.what, where=there, hint=error.hint) from error
    model.producer_name, model.producer_version, model.domain, model.doc_string = "edgeopt", None, None, None
    model.metadata_props.clear()


def _take_graph(model: ir.Model, lifted: ir.Model) -> None:
    """Put the converted graph into the model, with the weights that the small copy only had as inputs."""
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    inputs = {value.name for value in model.graph.inputs}
    for value in list(lifted.graph.inputs):
        if value.name in inputs:
            continue
        lifted.graph.inputs.remove(value)
        assert value.name is not None
        value.const_value = weights[value.name]
        lifted.graph.register_initializer(value)
    name_uniquely(lifted.graph)
    for node in lifted.graph:
        for output in node.outputs:
            output.shape = None
    model.graph = lifted.graph
