"""What was trained on the graph, written back into the user's module: its own layers, its own keys.

A graph has BatchNorm folded into the layer before it, and ``quantize`` may have scaled channels against each other. The
module gets, per layer, the weights and the BatchNorm that give the folded pair: running statistics stay, and what a
channel was scaled with goes into BatchNorm's weight, so that statistics still are those of the layer before it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.frontends import torch_structure
from edgeopt.frontends.torch_loading import Loaded
from edgeopt.passes.quantize.lattice import FACTOR, LEVELS, OFFSET
from edgeopt.training.graph_module import GraphModule
from edgeopt.training.program import Op, Program
from edgeopt.training.trainee import Feed

STATE = "module.pth"
STRUCTURE = "structure.json"
TOLERANCE = 1e-4
"""Of the largest output: float sums in another order stay below it, a layer that is mapped wrongly does not."""
_SMALLEST_FACTOR = 1e-6
"""A BatchNorm that scales a channel by less cannot carry what was trained; it gets a weight that scales by one."""


class NotMapped(Exception):
    """The module cannot hold what was trained; the message names the layer and says why."""


def save(folder: Path, state: Mapping[str, Any], structure: torch_structure.Structure) -> None:
    """Write a state dict that ``torch.load`` reads with ``weights_only=True``, and what pruning changed, if it did."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.detach().clone() for name, value in state.items()}, folder / STATE)
    if structure:
        (folder / STRUCTURE).write_text(json.dumps(structure, indent=1), encoding="utf-8")


def load_into(module: Any, folder: Path) -> Any:
    """Give the factory's module what ``save`` left, and return it.

    Args:
        module: as the factory returns it; made smaller in place where it was pruned.
        folder: ``OUT/pytorch`` of a run.

    Raises:
        ModelError: the factory builds another module than the one that was trained.
    """
    import torch

    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    path = folder / STRUCTURE
    if path.is_file():
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        torch_structure.apply(module, json.loads(path.read_text(encoding="utf-8")), shapes, str(path))
    module.load_state_dict(state)
    return module


def write_back(loaded: Loaded, program: Program, feeds: Sequence[Feed]) -> float:
    """Give a module the weights of a trained float graph, in place.

    Args:
        loaded: the module that the graph was exported from, in eval mode.
        program: the trained canonical graph, float.
        feeds: some real inputs, each of the shapes that were exported: they show how far channels were scaled, and
            whether module and graph agree.

    Returns:
        The largest difference of an output, relative to the largest value of that output.

    Raises:
        NotMapped: a layer of the graph has no counterpart, or the two do not agree; the module is spoilt then.
    """
    import torch

    weighted = {op.name: op for op in program.ops if op.kind in ("Conv", "ConvTranspose", "Gemm")}
    layers = _layers(loaded.module, list(weighted))
    norms, given = _follow(loaded, feeds)
    made, wanted = _run(program, weighted, feeds)
    paired = {layer: norm for layer, norm in norms.items() if norm not in layers}
    for layer, name in layers.items():
        op = weighted[name]
        weight, bias = _weights(program, op)
        found = loaded.module.get_submodule(layer)
        if _is_norm(found):
            _set_norm(layer, found, weight.flatten(), bias)
        elif layer not in paired:
            _set(layer, found, weight, bias)
        else:
            norm = loaded.module.get_submodule(paired[layer])
            before = _spread(torch.cat(given[layer])) * _factor(norm).abs()
            _set_pair(layer, found, norm, op, weight, bias, _spread(torch.cat(made[name])), before)
    apart = max(
        _apart(value, want[name])
        for feed, want in zip(feeds, wanted, strict=True)
        for name, value in _outputs(loaded, feed).items()
    )
    if apart <= TOLERANCE:
        return apart
    where = _where_apart(loaded, layers, paired, {name: values[0] for name, values in made.items()}, feeds[0])
    raise NotMapped(f"the module differs from the graph {where} (by {apart:.1e} of the largest output)")


