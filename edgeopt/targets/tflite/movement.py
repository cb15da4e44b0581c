"""Operators that move values and compute nothing: on integers they keep the grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.formats.tflite import Layout
from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite.attributes import constant, constant_input, has_input, shape_of
from edgeopt.targets.tflite.draft import one_grid, options
from edgeopt.targets.tflite.elementwise import common_layout
from edgeopt.targets.tflite.emit import Emitter, Stored
from edgeopt.targets.tflite.joining import every, repeated, shortened, sliced
from edgeopt.targets.tflite.weighted import VALID

MOST_COPIES = 25
"""Up to here a tensor is repeated by CONCATENATION, which the delegate takes, and not by TILE or BROADCAST_TO."""
MOST_SPLITS = 4
"""And a SPLIT into two, three or four."""
REQUANTIZE_RATIO = (2.0**-8, 2.0**7)
"""Input scale / output scale of QUANTIZE from integers to integers: at least, at most."""


def native_mover(e: Emitter, node: ir.Node) -> bool:
    """Input and outputs are integers of one grid, as the table demands of movers."""
    grid = e.grid(node.inputs[0])
    return grid is not None and all(e.grid(output) == grid for output in node.outputs)


# --- order and shape of axes


def transpose(e: Emitter, node: ir.Node) -> None:
    """Relabels axes. Moves values only where consumers that agree on an order could not read them otherwise."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    x = e.read(value)
    asked = lay.transpose_perm(node)
    shape = shape_of(out)
    perm = lay.relabelled(x.perm, asked)
    wanted = e.wanted.get(out)
    if wanted is None or perm in wanted or any(lay.moves_nothing(shape, perm, other) for other in wanted):
        e.alias(out, Stored(x.index, lay.plain(shape, perm)))
        return
    layout = lay.plain(shape, wanted[0])
    index = e.result(out, layout)
    e.transpose(x.index, [perm.index(axis) for axis in layout.perm], out=index)
    e.written(out, index, layout)


def reshape(e: Emitter, node: ir.Node) -> None:
    """RESHAPE in whatever order the values lie, if the result is axes in some order; else with one TRANSPOSE."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    shape, target = shape_of(value), shape_of(out)
    x = e.read_as_it_lies(value)
    if not lay.is_plain(x.layout):
        if shape == target:
            e.alias(out, x)
            return
        # A reshape of a reshape is one of what was there before.
        shape = x.layout.view
        x = Stored(e.reshape(x.index, [shape[axis] for axis in x.perm]), lay.plain(shape, x.perm))
    wanted = e.wanted.get(out, ())
    atoms = lay.Atoms.of(shape, target)
    order = atoms.through(x.perm) if atoms is not None else None
    if order is None and _only_gemms_read(out) and x.perm[0] == 0 and shape[0] == target[0]:
        layout = Layout(target, shape, x.perm)
        write_reshape(e, out, x.index, layout, target)
        return
    if order is None and atoms is not None and _only_norms_read(out):
        apart = [atom for axis in x.perm for atom in atoms.source[axis]]
        index = e.reshape(x.index, [atoms.sizes[atom] for atom in apart])
        e.adopt(out, index, Layout(target, tuple(atoms.sizes), tuple(apart)))
        return
    if order is not None:
        layout = lay.plain(target, lay.completed(order, target, wanted)[0])
        write_reshape(e, out, x.index, layout, lay.stored_shape(layout))
        return
    if atoms is None:
        straight = e.moved(x, lay.identity(len(shape)))
        write_reshape(e, out, straight.index, lay.plain(target), target)
        return
    layout = lay.plain(target, wanted[0] if wanted else _natural(e, x, target))
    apart = [atom for axis in x.perm for atom in atoms.source[axis]]
    together = [atom for axis in layout.perm for atom in atoms.target[axis]]
    index = e.reshape(x.index, [atoms.sizes[atom] for atom in apart])
    index = e.transpose(index, [apart.index(atom) for atom in together])
    write_reshape(e, out, index, layout, lay.stored_shape(layout))


def _natural(e: Emitter, x: Stored, target: tuple[int, ...]) -> lay.Perm:
    channels_last = x.perm == lay.channels_last(len(x.perm)) and len(x.perm) > 3
    return lay.channels_last(len(target)) if channels_last and len(target) == 4 else lay.identity(len(target))


def write_reshape(e: Emitter, out: ir.Value, index: int, layout: Layout, shape: tuple[int, ...]) -> None:
    if e.shape(index) == shape:
        e.adopt(out, index, layout)
        return
    result = e.result(out, layout, shape)
    e.reshape(index, shape, out=result)
    e.written(out, result, layout)


def _only_gemms_read(value: ir.Value) -> bool:
    """Whether the columns' order may be any, because it ends in weights that can be permuted as well."""
    if len(shape_of(value)) != 2 or value.is_graph_output():
        return False
    uses = tuple(value.uses())
    return bool(uses) and all(
        (use.node.op_type == "Gemm" and use.idx == 0 and constant(use.node.inputs[1]) is not None)
        or (use.node.op_type in _ONE_BY_ONE and _only_gemms_read(use.node.outputs[0]))
        for use in uses
    )


