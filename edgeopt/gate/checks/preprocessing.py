"""The preprocessing contract: the artifact fed as a naive user would, and labels and data that are wrong themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.data.samples import Feed, Few
from edgeopt.gate.check import Said
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.statistics import mcnemar
from edgeopt.graph.model import serialise
from edgeopt.pipeline.confidence import looks_like_probabilities
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.types import Preprocess

ID = "preprocessing"
REASON = "most bad results in the field come from data that is prepared otherwise than in training, not from the model"
Array = npt.NDArray[Any]
Change = Callable[[Array], Array]

SAMPLES = 128
FIRST, NEAR = 40, 0.05
"""Most mistakes ruin right data, as so many samples show: only one that comes near is looked at on all of them."""
BETTER = 0.05
"""Five points on the same samples, and beyond chance: a mistake in the data, not luck."""
DOUBTFUL, WRONG = 0.08, 0.2
"""Of all samples, labels that are wrong by all appearance. With right labels models of 80 to 99 % stay below 0.02;
large public sets have up to a tenth wrong, and are used."""
LEAST = 5
"""Samples without which nothing is said of a class, nor of labels as a whole."""


def run(evidence: Evidence, target: str) -> Said | None:
    inputs = evidence.run.signature.inputs
    contract = evidence.run.artifacts[target].preprocess
    asked = evidence.run.recipe.preprocess
    if contract is not None and asked is not None and (text := _differs(contract, asked)):
        return Said("fail", f"the artifact's contract is not the recipe's: {text}", remedy="Convert again.")
    if not evidence.is_classifier or evidence.labels is None:
        return None
    labels, scores = evidence.labels, evidence.scores(None)
    classes = scores.shape[1]
    if labels.max(initial=0) >= classes or labels.min(initial=0) < 0:
        wrong = int(((labels >= classes) | (labels < 0)).sum())
        return Said(
            "fail",
            f"labels do not fit the model: {wrong} of {len(labels)} are outside its {classes} classes "
            f"(highest {int(labels.max())})",
            remedy="Use the labels that belong to this model; class indices start at 0.",
        )
    names = evidence.class_names
    if names and len(names) != classes:
        return Said(
            "fail",
            f"the recipe names {len(names)} classes and the model has {classes}",
            remedy="Complete `labels` in the recipe: an app shows the name at the index of the answer.",
        )
    right = scores.argmax(1) == labels
    moved = _shifted(scores.argmax(1), labels, right) or _renamed(evidence, scores.argmax(1), labels)
    if moved is not None:
        return Said(
            "fail", moved, remedy="Correct the labels; class indices start at 0 and stand in the model's order."
        )
    if len(inputs) == 1 and len(inputs[0].shape) == 4:
        said = _naive(evidence, target, labels)
    else:
        said = Said("pass", f"labels fit the {classes} classes")
    share, text = _doubtful(scores, labels)
    if said.verdict == "pass" and share >= DOUBTFUL:
        remedy = "Look at these samples: labels that lost their order, or data that is not what was labelled."
        return replace(said, verdict="fail" if share >= WRONG else "inconclusive", summary=text, remedy=remedy)
    return said


def _naive(evidence: Evidence, target: str, labels: Array) -> Said:
    few = Few(evidence.samples, SAMPLES)
    numbers, feeds = few.numbers, list(few)
    first = range(0, len(feeds), max(len(feeds) // FIRST, 1))
    name, output = evidence.run.signature.inputs[0].name, evidence.first_output
    changes = _changes(evidence, feeds, name)
    known = labels[numbers]
    right = evidence.answers(None)[numbers] == known
    found: dict[str, float] = {}
    better: list[tuple[float, str]] = []
    with Session(serialise(evidence.run.source)) as exact, evidence.runner(target) as runner:
        for what, change in changes.items():
            changed: list[Feed] = [{**feed, name: change(feed[name]).astype(feed[name].dtype)} for feed in feeds]
            made = np.array([int(runner.call(changed[place])[output].argmax()) for place in first])
            found[what] = float((made == known[first]).mean())
            if found[what] <= float(right[first].mean()) - NEAR:
                continue
            other = np.array([int(exact.run(feed)[output].argmax()) for feed in changed]) == known
            gain = float(other.mean() - right.mean())
            p_value = mcnemar(int((other & ~right).sum()), int((right & ~other).sum()))
            # Not corrected for how many were tried: nearly all of them ruin right data, so few can win by chance.
            if gain > BETTER and p_value < evidence.policy.alpha / 2:
                better.append((gain, what))
    seen = {"naive": {key: round(value, 4) for key, value in found.items()}}
    details = tuple(f"{what}: {value:.1%}" for what, value in found.items())
    if better:
        gain, what = max(better)
        return Said(
            "fail",
            f"the data is at fault, not the model: with '{what}' the float model has {right.mean() + gain:.1%} right "
            f"answers instead of {right.mean():.1%}",
            remedy="Correct `preprocess` in the recipe, or the arrays, so that they are as in training.",
            details=details,
            evidence=seen,
        )
    worst = min(found, key=lambda key: found[key]) if found else None
    text = f"labels and data fit the model; {len(found)} usual mistakes tried, none is better"
    if worst is not None:
        text += f" (worst: {worst}, {found[worst]:.1%})"
    return Said("pass", text, details=details, evidence=seen)


def _differs(contract: Preprocess, asked: Preprocess) -> str:
    for key in ("color", "scale", "mean", "std"):  # the layout is the format's own
        if (there := getattr(contract, key)) != (wanted := getattr(asked, key)):
            return f"{key} is {there}, asked {wanted}"
    return ""


def _shifted(answers: Array, labels: Array, right: Array) -> str | None:
    """Labels that fit when moved by one, or that are all one class."""
    for step in (1, -1):
        moved = labels + step
        share, now = float((answers == moved).mean()), float(right.mean())
        if share > 0.5 and share > now + 0.2:
            return (
                f"labels are off by one: {share:.1%} of the answers are label {'+' if step > 0 else '−'} 1, "
                f"{now:.1%} the label"
            )
    if len(labels) >= 20 and len(np.unique(labels)) == 1 and len(np.unique(answers)) > 1:
        return (
            f"all {len(labels)} labels are class {int(labels[0])}, and the model sees {len(np.unique(answers))} classes"
        )
    tail = _broken_tail(right)
    if tail is not None:
        return (
            f"labels no longer fit from sample {tail} on: {right[:tail].mean():.1%} right before, "
            f"{right[tail:].mean():.1%} after"
        )
    return None


def _renamed(evidence: Evidence, answers: Array, labels: Array) -> str | None:
    """Classes under each other's numbers: most samples of each are answered as the next one of a closed round."""
    moved: dict[int, int] = {}
    for name in np.unique(labels):
        own = answers[labels == name]
        values, counts = np.unique(own, return_counts=True)
        if len(own) >= LEAST and counts.max() > len(own) / 2 and values[counts.argmax()] != name:
            moved[int(name)] = int(values[counts.argmax()])
    # A class that the model takes for another is a weak model; two that it exchanges are a list in another order.
    while moved and set(moved) != set(moved.values()):
        moved = {name: other for name, other in moved.items() if other in moved and name in moved.values()}
    if not moved:
        return None
    name, other = next(iter(moved.items()))
    return (
        f"labels are in another order than the model's classes: samples of '{evidence.class_name(name)}' are answered "
        f"as '{evidence.class_name(other)}' ({len(moved)} classes change places)"
    )


