"""The calibration set's doctor: size, duplicates, range, class coverage, distance to the evaluation set, and images
that stretch ranges by themselves."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeopt import digest
from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence
from edgeopt.graph.model import exposed
from edgeopt.graph.placement import WEIGHTED
from edgeopt.pipeline.calibration_doctor import STRETCHES, distance, far_apart
from edgeopt.pipeline.verdict import Picture, Verdict
from edgeopt.runtimes.onnxruntime import Session

ID = "calibration-data"
REASON = "scales are chosen on these samples; what they lack, the integer model has never seen"
Array = npt.NDArray[Any]

LOOKED_AT = 300
SHOWN = 6
SHIFTED = 0.25
"""Standard deviations by which the means of a tensor's channels lie apart (rms over the channels, beyond chance):
halves of one set come to 0 to 0.1, a quarter turn, other light or noise to 0.3 and more."""
ACTIVATIONS_AT = 100
SHUFFLES, LEAST_CHANNELS = 60, 8


def run(evidence: Evidence, target: None) -> Said | None:
    calibration, policy = evidence.calibration, evidence.policy.calibration
    if calibration is None or not evidence.asked_int8():
        return None
    few = Few(calibration, LOOKED_AT)
    name = evidence.run.signature.inputs[0].name
    arrays = [np.asarray(feed[name]) for feed in few]
    different = len({digest.of_array(array) for array in arrays})
    figures: Figures = {"samples": len(calibration), "different": different}
    wrong, unsure, details = [], [], []
    responses = _Responses(evidence, few)
    if different <= 1 and len(arrays) > 1:
        wrong.append(f"all {len(arrays)} calibration samples are the same")
    elif 1 - different / len(arrays) > policy.max_duplicates:
        wrong.append(f"{1 - different / len(arrays):.0%} of the calibration samples are duplicates")
    if len(calibration) < policy.min_samples:
        unsure.append(
            f"{len(calibration)} calibration samples, at least {policy.min_samples}: ranges hang on single ones"
        )
    if evidence.evaluation is not None:
        others = [np.asarray(feed[name]) for feed in Few(evidence.evaluation, LOOKED_AT)]
        both = len({digest.of_array(a) for a in arrays} & {digest.of_array(a) for a in others})
        if both:
            unsure.append(f"{both} evaluation samples are calibration samples too: figures on them look too good")
        apart, how = distance(arrays, others)
        figures["distance"] = round(apart, 4)
        details.append(f"distance to the evaluation set {apart:.3f} (total variation of values; {how})")
        if far_apart(arrays, others, apart):
            wrong.append(f"calibration and evaluation values are far apart: {apart:.2f} of 1 ({how})")
        shift, where = _shift(evidence, responses)
        figures["shift"] = round(shift, 3)
        details.append(f"activations of the two sets lie {shift:.2f} standard deviations apart at most (node {where})")
        if shift > SHIFTED:
            wrong.append(
                f"calibration and evaluation samples are not alike to the model: at node {where} channel means lie "
                f"{shift:.2f} standard deviations apart, beyond chance; one of the two sets is prepared wrongly"
            )
        answered = _coverage(evidence, few)
        figures["classes"] = answered[0]
        if answered[1]:
            text = ", ".join(f"'{evidence.class_name(index)}'" for index in answered[1][:5])
            more = f" and {len(answered[1]) - 5} more" if len(answered[1]) > 5 else ""
            (unsure if len(calibration) < 5 * (answered[0] + len(answered[1])) else wrong).append(
                f"no calibration sample of class {text}{more}, as the float model sees them"
            )
    stretching = _stretching(responses)
    details += [text for _, text in stretching]
    pictures = _pictures(arrays, few, stretching)
    verdict: Verdict = "fail" if wrong else "inconclusive" if unsure else "pass"
    if wrong or unsure:
        said = [*wrong, *unsure]
        remedy = "Calibrate on a few hundred samples drawn as those that the model will meet."
        return Said(verdict, said[0], remedy=remedy,
                    details=(*said[1:], *details), figures=figures, evidence={"pictures": pictures})  # fmt: skip
    text = f"{len(calibration)} samples, {different} different of {len(arrays)} looked at"
    if stretching:
        text += f"; {len(stretching)} stretch ranges"
    return Said("pass", text, details=tuple(details), figures=figures, evidence={"pictures": pictures})


class _Responses:
    """What the float graph answers to some samples, tensor by tensor: peaks of one, means of the channels of another.

    Args:
        evidence: of the run; its graph after the passes is looked at.
        samples: at most ``ACTIVATIONS_AT`` of them.
    """

    def __init__(self, evidence: Evidence, samples: LabelledSamples) -> None:
        graph, table = evidence.run.graph, evidence.run.graph.quantization
        self.makers = {value.name or "": node.name or "" for node in graph.model.graph for value in node.outputs}
        self.on_grid = [name for name in (table.activations if table is not None else {}) if name in self.makers]
        weighted = [
            value.name or "" for node in graph.model.graph if node.op_type in WEIGHTED for value in node.outputs
        ]
        names = list(dict.fromkeys([*self.on_grid, *weighted]))
        few = Few(samples, ACTIVATIONS_AT)
        self.numbers = few.numbers
        peaks: list[list[float]] = []
        means: dict[str, list[Array]] = {name: [] for name in weighted}
        with Session(exposed(graph.model, names)) as session:
            for feed in few:
                found = session.run(feed, names)
                peaks.append([float(np.abs(found[name]).max(initial=0)) for name in self.on_grid])
                for name, rows in means.items():
                    rows.append(_per_channel(found[name]))
        self.peaks = np.array(peaks)
        self.means = {name: np.stack(rows).astype(np.float64) for name, rows in means.items()}


def _shift(evidence: Evidence, calibration: _Responses) -> tuple[float, str]:
    """How differently the float model's channels respond to two sets: the tensor where most, and its node.

    Per channel the difference of the means over samples, in standard deviations; squared and averaged over the
    channels of a tensor, less what shuffled samples reach in 95 % of the cases.
    """
    evaluation = _Responses(evidence, evidence.samples)
    count, others = len(calibration.peaks), len(evaluation.peaks)
    random = np.random.default_rng(evidence.policy.seed)
    orders = [random.permutation(count + others) for _ in range(SHUFFLES)]
    worst, where = 0.0, "none"
    for name, own in calibration.means.items():
        if min(own.shape[1], count, others) < LEAST_CHANNELS:
            continue
        both = np.concatenate([own, evaluation.means[name]])
        found = _apart(both, count) - float(np.quantile([_apart(both[order], count) for order in orders], 0.95))
        if found > 0 and np.sqrt(found) > worst:
            worst, where = float(np.sqrt(found)), calibration.makers[name]
    return worst, where


def _per_channel(array: Array) -> Array:
    """Means over places: of [1, C, …] or [1, T, C]."""
    if array.ndim < 2:
        return array.ravel()
    means: Array = array[0].mean(0) if array.ndim == 3 else array[0].reshape(array.shape[1], -1).mean(1)
    return means


def _apart(array: Array, count: int) -> float:
    """Of the first ``count`` rows and the others: squared difference of means over variance, mean over columns."""
    a, b = array[:count], array[count:]
    spread = (a.var(0) + b.var(0)) / 2
    alive = spread > 0
    return float((np.square(a.mean(0) - b.mean(0))[alive] / spread[alive]).mean()) if alive.any() else 0.0


def _coverage(evidence: Evidence, few: Few) -> tuple[int, list[int]]:
    """Classes that the float model sees in the calibration samples, and those it sees in evaluation only.

    Labels of calibration samples are seldom there; the model's own answers are good enough for this.
    """
    if not evidence.is_classifier:
        return 0, []
    output = evidence.first_output
    if few.labels is not None:
        seen = {int(label) for label in few.labels}
    else:
        with evidence.float_session() as session:
            seen = {int(session.run(feed, [output])[output].argmax()) for feed in few}
    answers, counts = np.unique(evidence.answers(None), return_counts=True)
    # A class that evaluation shows once or twice may be a wrong answer.
    often = {int(index) for index, count in zip(answers, counts, strict=True) if count >= max(3, 0.01 * counts.sum())}
    return len(seen), sorted(often - seen)


def _stretching(responses: _Responses) -> list[tuple[int, str]]:
    """Samples that alone widen a tensor's range: place among the samples looked at, and in words."""
    names, made, table_of_peaks = responses.on_grid, responses.makers, responses.peaks
    if len(table_of_peaks) < 3 or not names:
        return []
    order = np.sort(table_of_peaks, axis=0)
    ratio = order[-1] / np.maximum(order[-2], 1e-12)
    found: dict[int, str] = {}
    for column in np.argsort(-ratio):
        if ratio[column] < STRETCHES or order[-2][column] <= 0:
            break
        sample = responses.numbers[int(table_of_peaks[:, column].argmax())]
        text = (
            f"calibration sample {sample} reaches {order[-1][column]:.3g} at node {made[names[column]]}, "
            f"{ratio[column]:.1f} times any other"
        )
        found.setdefault(sample, text)
    return list(found.items())[:SHOWN]


def _pictures(arrays: list[Array], few: Few, stretching: list[tuple[int, str]]) -> tuple[Picture, ...]:
    chosen = dict(stretching)
    for index in (0, len(arrays) // 3, 2 * len(arrays) // 3):
        chosen.setdefault(index, f"calibration sample {few.numbers[index]}")
    made = []
    for index, title in list(chosen.items())[:SHOWN]:
        picture = _png(arrays[index])
        if picture is not None:
            made.append(Picture(title=title, png=picture))
    return tuple(made)


def _png(array: Array) -> str | None:
    """An image input as PNG in base64, stretched to 0–255; None where it is no image."""
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        return None
    pixels = array[0].transpose(1, 2, 0).astype(np.float64)
    low, high = pixels.min(), pixels.max()
    whole = np.rint((pixels - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    image = Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)
    image.thumbnail((160, 160))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
