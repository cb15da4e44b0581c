"""The first layer at which two float graphs of the same names are not the same function any more; names of layers."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from edgeopt.data.samples import Feed
from edgeopt.graph.model import exposed
from edgeopt.graph.placement import FUSED_ACTIVATIONS, WEIGHTED
from edgeopt.parity.localize import TensorErrors
from edgeopt.runtimes.onnxruntime import Session

SAME_DB = 60.0
"""Tensors that differ by a factor per channel only (equalisation) are above it once that factor is taken out."""


def first_differing_layer(a: ir.Model, b: ir.Model, samples: Iterable[Feed]) -> str | None:
    """Name of the node of ``a``, or None if every tensor that both know is the same up to a factor per channel."""
    makers = {v.name or "": node.name or v.name for node in a.graph for v in node.outputs if _is_float(v)}
    known = {value.name for node in b.graph for value in node.outputs if _is_float(value)}
    names = [name for name in makers if name in known]
    errors = TensorErrors(a, names, scaled=True)
    with Session(exposed(a, names)) as first, Session(exposed(b, names)) as second:
        for feed in samples:
            errors.add(first.run(feed), second.run(feed))
    return next((makers[name] for name, decibel in errors.sqnr_db().items() if decibel < SAME_DB), None)


def fused_into(model: ir.Model, name: str | None) -> str:
    """The weighted node whose result a node passes on, as an activation function that is fused to it; else itself."""
    node = next((one for one in model.graph if one.name == name), None)
    while node is not None and node.op_type not in WEIGHTED:
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if source is None or node.op_type not in (*FUSED_ACTIVATIONS, "Reshape", "Flatten", "Softmax"):
            return name or ""
        node = source
    return name or "" if node is None else node.name or ""


def computed_by(model: ir.Model, name: str | None) -> str:
    """A node's name, and the weighted node whose result it passes on."""
    weighted = fused_into(model, name)
    return weighted if weighted == (name or "") else f"{name} (of {weighted})"


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
