"""Latency budgets, and int8 that is slower than float."""

from __future__ import annotations

from edgeopt.gate.bench_results import Measured, matching
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence

ID = "latency"
REASON = "speed is mostly why a model is quantized; a file that misses its budget, or got slower, has no point"
HERE = "here"


def run(evidence: Evidence, target: str) -> Said:
    policy, record = evidence.policy.latency, evidence.run.report.targets[target].latency_ms
    known = matching(evidence, target)
    if record is not None:
        times = record.target.latency_ms
        known.append(Measured(HERE, record.kind, times.p50, times.high, None))
    over: list[str] = []
    unknown: list[str] = []
    said: list[str] = []
    figures: Figures = {}
    for device, limit in policy.p50_ms.items():
        usable = [one for one in known if one.device == device]
        measured = [one for one in usable if one.kind == "measured"]
        predicted = [one for one in usable if one.kind == "predicted"] if policy.allow_predicted else []
        if not measured and not predicted:
            unknown.append(
                f"{device}: not measured" + ("" if policy.allow_predicted or not usable else ", only predicted")
            )
            continue
        one = (measured or predicted)[-1]
        value = one.p50_ms if measured else one.high_ms
        figures[f"{device}_ms"] = value
        text = f"{device}: {value:.3g} ms ({one.kind}), at most {limit:g}"
        (over if value > limit else said).append(text)
    slower = record.slower_than_float if record is not None else None
    if slower is not None:
        figures["slower_than_float"] = slower
    if over:
        return Said("fail", "; ".join(over), remedy="Use a smaller model or input, or see what leaves the delegate.",
                    figures=figures)  # fmt: skip
    if slower is not None:
        return Said(
            policy.slower_than_float,
            f"slower than float on this machine: {slower:.2f} times its latency",
            remedy="See what stayed float or outside the delegate; else ship the float file.",
            details=(*said, *unknown),
            figures=figures,
        )
    if unknown:
        return Said("inconclusive", "; ".join(unknown), remedy="Measure it: `edgeopt bench MODEL --json`, and name the "
                    "file in `latency: {results: …}`.", details=tuple(said), figures=figures)  # fmt: skip
    if said:
        return Said("pass", "; ".join(said), figures=figures)
    if record is None:
        return Said("pass", "not measured, and no budget was asked")
    text = f"{record.target.latency_ms.p50:.3g} ms here (median)"
    if record.float_ is not None:
        text += f", float {record.float_.latency_ms.p50:.3g} ms"
    return Said("pass", text, figures=figures)
