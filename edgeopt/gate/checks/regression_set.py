"""Samples that must not flip."""

from __future__ import annotations

from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.regression import read

ID = "regression-set"
REASON = "what was once repaired, or must never go wrong, is held sample by sample"


def run(evidence: Evidence, target: str) -> Said | None:
    policy = evidence.policy.regression
    if policy.file is None or not policy.file.exists():
        return None
    kept = read(policy.file)
    places = {identity: index for index, identity in enumerate(evidence.sample_ids)}
    answers = evidence.answers(target)
    known = [one for one in kept if one.id in places]
    flipped = [one for one in known if int(answers[places[one.id]]) != one.expected]
    missing = len(kept) - len(known)
    figures: Figures = {"samples": len(known), "flipped": len(flipped), "missing": missing}
    if len(flipped) > policy.max_flips:
        first = flipped[0]
        answer = evidence.class_name(int(answers[places[first.id]]))
        return Said(
            "fail",
            f"{len(flipped)} of {len(known)} samples of the regression set flipped: sample {places[first.id]} "
            f"({first.id[:12]}) is '{evidence.class_name(first.expected)}', the artifact says '{answer}'",
            remedy=f"Repair it, or take the samples out of {policy.file.name} if they may be wrong.",
            details=tuple(f"{one.id}: expected {one.expected}" for one in flipped[:20]),
            figures=figures,
        )
    if missing:
        return Said(
            "inconclusive",
            f"{missing} of {len(kept)} samples of the regression set are not in the evaluation data",
            remedy="Put them back into the evaluation data, or take them out of the file.",
            figures=figures,
        )
    return Said("pass", f"{len(known)} samples of the regression set answer as they must", figures=figures)
