"""Pieces of tensors: cut out, put together, repeated. All in operators that the delegate takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeopt.targets.tflite.draft import options
from edgeopt.targets.tflite.emit import Emitter

MOST_CONCATENATED = 5
"""XNNPACK takes a CONCATENATION of at most five."""


def sliced(e: Emitter, index: int, begins: Sequence[int], shape: Sequence[int]) -> int:
    """SLICE into a temporary, or nothing where that is the whole tensor."""
    if tuple(shape) == e.shape(index):
        return index
    begin, size = (e.constant(n, np.asarray(v, np.int32)) for n, v in (("begin", begins), ("size", shape)))
    return e.step("SLICE", (index, begin, size), shape, options("Slice"), like=index)


def shortened(e: Emitter, parts: Sequence[int], axis: int) -> list[int]:
    """The same row of tensors, its head put together until the delegate takes the rest in one."""
    parts = list(parts)
    while len(parts) > MOST_CONCATENATED:
        head = parts[:MOST_CONCATENATED]
        parts = [_joined(e, head, axis), *parts[MOST_CONCATENATED:]]
    return parts


def concatenated(e: Emitter, parts: Sequence[int], axis: int) -> int:
    """CONCATENATION into a temporary, nested where there are more than the delegate takes."""
    parts = shortened(e, parts, axis)
    return parts[0] if len(parts) == 1 else _joined(e, parts, axis)


def _joined(e: Emitter, parts: Sequence[int], axis: int) -> int:
    shape = [*e.shape(parts[0])]
    shape[axis] = sum(e.shape(part)[axis] for part in parts)
    return e.step("CONCATENATION", parts, shape, options("Concatenation", axis=axis), like=parts[0])


def repeated(e: Emitter, index: int, counts: Sequence[int]) -> int:
    """The tensor ``counts`` times along each axis."""
    for axis, count in enumerate(counts):
        index = concatenated(e, [index] * count, axis)
    return index


def lines_around(e: Emitter, index: int, axis: int, before: Sequence[int], behind: Sequence[int]) -> int:
    """The tensor with copies of its own lines put before and behind it along ``axis``."""

    def line(at: int) -> int:
        begins = [0] * len(e.shape(index))
        begins[axis] = at
        shape = [*e.shape(index)]
        shape[axis] = 1
        return sliced(e, index, begins, shape)

    made = {at: line(at) for at in sorted({*before, *behind})}
    return concatenated(e, [*(made[at] for at in before), index, *(made[at] for at in behind)], axis)


def every(e: Emitter, index: int, axis: int, stride: int, first: int) -> int:
    """Every ``stride``-th of an axis that it divides: the axis folded in two, and one slice of the folds.

    For the last axis folds lie value by value; one TRANSPOSE, which all slices of it share, makes them runs. It is
    what a channel shuffle asks for, and six times as fast as slices of single values.
    """
    shape = e.shape(index)
    kept = shape[axis] // stride
    before, behind = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    if behind > 1:
        folded = e.reshape(index, (before * kept, stride, behind))
        part = sliced(e, folded, (0, first, 0), (before * kept, 1, behind))
    else:
        runs = e.shared(("runs", index, stride), lambda: _runs_of_last(e, index, before * kept, stride))
        part = sliced(e, runs, (first, 0), (1, before * kept))
    return e.reshape(part, (*shape[:axis], kept, *shape[axis + 1 :]))


def _runs_of_last(e: Emitter, index: int, count: int, stride: int) -> int:
    return e.transpose(e.reshape(index, (count, stride)), (1, 0))
