"""Recipes from YAML and from the command line; every error says file, line, column and what was meant."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from edgeopt.errors import RecipeError
from edgeopt.recipe.schema import VERSION, CommandValues, Recipe
from edgeopt.types import Frozen

Kind = TypeVar("Kind", bound=Frozen)
Location = tuple[int | str, ...]
Changes = Callable[[dict[str, Any]], dict[str, Any]]


def load_recipe(path: Path, *, changes: Changes | None = None) -> Recipe:
    """Read a recipe file; a folder means its ``recipe.yaml``. Relative paths in it start at its folder.

    Args:
        path: the file or its folder.
        changes: makes the values as they stand in the file those that are meant (what the command line says besides).

    Raises:
        RecipeError: with ``file:line:column``.
    """
    path = path / "recipe.yaml" if path.is_dir() else path
    values, place = _read_yaml(path, "recipe", "`edgeopt init` writes a first one.")
    _check_version(values, place)
    return _validate(changes(values) if changes else values, path.parent, place, Recipe)


def load_values(path: Path, kind: type[Kind], *, what: str) -> Kind:
    """Another YAML file of the user, as ``kind`` says; ``what`` names it in messages.

    Raises:
        RecipeError: with ``file:line:column``.
    """
    values, place = _read_yaml(path, what, "An empty file (`{}`) means all defaults.")
    return _validate(values, path.parent, place, kind)


def _read_yaml(path: Path, what: str, hint: str) -> tuple[dict[str, Any], Callable[[Location], str]]:
    """Keys of a YAML file, and what tells ``file:line:column`` of each."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"no such {what}", where=str(path), hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read as text: {error}", where=str(path)) from error
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        values = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"not YAML: {_one_line(error.problem or error.context)}", where=where) from error
    except YAMLError as error:
        raise RecipeError(f"not YAML: {_one_line(error)}", where=str(path)) from error
    if not isinstance(values, dict):
        raise RecipeError(f"not a {what}: it holds no keys", where=str(path), hint=hint)

    def place(location: Location) -> str:
        line, column = _mark(node, location)
        return f"{path}:{line}:{column}"

    return values, place


def recipe_from(values: Mapping[str, Any], options: Mapping[str, str], root: Path) -> Recipe:
    """A recipe from what the command line says.

    Args:
        values: as a recipe file would hold them.
        options: dotted key → the option it came from, for messages.
        root: where relative paths start.
    """

    return _validate({"edgeopt": VERSION, **values}, root, lambda location: _option(options, location), Recipe)


def values_from(values: Mapping[str, Any], options: Mapping[str, str]) -> CommandValues:
    """Parts of a recipe for commands that convert nothing; relative paths start at the working directory."""
    return _validate(dict(values), Path(), lambda location: _option(options, location), CommandValues)


def _option(options: Mapping[str, str], location: Location) -> str:
    """The option that the nearest key above ``location`` came from."""
    keys = [str(key) for key in location]
    found = (options.get(".".join(keys[:size])) for size in range(len(keys), 0, -1))
    return next((option for option in found if option), "command line")


