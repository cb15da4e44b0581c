"""What stands in an ONNX file: operators by precision, every grid, sizes, and cuts of it for parity.

Reading and rewriting of files only; what a file ought to hold is the target's business.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.formats.cut import Cut
from edgeopt.graph.qdq import INTEGERS_SUFFIX
from edgeopt.types import Frozen, IoType, Preprocess, TensorSpec

PREPROCESS = "edgeopt.preprocess"
"""Key in the file's metadata: the preprocessing contract, as JSON of ``types.Preprocess``."""
LABELS = "edgeopt.labels"
"""Key in the file's metadata: class names, a JSON list."""
IO_QUANTIZATION = "edgeopt.io"
"""Key in the file's metadata: grids of integer inputs and outputs, JSON of name → scale, zero_point, dtype."""

FRESH_SUFFIX = "__fresh"
"""Name of the input that ``cut`` makes of a tensor: the tensor's own name and this."""

Precision = Literal["int8", "float16", "float32", "other"]
"""``other`` moves or converts and computes nothing."""

INT8_OPERATORS = frozenset(
    {
        "QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "QLinearAdd", "QLinearMul", "QLinearAveragePool", "QLinearGlobalAveragePool",
        "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearReduceMean", "QLinearWhere",
    }
)  # fmt: skip
"""Operators that compute on 8-bit integers, of ONNX and of ONNX Runtime (``com.microsoft``)."""

STATIC_PRODUCTS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"})
"""Those of them that stand for an ``int8`` weighted operator."""

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
"""ONNX Runtime's own changes of layout around float convolutions."""
MOVEMENT = frozenset(
    {
        "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Pad", "Concat",
        "Resize", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Identity", "Shape", "Constant",
    }
)  # fmt: skip

Array = npt.NDArray[Any]


class Grid(Frozen):
    """Scale and zero point of one tensor, as the file states them.

    ``scale`` and ``zero_point`` hold one number per tensor, or one per channel along ``axis``.
    """

    tensor: str
    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


class Layer(Frozen):
    """One operator: what computes it, and the bytes of the constants that only it reads."""

    name: str
    op_type: str
    precision: Precision
    bytes: int


class OnnxSummary(Frozen):
    """What ``inspect`` tells of an ONNX file."""

    opset: int
    producer: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: dict[Precision, dict[str, int]]
    """Precision → operator type → how many."""
    grids: tuple[Grid, ...]
    layers: tuple[Layer, ...]
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    io: tuple[Grid, ...] = ()


@dataclass(frozen=True)
class IoGrid:
    """Grid of an integer input or output."""

    scale: float
    zero_point: int
    dtype: IoType


def load(source: Path | bytes) -> ir.Model:
    """Read a file, or its bytes; types and shapes of all values are inferred, as files need not hold them.

    Raises:
        ModelError: it is no ONNX model.
    """
    import onnx

    proto = _read(source)
    try:
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"not a readable ONNX model: {error}", where=_where(source)) from error


