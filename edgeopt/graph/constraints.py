"""What a target demands of a quantization, as data. A target declares it, the quantize pass reads all.

The pass always works with the union over **all** targets that edgeopt knows, requested or not, so that the table
does not depend on which targets were asked for: adding a target never changes another's integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FixedOutput:
    """Scale and int8 zero point that a runtime insists on for an operator's output."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Constraints:
    """Conditions of one target (or, united, of several) on the table.

    Args:
        symmetric_activations: zero point 0 for activations. Never unites: a target derives its own parameters from
            the shared ranges.
        equal_scales: ONNX operator types whose activation inputs and outputs share one grid (they move values and
            compute nothing).
        fixed_outputs: operator type → grid of its output.
        symmetric_inputs: operator type → indices of inputs whose zero point must be 0.
    """

    symmetric_activations: bool = False
    equal_scales: frozenset[str] = frozenset()
    fixed_outputs: Mapping[str, FixedOutput] = field(default_factory=dict)
    symmetric_inputs: Mapping[str, frozenset[int]] = field(default_factory=dict)


def unite(all_constraints: Iterable[Constraints]) -> Constraints:
    """The union; two targets that fix one operator's output differently cannot be served by one table: ValueError."""
    equal: frozenset[str] = frozenset()
    fixed: dict[str, FixedOutput] = {}
    symmetric: dict[str, frozenset[int]] = {}
    for constraints in all_constraints:
        equal |= constraints.equal_scales
        for op, output in constraints.fixed_outputs.items():
            if fixed.setdefault(op, output) != output:
                raise ValueError(f"targets fix the output of {op} differently: {fixed[op]} and {output}")
        for op, inputs in constraints.symmetric_inputs.items():
            symmetric[op] = symmetric.get(op, frozenset()) | inputs
    return Constraints(False, equal, fixed, symmetric)
