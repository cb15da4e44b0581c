"""Predicted latency of a module with other channel counts, and where to cut so that a goal is met.

The predictor wants the graph that targets lower. It is looked at once as it is, and once more per group with half of
that group's channels cut: how the size of each operator hangs on each group is read from the two. Sizes are linear in
the channels of every group; what a weighted operator computes is the product of its inputs and outputs. The cut that
is chosen is exported and judged as it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeopt.devices import catalogue
from edgeopt.devices.basis import Basis, find_basis
from edgeopt.devices.predict import predict, predict_operations
from edgeopt.devices.prediction import Prediction
from edgeopt.devices.profile import DeviceProfile, RuntimeSupport
from edgeopt.errors import ModelError
from edgeopt.frontends.torch_loading import Loaded
from edgeopt.graph.cost import Operation, operations
from edgeopt.training.channels import Channels, Graph
from edgeopt.training.exported import Resized, exported, shapes_of

COARSE = 12
"""At most so many steps from a whole group to its least: finer ones change no kernel's time."""
_SIZES = ("inputs", "outputs", "channels_in", "channels_out", "groups")
_WEIGHTED = ("conv", "conv_pw", "conv_dw", "conv_grp", "deconv", "linear")

Cut = dict[str, list[int]]
"""Root of a group → channels to cut."""


@dataclass(frozen=True)
class Predictor:
    """One device, runtime and precision: what a list of operators takes."""

    device: DeviceProfile
    support: RuntimeSupport
    precision: Any
    basis: Basis

    def __call__(self, listed: Sequence[Operation]) -> Prediction:
        return predict_operations(listed, self.device, self.support, self.precision, self.basis)


