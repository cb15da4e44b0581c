"""Another version of the default operator set for a canonical graph, by rewriting what changed between the two.

Source: the operator changelog of ONNX (``docs/Changelog.md``). An operator whose version is the same in both sets
stays. One whose change only admitted more types stays, as float32 and 8-bit integers were there before. The rest is
rewritten where an equal form exists, and refused where none does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.model import named_initializer

OLDEST = 13
"""DequantizeLinear has one scale per channel from here on."""

Array = npt.NDArray[Any]

TYPES_ONLY = frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "Cast", "CastLike", "Clip", "Concat", "Constant", "ConstantOfShape",
        "Conv", "ConvTranspose", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout",
        "DynamicQuantizeLinear",
        "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "Gemm",
        "GlobalAveragePool", "GlobalMaxPool", "Greater", "HardSigmoid", "Identity", "InstanceNormalization",
        "LeakyRelu", "Less", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max", "MaxPool", "Min", "Mod", "Mul",
        "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "ReduceSum", "Relu", "Reshape", "Round",
        "ScatterElements",
        "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Sqrt", "Squeeze",
        "Sub", "Sum", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
    }
)  # fmt: skip
"""Between opset 13 and the newest these changed their types, or got attributes whose defaults are the old meaning."""

AXES_AS_INPUT = frozenset(
    {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
     "ReduceSumSquare"}
)  # fmt: skip
"""Axes are an attribute up to opset 17 and an input from 18."""


def convert_opset(model: ir.Model, version: int) -> None:
    """Rewrite ``model`` in place to ``version`` of the default domain.

    Args:
        model: static shapes and types known, no subgraphs.
        version: ``OLDEST`` or later.

    Raises:
        ValueError: a node has no equal form in that version; the message names it. The model may be half rewritten.
    """
    import onnx

    graph = model.graph
    source = graph.opset_imports.get("", 1)
    if version == source:
        return
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= version <= newest:
        raise ValueError(f"opset {version} is not between {OLDEST} and {newest}")
    for node in list(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is not None and rewrite(graph, node, source, version):
            continue
        before = _since(node.op_type, source)
        after = _since(node.op_type, version)
        if before == after:
            continue
        if after is None or node.op_type not in TYPES_ONLY | _REWRITES.keys():
            raise ValueError(f"node {node.name}: {node.op_type} of opset {source} has no equal form in opset {version}")
        _check_attributes(node, source, version)
    graph.opset_imports[""] = version


def _since(op_type: str, version: int) -> int | None:
    import onnx

    try:
        return int(onnx.defs.get_schema(op_type, max_inclusive_version=version).since_version)
    except onnx.defs.SchemaError:
        return None


def _check_attributes(node: ir.Node, source: int, version: int) -> None:
    """Drop attributes that the version does not know where they say the default; refuse another value."""
    import onnx

    known = onnx.defs.get_schema(node.op_type, max_inclusive_version=version).attributes
    declared = onnx.defs.get_schema(node.op_type, max_inclusive_version=source).attributes
    for name in [name for name in node.attributes if name not in known]:
        value = node.attributes[name].value
        default = onnx.helper.get_attribute_value(declared[name].default_value) if name in declared else None
        neutral = (
            _NEUTRAL[name](value)
            if name in _NEUTRAL
            else value == (default.decode() if isinstance(default, bytes) else default)
        )
        if not neutral:
            raise ValueError(f"node {node.name}: {name}={value} of {node.op_type} does not exist in opset {version}")
        del node.attributes[name]


_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "dilations": lambda value: all(step == 1 for step in value),
    "block_size": lambda value: value == 0,
    "saturate": lambda value: True,  # concerns float8 only
    "output_dtype": lambda value: value == 0,
    "precision": lambda value: value == 0,
}


# One function per operator that changed its form. True: done, or nothing to do. False: look at versions.


def _gelu(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if version >= 20:
        return True
    make = _Maker(graph, node)
    x = node.inputs[0]
    half_x = make("Mul", x, make.number(0.5))
    if node.attributes.get_string("approximate", "none") == "tanh":
        # 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
        cube = make("Mul", make("Mul", x, x), x)
        inner = make(
            "Mul", make("Add", x, make("Mul", cube, make.number(0.044715))), make.number(math.sqrt(2 / math.pi))
        )
        curve = make("Tanh", inner)
    else:  # 0.5·x·(1 + erf(x/√2))
        curve = make("Erf", make("Mul", x, make.number(1 / math.sqrt(2))))
    make.replace(make("Mul", half_x, make("Add", curve, make.number(1))))
    return True


def _layer_normalization(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if version >= 17:
        return True
    if len([value for value in node.outputs if value.uses() or value.is_graph_output()]) > 1:
        raise ValueError(f"node {node.name}: mean and deviation of LayerNormalization are read")
    make = _Maker(graph, node)
    x, scale = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    rank = len(x.shape) if x is not None and x.shape is not None else 0
    axis = node.attributes.get_int("axis", -1) % max(rank, 1)
    axes = list(range(axis, rank))
    centred = make("Sub", x, make("ReduceMean", x, axes=axes, keepdims=1))
    variance = make("ReduceMean", make("Mul", centred, centred), axes=axes, keepdims=1)
    deviation = make("Sqrt", make("Add", variance, make.number(node.attributes.get_float("epsilon", 1e-5))))
    normal = make("Mul", make("Div", centred, deviation), scale)
    make.replace(make("Add", normal, bias) if bias is not None else normal)
    return True


def _hard_swish(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if version >= 14:
        return True
    make = _Maker(graph, node)
    make.replace(make("Mul", node.inputs[0], make("HardSigmoid", node.inputs[0], alpha=1 / 6, beta=0.5)))
    return True


def _mish(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if version >= 18:
        return False
    make = _Maker(graph, node)
    make.replace(make("Mul", node.inputs[0], make("Tanh", make("Softplus", node.inputs[0]))))
    return True


def _reduce(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if (source < 18) == (version < 18):
        return True
    if version >= 18:
        if (axes := node.attributes.pop("axes", None)) is not None:
            constant = _Maker(graph, node).array(np.asarray(axes.as_ints(), np.int64))
            node.resize_inputs(2)
            node.replace_input_with(1, constant)
        return True
    axes_input = node.inputs[1] if len(node.inputs) > 1 else None
    if axes_input is not None:
        node.attributes["axes"] = ir.AttrInt64s("axes", _constant(node, axes_input).tolist())
    elif node.attributes.get_int("noop_with_empty_axes", 0):
        raise ValueError(f"node {node.name}: {node.op_type} without axes that does nothing")
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)
    return True


def _split(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if "num_outputs" not in node.attributes and version >= 18 and (len(node.inputs) < 2 or node.inputs[1] is None):
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    if version >= 18:
        return True
    node.attributes.pop("num_outputs", None)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        axis = node.attributes.get_int("axis", 0)
        sizes = [_shape(node, value)[axis] for value in node.outputs]
        constant = _Maker(graph, node).array(np.asarray(sizes, np.int64))
        node.resize_inputs(2)
        node.replace_input_with(1, constant)
    return True


def _pad(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if version < 19 and node.attributes.get_string("mode", "constant") == "wrap":
        raise ValueError(f"node {node.name}: Pad that wraps does not exist in opset {version}")
    if version < 18:
        expand_pad_axes(graph, node)
    return True


def expand_pad_axes(graph: ir.Graph, node: ir.Node) -> None:
    """A Pad of some axes as a Pad of all. ValueError if its pads or axes are not constant."""
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if axes is None:
        return
    rank = len(_shape(node, node.inputs[0]))
    pads, named = _constant(node, node.inputs[1]), _constant(node, axes) % rank
    full = np.zeros(2 * rank, np.int64)
    full[named], full[named + rank] = pads[: len(named)], pads[len(named) :]
    node.replace_input_with(1, _Maker(graph, node).array(full))
    node.resize_inputs(3 if node.inputs[2] is not None else 2)


def _resize(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if version < 19 and node.attributes.get_string("coordinate_transformation_mode", "") == "half_pixel_symmetric":
        raise ValueError(f"node {node.name}: Resize with half_pixel_symmetric does not exist in opset {version}")
    if version >= 18:
        return True
    if node.attributes.get_int("antialias", 0):
        raise ValueError(f"node {node.name}: Resize with antialias does not exist in opset {version}")
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError(f"node {node.name}: Resize that keeps the aspect ratio does not exist in opset {version}")
    for name in ("antialias", "keep_aspect_ratio_policy"):
        node.attributes.pop(name, None)
    if (axes := node.attributes.pop("axes", None)) is not None:
        shape = _shape(node, node.inputs[0])
        for index, full in ((2, np.ones(len(shape), np.float32)), (3, np.asarray(shape, np.int64))):
            given = node.inputs[index] if len(node.inputs) > index else None
            if given is not None and (part := _constant(node, given)).size:
                full[list(axes.as_ints())] = part
                node.replace_input_with(index, _Maker(graph, node).array(full))
    return True


def _average_pool(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    return (source < 19) == (version < 19)


def _grid_sample(graph: ir.Graph, node: ir.Node, source: int, version: int) -> bool:
    if version < 16:
        raise ValueError(f"node {node.name}: GridSample does not exist in opset {version}")
    names = {"bilinear": "linear", "bicubic": "cubic"}
    if (source < 20) != (version < 20):
        mode = node.attributes.get_string("mode", "linear" if source >= 20 else "bilinear")
        names = names if version >= 20 else {new: old for old, new in names.items()}
        node.attributes["mode"] = ir.AttrString("mode", names.get(mode, mode))
    return True


_REWRITES: dict[str, Callable[[ir.Graph, ir.Node, int, int], bool]] = {
    "AveragePool": _average_pool,
    "Gelu": _gelu,
    "GridSample": _grid_sample,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "Mish": _mish,
    "Pad": _pad,
    "Resize": _resize,
    "Split": _split,
    **dict.fromkeys(AXES_AS_INPUT, _reduce),
}


class _Maker:
    """Makes the nodes that stand for one node, before it, in its type."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph = graph
        self._node = node
        self._count = 0
        value = node.inputs[0] if node.inputs else None
        self._dtype = value.dtype if value is not None and value.dtype is not None else ir.DataType.FLOAT

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: int | float | Sequence[int]) -> ir.Value:
        made = ir.node(op_type, list(inputs), attributes)
        value = made.outputs[0]
        value.name, value.dtype = self._name(), self._dtype
        self._graph.insert_before(self._node, [made])
        return value

    def number(self, value: float) -> ir.Value:
        return self.array(np.asarray(value, self._dtype.numpy()))

    def array(self, array: Array) -> ir.Value:
        return named_initializer(self._graph, self._name(), array)

    def replace(self, value: ir.Value) -> None:
        """``value`` takes the place and the name of the node's output."""
        old, last = self._node.outputs[0], value.producer()
        assert last is not None
        value.name, value.type, value.shape = old.name, old.type, old.shape
        last.name = self._node.name
        old.name = None
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)

    def _name(self) -> str:
        self._count += 1
        return f"{self._node.outputs[0].name}__{self._node.op_type.lower()}_{self._count}"


def _constant(node: ir.Node, value: ir.Value | None) -> Array:
    if value is None or value.const_value is None:
        raise ValueError(f"node {node.name}: {value.name if value is not None else 'an input'} is not constant")
    return value.const_value.numpy()


def _shape(node: ir.Node, value: ir.Value | None) -> list[int]:
    sizes = list(value.shape) if value is not None and value.shape is not None else [None]
    if any(not isinstance(size, int) for size in sizes):
        raise ValueError(f"node {node.name}: the shape of {value.name if value is not None else 'an input'} is open")
    return [size for size in sizes if isinstance(size, int)]