def _weights(program: Program, op: Op) -> tuple[Any, Any]:
    """Weight and bias, float64, for the model's own input, where the quantizer had moved its normalisation forward."""
    import torch

    data, *own = op.inputs
    weight, bias = (torch.from_numpy(program.constants[of].copy()).double() for of in own[:2])
    source = data.removesuffix(LEVELS)
    if data != source and source in program.inputs:
        factor, offset = (torch.from_numpy(program.constants[source + of].copy()).double() for of in (FACTOR, OFFSET))
        bias = bias + (weight * offset).sum((1, 2, 3))
        weight = weight * factor
    return weight, bias


def _run(
    program: Program, weighted: Mapping[str, Op], feeds: Sequence[Feed]
) -> tuple[dict[str, list[Any]], list[Feed]]:
    """What every weighted node of the graph puts out, and the graph's outputs, per feed."""
    import torch

    graph, wanted = GraphModule(program), []
    made: dict[str, list[Any]] = {name: [] for name in weighted}
    for feed in feeds:
        with torch.no_grad(), graph.exposing() as seen:
            wanted.append(graph(feed))
        for name, op in weighted.items():
            made[name].append(seen[op.outputs[0]])
    return made, wanted


def _layers(module: Any, names: Sequence[str]) -> dict[str, str]:
    """Layer of the module → node of the graph."""
    modules = dict(module.named_modules())
    found: dict[str, str] = {}
    for name in names:
        path = name
        if path not in modules:
            path = path.rpartition("__")[0] or path  # a second use of one layer
        if path not in modules:
            path = path.rpartition("/")[0]  # an operator within a module
        if not path or path not in modules or not (_is_norm(modules[path]) or _is_layer(modules[path])):
            raise NotMapped(f"'{name}' of the graph is no layer of the module: its weights are not a layer's own")
        if path in found:
            raise NotMapped(f"layer '{path}' is used more than once, and each use was trained by itself")
        found[path] = name
    return found


def _is_layer(module: Any) -> bool:
    import torch

    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    return isinstance(module, kinds) and "weight" in module._parameters


