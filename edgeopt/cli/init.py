"""``edgeopt init``: a first recipe."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.errors import UsageError

EXAMPLES = """\b
Examples:
  edgeopt init
  edgeopt init my-model --model model.onnx --calibration images/
"""

RECIPE = """\
edgeopt: 1                      # version of the recipe format

# The float model: {{onnx: FILE}}, {{exported: FILE.pt2}}, {{keras: FILE}}, or a PyTorch module in eval mode:
#   model: {{factory: "model:build", weights: model.safetensors, inputs: {{image: [1, 3, 224, 224]}}}}
model: {{{field}: {model}}}

# How an image becomes the model's input: (pixels * scale - mean) / std, exactly as in training.
# `arrays:` are taken as they are. Remove it if the model takes no images.
preprocess: {{resize: 256, crop: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}

data:
  calibration: {{{calibration}}}    # a few hundred real samples; int8 learns its ranges from them
  # Other samples, to compare and to measure accuracy on:
  # evaluation: {{images: data/evaluation, labels: data/labels.csv}}

passes:
  - {{use: quantize, scheme: int8}}

targets:
  onnx: {{}}
  tflite: {{}}

# What makes `edgeopt convert` end with exit code 1:
# parity: {{min_sqnr_db: 20, min_top1_agreement: 0.98}}
# budget: {{size_mb: 4}}
"""


@click.command("init", epilog=EXAMPLES)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option("--model", default="model.onnx", show_default=True, help="The model, relative to FOLDER.")
@click.option(
    "--calibration", default="data/calibration", show_default=True, help="Images or .npz, relative to FOLDER."
)
def command(folder: Path, model: str, calibration: str) -> int:
    """Write FOLDER/recipe.yaml, with a word on every part."""
    import json

    from edgeopt.recipe.schema import MODEL_FILES

    file = folder / "recipe.yaml"
    kind = "arrays" if calibration.endswith(".npz") else "images"
    field = MODEL_FILES.get(Path(model).suffix.lower(), "onnx")
    text = RECIPE.format(field=field, model=json.dumps(model), calibration=f"{kind}: {json.dumps(calibration)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError as error:
        raise UsageError(
            "there is a recipe already", where=str(file), hint="Edit it, or give another folder."
        ) from error
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(file)) from error
    click.echo(f"{file}: fill in your model and data, then: edgeopt convert {folder}")
    return 0
