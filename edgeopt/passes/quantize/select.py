"""What stays: every ingredient is tried on samples that were held back, and kept where it helps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeopt.passes.quantize.calibration import spread
from edgeopt.passes.quantize.equalize import Extent
from edgeopt.passes.quantize.ranges import Estimator
from edgeopt.types import Kept

Array = npt.NDArray[Any]

WORTH_DB = 0.3
"""Less is noise on 40 samples: a smaller difference leaves the default in place."""
SURE = 1.6
"""Standard errors of the paired difference: one in twenty alternatives that bring nothing gets past it."""
HELD_BACK = 0.2
LEAST_HELD_BACK = 40
FEWEST_TO_FIT = 8
"""With fewer samples than this left to fit to, or half as many to judge by, nothing is chosen: defaults hold."""


@dataclass(frozen=True)
class Setting:
    """What is chosen on held-back samples."""

    equalize: Extent
    rounding: Literal["nearest", "gptq"]
    correct_bias: bool
    lattice: bool
    ranges: Estimator
    safe_pairs: bool


@dataclass(frozen=True)
class Division:
    """Positions of carried samples: to fit to in trials, and to judge by."""

    fitted: tuple[int, ...]
    held: tuple[int, ...]


def divide(carried: int, most_fitted: int) -> Division:
    """Hold back a fifth, at least 40 where as many are left to fit to; spread evenly, so that order does not matter."""
    held_count = max(int(carried * HELD_BACK), min(LEAST_HELD_BACK, carried // 3))
    held = spread(carried, held_count)
    kept = [index for index in range(carried) if index not in set(held)]
    if len(kept) < FEWEST_TO_FIT or held_count < FEWEST_TO_FIT // 2:
        return Division(tuple(range(carried)), ())
    return Division(tuple(kept[index] for index in spread(len(kept), most_fitted)), tuple(held))


@dataclass(frozen=True)
class Alternative:
    """Something else than the default: what it is in words, the field of ``Setting``, and the value.

    ``cheaper``: the default costs time at every inference, so it must be worth it: without a loss of more than
    ``WORTH_DB`` the alternative is taken.
    """

    what: str
    field: str
    value: Any
    cheaper: bool = False


@dataclass(frozen=True, eq=False)
class Score:
    """How far the outputs of the held-back samples are from the float model's.

    Args:
        noise: float64 (outputs, samples), squared error of each output of each sample.
        signal: float64 (outputs, samples), sum of squares of the float model's.
    """

    noise: Array
    signal: Array

    def db(self) -> float:
        """SQNR over all samples, the mean over outputs."""
        return float(_db(self.signal.sum(1), self.noise.sum(1)).mean())

    def gain_db(self, other: Score) -> tuple[float, float]:
        """What this one has over the other, and the standard error of that, from leaving out one sample at a time."""
        count = self.noise.shape[1]
        gain = float(_db(other.noise.sum(1), self.noise.sum(1)).mean())
        rest = [total - part for total, part in ((s.noise.sum(1)[:, None], s.noise) for s in (other, self))]
        without = _db(rest[0], rest[1]).mean(0)
        return gain, float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))


def _db(a: Array, b: Array) -> Array:
    """Of two energies; an output that is exact counts as 120 dB."""
    result: Array = 10 * np.log10(np.maximum(a, 1e-300) / np.maximum(b, np.maximum(a, 1e-300) * 1e-12))
    return result


def select(
    start: Setting, alternatives: Iterable[Alternative], score: Callable[[Setting], Score], held: int
) -> tuple[Setting, tuple[Kept, ...]]:
    """Try alternatives one after the other, each against the best so far.

    Args:
        start: the defaults.
        alternatives: in the order in which they are tried.
        score: SQNR in dB of a setting on the held-back samples.
        held: how many those are.

    Returns:
        The setting to use, and the record.
    """
    best, best_score = start, score(start)
    record = [
        Kept(
            what=describe(start),
            brought_db=None,
            kept=True,
            why=f"the default; {best_score.db():.2f} dB on {held} held-back samples",
        )
    ]
    for one in alternatives:
        if getattr(best, one.field) == one.value:
            continue
        other = replace(best, **{one.field: one.value})
        other_score = score(other)
        gain, deviation = other_score.gain_db(best_score)
        kept = gain > -WORTH_DB if one.cheaper else gain > max(WORTH_DB, SURE * deviation)
        rule = (
            f"fewer operations, so kept unless it loses {WORTH_DB} dB"
            if one.cheaper
            else f"kept above {WORTH_DB} dB and {SURE} standard errors"
        )
        record.append(
            Kept(
                what=one.what,
                brought_db=round(gain, 2),
                kept=kept,
                why=f"{other_score.db():.2f} dB against {best_score.db():.2f} on {held} held-back samples, "
                f"± {deviation:.2f}; {rule}",
            )
        )
        if kept:
            best, best_score = other, other_score
    return best, tuple(record)


def describe(setting: Setting) -> str:
    equalisation = {
        "none": "no equalisation",
        "depthwise": "equalisation in front of depthwise convolutions",
        "all": "equalisation of all tensors where it pays",
    }[setting.equalize]
    parts = [
        f"{setting.ranges} ranges",
        equalisation,
        {"nearest": "rounding to nearest", "gptq": "second-order rounding (GPTQ)"}[setting.rounding],
        "bias correction" if setting.correct_bias else "no bias correction",
    ]
    if setting.safe_pairs:
        parts.append("overflow fix")
    if setting.lattice:
        parts.append("input lattice")
    return ", ".join(parts)
