"""``report.html``: one file, nothing fetched from elsewhere, no script. Verdict first, then why."""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edgeopt.pipeline.record import Manifest, Report
from edgeopt.pipeline.verdict import GateResult, LayerError, TargetEvidence
from edgeopt.report import plots
from edgeopt.report.latency_plot import distribution_svg
from edgeopt.report.table import decibels, megabytes

TEMPLATE = "report.html.j2"
WORD = {"pass": "Passed", "fail": "Failed", "inconclusive": "Passed, and not all could be told"}
SIGN = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
"""Beside the colour, for those who do not see it."""
ORDER = ("fail", "inconclusive", "pass")
MOST_SLICES = 30
MOST_HISTOGRAMS = 4
WORST_LAYERS = 8


def as_html(report: Report, manifest: Manifest, result: GateResult) -> str:
    """The text of the file."""
    template = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    checks = sorted(result.checks, key=lambda check: ORDER.index(check.verdict))
    counts = ", ".join(
        f"{sum(c.verdict == v for c in checks)} {v}" for v in ORDER if any(c.verdict == v for c in checks)
    )
    layers = next((evidence.layers for evidence in result.evidence.values() if evidence.layers), ())
    histograms = next((evidence.histograms for evidence in result.evidence.values() if evidence.histograms), ())
    return environment.from_string(template).render(
        report=report,
        manifest=manifest,
        result=result,
        word=WORD[result.verdict],
        sign=SIGN,
        checks=checks,
        counts=counts,
        rows=_rows(report, result),
        tradeoffs=_tradeoffs(report, result),
        curve=plots.layer_curve(layers) if len(layers) > 1 else None,
        worst=_worst(layers),
        histograms=[(h.tensor, plots.histogram_plot(h)) for h in histograms[:MOST_HISTOGRAMS]],
        targets=[_target(name, evidence, result) for name, evidence in result.evidence.items()],
        latency=_latency(report),
        latency_text=_latency_text(report),
        provenance=_provenance(report, manifest),
        reproduce=_reproduce(report, failed=bool(result.exit_code)),
    )


def _rows(report: Report, result: GateResult) -> list[dict[str, str]]:
    rows = []
    for name, target in report.targets.items():
        evidence = result.evidence.get(name, TargetEvidence())
        metric, l2 = evidence.metric, target.parity.get("L2")
        lowering = next((c for c in result.checks if c.id == "parity-lowering" and c.target == name), None)
        now = lowering.figures.get("sqnr_db") if lowering is not None else None
        recorded = decibels(l2.sqnr_db) if l2 is not None else ""
        rows.append(
            {
                "name": name,
                "size": "" if target.size_bytes is None else megabytes(target.size_bytes),
                "metric": ""
                if metric is None
                else f"{metric.name} {metric.float_.value:.2%} → {metric.target.value:.2%} ({metric.samples} samples)",
                "drop": ""
                if metric is None
                else f"{_signed(metric.drop.value)} ({_signed(metric.drop.low)} to {_signed(metric.drop.high)}) points",
                "sqnr": f"{now:.1f} dB" if isinstance(now, float) else recorded,
                "latency": "" if target.latency_ms is None else f"{target.latency_ms.target.latency_ms.p50:.3g} ms",
                "path": target.path or f"{target.status}: {target.why}",
            }
        )
    return rows


def _tradeoffs(report: Report, result: GateResult) -> list[tuple[str, Markup]]:
    """Size and latency against the metric, as far as both are known."""
    sizes: dict[str, tuple[float, float, float, float]] = {}
    times: dict[str, tuple[float, float, float, float]] = {}
    for name, evidence in result.evidence.items():
        target, metric = report.targets[name], evidence.metric
        if metric is None:
            continue
        ends = tuple(100 * v for v in (metric.target.value, metric.target.low, metric.target.high))
        floats = tuple(100 * v for v in (metric.float_.value, metric.float_.low, metric.float_.high))
        if target.size_bytes is not None:
            sizes[name] = (target.size_bytes / 1e6, *ends)  # type: ignore[assignment]
        if target.latency_ms is not None:
            times[name] = (target.latency_ms.target.latency_ms.p50, *ends)  # type: ignore[assignment]
            if target.latency_ms.float_ is not None:
                times[f"{name}, float"] = (target.latency_ms.float_.latency_ms.p50, *floats)  # type: ignore[assignment]
    metric_name = next((e.metric.name for e in result.evidence.values() if e.metric is not None), "")
    found = []
    if sizes:
        found.append(
            (f"Size and {metric_name}; whiskers are 95 % intervals", plots.tradeoff(sizes, f"{metric_name}, %", "MB"))
        )
    if times:
        found.append(
            (f"Latency on the machine of the run and {metric_name}", plots.tradeoff(times, f"{metric_name}, %", "ms"))
        )
    return found


