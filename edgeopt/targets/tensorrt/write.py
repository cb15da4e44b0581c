"""``model.onnx`` of a bundle: TensorRT's table as Q/DQ pairs, in the form that one release reads.

It starts from the integer reference of TensorRT's own table (``table``) and changes nothing of what that means:

- Biases are float: TensorRT dequantizes no int32.
- Weights are int8 behind a DequantizeLinear; for 8.x float constants with both nodes, which round to the same integers.
- Weights of ``int8-weights`` and ``int8-dynamic`` nodes are the float values of their integers: TensorRT quantizes
  nothing at run time, and computes such nodes in float.
- The opset is the highest of the release in which every operator is one that its table lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import UnsupportedOperator
from edgeopt.graph.model import named_initializer, remove_unused
from edgeopt.graph.opset import OLDEST, convert_opset, expand_pad_axes
from edgeopt.graph.pairs import real_values
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.targets.fp16 import compute_in_fp16
from edgeopt.targets.onnx_file import stamp, strip_notes
from edgeopt.targets.tensorrt.operators import repair
from edgeopt.targets.tensorrt.versions import Version
from edgeopt.types import NO_METADATA, Metadata

Array = npt.NDArray[Any]


def write_model(graph: QuantizedGraph, version: Version, metadata: Metadata) -> ir.Model:
    """The model of the bundle.

    Args:
        graph: with TensorRT's own table.
        version: the release it is for.
        metadata: what travels in the file.

    Raises:
        UnsupportedOperator: one that the release does not read.
        TargetError: a weight that float16 cannot hold.
    """
    model = to_qdq(graph)
    table = graph.quantization or Quantization()
    _float_biases(model.graph)
    _float_weights(model.graph, table, integer_weights=version.integer_weights)
    compute_in_fp16(model.graph, lambda node: table.scheme(node) == "fp16")
    return finished(model, version, metadata)


def write_half(graph: QuantizedGraph, version: Version) -> ir.Model:
    """The companion: the float graph with everything between its inputs and outputs in float16."""
    model = graph.model.clone()
    compute_in_fp16(model.graph, lambda node: True)
    return finished(model, version)


def write_float(graph: QuantizedGraph, version: Version, metadata: Metadata) -> ir.Model:
    """For the DLA: no pairs, and weights and biases as the float values of their integers.

    The table's, not the float graph's: equalisation scaled channels there, and the activation grids are for those.
    """
    model = to_qdq(graph, fold_weights=True)
    for node in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        quantize = node.inputs[0].producer() if node.inputs[0] is not None else None
        real = quantize.inputs[0] if quantize is not None else None
        if quantize is None or real is None:
            continue
        read = node.outputs[0]
        was_output = read.is_graph_output()
        ir.convenience.replace_all_uses_with(read, real, replace_graph_outputs=True)
        if was_output:
            real.name, read.name = read.name, None
        model.graph.remove([node, quantize], safe=True)
    return finished(model, version, metadata)


def finished(model: ir.Model, version: Version, metadata: Metadata = NO_METADATA) -> ir.Model:
    """The model in the release's opset, without what is not the model."""
    for node in list(model.graph):
        if node.op_type == "Pad":
            expand_pad_axes(model.graph, node)  # 10.3 and before do not take its axes as an input
    model = _in_opset(model, version)
    remove_unused(model.graph)
    strip_notes(model.graph)
    stamp(model, metadata)
    return model


def check_operators(model: ir.Model, version: Version) -> None:
    """Refuse a float graph with an operator that the release does not read in any opset: UnsupportedOperator."""
    _in_opset(model, version)


# --- weights and biases


def _float_biases(graph: ir.Graph) -> None:
    """A bias that is int32 behind a DequantizeLinear becomes the float constant that it stands for."""
    for node in list(graph):
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.const_value is None or stored.dtype != ir.DataType.INT32:
            continue
        _replace(graph, node, real_values(node), (stored.name or "").removesuffix(INTEGERS_SUFFIX))


def _float_weights(graph: ir.Graph, table: Quantization, *, integer_weights: bool) -> None:
    for node in list(graph):
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.const_value is None or stored.dtype != ir.DataType.INT8:
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        in_float = all(one.op_type in WEIGHTED and table.scheme(one) != "int8" for one in readers)
        if integer_weights and not in_float:
            continue
        real, name = real_values(node), (stored.name or "").removesuffix(INTEGERS_SUFFIX)
        if in_float:
            _replace(graph, node, real, name)
            continue
        constant = named_initializer(graph, f"{name}__float", real)
        axis = {name: one for name, one in node.attributes.items() if name == "axis"}
        quantize = ir.node("QuantizeLinear", [constant, *node.inputs[1:]], name=f"{name}__quantize")
        quantize.attributes.update(axis)
        made = quantize.outputs[0]
        stored_name = stored.name
        graph.insert_before(node, [quantize])
        node.replace_input_with(0, made)
        if stored_name is not None and stored_name in graph.initializers and not stored.uses():
            del graph.initializers[stored_name]
        made.name, made.type, made.shape = stored_name, ir.TensorType(ir.DataType.INT8), stored.shape


def _replace(graph: ir.Graph, node: ir.Node, array: Array, name: str) -> None:
    """A constant in place of what a DequantizeLinear of constants makes."""
    if name in graph.initializers and not graph.initializers[name].uses():
        del graph.initializers[name]  # the float one that the integers replaced
    constant = named_initializer(graph, name if name not in graph.initializers else f"{name}__dq", array)
    ir.convenience.replace_all_uses_with(node.outputs[0], constant)
    graph.remove(node, safe=True)


# --- opset and leftovers


def _in_opset(model: ir.Model, version: Version) -> ir.Model:
    """The model in the highest opset of the release in which its table lists every operator.

    An operator that no table is sure of is avoided where an older opset writes it with others.
    """
    newest = min(version.opsets[1], model.graph.opset_imports[""])
    failures: list[str] = []
    candidates: list[tuple[int, ir.Model]] = []
    for opset in range(newest, max(version.opsets[0], OLDEST) - 1, -1):
        tried = model.clone()
        try:
            convert_opset(tried, opset)
        except ValueError as error:
            failures.append(str(error))
            continue
        missing = [node for node in tried.graph if not version.reads(node.op_type)]
        unsure = [node for node in tried.graph if version.unsure(node.op_type)]
        if not missing and not unsure:
            return tried
        if not missing:
            candidates.append((opset, tried))
        else:
            node = missing[0]
            failures.append(
                f"node {node.name}: {version.label} does not read {node.op_type}: {repair(node.op_type, node.domain)}"
            )
    if candidates:
        return candidates[0][1]
    raise UnsupportedOperator(
        failures[0] if failures else f"no opset of {version.label} holds this graph",
        where="target tensorrt",
        hint="`edgeopt inspect MODEL --for tensorrt@VERSION` lists what a release reads",
    )


def dequantized_scales(graph: QuantizedGraph) -> Mapping[str, float]:
    """Tensor → scale of its grid, per tensor: what a calibration cache holds."""
    table = graph.quantization or Quantization()
    return {name: float(params.scale) for name, params in table.activations.items()}
