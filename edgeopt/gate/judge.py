"""Runs all checks on one run and says the verdict. In a worker: a broken artifact can crash its runtime."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import edgeopt
from edgeopt import events
from edgeopt.errors import RecipeError
from edgeopt.gate import baseline as baselines
from edgeopt.gate import regression
from edgeopt.gate.check import Check, Said
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.policy import Policy
from edgeopt.gate.registry import CHECKS
from edgeopt.gate.run_folder import read_run
from edgeopt.pipeline.verdict import CheckResult, GateResult, TargetEvidence, Verdict
from edgeopt.recipe.load import did_you_mean


@dataclass(frozen=True)
class GateJob:
    """What is judged, and against what.

    Args:
        out: the run's folder.
        policy: what is asked.
        baseline: an existing baseline file, or None.
        write_baseline: also make the text of a new one.
        recipe: where the recipe is now, if not where it was.
        keep_failures: also make the text of the grown regression set.
        localize: name layers also where nothing failed.
    """

    out: Path
    policy: Policy
    baseline: Path | None = None
    write_baseline: bool = False
    recipe: Path | None = None
    keep_failures: bool = False
    localize: bool = False


@dataclass(frozen=True)
class Judged:
    """The result, and the texts of files that were asked for."""

    result: GateResult
    baseline: str | None = None
    regression: str | None = None


def judge(job: GateJob) -> Judged:
    """Run every check.

    Raises:
        UsageError: no run, a bad policy, or data that is not there.
    """
    start = time.monotonic()
    known = [check.id for check in CHECKS]
    for name in job.policy.skip:
        if name not in known:
            raise RecipeError(f"no check '{name}' to skip", where="policy: skip", hint=did_you_mean(name, known))
    run = read_run(job.out, job.recipe)
    kept = baselines.read(job.baseline) if job.baseline is not None else None
    with TemporaryDirectory() as scratch:
        evidence = Evidence(run, job.policy, Path(scratch), baseline=kept, localize=job.localize)
        results, measured, pictures = _run_checks(evidence)
        verdict = _verdict(results, job.policy)
        named = job.policy.skip and f"; not checked: {', '.join(job.policy.skip)}"
        result = GateResult(
            edgeopt=edgeopt.__version__,
            verdict=verdict,
            exit_code=1 if verdict == "fail" else 0,
            headline=_headline(results, verdict) + (named or ""),
            checks=tuple(results),
            evidence=measured,
            class_names=evidence.class_names,
            pictures=pictures,
            policy=job.policy.model_dump(mode="json"),
            told=run.recipe.model_card,
            seconds=round(time.monotonic() - start, 2),
        )
        return Judged(
            result,
            baselines.as_text(evidence) if job.write_baseline else None,
            _grown(evidence) if job.keep_failures else None,
        )


def _run_checks(evidence: Evidence) -> tuple[list[CheckResult], dict[str, TargetEvidence], Any]:
    results: list[CheckResult] = []
    measured: dict[str, dict[str, Any]] = {name: {} for name in evidence.run.artifacts}
    pictures: tuple[Any, ...] = ()
    for name, record in evidence.run.report.targets.items():
        if name not in evidence.run.artifacts:
            why = f"not built: {record.why or record.status}"
            reason = "what was asked for must be there"
            results.append(
                CheckResult(
                    id="built",
                    target=name,
                    verdict="fail",
                    summary=why,
                    reason=reason,
                    remedy="See the error of `edgeopt convert`.",
                )
            )
    dead: set[str] = set()
    for check in CHECKS:
        if check.id in evidence.policy.skip:
            continue
        targets: list[str | None] = [*evidence.run.artifacts] if check.per_target else [None]
        for target in targets:
            if target in dead and check.id not in ("parity-lowering", "precision", "size", "latency"):
                continue  # it does not run: nothing that needs its outputs can be said
            events.emit(events.Event("step", f"gate: {check.id}"))
            said = _call(check, evidence, target)
            events.emit(events.Event("done", f"gate: {check.id}"))
            if said is None:
                continue
            results.append(check.result(said, target))
            more = dict(said.evidence)
            pictures = more.pop("pictures", pictures)
            for name in [target] if target is not None else list(measured):
                measured[name].update(more)
            if target is not None and not said.comparable:
                dead.add(target)
    return results, {name: TargetEvidence(**values) for name, values in measured.items()}, pictures


def _call(check: Check, evidence: Evidence, target: str | None) -> Said | None:
    run: Any = check.run
    found: Said | None = run(evidence, target)
    return found


def _verdict(results: list[CheckResult], policy: Policy) -> Verdict:
    said = {result.verdict for result in results}
    if "fail" in said or ("inconclusive" in said and policy.inconclusive == "fail"):
        return "fail"
    return "inconclusive" if "inconclusive" in said else "pass"


def _headline(results: list[CheckResult], verdict: Verdict) -> str:
    order = {check.id: check.rank for check in CHECKS}
    as_the_table_says = {r.target for r in results if r.id == "parity-lowering" and r.verdict == "pass"}

    def rank(r: CheckResult) -> tuple[int, bool]:
        # A table that is spoilt saturates the reference where the file does not: end to end that looks like a wrong
        # file, so a layer that is named in the table goes first. And where the file is what the table says, dead
        # outputs are a symptom of the table or of what it was calibrated on.
        of_the_table = (r.id == "parity-lowering" and r.layer is None) or (
            r.id == "outputs-alive" and r.target in as_the_table_says
        )
        place = order["parity-quantization"] if of_the_table else order.get(r.id, -1)
        return place, of_the_table or r.layer is None

    for kind in ("fail", "inconclusive"):
        found = sorted((r for r in results if r.verdict == kind), key=rank)
        if found:
            first = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            return f"{first.target + ': ' if first.target else ''}{first.id}: {first.summary}{more}"
    return f"{len(results)} checks passed"


def _grown(evidence: Evidence) -> str:
    """The regression set with every sample that float answers right and an artifact does not."""
    file = evidence.policy.regression.file
    kept = set(regression.read(file)) if file is not None and file.exists() else set()
    if evidence.is_classifier and evidence.labels is not None:
        right = evidence.answers(None) == evidence.labels
        for name in evidence.run.artifacts:
            for index in (right & (evidence.answers(name) != evidence.labels)).nonzero()[0]:
                kept.add(regression.Kept(id=evidence.sample_ids[index], expected=int(evidence.labels[index])))
    return regression.as_text(kept)
