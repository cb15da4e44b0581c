"""Constant subgraphs are computed once; functions and constant branches are inlined."""

from __future__ import annotations

from typing import Literal

from onnx_ir.passes.common import InlinePass

from edgeopt.graph.constant_folding import fold_constants
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass


class FoldConstants(Pass):
    """After it: no functions, no Constant nodes, no node that reads constants alone, every shape static."""

    use: Literal["fold_constants"] = "fold_constants"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        if graph.model.functions:
            InlinePass()(graph.model)
        fold_constants(graph.model)
        return graph