def _read(source: Path | bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    except (OSError, ValueError, TypeError, DecodeError) as error:
        raise ModelError(f"not a readable ONNX model: {error}", where=_where(source)) from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelError("not an ONNX model: it holds no graph", where=_where(source))
    return proto


def _where(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "ONNX model in memory"


def summarise(path: Path) -> OnnxSummary:
    """Everything that ``inspect`` shows of an ONNX file.

    Raises:
        ModelError: it is no ONNX model.
    """
    model = load(path)
    layers = tuple(
        Layer(name=name, op_type=node.op_type, precision=precision_of(node), bytes=_own_bytes(node))
        for node, name in zip(model.graph, names_of(model.graph), strict=True)
        if node.op_type not in CONVERSIONS and not _reads_constants(node)
    )
    ops: dict[Precision, Counter[str]] = defaultdict(Counter)
    for node in model.graph:
        ops[precision_of(node)][node.op_type] += 1
    preprocess = model.metadata_props.get(PREPROCESS)
    return OnnxSummary(
        opset=model.graph.opset_imports.get("", 0),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        size_bytes=path.stat().st_size,
        inputs=tuple(spec(value) for value in model.graph.inputs if value.const_value is None),
        outputs=tuple(spec(value) for value in model.graph.outputs),
        ops={key: dict(sorted(counts.items())) for key, counts in sorted(ops.items())},
        grids=grids(model),
        layers=layers,
        preprocess=Preprocess.model_validate_json(preprocess) if preprocess else None,
        labels=tuple(json.loads(model.metadata_props.get(LABELS, "[]"))),
        io=tuple(
            Grid(tensor=name, dtype=grid.dtype, scale=(grid.scale,), zero_point=(grid.zero_point,))
            for name, grid in io_grids(model.metadata_props).items()
        ),
    )


def spec(value: ir.Value) -> TensorSpec:
    """Name, numpy dtype and shape of an input or output; an open size is −1."""
    return TensorSpec(
        name=value.name or "",
        dtype=value.dtype.numpy().name if value.dtype is not None else "float32",
        shape=tuple(size if isinstance(size, int) else -1 for size in value.shape or ()),
    )


def io_grids(metadata: Mapping[str, str]) -> dict[str, IoGrid]:
    """Grids of integer inputs and outputs, from a file's metadata (``metadata``)."""
    stored = json.loads(metadata.get(IO_QUANTIZATION, "{}"))
    return {name: IoGrid(**grid) for name, grid in stored.items()}


def metadata(path: Path) -> dict[str, str]:
    """The file's metadata properties.

    Raises:
        ModelError: it is no ONNX model.
    """
    return {prop.key: prop.value for prop in _read(path).metadata_props}


def grids(model: ir.Model) -> tuple[Grid, ...]:
    """Every grid that a Quantize- or DequantizeLinear node with constant scale states, once per tensor."""
    found: dict[str, Grid] = {}
    for node in model.graph:
        if node.op_type == "Mul":
            grid = _grid_of_product(node)
            if grid is not None:
                found.setdefault(grid.tensor, grid)
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 2:
            continue
        integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        scale = _array(node.inputs[1])
        if integers is None or scale is None:
            continue
        stored = _array(node.inputs[2]) if len(node.inputs) > 2 else None
        zero_point = stored if stored is not None else np.zeros(scale.shape, np.int32)
        dtype = integers.dtype.numpy().name if integers.dtype is not None else zero_point.dtype.name
        name = (integers.name or "").removesuffix(INTEGERS_SUFFIX)
        found.setdefault(
            name,
            Grid(
                tensor=name,
                dtype=dtype,
                scale=tuple(float(x) for x in scale.ravel()),
                zero_point=tuple(int(x) for x in zero_point.ravel()),
                axis=node.attributes.get_int("axis", 1) if scale.size > 1 else None,
            ),
        )
    return tuple(found.values())


def _grid_of_product(node: ir.Node) -> Grid | None:
    """Grid of a constant that Cast and Mul dequantize: integer weights that a runtime is to fold into floats."""
    cast = node.inputs[0].producer() if node.inputs[0] is not None else None
    integers = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    scale, stored = _array(node.inputs[1]), _array(integers)
    if integers is None or scale is None or stored is None or stored.dtype.kind not in "iu":
        return None
    return Grid(
        tensor=(integers.name or "").removesuffix(INTEGERS_SUFFIX),
        dtype=stored.dtype.name,
        scale=tuple(float(x) for x in scale.ravel()),
        zero_point=(0,) * scale.size,
        axis=int(np.argmax(scale.shape)) if scale.size > 1 else None,
    )


def precision_of(node: ir.Node) -> Precision:
    """In what a node computes, in a Q/DQ file or one with integer operators; types must be known (``load``).

    A node between Dequantize- and QuantizeLinear counts as int8: that is the form's meaning. Whether a runtime takes
    it so is read from what the runtime makes of the file.
    """
    if node.op_type in INT8_OPERATORS:
        return "int8"
    if node.op_type in CONVERSIONS or node.op_type in REORDERS or not node.outputs or _reads_constants(node):
        return "other"
    made = node.outputs[0].dtype
    if made in (ir.DataType.INT8, ir.DataType.UINT8):
        return "int8"
    if made == ir.DataType.FLOAT16:
        return "float16"
    if made not in (ir.DataType.FLOAT, None):
        return "other"
    producers = [value.producer() for value in node.inputs if value is not None and not _is_constant(value)]
    integers = [
        producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None
        for producer in producers
    ]
    if integers and all(value is not None for value in integers) and not all(map(_is_constant, integers)):
        after = [use.node.op_type for value in node.outputs for use in value.uses()]
        # A product whose inputs are integers sums integers, whatever its result is read as.
        if node.op_type in ("Gemm", "MatMul") or (after and all(op == "QuantizeLinear" for op in after)):
            return "int8"
    return "other" if node.op_type in MOVEMENT else "float32"


def cut(source: Path | bytes, names: Iterable[str]) -> Cut:
    """Cut a model at tensors: each becomes an output, as produced, and a fresh input, as consumed.

    So one run computes every segment on inputs of the caller's choice, and no error of one reaches another, whatever
    a runtime fuses within a segment. For a tensor ``X`` of the table the place of the cut is its integers ``X__q``
    where the file has them, else ``X`` itself (in float, if its last pair was dropped). Inputs and outputs of the
    model stay; an input that itself is integers of the table is consumed under its own name.

    Raises:
        ModelError: it is no ONNX model.
    """
    model = load(source)
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    inputs = {value.name: value for value in graph.inputs}
    known = {id(value) for value in graph.outputs}
    produced: dict[str, str] = {}
    consumed: dict[str, str] = {}
    missing: list[str] = []
    for name in dict.fromkeys(names):
        value = values.get(name + INTEGERS_SUFFIX) or values.get(name)
        if value is None or value.name is None:
            given = inputs.get(name)
            if given is not None and given.dtype != ir.DataType.FLOAT:
                consumed[name] = name
            else:
                missing.append(name)
            continue
        produced[name] = value.name
        if uses := list(value.uses()):
            fresh = ir.Value(name=f"{value.name}{FRESH_SUFFIX}", type=value.type, shape=value.shape)
            for use in uses:
                use.node.replace_input_with(use.idx, fresh)
            graph.inputs.append(fresh)
            consumed[name] = fresh.name or ""
        if id(value) not in known:
            known.add(id(value))
            graph.outputs.append(value)
    data: bytes = ir.to_proto(model).SerializeToString()
    return Cut(data, produced, consumed, tuple(missing))


def names_of(graph: ir.Graph) -> Sequence[str]:
    """A name for every node: its own, or what it makes."""
    return [node.name or (node.outputs[0].name if node.outputs else "") or node.op_type for node in graph]


def _own_bytes(node: ir.Node) -> int:
    """Constants that this node reads, through nodes that read nothing else (their dequantization) too."""
    total = 0
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if value is not None and _is_constant(value):
            assert value.const_value is not None
            total += value.const_value.nbytes
        elif producer is not None and _reads_constants(producer):
            total += _own_bytes(producer)
    return total


def _reads_constants(node: ir.Node) -> bool:
    return all(
        value is None or _is_constant(value) or (producer is not None and _reads_constants(producer))
        for value in node.inputs
        for producer in [value.producer() if value is not None else None]
    )


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _array(value: ir.Value | None) -> Array | None:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None
