"""How much a float model differs from itself: numerically equivalent variants of one graph on the same samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.data.samples import Feed
from edgeopt.graph.model import serialise
from edgeopt.runtimes.onnxruntime import Session

ULP = 2.0**-24
"""Half a unit in the last place of float32: what any weight may be off for having been stored."""


@dataclass(frozen=True)
class NoiseFloor:
    """Largest relative error (Euclidean, over all outputs and samples) of a variant, and which were tried."""

    relative: float
    variants: str


def noise_floor(model: ir.Model, samples: Iterable[Feed]) -> NoiseFloor:
    """Of a float graph: optimisations off (another order of sums), and every weight moved by half a rounding.

    ``relative`` is at least the rounding of one float32.
    """
    feeds = list(samples)
    with Session(serialise(model)) as session:
        right = [session.run(feed) for feed in feeds]
    largest = ULP
    for data, optimize in ((serialise(model), False), (_jittered(model), True)):
        with Session(data, optimize=optimize) as session:
            signal = noise = 0.0
            for feed, expected in zip(feeds, right, strict=True):
                made = session.run(feed)
                for name, array in expected.items():
                    signal += float(np.square(array.astype(np.float64)).sum())
                    noise += float(np.square(made[name].astype(np.float64) - array).sum())
        if signal and np.isfinite(noise):
            largest = max(largest, float(np.sqrt(noise / signal)))
    return NoiseFloor(largest, "graph optimisations off; all weights moved by half a unit in the last place")


def _jittered(model: ir.Model) -> bytes:
    changed = model.clone()
    random = np.random.default_rng(0)
    for value in changed.graph.initializers.values():
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            array = value.const_value.numpy()
            factor = 1 + ULP * random.choice([-1.0, 1.0], array.shape)
            value.const_value = ir.tensor((array * factor).astype(np.float32), name=value.name)
    return serialise(changed)
