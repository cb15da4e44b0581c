"""How targets that write operator by operator refuse one: the same words for every format, before any work."""

from __future__ import annotations

from collections.abc import Callable, Container

import onnx_ir as ir

from edgeopt.errors import UnsupportedOperator
from edgeopt.graph.model import place


def unwritable(node: ir.Node, form: str, reason: str) -> UnsupportedOperator:
    """The error: the node's name, type and, where it is known, the user's source line.

    Args:
        node: of the graph.
        form: such as ``TFLite``.
        reason: in words.
    """
    return UnsupportedOperator(
        f"operator {node.op_type} cannot be written to {form}: {reason}",
        where=place(node),
        hint="Write it in other operators, or move it out of the model, before or behind it on the device.",
    )


def unknown(node: ir.Node, table: Container[str], operators: str) -> str | None:
    """Why there is nothing in the table for a node, in words; None if there is. ``operators``: such as ``MIL``."""
    if node.domain not in ("", "ai.onnx"):
        return f"it is of the domain {node.domain}"
    return None if node.op_type in table else f"no {operators} operators are known for it"


def unfit(node: ir.Node, check: Callable[[ir.Node], str | None] | None) -> str | None:
    """What about a node cannot be lowered, in words; None if all can."""
    reason = None if check is None else check(node)
    return None if reason is None else f"it has {reason}"


def uncanonical_gemm(node: ir.Node) -> str | None:
    """What a Gemm has that the canonical form rewrites, and no target writes."""
    if node.attributes.get_int("transA", 0) or not node.attributes.get_int("transB", 0):
        return "transA or a weight that is not (outputs, inputs)"
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "alpha or beta other than 1"
    return None
