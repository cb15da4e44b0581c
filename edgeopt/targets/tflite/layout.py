"""Which order a tensor's axes have in the file, and how to need no TRANSPOSE.

ONNX is channels first, TFLite's spatial operators want channels last. Every value carries its layout, and moves
nothing until somebody needs another one: a Transpose of the source relabels axes, a Reshape translates them, constants
are permuted before they are written. What consumers want is known before (``wanted_perms``), so that a transposition
the source does ask for is done once, where it is asked, into the order its consumers read.

A *perm* says which axis of the graph's value stands at each axis of the file's tensor: ``(0, 2, 3, 1)`` is NHWC.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import onnx_ir as ir

from edgeopt.formats.tflite import Layout
from edgeopt.targets.tflite.attributes import ints, shape_of

Perm = tuple[int, ...]

NHWC: Perm = (0, 2, 3, 1)
NWC: Perm = (0, 2, 1)
SPATIAL = frozenset(
    {
        "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample",
        "DepthToSpace", "SpaceToDepth", "InstanceNormalization", "BatchNormalization", "PRelu", "LRN",
    }
)  # fmt: skip


def identity(rank: int) -> Perm:
    return tuple(range(rank))


def channels_last(rank: int) -> Perm:
    """Batch, spatial axes, channels."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def plain(shape: Sequence[int], perm: Perm | None = None) -> Layout:
    shape = tuple(shape)
    return Layout(shape, shape, identity(len(shape)) if perm is None else perm)


def is_plain(layout: Layout) -> bool:
    """Whole axes in some order; otherwise parts of one axis lie apart."""
    return layout.view == layout.shape


def stored_shape(layout: Layout) -> tuple[int, ...]:
    """Shape in the file of a plain layout."""
    return tuple(layout.shape[axis] for axis in layout.perm)


def moves_nothing(shape: Sequence[int], source: Perm, target: Perm) -> bool:
    """Whether both orders lie alike in memory: only axes of size 1 change places."""
    return [axis for axis in source if shape[axis] != 1] == [axis for axis in target if shape[axis] != 1]


def relabelled(perm: Perm, transpose: Perm) -> Perm:
    """Layout of ``Transpose(x, transpose)`` if the file's tensor stays that of ``x``, which lies as ``perm``."""
    place = {axis: position for position, axis in enumerate(transpose)}
    return tuple(place[axis] for axis in perm)


def before_transpose(perm: Perm, transpose: Perm) -> Perm:
    """Layout of ``x`` such that ``Transpose(x, transpose)`` lies as ``perm`` without moving anything."""
    return tuple(transpose[axis] for axis in perm)


# --- reshapes


