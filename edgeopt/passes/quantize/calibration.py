"""Calibration statistics: what every tensor of the table looked like, from one stream over real samples.

Two passes, and never more than one sample in memory. The first takes extremes, means and squares per channel, reduced
inside ONNX Runtime; the second fills histograms between those extremes from at most ``POSITIONS`` positions per
channel and sample. Memory is that of the statistics: 2,000 samples need what 200 need.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import DataError, ModelError
from edgeopt.events import track
from edgeopt.graph.model import named_initializer
from edgeopt.passes.base import Feed, Samples
from edgeopt.runtimes.onnxruntime import Session

BINS = 512
POSITIONS = 1024
MOST_CHANNELS = 4096
"""A tensor with more channels (a flattened image) is treated as one: 512 bins for each of 25,088 would be 50 MB."""
MOST_HISTOGRAM_SAMPLES = 100
"""Histograms look at no more samples than this, spread evenly: their shape has settled long before."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What one tensor held, per channel; all arrays float64 of shape (channels,), per sample position.

    Args:
        axis: channel axis, or None where the whole tensor is one channel.
        elements: elements of one sample.
        low, high: extremes.
        mean, square: E[x] and E[x²].
        zeros: share of exact zeros (after a Relu: of inactive units).
        histogram: float32 (channels, BINS), shares of the nonzero values between ``low`` and ``high``; each row sums
            to 1 − ``zeros``.
    """

    axis: int | None
    elements: int
    low: Array
    high: Array
    mean: Array
    square: Array
    zeros: Array
    histogram: Array

    @property
    def variance(self) -> Array:
        result: Array = np.maximum(self.square - self.mean**2, 0.0)
        return result

    def scaled(self, factors: Array) -> TensorStatistics:
        """Statistics of the tensor with its channels multiplied by positive ``factors``."""
        return replace(
            self,
            low=self.low * factors,
            high=self.high * factors,
            mean=self.mean * factors,
            square=self.square * factors**2,
        )


@dataclass(frozen=True)
class Calibration:
    """Statistics of one float model on one set of samples.

    Args:
        tensors: by value name, for every tensor that was asked for.
        means: mean per output channel of every weighted node's output before its activation, float64
            (chosen samples, channels), in the order of ``chosen``.
        outputs: the model's float outputs for the ``judged`` samples, in their order.
        samples: how many there were.
    """

    tensors: Mapping[str, TensorStatistics]
    means: Mapping[str, Array]
    outputs: Mapping[str, list[Array]]
    samples: int


def spread(total: int, wanted: int) -> list[int]:
    """``wanted`` indices spread evenly over ``range(total)``, all of them where there are fewer."""
    if total <= wanted:
        return list(range(total))
    return [index * total // wanted for index in range(wanted)]


def channel_axis(value: ir.Value) -> int | None:
    """Axis whose entries are channels: 1 for images and features, the last for sequences of features."""
    shape = shape_of(value)
    if len(shape) < 2:
        return None
    axis = 1
    if len(shape) == 3:
        neighbours = [use.node for use in value.uses()]
        if (producer := value.producer()) is not None:
            neighbours.append(producer)
        if not any(node.op_type in ("Conv", "ConvTranspose") for node in neighbours):
            axis = 2
    return axis if shape[axis] <= MOST_CHANNELS else None


def calibrate(
    model: ir.Model,
    tensors: Sequence[str],
    weighted: Sequence[str],
    samples: Samples,
    *,
    chosen: Collection[int],
    judged: Collection[int],
    threads: int,
    seed: int,
) -> Calibration:
    """Run the float model over the samples, twice, and keep statistics only.

    Args:
        model: canonical float graph; unchanged.
        tensors: value names to describe (no constants).
        weighted: value names of weighted nodes' outputs, whose means are wanted sample by sample.
        samples: read twice, in order.
        chosen: indices of the samples whose means are kept; a bounded number.
        judged: indices of the samples whose outputs are kept; a bounded number.
        threads: of ONNX Runtime.
        seed: of the positions that histograms look at.

    Raises:
        DataError: no samples, a sample that the model does not take, or values that are not finite.
    """
    if not len(samples):
        raise DataError("calibration data holds no samples", hint="give at least one; 100 to 200 are usual")
    first = _first_pass(model, tensors, weighted, samples, sorted(chosen), sorted(judged), threads)
    return _second_pass(model, first, samples, threads, seed)


def _first_pass(
    model: ir.Model,
    tensors: Sequence[str],
    weighted: Sequence[str],
    samples: Samples,
    chosen: list[int],
    judged: list[int],
    threads: int,
) -> Calibration:
    values = values_by_name(model)
    axes = {name: channel_axis(values[name]) for name in tensors}
    probe = _Probe(model, keep_outputs=True)
    for name in tensors:
        for op in ("ReduceMin", "ReduceMax", "ReduceMean", "ReduceSumSquare"):
            probe.reduce(name, op, axes[name])
    for name in weighted:
        if name not in axes:
            probe.reduce(name, "ReduceMean", channel_axis(values[name]))
            axes[name] = channel_axis(values[name])
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    sums: dict[str, Array] = {name: np.zeros(1) for name in axes}
    squares: dict[str, Array] = {name: np.zeros(1) for name in tensors}
    means: dict[str, list[Array]] = {name: [] for name in weighted}
    outputs: dict[str, list[Array]] = {value.name or "": [] for value in model.graph.outputs}
    wanted, kept = frozenset(chosen), frozenset(judged)
    elements = {name: math.prod(shape_of(values[name])) for name in tensors}
    count = 0
    with probe.session(threads) as session:
        for index, feed in enumerate(track(samples, "calibrate: ranges", len(samples))):
            got = run_sample(session, feed, index)
            for name in axes:
                mean = got[f"{name}__ReduceMean"].astype(np.float64).reshape(-1)
                if not np.isfinite(mean).all():
                    raise DataError(
                        f"the float model computes values that are not finite in tensor '{name}'",
                        where=f"calibration sample {index}",
                        hint="check the sample for NaN and Inf, and its normalisation",
                    )
                sums[name] = sums[name] + mean
                if index in wanted and name in means:
                    means[name].append(mean)
            for name in tensors:
                smallest, largest = got[f"{name}__ReduceMin"].reshape(-1), got[f"{name}__ReduceMax"].reshape(-1)
                low[name] = np.minimum(low[name], smallest) if name in low else smallest
                high[name] = np.maximum(high[name], largest) if name in high else largest
                squares[name] = squares[name] + got[f"{name}__ReduceSumSquare"].astype(np.float64).reshape(-1)
            if index in kept:
                for name, rows in outputs.items():
                    rows.append(got[name])
            count += 1
    if count != len(samples):
        raise DataError(f"calibration data promised {len(samples)} samples and gave {count}")
    nothing = np.zeros(0)
    described = {
        name: TensorStatistics(
            axes[name],
            elements[name],
            low[name].astype(np.float64),
            high[name].astype(np.float64),
            sums[name] / count,
            squares[name] / (count * (elements[name] // len(low[name]))),
            nothing,
            nothing,
        )
        for name in tensors
    }
    stacked = {name: np.stack(rows) if rows else np.zeros((0, 1)) for name, rows in means.items()}
    return Calibration(described, stacked, outputs, count)


def _second_pass(model: ir.Model, first: Calibration, samples: Samples, threads: int, seed: int) -> Calibration:
    probe = _Probe(model)
    for name, tensor in first.tensors.items():
        probe.sample(name, tensor.axis)
    counts = {name: np.zeros((len(t.low), BINS), np.float32) for name, t in first.tensors.items()}
    zeros = {name: np.zeros(len(t.low)) for name, t in first.tensors.items()}
    seen = dict.fromkeys(first.tensors, 0)
    chosen = spread(first.samples, MOST_HISTOGRAM_SAMPLES)
    with probe.session(threads) as session:
        for index, feed in track(only(samples, chosen), "calibrate: histograms", len(chosen)):
            random = np.random.default_rng((seed, index))
            got = run_sample(session, feed | probe.positions(random), index)
            for name, tensor in first.tensors.items():
                taken = got[f"{name}__sampled"]  # (outer, channels, inner)
                _count(taken, tensor, counts[name], zeros[name])
                seen[name] += taken.shape[0] * taken.shape[2]
    tensors = {
        name: replace(t, histogram=counts[name] / np.float32(seen[name]), zeros=zeros[name] / seen[name])
        for name, t in first.tensors.items()
    }
    return replace(first, tensors=tensors)


def _count(taken: Array, tensor: TensorStatistics, counts: Array, zeros: Array) -> None:
    channels = taken.shape[1]
    low = tensor.low.astype(np.float32).reshape(1, -1, 1)
    width = np.maximum(tensor.high - tensor.low, 1e-30).astype(np.float32).reshape(1, -1, 1)
    # Clipped as floats: where all samples are alike the width is next to nothing, and what it divides no integer holds.
    bins = np.clip((taken - low) * (np.float32(BINS) / width), 0, BINS - 1).astype(np.int32)
    is_zero = taken == 0
    # Zeros go to one bin behind all others, so that one count serves both.
    flat = np.where(is_zero, channels * BINS, bins + (np.arange(channels, dtype=np.int32) * BINS).reshape(1, -1, 1))
    counts += np.bincount(flat.ravel(), minlength=channels * BINS + 1)[:-1].reshape(channels, BINS)
    zeros += is_zero.sum((0, 2))


def describe_constant(array: Array, axis: int | None) -> TensorStatistics:
    """Statistics of a constant that is read as an activation: it is its own calibration data."""
    channels = 1 if axis is None else array.shape[axis]
    rows = (array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(channels, -1)).astype(
        np.float64
    )
    bare = TensorStatistics(
        axis, array.size, rows.min(1), rows.max(1), rows.mean(1), (rows**2).mean(1), np.zeros(channels), np.zeros(0)
    )
    counts, zeros = np.zeros((channels, BINS), np.float32), np.zeros(channels)
    _count(rows[None].astype(np.float32), bare, counts, zeros)
    return replace(bare, histogram=counts / np.float32(rows.shape[1]), zeros=zeros / rows.shape[1])


def only(samples: Samples, chosen: Sequence[int]) -> Iterator[tuple[int, Feed]]:
    """The chosen samples with their indices, in order; stops reading after the last."""
    wanted = set(chosen)
    for index, feed in enumerate(islice(samples, max(wanted) + 1)):
        if index in wanted:
            yield index, feed


def run_sample(session: Session, feed: Feed, index: int) -> dict[str, Array]:
    try:
        return session.run(feed)
    except ValueError as error:
        raise DataError(
            f"the model does not take this sample: {str(error).splitlines()[0]}",
            where=f"calibration sample {index}",
            hint="inputs are " + ", ".join(f"{n} {d} {list(s)}" for n, (d, s) in session.inputs.items()),
        ) from error


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Static shape; a canonical graph has one for every value."""
    if value.shape is None or not value.shape.is_static():
        raise ModelError(
            f"tensor '{value.name}' has no static shape", hint="bind open sizes with --input NAME=1,3,224,224"
        )
    return tuple(int(size) for size in value.shape.numpy())


