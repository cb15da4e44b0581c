"""What a written package really holds: precision of every operator, how weights are stored, what is left over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgeopt.errors import TargetError
from edgeopt.graph.placement import MOVERS, WEIGHTED
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.runtimes.mil_reference import program as mil
from edgeopt.runtimes.mil_reference.package import read
from edgeopt.types import Realised

WEIGHTED_TYPES = frozenset({"conv", "conv_transpose", "linear"})
MOVER_TYPES = frozenset(
    {"reshape", "transpose", "squeeze", "expand_dims", "concat", "split", "slice_by_index", "slice_by_size", "gather",
     "gather_along_axis", "pad", "tile", "identity", "reverse", "depth_to_space", "pixel_shuffle", "space_to_depth",
     "upsample_nearest_neighbor", "max_pool", "cast", "quantize", "dequantize", "select"}
)  # fmt: skip
"""Operators that compute nothing, or only change a value's form."""
INT8_KERNELS = WEIGHTED_TYPES | {
    "matmul", "add", "sub", "mul", "relu", "relu6", "clip", "avg_pool", "reduce_mean", "sigmoid", "tanh", "silu",
    "gelu", "sigmoid_hard", "leaky_relu", "elu", "softplus", "minimum", "maximum", "square", "upsample_bilinear",
    "resize_bilinear",
}  # fmt: skip
"""Operators that read integers through dequantize and write them through quantize: what a compute unit may fuse."""


def realised(path: Path, graph: QuantizedGraph) -> Realised:
    """Read a written package back.

    An operator counts as int8 where everything that it computes with comes from integers through ``dequantize``, or
    from a chain of operators that does: the form that Core ML defines for it.

    Raises:
        TargetError: the package is broken.
    """
    try:
        package = read(path)
    except ValueError as error:
        raise TargetError(f"the package cannot be read back: {error}", where=str(path)) from error
    found = _Program(package)
    int8: Counter[str] = Counter()
    floats: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for operation in found.operations:
        if operation.type == "const":
            continue
        if operation.type.startswith("constexpr_") or operation.type in MOVER_TYPES or not found.computes(operation):
            other[operation.type] += 1
        elif found.is_int8(operation):
            int8[operation.type] += 1
        else:
            floats[operation.type] += 1
    return Realised(
        int8_ops=dict(sorted(int8.items())),
        float_ops=dict(sorted(floats.items())),
        other_ops=dict(sorted(other.items())),
        leftovers=_leftovers(found, graph),
        unasked_float=_unasked_float(found, graph),
    )


class _Program:
    """The main function, with what makes each variable."""

    def __init__(self, package: mil.Package) -> None:
        self.metadata: Mapping[str, str] = package.metadata.user_defined
        self.operations = tuple(mil.operations(package.main.block))
        self.producers = {output.name: operation for operation in self.operations for output in operation.outputs}
        self._from_integers: dict[str, bool] = {}
        for operation in self.operations:
            # In file order, so what an operator reads is known before it.
            state = operation.type == "dequantize" or (
                self._fuses(operation) and self._reads_integers(operation) and operation.type != "quantize"
            )
            self._from_integers.update({output.name: state for output in operation.outputs})

    def is_int8(self, operation: mil.Operation) -> bool:
        return operation.type in INT8_KERNELS and self._from_integers[operation.outputs[0].name]

    def computes(self, operation: mil.Operation) -> bool:
        """Whether it makes real numbers of real numbers; comparisons and indices are something else."""
        kind = operation.outputs[0].type
        return isinstance(kind, mil.TensorType) and kind.dtype in ("float16", "float32")

    def compressed(self, operation: mil.Operation) -> str | None:
        """Operator that stores the weight of a weighted one, or None if it is plain."""
        arguments = operation.inputs.get("weight", ())
        reference = arguments[0] if arguments else None
        producer = self.producers.get(reference.name) if isinstance(reference, mil.Reference) else None
        return producer.type if producer is not None and producer.type.startswith("constexpr_") else None

    def _fuses(self, operation: mil.Operation) -> bool:
        return operation.type in INT8_KERNELS or operation.type in MOVER_TYPES

    def _reads_integers(self, operation: mil.Operation) -> bool:
        """Whether all that is computed comes from integers; constants may be anything but a plain weight."""
        if operation.type in WEIGHTED_TYPES and self.compressed(operation) is None:
            return False
        read = [
            argument.name
            for key, arguments in operation.inputs.items()
            if key not in ("weight", "bias")
            for argument in arguments
            if isinstance(argument, mil.Reference) and not self._is_constant(argument.name)
        ]
        return bool(read) and all(self._from_integers.get(name, False) for name in read)

    def _is_constant(self, name: str) -> bool:
        producer = self.producers.get(name)
        return producer is not None and (producer.type == "const" or producer.type.startswith("constexpr_"))


def _leftovers(found: _Program, graph: QuantizedGraph) -> tuple[str, ...]:
    """Movement that the source did not ask for, and casts between precisions inside the program."""
    asked = sum(node.op_type in ("Transpose", *MOVERS) for node in graph.model.graph)
    transposes = sum(operation.type == "transpose" for operation in found.operations)
    texts = [f"transpose x{transposes - asked}: beyond what the source asks for"] if transposes > asked else []
    table = graph.quantization or Quantization()
    stored = json.loads(found.metadata.get("edgeopt.weights", "{}"))
    plain = [
        node.name or ""
        for node in graph.model.graph
        if node.op_type in WEIGHTED
        and table.scheme(node).endswith("-weights")
        and node.inputs[1] is not None
        and _stored_type(found, stored, node.inputs[1].name) is None
    ]
    if plain:
        texts.append(f"plain weights although compressed ones were asked: {', '.join(plain)}")
    return tuple(texts)


def _stored_type(found: _Program, stored: Mapping[str, str], weight: str | None) -> str | None:
    producer = found.producers.get(stored.get(weight or "", ""))
    return producer.type if producer is not None and producer.type.startswith("constexpr_") else None


def _unasked_float(found: _Program, graph: QuantizedGraph) -> tuple[str, ...]:
    """Names of nodes with weights, and products of activations, that the table has in int8 and the file in float."""
    table = graph.quantization
    if table is None:
        return ()
    stored = json.loads(found.metadata.get("edgeopt.weights", "{}"))
    readers: dict[str, mil.Operation] = {}
    for operation in found.operations:
        for arguments in operation.inputs.values():
            for argument in arguments:
                if isinstance(argument, mil.Reference):
                    readers.setdefault(argument.name, operation)
    tensors = json.loads(found.metadata.get("edgeopt.tensors", "{}"))
    missing = []
    for node in graph.model.graph:
        if table.scheme(node) != "int8":
            continue
        if node.op_type in WEIGHTED and node.inputs[1] is not None:
            reader = readers.get(stored.get(node.inputs[1].name or "", ""))
            if reader is None or not found.is_int8(reader):
                missing.append(node.name or "")
        elif node.op_type == "MatMul":
            read = [tensors.get(value.name or "") for value in node.inputs if value is not None]
            made = [pair for pair in read if pair is not None and pair[1] in found.producers]
            if len(made) != len(node.inputs) or any(found.producers[p[1]].type != "dequantize" for p in made):
                missing.append(node.name or "")
    return tuple(missing)