class Atoms:
    """Common refinement of two shapes: factors such that each axis of either is a run of them.

    Args:
        sizes: of the atoms, in the graph's order; none is 1.
        source: for each axis of the source shape, its atoms.
        target: for each axis of the target shape, its atoms.
    """

    def __init__(self, sizes: list[int], source: list[list[int]], target: list[list[int]]) -> None:
        self.sizes = sizes
        self.source = source
        self.target = target

    @classmethod
    def of(cls, source: Sequence[int], target: Sequence[int]) -> Atoms | None:
        """None where the shapes have no common refinement (6×4 as 4×6)."""
        borders = sorted(_borders(source) | _borders(target))
        if 0 in source or any(high % low for low, high in pairwise(borders)):
            return None
        # Borders count elements from the right; atoms are listed from the left.
        sizes = [high // low for low, high in pairwise(borders)][::-1]
        return cls(sizes, _runs(source, sizes), _runs(target, sizes))

    def through(self, perm: Perm, *, backwards: bool = False) -> list[int] | None:
        """Axes (larger than 1) of the other shape, in the order in which they lie if this one lies as ``perm``.

        None if an axis of the other would lie apart.
        """
        here, there = (self.target, self.source) if backwards else (self.source, self.target)
        order = [atom for axis in perm for atom in here[axis]]
        axis_of = {atom: axis for axis, atoms in enumerate(there) for atom in atoms}
        result: list[int] = []
        at = 0
        while at < len(order):
            atoms = there[axis_of[order[at]]]
            if order[at : at + len(atoms)] != atoms:
                return None
            result.append(axis_of[order[at]])
            at += len(atoms)
        return result


def _borders(shape: Sequence[int]) -> set[int]:
    borders, count = {1}, 1
    for size in reversed(shape):
        count *= size
        borders.add(count)
    return borders


def _runs(shape: Sequence[int], sizes: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    atom = 0
    for size in shape:
        run: list[int] = []
        count = 1
        while count < size:
            run.append(atom)
            count *= sizes[atom]
            atom += 1
        runs.append(run)
    return runs


def completed(order: Sequence[int], shape: Sequence[int], preferred: Sequence[Perm] = ()) -> tuple[Perm, ...]:
    """Whole perms in which the axes larger than 1 stand in ``order``, best first: preferred ones, then usual ones."""
    rank = len(shape)
    usual = (NHWC, identity(4)) if rank == 4 else (identity(rank), channels_last(rank))
    ones = [axis for axis in range(rank) if shape[axis] == 1]
    fits = [perm for perm in (*preferred, *usual) if [axis for axis in perm if shape[axis] != 1] == list(order)]
    return tuple(dict.fromkeys((*fits, (*ones, *order))))


# --- what consumers want

Wanted = dict[ir.Value, tuple[Perm, ...]]


def wanted_perms(graph: ir.Graph, *, spatial_outputs: bool) -> Wanted:
    """For each value the perms that its consumers can read as they are, best first; absent: they take any.

    Args:
        graph: canonical graph.
        spatial_outputs: rank-4 graph outputs may stay NHWC.
    """
    asked: dict[ir.Value, list[tuple[Perm, ...]]] = {}
    for output in graph.outputs:
        rank = len(shape_of(output))
        asked.setdefault(output, []).append((NHWC, identity(4)) if rank == 4 and spatial_outputs else (identity(rank),))
    wanted: Wanted = {}
    for node in reversed(list(graph)):
        for output in node.outputs:
            if (perms := _agreed(asked.get(output, ()))) is not None:
                wanted[output] = perms
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is not None:
                continue
            perms = _wanted_by(node, index, value, wanted)
            if perms:
                asked.setdefault(value, []).append(perms)
    for value in graph.inputs:
        if (perms := _agreed(asked.get(value, ()))) is not None:
            wanted[value] = perms
    return wanted


def _agreed(asked: Sequence[tuple[Perm, ...]]) -> tuple[Perm, ...] | None:
    if not asked:
        return None
    agreed = asked[0]
    for perms in asked[1:]:
        agreed = tuple(perm for perm in agreed if perm in perms) or agreed
    return agreed


def _wanted_by(node: ir.Node, index: int, value: ir.Value, wanted: Wanted) -> tuple[Perm, ...]:
    rank = len(shape_of(value))
    kind = node.op_type
    if kind in SPATIAL and rank > 2:
        return (channels_last(rank),)
    if kind == "Gemm":
        return (identity(2),)
    if kind == "MatMul" and rank >= 2:
        straight = identity(rank)
        return (straight, (*straight[:-2], rank - 1, rank - 2))
    behind = wanted.get(node.outputs[0], ())
    shape, target = shape_of(value), shape_of(node.outputs[0])
    if kind == "Transpose":
        transpose = transpose_perm(node)
        return tuple(before_transpose(perm, transpose) for perm in behind)
    if kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return _through_reshape(shape, target, behind)
    if kind in ("Softmax", "LogSoftmax"):
        axis = node.attributes.get_int("axis", -1) % rank
        return tuple(sorted(behind, key=lambda perm: perm[-1] != axis))
    if len(target) == rank and kind != "Gather":
        return behind
    return ()


def _through_reshape(shape: tuple[int, ...], target: tuple[int, ...], behind: Sequence[Perm]) -> tuple[Perm, ...]:
    atoms = Atoms.of(shape, target)
    if atoms is None:
        return ()
    perms: list[Perm] = []
    for perm in behind:
        order = atoms.through(perm, backwards=True)
        if order is not None:
            perms.extend(completed(order, shape))
    return tuple(dict.fromkeys(perms))


def transpose_perm(node: ir.Node) -> Perm:
    rank = len(shape_of(node.inputs[0]))
    return tuple(ints(node, "perm", tuple(reversed(range(rank)))))
