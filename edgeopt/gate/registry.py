"""All checks. A new one is a file in ``checks/`` and a line here."""

from __future__ import annotations

from types import ModuleType

from edgeopt.gate.check import Check
from edgeopt.gate.checks import (
    baseline,
    calibration_data,
    confidence,
    integrity,
    latency,
    outputs_alive,
    parity_conversion,
    parity_lowering,
    parity_quantization,
    precision,
    preprocessing,
    regression_set,
    robustness,
    size,
    slices,
    task_metric,
)


def _check(module: ModuleType, *, per_target: bool = True) -> Check:
    return Check(module.ID, module.REASON, module.run, per_target, rank=0)


_ORDER = (
    _check(integrity, per_target=False),
    _check(parity_conversion, per_target=False),
    _check(precision),
    _check(outputs_alive),
    _check(parity_lowering),
    _check(preprocessing),
    _check(calibration_data, per_target=False),
    _check(parity_quantization, per_target=False),
    _check(task_metric),
    _check(slices),
    _check(confidence),
    _check(regression_set),
    _check(robustness),
    _check(size),
    _check(latency),
    _check(baseline),
)
"""Causes before symptoms: of several failures the first is the headline."""

CHECKS = tuple(Check(one.id, one.reason, one.run, one.per_target, rank) for rank, one in enumerate(_ORDER))
