"""``edgeopt convert``: the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.data_options import FORMS, preprocess_from, preprocess_options, shape_from, source_from
from edgeopt.errors import ModelError, UsageError

if TYPE_CHECKING:
    from edgeopt.recipe.schema import Recipe

RECIPES = frozenset({".yaml", ".yml"})
DEFAULT_TARGETS = "onnx,tflite"
SCHEMES = (
    "fp32", "fp16", "int8", "int8-dynamic", "int8-weights",
    "int4-weights", "palette4-weights", "palette6-weights", "palette8-weights",
)  # fmt: skip

EXAMPLES = """\b
Examples:
  edgeopt convert recipes/quickstart
  edgeopt convert model.onnx --calibration images/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  edgeopt convert model.onnx --target tflite --calibration samples.npz --evaluation labelled.npz
  edgeopt convert model.keras --calibration images/ --scale 1
  edgeopt convert model.onnx --scheme fp16 --input image=1,3,224,224 --out out/half --json

\b
The same command again goes on where it was interrupted; steps that are done are not done again.
"""


@click.command("convert", epilog=EXAMPLES)
@click.argument("source", metavar="RECIPE|MODEL", type=click.Path(path_type=Path))
@click.option("--target", metavar="A,B", help=f"Targets, comma-separated.  [default: {DEFAULT_TARGETS}]")
@click.option("--scheme", type=click.Choice(SCHEMES), help="Precision.  [default: int8]")
@click.option("--calibration", metavar="DATA", help=f"Real samples: {FORMS}.")
@click.option("--evaluation", metavar="DATA", help="Other samples, for parity and accuracy; same forms.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV file,class_index for evaluation images.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many calibration samples, evenly spread.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=1,3,224,224", help="Shape of an input with open sizes.")
@preprocess_options
@click.option("--keep-float", multiple=True, metavar="PATTERN", help="Names of nodes that stay float; repeatable.")
@click.option("--effort", type=click.Choice(["fast", "default", "best"]), help="How much is tried.")
@click.option("--seed", type=int, help="For whatever draws.  [default: 0]")
@click.option("--min-sqnr-db", type=float, help="Fail (exit 1) where an artifact is below it.")
@click.option("--min-top1-agreement", type=float, help="Fail (exit 1) where an artifact is below it, 0–1.")
@click.option("--localize", is_flag=True, help="Name the first layer where an error jumps, also if all is well.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: out/NAME]")
@click.option("--trust", is_flag=True, help="Load .pt2 archives that hold pickled code. It can do anything you can.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the report as one JSON document.")
def command(source: Path, out: Path | None, localize: bool, trust: bool, json_wanted: bool, **options: Any) -> int:
    """Turn a trained model into verified artifacts for edge devices.

    The model comes from a RECIPE (a .yaml file, or a folder with a recipe.yaml), or is an .onnx, .pt2, .keras or .h5
    file with options that say what a recipe would. Ends with 1 if parity, precision or a budget failed.
    """
    recipe, name = read_request(source, options)
    from edgeopt.cli.progress import showing
    from edgeopt.pipeline.run import Options, convert
    from edgeopt.report.console import print_report
    from edgeopt.report.files import as_json, as_markdown

    asked = Options(root=recipe_folder(source), trust=trust, localize=localize)
    with showing():
        outcome = convert(recipe, out or Path("out") / name, asked, documents={"report.md": as_markdown})
    if json_wanted:
        click.echo(as_json(outcome.report), nl=False)
    else:
        print_report(outcome.report, outcome.out)
    gated = _gate(recipe, outcome.out, json_wanted=json_wanted) if recipe.gate is not None else 0
    for error in outcome.errors:
        click.echo(click.style("error", fg="red", bold=True) + f": {error}", err=True)
    return next((code for code in (2, 4, 3, 1) if code in (outcome.exit_code, gated)), 0)


def _gate(recipe: Recipe, out: Path, *, json_wanted: bool) -> int:
    """The recipe's ``gate:``. With ``--json`` its result stands in gate.json, as stdout holds one document."""
    from edgeopt.cli.gate import judge_in_worker, show
    from edgeopt.gate.policy import Policy, load_policy

    assert recipe.gate is not None
    policy = load_policy(recipe.gate.policy) if recipe.gate.policy is not None else Policy()
    result = judge_in_worker(out, policy, baseline=recipe.gate.baseline).result
    return show(result, out, json_wanted=False, github=False, junit=None, sarif=None, quiet=json_wanted)


def recipe_folder(source: Path) -> Path:
    """Where the recipe's modules and relative paths are: its folder, or for a bare model the working directory."""
    if source.is_dir():
        return source
    return source.parent if source.suffix in RECIPES else Path()


