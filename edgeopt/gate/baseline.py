"""The baseline file: a few figures of the agreed run, for people to read in a diff. No timings, no digests."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from edgeopt.errors import DataError, ModelError
from edgeopt.gate.checks import size
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.task import task_of
from edgeopt.graph.metrics import sqnr_db
from edgeopt.parity.compare import EXACT_DB
from edgeopt.types import Frozen


class Tolerances(Frozen):
    """What may be worse without being told: other processors round otherwise.

    Args:
        sqnr_db: 1.5 dB: kernels with and without VNNI, and ARM's, differ by about one.
        metric: share of samples; a standard error of the wrong answers where that is more.
        size: share of the bytes.
    """

    sqnr_db: float = 1.5
    metric: float = 0.002
    size: float = 0.02


class Figures(Frozen):
    """Of one target. ``metric``: the task's, of ``samples`` samples; ``sqnr_db``: against float, end to end;
    ``float_ops``: weighted operators in float where int8 was asked."""

    metric: float | None = None
    samples: int | None = None
    sqnr_db: float | None = None
    size_bytes: int | None = None
    float_ops: int | None = None
    leftovers: int | None = None


class Baseline(Frozen):
    """``baseline.json``, ``edgeopt.baseline/1``."""

    schema_: Literal["edgeopt.baseline/1"] = Field(default="edgeopt.baseline/1", alias="schema")
    targets: dict[str, Figures]
    tolerances: Tolerances = Tolerances()
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def figures_of(evidence: Evidence, target: str) -> Figures:
    """As measured now, rounded to what can be told."""
    run, name = evidence.run, evidence.first_output
    metric, samples, decibel = None, None, None
    # What cannot be run here has figures of its file only.
    with contextlib.suppress(ModelError):
        outputs = evidence.outputs(target)
        right = evidence.float_outputs[name]
        decibel = round(min(sqnr_db(right, outputs[name].reshape(right.shape)), EXACT_DB), 1)
        if evidence.is_classifier and evidence.labels is not None:
            samples = len(evidence.labels)
            metric = float((evidence.answers(target) == evidence.labels).mean())
        elif (task := task_of(evidence)) is not None:
            samples = len(evidence.samples)
            metric = task.score(outputs)(np.arange(samples))
    asked = run.recipe.requested().get(target)
    realised = asked.realised(run.path(target), run.graph) if asked is not None else None
    return Figures(
        metric=None if metric is None else round(metric, 4),
        samples=samples,
        sqnr_db=decibel,
        size_bytes=size.bytes_of(run.path(target)),
        float_ops=None if realised is None else len(realised.unasked_float),
        leftovers=None if realised is None else len(realised.leftovers),
    )


def as_text(evidence: Evidence) -> str:
    """The text of a baseline of this run."""
    targets = {name: figures_of(evidence, name) for name in sorted(evidence.run.artifacts)}
    kept = Baseline(targets=targets).model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(kept, indent=2) + "\n"


def read(path: Path) -> Baseline:
    """Raises ``DataError`` where it is no baseline."""
    try:
        return Baseline.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise DataError(
            f"no baseline: {str(error).splitlines()[0]}",
            where=str(path),
            hint="`edgeopt gate RUN --write-baseline FILE` writes one.",
        ) from error
