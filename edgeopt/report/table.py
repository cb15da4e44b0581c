"""The rows that console and Markdown show: one per target."""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.parity.compare import EXACT_DB, LevelReport
from edgeopt.pipeline.record import Report, TargetRecord

COLUMNS = ("target", "status", "size", "scheme", "L0", "L1", "L2", "≤ 1 step", "accuracy", "latency", "artifact")
ABOUT = {
    "L0": "source → float graph",
    "L1": "float graph → integer reference",
    "L2": "float graph → artifact, end to end",
    "≤ 1 step": "values of the artifact's segments within one step of the integer reference, on its own integers",
    "accuracy": "top-1, float → artifact",
    "latency": "median on this machine, one thread, float → artifact",
}
"""What a column means."""


@dataclass(frozen=True)
class Row:
    """One target in words. ``cells`` in the order of ``COLUMNS``."""

    name: str
    ok: bool
    cells: tuple[str, ...]


def rows(report: Report) -> list[Row]:
    l0 = report.parity.get("L0")
    return [
        Row(name, target.status in ("ok", "not_built"), _cells(name, target, l0))
        for name, target in report.targets.items()
    ]


def _cells(name: str, target: TargetRecord, l0: LevelReport | None) -> tuple[str, ...]:
    size = "" if target.size_bytes is None else megabytes(target.size_bytes)
    l1, l2 = target.parity.get("L1"), target.parity.get("L2")
    return (
        name,
        target.status,
        size,
        target.scheme,
        decibels(l0.sqnr_db) if l0 and l2 else "",
        decibels(l1.sqnr_db) if l1 else "",
        decibels(l2.sqnr_db) if l2 else "",
        f"{l2.within_one_step:.2%}" if l2 and l2.within_one_step is not None else "",
        _accuracy(target),
        _latency(target),
        target.path or "",
    )


def decibels(value: float) -> str:
    return "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def conversion(report: Report) -> str:
    """L0 in words."""
    level = report.parity.get("L0")
    if level is None:
        return "not compared"
    verdict = "failed" if level.failures else "ok"
    return f"{verdict}, relative error {level.rel:.1e} ({level.label})"


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"


def _accuracy(target: TargetRecord) -> str:
    if target.metrics is not None:
        return f"{target.metrics.float_.top1:.2%} → {target.metrics.target.top1:.2%}"
    l2 = target.parity.get("L2")
    if l2 is not None and l2.top1_agreement is not None:
        return f"agrees {l2.top1_agreement:.1%}"
    return ""


def _latency(target: TargetRecord) -> str:
    measured = target.latency_ms
    if measured is None:
        return ""
    text = f"{measured.target.latency_ms.p50:.3g} ms"
    if measured.float_ is not None:
        text = f"{measured.float_.latency_ms.p50:.3g} → {text}"
    return text + (" slower" if measured.slower_than_float is not None else "")


def integers(target: TargetRecord) -> list[str]:
    """With which other targets it shares its integers, and why not with all."""
    same, weights = ", ".join(target.identical_integers_with), ", ".join(target.identical_weights_with)
    parts = [f"same integers as {same}" if same else "", f"same weight integers as {weights}" if weights else ""]
    found = ["; ".join(filter(None, parts))] if same or weights else []
    return found + ([f"grids of its own: {target.own_grids}"] if target.own_grids is not None else [])
