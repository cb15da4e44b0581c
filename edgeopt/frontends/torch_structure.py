"""What pruning did to a user's module, as data: the factory's module is brought to it, and nothing is unpickled.

A structure holds the numbers that layers carry beside their tensors (``out_channels``, ``num_features``, …); the
shapes of parameters and buffers are those of the weights that come with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import ModelError

METADATA = "edgeopt"
"""Key of the JSON document in the metadata of a file of weights."""
MASKS = "masks/"
"""Prefix of tensors that say which weights stay zero: training passes read them, the frontend does not."""

Structure = dict[str, dict[str, Any]]
"""Module name → attribute → number, or list of numbers where the attribute is a tuple."""


def numbers(module: Any) -> Structure:
    """All whole numbers, and tuples of them, that a module and its parts carry as attributes."""
    return {
        name: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(inner).items()
            if not key.startswith("_") and key != "training" and _is_number(value)
        }
        for name, inner in module.named_modules()
    }


def changed(before: Structure, after: Structure) -> Structure:
    """What of ``after`` is not as in ``before``."""
    found = {
        name: {key: value for key, value in values.items() if before.get(name, {}).get(key) != value}
        for name, values in after.items()
    }
    return {name: values for name, values in found.items() if values}


def apply(module: Any, structure: Structure, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Give the factory's module the recorded numbers and empty tensors of the recorded shapes, in place.

    Args:
        module: as the factory returns it.
        structure: of ``changed``.
        shapes: state dict key → shape, of the weights that will be loaded.
        where: for messages.

    Raises:
        ModelError: the factory builds another module than the one that was pruned.
    """
    import torch

    modules = dict(module.named_modules())
    for name, values in structure.items():
        if name not in modules:
            raise ModelError(
                f"the pruned model has a layer '{name}' that the factory's does not",
                where=where,
                hint="The factory must build the module that was pruned.",
            )
        for key, value in values.items():
            setattr(modules[name], key, tuple(value) if isinstance(value, list) else value)
    for name, inner in modules.items():
        for key, parameter in list(inner._parameters.items()):
            shape = shapes.get(f"{name}.{key}".lstrip("."))
            if parameter is not None and shape is not None and tuple(parameter.shape) != shape:
                empty = torch.zeros(shape, dtype=parameter.dtype)
                inner._parameters[key] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for key, buffer in list(inner._buffers.items()):
            shape = shapes.get(f"{name}.{key}".lstrip("."))
            if buffer is not None and shape is not None and tuple(buffer.shape) != shape:
                inner._buffers[key] = torch.zeros(shape, dtype=buffer.dtype)


def read(path: Path) -> tuple[dict[str, Any], Structure]:
    """State dict and structure of a file that a training pass left: safetensors, with the structure in its metadata."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        structure: Structure = json.loads((file.metadata() or {})[METADATA])["structure"]
        keys = [key for key in file.keys() if not key.startswith(MASKS)]  # noqa: SIM118 - it is no dictionary
        return {key: file.get_tensor(key) for key in keys}, structure


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(type(one) is int for one in value)
    return type(value) is int
