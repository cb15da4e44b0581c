"""Operators on pixels: pools, blocks of pixels into channels and back, resizing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import constant, shape
from edgeopt.targets.coreml.emit import Array, Emitter
from edgeopt.targets.coreml.weighted import interleaved, ints


def check_pool(node: ir.Node) -> str | None:
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return "the indices of the maxima"
    if len(shape(node.inputs[0])) not in (3, 4, 5):
        return "other than 1, 2 or 3 spatial axes"
    if any(dilation != 1 for dilation in ints(node, "dilations", ())):
        return "a dilated pool"
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "pads that are not written out"
    begins, ends, given = _pads(node)
    beyond = any(used > asked for used, asked in zip(ends, given, strict=True))
    if node.op_type == "AveragePool" and beyond and node.attributes.get_int("count_include_pad", 0) == 1:
        return "ceil_mode with windows beyond the padding that counts"
    kernel = ints(node, "kernel_shape", ())
    if any(pad >= size for pad, size in zip((*begins, *ends), (*kernel, *kernel), strict=True)):
        return "a window that lies in the padding"
    return None


def _pads(node: ir.Node) -> tuple[list[int], list[int], list[int]]:
    """Padding at the beginnings, at the ends as far as some window reads it, and at the ends as given."""
    kernel = ints(node, "kernel_shape", ())
    axes = len(kernel)
    sizes, outs = shape(node.inputs[0])[2:], shape(node.outputs[0])[2:]
    strides, pads = ints(node, "strides", (1,) * axes), ints(node, "pads", (0,) * 2 * axes)
    ends = [
        max(0, (out - 1) * stride + k - size - begin)
        for out, stride, k, size, begin in zip(outs, strides, kernel, sizes, pads[:axes], strict=True)
    ]
    return list(pads[:axes]), ends, list(pads[axes:])


def max_pool(e: Emitter, node: ir.Node) -> None:
    e.write(node, e.mb.max_pool(**_windows(e, node), name=e.name(node)))


def average_pool(e: Emitter, node: ir.Node) -> None:
    inside = not node.attributes.get_int("count_include_pad", 0)
    e.write(node, e.mb.avg_pool(**_windows(e, node), exclude_padding_from_average=inside, name=e.name(node)))


def _windows(e: Emitter, node: ir.Node) -> dict[str, Any]:
    """What both kinds of pooling read, and where."""
    begins, ends, given = _pads(node)
    # The pads as given where an axis is open: those that windows read depend on its size.
    ends = given if e.open_axis and not node.attributes.get_int("ceil_mode", 0) else ends
    return {
        "x": e.var(node.inputs[0]),
        "kernel_sizes": list(ints(node, "kernel_shape", ())),
        "strides": list(ints(node, "strides", (1,) * len(begins))),
        "pad_type": "custom",
        "pad": interleaved([*begins, *ends]),
    }


def check_blocks(node: ir.Node) -> str | None:
    return None if len(shape(node.inputs[0])) == 4 else "other than 4 axes"


def depth_to_space(e: Emitter, node: ir.Node) -> None:
    block, x, name = node.attributes.get_int("blocksize", 1), e.var(node.inputs[0]), e.name(node)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        e.write(node, e.mb.depth_to_space(x=x, block_size=block, name=name))
    else:
        e.write(node, e.mb.pixel_shuffle(x=x, upscale_factor=block, name=name))


def space_to_depth(e: Emitter, node: ir.Node) -> None:
    block = node.attributes.get_int("blocksize", 1)
    e.write(node, e.mb.space_to_depth(x=e.var(node.inputs[0]), block_size=block, name=e.name(node)))


# --- Resize

SAMPLING = {
    "half_pixel": "UNALIGN_CORNERS",
    "pytorch_half_pixel": "UNALIGN_CORNERS",
    "align_corners": "STRICT_ALIGN_CORNERS",
    "asymmetric": "DEFAULT",
}
"""ONNX's coordinates → the sampling mode of ``resize_bilinear`` that takes the same points."""


def _coordinates(node: ir.Node) -> str:
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel")


