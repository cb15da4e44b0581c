"""SARIF 2.1.0 (OASIS), as GitHub's code scanning reads it: a rule per check, a result per finding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeopt import digest
from edgeopt.pipeline.record import Report
from edgeopt.pipeline.verdict import CheckResult, GateResult

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVEL = {"fail": "error", "inconclusive": "warning", "pass": "none"}
KIND = {"fail": "fail", "inconclusive": "open", "pass": "pass"}


def as_sarif(result: GateResult, run: Path) -> str:
    """The text of the file. Locations are the artifacts, relative to the run's folder, and the layer's name."""
    report = Report.model_validate_json((run / "report.json").read_text(encoding="utf-8"))
    rules = {check.id: check for check in result.checks}
    order = list(rules)
    document: dict[str, Any] = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "edgeopt gate",
                        "version": result.edgeopt,
                        "rules": [_rule(check) for check in rules.values()],
                    }
                },
                "results": [_result(check, order.index(check.id), report) for check in result.checks],
                "columnKind": "utf16CodeUnits",
            }
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _rule(check: CheckResult) -> dict[str, Any]:
    return {
        "id": check.id,
        "name": "".join(part.capitalize() for part in check.id.split("-")),
        "shortDescription": {"text": check.id.replace("-", " ")},
        "fullDescription": {"text": check.reason},
        "help": {"text": check.remedy or check.reason},
    }


def _result(check: CheckResult, index: int, report: Report) -> dict[str, Any]:
    target = report.targets.get(check.target or "")
    path = target.path if target is not None and target.path is not None else "report.json"
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": path}, "region": {"startLine": 1}}}
    if check.layer is not None:
        location["logicalLocations"] = [{"name": check.layer, "kind": "member"}]
    return {
        "ruleId": check.id,
        "ruleIndex": index,
        "level": LEVEL[check.verdict],
        "kind": KIND[check.verdict] if check.verdict != "inconclusive" else "fail",
        "message": {"text": f"{check.summary}. {check.remedy}".strip()},
        "locations": [location],
        "partialFingerprints": {"check/v1": digest.of_json([check.id, check.target, check.layer])},
        "properties": {"verdict": check.verdict, "figures": check.figures},
    }
