"""What stays: every ingredient is tried on samples that were held back, and kept where it helps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from edgeopt.passes.quantize.calibration import spread
from edgeopt.passes.quantize.fit import Setting
from edgeopt.types import Kept

WORTH_DB = 0.3
"""Less is noise on 40 samples: a smaller difference leaves the default in place."""
HELD_BACK = 0.2
LEAST_HELD_BACK = 40
FEWEST_TO_FIT = 8
"""With fewer samples than this left to fit to, or half as many to judge by, nothing is chosen: defaults hold."""


@dataclass(frozen=True)
class Division:
    """Positions of carried samples: to fit to in trials, and to judge by."""

    fitted: tuple[int, ...]
    held: tuple[int, ...]


def divide(carried: int, most_fitted: int) -> Division:
    """Hold back a fifth, at least 40 where that leaves as many to fit to; spread evenly, so that order does not matter."""
    held_count = max(int(carried * HELD_BACK), min(LEAST_HELD_BACK, carried // 3))
    held = spread(carried, held_count)
    kept = [index for index in range(carried) if index not in set(held)]
    if len(kept) < FEWEST_TO_FIT or held_count < FEWEST_TO_FIT // 2:
        return Division(tuple(range(carried)), ())
    return Division(tuple(kept[index] for index in spread(len(kept), most_fitted)), tuple(held))


@dataclass(frozen=True)
class Alternative:
    """Something else than the default: what it is in words, the field of ``Setting``, and the value."""

    what: str
    field: str
    value: Any


def select(
    start: Setting, alternatives: Iterable[Alternative], score: Callable[[Setting], float], held: int
) -> tuple[Setting, tuple[Kept, ...], float]:
    """Try alternatives one after the other, each against the best so far.

    Args:
        start: the defaults.
        alternatives: in the order in which they are tried.
        score: SQNR in dB of a setting on the held-back samples.
        held: how many those are.

    Returns:
        The setting to use, the record, and its score.
    """
    best, best_db = start, score(start)
    record = [
        Kept(
            what=describe(start),
            brought_db=None,
            kept=True,
            why=f"the default; {best_db:.2f} dB on {held} held-back samples",
        )
    ]
    for one in alternatives:
        if getattr(best, one.field) == one.value:
            continue
        other = replace(best, **{one.field: one.value})
        db = score(other)
        gain = db - best_db
        kept = gain > WORTH_DB
        verdict = "more" if kept else "not more"
        record.append(
            Kept(
                what=one.what,
                brought_db=round(gain, 2),
                kept=kept,
                why=f"{db:.2f} dB against {best_db:.2f} on {held} held-back samples: {verdict} than {WORTH_DB} dB better",
            )
        )
        if kept:
            best, best_db = other, db
    return best, tuple(record), best_db


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
    if setting.lattice:
        parts.append("input lattice")
    return ", ".join(parts)
