"""Which channels belong together, what they are worth, and cutting them out: dependency groups (Fang et al. 2023,
"DepGraph", arXiv:2301.12900) by torch-pruning.

A group is only touched if cutting it is *shown* to be right on the module itself: with the weights that read some of
its channels set to zero, the outputs must stay the same when those channels are cut. That finds what no list of
operators does: paddings of the channel axis, reshapes into heads, shuffles, statistics over channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import MissingPackage, ModelError
from edgeopt.training.cost import Layer
from edgeopt.training.heads import find_heads
from edgeopt.training.trainee import Feed, ModuleTrainee

SAME = 1e-4
"""Relative to the outputs' largest value: float32 sums in another order stay far below."""


@dataclass(frozen=True, eq=False)
class Channels:
    """One group of channels that can only be cut together.

    Args:
        root: name of the layer that writes them, or of the attention block.
        count: how many there are.
        stride: channels ``i``, ``i + stride``, … are cut together (grouped convolutions); ``count`` where none are.
            Of an attention block: its number of heads.
        scores: (stride,) importance; mean 1.
        are_heads: whether what is cut are whole heads, called by their number.
    """

    root: str
    count: int
    stride: int
    scores: npt.NDArray[np.float64]
    are_heads: bool = False

    def members(self, chosen: Sequence[int]) -> list[int]:
        """Channel numbers of chosen positions; of heads, their own numbers."""
        if self.are_heads:
            return sorted(chosen)
        return sorted(at + start for at in chosen for start in range(0, self.count, self.stride))


@dataclass(frozen=True)
class LeftAlone:
    """A layer whose channels are not cut, and why."""

    layer: str
    why: str


