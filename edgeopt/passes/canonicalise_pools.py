"""Pools and explicit padding: GlobalAveragePool for every mean over all of H and W, ``pads`` written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import constant, insert_before, only_user, remove_unused, replace, reshape_before, shape
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass

WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")


class CanonicalisePools(Pass):
    """ReduceMean and AveragePool over all of H and W become GlobalAveragePool (and a Reshape where the axes go).

    ``auto_pad`` and ``ceil_mode`` become explicit ``pads``; every window attribute is written out; a Pad of zeros
    moves into the convolution (or the average that counts its padding) behind it.
    """

    use: Literal["canonicalise_pools"] = "canonicalise_pools"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        for node in list(graph.model.graph):
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type in WINDOWED:
                _explicit_window(node)
            if (rule := _RULES.get(node.op_type)) is not None:
                rule(node)
        remove_unused(graph.model.graph)
        return graph


def _explicit_window(node: ir.Node) -> None:
    """Kernel, strides, dilations and pads written out, as the ONNX operator pages define their defaults."""
    source, output = node.inputs[0], node.outputs[0]
    sizes, results = shape(source)[2:], shape(output)[2:]
    rank = len(sizes)
    is_weighted = node.op_type in {"Conv", "ConvTranspose"}
    kernel = node.attributes.get_ints("kernel_shape") or shape(node.inputs[1])[2:]
    strides = node.attributes.get_ints("strides") or (1,) * rank
    dilations = node.attributes.get_ints("dilations") or (1,) * rank
    pads = list(node.attributes.get_ints("pads") or (0,) * (2 * rank))
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if node.op_type == "ConvTranspose":
        extra = node.attributes.get_ints("output_padding") or (0,) * rank
        if auto_pad in {"SAME_UPPER", "SAME_LOWER"} or node.attributes.get_ints("output_shape"):
            total = [
                max((n - 1) * s + e + r - m, 0)
                for n, m, s, e, r in zip(sizes, results, strides, extra, reach, strict=True)
            ]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            # ConvTranspose splits the other way round than Conv: SAME_UPPER and output_shape cut more at the end
            pads = large + small if auto_pad == "SAME_LOWER" else small + large
        elif auto_pad == "VALID":
            pads = [0] * (2 * rank)
        node.attributes.add(ir.AttrInt64s("output_padding", list(extra)))
        node.attributes.pop("output_shape", None)
    elif auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        total = [max((m - 1) * s + r - n, 0) for n, m, s, r in zip(sizes, results, strides, reach, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = large + small if auto_pad == "SAME_LOWER" else small + large
    elif auto_pad == "VALID":
        pads = [0] * (2 * rank)
    if node.attributes.get_int("ceil_mode", 0) == 1:
        short = [
            max((m - 1) * s + r - (n + pads[axis] + pads[axis + rank]), 0)
            for axis, (n, m, s, r) in enumerate(zip(sizes, results, strides, reach, strict=True))
        ]
        longer = [pad + more for pad, more in zip(pads[rank:], short, strict=True)]
        # an average that counts its padding does not count what lies beyond it, and no runtime takes a window that
        # lies in the padding alone: these two keep their ceil_mode
        counts_padding = node.op_type != "MaxPool" and node.attributes.get_int("count_include_pad", 0) == 1
        if not (any(short) and counts_padding) and all(pad < k for pad, k in zip(longer, kernel, strict=True)):
            pads[rank:] = longer
            node.attributes.pop("ceil_mode")
    for name, value in (("kernel_shape", kernel), ("strides", strides), ("dilations", dilations), ("pads", pads)):
        node.attributes.add(ir.AttrInt64s(name, list(value)))
    node.attributes.pop("auto_pad", None)
    if is_weighted:
        node.attributes.add(ir.AttrInt64("group", node.attributes.get_int("group", 1)))
        _absorb_pad(node)


def _absorb_pad(node: ir.Node) -> None:
    """Pad(zeros) → Conv, and Pad(zeros) → AveragePool that counts its padding, are one operator."""
    source = node.inputs[0]
    pad = source.producer() if source is not None else None
    if pad is None or pad.op_type != "Pad" or node.op_type not in {"Conv", "AveragePool"}:
        return
    before = _zero_pads(pad)
    if before is None:
        return
    rank = len(shape(source)) - 2
    begin, end = before[: rank + 2], before[rank + 2 :]
    if any(begin[:2]) or any(end[:2]) or min(before) < 0:
        return
    pads = node.attributes.get_ints("pads", ())
    if node.op_type == "AveragePool":
        if any(pads) and not node.attributes.get_int("count_include_pad", 0):
            return
        node.attributes.add(ir.AttrInt64("count_include_pad", 1))
    node.attributes.add(ir.AttrInt64s("pads", [a + b for a, b in zip(pads, begin[2:] + end[2:], strict=True)]))
    node.replace_input_with(0, pad.inputs[0])


def _zero_pads(pad: ir.Node) -> list[int] | None:
    """Begin and end pads of all axes if the node pads with zeros."""
    pads = constant(pad.inputs[1])
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    filler = constant(fill)
    if pads is None or pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if fill is not None and (filler is None or filler.any()):
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    return [int(number) for number in pads]


def _reduce_mean(node: ir.Node) -> None:
    sizes = shape(node.inputs[0])
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(sizes) != 4 or axes is None or {int(axis) % 4 for axis in axes} != {2, 3}:
        return
    _to_global(node)


def _average_pool(node: ir.Node) -> None:
    _absorb_pad(node)
    sizes = shape(node.inputs[0])[2:]
    kernel, pads = node.attributes.get_ints("kernel_shape", ()), node.attributes.get_ints("pads", ())
    if len(sizes) != 2 or tuple(kernel) != sizes or any(pads):
        return
    if all(d == 1 for d in shape(node.outputs[0])[2:]) and set(node.attributes.get_ints("dilations", (1,))) <= {1}:
        _to_global(node)


def _to_global(node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    sizes = shape(source)
    pooled = (*sizes[:2], *(1 for _ in sizes[2:]))
    result = insert_before(node, "GlobalAveragePool", [source], output_shape=pooled, like=output, name=node.name)
    if shape(output) != pooled:
        result = reshape_before(node, result, shape(output), name=f"{node.name}_squeeze")
    replace(output, result)


def _max_pool(node: ir.Node) -> None:
    """A MaxPool behind a Pad of −∞ pads itself."""
    if len(node.outputs) > 1 and not node.outputs[1].uses() and not node.outputs[1].is_graph_output():
        node.resize_outputs(1)
    source = node.inputs[0]
    pad = source.producer() if source is not None else None
    if pad is None or pad.op_type != "Pad" or only_user(source) is not node or len(pad.inputs) < 3:
        return
    fill = constant(pad.inputs[2])
    if fill is None or not np.isneginf(fill).all():
        return
    pads = constant(pad.inputs[1])
    if pads is None or len(pads) != 2 * len(shape(source)) or pads.min() < 0:
        return
    rank = len(shape(source))
    if pads[:2].any() or pads[rank : rank + 2].any():
        return
    more = [*pads[2:rank], *pads[rank + 2 :]]
    have = node.attributes.get_ints("pads", ())
    node.attributes.add(ir.AttrInt64s("pads", [int(a) + int(b) for a, b in zip(have, more, strict=True)]))
    node.replace_input_with(0, pad.inputs[0])


_RULES: dict[str, Callable[[ir.Node], None]] = {
    "ReduceMean": _reduce_mean,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
}
