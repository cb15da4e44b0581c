"""Size of the artifact on disk, and memory of a run, against their budgets."""

from __future__ import annotations

from pathlib import Path

from edgeopt.gate.bench_results import matching
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence

ID = "size"
REASON = "flash and memory of a device are what they are"


def run(evidence: Evidence, target: str) -> Said:
    policy = evidence.policy.budget
    size = bytes_of(evidence.run.path(target))
    figures: Figures = {"size_bytes": size}
    limits = [limit for limit in (policy.size_mb, evidence.run.recipe.budget.size_mb) if limit is not None]
    limit = min(limits, default=None)
    if limit is not None and size > limit * 1e6:
        return Said(
            "fail",
            f"{size / 1e6:.2f} MB, at most {limit:g} MB",
            remedy="Use a smaller scheme (int8, int8-weights), or a smaller model.",
            figures=figures,
        )
    text = f"{size / 1e6:.3g} MB" + ("" if limit is None else f", at most {limit:g}")
    if policy.memory_mb is None:
        return Said("pass", text, figures=figures)
    found = [m for one in matching(evidence, target) if (m := one.memory_mb) is not None]
    if not found:
        return Said(
            "inconclusive",
            f"{text}; memory was not measured",
            remedy="Give `latency: {results: FILE}` of `edgeopt bench --json` with memory.",
            figures=figures,
        )
    figures["memory_mb"] = max(found)
    if max(found) > policy.memory_mb:
        return Said(
            "fail",
            f"{max(found):.1f} MB of memory, at most {policy.memory_mb:g}",
            remedy="Use smaller inputs or a narrower model: activations make up the peak.",
            figures=figures,
        )
    return Said("pass", f"{text}; {max(found):.1f} MB of memory", figures=figures)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
