"""``request.json``: the recipe of a run, kept with its results, so that what was built can be judged again.

All paths in it are relative to the output folder, as they were when the run was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import RecipeError, UsageError
from edgeopt.recipe.load import recipe_from
from edgeopt.recipe.schema import Recipe

REQUEST = "request.json"
SCHEMA = "edgeopt.request/1"
PATHS = (
    ("model", "onnx"),
    ("model", "exported"),
    ("model", "keras"),
    ("model", "weights"),
    ("data", "training", "images"),
    ("data", "training", "arrays"),
    ("data", "training", "labels"),
    ("data", "calibration", "images"),
    ("data", "calibration", "arrays"),
    ("data", "calibration", "labels"),
    ("data", "evaluation", "images"),
    ("data", "evaluation", "arrays"),
    ("data", "evaluation", "labels"),
    ("gate", "policy"),
    ("gate", "baseline"),
)


def as_text(recipe: Recipe, root: Path, out: Path) -> str:
    """The text of ``request.json`` for a run of ``recipe`` (its modules in ``root``) into ``out``."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    for keys in PATHS:
        at = values
        for key in keys[:-1]:
            at = at.get(key) or {}
        if isinstance(at.get(keys[-1]), str):
            at[keys[-1]] = _relative(Path(at[keys[-1]]), out)
    if isinstance(recipe.labels, Path):
        values["labels"] = _relative(recipe.labels, out)
    return json.dumps({"schema": SCHEMA, "root": _relative(root, out), "recipe": values}, indent=1) + "\n"


def read_request(out: Path) -> tuple[Recipe, Path]:
    """The recipe of a finished run, and the folder of its modules.

    Raises:
        UsageError: there is none, or what it names has moved.
    """
    try:
        stored: Mapping[str, Any] = json.loads((out / REQUEST).read_text(encoding="utf-8"))
        values, root = dict(stored["recipe"]), str(stored["root"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the recipe of this run cannot be read: {error}",
            where=str(out / REQUEST),
            hint="Convert again, or give --recipe.",
        ) from error
    try:
        return recipe_from(values, {}, out), out / root
    except RecipeError as error:
        raise UsageError(
            f"what this run was made of is no longer where it was: {error.what}",
            where=str(out / REQUEST),
            hint="Put it back, or say where it is now with --recipe RECIPE.",
        ) from error


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
