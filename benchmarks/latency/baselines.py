"""Two rooflines, fitted per configuration on the rows that the predictor also saw, to be compared with.

Whole model: ``overhead + max(macs / peak, bytes / bandwidth)`` over the totals. Operator: the same for each kernel,
summed. Three numbers each, fitted in log latency (Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from benchmarks.latency.fitting import Measured
from benchmarks.latency.rows import Row, operators
from edgeopt.devices.engines import fusion_of
from edgeopt.devices.kernels import FUSION, fuse

Array = npt.NDArray[np.float64]
LEAST = 3  # rows


@cache
def _kernels(folder: Path, model: str, fusion: str) -> tuple[Array, Array]:
    """10⁸ multiply-accumulates, and 10⁶ elements moved (weights too), by kernel."""
    listed = operators(folder, model)
    assert listed is not None
    kernels = [kernel.lead for kernel in fuse(listed, FUSION[fusion])]
    return (
        np.array([lead.macs / 1e8 for lead in kernels]),
        np.array([(lead.inputs + lead.outputs + lead.weights) / 1e6 for lead in kernels]),
    )


class Baselines:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def predict(self, seen: Measured, wanted: Measured) -> tuple[Array | None, Array | None]:
        """Log ms of the wanted rows by the whole-model and by the operator roofline; None with fewer than 3 rows."""
        if len(seen.rows) < LEAST:
            return None, None
        return self._fitted(seen, wanted, whole=True), self._fitted(seen, wanted, whole=False)

    def _fitted(self, seen: Measured, wanted: Measured, *, whole: bool) -> Array:
        known = [self._costs(row, whole) for row in seen.rows]
        asked = [self._costs(row, whole) for row in wanted.rows]
        packed = _pack(known)

        def errors(logs: Array) -> Array:
            return _log_ms(logs, packed) - seen.y

        total = float(np.median(seen.y - np.log([m.sum() + 1e-3 for m, _ in known])))
        start = [float(seen.y.min()) - 3, total, total - 0.7]
        best = least_squares(errors, start, loss="soft_l1", max_nfev=30)
        return _log_ms(best.x, _pack(asked))

    def _costs(self, row: Row, whole: bool) -> tuple[Array, Array]:
        macs, moved = _kernels(self._folder, row.model, fusion_of(row.engine))
        return (macs.sum(keepdims=True), moved.sum(keepdims=True)) if whole else (macs, moved)


def _pack(costs: list[tuple[Array, Array]]) -> tuple[Array, Array, Array]:
    starts = np.cumsum([0, *(len(macs) for macs, _ in costs)][:-1])
    return np.concatenate([m for m, _ in costs]), np.concatenate([b for _, b in costs]), starts


def _log_ms(logs: Array, packed: tuple[Array, Array, Array]) -> Array:
    macs, moved, starts = packed
    times = np.maximum(macs * np.exp(logs[1]), moved * np.exp(logs[2])) + np.exp(logs[0])
    log_ms: Array = np.log(np.add.reduceat(times, starts))
    return log_ms
