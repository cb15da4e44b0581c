"""``edgeopt parity``: any two models on the same samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeopt.cli.data_options import FORMS, preprocess_from, preprocess_options, source_from

EXAMPLES = """\b
Examples:
  edgeopt parity model.onnx out/tflite/model.tflite --data evaluation.npz
  edgeopt parity recipes/quickstart out/onnx/model.onnx --data recipes/quickstart/evaluation.npz --min-sqnr-db 30
  edgeopt parity a.tflite b.tflite --data images/ --mean 0.5 --std 0.5 --json

\b
`edgeopt convert` compares at three levels (source, graph, integers, artifact) and says where a loss comes from.
"""
LIMIT_S = 3600


@click.command("parity", epilog=EXAMPLES)
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="DATA", help=f"Real samples: {FORMS}.")
@click.option("--limit", type=click.IntRange(min=1), default=64, show_default=True, help="At most so many samples.")
@preprocess_options
@click.option("--min-sqnr-db", type=float, help="Fail (exit 1) below it.")
@click.option("--min-top1-agreement", type=float, help="Fail (exit 1) below it, 0–1.")
@click.option("--tolerance", type=float, help="Fail (exit 1) where an output's relative error is above it.")
@click.option("--trust", is_flag=True, help="Load .pt2 archives that hold pickled code. It can do anything you can.")
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
def command(
    *, reference: Path, candidate: Path, data: str, limit: int, trust: bool, json_wanted: bool, **options: Any
) -> int:
    """Compare CANDIDATE with REFERENCE: each an .onnx, a .tflite, an .mlpackage, a .pt2, or a recipe, whose source
    model is meant.

    An .mlpackage runs by the semantics of its format (MIL reference), which says nothing of a device's arithmetic.

    Outputs are compared as real numbers in the reference's layout.
    """
    from edgeopt.cli.isolated import in_worker
    from edgeopt.pipeline.comparison import ComparisonJob
    from edgeopt.pipeline.jobs import Inputs
    from edgeopt.recipe.load import values_from

    asked = values_from(
        {
            "data": {"evaluation": source_from(data)},
            "preprocess": preprocess_from(options) or None,
            "parity": {name: options[name] for name in ("min_sqnr_db", "min_top1_agreement", "tolerance")},
        },
        {"data.evaluation": "--data", "preprocess": "--mean, --std, …", "parity": "--min-…, --tolerance"},
    )
    inputs = Inputs(None, None, asked.data.evaluation, asked.preprocess, Path())
    job = ComparisonJob(reference, candidate, inputs, asked.parity, limit, trust)
    found = in_worker("parity", "edgeopt.pipeline.comparison:compare", job, limit_s=LIMIT_S)
    report = found.report
    if json_wanted:
        document = {
            "schema": "edgeopt.parity/1",
            "reference": str(reference),
            "candidate": str(candidate),
            **report.model_dump(mode="json", exclude={"level"}),
            "notes": list(found.notes),
        }
        click.echo(json.dumps(document, indent=2))
    else:
        _print(report)
        for note in found.notes:
            click.echo(f"note: {note}")
    return 1 if report.failures else 0


def _print(report: Any) -> None:
    from edgeopt.report.table import decibels

    for name, output in {"all outputs": report, **report.outputs}.items():
        if name == "all outputs" and len(report.outputs) == 1:
            continue
        agreement = "" if output.top1_agreement is None else f", top-1 agreement {output.top1_agreement:.2%}"
        click.echo(
            f"{name}: {decibels(output.sqnr_db)}, relative error {output.rel:.2e}, cosine {output.cosine:.6f}, "
            f"largest difference {output.max_abs:.3g}{agreement}"
        )
    click.echo(report.label)
    for failure in report.failures:
        click.echo(f"failed: {failure}")
