"""Calibration of confidence: what a probability of 0.9 means before and after."""

from __future__ import annotations

import numpy as np

from edgeopt.gate import statistics
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence, called
from edgeopt.pipeline.verdict import ConfidenceRecord, Verdict

ID = "confidence"
REASON = "thresholds are tuned on the float model; if confidence shifts, they refuse or accept other samples"
DRAWS = 400


def run(evidence: Evidence, target: str) -> Said | None:
    if not evidence.is_classifier or evidence.labels is None:
        return None
    policy, labels = evidence.policy.confidence, evidence.labels
    scores = {name: np.asarray(evidence.scores(which)) for name, which in (("float", None), ("target", target))}
    if not all(np.isfinite(array).all() for array in scores.values()) or labels.max() >= scores["float"].shape[1]:
        return None  # outputs-alive and preprocessing say what is wrong
    chances = {name: statistics.probabilities(array) for name, array in scores.items()}
    before, after = (statistics.reliability(chances[name], labels) for name in ("float", "target"))
    gaps = {name: _gaps(array, labels) for name, array in chances.items()}
    increase = statistics.bootstrap(
        lambda chosen: _ece(gaps["target"][chosen]) - _ece(gaps["float"][chosen]),
        len(labels),
        draws=DRAWS,
        level=evidence.policy.confidence_level,
        seed=evidence.policy.seed,
    )
    temperature, scaled = _temperature(evidence, target, scores["target"], labels)
    used = chances["target"] if temperature is None else statistics.probabilities(scores["target"], temperature)
    chosen = statistics.threshold_for(used, labels, policy.max_error)
    record = ConfidenceRecord(
        float_=before,
        target=after,
        temperature=temperature,
        ece_scaled=scaled,
        threshold=chosen[0] if chosen else None,
        coverage=chosen[1] if chosen else None,
        error=chosen[2] if chosen else None,
    )
    details = [
        f"increase {increase.value:+.4f}, {increase.level:.0%} interval {increase.low:+.4f} to {increase.high:+.4f}"
    ]
    if temperature is None:
        details.append("no temperature: the calibration data has no labels, or no wrong answer among them to fit it to")
    else:
        details.append(f"temperature {temperature:.3f}, fitted on labelled calibration samples: ECE {scaled:.4f}")
    if chosen:
        details.append(
            f"threshold {chosen[0]:.3f} accepts {chosen[1]:.1%} of the samples with {chosen[2]:.2%} wrong answers"
        )
    figures: Figures = {
        "ece_float": before.ece, "ece_target": after.ece, "temperature": temperature,
        "threshold": record.threshold, "coverage": record.coverage, "error": record.error,
    }  # fmt: skip
    text = f"ECE {before.ece:.4f} → {after.ece:.4f}"
    if increase.value > policy.max_ece_increase and increase.low > 0:
        return Said(
            "fail",
            f"confidence shifted: {text}, at most {policy.max_ece_increase:g} more",
            remedy="Use the temperature, tune thresholds again on the artifact, or look for a wrong output layer.",
            details=tuple(details),
            figures=figures,
            evidence={"confidence": record},
        )
    verdict: Verdict = "inconclusive" if increase.value > policy.max_ece_increase else "pass"
    return Said(verdict, text, remedy="Give more labelled samples." if verdict == "inconclusive" else "",
                details=tuple(details), figures=figures, evidence={"confidence": record})  # fmt: skip


def _gaps(chances: statistics.Array, labels: statistics.Array) -> statistics.Array:
    """[n, bins]: of every sample, in the bin of its confidence, that less whether it is right."""
    confidence, right = chances.max(1), chances.argmax(1) == labels
    at = np.minimum((confidence * statistics.BINS).astype(int), statistics.BINS - 1)
    made = np.zeros((len(labels), statistics.BINS))
    made[np.arange(len(labels)), at] = confidence - right
    return made


def _ece(gaps: statistics.Array) -> float:
    """Expected calibration error: the bins' sums without their signs, over all samples."""
    return float(np.abs(gaps.sum(0)).sum() / len(gaps))


def _temperature(
    evidence: Evidence, target: str, scores: statistics.Array, labels: statistics.Array
) -> tuple[float | None, float | None]:
    """Fitted on calibration samples, so that the evaluation set stays unseen; and the ECE that it leaves there."""
    calibration = evidence.calibration
    if calibration is None or calibration.labels is None or calibration.labels.max() >= scores.shape[1]:
        return None, None
    with evidence.runner(target) as runner:
        seen = np.stack(list(called(runner, calibration, evidence.first_output)))
    if (seen.argmax(1) == calibration.labels).all():
        return None, None  # without a wrong answer, ever more confidence is ever better
    temperature = statistics.fit_temperature(seen, calibration.labels)
    return temperature, statistics.reliability(statistics.probabilities(scores, temperature), labels).ece
