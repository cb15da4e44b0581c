"""A canonical graph with its table as something that can be trained: quantization-aware training on the graph itself.

Every number that the integer reference would round is rounded here, on the same grid and by the same arithmetic, and
gradients pass through as if nothing had been rounded (Bengio et al. 2013, arXiv:1308.3432). Scales are learnt by their
logarithm (LSQ, Esser et al. 2020, arXiv:1902.08153), zero points stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import UnsupportedOperator
from edgeopt.graph import overflow
from edgeopt.training.graph_operators import mixes_samples, operator
from edgeopt.training.layout import laid_out
from edgeopt.training.program import Op, Program
from edgeopt.training.trainee import LARGEST, Feed

LOW, HIGH = -128, 127
LARGEST_BIAS = 2**31 - 1
SPARSE = 0.2
"""A weight with so large a share of exact zeros was made sparse on purpose: its zeros stay."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training leaves.

    Args:
        constants: weights and biases, float32, by name; cut to what their grid covers.
        weights: name → (integers int8, scale float32).
        biases: name → integers int32.
        scales: activation → scale float32; zero points are as before.
    """

    constants: dict[str, Array]
    weights: dict[str, tuple[Array, Array]]
    biases: dict[str, Array]
    scales: dict[str, Array]


class GraphModule:
    """A trainee; see the module.

    Args:
        program: of ``read_program``.
        learn_until: share of the training during which scales are learnt; after it they are frozen.

    Raises:
        UnsupportedOperator: an operator that is not known here.
    """

    def __init__(self, program: Program, learn_until: float = 0.0) -> None:
        import torch

        self._program, self._learn_until = program, learn_until
        self._functions = {op.kind: _function(op) for op in program.ops}
        self.outputs = program.outputs
        self._constants = {name: torch.from_numpy(np.array(array)) for name, array in program.constants.items()}
        self._weights: dict[str, str] = {}
        self._parameters: dict[str, Any] = {}
        self._masks: dict[str, Any] = {}
        self._pairs: dict[str, Any] = {}  # of nodes whose table is safe from overflow
        self._owner: dict[str, str] = {}
        for op in program.ops:
            if op.kind in ("Conv", "ConvTranspose", "Gemm"):
                self._add(op)
        for group in (*program.groups, *((name,) for name in program.zero_points if name not in self._grouped())):
            key = f"grid.{group[0]}"
            self._parameters[key] = torch.nn.Parameter(torch.zeros(()))
            self._owner.update(dict.fromkeys(group, key))
        self._scales = {name: torch.from_numpy(np.array(scale)) for name, scale in program.scales.items()}
        self._one_by_one = self._mixes()
        self._exposed: dict[str, Any] | None = None
        self._instead: Mapping[str, Any] = {}

    def _grouped(self) -> set[str]:
        return {name for group in self._program.groups for name in group}

    def _add(self, op: Op) -> None:
        import torch

        for index, key in ((1, "weight"), (2, "bias")):
            name = op.inputs[index] if len(op.inputs) > index else ""
            if name:
                value = self._constants.pop(name)
                self._weights[name] = f"{op.name}.{key}"
                self._parameters[f"{op.name}.{key}"] = torch.nn.Parameter(value)
                if key == "weight" and float((value == 0).float().mean()) >= SPARSE:
                    self._masks[f"{op.name}.{key}"] = value != 0
        if op.scheme.startswith("int8"):
            scale = self._program.scales[op.inputs[1]]
            self._parameters[f"{op.name}.scale"] = torch.nn.Parameter(torch.zeros(scale.shape))
            if (columns := self._safe_pairs(op)) is not None:
                self._pairs[op.name] = columns

    def _safe_pairs(self, op: Op) -> Any:
        """Columns that are safe as the table came, and have to stay so (``graph.overflow``); None where some are not.

        The table says by its integers whether it was made so: thousands of pairs are not safe by chance.
        """
        import torch

        weight = self._parameters[f"{op.name}.weight"].detach()
        columns = overflow.pairs(op.kind, tuple(weight.shape), int(op.attributes.get("group", 1)))
        if op.scheme == "int8-weights" or not len(columns):
            return None
        scale, axis = torch.from_numpy(np.array(self._program.scales[op.inputs[1]])), self._program.axes[op.inputs[1]]
        steps = (weight / _along(scale, axis, weight.ndim)).round().flatten(1).numpy()
        return None if overflow.excess(steps, columns).any() else torch.from_numpy(columns)

    def _mixes(self) -> bool:
        shapes = self._program.shapes
        return any(
            mixes_samples(
                op.kind,
                op.attributes,
                [shapes[name] for name in (*op.inputs, *op.outputs) if name in shapes],
            )
            for op in self._program.ops
        )

    # --- as a trainee

    def __call__(self, feed: Feed) -> Feed:
        import torch

        if not self._one_by_one:
            return self._run(feed)
        # A graph that was exported for six rows takes six rows at a time.
        rows = {name: (self._program.shapes[name] or (1,))[0] for name in feed}
        count = min(len(value) // rows[name] for name, value in feed.items())
        results = [
            self._run({name: value[at * rows[name] : (at + 1) * rows[name]] for name, value in feed.items()})
            for at in range(count)
        ]
        return {name: torch.cat([result[name] for result in results]) for name in self.outputs}

    def named_parameters(self) -> Mapping[str, Any]:
        return dict(self._parameters)

    def weighted_layers(self) -> Sequence[str]:
        return [op.name for op in self._program.ops if f"{op.name}.weight" in self._parameters]

    def state(self) -> dict[str, Any]:
        return {name: parameter.data for name, parameter in self._parameters.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[name])

    def train(self, mode: bool) -> None:
        """Nothing here behaves differently in training: BatchNorm was folded with its statistics at the import."""

    def to(self, device: Any) -> None:
        for store in (self._constants, self._scales, self._masks, self._pairs):
            for name, value in store.items():
                # Shapes, indices and axes are read as numbers: they stay where reading them costs nothing.
                store[name] = value.to(device) if store is not self._constants or value.is_floating_point() else value
        for parameter in self._parameters.values():
            parameter.data = parameter.data.to(device)
            parameter.grad = None

    def after_step(self, done: float) -> None:
        import torch

        frozen = done >= self._learn_until
        for name, parameter in self._parameters.items():
            if name.startswith("grid.") or name.endswith(".scale"):
                parameter.requires_grad_(not frozen and not self._is_fixed(name))
        with torch.no_grad():
            for name, mask in self._masks.items():
                self._parameters[name].mul_(mask)

    def _is_fixed(self, key: str) -> bool:
        return any(self._owner.get(name) == key for name in self._program.fixed)

    def first_bad_layer(self, feed: Feed, most: float = LARGEST) -> str | None:
        import torch

        with torch.no_grad(), self.exposing() as seen:
            self(feed)
        for op in self._program.ops:
            for name in op.outputs:
                if name in seen and seen[name].is_floating_point() and not bool((seen[name].abs() <= most).all()):
                    return op.name
        return None

    # --- running

    @contextmanager
    def exposing(self, instead: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Every tensor that is computed, by name, as long as the ``with`` lasts: rounded where it has a grid.

        Args:
            instead: tensors by name that what follows reads in place of what was computed.
        """
        self._exposed, self._instead = {}, instead or {}
        try:
            yield self._exposed
        finally:
            self._exposed, self._instead = None, {}

    def scale(self, name: str) -> Any:
        """Of an activation, as it is now."""
        return self._scales[name] * self._learnt(self._owner[name], 1).exp()

    def _learnt(self, key: str, elements: int) -> Any:
        """Logarithm of what a scale has been multiplied with; its gradient is toned down as LSQ does."""
        parameter = self._parameters[key]
        if not parameter.requires_grad:
            return parameter
        tone = 1.0 / float(elements * HIGH) ** 0.5
        return parameter * tone + (parameter - parameter * tone).detach()

    def _run(self, feed: Feed) -> Feed:
        samples = len(next(iter(feed.values())))
        values: dict[str, Any] = {**self._constants, **{name: laid_out(value) for name, value in feed.items()}}
        for op in self._program.ops:
            given = [values.get(name) for name in op.inputs]
            for index in op.through:
                given[index] = self._round(op.inputs[index], given[index])
            if f"{op.name}.weight" in self._parameters:
                given[1], bias = self._layer(op)
                given[2:] = [bias] if bias is not None else []
            result = self._functions[op.kind](given, op.attributes, samples)
            for index, name in enumerate(op.outputs):
                made = result[index] if isinstance(result, tuple | list) else result
                values[name] = self._round(name, made) if index in op.rounded else made
                if self._exposed is not None:
                    self._exposed[name] = values[name]
                    values[name] = self._instead.get(name, values[name])
        return {name: values[name] for name in self.outputs}

    def _round(self, name: str, value: Any) -> Any:
        scale = self._scales[name] * self._learnt(self._owner[name], value.numel()).exp()
        return on_grid(value.float(), scale, self._program.zero_points[name], LOW, HIGH)

    def _layer(self, op: Op) -> tuple[Any, Any]:
        weight, bias = self._parameters[f"{op.name}.weight"], self._parameters.get(f"{op.name}.bias")
        if not op.scheme.startswith("int8"):
            return weight, bias
        scale = self._weight_scale(op)
        axis = self._program.axes[op.inputs[1]]
        wide = _along(scale, axis, weight.ndim)
        rounded = on_grid(weight, wide, 0, -HIGH, HIGH)
        if op.name in self._pairs:
            # The value of the safe integers, the gradient of the others.
            rounded = self._safe(op, rounded.detach(), wide.detach()) * wide.detach() + (rounded - rounded.detach())
        if bias is None or op.scheme != "int8":
            return rounded, bias
        step = (self.scale(op.inputs[0]) * scale).detach()
        made = bias_integers(bias, step).float() * step
        return rounded, bias + (made - bias).detach()

    def _weight_scale(self, op: Op) -> Any:
        elements = self._parameters[f"{op.name}.weight"].numel()
        return self._scales[op.inputs[1]] * self._learnt(f"{op.name}.scale", elements).exp()

    def _safe(self, op: Op, rounded: Any, wide: Any) -> Any:
        """Float whole numbers: those that ``rounded`` means in steps of ``wide``, every pair of them safe."""
        columns, steps = self._pairs[op.name], (rounded / wide).round()
        rows = steps.flatten(1)
        first, second = rows[:, columns[:, 0]], rows[:, columns[:, 1]]
        over = (first.abs() + second.abs() - overflow.PAIR_LIMIT).clamp(min=0) * (first * second > 0)
        half = (over / 2).floor()
        rows[:, columns[:, 0]] = first - first.sign() * half
        rows[:, columns[:, 1]] = second - second.sign() * (over - half)
        return rows.view_as(steps)

    def trained(self) -> Trained:
        """Integers and scales as the forward pass has them, to the bit; on the CPU."""
        import torch

        constants: dict[str, Array] = {}
        weights: dict[str, tuple[Array, Array]] = {}
        biases: dict[str, Array] = {}
        with torch.no_grad():
            for op in self._program.ops:
                if f"{op.name}.weight" not in self._parameters:
                    continue
                weight, bias = self._parameters[f"{op.name}.weight"], self._parameters.get(f"{op.name}.bias")
                name = op.inputs[1]
                if op.scheme.startswith("int8"):
                    scale = self._weight_scale(op)
                    wide = _along(scale, self._program.axes[name], weight.ndim)
                    free = integers = (weight / wide).round().clamp(-HIGH, HIGH)
                    if op.name in self._pairs:
                        integers = self._safe(op, integers * wide, wide)
                    weights[name] = integers.to(torch.int8).cpu().numpy(), scale.cpu().numpy()
                    weight = torch.minimum(torch.maximum(weight, -HIGH * wide), HIGH * wide)
                    weight = torch.where(integers == free, weight, integers * wide)
                    if bias is not None and op.scheme == "int8":
                        step = self.scale(op.inputs[0]) * scale
                        biases[op.inputs[2]] = bias_integers(bias, step).to(torch.int32).cpu().numpy()
                constants[name] = weight.cpu().numpy()
                if bias is not None:
                    constants[op.inputs[2]] = bias.cpu().numpy()
            scales = {name: self.scale(name).cpu().numpy() for name in self._program.zero_points}
        return Trained(constants, weights, biases, scales)