def _validate(values: dict[str, Any], root: Path, place: Callable[[Location], str], kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate(values, context={"root": root})
    except ValidationError as error:
        # An unknown key first: a key that is missing is most often the same one, misspelt.
        first, *others = sorted(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
        what, hint = _explain(first, kind)
        distinct = {other["loc"] for other in others} - {first["loc"]}
        if distinct:
            hint = f"{hint + ' ' if hint else ''}({len(distinct)} more after this one.)"
        raise RecipeError(what, where=place(_in_file(first["loc"])), hint=hint or None) from error


def _check_version(values: Mapping[str, Any], place: Callable[[Location], str]) -> None:
    if "edgeopt" not in values:
        raise RecipeError(
            "the recipe does not say its version", where=place(()), hint=f"Begin with `edgeopt: {VERSION}`."
        )
    version = values["edgeopt"]
    if isinstance(version, int) and version > VERSION:
        raise RecipeError(
            f"the recipe has version {version}, this edgeopt reads up to {VERSION}",
            where=place(("edgeopt",)),
            hint="Update edgeopt: pip install --upgrade edgeopt",
        )
    if version != VERSION or isinstance(version, bool):
        raise RecipeError(
            f"{version!r} is no recipe version", where=place(("edgeopt",)), hint=f"Write `edgeopt: {VERSION}`."
        )


def _explain(error: Any, root: type[Frozen]) -> tuple[str, str]:
    """One error of pydantic in our words: what, hint."""
    location: Location = error["loc"]
    key, kind, context = str(location[-1]) if location else "", error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        known = _keys_at(location[:-1], root)
        inside = _in_file(location[:-1])
        noun = "target" if inside == ("targets",) else "key"
        parent = f" in '{'.'.join(map(str, inside))}'" if inside and noun == "key" else ""
        return f"unknown {noun} '{key}'{parent}", did_you_mean(key, known)
    if kind in ("union_tag_invalid", "literal_error"):
        expected = context.get("expected_tags") or context.get("expected", "")
        known = [part.strip(" '") for part in expected.replace(" or ", ", ").split(",")]
        tag = str(context.get("tag", error.get("input")))
        if kind == "union_tag_invalid" or key == "use":
            return f"unknown pass '{tag}'", did_you_mean(tag, known)
        return f"{error.get('input')!r} is not a value of '{key}'", did_you_mean(tag, known)
    if kind in ("union_tag_not_found", "missing") and (kind == "union_tag_not_found" or key == "use"):
        return "a pass without 'use'", "Write `{use: NAME, …}`."
    if kind == "missing":
        return f"'{'.'.join(map(str, _in_file(location)))}' is missing", _MISSING.get(key, "")
    if kind in ("missing_file", "not_a_file", "not_a_folder"):
        return f"'{key}': {error['msg']}", "Relative paths start at the recipe's folder."
    if kind == "value_error":
        return str(context.get("error", error["msg"])), ""
    key = ".".join(map(str, _in_file(location)))
    if kind == "string_pattern_mismatch":
        return f"'{key}': {error.get('input')!r} is not `module:function`", "For example `model:build`."
    wanted = error["msg"][0].lower() + error["msg"][1:]
    return f"'{key}': {wanted}, not {_short(error.get('input'))}", ""


_MISSING = {
    "model": "For example `model: {onnx: model.onnx}`.",
    "targets": "For example `targets: {onnx: {}, tflite: {}}`.",
}


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The nearest known words, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(known)}."


def _keys_at(location: Location, root: type[Frozen] = Recipe) -> list[str]:
    """Names of the fields of the model class that pydantic's location leads to, from ``root``."""
    return sorted({name for kind in _kinds_at(location, root) if _is_model(kind) for name in kind.model_fields})


def _kinds_at(location: Location, root: type[Frozen] = Recipe) -> list[Any]:
    kinds: list[Any] = [root]
    for step in location:
        tagged = [kind for kind in kinds if _tag(kind) == step]
        kinds = tagged if tagged and len(kinds) > 1 else [child for kind in kinds for child in _children(kind, step)]
    return kinds


def _tag(kind: Any) -> str | None:
    """What names a pass in a recipe: ``use``."""
    field = kind.model_fields.get("use") if _is_model(kind) else None
    return None if field is None else str(field.default)


def _children(kind: Any, step: int | str) -> Iterable[Any]:
    if _is_model(kind):
        if (field := kind.model_fields.get(str(step))) is not None:
            return _members(field.annotation)
        return [kind]  # the tag of a union: it names the class that we are at
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is dict:
        return _members(arguments[1])
    if origin in (tuple, list):
        return _members(arguments[0])
    return []


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation: Optional, Union and Annotated taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _in_file(location: Location) -> Location:
    """Pydantic's location without what is not in the file: union tags behind ``passes``' index, ``[key]`` marks."""
    steps = [step for step in location if step != "[key]"]
    if len(steps) > 2 and steps[0] == "passes" and steps[2] in [_tag(kind) for kind in _kinds_at(tuple(steps[:2]))]:
        del steps[2]
    return tuple(steps)


def _mark(node: Node | None, location: Location) -> tuple[int, int]:
    """Line and column, from 1, of the key (or item) that the location names, or of the nearest that exists."""
    mark = (1, 1)
    for step in location:
        if isinstance(node, MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if pair is None:
                break
            key, node = pair
            mark = (key.start_mark.line + 1, key.start_mark.column + 1)
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = (node.start_mark.line + 1, node.start_mark.column + 1)
        else:
            break
    return mark


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
