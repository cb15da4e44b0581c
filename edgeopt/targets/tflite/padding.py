"""Pad, by zeros, by a number, or by the tensor's own values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite.attributes import constant_input, shape_of
from edgeopt.targets.tflite.draft import options
from edgeopt.targets.tflite.emit import Emitter, Stored
from edgeopt.targets.tflite.joining import concatenated, lines_around, sliced
from edgeopt.targets.tflite.movement import write_reshape


def check_pad(node: ir.Node) -> str | None:
    if node.attributes.get_string("mode", "constant") not in ("constant", "reflect", "edge", "wrap"):
        return f"mode {node.attributes.get_string('mode', 'constant')}"
    if constant_input(node, 1) is None:
        return "pads that are computed"
    return None


def pad(e: Emitter, node: ir.Node) -> None:
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    shape = shape_of(value)
    x = e.read(value)
    given, axes_given = constant_input(node, 1), constant_input(node, 3)
    assert given is not None
    axes = range(len(shape)) if axes_given is None else [int(axis) % len(shape) for axis in axes_given]
    pads = dict.fromkeys(range(len(shape)), (0, 0))
    for position, axis in enumerate(axes):
        pads[axis] = int(given[position]), int(given[position + len(given) // 2])
    if any(amount < 0 for pair in pads.values() for amount in pair):
        begins = [max(0, -pads[axis][0]) for axis in x.perm]
        sizes = [shape[a] - max(0, -pads[a][0]) - max(0, -pads[a][1]) for a in x.perm]
        x = Stored(sliced(e, x.index, begins, sizes), x.layout)
        pads = {axis: (max(0, pair[0]), max(0, pair[1])) for axis, pair in pads.items()}
    layout = lay.plain(shape_of(out), x.perm)
    amounts = e.constant("pads", np.asarray([pads[axis] for axis in x.perm], np.int32))
    if not any(amount for pair in pads.values() for amount in pair):
        e.alias(out, Stored(x.index, layout))
        return
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant":
        index = x.index
        for position, axis in enumerate(x.perm):
            index = lines_around(e, index, position, *_lines(mode, e.shape(index)[position], *pads[axis]))
        write_reshape(e, out, index, layout, lay.stored_shape(layout))
        return
    filler = constant_input(node, 2)
    number = 0.0 if filler is None or not filler.size else float(filler.reshape(-1)[0])
    if number == 0.0:
        e.write(out, "PAD", (x.index, amounts), layout, options("Pad"))
        return
    index = x.index
    for position, axis in enumerate(x.perm):
        shape = e.shape(index)
        shapes = [(*shape[:position], amount, *shape[position + 1 :]) for amount in pads[axis]]
        before, behind = (_filled(e, size, number, out) if 0 not in size else None for size in shapes)
        parts = [part for part in (before, index, behind) if part is not None]
        index = concatenated(e, parts, position)
    write_reshape(e, out, index, layout, lay.stored_shape(layout))


def _filled(e: Emitter, shape: tuple[int, ...], number: float, out: ir.Value) -> int:
    """A constant to stand beside a tensor; PADV2, which would pad with other than zero, the delegate does not take."""
    values = np.full(shape, number, np.float32)
    if not e.native:
        return e.constant("filler", values)
    grid = e.grid(out)
    assert grid is not None
    return e.tensor("filler", shape, "int8", data=grid.quantize(values), grid=grid)


def _lines(mode: str, size: int, before: int, behind: int) -> tuple[list[int], list[int]]:
    """Which lines stand before and behind an axis of ``size`` that is padded with its own values."""
    if mode == "reflect":
        return list(range(before, 0, -1)), list(range(size - 2, size - 2 - behind, -1))
    if mode == "edge":
        return [0] * before, [size - 1] * behind
    return list(range(size - before, size)), list(range(behind))