def on_grid(value: Any, scale: Any, zero_point: int, low: int, high: int) -> Any:
    """The nearest point of the grid, ties to even, as ``QuantParams`` and the runtimes compute it.

    The gradient is that of the clamp alone, as if nothing had been rounded; a scale's is LSQ's.
    """
    return _rounding().apply(value, scale, zero_point, low, high)


@cache
def _rounding() -> Any:
    """One node for the whole of it: written with torch's own operators, it takes three times the passes over memory."""
    import torch

    class OnGrid(torch.autograd.Function):  # type: ignore[misc]  # torch leaves it untyped
        @staticmethod
        def forward(ctx: Any, value: Any, scale: Any, zero_point: int, low: int, high: int) -> Any:
            steps = value / scale
            ctx.save_for_backward(steps)
            ctx.shape, ctx.edges = scale.shape, (low - zero_point, high - zero_point)
            return _whole(steps, *ctx.edges).mul_(scale)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            (steps,), (low, high) = ctx.saved_tensors, ctx.edges
            # Whatever rounds to a point of the grid lets the gradient through; this kernel does it in one pass.
            inside = torch.ops.aten.hardtanh_backward(gradient, steps, low - 0.5, high + 0.5)
            of_scale = None
            if ctx.needs_input_grad[1]:
                # Where a value is inside, the scale gains what rounding added; elsewhere, the edge of the grid.
                gained = _whole(steps, low, high).sub_(steps).mul_(gradient)
                of_scale = gained.addcmul_(gradient - inside, steps).sum_to_size(ctx.shape)
            return inside if ctx.needs_input_grad[0] else None, of_scale, None, None, None

    return OnGrid


def _whole(steps: Any, low: int, high: int) -> Any:
    """Rounded to even and cut, in place but for one tensor: fresh memory costs more than the arithmetic."""
    return steps.round().clamp_(low, high)


def bias_integers(bias: Any, step: Any) -> Any:
    """float64 tensor of whole numbers."""
    return (bias.double() / step.double()).round().clamp(-LARGEST_BIAS, LARGEST_BIAS)


def _along(scale: Any, axis: int | None, rank: int) -> Any:
    if axis is None:
        return scale
    sizes = [1] * rank
    sizes[axis] = -1
    return scale.reshape(sizes)


def _function(op: Op) -> Any:
    found = operator(op.kind)
    if found is None:
        raise UnsupportedOperator(
            f"{op.kind} cannot be trained here",
            where=f"node '{op.name}'",
            hint="Leave out the pass 'qat' for this model, and quantize after training.",
        )
    return found