def _is_norm(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_var is not None


def _follow(loaded: Loaded, feeds: Sequence[Feed]) -> tuple[dict[str, str], dict[str, list[Any]]]:
    """Layer → the BatchNorm that reads its very output; layer → that output, per feed."""
    modules = dict(loaded.module.named_modules())
    outputs: list[tuple[str, Any]] = []
    norms: dict[str, str] = {}
    read: dict[str, list[Any]] = {}
    calls: Counter[str] = Counter()

    def after(name: str) -> Any:
        def hook(module: Any, given: Any, result: Any) -> None:
            outputs.append((name, result))

        return hook

    def before(name: str) -> Any:
        def hook(module: Any, given: Any) -> None:
            calls[name] += 1
            for layer, result in outputs:
                if result is given[0]:
                    norms[layer] = name
                    read.setdefault(layer, []).append(result.clone())  # what follows may work in place

        return hook

    handles = [inner.register_forward_hook(after(name)) for name, inner in modules.items() if _is_layer(inner)]
    handles += [inner.register_forward_pre_hook(before(name)) for name, inner in modules.items() if _is_norm(inner)]
    try:
        for feed in feeds:
            outputs.clear()
            loaded.call(feed)
    finally:
        for handle in handles:
            handle.remove()
    if twice := [name for name, count in calls.items() if count > len(feeds)]:
        raise NotMapped(f"layer '{twice[0]}' is used more than once, and each use was trained by itself")
    return norms, read


def _spread(value: Any) -> Any:
    """Standard deviation per channel, float64."""
    return value.double().transpose(0, 1).flatten(1).std(1, correction=0)


def _factor(norm: Any) -> Any:
    """What a BatchNorm multiplies each channel with, float64."""
    scale = 1 / (norm.running_var.double() + norm.eps).sqrt()
    return scale if norm.weight is None else norm.weight.detach().double() * scale


def _set(layer: str, module: Any, weight: Any, bias: Any) -> None:
    if module.bias is None and bool((bias != 0).any()):
        raise NotMapped(f"layer '{layer}' has no bias and no BatchNorm behind it, and training gave it a bias")
    _put(layer, module.weight, weight)
    if module.bias is not None:
        _put(layer, module.bias, bias)


def _set_norm(layer: str, norm: Any, factor: Any, offset: Any) -> None:
    """A BatchNorm that stands alone: y = factor · x + offset."""
    if norm.weight is None:
        raise NotMapped(f"layer '{layer}' has no weight and bias (affine=False), and training gave it some")
    _put(layer, norm.weight, factor * (norm.running_var.double() + norm.eps).sqrt())
    _put(layer, norm.bias, offset + norm.running_mean.double() * factor)


def _set_pair(layer: str, module: Any, norm: Any, op: Op, weight: Any, bias: Any, spread: Any, before: Any) -> None:
    """A layer and the BatchNorm behind it: together weight · x + bias."""
    import torch

    scale = 1 / (norm.running_var.double() + norm.eps).sqrt()
    factor = _factor(norm)
    if norm.weight is not None:
        scaled = torch.where((before > 0) & (spread > 0), spread / before, torch.ones_like(spread))
        factor = factor * scaled
        factor = torch.where(factor.abs() < _SMALLEST_FACTOR, torch.ones_like(factor), factor)
        _put(layer, norm.weight, factor / scale)
        factor = norm.weight.detach().double() * scale  # as it was rounded
    _put(layer, module.weight, _divided(weight, factor, op))
    own = 0.0 if module.bias is None else module.bias.detach().double()
    offset = bias + (norm.running_mean.double() - own) * factor
    if norm.bias is not None:
        _put(layer, norm.bias, offset)
    elif module.bias is not None:
        _put(layer, module.bias, bias / factor + norm.running_mean.double())
    else:
        raise NotMapped(f"layer '{layer}' has no bias, nor has the BatchNorm behind it, and training gave it one")


def _divided(weight: Any, factor: Any, op: Op) -> Any:
    """The weight with each output channel divided by its factor."""
    if op.kind != "ConvTranspose":
        return weight / factor.reshape(-1, *(1 for _ in weight.shape[1:]))
    groups = int(op.attributes.get("group", 1))  # weight (C_in, C_out / groups, …)
    inputs, outputs, *kernel = weight.shape
    grouped = weight.reshape(groups, inputs // groups, outputs, *kernel)
    return (grouped / factor.reshape(groups, 1, outputs, *(1 for _ in kernel))).reshape(weight.shape)


def _put(layer: str, parameter: Any, value: Any) -> None:
    import torch

    if parameter.numel() != value.numel():
        theirs, ours = list(value.shape), list(parameter.shape)
        raise NotMapped(f"layer '{layer}' is {ours} in the module and {theirs} in the graph")
    with torch.no_grad():
        parameter.copy_(value.reshape(parameter.shape).to(parameter.dtype))


def _outputs(loaded: Loaded, feed: Feed) -> Feed:
    from torch.utils import _pytree as pytree

    return dict(zip(loaded.outputs, pytree.tree_leaves(loaded.call(feed)), strict=True))


def _where_apart(
    loaded: Loaded, layers: Mapping[str, str], paired: Mapping[str, str], made: Mapping[str, Any], feed: Feed
) -> str:
    """Between the last layer whose output, with its BatchNorm, is the graph's, and the next."""
    from torch.nn import functional

    agree: dict[str, bool] = {}

    def look(layer: str) -> Any:
        norm = loaded.module.get_submodule(paired[layer]) if layer in paired else None

        def hook(module: Any, given: Any, result: Any) -> None:
            value, other = result, made[layers[layer]]
            if norm is not None:
                value = functional.batch_norm(
                    result, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
                )
            agree[layer] = value.numel() == other.numel() and _apart(value.reshape(other.shape), other) <= TOLERANCE

        return hook

    handles = [loaded.module.get_submodule(layer).register_forward_hook(look(layer)) for layer in layers]
    try:
        loaded.call(feed)
    finally:
        for handle in handles:
            handle.remove()
    order = list(agree)
    first = next((index for index, layer in enumerate(order) if not agree[layer]), len(order))
    before = f"behind layer '{order[first - 1]}'" if first else "from its input on"
    return f"{before} and in front of layer '{order[first]}'" if first < len(order) else before


def _apart(value: Any, other: Any) -> float:
    apart = float((value - other).abs().max() / other.abs().max().clamp_min(1e-30))
    return math.inf if math.isnan(apart) else apart  # max() passes over NaN
