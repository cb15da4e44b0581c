"""Whole attention heads: blocks whose heads can be cut, as they stand in users' code.

A block is a module that carries its number of heads as an attribute, projects with linear layers of its own (one for
queries, keys and values together, or three) and has one linear layer behind the heads. Whether cutting keeps what the
other heads compute is shown on the module itself, as for every group of channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

COUNTS = ("num_heads", "heads", "n_heads", "n_head", "num_attention_heads")
"""What code calls the number of heads."""
WIDTHS = ("attn_dim", "inner_dim", "inner_size", "all_head_size")
"""What code calls the width of all heads together; it goes down with their number."""
FUSED = 3
_QUERY, _KEY, _VALUE = "query", "key", "value"
_ROLES = {
    name: role
    for role, names in {
        _QUERY: ("q", "query", "q_proj", "to_q", "wq", "q_lin", "query_proj"),
        _KEY: ("k", "key", "k_proj", "to_k", "wk", "k_lin", "key_proj"),
        _VALUE: ("v", "value", "v_proj", "to_v", "wv", "v_lin", "value_proj"),
    }.items()
    for name in names
}


@dataclass(frozen=True)
class Heads:
    """The heads of one block.

    Args:
        block: name of its module.
        attribute: what it calls their number.
        projections: the layer that writes queries, keys and values, or the three that do, in this order.
        output: the layer behind the heads.
        count: how many there are.
        width: channels of one.
    """

    block: str
    attribute: str
    projections: tuple[str, ...]
    output: str
    count: int
    width: int

    def cut(self, modules: Mapping[str, Any], heads: Sequence[int]) -> None:
        """Remove heads by number, in place: rows of the projections, columns behind them, and the numbers."""
        from torch_pruning import function

        for name in self.projections:
            function.prune_linear_out_channels(modules[name], self._rows(modules[name], heads))
        function.prune_linear_in_channels(modules[self.output], self._columns(heads))
        block, left = modules[self.block], self.count - len(heads)
        for name in WIDTHS:
            if vars(block).get(name) == self.count * self.width:
                setattr(block, name, left * self.width)
        setattr(block, self.attribute, left)

    def silence(self, modules: Mapping[str, Any], heads: Sequence[int]) -> None:
        """Let nothing read these heads, in place."""
        import torch

        modules[self.output].weight.index_fill_(1, torch.tensor(self._columns(heads)), 0.0)

    def lost(self, modules: Mapping[str, Any], heads: int) -> Iterator[tuple[str, int, int]]:
        """(Layer, inputs, outputs) that go with so many heads."""
        for name in self.projections:
            yield name, 0, modules[name].out_features // self.count * heads
        yield self.output, heads * self.width, 0

    def scores(self, modules: Mapping[str, Any], importance: str) -> npt.NDArray[np.float64] | None:
        """(heads,) importance of all weights that go with a head, mean 1; None where this kind says nothing of them."""
        import torch

        if importance == "random":
            values = torch.rand(self.count, dtype=torch.float64)
        elif importance in ("l1", "l2", "taylor"):
            values = sum(
                _magnitude(modules[name].weight, importance).reshape(-1, self.count, self.width).sum((0, 2))
                for name in self.projections
            ) + _magnitude(modules[self.output].weight.t(), importance).reshape(self.count, self.width).sum(1)
        else:
            return None
        found: npt.NDArray[np.float64] = values.numpy()
        return found / max(float(found.mean()), 1e-30)

    def _rows(self, projection: Any, heads: Sequence[int]) -> list[int]:
        whole = self.count * self.width
        return [start + column for start in range(0, projection.out_features, whole) for column in self._columns(heads)]

    def _columns(self, heads: Sequence[int]) -> list[int]:
        return [head * self.width + at for head in sorted(heads) for at in range(self.width)]


def _magnitude(weight: Any, importance: str) -> Any:
    """float64 (rows,): of each row, as torch-pruning has it for groups."""
    weight, gradient = weight.detach().double(), weight.grad
    if importance == "taylor":
        return (weight * (0 if gradient is None else gradient.double())).abs().sum(1)
    return weight.abs().pow(1 if importance == "l1" else 2).sum(1)


def find_heads(module: Any) -> list[Heads]:
    """All blocks of a module that look like attention, in the module's order."""
    import torch

    found = []
    for block, inner in module.named_modules():
        attribute = next((name for name in COUNTS if type(vars(inner).get(name)) is int), None)
        if attribute is None or isinstance(inner, torch.nn.MultiheadAttention):
            continue  # torch's own block ties the width of its heads to its input: they cannot go
        count = vars(inner)[attribute]
        layers = {name: layer for name, layer in inner.named_children() if isinstance(layer, torch.nn.Linear)}
        projections = _projections(layers)
        behind = [name for name in layers if name not in projections]
        if not projections or len(behind) != 1:
            continue
        width = layers[behind[0]].in_features
        whole = width * FUSED if len(projections) == 1 else width
        if width % count or any(layers[name].out_features != whole for name in projections):
            continue
        path = f"{block}." if block else ""
        names = tuple(path + name for name in projections)
        found.append(Heads(block, attribute, names, path + behind[0], count, width // count))
    return found


def _projections(layers: Mapping[str, Any]) -> list[str]:
    by_role = {_ROLES[name.lower()]: name for name in layers if name.lower() in _ROLES}
    if set(by_role) == {_QUERY, _KEY, _VALUE}:
        return [by_role[role] for role in (_QUERY, _KEY, _VALUE)]
    wide = [name for name, layer in layers.items() if layer.out_features % FUSED == 0 and "qkv" in name.lower()]
    return wide[:1]
