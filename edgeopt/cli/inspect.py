"""``edgeopt inspect``: what stands in a file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeopt.runtimes.mil_reference.program import Feature

EXAMPLES = """\b
Examples:
  edgeopt inspect out/tflite/model.tflite
  edgeopt inspect out/onnx/model.onnx --json
  edgeopt inspect out/coreml/model.mlpackage
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
    """Look into an ONNX, TFLite or Core ML file: operators by precision, inputs and outputs, and every scale.

    Of an ONNX file also the products that ONNX Runtime gets wrong on x86 without VNNI. Of a Core ML package the
    compression of its weights, the deployment target, and what is known to keep it off the Neural Engine, each with its
    source. With --for, ends with 1 if a rule of acceptance or speed is broken.
    """
    from edgeopt.cli import rules

    file = file / "model.onnx" if (file / "model.onnx").is_file() else file  # a bundle
    found = describe(file)
    found["confidence"] = _confidence(file)
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
            click.echo(f"  {side[:-1]} {spec['name']}: {spec['dtype']} {spec['shape']}{_more(spec)}")
    for precision, ops in found["ops"].items():
        click.echo(f"  {precision}: {', '.join(f'{count} {op}' for op, count in ops.items())}")
    if found["preprocess"]:
        click.echo(f"  preprocess: {json.dumps(found['preprocess'])}")
    if found["labels"]:
        click.echo(f"  labels: {', '.join(found['labels'])}")
    if found["confidence"]:
        click.echo(f"  confidence: {json.dumps(found['confidence'])}")
    for kind, stored in found.get("compression", {}).items():
        click.echo(
            f"  stored as {kind}: {stored['constants']} constants, {stored['values']} values,"
            f" {stored['stored_bytes']} bytes ({stored['float_bytes']} in float)"
        )
    for warning in found.get("warnings", []):
        names = ", ".join(warning["where"][:FEW]) + (", …" if len(warning["where"]) > FEW else "")
        click.echo(f"  {warning['about']}, {warning['id']} ({len(warning['where'])}: {names}): {warning['text']}")
        click.echo(f"    {warning['source']}")
    click.echo(f"  layers ({len(found['layers'])}):")
    for layer in found["layers"]:
        kind = f"{layer['op_type']}, {layer['precision']}, " if "op_type" in layer else ""
        kind += f"{layer['compression']}, " if "compression" in layer else ""
        click.echo(f"    {layer['name']}: {kind}{layer['bytes']} bytes")
    click.echo(f"  scales ({len(found['scales'])} tensors):")
    for grid in found["scales"]:
        axis = f" per channel on axis {grid['axis']}" if len(grid["scale"]) > 1 else ""
        click.echo(
            f"    {grid['tensor']}: {grid['dtype']}, scale {_few(grid['scale'])}, "
            f"zero point {_few(sorted(set(grid['zero_point'])))}{axis}"
        )
    return 0


def _confidence(file: Path) -> dict[str, Any] | None:
    from edgeopt.pipeline.confidence import read

    found = read(file)
    return None if found is None else found.model_dump(mode="json")


def describe(file: Path) -> dict[str, Any]:
    """What ``inspect --json`` prints (``edgeopt.inspect/1``).

    Raises:
        ModelError: no such file, of another kind, or broken.
        MissingPackage: coremltools, which reading an ``.mlpackage`` needs.
    """
    from edgeopt.errors import ModelError

    hint = "Give an .onnx file, a .tflite file or an .mlpackage."
    if file.suffix == ".mlpackage" and file.exists():
        return {"schema": "edgeopt.inspect/1", "file": file.name, **_mlpackage(file)}
    if not file.is_file():
        raise ModelError("there is no such file", where=str(file), hint=hint)
    if file.suffix == ".onnx":
        found = _onnx(file)
    elif file.suffix == ".tflite":
        found = _tflite(file)
    else:
        raise ModelError("is neither .onnx, .tflite nor .mlpackage", where=str(file), hint=hint)
    return {"schema": "edgeopt.inspect/1", "file": file.name, "size_bytes": file.stat().st_size, **found}


