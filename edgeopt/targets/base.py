"""What a target is: its demands as data, a writer, and a reader that says what was really written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

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

    def own_graph(self, graph: QuantizedGraph) -> QuantizedGraph:
        """The graph with the table that this target writes: the shared one, unless the format has a zero-point rule.

        ``lower``, ``realised`` and the target's parity take what this returns.
        """
        return graph

    def finish(self, folder: Path, artifact: Artifact, samples: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Artifact:
        """What needs real samples, or the device's own runtime, once the artifact is written into ``folder``."""
        return artifact

    @abstractmethod
    def realised(self, path: Path, graph: QuantizedGraph) -> Realised:
        """What the built file holds, read back from it; ``graph`` says what was asked."""