def _doubtful(scores: Array, labels: Array) -> tuple[float, str]:
    """Labels that do not belong to their samples: there the model is as sure of another answer as it is of right ones.

    A model is seldom sure where it is wrong; where labels are, it is sure in half of the cases, above the median.
    Returns an estimate of the share of such labels, and the same in words.
    """
    logits = np.log(np.maximum(scores, 1e-12)) if looks_like_probabilities(scores) else scores
    best = np.sort(logits.astype(np.float64), axis=1)[:, -2:]
    margin, right = best[:, 1] - best[:, 0], scores.argmax(1) == labels
    if right.sum() < LEAST:
        return 0.0, ""
    sure = int((margin[~right] >= np.median(margin[right])).sum())
    share = min(2 * sure / len(labels), 1.0) if sure >= LEAST else 0.0
    return share, (
        f"labels do not fit the data: about {share:.0%} of them seem wrong (on {sure} of {len(labels)} samples "
        "the float model is as sure of another answer as it is of its right ones)"
    )


def _broken_tail(right: Array) -> int | None:
    """Where answers stop being right for good: labels that were cut off, filled up, or lost a line."""
    count = len(right)
    if count < 60:
        return None
    hits = np.cumsum(right)
    best, place = 0.0, None
    for start in range(20, count - 20, 5):
        before, after = hits[start - 1] / start, (hits[-1] - hits[start - 1]) / (count - start)
        if before - after > max(best, 0.4) and before > 0.5:
            best, place = before - after, start
    return place


