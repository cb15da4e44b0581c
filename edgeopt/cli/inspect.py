"""``edgeopt inspect``: what stands in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

EXAMPLES = """\b
Examples:
  edgeopt inspect out/tflite/model.tflite
  edgeopt inspect out/onnx/model.onnx --json
  edgeopt inspect model.onnx --for tensorrt@10.3
  edgeopt inspect model.onnx --for jetpack-6.2+dla
"""
FEW = 4
"""Scales of one tensor that are printed; --json has all."""


@click.command("inspect", epilog=EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "target",
    metavar="TARGET@VERSION",
    help="Hold an ONNX file against the rules of tensorrt@VERSION or jetpack-VERSION; +dla for the DLA.",
)
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
def command(file: Path, target: str | None, json_wanted: bool) -> int:
    """Look into an ONNX or TFLite file: operators by precision, inputs and outputs, and every scale.

    With --for, ends with 1 if a rule of acceptance or speed is broken.
    """
    from edgeopt.cli import rules

    file = file / "model.onnx" if (file / "model.onnx").is_file() else file  # a bundle
    found = describe(file)
    verdict = rules.judge(file, target) if target is not None else None
    code = 1 if verdict is not None and verdict.broken else 0
    if json_wanted:
        if verdict is not None:
            found["rules"] = verdict.model_dump(mode="json")
        click.echo(json.dumps(found, indent=2))
        return code
    if verdict is not None:
        click.echo(f"{file}: {found['format']}, {found['size_bytes']} bytes")
        rules.show(verdict)
        return code
    click.echo(f"{file}: {found['format']}, {found['size_bytes']} bytes")
    for side in ("inputs", "outputs"):
        for spec in found[side]:
            click.echo(f"  {side[:-1]} {spec['name']}: {spec['dtype']} {spec['shape']}")
    for precision, ops in found["ops"].items():
        click.echo(f"  {precision}: {', '.join(f'{count} {op}' for op, count in ops.items())}")
    if found["preprocess"]:
        click.echo(f"  preprocess: {json.dumps(found['preprocess'])}")
    if found["labels"]:
        click.echo(f"  labels: {', '.join(found['labels'])}")
    click.echo(f"  layers ({len(found['layers'])}):")
    for layer in found["layers"]:
        kind = f"{layer['op_type']}, {layer['precision']}, " if "op_type" in layer else ""
        click.echo(f"    {layer['name']}: {kind}{layer['bytes']} bytes")
    click.echo(f"  scales ({len(found['scales'])} tensors):")
    for grid in found["scales"]:
        axis = f" per channel on axis {grid['axis']}" if len(grid["scale"]) > 1 else ""
        click.echo(
            f"    {grid['tensor']}: {grid['dtype']}, scale {_few(grid['scale'])}, "
            f"zero point {_few(sorted(set(grid['zero_point'])))}{axis}"
        )
    return 0


def describe(file: Path) -> dict[str, Any]:
    """What ``inspect --json`` prints (``edgeopt.inspect/1``).

    Raises:
        ModelError: no such file, of another kind, or broken.
    """
    from edgeopt.errors import ModelError

    if not file.is_file():
        raise ModelError("there is no such file", where=str(file), hint="Give an .onnx or .tflite file.")
    if file.suffix == ".onnx":
        found = _onnx(file)
    elif file.suffix == ".tflite":
        found = _tflite(file)
    else:
        raise ModelError("is neither .onnx nor .tflite", where=str(file), hint="Give an .onnx or .tflite file.")
    return {"schema": "edgeopt.inspect/1", "file": file.name, "size_bytes": file.stat().st_size, **found}


def _onnx(file: Path) -> dict[str, Any]:
    from edgeopt.formats import onnx

    summary = onnx.summarise(file).model_dump(mode="json")
    return {
        "format": f"ONNX, opset {summary['opset']}",
        "inputs": summary["inputs"],
        "outputs": summary["outputs"],
        "ops": summary["ops"],
        "scales": [*summary["io"], *summary["grids"]],
        "layers": summary["layers"],
        "preprocess": summary["preprocess"],
        "labels": summary["labels"],
    }


def _tflite(file: Path) -> dict[str, Any]:
    from edgeopt.formats import tflite
    from edgeopt.targets.tflite.target import LABELS, PREPROCESS

    model = tflite.read(file)

    def specs(signature: dict[str, int], indices: list[int]) -> list[dict[str, Any]]:
        names = {index: name for name, index in signature.items()}
        return [
            {
                "name": names.get(index, model.tensors[index].name),
                "dtype": model.tensors[index].dtype,
                "shape": list(model.tensors[index].shape),
            }
            for index in indices
        ]

    return {
        "format": "TFLite",
        "inputs": specs(model.signature_inputs, model.inputs),
        "outputs": specs(model.signature_outputs, model.outputs),
        "ops": {
            precision: dict(sorted(counts.items()))
            for precision, counts in sorted(tflite.operator_counts(model).items())
        },
        "scales": [
            {
                "tensor": tensor.name,
                "dtype": tensor.dtype,
                "scale": [float(scale) for scale in tensor.scale.reshape(-1)],
                "zero_point": [int(zero) for zero in tensor.zero_point.reshape(-1)],
                "axis": tensor.axis if tensor.scale.size > 1 else None,
            }
            for tensor in model.tensors
            if tensor.scale is not None and tensor.zero_point is not None
        ],
        "layers": [{"name": name, "bytes": size} for name, size in tflite.constant_bytes(model).items()],
        "preprocess": json.loads(model.metadata.get(PREPROCESS, b"null")),
        "labels": json.loads(model.metadata.get(LABELS, b"[]")),
    }


def _few(numbers: list[float]) -> str:
    text = ", ".join(f"{number:.6g}" for number in numbers[:FEW])
    return text + (f", … ({len(numbers)})" if len(numbers) > FEW else "")
