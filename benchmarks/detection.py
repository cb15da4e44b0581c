"""Decode FastestDet's output and score it: mean average precision at an overlap of 0.5, and how sure a drop of it is.

The output is (85, 22, 22): objectness (its sigmoid is inside the model), four box numbers, 80 class probabilities (so
is their softmax). The box's centre lies at (cell + tanh(t)) / 22, its extent is sigmoid(t) of the whole image; a cell's
score is objectness times its best class probability (https://github.com/dog-qiuqiu/FastestDet, whose evaluation this
follows: score above 0.001, suppression per class at an overlap of 0.45, COCO's 101-point average precision).
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.data import Boxes

MINIMUM_SCORE = 0.001
SUPPRESSION_OVERLAP = 0.45
MATCH_OVERLAP = 0.5
MOST_DETECTIONS = 100  # per image, as COCO has it


@dataclass(frozen=True)
class Detections:
    """Of one image, best score first: `classes` (n,), `scores` (n,), `boxes` (n, 4) as x1, y1, x2, y2 in 0..1."""

    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: (n, 4) and (m, 4) → (n, m)."""
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = corner.clip(0).prod(2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clip(0).prod(1) for x in (a, b))
    return shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-12)


def decode(output: np.ndarray) -> Detections:
    """(85, H, W) of one image → its detections after suppression."""
    channels, height, width = output.shape
    flat = output.reshape(channels, -1).astype(np.float64)
    row, column = (index.ravel() for index in np.mgrid[:height, :width])
    centre = np.stack([(np.tanh(flat[1]) + column) / width, (np.tanh(flat[2]) + row) / height], 1)
    extent = 1 / (1 + np.exp(-flat[3:5].T))
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], 1)
    classes, scores = flat[5:].argmax(0), flat[0] * flat[5:].max(0)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > MINIMUM_SCORE]
    classes, scores, boxes = classes[order], scores[order], boxes[order]
    # Boxes of other classes are never suppressed: their overlap counts as none.
    rivals = (overlaps(boxes, boxes) > SUPPRESSION_OVERLAP) & (classes[:, None] == classes[None])
    keep: list[int] = []
    for i in range(len(scores)):
        if not rivals[i, keep].any():
            keep.append(i)
    keep = keep[:MOST_DETECTIONS]
    return Detections(classes[keep], scores[keep], boxes[keep])


@dataclass(frozen=True)
class Matches:
    """What average precision needs of one image: per detection class, score and hit or not; per class the truths."""

    classes: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    truths: dict[int, int]


def match(found: Detections, truth: Boxes) -> Matches:
    """Greedy, best score first, each true box taken once by the detection of its class that overlaps it most."""
    hits = np.zeros(len(found.scores), bool)
    common = overlaps(found.boxes, truth.boxes) if len(truth.classes) else np.zeros((len(found.scores), 0))
    taken = np.zeros(len(truth.classes), bool)
    for i, class_ in enumerate(found.classes):
        candidates = np.where((truth.classes == class_) & ~taken, common[i], 0)
        if candidates.size and candidates.max() >= MATCH_OVERLAP:
            taken[candidates.argmax()] = hits[i] = True
    counts = dict(zip(*(v.tolist() for v in np.unique(truth.classes, return_counts=True)), strict=True))
    return Matches(found.classes, found.scores, hits, counts)


def mean_average_precision(images: list[Matches]) -> float:
    """COCO's, in percent: precision made monotone, read at 101 recalls, averaged over classes that have a true box."""
    truths: dict[int, int] = {}
    for image in images:
        for class_, count in image.truths.items():
            truths[class_] = truths.get(class_, 0) + count
    if not truths:
        return float("nan")
    classes, scores, hits = (np.concatenate([getattr(m, n) for m in images]) for n in ("classes", "scores", "hits"))
    order = np.argsort(-scores, kind="stable")
    classes, hits = classes[order], hits[order]
    precisions = []
    for class_, count in truths.items():
        good = np.cumsum(hits[classes == class_])
        if not len(good):
            precisions.append(0.0)
            continue
        precision = np.maximum.accumulate((good / np.arange(1, len(good) + 1))[::-1])[::-1]
        at = np.searchsorted(good / count, np.linspace(0, 1, 101), side="left")
        precisions.append(np.append(precision, 0)[np.minimum(at, len(precision))].mean())
    return 100 * float(np.mean(precisions))


def map50(outputs: np.ndarray, truth: list[Boxes]) -> tuple[float, list[Matches]]:
    """(n, 85, H, W) → mean average precision in percent, and the matches for `drop_interval`."""
    images = [match(decode(o), t) for o, t in zip(outputs, truth, strict=True)]
    return mean_average_precision(images), images


def drop_interval(
    reference: list[Matches], candidate: list[Matches], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the drop in mAP50 (points): images drawn with replacement, the same ones for both models."""
    random = np.random.default_rng(seed)
    drops = []
    for _ in range(draws):
        chosen = random.integers(0, len(reference), len(reference))
        a, b = (mean_average_precision([m[i] for i in chosen]) for m in (reference, candidate))
        drops.append(a - b)
    low, high = np.percentile(drops, [2.5, 97.5])
    return float(low), float(high)
