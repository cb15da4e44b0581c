"""Weights to integers: scales, rounding to nearest, and GPTQ on the convolution's Hessian.

Weights are always seen as (groups, rows, columns): one row per output channel of a group, one column per input channel
and tap that it multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph import overflow
from edgeopt.graph.quantization import INT8_MAX, QuantizedTensor, QuantParams

Array = npt.NDArray[Any]

SHRINK = tuple(np.linspace(1.0, 0.7, 16).tolist())
"""Candidate scales of a channel, as shares of the one that just holds its largest weight."""
GROW = (2.0, 1.8, 1.6, 1.45, 1.35, 1.25, 1.15, 1.08)
"""More of them, where pairs of weights must be safe: at 2 every pair is."""
LARGEST_BIAS = 2**30
"""In steps: int32 holds twice that, the rest is room for the sum of products."""
NO_PAIRS: Array = np.empty((0, 2), np.intp)
DAMPING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it (Frantar et al., 2022, arXiv:2210.17323)."""
BLOCK = 64


@dataclass(frozen=True)
class Layout:
    """How a weighted node's weight lies in memory, and how its rows and columns are found.

    Args:
        op: Conv, ConvTranspose or Gemm.
        shape: of the weight.
        groups: of a convolution; 1 for Gemm.
    """

    op: str
    shape: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, node: ir.Node, shape: tuple[int, ...]) -> Layout:
        return cls(node.op_type, shape, node.attributes.get_int("group", 1) if node.op_type != "Gemm" else 1)

    @property
    def outputs(self) -> int:
        return self.shape[1] * self.groups if self.op == "ConvTranspose" else self.shape[0]

    @property
    def axis(self) -> int | None:
        """Axis of per-channel scales. A grouped ConvTranspose has none: one axis entry serves several channels."""
        if self.op == "ConvTranspose":
            return 1 if self.groups == 1 else None
        return 0

    def rows(self, weight: Array) -> Array:
        """(groups, outputs per group, columns)."""
        if self.op == "ConvTranspose":
            split = weight.reshape(self.groups, self.shape[0] // self.groups, self.shape[1], -1)
            return split.transpose(0, 2, 1, 3).reshape(self.groups, self.shape[1], -1)
        return weight.reshape(self.groups, self.shape[0] // self.groups, -1)

    def weight(self, rows: Array) -> Array:
        """The inverse of ``rows``."""
        if self.op == "ConvTranspose":
            inputs = self.shape[0] // self.groups
            split = rows.reshape(self.groups, self.shape[1], inputs, -1).transpose(0, 2, 1, 3)
            return np.ascontiguousarray(split).reshape(self.shape)
        return np.ascontiguousarray(rows).reshape(self.shape)


def weight_scales(
    rows: Array, importance: Array, bias: Array, *, input_scale: float, per_tensor: bool, pairs: Array = NO_PAIRS
) -> Array:
    """Scale of every row, (groups, rows): the candidate whose nearest rounding errs least.

    Args:
        rows: float weights (groups, rows, columns).
        importance: (groups, columns), squared size of what each column multiplies.
        bias: (groups, rows) in real units.
        input_scale: of the activation; 0 where the bias stays float.
        per_tensor: one scale for all.
        pairs: of columns, which must be safe (``graph.overflow``).
    """
    scales = _least_error_scale(rows, importance, pairs, common=per_tensor)
    # A dead channel takes its neighbours' scale: any would do, and a tiny one would overflow its bias.
    dead = scales <= 0
    alive = scales[~dead]
    scales[dead] = alive.max() if alive.size else 1 / INT8_MAX
    if input_scale > 0:
        scales = np.maximum(scales, np.abs(bias) / (input_scale * LARGEST_BIAS))
        if per_tensor:
            scales[:] = scales.max()
    return scales.astype(np.float32)


def _least_error_scale(rows: Array, importance: Array, pairs: Array, *, common: bool) -> Array:
    largest = np.abs(rows).max(2)
    if common:
        largest = np.full(largest.shape, largest.max())
    best = np.full(largest.shape, np.inf)
    scales = np.zeros(largest.shape)
    for share in (*GROW, *SHRINK) if len(pairs) else SHRINK:
        scale = np.maximum(largest * share / INT8_MAX, 1e-30)
        error = ((nearest(rows, scale, pairs) * scale[..., None] - rows) ** 2 * importance[:, None, :]).sum(2)
        if common:
            error = np.full(error.shape, error.sum())
        better = error < best * (1 - 1e-9)
        best = np.where(better, error, best)
        scales = np.where(better, scale, scales)
    scales[largest <= 0] = 0.0
    return scales


def nearest(rows: Array, scales: Array, pairs: Array = NO_PAIRS) -> npt.NDArray[np.int8]:
    """Rounded to nearest; then pairs of columns are made safe."""
    integers: npt.NDArray[np.int8] = np.clip(np.rint(rows / scales[..., None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    return overflow.within(integers, pairs) if len(pairs) else integers


def gptq(rows: Array, scales: Array, hessian: Array, pairs: Array = NO_PAIRS) -> npt.NDArray[np.int8]:
    """Round column by column and let the columns not yet rounded make up for each error (GPTQ).

    Frantar et al., 2022, arXiv:2210.17323, in the form of Chee et al., 2023, arXiv:2307.13304 (LDLQ), which is the same
    and needs one Cholesky factor and no inverse: with ``H = (I + U) D (I + U)ᵀ``, U strictly upper, column k becomes
    ``round(w_k + Σ_{j<k} e_j U_jk)`` where ``e = w − ŵ``. Columns go in the order of H's diagonal, largest first. The
    Hessian is that of the centred inputs: what an error does to the mean is left to the bias, which follows. A weight
    that is exactly 0 stays so: the grid holds it, and a mask of sparsity is no error to be made up for.

    Args:
        rows: (groups, rows, columns) float.
        scales: (groups, rows).
        hessian: (groups, columns, columns), covariance of the columns' inputs.
        pairs: of columns, which must be safe (``graph.overflow``). Where rounding to nearest cuts a pair, its share of
            the cut bounds both; elsewhere the one that comes first bounds the other.

    Returns:
        int8 (groups, rows, columns); never worse than nearest rounding in ``hessian_error``, row by row.
    """
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    ordered = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], 1), order[:, None, :], 2)
    index = np.arange(rows.shape[2])
    # A group without any input variance has nothing to correct with: it gets the identity, hence nearest rounding.
    mean = diagonal.mean(1)
    ordered[:, index, index] += np.where(mean > 0, DAMPING * mean, 1.0)[:, None]
    # The upper factor R of H = R Rᵀ is the lower one of H read backwards, read backwards.
    upper = np.linalg.cholesky(ordered[:, ::-1, ::-1])[:, ::-1, ::-1]
    upper = upper / upper[:, index, index][:, None, :]
    weights = np.take_along_axis(rows, order[:, None, :], 2).astype(np.float64)
    plain = nearest(rows, scales, pairs)
    bounds = _Bounds(order, plain, nearest(rows, scales), pairs) if len(pairs) else None
    rounded = _with_feedback(weights, scales.astype(np.float64), upper, bounds)
    integers = np.empty(rows.shape, np.int8)
    np.put_along_axis(integers, np.broadcast_to(order[:, None, :], rows.shape), rounded, 2)
    worse = hessian_error(rows, scales, integers, hessian) > hessian_error(rows, scales, plain, hessian)
    integers[worse] = plain[worse]
    return integers


class _Bounds:
    """How large the integer of a column may become, given its partner's, in the order in which columns are rounded.

    Args:
        order: (groups, columns) of columns.
        safe, free: (groups, rows, columns) in the graph's order: rounded to nearest with and without safe pairs.
        pairs: of columns, in the graph's order.
    """

    def __init__(self, order: Array, safe: Array, free: Array, pairs: Array) -> None:
        partner = np.full(order.shape[1], -1)
        partner[pairs[:, 0]], partner[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
        position = np.argsort(order, axis=1)
        # Where a column's partner is in the order; a column without one is its own, and not yet rounded then.
        of_column = np.where(partner < 0, np.arange(len(partner)), partner)
        self._partner = np.take_along_axis(position, of_column[order], 1)
        most = np.where(safe == free, INT8_MAX, np.abs(safe.astype(np.int16)))
        for side in (0, 1):  # a pair is cut as a whole
            column, other = pairs[:, side], pairs[:, 1 - side]
            was_cut = safe[..., other] != free[..., other]
            most[..., column] = np.where(was_cut, np.abs(safe[..., column].astype(np.int16)), most[..., column])
        self._most = np.take_along_axis(most, order[:, None, :], 2)
        self._groups = np.arange(len(order))

    def cut(self, steps: Array, integers: Array, column: int) -> Array:
        """(groups, rows) of what column would be, given the integers so far (zero where there is none yet)."""
        partner = integers[self._groups, :, self._partner[:, column]].astype(np.int16)
        left = overflow.PAIR_LIMIT - np.abs(partner)
        most = self._most[:, :, column]
        high = np.minimum(most, np.where(partner > 0, left, INT8_MAX))
        low = np.minimum(most, np.where(partner < 0, left, INT8_MAX))
        result: Array = np.clip(steps, -low, high)
        return result


def _with_feedback(weights: Array, scales: Array, upper: Array, bounds: _Bounds | None) -> npt.NDArray[np.int8]:
    columns = weights.shape[2]
    errors = np.zeros(weights.shape)
    integers = np.zeros(weights.shape, np.int8)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        wanted = weights[:, :, start:stop] + errors[:, :, :start] @ upper[:, :start, start:stop]
        for column in range(start, stop):
            feedback = errors[:, :, start:column] @ upper[:, start:column, column, None]
            value = (wanted[:, :, column - start] + feedback[:, :, 0]) / scales
            steps = np.clip(np.rint(value), -INT8_MAX, INT8_MAX) * (weights[:, :, column] != 0)
            if bounds is not None:
                steps = bounds.cut(steps, integers, column)
            integers[:, :, column] = steps
            errors[:, :, column] = weights[:, :, column] - steps * scales
    return integers


def hessian_error(rows: Array, scales: Array, integers: Array, hessian: Array) -> Array:
    """(groups, rows): expected squared error of the outputs, ``eᵀ H e`` with ``e`` the weights' error."""
    error = integers * scales[..., None].astype(np.float64) - rows
    result: Array = np.einsum("grc,grc->gr", error @ hessian, error)
    return result


def quantized_weight(layout: Layout, integers: Array, scales: Array) -> QuantizedTensor:
    """The table's entry of rows that were rounded: (groups, rows, columns) and (groups, rows)."""
    if layout.axis is None:
        params = QuantParams(scales.max(), np.zeros((), np.int32))
    else:
        flat = scales.reshape(-1)
        params = QuantParams(flat, np.zeros(flat.shape, np.int32), layout.axis)
    return QuantizedTensor(layout.weight(integers), params)