def _changes(evidence: Evidence, feeds: list[Feed], name: str) -> dict[str, Change]:
    """Usual mistakes, and what undoes them: channels, range, normalisation, layout, size."""
    channels = feeds[0][name].shape[1]
    contract = evidence.run.recipe.preprocess
    stacked = np.stack([feed[name][0] for feed in feeds[:32]])
    low, high = float(stacked.min()), float(stacked.max())
    found: dict[str, Change] = {}
    if channels == 3:
        found["BGR and RGB swapped"] = lambda x: x[:, ::-1]
    if high > low:
        if high <= 16:
            found["values of 0–255 instead of 0–1"] = lambda x: x * np.float32(255)
        if high > 16:
            found["values divided by 255"] = lambda x: x / np.float32(255)
        found["values of −1 to 1"] = lambda x: (x - low) / np.float32(high - low) * 2 - 1
        found["values of 0 to 1"] = lambda x: (x - low) / np.float32(high - low)
        found["light and dark inverted"] = lambda x: np.float32(high + low) - x
    means = {"ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
    if contract is not None and (any(contract.mean) or any(s != 1 for s in contract.std)):
        means["the contract's"] = (contract.mean, contract.std)  # type: ignore[assignment]
    for whose, (mean, std) in means.items():
        if len(mean) in (1, channels):
            m, s = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (mean, std))
            found[f"{whose} mean and std missing"] = lambda x, m=m, s=s: x * s + m  # type: ignore[misc]
            found[f"{whose} mean and std applied once more"] = lambda x, m=m, s=s: (x - m) / s  # type: ignore[misc]
    found["NHWC bytes read as NCHW"] = lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(x.shape)
    found["NCHW bytes read as NHWC"] = lambda x: np.ascontiguousarray(
        x.reshape(x.shape[0], *x.shape[2:], x.shape[1]).transpose(0, 3, 1, 2)
    )
    if feeds[0][name].shape[2] == feeds[0][name].shape[3]:
        found["height and width swapped"] = lambda x: x.transpose(0, 1, 3, 2)
        for quarters in (1, 2, 3):  # an orientation tag that nobody read
            found[f"rotated by {90 * quarters}°"] = lambda x, k=quarters: np.rot90(x, k, (2, 3))  # type: ignore[misc]
    found["resized by nearest neighbour"] = lambda x: np.repeat(np.repeat(x[:, :, ::2, ::2], 2, 2), 2, 3)[
        :, :, : x.shape[2], : x.shape[3]
    ]
    if channels == 1:
        del found["NHWC bytes read as NCHW"], found["NCHW bytes read as NHWC"]  # one channel: the same bytes
    return found
