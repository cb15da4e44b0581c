"""``edgeopt bench``: latency on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

EXAMPLES = """\b
Examples:
  edgeopt bench out/tflite/model.tflite
  edgeopt bench model.onnx out/onnx/model.onnx --threads 2 --seconds 3 --json
"""


@click.command("bench", epilog=EXAMPLES)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of the runtime.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Measured time per model."
)
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
def command(models: tuple[Path, ...], threads: int, seconds: float, json_wanted: bool) -> int:
    """Measure the latency of .onnx and .tflite files on this machine, one run of each in turn.

    Low and high are the 95 % interval of the median.
    """
    from edgeopt.cli.isolated import in_worker

    results = in_worker("bench", "edgeopt.cli.bench:measured", (models, threads, seconds), limit_s=60 + 20 * seconds)
    if json_wanted:
        document = {"schema": "edgeopt.bench/1", "results": [result.model_dump(mode="json") for result in results]}
        click.echo(json.dumps(document, indent=2))
        return 0
    for result in results:
        ms = result.latency_ms
        click.echo(
            f"{result.model}: {ms.p50:.3g} ms median ({ms.low:.3g}–{ms.high:.3g}), p90 {ms.p90:.3g}, p99 {ms.p99:.3g}; "
            f"{result.kind}, {result.conditions.runtime}, {threads} thread{'s' * (threads > 1)}, "
            f"{result.conditions.runs} runs"
        )
    conditions = results[0].conditions
    click.echo(f"on {conditions.machine}, load {conditions.load:.1f}")
    return 0


def measured(asked: tuple[tuple[Path, ...], int, float]) -> list[object]:
    """In a worker: a foreign file may crash its runtime."""
    from edgeopt.bench.latency import measure

    models, threads, seconds = asked
    found = measure({str(path): path for path in dict.fromkeys(models)}, threads=threads, seconds=seconds)
    return list(found.values())