def check_resize(node: ir.Node) -> str | None:
    sizes, outs = shape(node.inputs[0]), shape(node.outputs[0])
    mode = node.attributes.get_string("mode", "nearest")
    if len(sizes) != 4 or sizes[:2] != outs[:2]:
        return "resizing of other than height and width"
    if _coordinates(node) == "tf_crop_and_resize":
        return "coordinates tf_crop_and_resize"
    if mode not in ("nearest", "linear", "cubic"):
        return f"mode {mode}"
    return None


def resize(e: Emitter, node: ir.Node) -> None:
    """The operator that MIL has for it where it takes the same points; else a product with the interpolation itself."""
    sizes, outs = shape(node.inputs[0])[2:], shape(node.outputs[0])[2:]
    x, mode = e.var(node.inputs[0]), node.attributes.get_string("mode", "nearest")
    if sizes == outs:
        e.write(node, e.mb.identity(x=x, name=e.name(node)))
        return
    matrices = [_matrix(node, axis) for axis in (2, 3)]
    if mode == "nearest":
        lines = [matrix.argmax(1) for matrix in matrices]
        factors = [out // size for out, size in zip(outs, sizes, strict=True)]
        repeats = [np.arange(out) // max(1, factor) for out, factor in zip(outs, factors, strict=True)]
        if all(np.array_equal(line, repeat) for line, repeat in zip(lines, repeats, strict=True)):
            height, width = factors
            name = e.name(node)
            e.write(
                node,
                e.mb.upsample_nearest_neighbor(x=x, scale_factor_height=height, scale_factor_width=width, name=name),
            )
            return
        rows = e.mb.gather(x=x, indices=lines[0].astype(np.int32), axis=2, name=e.temporary("rows"))
        e.write(node, e.mb.gather(x=rows, indices=lines[1].astype(np.int32), axis=3, name=e.name(node)))
        return
    sampling = SAMPLING.get(_coordinates(node))
    plain = mode == "linear" and not node.attributes.get_int("antialias", 0) and min(outs) > 1
    if plain and sampling is not None and _keeps_ratio(node, sizes, outs):
        e.write(
            node,
            e.mb.resize_bilinear(
                x=x, target_size_height=outs[0], target_size_width=outs[1], sampling_mode=sampling, name=e.name(node)
            ),
        )
        return
    across = e.mb.matmul(x=x, y=e.array(matrices[1].T.copy(), "interpolation"), name=e.temporary("columns"))
    down = e.mb.const(val=e.array(matrices[0], "interpolation"), name=e.temporary("interpolation"))
    e.write(node, e.mb.matmul(x=down, y=across, name=e.name(node)))


def _keeps_ratio(node: ir.Node, sizes: tuple[int, ...], outs: tuple[int, ...]) -> bool:
    """Whether a scale that is given is that of the sizes: coordinates follow the scale."""
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or scales.size == 0:
        return True
    return all(abs(float(s) * size - out) < 1e-3 for s, size, out in zip(scales[-2:], sizes, outs, strict=True))


def _matrix(node: ir.Node, axis: int) -> Array:
    """(out, in): what each output line takes of every input line, by ONNX's own definition of the node.

    Every mode interpolates one axis after the other, so that resizing an identity shows all there is.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    size, out = shape(node.inputs[0])[axis], shape(node.outputs[0])[axis]
    attributes = {a.name: ir.to_proto(a) for a in node.attributes.values()}
    attributes.pop("axes", None)
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size:
        inputs, name, values = ["x", "", "given"], onnx.TensorProto.FLOAT, [float(scales[axis - 4]), 1.0]
    else:
        inputs, name, values = ["x", "", "", "given"], onnx.TensorProto.INT64, [out, size]
    made = onnx.helper.make_node("Resize", inputs, ["y"])
    made.attribute.extend(attributes.values())
    graph = onnx.helper.make_graph(
        [made],
        "interpolation",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [size, size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [out, size])],
        [onnx.helper.make_tensor("given", name, [2], values)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    (matrix,) = ReferenceEvaluator(model).run(None, {"x": np.eye(size, dtype=np.float32)})
    return np.asarray(matrix, np.float32)
