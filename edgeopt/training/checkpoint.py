"""State of a training on disk: one file, whole or absent, readable by nobody's pickle.

Tensors lie in a safetensors file under dotted keys, everything else as JSON in its metadata.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import EdgeoptError, UsageError

_JSON = "edgeopt"
"""As ``frontends.torch_structure.METADATA``: one kind of file. Not imported, so that training needs torch alone."""


def save(path: Path, tensors: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Write a file in one step: a reader sees the old one or the new one.

    Args:
        path: of the file.
        tensors: key → torch tensor, on any device.
        text: what JSON can hold.

    Raises:
        OSError: no space, no right. The old file stays, and nothing half written.
    """
    import torch
    from safetensors.torch import save as to_bytes

    kept = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
    kept = kept or {"nothing": torch.zeros(1)}  # a file without tensors is refused by some versions
    data = to_bytes(kept, {_JSON: json.dumps(text, sort_keys=True)})
    draft = path.with_name(path.name + ".part")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors on the CPU, and the text.

    Raises:
        EdgeoptError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text: dict[str, Any] = json.loads((file.metadata() or {})[_JSON])
            return {key: file.get_tensor(key) for key in file.keys()}, text  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, KeyError, ValueError) as error:
        raise EdgeoptError(
            f"the checkpoint is damaged: {error}", where=str(path), hint="Remove it; the training starts again."
        ) from error


def refuse_another(found: str, wanted: str, path: Path) -> None:
    """UsageError where a checkpoint's identity is not this training's."""
    if found != wanted:
        raise UsageError(
            "the checkpoint is of another training: model, data or settings differ",
            where=str(path),
            hint="Remove it to begin anew, or give another output folder.",
        )


def optimizer_state(optimizer: Any, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and text of a torch optimizer whose parameters are called ``names``, in its order."""
    state = optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if hasattr(value, "detach"):
                tensors[f"{names[index]}/{key}"] = value
            else:
                numbers[f"{names[index]}/{key}"] = value
    return tensors, numbers


def restore_optimizer(optimizer: Any, names: list[str], tensors: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    """The inverse of ``optimizer_state``; learning rates stay what the optimizer has."""
    index = {name: at for at, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(index[name], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
