"""GitHub Actions: annotations within its limits, and the step summary."""

from __future__ import annotations

import os
from pathlib import Path

from edgeopt.pipeline.verdict import GateResult

MOST = 10
"""Errors, and as many warnings, that GitHub shows of one step; what comes after is dropped without a word."""
MOST_BYTES = 4096
"""Of one message: the log cuts longer ones."""
SUMMARY_BYTES = 1 << 20
"""Of one step's summary: a larger one is refused as a whole."""


def annotation_lines(result: GateResult) -> list[str]:
    """Workflow commands, one per finding: errors for what failed, warnings for what could not be told."""
    lines = []
    for verdict, command in (("fail", "error"), ("inconclusive", "warning")):
        found = [check for check in result.checks if check.verdict == verdict]
        for check in found[: MOST if len(found) <= MOST else MOST - 1]:
            title = f"edgeopt gate: {check.id}" + (f" ({check.target})" if check.target else "")
            lines.append(f"::{command} title={_property(title)}::{_message(f'{check.summary}. {check.remedy}')}")
        if len(found) > MOST:
            lines.append(f"::{command} title=edgeopt gate::{len(found) - MOST + 1} more; see the summary")
    return lines


def write_summary(run: Path) -> None:
    """Append report.md to the step's summary, where GitHub asks for one."""
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if not file:
        return
    text = (run / "report.md").read_bytes()
    if len(text) > SUMMARY_BYTES:
        text = text[: SUMMARY_BYTES - 200].decode("utf-8", "ignore").encode() + b"\n\n(cut; report.md has all)\n"
    with Path(file).open("ab") as summary:
        summary.write(text)


def _message(text: str) -> str:
    data = text.strip().encode()
    cut = data[:MOST_BYTES].decode("utf-8", "ignore") + ("…" if len(data) > MOST_BYTES else "")
    return cut.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
