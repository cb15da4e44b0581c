"""The smallest set of layers to keep in float with which a run passes the gate: found by sensitivity, confirmed by
converting and judging again, offered as a change of the recipe with what it costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.gate.differing_layer import computed_by
from edgeopt.gate.run_folder import RunFolder
from edgeopt.graph.placement import WEIGHTED
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.pipeline.record import Report
from edgeopt.pipeline.run import Options, convert
from edgeopt.pipeline.store import HOME
from edgeopt.pipeline.verdict import GateResult
from edgeopt.pipeline.worker import Workers
from edgeopt.recipe.schema import Recipe
from edgeopt.types import Frozen

Judge = Callable[[Path], GateResult]
"""Judges a finished run by the same policy."""
MOST_DROPPED = 6
"""So many layers are also tried without each one: beyond, the order of sensitivity has to do."""


class Bisected(Frozen):
    """What was found.

    Args:
        kept: names of nodes to keep in float; None: no set passes, so quantization is not the cause.
        runs: conversions that were made and judged.
        headline: of the last run that failed.
        patch: the change of the recipe, YAML; empty if nothing has to change.
        costs: in words, per target: size and latency before and after.
    """

    kept: tuple[str, ...] | None
    runs: int
    headline: str
    patch: str = ""
    costs: tuple[str, ...] = ()


@dataclass
class _Search:
    """Converts with some layers in float, and remembers how it went."""

    run: RunFolder
    work: Path
    judge: Judge
    workers: Workers | None
    runs: int = 0
    headline: str = ""

    def passes(self, kept: Sequence[str]) -> Report | None:
        """The report of the run with these layers in float if it passes, else None."""
        self.runs += 1
        out = self.work / f"run-{self.runs}"
        # What is the same in all of them, training above all, is not done again.
        shutil.copytree(self.run.out / HOME / "steps", out / HOME / "steps")
        outcome = convert(_keeping(self.run.recipe, kept), out, Options(root=self.run.root), workers=self.workers)
        result = self.judge(out)
        if result.exit_code:
            self.headline = result.headline
            return None
        return outcome.report


def bisect(run: RunFolder, result: GateResult, judge: Judge, work: Path, *, workers: Workers | None = None) -> Bisected:
    """Search.

    Args:
        run: the run that failed.
        result: what the gate said of it.
        judge: judges a run by the same policy and baseline.
        work: a folder for runs, which the caller removes.
        workers: for the conversions; None: each starts its own.

    Raises:
        UsageError: nothing was quantized.
    """
    order = by_sensitivity(run, result)
    if not order:
        raise UsageError("no layer is quantized: there is nothing to keep in float", where=str(run.out))
    search = _Search(run, work, judge, workers)
    if search.passes(()) is not None:
        return Bisected(kept=(), runs=search.runs, headline="converted again as it is, the run passes")
    found = search.passes(order)
    if found is None:
        return Bisected(kept=None, runs=search.runs, headline=search.headline)
    low, high = 0, len(order)  # passes with `high` layers, not with `low`
    size = 1
    while size < high:
        if (report := search.passes(order[:size])) is not None:
            high, found = size, report
            break
        low, size = size, size * 2
    while high - low > 1:
        middle = (low + high) // 2
        if (report := search.passes(order[:middle])) is not None:
            high, found = middle, report
        else:
            low = middle
    kept = list(order[:high])
    for name in list(kept[:-1]) if len(kept) <= MOST_DROPPED else ():
        fewer = [one for one in kept if one != name]
        if (report := search.passes(fewer)) is not None:
            kept, found = fewer, report
    return Bisected(
        kept=tuple(kept),
        runs=search.runs,
        headline=search.headline,
        patch=_patch(kept),
        costs=tuple(_costs(run.report, found)),
    )


def by_sensitivity(run: RunFolder, result: GateResult) -> tuple[str, ...]:
    """Quantized weighted nodes, those first that a check named, then by how much error they add."""
    table = run.graph.quantization
    scheme_of = table.schemes if table is not None else {}
    nodes = [n.name or "" for n in run.graph.model.graph if n.op_type in WEIGHTED and (n.name or "") in scheme_of]
    layers = next((evidence.layers for evidence in result.evidence.values() if evidence.layers), ())
    added: dict[str, float] = {}
    before = 60.0  # beyond any 8-bit tensor
    for layer in layers:
        named = computed_by(run.graph.model, layer.node)
        node = named.partition(" (of ")[2].rstrip(")") or named
        added[node] = max(added.get(node, -1e9), before - layer.sqnr_db)
        before = layer.sqnr_db
    blamed = [check.layer for check in result.checks if check.verdict == "fail" and check.layer is not None]
    first = [name for name in nodes if name in blamed]
    return tuple(first + sorted((n for n in nodes if n not in first), key=lambda n: -added.get(n, -1e9)))


def _keeping(recipe: Recipe, kept: Sequence[str]) -> Recipe:
    passes = tuple(
        step.model_copy(update={"keep_float": (*step.keep_float, *kept)}) if isinstance(step, Quantize) else step
        for step in recipe.passes
    )
    return recipe.model_copy(update={"passes": passes, "gate": None})


def _patch(kept: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in kept)
    return f"passes:\n  - {{use: quantize, keep_float: [{names}]}}\n"


def _costs(before: Report, after: Report) -> list[str]:
    lines = []
    for name, target in after.targets.items():
        old = before.targets.get(name)
        if old is None or old.size_bytes is None or target.size_bytes is None:
            continue
        text = f"{name}: {old.size_bytes / 1e6:.3g} → {target.size_bytes / 1e6:.3g} MB"
        if old.latency_ms is not None and target.latency_ms is not None:
            was, now = (one.target.latency_ms.p50 for one in (old.latency_ms, target.latency_ms))
            text += f", {was:.3g} → {now:.3g} ms here"
        lines.append(text)
    return lines
