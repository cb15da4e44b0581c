"""What the gate says of one run: ``gate.json``, ``edgeopt.gate/1``. The gate fills it, the reports show it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from edgeopt.recipe.schema import CardText
from edgeopt.types import Frozen

Verdict = Literal["pass", "fail", "inconclusive"]


class Interval(Frozen):
    """An estimate with its confidence interval; ``level`` of it, 0–1."""

    value: float
    low: float
    high: float
    level: float = 0.95


class CheckResult(Frozen):
    """What one check says of one target, or of the whole run.

    Args:
        id: of the check.
        target: which artifact; None: the run as a whole.
        verdict: ``inconclusive`` where the data cannot tell; it passes unless the policy says otherwise.
        summary: one line; of a failure it names the cause or the layer first.
        reason: why this is checked.
        remedy: what to do; empty where nothing is to be done.
        details: derivations and figures, in words.
        layer: the source's node that is at fault, where known.
        figures: the numbers that the verdict rests on, by name.
    """

    id: str
    target: str | None = None
    verdict: Verdict
    summary: str
    reason: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    layer: str | None = None
    figures: dict[str, float | int | str | None] = Field(default_factory=dict)


class SliceRecord(Frozen):
    """One slice: ``group`` is ``class`` or a column of the table; shares are of right answers."""

    group: str
    name: str
    samples: int
    float_: float = Field(alias="float")
    target: float
    drop: float
    p_adjusted: float
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ReliabilityBin(Frozen):
    """Samples whose confidence lies in one of equal bins: mean confidence and share of right answers."""

    samples: int
    confidence: float
    accuracy: float


class Reliability(Frozen):
    """Confidence of one model: expected calibration error and its bins (Guo et al., 2017, arXiv:1706.04599)."""

    ece: float
    bins: tuple[ReliabilityBin, ...]


class ConfidenceRecord(Frozen):
    """Confidence before and after, the temperature that repairs it, and a threshold with what it costs.

    Args:
        temperature: divides the logits; fitted on labelled calibration samples; None without labels there.
        threshold: answers of lower confidence are to be refused.
        coverage: share of evaluation samples above it.
        error: share of wrong answers among those.
    """

    float_: Reliability = Field(alias="float")
    target: Reliability
    temperature: float | None = None
    ece_scaled: float | None = None
    threshold: float | None = None
    coverage: float | None = None
    error: float | None = None
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class LayerError(Frozen):
    """SQNR of one tensor of the table in the integer reference, against float; in graph order."""

    tensor: str
    node: str
    sqnr_db: float


class Histogram(Frozen):
    """Counts of a tensor's values between ``low`` and ``high`` in equal bins: float, and as its grid has them."""

    tensor: str
    low: float
    high: float
    float_: tuple[int, ...] = Field(alias="float")
    quantized: tuple[int, ...]
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class MetricRecord(Frozen):
    """The task metric of both models on the same samples, and the drop (float minus target) with its paired interval.

    ``further``: other figures of the same task by name, (float, target).
    """

    name: str
    samples: int
    float_: Interval = Field(alias="float")
    target: Interval
    drop: Interval
    p_value: float | None = None
    further: dict[str, tuple[float, float]] = Field(default_factory=dict)
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class TargetEvidence(Frozen):
    """What the gate measured on one artifact, for the reports.

    ``confusion``: rows are true classes, columns answers; only where there are at most ``MOST_CLASSES``.
    ``robustness``: perturbation → strength by strength, drop of the metric.
    """

    metric: MetricRecord | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    slices: tuple[SliceRecord, ...] = ()
    confusion_float: tuple[tuple[int, ...], ...] = ()
    confusion_target: tuple[tuple[int, ...], ...] = ()
    confidence: ConfidenceRecord | None = None
    layers: tuple[LayerError, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    robustness: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    naive: dict[str, float] = Field(default_factory=dict)
    """What a naive user's mistake does to the metric: mistake → metric."""


class Picture(Frozen):
    """One sample as a PNG (base64), and why it is shown."""

    title: str
    png: str


class GateResult(Frozen):
    """``gate.json``: verdict first, then every check, then the evidence.

    Args:
        headline: the verdict in one line; of a failed gate, the cause.
        policy: as it was applied.
        told: what the recipe says for the model card.
    """

    schema_: Literal["edgeopt.gate/1"] = Field(default="edgeopt.gate/1", alias="schema")
    edgeopt: str
    verdict: Verdict
    exit_code: Literal[0, 1]
    headline: str
    checks: tuple[CheckResult, ...]
    evidence: dict[str, TargetEvidence] = Field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    policy: dict[str, Any] = Field(default_factory=dict)
    told: CardText = CardText()
    seconds: float
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


MOST_CLASSES = 40
"""A confusion matrix of more classes cannot be read."""
