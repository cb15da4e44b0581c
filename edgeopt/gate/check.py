"""What a check is: one file in ``checks/`` with ``ID``, ``REASON`` and ``run``; one line in ``registry.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgeopt.gate.evidence import Evidence
from edgeopt.pipeline.verdict import CheckResult, Verdict

Figures = dict[str, float | int | str | None]
"""The numbers that a verdict rests on, by name."""


@dataclass(frozen=True)
class Said:
    """What a check found.

    Args:
        verdict, summary, remedy, details, layer, figures: as in ``CheckResult``.
        evidence: fields of ``TargetEvidence`` that it measured.
        comparable: whether the artifact's outputs can be set beside float's at all; if not, later checks say nothing.
    """

    verdict: Verdict
    summary: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    layer: str | None = None
    figures: Figures = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    comparable: bool = True


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        id: in policies, reports and SARIF.
        reason: why it is made.
        run: ``(evidence, target)`` → what it found, or None where it does not apply. ``target`` is None for a check
            of the run as a whole.
        per_target: called once for every artifact, or once.
        rank: of causes: of several failures the one with the lowest rank is the headline, as it explains the others.
    """

    id: str
    reason: str
    run: Callable[[Evidence, str], Said | None] | Callable[[Evidence, None], Said | None]
    per_target: bool
    rank: int

    def result(self, said: Said, target: str | None) -> CheckResult:
        return CheckResult(
            id=self.id,
            target=target,
            verdict=said.verdict,
            summary=said.summary,
            reason=self.reason,
            remedy=said.remedy,
            details=said.details,
            layer=said.layer,
            figures=said.figures,
        )
