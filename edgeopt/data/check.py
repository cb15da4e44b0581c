"""One pass over samples before anything is built on them: what would spoil a calibration is refused here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edgeopt import digest
from edgeopt.data.samples import Array, Few, LabelledSamples
from edgeopt.errors import DataError
from edgeopt.types import Frozen


class InputStats(Frozen):
    """Values of one input over all samples. ``whole_numbers``: no value has a fraction."""

    low: float
    high: float
    mean: float
    std: float
    whole_numbers: bool


class DataStats(Frozen):
    """What ``check`` saw: number of samples, statistics by input name, warnings in words."""

    samples: int
    inputs: dict[str, InputStats]
    warnings: tuple[str, ...] = ()


Fingerprint = tuple[str, ...]
"""Of one sample: the digest of every input. Moments do not tell small images apart: two different 8×8 digits often
have the same extremes, sum and sum of squares."""


@dataclass(frozen=True)
class Checked:
    """What a look at samples gave: statistics for the report, and fingerprints to tell data sets apart by."""

    stats: DataStats
    fingerprints: frozenset[Fingerprint]

    def shared_with(self, other: Checked) -> str | None:
        """A warning if evaluation samples (``self``) are calibration samples (``other``) too."""
        both = len(self.fingerprints & other.fingerprints)
        if not both:
            return None
        return (
            f"{both} of the {self.stats.samples} evaluation samples looked at are calibration samples too: "
            "parity and accuracy on them look better than they are"
        )


class _Running:
    """Streamed minimum, maximum and moments of one input."""

    def __init__(self) -> None:
        self.low, self.high, self.count, self.sum, self.square = math.inf, -math.inf, 0, 0.0, 0.0
        self.whole, self.constant = True, 0

    def add(self, array: Array) -> None:
        low, high = float(array.min()), float(array.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.constant += low == high
        flat = array.ravel()
        self.count += flat.size
        values: Array = flat if flat.dtype.kind == "f" else flat.astype(np.float64)
        total, square = float(flat.sum(dtype=np.float64)), float(np.einsum("i,i->", values, values, dtype=np.float64))
        self.sum += total
        self.square += square
        self.whole = self.whole and (array.dtype.kind in "iub" or bool((np.rint(flat[:4096]) == flat[:4096]).all()))

    def stats(self) -> InputStats:
        mean = self.sum / self.count
        std = math.sqrt(max(self.square / self.count - mean * mean, 0.0))
        return InputStats(low=self.low, high=self.high, mean=mean, std=std, whole_numbers=self.whole)


def check(samples: LabelledSamples, what: str) -> Checked:
    """Look at every sample once.

    Args:
        samples: the source.
        what: ``calibration`` or ``evaluation``, for messages.

    Raises:
        DataError: no samples; NaN or infinite values; every sample constant.
    """
    if len(samples) == 0:
        raise DataError(f"no {what} samples", where=samples.where, hint="Give real data; a few hundred samples do.")
    running: dict[str, _Running] = {}
    fingerprints: set[Fingerprint] = set()
    numbers = samples.numbers if isinstance(samples, Few) else range(len(samples))
    for index, feed in zip(numbers, samples, strict=True):
        fingerprint: Fingerprint = ()
        for name, array in feed.items():
            if array.size == 0:
                continue
            _refuse_not_finite(array, f"{samples.where}: sample {index}, input '{name}'")
            running.setdefault(name, _Running()).add(array)
            fingerprint += (digest.of_array(array),)
        fingerprints.add(fingerprint)
    count = len(samples)
    if all(values.constant == count for values in running.values()):
        value = next(iter(running.values())).low
        raise DataError(
            f"every {what} sample is constant (all values {value:g} in the first)",
            where=samples.where,
            hint="Ranges and scales cannot be learnt from empty images: give real ones.",
        )
    constant = max((values.constant for values in running.values()), default=0)
    stats = DataStats(
        samples=count,
        inputs={name: values.stats() for name, values in running.items()},
        warnings=tuple(_warnings(what, count, constant=constant, different=len(fingerprints))),
    )
    return Checked(stats, frozenset(fingerprints))


def _refuse_not_finite(array: Array, where: str) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    counts = " and ".join(f"{n} {word}" for n, word in ((nan, "NaN"), (infinite, "infinite")) if n)
    raise DataError(f"{counts} of {array.size} values", where=where, hint="Find where they come from, or drop it.")


def _warnings(what: str, count: int, *, constant: int, different: int) -> Iterable[str]:
    if what == "calibration" and count == 1:
        yield "one calibration sample: ranges, and with them accuracy, hang on this one image; give a few hundred"
    elif count > 1 and different == 1:
        yield f"all {count} {what} samples look identical: they say no more than one does"
    elif constant:
        yield f"{constant} of {count} {what} samples are constant (blank images?)"
