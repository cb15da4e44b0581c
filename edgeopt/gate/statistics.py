"""Statistics of paired results: the same samples through two models. numpy only; nothing here knows of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.pipeline.verdict import Interval, Reliability, ReliabilityBin

Array = npt.NDArray[Any]
DRAWS = 4000
"""Of a bootstrap: the ends of a 95 % interval are then known to about a fiftieth of its width."""
BINS = 15
"""Of a reliability diagram, as in Guo et al., 2017."""


def mcnemar(lost: int, won: int) -> float:
    """Exact one-sided p-value that a model is no worse than another, of which it loses ``lost`` answers and wins
    ``won`` (McNemar, 1947): the chance of at least ``lost`` heads in ``lost + won`` fair tosses."""
    discordant = lost + won
    if discordant == 0:
        return 1.0
    terms = (
        math.lgamma(discordant + 1) - math.lgamma(k + 1) - math.lgamma(discordant - k + 1) - discordant * math.log(2)
        for k in range(lost, discordant + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many were looked at (Holm, 1979): each keeps the family's error below its level."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def share_interval(right: Array, *, level: float) -> Interval:
    """Share of True in a boolean array [n], with Wilson's interval (1927)."""
    count, share = len(right), float(right.mean())
    z = normal_quantile((1 + level) / 2)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half), level=level)


def paired_drop(float_: Array, target: Array, *, level: float, seed: int) -> Interval:
    """Mean of ``float_ − target`` over samples, with its paired bootstrap interval (percentiles).

    Args:
        float_, target: a score per sample, [n]; booleans for right answers.
        level: of the interval.
        seed: of the bootstrap.

    Where scores are right or wrong, samples on which nothing was lost still leave room for losses that were not
    seen: one lost and one won answer are added to the ends (Bonett and Price, 2012), or an interval of no
    differences would have no width.
    """
    difference = np.asarray(float_, np.float64) - np.asarray(target, np.float64)
    count, value = len(difference), float(difference.mean())
    random = np.random.default_rng(seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    if set(np.unique(difference)) <= {-1.0, 0.0, 1.0}:
        lost, won = int((difference > 0).sum()) + 1, int((difference < 0).sum()) + 1
        total = count + 2
        drawn = random.multinomial(total, [lost / total, won / total, 1 - (lost + won) / total], DRAWS)
        means = (drawn[:, 0] - drawn[:, 1]) / total
    else:
        means = np.array([difference[random.integers(0, count, count)].mean() for _ in range(DRAWS)])
    low, high = (float(end) for end in np.quantile(means, tails))
    return Interval(value=value, low=min(low, value), high=max(high, value), level=level)


def bootstrap(score: Callable[[Array], float], count: int, *, draws: int, level: float, seed: int) -> Interval:
    """Any score of a set of samples, called with their numbers [n]; percentile bootstrap."""
    random = np.random.default_rng(seed)
    drawn = [score(np.sort(random.integers(0, count, count))) for _ in range(draws)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=score(np.arange(count)), low=float(low), high=float(high), level=level)


def samples_to_settle(drop: Interval, limit: float, count: int) -> int | None:
    """How many samples would tell whether a drop is above ``limit``, if it stays what it is: an interval shrinks with
    the square root of their number. None where the estimate lies on the limit itself."""
    distance = abs(limit - drop.value)
    half = max(drop.high - drop.value, drop.value - drop.low)
    if distance <= 1e-9 or half <= 0:
        return None
    return max(count, math.ceil(count * (half / distance) ** 2))


def normal_quantile(share: float) -> float:
    """Of the standard normal distribution; ``share`` in (0, 1)."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)


def reliability(chances: Array, labels: Array) -> Reliability:
    """Expected calibration error of the most likely class, and the diagram's bins. ``chances`` [n, classes]."""
    counts, confidence, right = _binned(*confidences(chances, labels))
    bins = tuple(
        ReliabilityBin(samples=int(count), confidence=float(seen / count), accuracy=float(hits / count))
        for count, seen, hits in zip(counts, confidence, right, strict=True)
        if count
    )
    return Reliability(ece=float(np.abs(confidence - right).sum() / len(labels)), bins=bins)


def confidences(chances: Array, labels: Array) -> tuple[Array, Array]:
    """Confidence of the most likely class and whether it is right, both [n]. ``chances`` [n, classes]."""
    return chances.max(1), chances.argmax(1) == labels


def expected_calibration_error(confidence: Array, right: Array) -> float:
    """As in ``reliability``, which also says where it comes from."""
    _, seen, hits = _binned(confidence, right)
    return float(np.abs(seen - hits).sum() / len(right))


def _binned(confidence: Array, right: Array) -> tuple[Array, Array, Array]:
    """Per equal bin of confidence: samples, sum of confidence, right answers."""
    at = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts, seen, hits = (np.bincount(at, weights, BINS) for weights in (None, confidence, right))
    return counts, seen, hits


def macro_f1(answers: Array, labels: Array) -> float:
    """Mean over the classes that occur of the harmonic mean of precision and recall."""
    scores = []
    for name in np.unique(labels):
        hit = int(((answers == name) & (labels == name)).sum())
        made, there = int((answers == name).sum()), int((labels == name).sum())
        scores.append(2 * hit / max(made + there, 1))
    return float(np.mean(scores))


def confusion(answers: Array, labels: Array, classes: int) -> Array:
    """Counts [true, answer]."""
    counts: Array = np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)
    return counts