def values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    values = {value.name or "": value for value in model.graph.inputs} | dict(model.graph.initializers)
    return values | {value.name or "": value for node in model.graph for value in node.outputs}


class _Probe:
    """A copy of the float model whose outputs are statistics."""

    def __init__(self, model: ir.Model, *, keep_outputs: bool = False) -> None:
        self._model = model.clone()
        self._values = values_by_name(self._model)
        if not keep_outputs:
            self._model.graph.outputs.clear()
        self._drawn: dict[str, tuple[int, int]] = {}

    def reduce(self, name: str, op: str, axis: int | None) -> None:
        value = self._values[name]
        rest = [index for index in range(len(shape_of(value))) if index != axis]
        axes = named_initializer(self._model.graph, f"{name}__{op}_axes", np.array(rest, np.int64))
        self._output(op, [value, axes], {"keepdims": 0}, f"{name}__{op}")

    def sample(self, name: str, axis: int | None) -> None:
        """Output ``NAME__sampled`` of shape (outer, channels, at most POSITIONS / outer)."""
        value = self._values[name]
        shape = shape_of(value)
        outer = 1 if axis is None else math.prod(shape[:axis])
        inner = math.prod(shape) if axis is None else math.prod(shape[axis + 1 :])
        channels = math.prod(shape) // (outer * inner)
        flat = named_initializer(self._model.graph, f"{name}__flat", np.array([outer, channels, inner], np.int64))
        limit = max(1, POSITIONS // outer)
        if inner <= limit:
            self._output("Reshape", [value, flat], {}, f"{name}__sampled")
            return
        drawn = f"positions__{inner}__{limit}"
        if drawn not in self._drawn:
            self._drawn[drawn] = (inner, limit)
            self._values[drawn] = ir.val(drawn, ir.DataType.INT64, [limit])
            self._model.graph.inputs.append(self._values[drawn])
        flattened = self._node("Reshape", [value, flat], {}, f"{name}__flattened")
        self._output("Gather", [flattened, self._values[drawn]], {"axis": 2}, f"{name}__sampled")

    def positions(self, random: np.random.Generator) -> dict[str, Array]:
        return {name: random.integers(0, inner, limit) for name, (inner, limit) in self._drawn.items()}

    def session(self, threads: int) -> Session:
        return Session(ir.to_proto(self._model).SerializeToString(), threads=threads)

    def _node(self, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int], name: str) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=name)
        self._model.graph.append(node)
        node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return node.outputs[0]

    def _output(self, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int], name: str) -> None:
        self._model.graph.outputs.append(self._node(op, inputs, attributes, name))
