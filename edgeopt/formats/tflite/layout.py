"""How a tensor of the file lies, against the graph's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.formats.tflite.model import Model

Array = npt.NDArray[Any]

LAYOUTS = "edgeopt.layouts"
"""Metadata entry: tensor name → layout, for every tensor that is not as the source graph has it."""


@dataclass(frozen=True)
class Layout:
    """How a tensor of the file lies, against the graph's: ``graph.reshape(view).transpose(perm).reshape(file)``.

    Args:
        shape: in the graph.
        view: the graph's axes, split where the file keeps parts of one apart (a flattened image, channels last).
        perm: order of the view's axes in the file.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    perm: tuple[int, ...]

    def to_file(self, array: Array, shape: tuple[int, ...]) -> Array:
        """An array in the graph's layout, in the file's, which has ``shape``."""
        return np.ascontiguousarray(array.reshape(self.view).transpose(self.perm)).reshape(shape)

    def to_graph(self, array: Array) -> Array:
        """An array in the file's layout, in the graph's."""
        stored = tuple(self.view[axis] for axis in self.perm)
        return np.ascontiguousarray(array.reshape(stored).transpose(np.argsort(self.perm))).reshape(self.shape)


def layouts(model: Model) -> dict[str, Layout]:
    """Tensor name → layout as edgeopt's writer noted it; tensors that are not named lie as in the graph."""
    stored = json.loads(model.metadata.get(LAYOUTS, b"{}"))
    return {name: Layout(*(tuple(part) for part in parts)) for name, parts in stored.items()}
