"""Outputs that are dead, saturated, not finite, swapped, permuted, or went through softmax once too often."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import EdgeoptError, ModelError
from edgeopt.gate.check import Said
from edgeopt.gate.evidence import Evidence
from edgeopt.pipeline.confidence import looks_like_probabilities, softmax

ID = "outputs-alive"
REASON = "a model can run, be fast, and say the same about everything"
REMEDY = "The file's outputs are not the model's: look at its last layers with `edgeopt inspect`, and convert again."
Array = npt.NDArray[Any]

SATURATED = 0.2
"""Share of an output's values at one end of what it takes: above, more than float has there, its range is cut off."""
SAME = 0.9
"""Correlation at which an output, or a column of it, is told to be another one of the float model."""
MOST_VALUES = 200_000
COLUMNS = 200


def run(evidence: Evidence, target: str) -> Said:
    right = evidence.float_outputs
    try:
        made = evidence.outputs(target)
    except ModelError as problem:
        return Said(
            "inconclusive",
            f"this artifact cannot be run on this machine: {problem.what}",
            remedy="Run the gate where its runtime is.",
            comparable=False,
        )
    except (EdgeoptError, ValueError, KeyError, IndexError) as problem:
        what = " ".join(str(problem).split())[:300]
        return Said("fail", f"the artifact does not run: {what}", remedy=REMEDY, comparable=False)
    if missing := [name for name in right if name not in made]:
        what = f"output {', '.join(missing)} is missing; there are {', '.join(made)}"
        return Said("fail", what, remedy=REMEDY, comparable=False)
    if shapes := [text for name in right if (text := _misshapen(name, right[name], made[name]))]:
        return Said("fail", shapes[0], remedy=REMEDY, comparable=False)
    found = [text for name in right if (text := _broken(name, np.asarray(right[name]), np.asarray(made[name])))]
    found = found or _swapped(right, made)
    found = found or [text for name in right if (text := _changed(name, _flat(right[name]), _flat(made[name])))]
    if found:
        return Said("fail", found[0], remedy=REMEDY, details=tuple(found[1:]))
    return Said("pass", f"{len(right)} output{'s' * (len(right) > 1)}: finite, varied, in their places")


def _flat(array: Array) -> Array:
    return np.asarray(array).reshape(len(array), -1)


def _misshapen(name: str, right: Array, made: Array) -> str:
    if right.size != made.size:
        return f"output '{name}' has {made[0].size} values, in float {right[0].size}"
    if right.shape != made.shape:
        return f"output '{name}' is {list(made.shape[1:])}, in float {list(right.shape[1:])}: axes are in another order"
    return ""


def _broken(name: str, right: Array, made: Array) -> str:
    if made.dtype.kind != "f":
        return ""
    bad = ~np.isfinite(made)
    if bad.any() and np.isfinite(right).all():
        return f"output '{name}': {int(bad.sum())} values are NaN or infinite"
    if len(made) > 1 and float(np.ptp(made, axis=0).max()) == 0 and float(np.ptp(right, axis=0).max()) > 0:
        return f"output '{name}' is constant: it is the same for all {len(made)} samples"
    flat, exact = _flat(made), _flat(right)
    if 1 < flat.shape[1] <= COLUMNS and len(flat) > 8:
        dead = (np.ptp(flat, axis=0) == 0) & (np.ptp(exact, axis=0) > 0.02 * np.ptp(exact))
        if dead.any():
            return (
                f"output '{name}': value {int(dead.argmax())} never changes ({int(dead.sum())} such), in float it does"
            )
    for end, text in ((made.max(), "highest"), (made.min(), "lowest")):
        share = float((made == end).mean())
        # What float has near that end is no fault: a ReLU's zeros, a softmax's tails.
        near = float((np.abs(right - end) <= 0.01 * max(float(np.ptp(right)), 1e-12)).mean())
        if share > SATURATED and share > 2 * near:
            return f"output '{name}' is saturated: {share:.0%} of its values are its {text} one, {end:.3g}"
    return ""


def _swapped(right: Any, made: Any) -> list[str]:
    """Outputs of one shape that answer to another's name."""
    found = []
    names = list(right)
    for name in names:
        rivals = [o for o in names if o != name and right[o].shape == right[name].shape]
        if rivals and (own := _similar(right[name], made[name])) < SAME:
            best = max(rivals, key=lambda other: _similar(right[other], made[name]))
            if _similar(right[best], made[name]) > max(SAME, own + 0.05):
                found.append(f"outputs are swapped: '{name}' holds what '{best}' is in the float model")
    return found


def _similar(a: Array, b: Array) -> float:
    x, y = (np.asarray(v).reshape(-1)[:MOST_VALUES].astype(np.float64) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm else 0.0


def _changed(name: str, right: Array, made: Array) -> str:
    """Softmax too often or left out, and columns in another order."""
    if right.ndim != 2 or not 2 <= right.shape[1] <= 20_000 or len(right) < 2:
        return ""
    was, now = looks_like_probabilities(right), looks_like_probabilities(made)
    if was and not now and looks_like_probabilities(softmax(made)) and _near(softmax(made), right):
        return f"output '{name}': softmax is missing, these are logits"
    if now and not was and _near(softmax(right), made):
        return f"output '{name}': these are probabilities, in float logits: a softmax was added"
    if was and now and not _near(right, made) and _near(softmax(right), made):
        return f"output '{name}' went through softmax twice"
    if right.shape[1] <= COLUMNS and len(right) >= 16:
        return _permuted(name, right.astype(np.float64), made.astype(np.float64))
    return ""


def _near(expected: Array, made: Array) -> bool:
    return float(np.abs(expected - made).mean()) <= 0.1 * max(float(np.std(expected)), 1e-9)


def _permuted(name: str, right: Array, made: Array) -> str:
    a, b = right - right.mean(0), made - made.mean(0)
    norms = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
    alike = (a.T @ b) / np.maximum(norms, 1e-12)
    moved = [
        (column, int(alike[:, column].argmax()))
        for column in range(alike.shape[1])
        if alike[:, column].max() > SAME and alike[column, column] < alike[:, column].max() - 0.2
    ]
    if len(moved) >= 2:
        column, origin = moved[0]
        return (
            f"output '{name}' is permuted: value {column} is the float model's value {origin} ({len(moved)} are moved)"
        )
    return ""
