"""The report on a terminal, or as plain text where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from edgeopt.pipeline.record import Report
from edgeopt.report.table import ABOUT, COLUMNS, conversion, integers, rows
from edgeopt.report.training import summary

PLAIN_WIDTH = 500
"""Columns where stdout is no terminal: a file or a pipe has no width, and a wrapped table cannot be read."""
RIGHT = frozenset({"size"})


def print_report(report: Report, out: Path, file: IO[str] | None = None) -> None:
    """Write the table, what failed, and where everything is, to ``file`` (default: stdout)."""
    console = Console(file=file, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=PLAIN_WIDTH)
    console.print(f"{report.source.name}: L0 {conversion(report)}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in COLUMNS[:-1]:  # paths stand below: they are as long as they like
        table.add_column(column, justify="right" if column in RIGHT else "left", overflow="fold")
    for row in rows(report):
        status = f"[green]{row.cells[1]}[/]" if row.ok else f"[bold red]{row.cells[1]}[/]"
        table.add_row(row.cells[0], status, *row.cells[2:-1])
    console.print(table)
    for text in _below(report, out):
        console.print(text, markup=False, soft_wrap=True)
    console.print(f"{out / 'report.md'} says more. {report.seconds:.1f} s", markup=False, soft_wrap=True)


def _below(report: Report, out: Path) -> list[str]:
    lines = [summary(record) for record in report.training]
    lines += [f"{name}: {out / target.path}" for name, target in report.targets.items() if target.path is not None]
    for name, target in report.targets.items():
        if target.why is not None:
            lines.append(f"{name}: {target.status}: {target.why}")
        for level in target.parity.values():
            if level.located is not None:
                lines.append(f"{name}: {level.located.text}")
        lines += [f"{name}: {text}" for text in integers(target)]
    seconds = [f"{name} {target.seconds:.1f}" for name, target in report.targets.items() if target.seconds is not None]
    if seconds:
        lines.append(f"seconds for each, side by side: {', '.join(seconds)}")
    lines += [f"{column}: {text}" for column, text in ABOUT.items()]
    return lines
