"""What the engine trains: something that turns a dictionary of inputs into a dictionary of outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Feed = dict[str, Any]
"""Input or output name → torch tensor, first axis samples."""
LARGEST = 3.4028234663852886e38
"""The largest finite float32."""


class Trainee(Protocol):
    """A model with parameters; ``ModuleTrainee`` is one for modules, ``GraphModule`` one for graphs."""

    def __call__(self, feed: Feed) -> Feed: ...

    def named_parameters(self) -> Mapping[str, Any]:
        """Trained or frozen (``requires_grad``), in the order of the model."""
        ...

    def weighted_layers(self) -> Sequence[str]:
        """Names of layers with weights, from the input to the outputs; a parameter is called ``LAYER.…``."""
        ...

    def state(self) -> dict[str, Any]:
        """All tensors that make the model what it is, by name; the tensors themselves, no copies."""
        ...

    def load(self, state: Mapping[str, Any]) -> None: ...

    def train(self, mode: bool) -> None: ...

    def to(self, device: Any) -> None: ...

    def after_step(self, done: float) -> None:
        """Called after every step with the share of the training that is done."""
        ...

    def first_bad_layer(self, feed: Feed, most: float = LARGEST) -> str | None:
        """Name of the first layer whose output is not finite, or has a value beyond ``most``."""
        ...


class ModuleTrainee:
    """A ``torch.nn.Module`` as the engine wants it.

    Args:
        module: of the user.
        inputs: names, in calling order.
        outputs: names of the leaves of what it returns, in order.
        by_name: inputs are keyword arguments.
        masks: parameter name → bool tensor; weights where it is False stay zero.
    """

    def __init__(
        self,
        module: Any,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        by_name: bool = False,
        masks: Mapping[str, Any] | None = None,
    ) -> None:
        self.module, self.inputs, self.outputs, self.by_name = module, tuple(inputs), tuple(outputs), by_name
        self.masks = dict(masks or {})
        self.after_step(0.0)

    def __call__(self, feed: Feed) -> Feed:
        from torch.utils import _pytree as pytree

        given = {name: feed[name] for name in self.inputs}
        result = self.module(**given) if self.by_name else self.module(*given.values())
        return dict(zip(self.outputs, pytree.tree_leaves(result), strict=True))

    def named_parameters(self) -> Mapping[str, Any]:
        return dict(self.module.named_parameters())

    def weighted_layers(self) -> Sequence[str]:
        import torch

        kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
        return [name for name, inner in self.module.named_modules() if isinstance(inner, kinds)]

    def watch(self, example: Feed, seen: Callable[[str, Any, Any, Any], None], kinds: tuple[type, ...] = ()) -> None:
        """Run once, in eval mode and without gradients, and look on.

        Args:
            example: of the inputs.
            seen: called with name, module, positional inputs and result of every named module that runs.
            kinds: of the modules; none: all but the outermost.
        """
        self.train(False)
        modules = self.module.named_modules()
        self._run(example, seen, {n: inner for n, inner in modules if (isinstance(inner, kinds) if kinds else n)})

    def _run(self, feed: Feed, seen: Callable[[str, Any, Any, Any], None], modules: Mapping[str, Any]) -> None:
        """Run without gradients; ``seen`` is called as in ``watch``."""
        import torch

        handles = [inner.register_forward_hook(functools.partial(seen, name)) for name, inner in modules.items()]
        try:
            with torch.no_grad():
                self(feed)
        finally:
            for handle in handles:
                handle.remove()

    def state(self) -> dict[str, Any]:
        return dict(self.module.state_dict())

    def load(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(dict(state))

    def train(self, mode: bool) -> None:
        self.module.train(mode)
        for inner in self.module.modules():
            own = dict(inner.named_parameters(recurse=False))
            if own and all(not parameter.requires_grad for parameter in own.values()):
                inner.train(False)  # a frozen BatchNorm keeps its statistics too

    def to(self, device: Any) -> None:
        self.module.to(device)
        self.masks = {name: mask.to(device) for name, mask in self.masks.items()}

    def after_step(self, done: float) -> None:
        import torch

        if not self.masks:
            return
        parameters = self.named_parameters()
        with torch.no_grad():
            for name, mask in self.masks.items():
                parameters[name].mul_(mask)

    def first_bad_layer(self, feed: Feed, most: float = LARGEST) -> str | None:
        import torch

        found: list[str] = []

        def look(name: str, module: Any, given: Any, result: Any) -> None:
            if isinstance(result, torch.Tensor) and not bool((result.abs() <= most).all()):
                found.append(name)

        self._run(feed, look, {n: inner for n, inner in self.module.named_modules() if not list(inner.children())})
        if found:
            return found[0]
        broken = (name for name, value in self.named_parameters().items() if not bool(torch.isfinite(value).all()))
        return next(broken, None)
