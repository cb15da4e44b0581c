"""Comparison of two sets of outputs, sample by sample: nothing is kept but sums.

All errors are of ``value`` against ``reference``, both as real numbers in the source's layout; where a tensor has a
grid, errors are also counted in its steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgeopt.types import Frozen

Array = npt.NDArray[Any]
LevelName = Literal["L0", "L1", "L2"]

EXACT_DB = 300.0
"""Stands for the infinite SQNR of equal tensors: beyond what float64 sums can tell, and a number in any JSON."""


class OutputParity(Frozen):
    """How far one tensor is from its reference, over all samples.

    Args:
        values: how many numbers were compared.
        max_abs: largest absolute difference.
        rel: Euclidean norm of the difference over that of the reference.
        cosine: of the angle between the two.
        sqnr_db: signal to quantization noise, at most ``EXACT_DB``.
        lsb_max: largest difference in steps of the tensor's grid; None without a grid.
        equal: share of values that are the same integer; None without a grid.
        within_one_step: share of values at most one step apart; None without a grid.
        top1_agreement: share of samples whose largest value is at the same place; None for a scalar output.
    """

    values: int
    max_abs: float
    rel: float
    cosine: float
    sqnr_db: float
    lsb_max: float | None = None
    equal: float | None = None
    within_one_step: float | None = None
    top1_agreement: float | None = None


class SegmentParity(Frozen):
    """One segment of an artifact, from tensors of the table to ``tensor``, on the reference's own integers.

    Args:
        tensor: what the segment ends in, by the source's name.
        node: the source's node that makes it.
        kind: ``int8`` (judged in steps), ``float32`` and ``float16`` (by relative error), ``dynamic`` (activations
            quantized at run time: by SQNR).
        failure: what is wrong, in words; None if nothing is.
    """

    tensor: str
    node: str
    kind: Literal["int8", "float32", "float16", "dynamic"]
    parity: OutputParity
    failure: str | None = None


class Located(Frozen):
    """The first layer where the error jumps.

    Args:
        level: at which level it was looked for.
        node: the source's node.
        tensor: what it makes.
        before_db: SQNR of the worst tensor that the layer reads.
        after_db: SQNR of what it makes.
        text: the same in words.
    """

    level: LevelName
    node: str
    tensor: str
    before_db: float
    after_db: float
    text: str


class LevelReport(Frozen):
    """One level of parity: a summary over all outputs, every output, and what failed, in words.

    Args:
        label: how the figures came to be: samples, runtime and version, threads.
        lsb_max: largest difference of a segment in steps (``L2``); None where none is cut.
        equal: share of all segments' values that are the reference's very integers (``L2``).
        within_one_step: share of all segments' values at most one step apart (``L2``).
        reference_sqnr_db: what the integer reference itself reaches on the same samples (``L2``).
        fp16_costs_db: how much nearer to float the outputs would be without fp16's rounding of every result (``L2``
            of a file that computes in fp16, where a runtime can leave it out).
        segments: every segment, in graph order (``L2``).
        unmatched: tensors of the table that the artifact does not hold (it fused over them).
    """

    level: LevelName
    label: str
    samples: int
    sqnr_db: float
    cosine: float
    max_abs: float
    rel: float
    lsb_max: float | None = None
    equal: float | None = None
    within_one_step: float | None = None
    top1_agreement: float | None = None
    reference_sqnr_db: float | None = None
    fp16_costs_db: float | None = None
    outputs: dict[str, OutputParity]
    segments: tuple[SegmentParity, ...] = ()
    unmatched: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    located: Located | None = None
    tensors_db: dict[str, float] = Field(default_factory=dict)
    """SQNR of every tensor that was compared to find ``located``, in graph order."""
    sample_noise: tuple[float, ...] = ()
    """Squared error of every sample, summed over the outputs: what tells how sure a difference of two reports is."""


class ParityReport(Frozen):
    """All levels that were looked at."""

    levels: dict[LevelName, LevelReport]

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(f"{level}: {text}" for level, report in self.levels.items() for text in report.failures)


class Accumulator:
    """Sums over samples for one tensor; ``result`` may be asked for at any time.

    Args:
        step: size of one step of the tensor's grid, or None.
    """

    def __init__(self, step: float | None = None) -> None:
        self._step = step
        self._values = self._equal = self._within = self._samples = self._agreed = 0
        self._signal = self._noise = self._product = self._other = 0.0
        self._max_abs = 0.0
        self._scalar = False
        self.sample_noise: list[float] = []

    def add(self, reference: Array, value: Array) -> None:
        """One sample. Equal shapes; ValueError otherwise."""
        if reference.shape != value.shape:
            raise ValueError(f"shapes differ: {reference.shape} and {value.shape}")
        a, b = np.asarray(reference, np.float64).ravel(), np.asarray(value, np.float64).ravel()
        difference = b - a
        worst = float(np.abs(difference).max(initial=0.0))
        # A NaN or an infinity on one side only is as wrong as can be; max() would let it pass.
        self._max_abs = worst if math.isnan(worst) else max(self._max_abs, worst)
        self._values += a.size
        self._signal += float(a @ a)
        self._other += float(b @ b)
        self._product += float(a @ b)
        noise = float(difference @ difference)
        self._noise += noise
        self.sample_noise.append(noise)
        self._samples += 1
        self._scalar = a.size < 2
        self._agreed += int(a.size > 0 and a.argmax() == b.argmax())
        if self._step is not None:
            # Grids are float32: a difference of exactly one step is not always the same float64.
            self._within += int((np.abs(difference) <= self._step * 1.001).sum())
            self._equal += int((np.abs(difference) <= self._step * 0.001).sum())

    def add_integers(self, reference: Array, value: Array, zero_point: int) -> None:
        """One sample as int8 integers of the tensor's grid: what ``add`` says of their real values, many times faster.

        Raises:
            ValueError: shapes differ, or the accumulator has no step.
        """
        if reference.shape != value.shape or self._step is None:
            raise ValueError(f"shapes differ: {reference.shape} and {value.shape}, or no grid")
        a, b = reference.ravel(), value.ravel()
        squares = np.square(np.arange(-128, 128, dtype=np.float64) - zero_point) * self._step**2
        signal, other = (float(_histogram(x) @ squares) for x in (a, b))
        noise = worst = 0.0
        equal = within = a.size
        if not np.array_equal(a, b):
            difference = np.abs(b.astype(np.int16) - a)
            counts = np.bincount(difference, minlength=2).astype(np.float64)
            steps = np.arange(len(counts), dtype=np.float64)
            noise = float(counts @ np.square(steps)) * self._step**2
            worst = float(steps[-1]) * self._step
            equal, within = int(counts[0]), int(counts[:2].sum())
        self._max_abs = max(self._max_abs, worst)
        self._values += a.size
        self._signal += signal
        self._other += other
        self._product += (signal + other - noise) / 2
        self._noise += noise
        self._equal += equal
        self._within += within
        self._samples += 1
        self._scalar = a.size < 2
        self._agreed += int(a.size > 0 and a.argmax() == b.argmax())

    def merge(self, other: Accumulator) -> None:
        """Take over another tensor's sums; steps and samples are this one's own and stay."""
        self._max_abs = max(self._max_abs, other._max_abs, key=lambda value: (math.isnan(value), value))
        self._values += other._values
        self._signal += other._signal
        self._other += other._other
        self._product += other._product
        self._noise += other._noise

    def result(self) -> OutputParity:
        norms = math.sqrt(self._signal * self._other)
        return OutputParity(
            values=self._values,
            max_abs=_finite(self._max_abs),
            rel=_finite(math.sqrt(self._noise / self._signal) if self._signal else float(self._noise > 0)),
            cosine=_finite(self._product / norms if norms else float(self._signal == self._other)),
            sqnr_db=decibel(self._signal, self._noise),
            lsb_max=_finite(self._max_abs / self._step) if self._step is not None else None,
            equal=self._equal / max(self._values, 1) if self._step is not None else None,
            within_one_step=self._within / max(self._values, 1) if self._step is not None else None,
            top1_agreement=None if self._scalar or not self._samples else self._agreed / self._samples,
        )


def summarise(accumulators: Mapping[str, Accumulator]) -> OutputParity:
    """All outputs as one long tensor; top-1 agreement is of the first output that has one."""
    results = {name: accumulator.result() for name, accumulator in accumulators.items()}
    total = Accumulator()
    for accumulator in accumulators.values():
        total.merge(accumulator)
    first = next((r.top1_agreement for r in results.values() if r.top1_agreement is not None), None)
    return total.result().model_copy(update={"top1_agreement": first})


def decibel(signal: float, noise: float) -> float:
    """``10·log10(signal / noise)``, at most ``EXACT_DB``; −``EXACT_DB`` where the noise is no number."""
    if math.isnan(noise) or math.isinf(noise):
        return -EXACT_DB
    if noise == 0.0:
        return EXACT_DB
    return max(-EXACT_DB, min(EXACT_DB, 10 * math.log10(max(signal, 1e-300) / noise)))


def noise_ratio_error_db(first: Sequence[float], second: Sequence[float]) -> float:
    """Standard error in dB of ``10·log10(Σ first / Σ second)`` over paired samples, by the delta method.

    Infinite with fewer than two samples, or where one side has no noise at all.
    """
    if len(first) != len(second) or len(first) < 2:
        return math.inf
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not (a.sum() > 0 and b.sum() > 0):
        return math.inf
    spread = float(np.std(a / a.mean() - b / b.mean(), ddof=1))
    return 10 / math.log(10) * spread / math.sqrt(len(a))


def level_report(
    level: LevelName,
    label: str,
    samples: int,
    accumulators: Mapping[str, Accumulator],
    failures: Sequence[str] = (),
    **more: Any,
) -> LevelReport:
    """The report of accumulated outputs; ``more`` are further fields of ``LevelReport``."""
    total = summarise(accumulators)
    fields: dict[str, Any] = {
        "sqnr_db": total.sqnr_db,
        "cosine": total.cosine,
        "max_abs": total.max_abs,
        "rel": total.rel,
        "top1_agreement": total.top1_agreement,
    }
    return LevelReport(
        level=level,
        label=label,
        samples=samples,
        sample_noise=tuple(map(math.fsum, zip(*(a.sample_noise for a in accumulators.values()), strict=True))),
        outputs={name: accumulator.result() for name, accumulator in accumulators.items()},
        failures=tuple(failures),
        **(fields | more),
    )


def _histogram(integers: Array) -> Array:
    """Counts of int8 values, −128 first."""
    return np.roll(np.bincount(integers.view(np.uint8), minlength=256), 128).astype(np.float64)


LARGEST = float(np.finfo(np.float64).max)


def _finite(value: float) -> float:
    """NaN and infinity as the largest number: JSON has neither, and both are as wrong as can be."""
    return value if math.isfinite(value) else LARGEST


def same_shape(value: Array, reference: Array) -> Array:
    """Runtimes disagree on axes of size 1; anything else is left for the comparison to refuse."""
    return value.reshape(reference.shape) if value.size == reference.size else value
