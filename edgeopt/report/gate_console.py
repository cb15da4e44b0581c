"""The gate's result on a terminal: verdict first, then what is not good, then what is."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from edgeopt.pipeline.verdict import GateResult
from edgeopt.report.console import PLAIN_WIDTH

COLOR = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
ORDER = ("fail", "inconclusive", "pass")


def print_gate(result: GateResult, run: Path, file: IO[str] | None = None) -> None:
    """Write the table and the remedies to ``file`` (default: stdout)."""
    console = Console(file=file, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=PLAIN_WIDTH)
    word = {"pass": "PASS", "fail": "FAIL", "inconclusive": "PASS, not all could be told"}[result.verdict]
    console.print(f"[{COLOR[result.verdict]}]{word}[/]", end=" ")
    console.print(result.headline, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("verdict", "check", "target", "what was found"):
        table.add_column(column, overflow="fold")
    checks = sorted(result.checks, key=lambda check: ORDER.index(check.verdict))
    for check in checks:
        summary = check.summary.replace("[", "\\[")
        table.add_row(f"[{COLOR[check.verdict]}]{check.verdict}[/]", check.id, check.target or "all", summary)
    console.print(table)
    for check in checks:
        if check.verdict != "pass":
            who = f"{check.id} ({check.target})" if check.target else check.id
            console.print(f"{who}: {check.reason}. {check.remedy}", markup=False, soft_wrap=True)
    console.print(f"{run / 'report.html'} says more. {result.seconds:.1f} s", markup=False, soft_wrap=True)
