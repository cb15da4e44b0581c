"""Attention maps of transformers, compared between student and teacher (MiniLM, Wang et al. 2020, arXiv:2002.10957).

A map is taken from where it can be had: from ``torch.nn.MultiheadAttention``, which returns it when asked; from the
queries and keys of a block that projects them with layers of its own, however it multiplies them afterwards (a fused
kernel leaves no map); or from a named module that returns the probabilities. What is computed from queries and keys is
first shown to be what the block uses: with the values it must give the block's own output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.training.heads import Heads, find_heads
from edgeopt.training.trainee import Feed, ModuleTrainee

SAME = 1e-3
"""Of a block's output, relative to its largest value: what float32 and a fused kernel may differ by."""
_LEAST = 1e-8
"""Of a probability, before its logarithm."""
WHERE = "distill.attention"
FUSED = (
    "A fused kernel (scaled_dot_product_attention) leaves no map. Name a torch.nn.MultiheadAttention, a block with its "
    "number of heads as an attribute and linear layers for q, k and v, or a module that returns the probabilities "
    "(in timm: fused_attn = False, and then '….attn_drop')."
)


class AttentionMaps:
    """Pairs of attention blocks whose maps are compared, recorded while both models run.

    Args:
        student, teacher: both modules of torch.
        pairs: student's module name → teacher's; ``auto`` spreads the student's blocks over the teacher's.
        example: inputs to try with.

    Raises:
        UsageError: a name that is not there or gives no map, maps of different sizes, no blocks to be found.
    """

    def __init__(self, student: ModuleTrainee, teacher: ModuleTrainee, pairs: str | Mapping[str, str], example: Feed):
        import torch

        if isinstance(pairs, str):
            pairs = _auto(student, teacher, example)
        self.pairs = dict(pairs)
        self._student = _recorders("student", student, list(self.pairs), example)
        self._teacher = _recorders("teacher", teacher, list(self.pairs.values()), example)
        with torch.no_grad():
            student(example), teacher(example)
        for mine, theirs in self.pairs.items():
            ours, other = self._student[mine](), self._teacher[theirs]()
            if ours.shape[-2:] != other.shape[-2:]:
                raise UsageError(
                    f"maps differ in size: '{mine}' {list(ours.shape[-2:])}, '{theirs}' {list(other.shape[-2:])}",
                    where=WHERE,
                    hint="Maps are compared between models that cut their input into the same tokens.",
                )

    def loss(self) -> Any:
        """Divergence of the student's maps from the teacher's: mean over heads (of heads' mean, if numbers differ)."""
        parts = []
        for mine, theirs in self.pairs.items():
            ours, other = self._student[mine]().float(), self._teacher[theirs]().float()
            if ours.shape[1] != other.shape[1]:
                ours, other = ours.mean(1, keepdim=True), other.mean(1, keepdim=True)
            apart = other * (other.clamp_min(_LEAST).log() - ours.clamp_min(_LEAST).log())
            parts.append(apart.sum(-1).mean())
        return sum(parts) / len(parts)


