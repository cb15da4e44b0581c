"""What a pass is: one class in one file whose fields are its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeopt.graph.constraints import Constraints
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.types import Effort, Frozen

Feed = dict[str, npt.NDArray[np.generic]]
"""Model input name → array of the model's static shape (batch axis first) and dtype."""


class Samples(Protocol):
    """Real samples, read one by one from wherever they live; iterating again starts again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Feed]: ...


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the graph.

    Args:
        calibration: real samples, or None if the recipe names none.
        constraints: the union over all targets that edgeopt knows.
        effort: how much is tried.
        threads: fixed number of threads for every run, so that results repeat.
        seed: for whatever draws.
        scratch: a folder that is removed afterwards.
    """

    scratch: Path
    calibration: Samples | None = None
    constraints: Constraints = field(default_factory=Constraints)
    effort: Effort = "default"
    threads: int = 2
    seed: int = 0


class Pass(Frozen, ABC):
    """One step on the graph. The model it is given belongs to it: it may change it in place and return it."""

    @abstractmethod
    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph: ...
