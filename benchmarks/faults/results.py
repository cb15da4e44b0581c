"""What was found: outcomes from their files, which faults count, and the confusion by kind."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import cases, split
from benchmarks.faults.cases import Plan
from benchmarks.faults.count import Harm, counts

FAILED = ("error", "crash")
"""Of the case, not of the model: its own error, its time limit, a process that died. Neither caught nor missed."""
NOT_MADE = ("no place", "not built")


@dataclass(frozen=True)
class Outcome:
    """One case. `verdict`: the gate's, `error` or `crash` (of the gate), `no place` or `not built` (no case)."""

    plan: Plan
    commit: str
    verdict: str
    headline: str = ""
    layer: str = ""
    sqnr_db: float | None = None
    agreement: float | None = None
    failed: tuple[str, ...] = ()
    figures: dict = field(default_factory=dict)
    cpu_s: float | None = None

    @property
    def caught(self) -> bool:
        return self.verdict == "fail"

    @property
    def named(self) -> bool:
        return self.caught and cases.named(self.plan.kind, self.layer, self.headline)


def read(folder: Path) -> list[Outcome]:
    found = {}
    for path in sorted(folder.glob("outcomes*.jsonl")):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            one = Outcome(**{**values, "plan": Plan(**values["plan"]), "failed": tuple(values["failed"])})
            found[str(one.plan)] = one
    return list(found.values())


def counting(found: Iterable[Outcome]) -> list[Outcome]:
    """The faults that count: those that do more harm than 99 % of the clean conversions of the same model."""
    found = list(found)
    clean: dict[str, list[Harm]] = defaultdict(list)
    for one in found:
        if not one.plan.kind and one.sqnr_db is not None:
            clean[one.plan.model].append(Harm(one.sqnr_db, one.agreement))
    return [
        one
        for one in found
        if one.plan.kind
        and one.verdict not in (*NOT_MADE, *FAILED)
        and (
            cases.always_counts(one.plan.kind)
            or (clean[one.plan.model] and counts(Harm(one.sqnr_db, one.agreement), clean[one.plan.model]))
        )
    ]


def table(found: list[Outcome]) -> str:
    """The summary, the confusion by kind and by model, and every miss and false alarm."""
    harmful = counting(found)
    made = [one for one in found if one.verdict not in (*NOT_MADE, *FAILED)]
    failed = [one for one in found if one.verdict in (*FAILED, "not built")]
    parts = [
        _summary(made, harmful),
        _confusion("kind", made, harmful, lambda one: one.plan.kind, split.HELD_OUT_KINDS),
        _confusion("model", made, harmful, lambda one: one.plan.model, frozenset(split.HELD_OUT_MODELS)),
        _wrong(made, harmful),
        "\n".join(f"- failed: {one.plan}: {one.verdict}: {one.headline}" for one in failed) or "No case failed.",
    ]
    return "\n\n".join(parts)


def _confusion(
    what: str, made: list[Outcome], harmful: list[Outcome], key: Callable[[Outcome], str], held_out: frozenset[str]
) -> str:
    lines = [
        f"| {what} | held out | faults | count | caught | named | harmless, failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted({key(one) for one in made if one.plan.kind}, key=lambda name: (name in held_out, name)):
        every = [one for one in made if one.plan.kind and key(one) == name]
        bad = [one for one in harmful if key(one) == name]
        harmless = [one for one in every if one not in bad]
        caught, named = sum(one.caught for one in bad), sum(one.named for one in bad)
        failed = f"{sum(one.caught for one in harmless)} of {len(harmless)}" if harmless else ""
        row = (name, "yes" if name in held_out else "", len(every), len(bad), caught, named, failed)
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    return "\n".join(lines)


def _summary(made: list[Outcome], harmful: list[Outcome]) -> str:
    groups: dict[str, Callable[[Outcome], bool]] = {
        "all": lambda o: True,
        "development kinds on development models": lambda o: (
            o.plan.kind not in split.HELD_OUT_KINDS and o.plan.model in split.DEVELOPMENT_MODELS
        ),
        "held-out kinds": lambda o: o.plan.kind in split.HELD_OUT_KINDS,
        "held-out models": lambda o: o.plan.model in split.HELD_OUT_MODELS,
        "held-out kinds on held-out models": lambda o: (
            o.plan.kind in split.HELD_OUT_KINDS and o.plan.model in split.HELD_OUT_MODELS
        ),
    }
    lines = ["| | faults | count | caught | named | false alarms of clean conversions |", "|---|---|---|---|---|---|"]
    for name, wanted in groups.items():
        faults = [one for one in made if one.plan.kind and wanted(one)]
        bad = [one for one in harmful if wanted(one)]
        caught, named = sum(one.caught for one in bad), sum(one.named for one in bad)
        clean = [] if "kinds" in name else [one for one in made if not one.plan.kind and wanted(one)]
        alarms = f"{sum(o.caught for o in clean)} of {len(clean)}" if clean else ""
        shares = [f"{many} ({many / len(bad):.1%})" if bad else "0" for many in (caught, named)]
        lines.append(f"| {name} | {len(faults)} | {len(bad)} | {shares[0]} | {shares[1]} | {alarms} |")
    kinds = {one.plan.kind for one in made if one.plan.kind}
    commits = sorted({one.commit for one in made})
    cpu = sum(one.cpu_s or 0 for one in made)
    lines.append(f"\n{len(kinds)} kinds; {cpu / 60:.0f} minutes of processor time; commit {', '.join(commits)}.")
    return "\n".join(lines)


def _wrong(made: list[Outcome], harmful: list[Outcome]) -> str:
    lines = []
    for one in made:
        if not one.plan.kind and one.caught:
            lines.append(f"- false alarm: {one.plan} ({one.sqnr_db:.1f} dB): {one.headline}")
    for one in harmful:
        where = f"{one.plan}" + (f" at {one.layer}" if one.layer else "")
        agreed = f", {one.agreement:.1f} % agree" if one.agreement is not None else ""
        harm = f"{one.sqnr_db:.1f} dB{agreed}" if one.sqnr_db is not None else "died"
        if not one.caught:
            lines.append(f"- missed: {where} ({harm}): {one.verdict}: {one.headline}")
        elif not one.named:
            lines.append(f"- caught, not named: {where} ({harm}): {one.headline}")
    return "\n".join(lines) or "Nothing was missed, and there was no false alarm."
