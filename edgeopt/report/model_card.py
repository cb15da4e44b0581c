"""The model card (Mitchell et al., 2019, arXiv:1810.03993), Markdown and JSON. What is unknown says so."""

from __future__ import annotations

import json
from typing import Any

from edgeopt.pipeline.record import Manifest, Report
from edgeopt.pipeline.verdict import GateResult
from edgeopt.report.table import megabytes

UNKNOWN = "Unknown: the recipe does not say."
SCHEMA = "edgeopt.model_card/1"


def card(report: Report, manifest: Manifest, result: GateResult) -> dict[str, Any]:
    """The card's content, heading by heading."""
    return {
        "schema": SCHEMA,
        "model": {
            "name": report.source.name,
            "kind": report.source.kind,
            "digest": report.source.digest,
            "inputs": {spec.name: [spec.dtype, *spec.shape] for spec in report.source.signature.inputs},
            "outputs": {spec.name: [spec.dtype, *spec.shape] for spec in report.source.signature.outputs},
            "classes": list(result.class_names) or None,
        },
        "told": result.told.model_dump(mode="json", exclude_defaults=True),
        "data": {
            name: {"name": d.name, "digest": d.digest, "samples_seen": d.stats.samples, "labelled": d.labelled}
            for name, d in report.data.items()
        },
        "metrics": {
            name: {
                "name": e.metric.name,
                "samples": e.metric.samples,
                "float": e.metric.float_.model_dump(),
                "artifact": e.metric.target.model_dump(),
                "drop": e.metric.drop.model_dump(),
                "slices": [s.model_dump(by_alias=True) for s in e.slices],
            }
            for name, e in result.evidence.items()
            if e.metric is not None
        },
        "quantization": {
            "scheme": report.scheme,
            "kept": [k.what for k in report.quantization.kept if k.kept],
            "artifacts": {
                name: {
                    "path": t.path,
                    "bytes": t.size_bytes,
                    "digest": t.digest,
                    "int8_ops": t.realised.int8_ops if t.realised else None,
                    "float_ops": t.realised.float_ops if t.realised else None,
                }
                for name, t in report.targets.items()
            },
        },
        "devices": {
            name: {
                "device": t.latency_ms.target.device,
                "kind": t.latency_ms.kind,
                "p50_ms": t.latency_ms.target.latency_ms.p50,
            }
            for name, t in report.targets.items()
            if t.latency_ms is not None
        },
        "limits": {
            "gate": result.verdict,
            "not_passed": [
                f"{c.id}{f' ({c.target})' if c.target else ''}: {c.summary}"
                for c in result.checks
                if c.verdict != "pass"
            ],
        },
        "provenance": {
            "edgeopt": report.edgeopt,
            "made": manifest.finished,
            "commit": manifest.git_commit,
            "recipe_digest": manifest.recipe_digest,
            "versions": manifest.versions,
        },
    }  # fmt: skip


def card_json(report: Report, manifest: Manifest, result: GateResult) -> str:
    return json.dumps(card(report, manifest, result), indent=2, ensure_ascii=False) + "\n"


def card_markdown(report: Report, manifest: Manifest, result: GateResult) -> str:
    content = card(report, manifest, result)
    model = content["model"]
    lines = [f"# Model card: {model['name']}", "", "## Model details", ""]
    for side in ("inputs", "outputs"):
        for name, (dtype, *shape) in model[side].items():
            lines.append(f"- {side[:-1]} `{name}`: {dtype} {shape}")
    lines.append(f"- classes: {', '.join(model['classes']) if model['classes'] else 'not named'}")
    told = result.told
    headings = {"Intended use": told.intended_use, "Out of scope": told.out_of_scope, "License": told.license,
                "Contact": told.contact}  # fmt: skip
    for heading, said in headings.items():
        lines += ["", f"## {heading}", "", said or UNKNOWN]
    lines += ["", "## Data", ""]
    for name, data in content["data"].items():
        lines.append(
            f"- {name}: {data['name']} ({'labelled' if data['labelled'] else 'no labels'}), SHA-256 `{data['digest']}`"
        )
    if "evaluation" not in content["data"]:
        lines.append("- evaluation: none was given")
    lines += [f"- training: {told.training_data or 'unknown, the recipe does not say'}", "", "## Metrics", ""]
    for name, metric in content["metrics"].items():
        drop = metric["drop"]
        lines.append(
            f"- {name}: {metric['name']} {metric['float']['value']:.2%} (float) → {metric['artifact']['value']:.2%} "
            f"({drop['level']:.0%} interval {metric['artifact']['low']:.2%}–{metric['artifact']['high']:.2%}) on "
            f"{metric['samples']} samples; drop {drop['value'] * 100:+.2f} points "
            f"({drop['low'] * 100:+.2f} to {drop['high'] * 100:+.2f})"
        )
        for one in metric["slices"][:5]:
            lines.append(
                f"  - {one['group']} {one['name']}: {one['float']:.1%} → {one['target']:.1%} on {one['samples']}"
            )
    if not content["metrics"]:
        lines.append("Unknown: no labelled evaluation data was given.")
    lines += ["", "## Quantization", "", f"- scheme: {report.scheme}"]
    lines += [f"- {text}" for text in content["quantization"]["kept"]]
    for name, one in content["quantization"]["artifacts"].items():
        if one["path"] is not None:
            lines.append(f"- {name}: `{one['path']}`, {megabytes(one['bytes'])}, SHA-256 `{one['digest']}`")
    lines += ["", "## Devices", ""]
    for name, one in content["devices"].items():
        lines.append(f"- {name}: {one['p50_ms']:.3g} ms ({one['kind']}, {one['device']})")
    if not content["devices"]:
        lines.append("Unknown: nothing was measured.")
    lines += ["", "## Limits", ""]
    lines += [f"- {text}" for text in told.limits]
    lines += [f"- {text}" for text in content["limits"]["not_passed"]] or [
        "- the gate found none within what it checks"
    ]
    lines += [
        "- other data than the evaluation set: unknown",
        "- fairness, safety, misuse: unknown, not checked here",
        "",
    ]
    made = content["provenance"]
    lines += [
        "## Provenance",
        "",
        f"edgeopt {made['edgeopt']}, {made['made']}, commit {made['commit'] or 'unknown'}, "
        f"recipe `{made['recipe_digest']}`.",
        "",
    ]
    return "\n".join(lines)
