"""What a written TFLite file really holds: precision of every operator, leftovers, the delegate's partitions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgeopt.errors import TargetError
from edgeopt.formats import tflite
from edgeopt.graph.placement import WEIGHTED, fused_activation
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.targets.tflite.emit import INTEGERS_SUFFIX
from edgeopt.types import Realised

LUT_OPS = frozenset(
    {
        "HARD_SWISH", "LOGISTIC", "TANH", "GELU", "RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "EXP", "LOG",
        "SQRT", "RSQRT", "ABS", "NEG", "SQUARE", "FLOOR", "CEIL", "ROUND", "ADD", "SUB", "MUL", "DIV", "MAXIMUM",
        "MINIMUM",
    }
)  # fmt: skip
"""Elementwise operators: a chain of them on one 8-bit variable is one table of 256 values in XNNPACK."""
ASKS_TRANSPOSE = frozenset({"Transpose", "Gather", "DepthToSpace", "Slice"})
"""Operators of the source that can ask for a transposition: a shuffle of channels is one, however it is written."""
BEHIND = tflite.CONVERSIONS | {"SLICE", "RESHAPE", "MAXIMUM", "MINIMUM"}
"""What the writer can put behind a weighted operator to finish its result."""


def realised(path: Path, graph: QuantizedGraph) -> Realised:
    """Read a written file back.

    Raises:
        ModelError: the file is broken.
        TargetError: LiteRT does not load it.
    """
    from edgeopt.runtimes import litert

    model = tflite.read(path)
    try:
        with litert.Session(path) as session:
            partitions = session.partitions()
            outside = session.undelegated()
    except ValueError as error:
        raise TargetError(f"LiteRT does not load the file: {error}", where=str(path)) from error
    tables, islands = _islands(model, graph)
    int8_ops: Counter[str] = Counter()
    float_ops: Counter[str] = Counter()
    other_ops: Counter[str] = Counter()
    for index, operator in enumerate(model.operators):
        kind = tflite.precision(model, operator)
        if operator.code in tflite.MOVERS | tflite.CONVERSIONS:
            other_ops[operator.code] += 1
        elif kind in ("int8", "int8-dynamic") or index in tables:
            int8_ops[operator.code] += 1
        else:
            float_ops[operator.code] += 1
    return Realised(
        int8_ops=dict(int8_ops),
        float_ops=dict(float_ops),
        other_ops=dict(other_ops),
        leftovers=(*_transposes(model, graph), *islands, *_undelegated(outside)),
        partitions=partitions,
        unasked_float=_unasked_float(model, graph),
    )


def _transposes(model: tflite.Model, graph: QuantizedGraph) -> tuple[str, ...]:
    """TRANSPOSE operators beyond those that the source asks for, inputs' and outputs' own apart."""
    boundary = _boundary(model)
    found = [
        operator
        for operator in model.operators
        if operator.code == "TRANSPOSE" and not boundary.intersection((operator.inputs[0], operator.outputs[0]))
    ]
    asked = sum(node.op_type == "Transpose" for node in graph.model.graph)
    shuffles = {node.name for node in graph.model.graph if node.op_type in ASKS_TRANSPOSE - {"Transpose"}}
    names = [model.tensors[operator.outputs[0]].name for operator in found]
    # What the writer makes between operators is named after the node that it was made for.
    rest = [name for name in names if name.partition("/")[0] not in shuffles]
    return tuple(f"TRANSPOSE {name}" for name in rest[asked:])


def _boundary(model: tflite.Model) -> set[int]:
    """Inputs and outputs, and what is only they converted or reshaped."""
    passing = ("QUANTIZE", "DEQUANTIZE", "RESHAPE")
    boundary = set(model.inputs) | set(model.outputs)
    for operator in model.operators:
        if operator.code in passing and operator.inputs[0] in boundary and operator.inputs[0] not in model.outputs:
            boundary.update(operator.outputs)
    for operator in reversed(model.operators):
        if operator.code in passing and operator.outputs[0] in boundary and operator.outputs[0] not in model.inputs:
            boundary.add(operator.inputs[0])
    return boundary


def _islands(model: tflite.Model, graph: QuantizedGraph) -> tuple[set[int], tuple[str, ...]]:
    """Operators inside chains that become a table, and other float stretches that the table wants in int8."""
    table = graph.quantization
    asked = {
        output.name
        for node in graph.model.graph
        if table is not None and table.scheme(node) == "int8"
        for output in node.outputs
    }
    producers, consumers = model.producers(), model.consumers()
    tables: set[int] = set()
    islands: list[str] = []
    for operator in model.operators:
        if operator.code != "QUANTIZE" or model.tensors[operator.inputs[0]].dtype != "float32":
            continue
        inside, starts = _stretch(model, operator.inputs[0], producers)
        name = model.tensors[operator.outputs[0]].name
        if inside is None:
            continue  # reaches a float input of the model: no island
        is_table = (
            len(starts) == 1
            and all(model.operators[i].code in LUT_OPS for i in inside)
            and all(len(consumers[t]) == 1 for t in (*starts, *(o for i in inside for o in model.operators[i].outputs)))
        )
        if is_table:
            tables |= inside
        elif name.removesuffix(INTEGERS_SUFFIX) in asked:
            islands.append(f"float between integers, up to {name}")
    return tables, tuple(islands)


def _stretch(model: tflite.Model, tensor: int, producers: dict[int, int]) -> tuple[set[int] | None, set[int]]:
    """Float operators from ``tensor`` back to DEQUANTIZE of computed integers, and the float tensors there.

    None where the way back reaches an input of the model or does not end: that is float by intent.
    """
    inside: set[int] = set()
    starts: set[int] = set()
    waiting = [tensor]
    while waiting:
        current = waiting.pop()
        if model.tensors[current].data is not None:
            continue
        index = producers.get(current)
        if index is None or len(inside) > 16:
            return None, starts
        operator = model.operators[index]
        if operator.code == "DEQUANTIZE":
            source = model.tensors[operator.inputs[0]]
            if source.data is None:
                starts.add(current)
            continue
        if index not in inside:
            inside.add(index)
            waiting.extend(i for i in operator.inputs if i >= 0)
    return inside, starts


def _undelegated(outside: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{code} ×{count} outside the delegate" for code, count in Counter(outside).items())


def _unasked_float(model: tflite.Model, graph: QuantizedGraph) -> tuple[str, ...]:
    """Names of nodes with weights that the table has in int8 and the file computes in float."""
    table = graph.quantization
    if table is None:
        return ()
    producers = model.producers()
    missing: list[str] = []
    for node in graph.model.graph:
        if node.op_type not in WEIGHTED or table.scheme(node) != "int8":
            continue
        behind = fused_activation(node)
        values = [node.outputs[0].name or "", *([behind.outputs[0].name or ""] if behind is not None else [])]
        indices = [tflite.integers_of(model, name) for name in values]
        if not any(index is not None and _is_integer_kernel(model, producers.get(index)) for index in indices):
            missing.append(node.name or values[0])
    return tuple(missing)


def _is_integer_kernel(model: tflite.Model, index: int | None) -> bool:
    """Whether the operator computes with weights on integers; a cut, reshape or table behind it aside."""
    while index is not None:
        operator = model.operators[index]
        if operator.code in tflite.WEIGHTED:
            return tflite.precision(model, operator) == "int8"
        if operator.code not in BEHIND:
            return False
        index = model.producers().get(operator.inputs[0])
    return False
