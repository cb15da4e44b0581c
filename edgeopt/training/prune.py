"""The pass ``prune``: whole channels, chosen by importance, until a goal is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from edgeopt.errors import UsageError
from edgeopt.training.base import LayerChange, TrainingPass, TrainingRecord, Work
from edgeopt.training.channels import Channels, Graph, macs_with
from edgeopt.training.cost import Layer, layers

if TYPE_CHECKING:
    from edgeopt.training.latency import Latency

TAYLOR_BATCHES = 16
"""Whose gradients say what a channel is worth: with more, the order of channels hardly changes."""
CORRECTIONS = 4
"""Cuts that are chosen, exported and judged before all that may go is tried: what is learnt of groups one by one is
seldom off by more than a percent."""
SEARCH = 24
"""Halvings of the interval of ratios: far finer than one channel."""


class Prune(TrainingPass):
    """Structured pruning: the module becomes physically smaller.

    Args:
        importance: of a channel; ``taylor`` needs training data.
        scope: ``global`` compares channels of all layers, ``layer`` takes the same share of each.
        ratio: share of channels to remove from what can be pruned.
        macs: share of multiply–accumulates to keep.
        params: share of parameters to keep.
        latency_ms: predicted median of one run on ``device``. With ``scope: global``, cuts are made where the least
            importance is lost per ms that the prediction saves.
        device: a hardware profile (``edgeopt devices``), for ``latency_ms``.
        runtime, device_precision: what the device runs; by default what its profile names first.
        steps: so many rounds of pruning, each followed by ``epochs`` of training.
        round_to: channel counts become multiples of it where a layer has more.
        most: no layer loses more than this share of its channels.
        leave: patterns of layer names whose output channels stay; the layers that write outputs always do.
        epochs: of recovery training after each round; 0: none, and then no training data is needed.

    Exactly one of ``ratio``, ``macs``, ``params`` and ``latency_ms``; by default ``macs: 0.5``. The rest: see
    ``Training``.
    """

    use: Literal["prune"] = "prune"
    importance: Literal["l1", "l2", "taylor", "bn_scale", "random"] = "l2"
    scope: Literal["global", "layer"] = "global"
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    macs: Annotated[float, Field(gt=0, lt=1)] | None = None
    params: Annotated[float, Field(gt=0, lt=1)] | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    device: str | None = None
    runtime: str | None = None
    device_precision: Literal["fp32", "fp16", "int8"] | None = None
    steps: Annotated[int, Field(gt=0)] = 1
    round_to: Annotated[int, Field(gt=0)] = 8
    most: Annotated[float, Field(gt=0, lt=1)] = 0.9
    leave: tuple[str, ...] = ()
    epochs: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_goal(self) -> Prune:
        given = [name for name in ("ratio", "macs", "params", "latency_ms") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of 'ratio', 'macs', 'params' and 'latency_ms', not {' and '.join(given)}")
        if (self.latency_ms is None) != (self.device is None):
            raise ValueError("'latency_ms' and 'device' go together: how long, and where")
        if self.device is None and (self.runtime or self.device_precision):
            raise ValueError("'runtime' and 'device_precision' say more about 'device', which is not given")
        return self

    def needs_data(self) -> bool:
        return self.epochs > 0 or self.importance == "taylor"

    def run(self, work: Work) -> TrainingRecord:
        self._check_patterns(work)
        if self.importance == "bn_scale":
            _need_batch_norm(work)
        whole, first = work.cost(), layers(work.model, work.example)
        latency = None if self.device is None else self._latency(work)
        history, notes = [], list[str]()
        for step in range(1, self.steps + 1):
            if not work.restore(f"cut-{step}"):
                notes = self._cut(work, first, whole.params, latency, step / self.steps)
                work.keep(f"cut-{step}")
            if self.epochs:
                text = "prune: recover" if self.steps == 1 else f"prune: recover, round {step} of {self.steps}"
                history += work.train(self, text, f"recover-{step}")
        last = layers(work.model, work.example)
        if latency is not None:
            ms, now = latency.before.median_ms, latency.now().median_ms
            notes.append(f"predicted {ms:.3g} ms before and {now:.3g} ms now on {latency.described()}")
        return TrainingRecord(
            use=self.use,
            before=whole,
            after=work.cost(),
            layers=_changes(first, last),
            epochs=tuple(history),
            notes=tuple(notes),
        )

    def _check_patterns(self, work: Work) -> None:
        names = [name for name, _ in work.model.module.named_modules()]
        for pattern in self.leave:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"the pattern '{pattern}' matches no layer", where="passes.prune.leave")

    def _latency(self, work: Work) -> Latency:
        from edgeopt.training.latency import Latency

        assert self.device is not None
        return Latency(work.loaded, self.device, self.runtime, self.device_precision)

    def _cut(
        self, work: Work, first: Mapping[str, Layer], params: int, latency: Latency | None, done: float
    ) -> list[str]:
        """One round; gives what is to be said about layers that were left alone."""
        names = [name for name, _ in work.model.module.named_modules()]
        ignored = frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in self.leave))
        graph = Graph(work.model, work.example, ignored)
        if self.importance == "taylor":
            work.collect_gradients(self, TAYLOR_BATCHES)
        groups = graph.groups(self.importance, work.seed)
        if not groups:
            raise UsageError(
                "the model has no channels that can be pruned",
                where="passes.prune",
                hint="; ".join(f"{one.layer}: {one.why}" for one in graph.left_alone[:5]) or None,
            )
        if latency is not None:
            chosen = self._within(graph, groups, latency, done)
        else:
            chosen = self._choose(work, graph, groups, first, params, done)
        for root, channels in chosen.items():
            if channels:
                graph.cut(root, channels)
        for parameter in work.model.module.parameters():
            parameter.grad = None
        told: dict[str, list[str]] = {}
        for one in graph.left_alone:
            told.setdefault(one.why, []).append(one.layer)
        return [f"left alone, as {why}: {', '.join(listed)}" for why, listed in told.items()]

    def _choose(
        self, work: Work, graph: Graph, groups: list[Channels], first: Mapping[str, Layer], params: int, done: float
    ) -> dict[str, list[int]]:
        """Root → channels to cut, so many that the goal's share ``done`` is met."""
        now = layers(work.model, work.example)
        if self.ratio is not None:
            # Each round takes the same share of what is left.
            return self._at(groups, 1 - (1 - self.ratio) ** (1 / self.steps))
        share = self.params if self.params is not None else (self.macs if self.macs is not None else 0.5)
        goal = share**done

        def left(ratio: float) -> float:
            chosen = {root: channels for root, channels in self._at(groups, ratio).items() if channels}
            if self.params is not None:
                return graph.params_without(chosen) / params
            return macs_with(now, graph.sizes(chosen)) / sum(layer.macs() for layer in first.values())

        what = "parameters" if self.params is not None else "multiply–accumulates"
        if (least := left(1.0)) > goal:
            raise UsageError(
                f"{100 * share:.3g}% of the {what} cannot be reached: at most, {least:.1%} are left",
                where="passes.prune",
                hint=f"Ask for {math.ceil(least * 100) / 100:.2f} or more, raise 'most' (it is {self.most:g}), "
                "lower 'round_to', or leave fewer layers alone.",
            )
        return self._at(groups, _least_ratio(left, goal))

    def _within(self, graph: Graph, groups: list[Channels], latency: Latency, done: float) -> dict[str, list[int]]:
        """Root → channels to cut, so that the latency goal's share ``done`` is met by the graph that they leave."""
        from edgeopt.training.latency import cut_for, least

        assert self.latency_ms is not None
        before = latency.before.median_ms
        goal = self.latency_ms if before <= self.latency_ms else before * (self.latency_ms / before) ** done
        left = latency.learn(graph, groups)
        aim, most = goal, least(groups, self._kept)
        for _ in range(CORRECTIONS):
            if self.scope == "layer":
                reached = left(most) <= aim
                chosen = self._at(groups, _least_ratio(lambda ratio: left(self._at(groups, ratio)), aim))
            else:
                found = cut_for(groups, left, aim, self._kept)
                reached, chosen = found is not None, found or most
            with graph.trial(chosen if reached else most):
                made = latency.now().median_ms
            if made <= goal:
                return chosen if reached else most
            if not reached:
                break
            aim *= 0.98 * goal / made
        else:
            with graph.trial(most):
                made = latency.now().median_ms
            if made <= goal:
                return most
        raise UsageError(
            f"{self.latency_ms:g} ms cannot be reached on {latency.described()}: "
            f"it is {before:.3g} ms now, and {made:.3g} ms with all cut that may be",
            where="passes.prune.latency_ms",
            hint=f"Ask for {math.ceil(made * 1000) / 1000:g} ms or more, raise 'most' (it is {self.most:g}), "
            "lower 'round_to', or leave fewer layers alone.",
        )

    def _at(self, groups: list[Channels], ratio: float) -> dict[str, list[int]]:
        """What goes at a ratio, rounded to kept counts that kernels like."""
        pooled = np.sort(np.concatenate([group.scores for group in groups]))
        number = min(int(ratio * len(pooled)), len(pooled) - 1)
        threshold = pooled[number] if number else -np.inf
        chosen = {}
        for group in groups:
            order = np.argsort(group.scores, kind="stable")
            wanted = int((group.scores < threshold).sum()) if self.scope == "global" else int(ratio * group.stride)
            if ratio >= 1:
                wanted = group.stride
            kept = self._kept(group, group.stride - wanted)
            chosen[group.root] = group.members([int(at) for at in order[: group.stride - kept]])
        return chosen

    def _kept(self, group: Channels, wanted: int) -> int:
        """What may be kept nearest to it: a multiple of ``round_to`` (channels of all groups together)."""
        unit = max(1, self.round_to // math.gcd(self.round_to, group.count // group.stride))
        if group.stride <= unit:
            return group.stride
        least = max(1, math.ceil(group.stride * (1 - self.most)))
        return min(group.stride, max(unit, round(max(wanted, least) / unit) * unit))


def _least_ratio(left: Callable[[float], float], goal: float) -> float:
    """The smallest ratio, in steps far finer than a channel, at which no more than the goal is left."""
    low, high = 0.0, 1.0
    for _ in range(SEARCH):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= goal else (middle, high)
    return high


def _need_batch_norm(work: Work) -> None:
    import torch

    kinds = torch.nn.modules.batchnorm._BatchNorm
    if not any(isinstance(inner, kinds) for inner in work.model.module.modules()):
        raise UsageError("the model has no BatchNorm to judge channels by", where="passes.prune.importance")


def _changes(before: Mapping[str, Layer], after: Mapping[str, Layer]) -> tuple[LayerChange, ...]:
    return tuple(
        LayerChange(
            layer=name,
            inputs=(layer.inputs, after[name].inputs),
            outputs=(layer.outputs, after[name].outputs),
            macs=(layer.macs(), after[name].macs()),
        )
        for name, layer in before.items()
    )
