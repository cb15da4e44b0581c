"""What ONNX Runtime makes of a file, read from the model that it optimises it to."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from edgeopt.errors import TargetError
from edgeopt.formats.onnx import CONVERSIONS, INT8_OPERATORS, MOVEMENT, REORDERS, STATIC_PRODUCTS, load, precision_of
from edgeopt.formats.onnx_overflow import TEXT, saturated
from edgeopt.graph.placement import FUSED_ACTIVATIONS, WEIGHTED
from edgeopt.graph.qdq import INTEGERS_SUFFIX
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.runtimes.onnxruntime import Session, saturates
from edgeopt.targets.onnx.draft import NO_INT8_KERNEL
from edgeopt.types import Realised


def read_realised(path: Path, graph: QuantizedGraph, activations: str) -> Realised:
    """What ONNX Runtime's CPU provider makes of the file: read from the model it optimises the file to.

    Raises:
        TargetError: ONNX Runtime does not load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        try:
            with Session(path, save_optimized=optimised):
                pass
        except ValueError as error:
            raise TargetError(f"ONNX Runtime does not load the file: {error}", where=str(path)) from error
        nodes = list(ir.load(optimised).graph)
    table = graph.quantization or Quantization()
    counts: dict[str, Counter[str]] = {"int8": Counter(), "float": Counter(), "other": Counter()}
    for node in nodes:
        counts[_kind(node)][node.op_type] += 1
    integers = [node for node in nodes if node.op_type in INT8_OPERATORS]
    static = [node for node in nodes if node.op_type in STATIC_PRODUCTS]
    read = {value.name for node in static for value in node.inputs if value is not None}
    named = {_source_name(node) for node in integers}
    leftovers: Counter[str] = Counter()
    unasked: list[str] = []
    for node in graph.model.graph:
        if table.scheme(node) != "int8":
            continue
        if node.op_type in WEIGHTED:
            weight = node.inputs[1]
            if weight is None or f"{weight.name}{INTEGERS_SUFFIX}" in read:
                continue
            if node.op_type in NO_INT8_KERNEL:
                leftovers[node.op_type] += 1
            else:
                unasked.append(node.name or "")
        elif node.op_type == "MatMul" and node.name not in named:
            unasked.append(node.name or "")
        elif node.op_type not in MOVEMENT | FUSED_ACTIVATIONS | {"MaxPool"} and node.name not in named:
            leftovers[node.op_type] += 1
    texts = [
        f"{op_type} x{count}: in float between integers, ONNX Runtime's CPU provider has no int8 kernel for it"
        for op_type, count in sorted(leftovers.items())
    ]
    written = load(path)
    clipped = len(saturated(written))
    if clipped:
        here = "this machine is one" if saturates() else "this machine is none"
        texts.append(
            f"{clipped} products on x86 without VNNI ({here}): {TEXT} (weights: uint8, between uint8 activations, is"
            " exact everywhere, and so is int8 with overflow_fix)"
        )
    if activations == "int8" and unasked:
        # The form is what other providers read; x86 has no kernel for int8 activations that several nodes read.
        form = {node.name: precision_of(node) for node in written.graph}
        left = [name for name in unasked if form.get(name) != "int8"]
        if len(left) < len(unasked):
            texts.append(
                f"{len(unasked) - len(left)} weighted nodes: int8 for other providers, in float on ONNX Runtime's"
                " CPU provider on this machine, which has no kernel for them (activations: uint8 has)"
            )
        unasked = left
    return Realised(
        int8_ops=dict(sorted(counts["int8"].items())),
        float_ops=dict(sorted(counts["float"].items())),
        other_ops=dict(sorted(counts["other"].items())),
        leftovers=tuple(texts),
        unasked_float=tuple(unasked),
    )


def _kind(node: ir.Node) -> Literal["int8", "float", "other"]:
    """What a node of an optimised model is; ONNX Runtime writes no types, so movement is judged by its name."""
    if node.op_type in INT8_OPERATORS:
        return "int8"
    return (
        "other" if node.op_type in CONVERSIONS | REORDERS | MOVEMENT | {"MaxPool", "NhwcMaxPool", "Clip"} else "float"
    )


def _source_name(node: ir.Node) -> str:
    """The source's name of a node that ONNX Runtime made: it adds ``_token_N`` when it changes the layout."""
    return re.sub(r"_token_\d+$", "", node.name or "")
