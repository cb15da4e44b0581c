"""``report.md`` of a gated run: fits GitHub's step summary, verdict first."""

from __future__ import annotations

from edgeopt.pipeline.record import Report
from edgeopt.pipeline.verdict import GateResult
from edgeopt.report import files

SIGN = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️"}
WORD = {"pass": "passed", "fail": "failed", "inconclusive": "passed, and not all could be told"}
ORDER = ("fail", "inconclusive", "pass")


def as_markdown(report: Report, result: GateResult) -> str:
    """Verdict, checks, what to do; then the conversion's own report."""
    lines = [
        f"# {SIGN[result.verdict]} {report.source.name}: the gate {WORD[result.verdict]}",
        "",
        _cell(result.headline),
        "",
    ]
    lines += ["| | check | target | what was found |", "|---|---|---|---|"]
    checks = sorted(result.checks, key=lambda check: ORDER.index(check.verdict))
    for check in checks:
        cells = (SIGN[check.verdict], f"`{check.id}`", check.target or "all", check.summary)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines.append("")
    for check in checks:
        if check.verdict == "pass":
            continue
        lines += [f"### {SIGN[check.verdict]} {check.id}" + (f" · {check.target}" if check.target else ""), ""]
        lines += [f"{_cell(check.summary)}", "", f"- Why: {check.reason}.", f"- What to do: {check.remedy}"]
        lines += [f"- {_cell(text)}" for text in check.details[:12]]
        lines.append("")
    passed = [check for check in checks if check.verdict == "pass" and check.details]
    if passed:
        lines += ["<details><summary>Derivations and figures of what passed</summary>", ""]
        for check in passed:
            lines += [
                f"- **{check.id}**"
                + (f" ({check.target})" if check.target else "")
                + ": "
                + _cell("; ".join(check.details[:6]))
            ]
        lines += ["", "</details>", ""]
    return "\n".join(lines) + "\n" + files.as_markdown(report).replace("\n## ", "\n### ").replace("# ", "## ", 1)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
