"""What is publicly known to keep a model, or parts of it, off Apple's Neural Engine, or to make it slow there.

Core ML decides by itself at load time, and differently by device and system: these are warnings, each with its source,
and no verdict. On a Mac, ``MLComputePlan`` tells what was decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeopt.runtimes.mil_reference.inspection import Program
from edgeopt.runtimes.mil_reference.program import Operation, TensorType

UNOFFICIAL = "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md"
TRANSFORMERS = "https://machinelearning.apple.com/research/neural-engine-transformers"
CONVOLUTIONS = ("conv", "conv_transpose")
MATRIX = ("linear", "matmul", "einsum", "scaled_dot_product_attention")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        id: of the rule.
        text: what is known.
        source: where it is published.
        where: operators or inputs that it is about.
    """

    id: str
    text: str
    source: str
    where: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """``applies`` names the operators or inputs that the rule is about."""

    id: str
    text: str
    source: str
    applies: Callable[[Program], Iterator[str]]


def _shape(operation: Operation) -> tuple[int | None, ...]:
    kind = operation.outputs[0].type if operation.outputs else None
    return kind.shape or () if isinstance(kind, TensorType) else ()


def _float32(program: Program) -> Iterator[str]:
    for one in program.computing():
        if one.type not in ("cast", "classify", "quantize", "dequantize") and program.precision(one) == "float32":
            yield one.name


def _gathers(program: Program) -> Iterator[str]:
    return (one.name for one in program.computing() if one.type.startswith(("gather", "scatter")))


def _recurrent(program: Program) -> Iterator[str]:
    return (one.name for one in program.computing() if one.type in ("lstm", "gru", "rnn"))


def _dilated(program: Program) -> Iterator[str]:
    for one in program.computing():
        dilations = program.parameter(one, "dilations") if one.type in CONVOLUTIONS else None
        if dilations is not None and (np.asarray(dilations.value) > 1).any():
            yield one.name


def _ranges(program: Program) -> Iterator[str]:
    for feature in program.function.features_in:
        if any(low != high for low, high in feature.ranges):
            yield feature.name


def _sequences(program: Program) -> Iterator[str]:
    for one in program.computing():
        if one.type in MATRIX and len(_shape(one)) == 3:
            yield one.name


def _thin(program: Program) -> Iterator[str]:
    for one in program.computing():
        shape = _shape(one)
        if len(shape) == 4 and shape[3] == 1 and (shape[2] or 0) > 1:
            yield one.name


MANY_MOVES = 8
"""A few reshapes end every classifier; this many move data between layers."""


def _moves(program: Program) -> Iterator[str]:
    found = [one.name for one in program.computing() if one.type in ("reshape", "transpose")]
    yield from found if len(found) >= MANY_MOVES else ()


def _int8(program: Program) -> Iterator[str]:
    for one in program.computing():
        if one.type not in ("quantize", "dequantize") and program.precision(one) == "int8":
            yield one.name


RULES = (
    Rule(
        "float32",
        "computes in float32: such operators run on the GPU or the CPU, as the Neural Engine takes float16",
        "https://apple.github.io/coremltools/docs-guides/source/typed-execution-example.html",
        _float32,
    ),
    Rule(
        "range-shapes",
        "has open sizes in a range: the Neural Engine is used for the default size alone; list the sizes instead",
        "https://developer.apple.com/forums/thread/724930",
        _ranges,
    ),
    Rule("gather", "gathers or scatters, which is reported not to run on the Neural Engine", UNOFFICIAL, _gathers),
    Rule("recurrent", "is recurrent, which is reported not to run on the Neural Engine", UNOFFICIAL, _recurrent),
    Rule("dilation", "has dilations, which are reported not to run on the Neural Engine", UNOFFICIAL, _dilated),
    Rule(
        "sequence-layout",
        "works on (batch, sequence, channels): the Neural Engine wants (batch, channels, 1, sequence), and 1×1"
        " convolutions in the place of linear layers",
        TRANSFORMERS,
        _sequences,
    ),
    Rule(
        "last-axis",
        "makes a tensor whose last axis is 1: that axis is padded to 64 bytes, 32 times the memory in float16",
        TRANSFORMERS,
        _thin,
    ),
    Rule(
        "moves",
        "reshapes or transposes: many of these cost memory copies on the Neural Engine",
        TRANSFORMERS,
        _moves,
    ),
    Rule(
        "int8-activations",
        "computes on int8 activations: faster on the Neural Engine from A17 Pro and M4 on, but slower on CPU and GPU",
        "https://apple.github.io/coremltools/docs-guides/source/opt-quantization-perf.html",
        _int8,
    ),
)


def warnings(program: Program) -> list[Finding]:
    """Every rule that applies, in the rules' order."""
    found = [(rule, tuple(rule.applies(program))) for rule in RULES]
    return [Finding(rule.id, rule.text, rule.source, where) for rule, where in found if where]


def as_json(finding: Finding) -> dict[str, Any]:
    return {
        "about": "Neural Engine", "id": finding.id, "text": finding.text, "source": finding.source,
        "where": list(finding.where),
    }  # fmt: skip
