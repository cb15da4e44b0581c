"""A look at the calibration set before anything is quantized on it: what it lacks is cheapest to mend now.

``data.check`` sees values; here the float graph answers too: which classes it sees, and which samples reach far beyond
all others in some layer, so that ranges are stretched for their sake. The gate looks again, with tests, when it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt import digest
from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.graph.model import exposed, shape
from edgeopt.graph.placement import WEIGHTED
from edgeopt.runtimes.onnxruntime import Session

Array = npt.NDArray[Any]

LOOKED_AT = 100
"""Samples of each set, evenly spread: one in a hundred that is odd is then seen with a chance of two in three."""
MIN_SAMPLES = 16
"""Below it ranges hang on single samples. As the gate's policy has it."""
MAX_DUPLICATES = 0.5
"""Share of samples that are copies of others. As the gate's policy has it."""
FAR = 0.35
"""Share by which the histograms of two sets' values differ (total variation): halves of one set differ by 0.02–0.1."""
SURELY_FAR = 0.7
"""No two draws of a few samples of one kind differ by as much: pixels of 0–255 against 0–1 do."""
SHUFFLES = 40
"""Of which two must not reach the distance found: chance 5 %."""
STRETCHES = 3.0
"""A sample whose largest value is three times the next sample's costs the others a bit and a half."""
SEEN_OFTEN = 3
"""Samples of a class in the evaluation set from which its absence in the calibration set is told."""
BINS = 64
VALUES = 4096
"""Of each sample and channel: enough for a histogram."""
NAMED = 3


def warnings(
    model: ir.Model, calibration: LabelledSamples, evaluation: LabelledSamples | None, *, threads: int = 1
) -> list[str]:
    """What is wrong with a calibration set, in words; empty for a good one.

    Args:
        model: the canonical float graph.
        calibration: what scales are to be chosen on.
        evaluation: what the model will be judged on, if there is such.
        threads: of ONNX Runtime.
    """
    found = []
    few = Few(calibration, LOOKED_AT)
    seen = _Seen(model, few, threads)
    copies = 1 - len(set(seen.digests)) / len(few)
    if len(calibration) > 1 and MAX_DUPLICATES < copies < 1 - 1 / len(few):  # all alike: ``data.check`` says it
        found.append(f"{copies:.0%} of the calibration samples are copies of others: they say no more than one does")
    if 1 < len(calibration) < MIN_SAMPLES:
        found.append(
            f"{len(calibration)} calibration samples: ranges hang on single ones; give {MIN_SAMPLES} at least, "
            "better a few hundred"
        )
    if evaluation is not None and len(evaluation):
        others = _Seen(model, Few(evaluation, LOOKED_AT), threads, answers_only=True)
        apart, how = distance(seen.values, others.values)
        if far_apart(seen.values, others.values, apart):
            found.append(f"calibration and evaluation values are far apart: {apart:.2f} of 1 ({how})")
        elif missing := _missing(seen.classes, others.classes):
            shown = ", ".join(str(name) for name in missing[:NAMED])
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            found.append(
                f"no calibration sample looked at is of class {shown}{more}, and evaluation samples are: quantization "
                "hurts classes that it has not seen"
            )
    stretching = [
        f"calibration sample {few.numbers[place]} reaches {peak:.3g} at node {node}, {ratio:.1f} times any other: "
        "ranges are stretched for its sake"
        for place, node, peak, ratio in seen.stretching()
    ]
    return [*found, *stretching[:NAMED]]


