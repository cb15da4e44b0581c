"""What training passes did, for console and Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.pipeline.record import Report
from edgeopt.training.base import TrainingRecord

BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 60


def summary(record: TrainingRecord) -> str:
    """One line: cost before and after, and how the training went."""
    parts = []
    if record.before != record.after:
        macs, params = ((getattr(record.before, n), getattr(record.after, n)) for n in ("macs", "params"))
        parts.append(f"MACs {_count(macs[0])} → {_count(macs[1])} ({macs[1] / macs[0]:.0%})")
        parts.append(f"parameters {_count(params[0])} → {_count(params[1])} ({params[1] / params[0]:.0%})")
    if record.sparsity:
        zeros = sum(record.sparsity.values()) / len(record.sparsity)
        parts.append(f"{zeros:.0%} zeros in {len(record.sparsity)} layers")
    if record.epochs:
        first, last = record.epochs[0], record.epochs[-1]
        parts.append(f"{len(record.epochs)} epochs, loss {first['loss']:.3g} → {last['loss']:.3g}")
    return f"{record.use}: {', '.join(parts) or 'nothing changed'}"


def sections(report: Report) -> list[str]:
    """Markdown: one section per pass, with what each layer lost and the curve of the loss."""
    lines: list[str] = []
    for record in report.training:
        lines += [f"## {record.use}", "", summary(record), ""]
        changed = [one for one in record.layers if one.inputs[0] != one.inputs[1] or one.outputs[0] != one.outputs[1]]
        if changed:
            lines += ["| layer | inputs | outputs | MACs |", "|---|---|---|---|"]
            for one in changed:
                kept = f"{one.macs[1] / max(one.macs[0], 1):.0%}"
                lines.append(f"| {one.layer} | {_pair(one.inputs)} | {_pair(one.outputs)} | {kept} |")
            lines.append("")
        for name in ("loss", "held_loss", "top1", "held_top1"):
            values = [epoch[name] for epoch in record.epochs if name in epoch]
            if values:
                lines.append(f"- {name} by epoch: `{curve(values)}` {values[0]:.4g} → {values[-1]:.4g}")
        lines += [*(f"- {note}" for note in record.notes), ""]
    return lines


def curve(values: Sequence[float]) -> str:
    """Values as bars between the least and the largest; every n-th where there are many."""
    step = -(-len(values) // MOST_BARS)
    shown = list(values)[::step]
    low, high = min(shown), max(shown)
    return "".join(BARS[round((value - low) / (high - low) * 7) if high > low else 0] for value in shown)


def _count(value: int) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _pair(pair: tuple[int, int]) -> str:
    return f"{pair[0]} → {pair[1]}" if pair[0] != pair[1] else str(pair[0])