class Graph:
    """The dependency graph of a module, for cutting. The module is changed in place.

    Args:
        model: the module.
        example: inputs of one sample.
        ignored: names of layers whose output channels stay.

    Raises:
        MissingPackage: torch-pruning is not installed.
        ModelError: the module cannot be traced.
    """

    def __init__(self, model: ModuleTrainee, example: Feed, ignored: frozenset[str]) -> None:
        try:
            import torch_pruning
        except ImportError as error:
            raise MissingPackage("torch_pruning", "torch", "pruning") from error
        self._tp, self._model, self._example, self._ignored = torch_pruning, model, example, ignored
        self._modules = dict(model.module.named_modules())
        self._names = {inner: name for name, inner in self._modules.items()}
        self._heads = {heads.block: heads for heads in find_heads(model.module)}
        self.left_alone: list[LeftAlone] = []
        model.train(False)
        for parameter in model.module.parameters():
            parameter.requires_grad_(True)  # the graph is read from what autograd records
        try:
            self._graph = torch_pruning.DependencyGraph().build_dependency(
                model.module,
                example_inputs=dict(example),
                forward_fn=lambda module, feed: list(model(feed).values()),
                verbose=False,  # what it warns of is tried here, group by group: _keeps_the_function
            )
        except Exception as error:  # the user's forward and the tracer raise what they like
            raise ModelError(
                f"the model's channels cannot be traced: {type(error).__name__}: {error}",
                where="passes.prune",
                hint="Its forward must be made of torch operations on tensors, without a choice by their values.",
            ) from error

    def groups(self, importance: str, seed: int) -> list[Channels]:
        """All groups that can be cut, with their importance: see ``scorer`` for its kinds."""
        import torch

        torch.manual_seed(seed)  # random importance
        score = scorer(importance)
        random = np.random.default_rng([seed, len(self._modules)])
        found, seen = self._attention(importance), set[str]()
        seen.update(layer for group in found for layer in self._heads[group.root].projections)
        for name, inner in self._modules.items():
            if not self._is_root(inner) or name in seen:
                continue
            group = self._group(name, range(_outputs(inner)))
            written = [self._name(dep) for dep, _ in group if self._writes(dep) and self._is_root(dep.target.module)]
            seen.update(written)
            if why := self._why_not(group, written):
                self.left_alone += [LeftAlone(layer, why) for layer in dict.fromkeys(written)]
                continue
            count = _outputs(inner)
            together = max([1, *(_groups(dep.target.module) for dep, _ in group)])
            stride = count // together
            few = [int(at) for at in random.choice(stride, max(1, stride // 4), replace=False)] if stride > 1 else []
            members = Channels(name, count, stride, np.ones(stride)).members(few)
            if count % together or stride < 2 or not self._keeps_the_function(name, members):
                why = "cutting channels here would not keep the others' function"
                self.left_alone += [LeftAlone(layer, why) for layer in dict.fromkeys(written)]
                continue
            scores = score(group)
            if scores is None:
                raise ModelError(f"'{name}' has no importance of this kind", where="passes.prune")
            values = np.asarray(scores.detach().double().numpy())
            values = values.reshape(together, stride).sum(0)
            found.append(Channels(name, count, stride, values / max(float(values.mean()), 1e-30)))
        return found

    def _attention(self, importance: str) -> list[Channels]:
        """Blocks whose heads can be cut. One that cannot is looked at as any other layer, which leaves it alone."""
        found = []
        for root, heads in self._heads.items():
            if any(layer in self._ignored for layer in heads.projections) or heads.count < 2:
                continue
            scores = heads.scores(self._modules, importance)
            if scores is not None and self._keeps_the_function(root, [int(scores.argmin())]):
                count = sum(_outputs(self._modules[layer]) for layer in heads.projections)
                found.append(Channels(root, count, heads.count, scores, are_heads=True))
        return found

    def cut(self, root: str, channels: Sequence[int]) -> None:
        """Remove channels that a layer writes (or whole heads), and all that hangs on them."""
        if root in self._heads:
            self._heads[root].cut(self._modules, channels)
        else:
            self._group(root, channels).prune()

    def sizes(self, chosen: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
        """(Input, output) channels of every weighted layer if these channels (by root) were cut; nothing is cut."""
        gone: dict[str, list[int]] = {}
        for root, channels in chosen.items():
            if root in self._heads:
                for name, inputs, outputs in self._heads[root].lost(self._modules, len(channels)):
                    gone[name] = [inputs, outputs]
                continue
            for dep, numbers in self._group(root, channels):
                inner = dep.target.module
                if self._is_layer(inner):
                    lost = gone.setdefault(self._name(dep), [0, 0])
                    is_depthwise = _groups(inner, depthwise=True) > 1
                    if self._writes(dep) or is_depthwise:
                        lost[1] += len(set(numbers))
                    if not self._writes(dep) or is_depthwise:
                        lost[0] += len(set(numbers))
        return {
            name: (_inputs(inner) - gone.get(name, [0, 0])[0], _outputs(inner) - gone.get(name, [0, 0])[1])
            for name, inner in self._modules.items()
            if self._is_layer(inner)
        }

    def params_without(self, chosen: Mapping[str, Sequence[int]]) -> int:
        """Parameters that would be left."""
        total: int = sum(parameter.numel() for parameter in self._model.module.parameters())
        sizes = self.sizes(chosen)
        for name, (inputs, outputs) in sizes.items():
            inner = self._modules[name]
            groups = outputs if _groups(inner, depthwise=True) > 1 else _groups(inner)
            kernel = inner.weight[0, 0].numel() if inner.weight.ndim > 2 else 1
            left = outputs * (inputs // max(groups, 1)) * kernel + (outputs if inner.bias is not None else 0)
            total -= inner.weight.numel() + (inner.bias.numel() if inner.bias is not None else 0) - left
        for root, channels in chosen.items():
            for dep, numbers in self._group(root, channels) if root not in self._heads else ():
                inner = dep.target.module
                if not self._is_layer(inner) and getattr(inner, "weight", None) is not None:
                    total -= 2 * len(set(numbers))  # a normalisation's weight and bias
        return total

    # --- inside

    def _group(self, name: str, channels: Sequence[int]) -> Any:
        inner = self._modules[name]
        function = self._graph.get_pruner_of_module(inner).prune_out_channels
        return self._graph.get_pruning_group(inner, function, [int(channel) for channel in channels])

    def _writes(self, dep: Any) -> bool:
        return bool(self._graph.is_out_channel_pruning_fn(dep.handler))

    def _name(self, dep: Any) -> str:
        name: str = self._names.get(dep.target.module, "")
        return name

    def _is_layer(self, inner: Any) -> bool:
        import torch

        return isinstance(inner, torch.nn.modules.conv._ConvNd | torch.nn.Linear) and inner in self._graph.module2node

    def _is_root(self, inner: Any) -> bool:
        return self._is_layer(inner) and _groups(inner, depthwise=True) == 1

    def _why_not(self, group: Any, written: Sequence[str]) -> str | None:
        import torch

        if ignored := [name for name in written if name in self._ignored]:
            return f"'{ignored[0]}' is to be left alone"
        if any(isinstance(dep.target.module, torch.nn.Parameter) for dep, _ in group):
            return "its channels are those of a parameter outside any layer"
        if not any(self._is_layer(dep.target.module) and not self._writes(dep) for dep, _ in group):
            return "it writes an output of the model"
        return None

    def _keeps_the_function(self, root: str, channels: Sequence[int]) -> bool:
        """Cut for a trial, on a module whose readers of these channels are zero; all is as before afterwards."""
        import torch

        with self._restored():
            try:
                with torch.no_grad():
                    if root in self._heads:
                        self._heads[root].silence(self._modules, channels)
                    for dep, numbers in self._group(root, channels) if root not in self._heads else ():
                        inner = dep.target.module
                        if self._is_layer(inner) and not self._writes(dep):
                            axis = 0 if getattr(inner, "transposed", False) else 1
                            # A grouped convolution's weight counts the channels of each group from 0.
                            size = inner.weight.shape[axis]
                            read = sorted({number % size for number in numbers})
                            inner.weight.index_fill_(axis, torch.tensor(read), 0.0)
                    expected = self._model(self._example)
                    self.cut(root, channels)
                    made = self._model(self._example)
            except Exception:  # noqa: BLE001 - the user's forward raises what it likes; then it is no cut to make
                return False
            return all(
                expected[name].shape == made[name].shape
                and float((expected[name] - made[name]).abs().max())
                <= SAME * max(float(expected[name].abs().max()), 1e-6)
                for name in expected
            )

    @contextmanager
    def trial(self, chosen: Mapping[str, Sequence[int]]) -> Iterator[None]:
        """The module with these channels (by root) cut, as long as the ``with`` lasts."""
        with self._restored():
            for root, channels in chosen.items():
                if channels:
                    self.cut(root, channels)
            yield

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Everything that a cut changes is put back: the module's parts, and what the graph notes of concatenations."""
        kept = []
        for inner in self._modules.values():
            attributes = {key: value for key, value in vars(inner).items() if key not in _STORES}
            # Weights are set to zero and cut in place: copies go back.
            parameters = {key: (value, _copied(value)) for key, value in inner._parameters.items()}
            buffers = {key: (value, _copied(value)) for key, value in inner._buffers.items()}
            kept.append((inner, attributes, parameters, buffers))
        noted = [
            (one, {key: copy.deepcopy(value) for key, value in vars(one).items() if isinstance(value, list | int)})
            for one in self._graph.module2node
            if one not in self._names and not hasattr(one, "grad_fn")
        ]
        try:
            yield
        finally:
            for inner, attributes, parameters, buffers in kept:
                for key, value in attributes.items():
                    setattr(inner, key, value)
                for store, tensors in ((inner._parameters, parameters), (inner._buffers, buffers)):
                    for key, (tensor, content) in tensors.items():
                        if tensor is not None:
                            tensor.data = content
                        store[key] = tensor
            for one, notes in noted:
                for key, value in notes.items():
                    setattr(one, key, value)


_STORES = ("_parameters", "_buffers", "_modules")


def _copied(value: Any) -> Any:
    return None if value is None else value.detach().clone()


def _outputs(inner: Any) -> int:
    return int(inner.out_channels if hasattr(inner, "out_channels") else inner.out_features)


def _inputs(inner: Any) -> int:
    return int(inner.in_channels if hasattr(inner, "in_channels") else inner.in_features)


def _groups(inner: Any, *, depthwise: bool = False) -> int:
    """Groups of a grouped convolution; of a depthwise one only if asked for, else 1."""
    groups = int(getattr(inner, "groups", 1)) if hasattr(inner, "kernel_size") else 1
    is_depthwise = groups > 1 and groups == _inputs(inner) == _outputs(inner)
    return groups if is_depthwise == depthwise else 1


def scorer(kind: str) -> Callable[[Any], Any]:
    """Importance of a group's channels by torch-pruning, summed over the layers that hold them.

    Args:
        kind: ``l1``, ``l2``, ``taylor`` (gradients must be there: Molchanov et al. 2019, arXiv:1906.10771),
            ``bn_scale`` (Liu et al. 2017, arXiv:1708.06519) or ``random``.
    """
    from torch_pruning import importance

    kinds: dict[str, Callable[[], Any]] = {
        "l1": lambda: importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: importance.GroupMagnitudeImportance(p=2),
        "taylor": importance.GroupTaylorImportance,
        "bn_scale": importance.BNScaleImportance,
        "random": importance.RandomImportance,
    }
    found: Callable[[Any], Any] = kinds[kind]()
    return found


def macs_with(layers: Mapping[str, Layer], sizes: Mapping[str, tuple[int, int]]) -> int:
    """Multiply–accumulates with other channel counts."""
    return sum(layer.macs(*sizes.get(name, (None, None))) for name, layer in layers.items())
