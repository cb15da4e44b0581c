"""How far two tensors are apart. All sums are in float64; inputs are any real arrays of equal shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def sqnr_db(reference: Array, value: Array) -> float:
    """Signal to quantization noise: ``10·log10(Σ ref² / Σ (value − ref)²)`` in dB; ``inf`` where equal."""
    reference64 = np.asarray(reference, np.float64)
    noise = float(np.square(np.asarray(value, np.float64) - reference64).sum())
    signal = float(np.square(reference64).sum())
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(max(signal, 1e-300) / noise))


def cosine(reference: Array, value: Array) -> float:
    """Cosine of the angle between the flattened tensors; 1 where both are zero."""
    a, b = np.asarray(reference, np.float64).ravel(), np.asarray(value, np.float64).ravel()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b / length) if length else float(not a.any() and not b.any())


def relative_error(reference: Array, value: Array) -> float:
    """``‖value − ref‖ / ‖ref‖`` (Euclidean)."""
    a = np.asarray(reference, np.float64)
    norm = float(np.linalg.norm(a))
    return float(np.linalg.norm(np.asarray(value, np.float64) - a)) / max(norm, 1e-300)


def max_abs(reference: Array, value: Array) -> float:
    difference = np.abs(np.asarray(value, np.float64) - np.asarray(reference, np.float64))
    return float(difference.max()) if difference.size else 0.0


def top1_agreement(reference: Array, value: Array) -> float:
    """Share of samples (first axis) whose largest output is at the same place. Shape (N, …)."""
    a, b = (np.asarray(x).reshape(len(x), -1).argmax(1) for x in (reference, value))
    return float((a == b).mean())
