"""Operators that move values and compute nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import constant, shape
from edgeopt.targets.coreml.emit import Array, Emitter, is_open
from edgeopt.targets.coreml.weighted import interleaved


def _constant_input(node: ir.Node, index: int) -> Array | None:
    return constant(node.inputs[index]) if index < len(node.inputs) else None


def reshape(e: Emitter, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: the result's shape is known."""
    source, target = shape(node.inputs[0]), shape(node.outputs[0])
    e.write(node, e.reshape(e.var(node.inputs[0]), target, e.name(node), source))


def transpose(e: Emitter, node: ir.Node) -> None:
    rank = len(shape(node.inputs[0]))
    perm = node.attributes.get_ints("perm") or tuple(reversed(range(rank)))
    e.write(node, e.mb.transpose(x=e.var(node.inputs[0]), perm=list(perm), name=e.name(node)))


def expand(e: Emitter, node: ir.Node) -> None:
    source, target = shape(node.inputs[0]), shape(node.outputs[0])
    wide = (1,) * (len(target) - len(source)) + source
    x = e.var(node.inputs[0])
    if len(wide) != len(source):
        x = e.reshape(x, wide, e.temporary("wide"), source)
    counts = [out // own for out, own in zip(target, wide, strict=True)]
    e.write(node, e.mb.tile(x=x, reps=counts, name=e.name(node)))


def tile(e: Emitter, node: ir.Node) -> None:
    repeats = _constant_input(node, 1)
    assert repeats is not None
    e.write(node, e.mb.tile(x=e.var(node.inputs[0]), reps=[int(n) for n in repeats], name=e.name(node)))


def check_tile(node: ir.Node) -> str | None:
    return None if _constant_input(node, 1) is not None else "repeats that are computed"


def concat(e: Emitter, node: ir.Node) -> None:
    values = [value for value in node.inputs if value is not None and 0 not in shape(value)]
    axis = node.attributes.get_int("axis", 0) % len(shape(node.outputs[0]))
    parts = [e.var(value) for value in values]
    if len(parts) == 1:
        e.write(node, e.mb.identity(x=parts[0], name=e.name(node)))
        return
    e.write(node, e.mb.concat(values=parts, axis=axis, name=e.name(node)))


def split(e: Emitter, node: ir.Node) -> None:
    x, rank = e.var(node.inputs[0]), len(shape(node.inputs[0]))
    axis = node.attributes.get_int("axis", 0) % rank
    start = 0
    for index, output in enumerate(node.outputs):
        size = shape(output)[axis]
        if output.uses() or output.is_graph_output():
            e.write(node, _between(e, x, {axis: (start, start + size, 1)}, e.name(node, index)), index)
        start += size


def _between(e: Emitter, x: Any, parts: dict[int, tuple[int, int, int]], name: str) -> Any:
    """``x`` from, to and in steps along some axes; the others whole, whatever their size."""
    rank = len(x.shape)
    whole = [axis not in parts for axis in range(rank)]
    begin, end, stride = ([parts.get(axis, (0, 0, 1))[i] for axis in range(rank)] for i in range(3))
    more = {} if all(step == 1 for step in stride) else {"stride": stride}
    return e.mb.slice_by_index(
        x=x, begin=begin, end=end, begin_mask=whole, end_mask=whole, **more, name=name
    )  # fmt: skip


def check_slice(node: ir.Node) -> str | None:
    given = [_constant_input(node, index) for index in range(1, len(node.inputs)) if node.inputs[index] is not None]
    return "bounds that are computed" if any(array is None for array in given) else None


def slice_(e: Emitter, node: ir.Node) -> None:
    """Negative steps: the axis is reversed first, and what is then taken runs forwards."""
    sizes, outs = shape(node.inputs[0]), shape(node.outputs[0])
    starts, axes, steps = (_constant_input(node, index) for index in (1, 3, 4))
    assert starts is not None
    x = e.var(node.inputs[0])
    parts: dict[int, tuple[int, int, int]] = {}
    backwards: list[int] = []
    for position, start in enumerate(starts):
        axis = position if axes is None else int(axes[position]) % len(sizes)
        step = 1 if steps is None else int(steps[position])
        first = slice(int(start), None, step).indices(sizes[axis])[0]
        if step == 1 and outs[axis] == sizes[axis]:
            continue
        if is_open(x.shape[axis]):
            raise ValueError("a slice of an axis that is open")
        if step < 0:
            backwards.append(axis)
            first, step = sizes[axis] - 1 - first, -step
        parts[axis] = (first, first + (outs[axis] - 1) * step + 1, step)
    if backwards:
        x = e.mb.reverse(x=x, axes=backwards, name=e.temporary("reversed"))
    if not parts:
        e.write(node, e.mb.identity(x=x, name=e.name(node)))
        return
    e.write(node, _between(e, x, parts, e.name(node)))


def gather(e: Emitter, node: ir.Node) -> None:
    sizes = shape(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(sizes)
    indices = e.known(node.inputs[1])
    x, name = e.var(node.inputs[0]), e.name(node)
    if indices is not None:
        where = (np.asarray(indices, np.int64) % sizes[axis]).astype(np.int32)
        if where.ndim == 0:
            taken = _between(e, x, {axis: (int(where), int(where) + 1, 1)}, e.temporary("taken"))
            e.write(node, e.mb.squeeze(x=taken, axes=[axis], name=name))
            return
        e.write(node, e.mb.gather(x=x, indices=where, axis=axis, name=name))
        return
    given = e.var(node.inputs[1])
    # Negative indices count from the end; MIL leaves that to the runtime.
    negative = e.mb.less(x=given, y=np.int32(0), name=e.temporary("negative"))
    wrapped = e.mb.add(x=given, y=np.int32(sizes[axis]), name=e.temporary("wrapped"))
    chosen = e.mb.select(cond=negative, a=wrapped, b=given, name=e.temporary("indices"))
    e.write(node, e.mb.gather(x=x, indices=chosen, axis=axis, name=name))


def gather_elements(e: Emitter, node: ir.Node) -> None:
    axis = node.attributes.get_int("axis", 0) % len(shape(node.inputs[0]))
    indices = e.known(node.inputs[1])
    given = e.read(node.inputs[1])
    if indices is not None:
        given = (indices % shape(node.inputs[0])[axis]).astype(np.int32)
    e.write(node, e.mb.gather_along_axis(x=e.var(node.inputs[0]), indices=given, axis=axis, name=e.name(node)))


MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def check_pad(node: ir.Node) -> str | None:
    mode = node.attributes.get_string("mode", "constant")
    pads = _constant_input(node, 1)
    if pads is None:
        return "pads that are computed"
    if mode == "wrap":
        return None if (pads >= 0).all() else "mode wrap with negative pads"
    if mode not in MODES:
        return f"mode {mode}"
    half = len(pads) // 2
    rest = [pads[axis] for axis in range(half - 2)] + [pads[half + axis] for axis in range(half - 2)]
    if mode != "constant" and any(rest):
        return f"mode {mode} beyond the last two axes"
    if node.outputs[0].dtype != ir.DataType.FLOAT:
        return "values that are no floats"
    return None


def pad(e: Emitter, node: ir.Node) -> None:
    """Negative pads cut off; what is left is padded."""
    pads = _constant_input(node, 1)
    assert pads is not None
    x, rank = e.var(node.inputs[0]), len(shape(node.inputs[0]))
    if node.attributes.get_string("mode", "constant") == "wrap":
        e.write(node, _wrapped(e, node, x, [(int(pads[axis]), int(pads[rank + axis])) for axis in range(rank)]))
        return
    mode = MODES[node.attributes.get_string("mode", "constant")]
    value = _constant_input(node, 2)
    cut = {
        axis: (max(0, -int(pads[axis])), shape(node.inputs[0])[axis] - max(0, -int(pads[rank + axis])), 1)
        for axis in range(rank)
        if pads[axis] < 0 or pads[rank + axis] < 0
    }
    if cut:
        x = _between(e, x, cut, e.temporary("cut"))
    sizes = interleaved([max(0, int(size)) for size in pads])
    if not any(sizes):
        e.write(node, e.mb.identity(x=x, name=e.name(node)))
        return
    if mode != "constant":
        sizes = sizes[-4:] if rank > 1 else sizes
    fill = e.number(0.0 if value is None else float(value.reshape(())))
    e.write(node, e.mb.pad(x=x, pad=sizes, mode=mode, constant_val=fill, name=e.name(node)))


def _wrapped(e: Emitter, node: ir.Node, x: Any, pads: list[tuple[int, int]]) -> Any:
    """The other end of an axis in front and behind, for which MIL has no mode."""
    for axis, (before, behind) in enumerate(pads):
        size = x.shape[axis]
        parts = [x]
        if before:
            parts.insert(0, _between(e, x, {axis: (size - before, size, 1)}, e.temporary("end")))
        if behind:
            parts.append(_between(e, x, {axis: (0, behind, 1)}, e.temporary("start")))
        if len(parts) > 1:
            x = e.mb.concat(values=parts, axis=axis, name=e.temporary("wrapped"))
    return e.mb.identity(x=x, name=e.name(node))