class Latency:
    """Latency of a module, predicted for a device.

    Args:
        loaded: the module; it is exported as it is at each call.
        device: name of a profile.
        runtime, precision: None: the profile's first that a prediction can be had for.

    Raises:
        UsageError: no such profile; it lacks the runtime or precision.
        DeviceUnreachable: nothing that is alike was measured.
    """

    def __init__(self, loaded: Loaded, device: str, runtime: str | None, precision: str | None) -> None:
        self._loaded = loaded
        profile = catalogue.find(device).profile
        self._resized = Resized(loaded)
        self._made: dict[tuple[Any, ...], Prediction] = {}
        first = predict(self._resized.model, device=profile, runtime=runtime, precision=precision)[0]
        support = next(
            one
            for one in profile.runtimes
            if (one.runtime, one.unit, one.delegate) == (first.runtime, first.compute_unit, first.delegate)
            and first.precision in one.precisions
        )
        self._predict = Predictor(profile, support, first.precision, find_basis(profile, support, first.precision))
        self.before = self._predict(operations(self._resized.model))
        self._made[self._resized.shapes] = self.before

    def now(self) -> Prediction:
        """Of the module as it is."""
        shapes = shapes_of(self._loaded)
        if shapes not in self._made:
            self._made[shapes] = self._predict(operations(exported(self._loaded)))
        return self._made[shapes]

    def described(self) -> str:
        """For messages: where it would run, and how sure that is."""
        one = self.before
        threads = f", {one.threads} threads" if one.threads else ""
        where = f"{one.device} ({one.runtime} on {one.compute_unit}, {one.precision}{threads}"
        return f"{where}; 90 % of such predictions are within a factor of {one.high_ms / one.median_ms:.2g})"

    def learn(self, graph: Graph, groups: Sequence[Channels]) -> Callable[[Cut], float]:
        """A function that predicts, in ms, what any cut would leave; nothing is cut."""
        if self._resized.shapes != shapes_of(self._loaded):  # a round of pruning later
            self._resized = Resized(self._loaded)
        whole = operations(self._resized.model)
        trials: dict[str, tuple[int, tuple[Operation, ...]]] = {}
        for group in groups:
            half = group.members(range(max(1, group.stride // 2)))
            with graph.trial({group.root: half}):
                listed = operations(self._resized.now() or exported(self._loaded))
            if [one.operator for one in listed] != [one.operator for one in whole]:
                raise ModelError(
                    f"the graph has other operators once channels of '{group.root}' are cut",
                    where="passes.prune.latency_ms",
                    hint=f"Leave it alone: leave: ['{group.root}'], or ask for 'macs'.",
                )
            trials[group.root] = len(half), listed

        def left(chosen: Cut) -> float:
            shares = {root: len(cut) / trials[root][0] for root, cut in chosen.items() if cut}
            listed = [
                _scaled(one, [(trials[root][1][at], share) for root, share in shares.items()])
                for at, one in enumerate(whole)
            ]
            return self._predict(listed).median_ms

        return left


def _scaled(one: Operation, trials: Sequence[tuple[Operation, float]]) -> Operation:
    """An operator with the sizes that so many times each trial's cut would leave."""

    def linear(field: str) -> int:
        size: int = getattr(one, field)
        less: float = sum((size - getattr(cut, field)) * share for cut, share in trials)
        return max(1 if size else 0, round(size - less))

    changed: dict[str, Any] = {field: linear(field) for field in _SIZES}
    if one.kind in _WEIGHTED:
        # One weight per pair of channels: both counts, within a group.
        pairs = one.channels_in * one.channels_out / max(one.groups, 1)
        left = changed["channels_in"] * changed["channels_out"] / max(changed["groups"], 1) / max(pairs, 1)
        return replace(one, **changed, macs=round(one.macs * left), weights=round(one.weights * left))
    return replace(one, **changed, macs=linear("macs"), weights=linear("weights"))


def cut_for(
    groups: Sequence[Channels],
    left: Callable[[Cut], float],
    goal_ms: float,
    kept: Callable[[Channels, int], int],
) -> Cut | None:
    """Cut, step by step, where the least importance is lost per ms that the prediction says is saved.

    Args:
        groups: what can be cut, with importance per channel.
        left: cut → predicted ms.
        goal_ms: what is to be met.
        kept: (group, wanted) → the count nearest to it that may be kept; of 0, the least.

    Returns:
        the cut, or None if cutting all that may be cut does not meet the goal.
    """
    chosen: Cut = {group.root: [] for group in groups}
    counts = {group.root: group.stride for group in groups}
    orders = {group.root: [int(at) for at in np.argsort(group.scores, kind="stable")] for group in groups}
    now = left(chosen)

    def step(group: Channels) -> tuple[float, int, Cut] | None:
        """Importance lost per ms saved, the count that would be kept, and the cut; None at the group's least."""
        there = counts[group.root]
        wanted = there - max(1, group.stride // COARSE)
        count = kept(group, wanted)
        while count >= there and wanted > 0:
            wanted -= 1
            count = kept(group, wanted)
        if count >= there:
            return None
        order = orders[group.root]
        lost = float(group.scores[order[group.stride - there : group.stride - count]].sum())
        cut = {**chosen, group.root: group.members(order[: group.stride - count])}
        saved = now - left(cut)
        return lost / saved if saved > 0 else np.inf, count, cut

    queue: list[tuple[float, int]] = []
    for index, group in enumerate(groups):
        if (found := step(group)) is not None:
            heapq.heappush(queue, (found[0], index))
    while now > goal_ms and queue:
        _, index = heapq.heappop(queue)
        group = groups[index]
        found = step(group)
        if found is None:
            continue
        if queue and found[0] > queue[0][0]:  # what it saves has changed since it was queued: others come first
            heapq.heappush(queue, (found[0], index))
            continue
        _, counts[group.root], chosen = found
        now = left(chosen)
        if (after := step(group)) is not None:
            heapq.heappush(queue, (after[0], index))
    return chosen if now <= goal_ms else None


def least(groups: Sequence[Channels], kept: Callable[[Channels, int], int]) -> Cut:
    """All that may be cut."""
    found: Cut = {}
    for group in groups:
        order = [int(at) for at in np.argsort(group.scores, kind="stable")]
        found[group.root] = group.members(order[: group.stride - kept(group, 0)])
    return found
