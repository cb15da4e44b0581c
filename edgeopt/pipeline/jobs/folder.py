"""What every job leaves in its folder, and says while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir

from edgeopt import events
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.types import Frozen

Result = TypeVar("Result", bound=Frozen)

RESULT = "result.json"
GRAPH = "graph.onnx"
TABLE = "quantization.npz"
PREDICTIONS = "predictions.npy"
MODULE = "module.safetensors"
PYTORCH = "pytorch"
"""Folder of the module that a pass on the graph trained, as the person loads it."""
ARTIFACT = "artifact"


@contextmanager
def stage(text: str) -> Iterator[None]:
    events.emit(events.Event("step", text))
    try:
        yield
    finally:
        events.emit(events.Event("done", text))


def write_result(folder: Path, result: Frozen) -> None:
    (folder / RESULT).write_text(result.model_dump_json(by_alias=True, indent=1), encoding="utf-8")


def read_result(folder: Path, kind: type[Result]) -> Result:
    """The record that a finished step left."""
    return kind.model_validate_json((folder / RESULT).read_text(encoding="utf-8"))


def load_graph(folder: Path) -> QuantizedGraph:
    """What ``run_passes`` left."""
    table = folder / TABLE
    return QuantizedGraph(ir.load(folder / GRAPH), Quantization.load(table) if table.exists() else None)
