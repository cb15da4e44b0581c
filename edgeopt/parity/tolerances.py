"""How far results may be apart, each limit with its reason; and what of it is within what is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeopt.parity.compare import Accumulator


@dataclass(frozen=True)
class Tolerance:
    """A limit, and why it is where it is."""

    value: float
    reason: str


FLOAT_REL = Tolerance(1e-4, "float32 sums in another order differ by 1e-7 to 1e-5 in deep networks")
OF_SUMS = Tolerance(
    2.0,
    "times what the same graph differs by with its sums in another order (optimisations off): a deep network can"
    " amplify float32's roundings beyond any limit",
)
MOST_OF_SUMS = Tolerance(1e-2, "a graph that amplifies roundings further, or makes NaN, cannot be judged: it fails")
FP16_REL = Tolerance(1e-2, "fp16 has 11 bits: 5e-4 per rounding, and roundings of a deep network add up")
WITHIN_ONE_STEP = Tolerance(
    0.999, "on equal integers two right kernels differ where a value lies near a tie: by one step, never by more"
)
DYNAMIC_DB = Tolerance(
    6.0,
    "rounding activations at run time loses what it loses, and deep networks amplify it; a wrong weight leaves 0 dB",
)
END_TO_END_DB = Tolerance(
    0.5, "the artifact may round otherwise than the reference, not worse: equal noise, measured to half a decibel"
)
END_TO_END_LOW_DB = Tolerance(
    2.0,
    "below 20 dB, or on fewer than 32 samples, the noise is so large or so little known that two draws of it differ",
)
SURE = 2.0
"""Standard errors: a right artifact is blamed for a difference by chance once in forty times at most."""
LOW_DB = 20.0
FEW_SAMPLES = 32


def of_sums(order: float) -> float:
    """Largest relative error of a right float32 result; ``order``: that which another order of sums alone makes."""
    return max(FLOAT_REL.value, min(OF_SUMS.value * order, MOST_OF_SUMS.value))


def above(what: str, accumulators: Mapping[str, Accumulator], limit: float, reason: str) -> list[str]:
    """A sentence for each whose relative error is more than ``limit``; NaN is."""
    failures = []
    for name, accumulator in accumulators.items():
        rel = accumulator.result().rel
        if not rel <= limit:
            failures.append(f"{what} '{name}': relative error {rel:.2e}; at most {limit:g} ({reason})")
    return failures
