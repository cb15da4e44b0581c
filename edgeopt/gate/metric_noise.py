"""What the task metric can tell apart: how much noise on the float model's outputs loses how many answers."""

from __future__ import annotations

import numpy as np

from edgeopt.gate.evidence import Evidence

GRID_DB = np.arange(40.0, -1.0, -1.0)
DRAWS = 8


def least_sqnr_db(evidence: Evidence) -> float | None:
    """The SQNR below which white noise on the outputs loses more right answers than the policy allows.

    None where there are no class labels. Real quantization noise is correlated between classes and so loses fewer:
    this is the cautious side.
    """
    if not evidence.is_classifier or evidence.labels is None:
        return None
    scores, labels = evidence.scores(None).astype(np.float64), evidence.labels
    random = np.random.default_rng(evidence.policy.seed)
    power, right = float(np.square(scores).mean()), float((scores.argmax(1) == labels).mean())
    noise = random.standard_normal((DRAWS, *scores.shape))
    least = None
    for decibel in GRID_DB:
        scale = np.sqrt(power / 10 ** (decibel / 10))
        kept = float(np.mean([((scores + scale * one).argmax(1) == labels).mean() for one in noise]))
        if right - kept > evidence.policy.metric.max_drop:
            break
        least = float(decibel)
    return least
