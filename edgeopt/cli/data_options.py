"""Options that say what a recipe's ``data`` and ``preprocess`` would, for all commands that take samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeopt.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

PREPROCESS = (
    click.option("--mean", metavar="R,G,B", help="Per channel, after scaling."),
    click.option("--std", metavar="R,G,B", help="Per channel, after scaling."),
    click.option("--scale", type=float, help="Multiplies pixels 0–255 first.  [default: 1/255]"),
    click.option("--resize", metavar="PIXELS", help="Shorter side, or H,W."),
    click.option("--crop", metavar="PIXELS", help="Centre crop, or H,W."),
    click.option("--color", type=click.Choice(["rgb", "bgr", "gray"]), help="Order of channels.  [default: rgb]"),
)
FORMS = "folder of images, .npz of arrays, module:function"


def preprocess_options(command: Command) -> Command:
    """Decorator: ``--mean`` to ``--color``."""
    for option in reversed(PREPROCESS):
        command = option(command)
    return command


def preprocess_from(given: dict[str, Any]) -> dict[str, Any]:
    """What the options say of a recipe's ``preprocess``; ``given`` may hold other options too."""
    values: dict[str, Any] = {}
    for name in ("mean", "std"):
        if given.get(name) is not None:
            values[name] = numbers(given[name], f"--{name}", float)
    for name in ("resize", "crop"):
        if given.get(name) is not None:
            sizes = numbers(given[name], f"--{name}", int)
            values[name] = sizes[0] if len(sizes) == 1 else sizes
    return values | {name: given[name] for name in ("scale", "color") if given.get(name) is not None}


def source_from(text: str) -> dict[str, Any]:
    """A recipe's data source from one word: a folder, an ``.npz``, or ``module:function``."""
    path = Path(text)
    if path.suffix == ".npz":
        return {"arrays": text}
    if not path.exists() and ":" in text:
        return {"callable": text}
    return {"images": text}


def shape_from(text: str) -> tuple[str, list[int]]:
    """``NAME=1,3,224,224``."""
    name, equals, sizes = text.rpartition("=")
    if not equals:
        raise UsageError(f"'{text}' is not NAME=SIZES", where="--input", hint="For example --input image=1,3,224,224")
    return name, numbers(sizes, "--input", int)


def numbers(text: str, option: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        hint = f"For example {option} {'0.5,0.5,0.5' if kind is float else '224,224'}"
        raise UsageError(f"'{text}' is no list of numbers", where=option, hint=hint) from None