def _signed(share: float) -> str:
    return f"{share * 100:+.2f}"


def _worst(layers: tuple[LayerError, ...]) -> list[LayerError]:
    return sorted(layers, key=lambda layer: layer.sqnr_db)[:WORST_LAYERS]


def _target(name: str, evidence: TargetEvidence, result: GateResult) -> dict[str, Any]:
    confidence, matrices = evidence.confidence, []
    if evidence.confusion_float:
        matrices = [("float", evidence.confusion_float), (name, evidence.confusion_target)]
    count = len(evidence.confusion_float)
    names = [result.class_names[i] if i < len(result.class_names) else str(i) for i in range(count)]
    text = ""
    if confidence is not None:
        text = (
            f"Expected calibration error {confidence.float_.ece:.4f} in float (solid), {confidence.target.ece:.4f} in "
            "the artifact (dashed)."
        )
        if confidence.threshold is not None and confidence.coverage is not None and confidence.error is not None:
            text += (
                f" Above a threshold of {confidence.threshold:.3f} it answers {confidence.coverage:.1%} of the "
                f"samples, {confidence.error:.2%} of them wrongly."
            )
        if confidence.temperature is not None:
            text += f" Temperature {confidence.temperature:.3f}."
    return {
        "name": name,
        "slices": evidence.slices[:MOST_SLICES],
        "confusion": matrices,
        "classes": names,
        "reliability": None
        if confidence is None
        else plots.reliability_plot({"float": confidence.float_, name: confidence.target}),
        "confidence": text,
        "robustness": evidence.robustness,
        "naive": evidence.naive,
    }


def _latency(report: Report) -> Markup | None:
    """The distribution of what was measured: each target, and its float file beside it."""
    measured = []
    for name, target in report.targets.items():
        if target.latency_ms is not None:
            for label, one in ((name, target.latency_ms.target), (f"{name}, float", target.latency_ms.float_)):
                if one is not None:
                    measured.append(one.model_copy(update={"model": label}))
    return Markup(distribution_svg(measured)) or None  # noqa: S704  (names are escaped where it is drawn)


def _latency_text(report: Report) -> str:
    known = next((t.latency_ms for t in report.targets.values() if t.latency_ms is not None), None)
    if known is None:
        return ""
    return f"{known.kind} on {known.target.device}, {known.target.threads} thread(s)"


def _provenance(report: Report, manifest: Manifest) -> list[tuple[str, str]]:
    return [
        ("model", f"{report.source.name} ({report.source.kind}), SHA-256 {report.source.digest}"),
        *((f"{name} data", f"{record.name}, SHA-256 {record.digest}") for name, record in report.data.items()),
        ("recipe", f"SHA-256 {manifest.recipe_digest}"),
        *((f"artifact {path}", f"SHA-256 {found}") for path, found in manifest.artifacts.items()),
        ("made", f"{manifest.started} to {manifest.finished}, seed {manifest.seed}"),
        ("machine", manifest.machine),
        ("commit", manifest.git_commit or "not in a repository"),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]


def _reproduce(report: Report, *, failed: bool) -> str:
    lines = [
        f"pip install edgeopt=={report.edgeopt}",
        "edgeopt convert RECIPE --out OUT     # the same recipe, model and data: digests above",
        "edgeopt gate OUT                     # judges the artifacts again",
    ]
    if failed:
        lines.append("edgeopt gate OUT --repro DIR         # the part that differs, where a layer is named")
    return "\n".join(lines)
