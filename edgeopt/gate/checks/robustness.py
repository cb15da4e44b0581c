"""The artifact beside float under brightness, contrast, blur, noise and JPEG, at three strengths."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeopt.data.samples import Feed, Few
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence, called
from edgeopt.gate.statistics import holm, mcnemar
from edgeopt.graph.model import serialise
from edgeopt.runtimes.onnxruntime import Session

ID = "robustness"
REASON = "ranges are calibrated on good images; in bad light values leave them, and only the integer model breaks"
Array = npt.NDArray[Any]


def brightness(pixels: Array, strength: float, random: np.random.Generator) -> Array:
    return pixels - strength * 0.4


def contrast(pixels: Array, strength: float, random: np.random.Generator) -> Array:
    return (pixels - 0.5) * (1 + 2 * strength) + 0.5


def blur(pixels: Array, strength: float, random: np.random.Generator) -> Array:
    """A box of 3 pixels, once to three times."""
    for _ in range(round(strength * 3)):
        for axis in (1, 2):
            padded = np.pad(pixels, [(0, 0), *((1, 1) if a == axis else (0, 0) for a in (1, 2))], mode="edge")
            size = pixels.shape[axis]
            pixels = np.stack([padded.take(range(k, k + size), axis) for k in range(3)]).mean(0, dtype=np.float32)
    return pixels


def noise(pixels: Array, strength: float, random: np.random.Generator) -> Array:
    return pixels + random.normal(0, strength * 0.15, pixels.shape)


def jpeg(pixels: Array, strength: float, random: np.random.Generator) -> Array:
    """(C, H, W) in 0–1; channels other than 3 one by one as grey."""
    planes = [pixels] if len(pixels) == 3 else [plane[None] for plane in pixels]
    made = []
    for plane in planes:
        whole = np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(whole.transpose(1, 2, 0).squeeze(2) if len(whole) == 1 else whole.transpose(1, 2, 0)).save(
            buffer, "JPEG", quality=round(70 - 55 * strength)
        )
        decoded = np.asarray(Image.open(buffer), np.float32) / 255
        made.append(decoded[None] if decoded.ndim == 2 else decoded.transpose(2, 0, 1))
    return np.concatenate(made)


Perturbation = Callable[[Array, float, np.random.Generator], Array]
PERTURBATIONS: dict[str, Perturbation] = {
    "brightness": brightness, "contrast": contrast, "blur": blur, "noise": noise, "jpeg": jpeg,
}  # fmt: skip
STRENGTHS = (1 / 3, 2 / 3, 1.0)


def run(evidence: Evidence, target: str) -> Said | None:
    policy, inputs = evidence.policy.robustness, evidence.run.signature.inputs
    if policy.samples == 0 or not evidence.is_classifier or evidence.labels is None:
        return None
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[0] != 1 or inputs[0].shape[1] not in (1, 3):
        return None  # no image in NCHW
    few = Few(evidence.samples, policy.samples)
    labels, feeds = few.labels, list(few)
    assert labels is not None
    name, output = inputs[0].name, evidence.first_output
    bounds = _bounds(evidence, feeds, name)
    clean = evidence.answers(None)[few.numbers] == labels, evidence.answers(target)[few.numbers] == labels
    already = float(clean[0].mean() - clean[1].mean())
    drops: dict[str, list[float]] = {}
    p_values = []
    with Session(serialise(evidence.run.source)) as exact, evidence.runner(target) as runner:
        for what, perturb in PERTURBATIONS.items():
            for strength in STRENGTHS:
                changed = list(_perturbed(feeds, name, bounds, perturb, strength, evidence.policy.seed))
                right = evidence.once((ID, what, strength), partial(_answers, exact, changed, output)) == labels
                made = np.array([int(a.argmax()) for a in called(runner, changed, output)]) == labels
                drops.setdefault(what, []).append(float(right.mean() - made.mean()))
                p_values.append(mcnemar(int((right & ~made).sum()), int((made & ~right).sum())))
    adjusted = np.array(holm(p_values)).reshape(len(drops), len(STRENGTHS))
    table = np.array(list(drops.values()))
    row, level = (int(index) for index in np.unravel_index(int(table.argmax()), table.shape))
    worst = f"{list(drops)[row]} at strength {level + 1} of {len(STRENGTHS)}"
    beyond = table - max(already, 0.0)
    seen = {"robustness": {key: tuple(round(v, 4) for v in values) for key, values in drops.items()}}
    figures: Figures = {
        "worst": worst,
        "worst_drop": float(table.max()),
        "samples": len(few),
    }
    details = tuple(
        f"{key}: " + ", ".join(f"{v * 100:+.1f}" for v in values) + " points" for key, values in drops.items()
    )
    bad = (beyond > policy.max_drop) & (adjusted < evidence.policy.alpha)
    if bad.any():
        return Said(
            "fail",
            f"breaks under {worst}: {table.max() * 100:.1f} points below float, on clean images {already * 100:.1f}",
            remedy="Put such images into the calibration set, so that ranges cover them.",
            details=details,
            figures=figures,
            evidence=seen,
        )
    text = f"worst: {worst}, {table.max() * 100:+.1f} points below float on {len(few)} samples"
    if (beyond > policy.max_drop).any():
        return Said(
            "inconclusive",
            f"{text}: too few to tell from chance",
            remedy="Raise `robustness: {samples: …}`.",
            details=details,
            figures=figures,
            evidence=seen,
        )
    return Said("pass", text, details=details, figures=figures, evidence=seen)


def _answers(session: Session, feeds: list[Feed], output: str) -> Array:
    return np.array([int(session.run(feed)[output].argmax()) for feed in feeds])


def _bounds(evidence: Evidence, feeds: list[Feed], name: str) -> tuple[Array, Array]:
    """What black and white are in the model's input, per channel [C, 1, 1]: from the contract, else from the data."""
    contract, channels = evidence.run.recipe.preprocess, feeds[0][name].shape[1]
    data = evidence.run.recipe.data.evaluation
    if contract is not None and data is not None and data.images is not None:
        mean, std = (np.asarray(v, np.float64).reshape(-1, 1, 1) for v in (contract.mean, contract.std))
        low, high = -mean / std, (255 * contract.scale - mean) / std
        return np.broadcast_to(low, (channels, 1, 1)), np.broadcast_to(high, (channels, 1, 1))
    stacked = np.stack([feed[name][0] for feed in feeds]).astype(np.float64)
    return stacked.min((0, 2, 3))[:, None, None], stacked.max((0, 2, 3))[:, None, None]


def _perturbed(
    feeds: list[Feed], name: str, bounds: tuple[Array, Array], perturb: Perturbation, strength: float, seed: int
) -> Iterator[Feed]:
    low, high = bounds
    width = np.maximum(high - low, 1e-9)
    for index, feed in enumerate(feeds):
        pixels = ((feed[name][0] - low) / width).astype(np.float32)
        changed = np.clip(perturb(pixels, strength, np.random.default_rng([seed, index])), 0, 1)
        yield {**feed, name: (changed * width + low).astype(feed[name].dtype)[None]}
