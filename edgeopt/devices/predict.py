"""Latency of a model on a device that is not here."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.devices.prediction import Prediction
from edgeopt.devices.profile import DeviceProfile

LEAST_COVERAGE = 0.8
"""Below this share of known cost the answer is refused: the rest would be a guess."""


def predict(
    model: ir.Model,
    *,
    device: DeviceProfile,
    runtime: str | None = None,
    precision: str | None = None,
    unit: str | None = None,
    threads: int | None = None,
) -> list[Prediction]:
    """Predict one run of batch ``model`` for each runtime, compute unit and precision that the profile supports.

    Args:
        model: canonical float graph, static shapes.
        device: its profile (``catalogue.find``).
        runtime: only this one; edgeopt's name, or that of a delegate (``xnnpack``, ``armnn``).
        precision: only this one: ``fp32``, ``fp16``, ``int8``.
        unit: only this compute unit.
        threads: of CPU runtimes; None: as many as the cores of the fastest kind, at most four.

    Raises:
        UsageError: the device lacks the runtime, unit or precision that is asked for.
        DeviceUnreachable: no prediction to be had: coverage below ``LEAST_COVERAGE``, or nothing measured that is alike.
    """
    raise NotImplementedError
