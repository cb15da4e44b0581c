"""Does the calibration data have the scale that the model was trained on? Evidence from the model itself.

The one mistake that no shape or dtype shows is data of 0–255 for a model that saw 0–1 (or a normalised 0–1). What the
model says about it:

- The first weighted layer's bias, with BatchNorm folded into it, is ``beta − gamma·mean/std``: of the order of the
  layer's response to the data that it was trained on. Data 255 times too large makes the bias negligible in every
  channel, which no training leaves behind.
- Operators on the way from the input to that layer (``x / 255``, ``x − mean``, BatchNormalization) are run too, so a
  model with its preprocessing inside shows a response of the right size, whatever its input.
- Evaluation data on quite another scale than calibration data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.data.check import DataStats, InputStats
from edgeopt.graph.model import constant, serialise
from edgeopt.graph.placement import WEIGHTED
from edgeopt.runtimes.onnxruntime import Session

Array = npt.NDArray[Any]

PIXELS_LIKELY = 64.0
"""Largest value from which data may be pixels of 0–255: normalised images stay below 5."""
BIAS_NEGLIGIBLE = 48.0
"""Response over bias (root mean squares, median over channels) from which the bias is called negligible. With the
right data it is 0.9 to 1.2 in trained nets (ResNet20, MobileNetV1) and 8 to 11 in untrained ones; 0–255 instead of
0–1 multiplies it by 255: from 225. Halfway, in decibels, between 10 and 225."""
OTHER_SCALE = 16.0
"""Ratio of standard deviations between calibration and evaluation data that no two draws of one data set show."""


def scale_warning(
    model: ir.Model,
    samples: Iterable[Mapping[str, Array]],
    calibration: DataStats,
    evaluation: DataStats | None,
    threads: int = 1,
) -> list[str]:
    """Warnings with their evidence, or none.

    Args:
        model: the canonical float graph.
        samples: a few calibration samples.
        calibration, evaluation: what ``check`` saw.
        threads: of ONNX Runtime.
    """
    warnings = []
    feeds = list(samples)
    for name, stats in calibration.inputs.items():
        if looks_like_pixels(stats) and (why := _too_large(model, name, feeds, threads)) is not None:
            warnings.append(
                f"calibration values of '{name}' reach {stats.high:g} (mean {stats.mean:.3g}), and {why}: most likely "
                "the model was trained on values of 0–1 or normalised ones, and these are 0–255. Scale the data as in "
                "training, or give preprocess"
            )
        other = evaluation.inputs.get(name) if evaluation is not None else None
        if other is not None and (ratio := _ratio(stats, other)) > OTHER_SCALE:
            warnings.append(
                f"calibration and evaluation values of '{name}' differ {ratio:.0f}-fold in spread (standard deviation "
                f"{stats.std:.3g} and {other.std:.3g}): one of them is not prepared as the other"
            )
    return warnings


def looks_like_pixels(stats: InputStats) -> bool:
    """Values that may be pixels: none negative, up to 255, and far above 1."""
    return stats.low >= 0 and PIXELS_LIKELY <= stats.high <= 255


def _ratio(a: InputStats, b: InputStats) -> float:
    low, high = sorted((a.std, b.std))
    return high / low if low > 0 else 1.0


def _too_large(model: ir.Model, name: str, feeds: list[Mapping[str, Array]], threads: int) -> str | None:
    """What in the model speaks against data of 0–255, or None."""
    layers = _first_layers(model, name)
    if not layers:
        return None
    layer = next((node for node in layers if _bias(node) is not None), None)
    if layer is None:
        seen = _run(model, layers[0].inputs[0], feeds, threads)
        largest = max(float(np.abs(array).max()) for array in seen)
        text = f"nothing before the first layer '{layers[0].name}' scales them down (it reads up to {largest:g})"
        return text if largest >= PIXELS_LIKELY else None
    bias = _bias(layer)
    assert bias is not None
    square = np.zeros(len(bias))
    for answer in _run(model, layer.outputs[0], feeds, threads):
        channels = np.moveaxis(answer, 1, 0).reshape(len(bias), -1).astype(np.float64) - bias[:, None]
        square += np.square(channels).mean(1)
    used = bias != 0
    ratio = float(np.median(np.sqrt(square / len(feeds))[used] / np.abs(bias[used])))
    if ratio <= BIAS_NEGLIGIBLE:
        return None
    return f"layer '{layer.name}' answers {ratio:.0f} times its bias, which then has no effect"


def _first_layers(model: ir.Model, name: str) -> list[ir.Node]:
    """Weighted nodes that depend on the input, in topological order."""
    reached, layers = {name}, []
    for node in model.graph:
        if any(value is not None and value.name in reached for value in node.inputs):
            if node.op_type in WEIGHTED:
                layers.append(node)
            reached |= {value.name or "" for value in node.outputs}
    return layers


def _bias(node: ir.Node) -> Array | None:
    """The bias per channel, or None if it is zero."""
    bias = constant(node.inputs[2])
    return bias if bias is not None and bias.any() else None


def _run(model: ir.Model, value: ir.Value | None, feeds: list[Mapping[str, Array]], threads: int) -> list[Array]:
    """One value of the graph for every feed."""
    assert value is not None and value.name is not None
    if value.producer() is None:
        return [feed[value.name] for feed in feeds]
    cut = model.clone()
    cut.graph.outputs.clear()
    cut.graph.outputs.append(next(v for n in cut.graph for v in n.outputs if v.name == value.name))
    _drop_behind(cut.graph)
    with Session(serialise(cut), threads=threads) as session:
        return [session.run(feed)[value.name] for feed in feeds]


def _drop_behind(graph: ir.Graph) -> None:
    """Remove what the outputs do not need; inputs stay, as the caller feeds by name."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
