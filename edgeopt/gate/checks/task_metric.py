"""The task metric of artifact and float model on the same samples: the drop with its paired interval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeopt.gate import statistics
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.task import Task, task_of
from edgeopt.pipeline.verdict import MOST_CLASSES, Interval, MetricRecord

ID = "task-metric"
REASON = "what users feel is the task's metric; everything else only explains it"
REMEDY = (
    "Look at the parity checks for the layer that loses most; keep it in float (`--bisect`), or use more and better "
    "calibration data."
)


def run(evidence: Evidence, target: str) -> Said | None:
    task = task_of(evidence)
    if task is None and not evidence.is_classifier:
        return Said(
            "inconclusive",
            "no task metric: the evaluation data has no labels that fit the outputs",
            remedy="Give labels with data.evaluation, or `metric:` in the policy.",
        )
    return _top1(evidence, target) if task is None else _scored(evidence, target, task)


def _top1(evidence: Evidence, target: str) -> Said:
    policy, labels = evidence.policy, evidence.labels
    assert labels is not None
    answers = {"float": evidence.answers(None), "target": evidence.answers(target)}
    right = {name: found == labels for name, found in answers.items()}
    lost = int((right["float"] & ~right["target"]).sum())
    won = int((right["target"] & ~right["float"]).sum())
    level = policy.confidence_level
    drop = statistics.paired_drop(right["float"], right["target"], level=level, seed=policy.seed)
    p_value = statistics.mcnemar(lost, won)
    further = {
        "macro F1": (statistics.macro_f1(answers["float"], labels), statistics.macro_f1(answers["target"], labels))
    }
    classes = evidence.scores(None).shape[1]
    if classes > 10:
        further["top-5"] = tuple(_top(evidence, name, 5) for name in (None, target))  # type: ignore[assignment]
    record = MetricRecord(
        name="top-1",
        samples=len(labels),
        float_=statistics.share_interval(right["float"], level=level),
        target=statistics.share_interval(right["target"], level=level),
        drop=drop,
        p_value=p_value,
        further=further,
    )
    seen: dict[str, object] = {"metric": record, "agreement": float((answers["float"] == answers["target"]).mean())}
    if classes <= MOST_CLASSES and labels.max(initial=0) < classes:
        for name, found in answers.items():
            counts = statistics.confusion(found, labels, classes)
            seen[f"confusion_{name}"] = tuple(tuple(int(x) for x in row) for row in counts)
    details = (
        f"{lost} answers lost, {won} won of {len(labels)}; exact McNemar p = {p_value:.3g} (one-sided)",
        f"paired bootstrap {level:.0%}: {_points(drop.low)} to {_points(drop.high)}",
    )
    return _judged(evidence, record, details, seen, worse=p_value < policy.alpha)


def _top(evidence: Evidence, target: str | None, many: int) -> float:
    scores, labels = evidence.scores(target), evidence.labels
    assert labels is not None
    best = np.argpartition(-scores, many - 1, axis=1)[:, :many]
    return float((best == labels[:, None]).any(1).mean())


def _scored(evidence: Evidence, target: str, task: Task) -> Said:
    policy, count = evidence.policy, len(evidence.samples)
    outputs = {"float": evidence.float_outputs, "target": evidence.outputs(target)}
    scores = {name: task.score(found) for name, found in outputs.items()}
    level = policy.confidence_level

    def interval(score: Callable[[statistics.Array], float]) -> Interval:
        return statistics.bootstrap(score, count, draws=task.draws, level=level, seed=policy.seed)

    drop = interval(lambda chosen: scores["float"](chosen) - scores["target"](chosen))
    figures = {name: task.further(found) for name, found in outputs.items()}
    record = MetricRecord(
        name=task.name,
        samples=count,
        float_=interval(scores["float"]),
        target=interval(scores["target"]),
        drop=drop,
        further={name: (value, figures["target"][name]) for name, value in figures["float"].items()},
    )
    details = (f"paired bootstrap {level:.0%} of {task.draws} draws: {_points(drop.low)} to {_points(drop.high)}",)
    return _judged(evidence, record, details, {"metric": record}, worse=drop.low > 0)


def _judged(
    evidence: Evidence, record: MetricRecord, details: tuple[str, ...], seen: dict[str, object], *, worse: bool
) -> Said:
    limit, drop = evidence.policy.metric.max_drop, record.drop
    figures: Figures = {
        "float": record.float_.value,
        "target": record.target.value,
        "drop": drop.value,
        "drop_low": drop.low,
        "drop_high": drop.high,
        "samples": record.samples,
        "p_value": record.p_value,
    }
    details = (*details, *(f"{name}: {a:.4f} → {b:.4f}" for name, (a, b) in record.further.items()))
    text = f"{record.name} {record.float_.value:.2%} → {record.target.value:.2%} on {record.samples} samples"
    if drop.value > limit and worse:
        return Said(
            "fail",
            f"{text}: {_points(drop.value)} lost, at most {_points(limit)} (beyond chance)",
            remedy=REMEDY,
            details=details,
            figures=figures,
            evidence=seen,
        )
    if drop.high <= limit:
        return Said("pass", text, details=details, figures=figures, evidence=seen)
    needed = statistics.samples_to_settle(drop, limit, record.samples)
    figures["samples_to_settle"] = needed
    many = "no number of samples settles it: the estimate is on the limit" if needed is None else (
        f"about {needed} samples would settle it"
    )  # fmt: skip
    return Said(
        "inconclusive",
        f"{text}: the drop is {_points(drop.low)} to {_points(drop.high)}, the limit {_points(limit)}; {many}",
        remedy="Give more labelled evaluation samples.",
        details=details,
        figures=figures,
        evidence=seen,
    )


def _points(share: float) -> str:
    return f"{share * 100:.2f} points"