def _onnx(file: Path) -> dict[str, Any]:
    from edgeopt.formats import onnx, onnx_overflow

    summary = onnx.summarise(file).model_dump(mode="json")
    warning = {
        "about": "x86 without VNNI",
        "id": "saturated-products",
        "text": onnx_overflow.TEXT,
        "source": onnx_overflow.SOURCE,
        "where": list(onnx_overflow.saturated(onnx.load(file))),
    }
    return {
        "format": f"ONNX, opset {summary['opset']}",
        "inputs": summary["inputs"],
        "outputs": summary["outputs"],
        "ops": summary["ops"],
        "scales": [*summary["io"], *summary["grids"]],
        "layers": summary["layers"],
        "preprocess": summary["preprocess"],
        "labels": summary["labels"],
        "warnings": [warning] if warning["where"] else [],
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


def _mlpackage(file: Path) -> dict[str, Any]:
    from edgeopt.errors import MissingPackage, ModelError
    from edgeopt.runtimes.mil_reference import inspection, neural_engine, package

    try:
        found = package.read(file)
    except ValueError as error:
        hint = "The package is damaged, or of another kind: convert the model again."
        raise ModelError(str(error), hint=hint) from error
    except ImportError as error:
        if error.name != "coremltools":
            raise
        raise MissingPackage("coremltools", "coreml", "inspecting an .mlpackage") from error
    function = found.main
    program = inspection.Program(function)
    told = found.metadata.user_defined
    tensors = {pair[0]: name for name, pair in json.loads(told.get("edgeopt.tensors", "{}")).items()}
    weights = {variable: name for name, variable in json.loads(told.get("edgeopt.weights", "{}")).items()}
    labels = next(
        (list(value.python()) for one in program.operations if one.type == "classify"
         if (value := program.parameter(one, "classes")) is not None),
        [],
    )  # fmt: skip
    return {
        "size_bytes": sum(part.stat().st_size for part in file.rglob("*") if part.is_file()),
        "format": f"Core ML program for {found.deployment_target} and later ({function.opset})",
        "deployment_target": found.deployment_target,
        "specification_version": found.specification_version,
        "functions": list(found.functions),
        "inputs": [_feature(feature) for feature in function.features_in],
        "outputs": [_feature(feature) for feature in function.features_out],
        "ops": inspection.operator_counts(program),
        "compression": {kind: asdict(stored) for kind, stored in inspection.compressions(program).items()},
        "scales": [
            {**asdict(grid), "scale": list(grid.scale), "zero_point": list(grid.zero_point)}
            for grid in inspection.grids(program, {**tensors, **weights})
        ],
        "layers": [asdict(layer) for layer in inspection.layers(program)],
        "warnings": [neural_engine.as_json(warning) for warning in neural_engine.warnings(program)],
        "preprocess": json.loads(told.get("edgeopt.preprocess", "null")),
        "labels": labels,
        "metadata": {"author": found.metadata.author, "description": found.metadata.description, **told},
    }


def _feature(feature: Feature) -> dict[str, Any]:
    """An image is pixels; a label and its probabilities have no shape."""
    dtype = f"{feature.color} image" if feature.kind == "image" else feature.dtype or feature.kind
    found: dict[str, Any] = {"name": feature.name, "dtype": dtype, "shape": list(feature.shape)}
    if feature.enumerated:
        found["shapes"] = [list(shape) for shape in feature.enumerated]
    if any(low != high for low, high in feature.ranges):
        found["ranges"] = [list(pair) for pair in feature.ranges]
    return found


def _more(spec: dict[str, Any]) -> str:
    """The other sizes that an input may have."""
    shapes = [shape for shape in spec.get("shapes", []) if shape != spec["shape"]]
    text = f", or {', '.join(map(str, shapes))}" if shapes else ""
    for axis, (low, high) in enumerate(spec.get("ranges", [])):
        if low != high:
            text += f", axis {axis} {low} to {'any' if high < 0 else high}"
    return text


def _few(numbers: list[float]) -> str:
    text = ", ".join(f"{number:.6g}" for number in numbers[:FEW])
    return text + (f", … ({len(numbers)})" if len(numbers) > FEW else "")
