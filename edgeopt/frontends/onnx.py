"""ONNX files, opset 9 and later, as float graphs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, InlinePass

from edgeopt import digest
from edgeopt.errors import ModelError
from edgeopt.frontends import Feed, Imported
from edgeopt.frontends.onnx_file import DAMAGED, read_file, refuse_unusable, shortened
from edgeopt.frontends.source_lines import note_lines, source_lines
from edgeopt.graph.constant_folding import fold_constants
from edgeopt.graph.model import OPSET, name_uniquely, on_small_copy, signature

_REFUSED_INPUTS = {
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.COMPLEX64: "complex64",
    ir.DataType.COMPLEX128: "complex128",
    ir.DataType.STRING: "string",
}


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
            f"ONNX Runtime cannot run the original model: {shortened(error)}",
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
    proto, files = read_file(path)
    try:
        model = ir.serde.deserialize_model(proto)
    except ir.serde.SerdeError as error:
        raise ModelError(
            f"the file cannot be read as a graph: {shortened(error.__cause__ or error)}", where=str(path), hint=DAMAGED
        ) from error
    if files:
        ir.external_data.set_base_dir(model.graph, path.parent)
        ir.external_data.load_to_model(model)
    where = source_lines(model)
    refuse_unusable(model, path)
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
                f"the model's opset {version} cannot be lifted to {OPSET}: {shortened(error)}",
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
