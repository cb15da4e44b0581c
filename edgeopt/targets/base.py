"""What a target is: its demands as data, a writer, and a reader that says what was really written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import UsageError
from edgeopt.graph.constraints import Constraints
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.types import NO_METADATA, Artifact, Frozen, Metadata, Realised, SchemeName


class Target(Frozen, ABC):
    """A target format; its fields are its options in the recipe."""

    name: ClassVar[str]
    constraints: ClassVar[Constraints]
    schemes: ClassVar[frozenset[SchemeName]] = frozenset({"fp32", "fp16", "int8", "int8-dynamic", "int8-weights"})
    """What the format can hold."""
    own_grids: ClassVar[str | None] = None
    """How ``own_graph`` differs from the shared table, in words; None where it does not."""

    def check_schemes(self, schemes: frozenset[SchemeName]) -> None:
        """Refuse what the format cannot hold, before anything is read.

        Raises:
            UsageError: names the scheme.
        """
        for scheme in sorted(schemes - self.schemes):
            raise UsageError(
                f"the target {self.name} has no {scheme}; it has {', '.join(sorted(self.schemes))}",
                where=f"targets.{self.name}",
                hint=f"Ask for another scheme, or convert to other targets (--target) with {scheme}.",
            )

    def check(self, model: ir.Model) -> None:
        """Refuse a canonical graph that the format cannot be given, before any pass runs: UnsupportedOperator."""

    @abstractmethod
    def lower(self, graph: QuantizedGraph, out: Path, metadata: Metadata = NO_METADATA) -> Artifact:
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