def read_request(source: Path, options: dict[str, Any]) -> tuple[Recipe, str]:
    """The recipe that the command line asks for, and a name for its results."""
    from edgeopt.recipe.load import load_recipe, recipe_from

    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if (source / "saved_model.pb").is_file():
        raise ModelError(
            "this is a TensorFlow SavedModel",
            where=str(source),
            hint="Load it with Keras, and save it as one file: model.save('model.keras').",
        )
    if source.is_dir() or source.suffix in RECIPES:
        file = source / "recipe.yaml" if source.is_dir() else source
        name = file.resolve().parent.name if file.name == "recipe.yaml" else file.stem
        return load_recipe(source, changes=lambda values: _changed(values, given)), name
    values = _changed({"model": _model(source), "targets": {}}, {"target": DEFAULT_TARGETS, "scheme": "int8", **given})
    return recipe_from(values, OPTION_OF, Path()), source.stem


OPTION_OF = {
    "model": "MODEL",
    "model.inputs": "--input",
    "targets": "--target",
    "data.calibration": "--calibration",
    "data.calibration.limit": "--limit",
    "data.evaluation": "--evaluation",
    "data.evaluation.labels": "--labels",
    "preprocess.mean": "--mean",
    "preprocess.std": "--std",
    "preprocess.resize": "--resize",
    "preprocess.crop": "--crop",
    "passes": "--scheme",
    "parity": "--min-sqnr-db, --min-top1-agreement",
}
"""Place in a recipe → the option that says it."""


def _model(source: Path) -> dict[str, Any]:
    if not source.exists():
        raise ModelError(
            "there is no such file", where=str(source), hint="Give a recipe (.yaml), an .onnx, .pt2 or .keras."
        )
    from edgeopt.recipe.schema import MODEL_FILES

    kind = source.suffix.lower()
    if kind in MODEL_FILES:
        return {MODEL_FILES[kind]: str(source)}
    if kind in (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin"):
        raise ModelError(
            "this is a PyTorch or pickle file; loading one can run any code, and weights alone are no model",
            where=str(source),
            hint='Write a recipe: `model: {factory: "model:build", weights: FILE, inputs: {image: [1, 3, 224, 224]}}` '
            "(weights are read with weights_only), or export the model to .onnx or .pt2.",
        )
    if kind == ".safetensors":
        raise ModelError(
            "weights alone are no model",
            where=str(source),
            hint='Write a recipe: `model: {factory: "model:build", weights: FILE, inputs: {image: [1, 3, 224, 224]}}`.',
        )
    if kind == ".tflite":
        raise ModelError(
            "a TFLite file is a result, not a source",
            where=str(source),
            hint="Convert the model that it was made from.",
        )
    return {"onnx": str(source)}


def _changed(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Recipe values with what the options say in their place."""
    values = dict(values)
    if "target" in given:
        old = values.get("targets") or {}
        names = [name.strip() for name in given["target"].split(",") if name.strip()]
        values["targets"] = {name: old.get(name) or {} if isinstance(old, dict) else {} for name in names}
    if inputs := given.get("inputs"):
        values["model"] = {**values["model"], "inputs": dict(shape_from(text) for text in inputs)}
    values["data"] = {**(values.get("data") or {}), **_data(given)}
    if preprocess := preprocess_from(given):
        values["preprocess"] = {**(values.get("preprocess") or {}), **preprocess}
    values["passes"] = _passes(list(values.get("passes") or []), given)
    limits = {name: given[name] for name in ("min_sqnr_db", "min_top1_agreement") if name in given}
    if limits:
        values["parity"] = {**(values.get("parity") or {}), **limits}
    return values | {name: given[name] for name in ("effort", "seed") if name in given}


def _passes(passes: list[Any], given: dict[str, Any]) -> list[Any]:
    change: dict[str, Any] = {}
    if "scheme" in given:
        change["scheme"] = given["scheme"]
    if "keep_float" in given:
        change["keep_float"] = list(given["keep_float"])
    if change:
        index = next(
            (i for i, step in enumerate(passes) if isinstance(step, dict) and step.get("use") == "quantize"), None
        )
        if index is None:
            passes.append({"use": "quantize", **change})
        else:
            passes[index] = {**passes[index], **change}
    return passes


def _data(given: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name in ("calibration", "evaluation"):
        if name in given:
            data[name] = source_from(given[name])
    if "labels" in given:
        if "evaluation" not in data:
            raise UsageError("--labels belongs to --evaluation images", hint="Give --evaluation DIR.")
        data["evaluation"]["labels"] = str(given["labels"])
    if "limit" in given:
        if "calibration" not in data:
            raise UsageError("--limit belongs to --calibration", hint="Give --calibration DATA.")
        data["calibration"]["limit"] = given["limit"]
    return data
