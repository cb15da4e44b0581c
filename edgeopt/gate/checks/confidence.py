"""Calibration of confidence: what a probability of 0.9 means before and after."""

from __future__ import annotations

import numpy as np

from edgeopt.gate import statistics
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence
from edgeopt.pipeline.confidence import probabilities, read, threshold_for
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
    chances = {name: probabilities(array) for name, array in scores.items()}
    before, after = (statistics.reliability(chances[name], labels) for name in ("float", "target"))
    (sure_float, right_float), (sure, right) = (statistics.confidences(chances[n], labels) for n in chances)
    increase = statistics.bootstrap(
        lambda chosen: (
            statistics.expected_calibration_error(sure[chosen], right[chosen])
            - statistics.expected_calibration_error(sure_float[chosen], right_float[chosen])
        ),
        len(labels),
        draws=DRAWS,
        level=evidence.policy.confidence_level,
        seed=evidence.policy.seed,
    )
    stored = read(evidence.run.runnable(target))
    temperature = stored.temperature if stored is not None else None
    used = probabilities(scores["target"], temperature or 1.0)
    scaled = statistics.reliability(used, labels).ece if temperature is not None else None
    if stored is not None and stored.threshold is not None and stored.max_error == policy.max_error:
        whose = "the file's"
        chosen: tuple[float, float, float] | None = (stored.threshold, *_above(used, labels, stored.threshold))
    else:
        whose, chosen = "for this policy, a", threshold_for(used, labels, policy.max_error)
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
    if stored is None or temperature is None:
        details.append("no temperature: the calibration data has no labels, or no wrong answer among them to fit it to")
    else:
        details.append(
            f"the file's temperature {temperature:.3f}, fitted on {stored.samples} labelled calibration samples: "
            f"ECE {scaled:.4f} here"
        )
    if chosen:
        details.append(
            f"{whose} threshold {chosen[0]:.3f} accepts {chosen[1]:.1%} of the samples with {chosen[2]:.2%} wrong "
            "answers"
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
    if scaled is not None and scaled > after.ece + policy.max_ece_increase:
        return Said(
            "inconclusive",
            f"{text}; the temperature in the file makes it {scaled:.4f}",
            remedy="Calibrate on samples drawn as those that the model will meet: it was fitted on others.",
            details=tuple(details),
            figures=figures,
            evidence={"confidence": record},
        )
    verdict: Verdict = "inconclusive" if increase.value > policy.max_ece_increase else "pass"
    return Said(verdict, text, remedy="Give more labelled samples." if verdict == "inconclusive" else "",
                details=tuple(details), figures=figures, evidence={"confidence": record})  # fmt: skip


def _above(chances: statistics.Array, labels: statistics.Array, threshold: float) -> tuple[float, float]:
    """Share of samples at or above the threshold, and of wrong answers among them."""
    sure, right = statistics.confidences(chances, labels)
    chosen = sure >= threshold
    return float(chosen.mean()), float((~right[chosen]).mean()) if chosen.any() else 0.0
