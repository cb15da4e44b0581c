"""A canonical graph and its table as plain data, which torch alone can run: no ONNX library is needed to train it.

Which input of which operator is read through a grid, and which output is rounded, is decided here, by the rules that
``graph.quantization`` states and ``graph.qdq`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeopt.graph.quantization import Quantization

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Op:
    """One node.

    Args:
        kind: ONNX operator type.
        name: of the node.
        inputs: value names; empty where an input is left out.
        outputs: value names.
        attributes: numbers, strings and lists of them.
        through: indices of inputs that are read through their grid although their producer is float.
        rounded: indices of outputs that are integers.
        scheme: of a weighted operator.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    through: tuple[int, ...] = ()
    rounded: tuple[int, ...] = ()
    scheme: str = "fp32"


@dataclass(frozen=True, eq=False)
class Program:
    """A graph.

    Args:
        ops: in topological order.
        inputs, outputs: value names.
        shapes: value name → static shape.
        constants: value name → array; weights and biases are among them.
        scales, zero_points: of the tensors that have a grid; zero points may be absent where scales are per channel.
        axes: weight → axis of its scales, or None.
        groups: tensors that share one grid.
        fixed: tensors whose grid is given.
    """

    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Array]
    scales: dict[str, Array]
    zero_points: dict[str, int]
    axes: dict[str, int | None]
    groups: tuple[tuple[str, ...], ...] = ()
    fixed: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """As one npz: arrays, and a JSON document of everything else."""
        text = {
            "ops": [asdict(op) for op in self.ops],
            "inputs": self.inputs,
            "outputs": self.outputs,
            "shapes": self.shapes,
            "zero_points": self.zero_points,
            "axes": self.axes,
            "groups": self.groups,
            "fixed": self.fixed,
        }
        arrays = {f"c/{name}": array for name, array in self.constants.items()}
        arrays |= {f"s/{name}": array for name, array in self.scales.items()}
        np.savez(path, allow_pickle=False, json=np.frombuffer(json.dumps(text).encode(), np.uint8), **arrays)

    @classmethod
    def load(cls, path: Path) -> Program:
        with np.load(path, allow_pickle=False) as stored:
            text = json.loads(stored["json"].tobytes())
            arrays = {name: stored[name] for name in stored.files if name != "json"}
        ops = tuple(
            Op(
                op["kind"],
                op["name"],
                tuple(op["inputs"]),
                tuple(op["outputs"]),
                op["attributes"],
                tuple(op["through"]),
                tuple(op["rounded"]),
                op["scheme"],
            )
            for op in text["ops"]
        )
        return cls(
            ops=ops,
            inputs=tuple(text["inputs"]),
            outputs=tuple(text["outputs"]),
            shapes={name: tuple(sizes) for name, sizes in text["shapes"].items()},
            constants={name[2:]: array for name, array in arrays.items() if name[:2] == "c/"},
            scales={name[2:]: array for name, array in arrays.items() if name[:2] == "s/"},
            zero_points=text["zero_points"],
            axes=text["axes"],
            groups=tuple(tuple(group) for group in text["groups"]),
            fixed=tuple(text["fixed"]),
        )


def read_program(model: ir.Model, table: Quantization | None, equal_scales: frozenset[str] = frozenset()) -> Program:
    """The program of a canonical graph.

    Args:
        model: canonical float graph.
        table: its scales and integers; None: float.
        equal_scales: operators, besides movers, whose inputs and outputs share one grid.
    """
    from edgeopt.graph.model import shape
    from edgeopt.graph.placement import WEIGHTED, activation_inputs
    from edgeopt.graph.quantization import Quantization

    table = table or Quantization()
    constants: dict[str, Array] = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        constants[name] = value.const_value.numpy()
    ops, shapes = [], dict[str, tuple[int, ...]]()
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        shapes[value.name or ""] = shape(value)
    for node in model.graph:
        scheme = table.scheme(node)
        through, rounded = [], []
        if scheme == "int8":
            read = activation_inputs(node)
            for index, given in enumerate(node.inputs):
                if given is None or given not in read or given.name not in table.activations:
                    continue
                producer = given.producer()
                if producer is None or table.scheme(producer) != "int8":
                    through.append(index)
            rounded = [i for i, value in enumerate(node.outputs) if value.name in table.activations]
        ops.append(
            Op(
                node.op_type,
                node.name or "",
                tuple((value and value.name) or "" for value in node.inputs),
                tuple(value.name or "" for value in node.outputs),
                {key: _plain(attribute.value) for key, attribute in node.attributes.items()},
                tuple(through),
                tuple(rounded),
                scheme if node.op_type in WEIGHTED else "fp32",
            )
        )
    return Program(
        ops=tuple(ops),
        inputs=tuple(value.name or "" for value in model.graph.inputs),
        outputs=tuple(value.name or "" for value in model.graph.outputs),
        shapes=shapes,
        constants=_start(constants, ops, table),
        scales={
            **{name: params.scale for name, params in table.activations.items()},
            **{name: weight.params.scale for name, weight in table.weights.items()},
        },
        zero_points={name: int(params.zero_point) for name, params in table.activations.items()},
        axes={name: weight.params.axis for name, weight in table.weights.items()},
        groups=_groups(ops, table, equal_scales),
        fixed=tuple(name for name, label in table.labels.items() if label == "fixed"),
    )


def _start(constants: Mapping[str, Array], ops: list[Op], table: Quantization) -> dict[str, Array]:
    """Constants with weights and biases as the table's integers mean them: a training starts from its best guess."""
    found = dict(constants)
    for op in ops:
        if op.scheme == "fp32" or len(op.inputs) < 2 or op.inputs[1] not in table.weights:
            continue
        x, w, b = (*op.inputs, "")[:3]
        weight = table.weights[w]
        found[w] = weight.dequantize()
        if b in table.biases:
            step = np.asarray(table.activations[x].scale * weight.params.scale, np.float32)
            found[b] = (table.biases[b].astype(np.float32) * step).astype(np.float32)
    return found


def _groups(ops: list[Op], table: Quantization, equal_scales: frozenset[str]) -> tuple[tuple[str, ...], ...]:
    from edgeopt.graph.placement import MOVERS

    owner = {name: name for name in table.activations}

    def find(name: str) -> str:
        while owner[name] != name:
            name = owner[name]
        return name

    for op in ops:
        if op.kind not in MOVERS and op.kind not in equal_scales:
            continue
        members = [name for name in (*op.inputs, *op.outputs) if name in owner]
        if op.rounded and members:
            for name in members[1:]:
                owner[find(name)] = find(members[0])
    sets: dict[str, list[str]] = {}
    for name in table.activations:
        sets.setdefault(find(name), []).append(name)
    return tuple(tuple(members) for members in sets.values() if len(members) > 1)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
