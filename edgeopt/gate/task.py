"""Task metrics, each as a score of any subset of the evaluation samples, so that all have a paired interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.data.callables import load_function
from edgeopt.errors import DataError, MissingPackage, UsageError
from edgeopt.gate.evidence import Evidence, Outputs

Array = npt.NDArray[Any]
Score = Callable[[Array], float]
"""Numbers of samples [k], with repeats, to the metric on them; higher is better."""


@dataclass(frozen=True)
class Task:
    """One metric.

    Args:
        name: as reports show it.
        score: of a set of outputs, a function of sample numbers.
        draws: of a bootstrap, as far as the metric's cost allows.
        further: other figures of the same kind, over all samples.
    """

    name: str
    score: Callable[[Outputs], Score]
    draws: int
    further: Callable[[Outputs], dict[str, float]]


def task_of(evidence: Evidence) -> Task | None:
    """What the policy asks for; top-1 is None here, as it has tests of its own. None: nothing can be scored.

    Raises:
        UsageError: the policy lacks what the metric needs.
    """
    policy = evidence.policy.metric
    if policy.name == "miou":
        return _segmentation(evidence)
    if policy.name == "map":
        return _detection(evidence)
    if ":" in policy.name:
        function: Any = load_function(policy.name, evidence.run.root)

        def score(outputs: Outputs) -> Score:
            return lambda chosen: float(function({name: array[chosen] for name, array in outputs.items()}, chosen))

        return Task(policy.name, score, 200, lambda outputs: {})
    if policy.name == "top1" and not evidence.is_classifier:
        raise UsageError(
            "top-1 needs class labels and an output with one score per class",
            where="policy: metric.name",
            hint="Give labels with data.evaluation, or another metric.",
        )
    return None


# --- segmentation


def _segmentation(evidence: Evidence) -> Task:
    policy = evidence.policy.metric
    truth = _masks(policy.truth, len(evidence.samples))
    output = evidence.first_output

    def counts(outputs: Outputs) -> Array:
        scores = outputs[output]
        if scores.ndim != 4 or scores.shape[2:] != truth.shape[1:]:
            raise DataError(
                f"the output '{output}' is {list(scores.shape[1:])} and the masks are {list(truth.shape[1:])}",
                where=str(policy.truth),
                hint="mIoU needs scores [classes, height, width] and masks of the same height and width.",
            )
        classes = scores.shape[1]
        found = np.zeros((len(scores), classes, classes), np.int64)
        for index, mask in enumerate(truth):
            used = mask != policy.ignore
            pairs = mask[used].astype(np.int64) * classes + np.asarray(scores[index]).argmax(0)[used]
            found[index] = np.bincount(pairs, minlength=classes**2)[: classes**2].reshape(classes, classes)
        return found

    def score(outputs: Outputs) -> Score:
        found = counts(outputs)
        return lambda chosen: mean_iou(found[chosen].sum(0))

    return Task("mIoU", score, 1000, lambda outputs: {})


def mean_iou(confusion: Array) -> float:
    """Mean over the classes that occur of intersection over union; ``confusion`` [true, answer] in pixels."""
    hit = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hit
    there = union > 0
    return float((hit[there] / union[there]).mean()) if there.any() else 0.0


def _masks(path: Path | None, count: int) -> Array:
    if path is None:
        raise UsageError("mIoU needs masks", where="policy: metric.truth", hint="Give an npz with `masks` [n, H, W].")
    try:
        with np.load(path, allow_pickle=False) as stored:
            masks: Array = stored["masks"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"masks cannot be read: {error}", where=str(path), hint="An npz with `masks` [n, H, W]."
        ) from error
    if len(masks) != count:
        raise DataError(f"{len(masks)} masks for {count} evaluation samples", where=str(path))
    return masks


# --- detection


def _detection(evidence: Evidence) -> Task:
    policy = evidence.policy.metric
    if policy.decode is None or policy.truth is None:
        raise UsageError(
            "mAP needs boxes: how to read them from the outputs, and the true ones",
            where="policy: metric",
            hint='Give `decode: "module:function"` (outputs of one sample → rows of x1, y1, x2, y2, score, class) and '
            "`truth: annotations.json` (COCO).",
        )
    decode: Any = load_function(policy.decode, evidence.run.root)
    truth = _annotations(policy.truth)
    images = sorted(image["id"] for image in truth["images"])
    if len(images) < len(evidence.samples):
        raise DataError(
            f"{len(images)} images for {len(evidence.samples)} evaluation samples",
            where=str(policy.truth),
            hint="One image per evaluation sample, by id in the order of the samples.",
        )

    def evaluated(outputs: Outputs) -> CocoScore:
        boxes = []
        for index in range(len(evidence.samples)):
            rows = np.asarray(decode({name: array[index] for name, array in outputs.items()}), np.float64)
            for x1, y1, x2, y2, chance, name in rows.reshape(-1, 6):
                box = [x1, y1, x2 - x1, y2 - y1]
                boxes.append({"image_id": images[index], "category_id": int(name), "bbox": box, "score": float(chance)})
        return CocoScore(truth, boxes, images[: len(evidence.samples)])

    cache: dict[int, CocoScore] = {}

    def once(outputs: Outputs) -> CocoScore:
        return cache.setdefault(id(outputs), evaluated(outputs))

    return Task("mAP50:95", lambda outputs: once(outputs).map, 100, lambda outputs: once(outputs).figures())


class CocoScore:
    """COCO's mAP of one set of boxes, by pycocotools; images are matched once, any subset is scored from that."""

    def __init__(self, truth: Mapping[str, Any], boxes: list[dict[str, Any]], images: list[int]) -> None:
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError as error:
            raise MissingPackage("pycocotools", "detection", "mAP") from error
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()):
            reference = COCO()
            reference.dataset = {
                **truth,
                "annotations": [_complete(a, i) for i, a in enumerate(truth["annotations"], 1)],
            }
            reference.createIndex()
            self._empty = not boxes
            if boxes:
                self._evaluation = COCOeval(reference, reference.loadRes(boxes), "bbox")
                self._evaluation.params.imgIds = images
                self._evaluation.evaluate()
        self._images = images

    def map(self, chosen: Array) -> float:
        """mAP50:95 over the images with these numbers, repeats counted."""
        return self._precision(chosen, slice(None))

    def figures(self) -> dict[str, float]:
        return {"mAP50": self._precision(np.arange(len(self._images)), slice(0, 1))}

    def _precision(self, chosen: Array, thresholds: slice) -> float:
        if self._empty:
            return 0.0
        import contextlib
        import copy
        import io

        evaluation = copy.copy(self._evaluation)
        evaluation.params = copy.deepcopy(self._evaluation.params)
        count = len(self._images)
        # evalImgs: [category][area][image], flat, in pycocotools' order
        per = [
            self._evaluation.evalImgs[start : start + count]
            for start in range(0, len(self._evaluation.evalImgs), count)
        ]
        evaluation.evalImgs = [one[index] for one in per for index in chosen]
        evaluation.params.imgIds = list(range(len(chosen)))
        evaluation._paramsEval = copy.deepcopy(evaluation.params)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate(evaluation.params)
        precision = evaluation.eval["precision"][thresholds, :, :, 0, -1]
        known = precision[precision > -1]
        return float(known.mean()) if known.size else 0.0


def _complete(annotation: Mapping[str, Any], number: int) -> dict[str, Any]:
    box = annotation["bbox"]
    return {"iscrowd": 0, "area": box[2] * box[3], **annotation, "id": number}


def _annotations(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert {"images", "annotations", "categories"} <= found.keys()
    except (OSError, ValueError, AssertionError) as error:
        raise DataError(
            f"no COCO annotations: {error}", where=str(path), hint="JSON with `images`, `annotations`, `categories`."
        ) from error
    return found