class _Seen:
    """One pass: digests, values, the largest magnitude behind every weighted node, the answers.

    Args:
        model: float graph.
        few: the samples.
        threads: of ONNX Runtime.
        answers_only: leave out the layers.
    """

    def __init__(self, model: ir.Model, few: Few, threads: int, *, answers_only: bool = False) -> None:
        made = {v.name or "": n.name or "" for n in model.graph if n.op_type in WEIGHTED for v in n.outputs}
        self._makers = {} if answers_only else made
        output = model.graph.outputs[0].name or ""
        classes = [size for size in shape(model.graph.outputs[0])[1:] if size != 1]
        self.digests: list[str] = []
        self.values: list[Array] = []
        """The first input of every sample, as it is."""
        peaks, answers = [], []
        name = model.graph.inputs[0].name or ""
        classifies = len(classes) == 1 and classes[0] > 1
        wanted = [*self._makers, *([output] if classifies and few.labels is None else [])]
        with Session(exposed(model, self._makers), threads=threads) as session:
            for feed in few:
                self.digests.append(digest.of_json([digest.of_array(array) for _, array in sorted(feed.items())]))
                self.values.append(feed[name])
                found = session.run(feed, wanted) if wanted else {}
                peaks.append([float(np.abs(found[one]).max(initial=0)) for one in self._makers])
                if output in wanted:
                    answers.append(int(found[output].argmax()))
        self._peaks = np.array(peaks, np.float64)
        self.classes: npt.NDArray[np.int64] | None = None
        """Class of every sample, by its label, else as the model sees it; None for what is no classifier."""
        if classifies:
            self.classes = few.labels if few.labels is not None else np.array(answers, np.int64)

    def stretching(self) -> list[tuple[int, str, float, float]]:
        """Samples that alone widen a layer's range, once each: place, node, its peak, how many times the next one's."""
        if self._peaks.size == 0 or len(self._peaks) < 3:
            return []
        order, nodes = np.sort(self._peaks, axis=0), list(self._makers.values())
        ratio = order[-1] / np.maximum(order[-2], 1e-12)
        found: dict[int, tuple[int, str, float, float]] = {}
        for column in np.argsort(-ratio):
            if ratio[column] < STRETCHES:
                break
            if order[-2][column] > 0:
                place = int(self._peaks[:, column].argmax())
                found.setdefault(place, (place, nodes[column], float(order[-1][column]), float(ratio[column])))
        return list(found.values())


def distance(a: Sequence[Array], b: Sequence[Array]) -> tuple[float, str]:
    """Total variation of the histograms of two sets' values, 0–1, of the channel where it is largest, and in words."""
    worst, how = 0.0, "one distribution"
    channels = a[0].shape[1] if a[0].ndim == 4 else 1
    for channel in range(min(channels, 4)):
        x, y = (np.concatenate([_values(sample, channel) for sample in samples]) for samples in (a, b))
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        if high <= low:
            continue
        p, q = (np.histogram(v, BINS, (low, high))[0] / v.size for v in (x, y))
        found = float(np.abs(p - q).sum() / 2)
        if found > worst:
            worst = found
            how = f"channel {channel}: mean {x.mean():.3g} and {y.mean():.3g}, spread {x.std():.3g} and {y.std():.3g}"
    return worst, how


def far_apart(a: Sequence[Array], b: Sequence[Array], apart: float) -> bool:
    """Whether the distance of two sets is large, and larger than shuffled samples make it: a few photographs of one
    kind can differ by 0.4."""
    if apart <= FAR or apart > SURELY_FAR:
        return apart > FAR
    every = [*a, *b]
    channels = every[0].shape[1] if every[0].ndim == 4 else 1
    counts = []
    for channel in range(min(channels, 4)):
        values = [_values(sample, channel) for sample in every]
        low, high = min(v.min() for v in values), max(v.max() for v in values)
        if high > low:
            counts.append([np.histogram(v, BINS, (low, high))[0] / v.size for v in values])
    shares, random = np.array(counts), np.random.default_rng(0)
    reached = 0
    for _ in range(SHUFFLES):
        order = random.permutation(len(every))
        p, q = (shares[:, part].mean(1) for part in (order[: len(a)], order[len(a) :]))
        reached += bool((np.abs(p - q).sum(1) / 2).max() >= apart)
    return reached < SHUFFLES // 20


def _values(sample: Array, channel: int) -> Array:
    """Evenly spread: the top rows of images are often sky."""
    flat = (sample[:, channel] if sample.ndim == 4 else sample).ravel()
    return flat[:: -(-flat.size // VALUES)].astype(np.float64)


def _missing(calibration: Array | None, evaluation: Array | None) -> list[int]:
    """Classes that evaluation shows often and calibration never, where so many samples could show them all."""
    if calibration is None or evaluation is None:
        return []
    names, counts = np.unique(evaluation, return_counts=True)
    often = {int(name) for name, count in zip(names, counts, strict=True) if count >= SEEN_OFTEN}
    known = {int(name) for name in calibration}
    return sorted(often - known) if len(calibration) >= 5 * len(often) else []
