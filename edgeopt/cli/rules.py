"""``edgeopt inspect --for``: a file against the rules of one release of a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.errors import ModelError, UsageError

if TYPE_CHECKING:
    from edgeopt.targets.tensorrt.verdict import FileVerdict

FEW = 6
"""Nodes of one rule that are printed; --json has all."""
MARK = {"ok": "ok", "broken": "BROKEN", "note": "note"}


def judge(file: Path, target: str) -> FileVerdict:
    """Hold an ONNX file, or the one of a bundle, against ``tensorrt@10.3``, ``jetpack-6.2`` and the like.

    Raises:
        UsageError: no such target or release.
        ModelError: no ONNX file.
    """
    from edgeopt.targets.tensorrt.verdict import check_file
    from edgeopt.targets.tensorrt.versions import UnknownVersionError, named

    try:
        version = named(target)
    except UnknownVersionError as error:
        raise UsageError(str(error), where=f"--for {target}") from error
    if file.suffix != ".onnx":
        raise ModelError("is no .onnx file: rules are for those", where=str(file), hint="Give an ONNX file.")
    return check_file(file, version)


def show(verdict: FileVerdict) -> None:
    """The verdict for people: every rule, what breaks it and the repair, and the operators."""
    said = "accepts" if verdict.accepted else "does not accept"
    click.echo(f"  {verdict.target} {said} this file (opset {verdict.opset})")
    for rule in verdict.rules:
        click.echo(f"    {MARK[rule.verdict]:6} {rule.kind}: {rule.id}: {rule.text}")
        if rule.nodes:
            more = f", … ({len(rule.nodes)})" if len(rule.nodes) > FEW else ""
            click.echo(f"           at {', '.join(rule.nodes[:FEW])}{more}")
            click.echo(f"           repair: {rule.repair}. Source: {rule.source}")
    coverage = verdict.coverage
    click.echo(f"  operators ({coverage.source}):")
    for what, counts in (("read", coverage.read), ("unsure", coverage.unsure), ("not read", coverage.missing)):
        if counts:
            click.echo(f"    {what}: {', '.join(f'{count} {operator}' for operator, count in counts.items())}")
