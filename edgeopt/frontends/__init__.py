"""Frontends read a trained model into a float graph, and keep the original at hand to be compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.types import Signature

Feed = dict[str, npt.NDArray[np.generic]]
"""Input or output name → array of the signature's shape and dtype."""


class Source(Protocol):
    """The model as the user has it, in the framework that it was made with."""

    def run(self, samples: Iterable[Feed]) -> Iterator[Feed]:
        """Outputs by name, one dictionary per sample, read and returned one by one.

        Raises:
            ModelError: the model cannot be run, or refuses a sample.
        """
        ...


@dataclass(frozen=True)
class Imported:
    """What a frontend returns.

    Args:
        model: float graph, opset 20, every shape static; not yet canonical.
        signature: names, dtypes and shapes of inputs and outputs, as the source has them.
        source: runs the original model; L0 parity compares with it.
        digest: SHA-256 of everything that the import read: model file, weights, factory module, bound shapes.
        kind: where it came from.
        where: node name → line of the user's source, ``file:line: code``, as far as the exporter knew it.
    """

    model: ir.Model
    signature: Signature
    source: Source
    digest: str
    kind: Literal["onnx", "torch", "exported", "keras"]
    where: Mapping[str, str]
