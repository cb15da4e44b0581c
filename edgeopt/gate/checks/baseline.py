"""What a pull request may not worsen: figures of the run that the team agreed on."""

from __future__ import annotations

import math

from edgeopt.gate.baseline import Baseline, figures_of
from edgeopt.gate.check import Said
from edgeopt.gate.evidence import Evidence

ID = "baseline"
REASON = "every change may be small, and a hundred of them are not: the agreed run is the measure"


def run(evidence: Evidence, target: str) -> Said | None:
    baseline: Baseline | None = evidence.baseline
    if baseline is None:
        return None
    before = baseline.targets.get(target)
    if before is None:
        return Said(
            "inconclusive",
            "the baseline does not know this target",
            remedy="Write it again with --write-baseline FILE.",
        )
    now, allowed = figures_of(evidence, target), baseline.tolerances
    worse, details = [], []

    def compare(what: str, was: float | None, value: float | None, limit: float, shown: str) -> None:
        if was is None or value is None:
            return
        text = f"{what}: {was:{shown}} in the baseline, {value:{shown}} now"
        details.append(text)
        if limit > 0:
            worse.append(f"{text}, {limit:.3g} more than is allowed")

    compare("SQNR in dB", before.sqnr_db, now.sqnr_db, _below(before.sqnr_db, now.sqnr_db, allowed.sqnr_db), ".1f")
    slack = allowed.metric
    if before.metric is not None and before.samples:
        # Two runs of one quality differ by a few samples: a standard error of the share of wrong answers, at least one.
        wrong = max(before.samples * (1 - before.metric), 1.0)
        slack = max(slack, math.sqrt(wrong) / before.samples)
    compare("metric", before.metric, now.metric, _below(before.metric, now.metric, slack), ".4f")
    size = 0.0 if now.size_bytes is None or before.size_bytes is None else (
        now.size_bytes / before.size_bytes - 1 - allowed.size
    )  # fmt: skip
    compare("bytes", before.size_bytes, now.size_bytes, size, ".0f")
    compare("float operators", before.float_ops, now.float_ops, _below(now.float_ops, before.float_ops, 0), ".0f")
    compare("leftovers", before.leftovers, now.leftovers, _below(now.leftovers, before.leftovers, 0), ".0f")
    if worse:
        return Said(
            "fail",
            f"worse than the baseline: {worse[0]}",
            remedy="Repair it, or agree on a new baseline (--write-baseline FILE) and commit it.",
            details=tuple(worse[1:] + details),
        )
    return Said("pass", f"{len(details)} figures no worse than the baseline", details=tuple(details))


def _below(was: float | None, now: float | None, slack: float) -> float:
    """How far ``now`` lies below ``was`` beyond the slack; 0 where it does not."""
    return 0.0 if was is None or now is None else max(0.0, was - now - slack)
