"""Confidence of a classifier: the temperature and the threshold that travel with every artifact of it.

Both are fitted on labelled calibration samples, with the integer reference's answers (which every target's artifact is
held against), before artifacts are written: so they stand in their files, and the evaluation set stays unseen.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import ValidationError

from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.errors import ModelError
from edgeopt.graph.model import shape
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.types import CONFIDENCE, Confidence

Array = npt.NDArray[Any]

MAX_ERROR = 0.01
"""Share of wrong answers that the threshold is chosen for: one in a hundred, as the gate's policy has it."""
FITTED_ON = 1000
"""Samples at most: a temperature has one degree of freedom."""


def fit(graph: QuantizedGraph, samples: LabelledSamples | None, *, threads: int = 1) -> Confidence | None:
    """Temperature and threshold of the integer reference (of the float graph, where nothing is quantized).

    None where there is nothing to fit to: no labels, labels that are no class indices of the first output, outputs
    that are not finite.
    """
    output = graph.model.graph.outputs[0]
    wide = [size for size in shape(output)[1:] if size != 1]
    if samples is None or samples.labels is None or len(wide) != 1:
        return None
    few = Few(samples, FITTED_ON)
    labels, name = few.labels, output.name or ""
    if labels is None or labels.min(initial=0) < 0 or labels.max(initial=0) >= wide[0]:
        return None
    model = ir.to_proto(to_qdq(graph, fold_weights=True)).SerializeToString()
    with Session(model, threads=threads, optimize=False) as session:
        scores = np.stack([session.run(feed, [name])[name].ravel() for feed in few])
    return of_scores(scores, labels) if np.isfinite(scores).all() else None


def of_scores(scores: Array, labels: Array, *, max_error: float = MAX_ERROR) -> Confidence:
    """Of outputs [n, classes] and class indices [n]."""
    temperature = None
    if (scores.argmax(1) != labels).any():  # without a wrong answer, ever more confidence is ever better
        temperature = fit_temperature(scores, labels)
    chosen = threshold_for(probabilities(scores, temperature or 1.0), labels, max_error)
    threshold, coverage, error = chosen if chosen is not None else (None, None, None)
    return Confidence(
        temperature=temperature,
        threshold=threshold,
        coverage=coverage,
        error=error,
        max_error=max_error,
        samples=len(labels),
    )


def read(path: Path) -> Confidence | None:
    """What a written artifact says of itself; None if it says nothing.

    Args:
        path: an ``.onnx``, ``.tflite`` or ``.mlpackage``.

    Raises:
        ModelError: it cannot be read, or what stands there is no such record.
    """
    text: str | bytes | None
    if path.suffix == ".tflite":
        from edgeopt.formats import tflite

        text = tflite.read(path).metadata.get(CONFIDENCE)
    elif path.suffix == ".mlpackage":
        from edgeopt.runtimes.mil_reference import package

        text = package.read(path).metadata.user_defined.get(CONFIDENCE)
    else:
        from edgeopt.formats import onnx

        text = onnx.load(path).metadata_props.get(CONFIDENCE)
    if text is None:
        return None
    try:
        return Confidence.model_validate_json(text)
    except ValidationError as error:
        raise ModelError(
            f"what the metadata says of confidence cannot be read: {error.errors()[0]['msg']}",
            where=f"{path}: {CONFIDENCE}",
            hint="Convert again.",
        ) from error


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """[n, classes] → probabilities; stable for any float."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponents = np.exp(scaled - scaled.max(1, keepdims=True))
    result: Array = exponents / exponents.sum(1, keepdims=True)
    return result


def looks_like_probabilities(outputs: Array) -> bool:
    """Rows [n, classes] that are non-negative and sum to one, within what a grid of 256 steps leaves."""
    sums = outputs.sum(1)
    return bool(outputs.min() >= -1e-3 and np.abs(sums - 1).max() <= 0.02 + 0.002 * outputs.shape[1])


def probabilities(outputs: Array, temperature: float = 1.0) -> Array:
    """Outputs [n, classes] as probabilities; logits through softmax, probabilities as they are (or sharpened)."""
    if looks_like_probabilities(outputs):
        if temperature == 1.0:
            return np.asarray(outputs, np.float64)
        return softmax(np.log(np.maximum(np.asarray(outputs, np.float64), 1e-9)), temperature)
    return softmax(outputs, temperature)


def fit_temperature(outputs: Array, labels: Array) -> float:
    """The temperature of least negative log-likelihood, by golden section on its logarithm (it is unimodal there)."""

    def loss(log_temperature: float) -> float:
        chances = probabilities(outputs, math.exp(log_temperature))
        return float(-np.log(np.maximum(chances[np.arange(len(labels)), labels], 1e-12)).mean())

    ratio, low, high = (math.sqrt(5) - 1) / 2, math.log(0.05), math.log(20)
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def threshold_for(chances: Array, labels: Array, max_error: float) -> tuple[float, float, float] | None:
    """The lowest confidence above which at most ``max_error`` of the answers are wrong: threshold, coverage, error."""
    confidence, right = chances.max(1), chances.argmax(1) == labels
    order = np.argsort(-confidence, kind="stable")
    errors = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    # A threshold cannot part samples of equal confidence.
    last_of_equal = np.append(np.diff(confidence[order]) != 0, True)
    good = np.flatnonzero((errors <= max_error) & last_of_equal)
    if not len(good):
        return None
    last = int(good[-1])
    return float(confidence[order][last]), (last + 1) / len(order), float(errors[last])
