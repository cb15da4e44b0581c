"""What a target is: its demands as data, a writer, and a reader that says what was really written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from edgeopt.graph.constraints import Constraints
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.types import Artifact, Frozen, Preprocess, Realised


class Target(Frozen, ABC):
    """A target format; its fields are its options in the recipe."""

    name: ClassVar[str]
    constraints: ClassVar[Constraints]

    @abstractmethod
    def lower(
        self,
        graph: QuantizedGraph,
        out: Path,
        *,
        preprocess: Preprocess | None = None,
        labels: tuple[str, ...] = (),
    ) -> Artifact:
        """Write the artifact into the existing folder ``out``. Reads the graph, never changes it."""

    @abstractmethod
    def realised(self, path: Path, graph: QuantizedGraph) -> Realised:
        """What the built file holds, read back from it; ``graph`` says what was asked."""