def _auto(student: ModuleTrainee, teacher: ModuleTrainee, example: Feed) -> dict[str, str]:
    mine, theirs = (_blocks(model, example) for model in (student, teacher))
    if not mine or len(theirs) < len(mine):
        what = "the student has none" if not mine else f"the student has {len(mine)}, the teacher {len(theirs)}"
        raise UsageError(
            f"no attention blocks to pair: {what}",
            where=WHERE,
            hint=f"Name the pairs: attention: {{student_module: teacher_module}}. {FUSED}",
        )
    return {name: theirs[(at + 1) * len(theirs) // len(mine) - 1] for at, name in enumerate(mine)}


def _blocks(model: ModuleTrainee, example: Feed) -> list[str]:
    """Names of modules that give a map, in the module's order."""
    import torch

    projecting = {heads.block: heads for heads in find_heads(model.module)}
    return [
        name
        for name, inner in model.module.named_modules()
        if isinstance(inner, torch.nn.MultiheadAttention)
        or (name in projecting and _gives_its_output(model, projecting[name], example))
    ]


def _recorders(who: str, model: ModuleTrainee, names: list[str], example: Feed) -> dict[str, Callable[[], Any]]:
    """Name → a function that gives the map (samples, heads, tokens, tokens) of the last run."""
    import torch

    modules = dict(model.module.named_modules())
    projecting = {heads.block: heads for heads in find_heads(model.module)}
    found: dict[str, Callable[[], Any]] = {}
    for name in names:
        if name not in modules:
            raise UsageError(
                f"the {who} has no module '{name}'", where=WHERE, hint=f"Its blocks: {_blocks(model, example)}"
            )
        if isinstance(modules[name], torch.nn.MultiheadAttention):
            found[name] = _returned(modules[name])
        elif name in projecting and _gives_its_output(model, projecting[name], example):
            found[name] = _from_projections(modules, projecting[name])
        elif _is_map(model, modules[name], example):
            found[name] = _remembered(modules[name])
        else:
            raise UsageError(f"no attention map can be had from the {who}'s '{name}'", where=WHERE, hint=FUSED)
    return found


def _returned(block: Any) -> Callable[[], Any]:
    """Of torch's own block: it is asked for its weights, head by head."""
    import torch

    seen: dict[str, Any] = {}
    names = list(inspect.signature(block.forward).parameters)
    torch.backends.mha.set_fastpath_enabled(False)  # in eval mode TransformerEncoderLayer would go around the block

    def ask(module: Any, given: Any, named: dict[str, Any]) -> Any:
        return (), {
            **dict(zip(names, given, strict=False)),
            **named,
            "need_weights": True,
            "average_attn_weights": False,
        }

    def keep(module: Any, given: Any, result: Any) -> None:
        seen["map"] = result[1]

    block.register_forward_pre_hook(ask, with_kwargs=True)
    block.register_forward_hook(keep)
    return lambda: seen["map"] if seen["map"].ndim == 4 else seen["map"][None]


def _remembered(module: Any) -> Callable[[], Any]:
    seen: dict[str, Any] = {}

    def keep(module: Any, given: Any, result: Any) -> None:
        seen["map"] = result

    module.register_forward_hook(keep)
    return lambda: seen["map"]


def _from_projections(modules: Mapping[str, Any], heads: Heads) -> Callable[[], Any]:
    seen: dict[str, Any] = {}
    for name in heads.projections:
        modules[name].register_forward_hook(_keeping(seen, name))
    return lambda: _map(modules[heads.block], _split(heads, seen)[:2])


def _keeping(seen: dict[str, Any], name: str) -> Any:
    def keep(module: Any, given: Any, result: Any) -> None:
        seen[name] = result

    return keep


def _split(heads: Heads, seen: Mapping[str, Any]) -> list[Any]:
    """Queries, keys and values (samples, heads, tokens, width) of the layers' outputs."""
    outputs = [seen[name] for name in heads.projections]
    if len(outputs) == 1:
        outputs = list(outputs[0].chunk(3, -1))
    return [one.reshape(*one.shape[:2], heads.count, heads.width).transpose(1, 2) for one in outputs]


def _map(block: Any, queries_and_keys: list[Any]) -> Any:
    q, k = queries_and_keys
    for name, norm in (("q", getattr(block, "q_norm", None)), ("k", getattr(block, "k_norm", None))):
        if norm is not None:
            q, k = (norm(q), k) if name == "q" else (q, norm(k))
    scale = getattr(block, "scale", None)
    scale = scale if isinstance(scale, float) else q.shape[-1] ** -0.5
    return (q @ k.transpose(-1, -2) * scale).softmax(-1)


def _gives_its_output(model: ModuleTrainee, heads: Heads, example: Feed) -> bool:
    """Whether the map that queries and keys give, with the values, leads to what the layer behind the heads reads."""
    import torch

    modules = dict(model.module.named_modules())
    seen: dict[str, Any] = {}

    def read(module: Any, given: Any) -> None:
        seen["read"] = given[0]

    handles = [modules[name].register_forward_hook(_keeping(seen, name)) for name in heads.projections]
    handles.append(modules[heads.output].register_forward_pre_hook(read))
    model.train(False)
    try:
        with torch.no_grad():
            model(example)
            q, k, v = _split(heads, seen)
            made = (_map(modules[heads.block], [q, k]) @ v).transpose(1, 2).flatten(2)
            read_by_it = seen["read"]
            return made.shape == read_by_it.shape and bool(
                (made - read_by_it).abs().max() <= SAME * read_by_it.abs().max()
            )
    except (KeyError, RuntimeError, ValueError):  # it does not run, or projects something of another shape
        return False
    finally:
        for handle in handles:
            handle.remove()


def _is_map(model: ModuleTrainee, module: Any, example: Feed) -> bool:
    """Whether it returns (samples, heads, tokens, tokens) with rows that sum to one, in eval mode."""
    import torch

    seen: dict[str, Any] = {}
    handle = module.register_forward_hook(_keeping(seen, "map"))
    model.train(False)
    try:
        with torch.no_grad():
            model(example)
    finally:
        handle.remove()
    found = seen.get("map")
    return isinstance(found, torch.Tensor) and found.ndim == 4 and bool((found.sum(-1) - 1).abs().max() < SAME)
