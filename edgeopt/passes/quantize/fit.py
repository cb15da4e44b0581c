"""One fit: from statistics and a setting to a table, and how well it does on samples that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.placement import WEIGHTED, Placement
from edgeopt.graph.quantization import Quantization, QuantParams, Range
from edgeopt.passes.base import Samples
from edgeopt.passes.quantize.calibration import TensorStatistics
from edgeopt.passes.quantize.equalize import Equalized, Extent, equalize
from edgeopt.passes.quantize.ranges import Estimator, Use, choose
from edgeopt.passes.quantize.segments import Cut, cut
from edgeopt.passes.quantize.select import Score, Setting
from edgeopt.passes.quantize.sensitivity import sensitivity
from edgeopt.passes.quantize.walk import FloatLayers, Frontier, How, enter, walk

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Subject:
    """A float graph with everything that calibration found, ready to be fitted in one way or another.

    Args:
        model: canonical float graph.
        placement: for it.
        statistics: of the table's tensors.
        means: of weighted nodes' outputs, (samples that are carried, channels).
        fixed: grids that are given: of a lattice, of a runtime.
        entry: the carried samples as they enter the walk.
        threads, seed: of every run and draw.
    """

    model: ir.Model
    placement: Placement
    statistics: Mapping[str, TensorStatistics]
    means: Mapping[str, Array]
    fixed: Mapping[str, QuantParams]
    threads: int
    seed: int
    entry: Frontier = field(default_factory=dict)

    @property
    def whole(self) -> Cut:
        return cut(self.model, self.placement.schemes, frozenset(self.placement.activations))

    def grid(self, name: str, estimator: Estimator) -> QuantParams:
        """What a tensor gets without equalisation."""
        gains = sensitivity(self.model, self.layers([]).weights, self.statistics)
        return choose_ranges(self, self.statistics, gains, estimator)[0][name]

    def equalized_tensors(self, extent: Extent, fitted: Sequence[int]) -> frozenset[str]:
        """Names of the tensors that an extent would scale."""
        layers = self.layers(fitted)
        gains = sensitivity(self.model, layers.weights, self.statistics)
        return frozenset(equalize(self.model, self.placement, layers, self.statistics, gains, extent).factors)

    def layers(self, fitted: Sequence[int]) -> FloatLayers:
        """Float weights and biases, and the means over the fitted samples."""
        weights: dict[str, Array] = {}
        biases: dict[str, Array] = {}
        for node in self.model.graph:
            if node.op_type in WEIGHTED:
                for value, into in ((node.inputs[1], weights), (node.inputs[2], biases)):
                    assert value is not None and value.const_value is not None
                    into[value.name or ""] = value.const_value.numpy()
        index = list(fitted)
        return FloatLayers(weights, biases, {name: rows[index].mean(0) for name, rows in self.means.items() if index})


@dataclass(frozen=True, eq=False)
class Fitted:
    """A table, the float layers that it rounds, and the outputs of every carried sample."""

    table: Quantization
    equalized: Equalized
    outputs: Mapping[str, list[Array]]


def fit(
    subject: Subject,
    setting: Setting,
    fitted: Sequence[int],
    carried: Sequence[int],
    *,
    per_tensor: bool,
    effort: float,
) -> Fitted:
    """Ranges, equalisation and the walk.

    Args:
        subject: graph and statistics.
        setting: how.
        fitted: positions in ``subject.entry`` of the samples to fit to.
        carried: those that come along, the fitted among them; outputs are theirs.
        per_tensor: one scale per weight.
        effort: factor on how many output positions second moments look at.
    """
    layers = subject.layers(fitted)
    gains = sensitivity(subject.model, layers.weights, subject.statistics)
    changed = equalize(subject.model, subject.placement, layers, subject.statistics, gains, setting.equalize)
    statistics = dict(subject.statistics)
    for name, factors in changed.factors.items():
        statistics[name] = statistics[name].scaled(factors)
        if name in gains:
            gains[name] = gains[name] / factors**2
    activations, ranges, labels = choose_ranges(subject, statistics, gains, setting.ranges)
    position = {sample: index for index, sample in enumerate(carried)}
    walked = walk(
        subject.whole,
        {name: [arrays[i] for i in carried] for name, arrays in subject.entry.items()},
        changed.layers,
        subject.placement.schemes,
        activations,
        outputs=[value.name or "" for value in subject.model.graph.outputs],
        how=How(setting.rounding, setting.correct_bias, setting.safe_pairs, per_tensor, effort),
        fitted=[position[sample] for sample in fitted],
        threads=subject.threads,
        seed=subject.seed,
    )
    table = Quantization(activations, walked.weights, walked.biases, ranges, subject.placement.schemes, labels)
    return Fitted(table, changed, walked.outputs)


OUTPUT_MARGIN = 1.15
"""How far a graph output's range reaches beyond the largest value of the calibration samples. The next sample may have
a larger logit, and cutting one off costs more than all rounding: ResNet20's logits on 100 other images, rounded to
their own grid, have 33.7 dB without it and 40 dB with 1.1 to 1.3."""


def choose_ranges(
    subject: Subject,
    statistics: Mapping[str, TensorStatistics],
    gains: Mapping[str, Array],
    estimator: Estimator,
) -> tuple[dict[str, QuantParams], dict[str, Range], dict[str, str]]:
    """Grids, ranges and how they were found, for every tensor of the table; groups share theirs."""
    placement = subject.placement
    placed = (*placement.activations, *placement.range_only)
    # Weights alone need no calibration: then inputs and outputs have no statistics, and no range.
    names = [name for name in placed if name in statistics or name in subject.fixed]
    outputs = {value.name for value in subject.model.graph.outputs}
    grouped = {name: group for group in placement.groups for name in group}
    activations: dict[str, QuantParams] = {}
    ranges: dict[str, Range] = {}
    labels: dict[str, str] = {}
    for name in names:
        if name in ranges:
            continue
        group = grouped.get(name, frozenset({name}))
        members = [member for member in names if member in group]
        if name in subject.fixed:
            params, bounds, label = subject.fixed[name], subject.fixed[name].range, "fixed"
        else:
            uses = [Use(statistics[m], gains.get(m, np.ones(len(statistics[m].low)))) for m in members]
            # What leaves the graph is judged as it is: a largest logit that is cut off is a wrong answer.
            own = "minmax" if estimator == "auto" and any(m in outputs for m in members) else estimator
            chosen = choose(uses, own, symmetric=name in placement.symmetric)
            bounds, label = chosen.range, chosen.estimator
            if own == "minmax" and estimator == "auto":
                bounds = Range(bounds.low * OUTPUT_MARGIN, bounds.high * OUTPUT_MARGIN)
            params = QuantParams.from_range(bounds, symmetric=name in placement.symmetric)
        for member in members:
            ranges[member], labels[member] = bounds, label
            if member in placement.activations:
                activations[member] = params
    return activations, ranges, labels


def with_entry(subject: Subject, samples: Samples, chosen: Sequence[int], estimator: Estimator) -> Subject:
    """The subject with its samples. No setting changes the grid of an input, so they enter once for all fits."""
    gains = sensitivity(subject.model, subject.layers([]).weights, subject.statistics)
    activations, _, _ = choose_ranges(subject, subject.statistics, gains, estimator)
    entry = enter(
        subject.model,
        subject.whole,
        samples,
        chosen,
        subject.placement.schemes,
        activations,
        threads=subject.threads,
    )
    return replace(subject, entry=entry)


def judge(expected: Mapping[str, Sequence[Array]], made: Mapping[str, Sequence[Array]], held: Sequence[int]) -> Score:
    """How good outputs are on held-back samples.

    Args:
        expected: float outputs of the held-back samples, in order.
        made: outputs of all carried samples.
        held: which of those are held back.
    """
    noise, signal = [], []
    for name, reference in expected.items():
        if not np.issubdtype(reference[0].dtype, np.floating):
            continue
        pairs = [(a.astype(np.float64), made[name][i]) for a, i in zip(reference, held, strict=True)]
        noise.append([float(np.square(value - exact).sum()) for exact, value in pairs])
        signal.append([float(np.square(exact).sum()) for exact, _ in pairs])
    return Score(np.array(noise).reshape(-1, len(held)), np.array(signal).reshape(-1, len(held)))