def _only_norms_read(value: ir.Value) -> bool:
    """Whether all readers take means over whole axes, in any order, and write the same layout."""
    uses = tuple(value.uses())
    return (
        bool(uses)
        and not value.is_graph_output()
        and all(use.node.op_type == "LayerNormalization" and use.idx == 0 for use in uses)
    )


_ONE_BY_ONE = frozenset({"Relu", "Sigmoid", "Tanh", "HardSwish", "Gelu", "LeakyRelu", "Elu", "Identity", "Dropout"})


def expand(e: Emitter, node: ir.Node) -> None:
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    source, shape = shape_of(value), shape_of(out)
    wide = (*(1,) * (len(shape) - len(source)), *source)
    x = e.read(value)
    if source == shape:
        e.alias(out, x)
        return
    if len(source) < len(shape):
        x = Stored(e.reshape(e.moved(x, lay.identity(len(source))).index, wide), lay.plain(wide))
    layout = lay.plain(shape, x.perm)
    counts = [size // own for size, own in zip(lay.stored_shape(layout), e.shape(x.index), strict=True)]
    if np.prod(counts) <= MOST_COPIES:
        write_reshape(e, out, repeated(e, x.index, counts), layout, lay.stored_shape(layout))
        return
    target = e.constant("shape", np.asarray(lay.stored_shape(layout), np.int32))
    e.write(out, "BROADCAST_TO", (x.index, target), layout)


def tile(e: Emitter, node: ir.Node) -> None:
    value, repeats = node.inputs[0], constant_input(node, 1)
    assert value is not None and repeats is not None
    x = e.read(value)
    layout = lay.plain(shape_of(node.outputs[0]), x.perm)
    counts = [int(repeats[axis]) for axis in x.perm]
    if np.prod(counts) <= MOST_COPIES:
        write_reshape(e, node.outputs[0], repeated(e, x.index, counts), layout, lay.stored_shape(layout))
        return
    e.write(node.outputs[0], "TILE", (x.index, e.constant("repeats", np.asarray(counts, np.int32))), layout)


def check_tile(node: ir.Node) -> str | None:
    return None if constant_input(node, 1) is not None else "repeats that are computed"


# --- joining and taking apart


def native_concat(e: Emitter, node: ir.Node) -> bool:
    out = e.grid(node.outputs[0])
    if out is None:
        return False
    grids = [e.grid(value) for value in node.inputs]
    return all(
        grid is not None and REQUANTIZE_RATIO[0] <= float(grid.scale / out.scale) <= REQUANTIZE_RATIO[1]
        for grid in grids
    )


def concat(e: Emitter, node: ir.Node) -> None:
    """CONCATENATION, nested where the delegate would refuse its length, of inputs on one grid."""
    values = [value for value in node.inputs if value is not None]
    out = node.outputs[0]
    shape = shape_of(out)
    layout = common_layout(e, values, out)
    if not lay.is_plain(layout):
        layout = lay.plain(shape)
    axis = layout.perm.index(node.attributes.get_int("axis", 0) % len(shape))
    parts = [
        e.read(value, layout.perm).index if constant(value) is None or e.native else _constant_part(e, value, layout)
        for value in values
        if 0 not in shape_of(value)
    ]
    if e.native:
        parts = [_on_grid(e, part, out) for part in parts]
    parts = shortened(e, parts, axis)
    if len(parts) == 1:
        e.alias(out, Stored(parts[0], layout))
        return
    e.write(out, "CONCATENATION", parts, layout, options("Concatenation", axis=axis))


def _constant_part(e: Emitter, value: ir.Value, layout: Layout) -> int:
    array = constant(value)
    assert array is not None
    if e.scheme == "int8" and (grid := e.grid(value)) is not None:
        array = grid.dequantize(grid.quantize(array))
    return e.constant(value.name or "constant", np.ascontiguousarray(array.transpose(layout.perm)))


def _on_grid(e: Emitter, index: int, out: ir.Value) -> int:
    grid = e.grid(out)
    record = e.model.tensors[index]
    if grid is None or record.grid == (float(grid.scale), int(grid.zero_point)):
        return index
    moved = e.tensor(f"{record.name}/on_{out.name}", record.shape, "int8", grid=grid)
    e.operator("QUANTIZE", (index,), (moved,))
    return moved


def split(e: Emitter, node: ir.Node) -> None:
    value = node.inputs[0]
    assert value is not None
    x = e.read(value)
    graph_axis = node.attributes.get_int("axis", 0) % len(shape_of(value))
    axis = x.perm.index(graph_axis)
    sizes = [shape_of(output)[graph_axis] for output in node.outputs]
    layouts = [lay.plain(shape_of(output), x.perm) for output in node.outputs]
    if len(set(sizes)) == 1 and 2 <= len(sizes) <= MOST_SPLITS:
        indices = [e.result(out, layout) for out, layout in zip(node.outputs, layouts, strict=True)]
        where = e.constant("axis", np.asarray(axis, np.int32))
        e.operator("SPLIT", (where, x.index), indices, options("Split", numSplits=len(sizes)))
        for out, index, layout in zip(node.outputs, indices, layouts, strict=True):
            e.written(out, index, layout)
        return
    start = 0
    for out, layout, size in zip(node.outputs, layouts, sizes, strict=True):
        begins = [0] * len(x.perm)
        begins[axis] = start
        start += size
        if out.uses() or out.is_graph_output():
            _slice(e, out, x, begins, layout)


def _slice(e: Emitter, out: ir.Value, x: Stored, begins: Sequence[int], layout: Layout) -> None:
    """``out`` = as much as it holds of ``x``, from ``begins`` (in the file's order) on."""
    shape = lay.stored_shape(layout)
    if e.shape(x.index) == shape:
        e.alias(out, Stored(x.index, layout))
        return
    begin, size = (e.constant(n, np.asarray(v, np.int32)) for n, v in (("begin", begins), ("size", shape)))
    e.write(out, "SLICE", (x.index, begin, size), layout, options("Slice"))


def check_slice(node: ir.Node) -> str | None:
    given = [constant_input(node, index) for index in range(1, len(node.inputs)) if has_input(node, index)]
    return "bounds that are computed" if any(array is None for array in given) else None


def slice_(e: Emitter, node: ir.Node) -> None:
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    shape = shape_of(value)
    starts, steps = _bounds(node, shape)
    x = e.read(value)
    if any(step < 0 for step in steps):
        axes = [position for position, axis in enumerate(x.perm) if steps[axis] < 0]
        for position in axes:
            where = e.constant("axis", np.asarray([position], np.int32))
            x = Stored(
                e.step("REVERSE_V2", (x.index, where), e.shape(x.index), options("ReverseV2"), like=x.index), x.layout
            )
        starts = [
            shape[a] - 1 - start if step < 0 else start
            for a, (start, step) in enumerate(zip(starts, steps, strict=True))
        ]
        steps = [abs(step) for step in steps]
    begins = [starts[axis] for axis in x.perm]
    strides = [steps[axis] for axis in x.perm]
    layout = lay.plain(shape_of(out), x.perm)
    if all(stride == 1 for stride in strides):
        _slice(e, out, x, begins, layout)
    elif len(strides) == 4 and strides[0] == strides[3] == 1 and value.dtype == ir.DataType.FLOAT:
        write_every_pixel(e, out, x, begins, (strides[1], strides[2]))
    elif (at := _only_regular(e.shape(x.index), begins, strides, lay.stored_shape(layout))) is not None:
        index = every(e, x.index, at, strides[at], begins[at])
        write_reshape(e, out, index, layout, lay.stored_shape(layout))
    else:
        ends = [b + (n - 1) * s + 1 for b, n, s in zip(begins, lay.stored_shape(layout), strides, strict=True)]
        inputs = [e.constant(name, np.asarray(values, np.int32)) for name, values in
                  (("begin", begins), ("end", ends), ("stride", strides))]  # fmt: skip
        e.write(out, "STRIDED_SLICE", (x.index, *inputs), layout, options("StridedSlice"))


def _only_regular(
    shape: Sequence[int], begins: Sequence[int], strides: Sequence[int], kept: Sequence[int]
) -> int | None:
    """The one axis that is thinned out, if its stride divides it and all others stay whole."""
    thinned = [axis for axis, stride in enumerate(strides) if stride != 1]
    if len(thinned) != 1:
        return None
    at = thinned[0]
    whole = all(kept[axis] == size for axis, size in enumerate(shape) if axis != at)
    return at if whole and shape[at] == strides[at] * kept[at] and begins[at] < strides[at] else None


def write_every_pixel(e: Emitter, out: ir.Value, x: Stored, begins: Sequence[int], strides: tuple[int, int]) -> None:
    """Every so-many-th pixel, as a depthwise convolution with ones: exact, fast, and the delegate takes it."""
    layout = lay.plain(shape_of(out), x.perm)
    n, h, w, c = lay.stored_shape(layout)
    inner = (n, (h - 1) * strides[0] + 1, (w - 1) * strides[1] + 1, c)
    _, height, width, channels = e.shape(x.index)
    index = x.index
    # VALID leaves out a rest that is shorter than a stride by itself.
    if any(begins) or channels != c or height >= inner[1] + strides[0] or width >= inner[2] + strides[1]:
        index = sliced(e, index, begins, inner)
    ones = (1, 1, 1, c)
    if e.native:
        grid = e.grid(out)
        assert grid is not None
        weight = e.tensor("ones", ones, "int8", data=np.ones(ones, np.int8), grid=one_grid(1.0))
        zeros = one_grid(grid.scale)
        bias = e.tensor("zeros", (c,), "int32", data=np.zeros(c, np.int32), grid=zeros)
    else:
        weight, bias = e.constant("ones", np.ones(ones, np.float32)), e.constant("zeros", np.zeros(c, np.float32))
    settings = options("DepthwiseConv2D", padding=VALID, strideH=strides[0], strideW=strides[1], depthMultiplier=1)
    e.write(out, "DEPTHWISE_CONV_2D", (index, weight, bias), layout, settings)


def _bounds(node: ir.Node, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """First index and step per axis of a Slice."""
    given = constant_input(node, 1)
    assert given is not None
    axes_given, steps_given = constant_input(node, 3), constant_input(node, 4)
    axes = range(len(given)) if axes_given is None else [int(axis) % len(shape) for axis in axes_given]
    starts, steps = [0] * len(shape), [1] * len(shape)
    for position, axis in enumerate(axes):
        step = 1 if steps_given is None else int(steps_given[position])
        start, _, _ = slice(int(given[position]), None, step).indices(shape[axis])
        starts[axis], steps[axis] = start, step
    return starts, steps
