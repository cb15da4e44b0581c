"""What the bundle's file holds, read back from it: which operators TensorRT will find between integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from edgeopt.formats.onnx import MOVEMENT, load
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.targets.tensorrt.reading import (
    ACTIVATIONS,
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    QdqFile,
    array_of,
    dequantized,
    is_quantized,
    producer,
    readers,
)
from edgeopt.types import Realised

Kind = Literal["int8", "float", "other"]


def realised(path: Path, graph: QuantizedGraph, *, leftovers: tuple[str, ...] = ()) -> Realised:
    """Operators by precision. A weighted operator is int8 where both of its inputs are dequantized integers.

    Args:
        path: the bundle's ``model.onnx``.
        graph: what was asked.
        leftovers: what the rules found, in words.
    """
    file = QdqFile(load(path))
    kinds = {id(node): _kind(node) for node in file.nodes}
    counts: dict[Kind, Counter[str]] = {"int8": Counter(), "float": Counter(), "other": Counter()}
    for node in file.nodes:
        counts[kinds[id(node)]][node.op_type] += 1
    table = graph.quantization or Quantization()
    found = {node.name: kinds[id(node)] for node in file.nodes if node.op_type in WEIGHTED}
    unasked = [
        node.name or ""
        for node in graph.model.graph
        if node.op_type in WEIGHTED and table.scheme(node) == "int8" and found.get(node.name) != "int8"
    ]
    dynamic = sum(table.scheme(node) == "int8-dynamic" for node in graph.model.graph)
    said = [*leftovers]
    if dynamic:
        said.append(f"{dynamic} int8-dynamic nodes: in float, TensorRT quantizes nothing at run time")
    return Realised(
        int8_ops=dict(sorted(counts["int8"].items())),
        float_ops=dict(sorted(counts["float"].items())),
        other_ops=dict(sorted(counts["other"].items())),
        leftovers=tuple(said),
        unasked_float=tuple(unasked),
    )


def _kind(node: ir.Node) -> Kind:
    if node.op_type in (QUANTIZE, DEQUANTIZE, "Cast") or node.op_type in MOVEMENT:
        return "other"
    if node.op_type in WEIGHTED:
        return "int8" if is_quantized(node, 0) and is_quantized(node, 1) else "float"
    inputs = [value for value in node.inputs if value is not None and array_of(value) is None]
    if inputs and all(dequantized(value) is not None or _is_product(value) for value in inputs):
        after = [reader.op_type for value in node.outputs for reader in readers(value)]
        if any(dequantized(value) is not None for value in inputs):
            fused = all(op == QUANTIZE or op in ACTIVATIONS for op in after)
            return "int8" if after and fused else "float"
        if node.op_type in ACTIVATIONS | {"Mul"}:
            return "other"  # part of the operator before it
    before = producer(inputs[0]) if inputs else None
    if node.op_type in ACTIVATIONS and before is not None and before.op_type == "Add" and _kind(before) == "int8":
        return "other"
    return "float"


def _is_product(value: ir.Value) -> bool:
    """What an int8 weighted operator makes, or its activation."""
    node = producer(value)
    if node is not None and node.op_type in ACTIVATIONS:
        node = producer(node.inputs[0])
    return node is not None and node.op_type in WEIGHTED and _kind(node) == "int8"
