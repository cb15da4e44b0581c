"""Fitted rates written as JSON packs, and the published rows that they rest on with their sources."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from benchmarks.latency import heldout
from benchmarks.latency.fitting import Split
from benchmarks.latency.heldout import FEWEST_FOR_SPREAD, Key, Outcome, error_pct, spread
from benchmarks.latency.rows import Row
from edgeopt.devices.packs import HeldOut, Pack, Regime

FEWEST_ROWS = 10  # of a device with an engine, to say how well it does


def judged(bare: Pack, outcomes: Mapping[str, list[Outcome]], aside: Collection[Key]) -> Pack:
    """The pack with how well its group did on held-out rows.

    Args:
        aside: configurations that say nothing of a device (`Configuration.stands`).
    """
    held: dict[Regime, HeldOut] = {}
    for regime in get_args(Regime):
        listed = heldout.asked_for(regime, outcomes[regime], aside)
        pool = heldout.pool_of(regime, bare.group)
        mine = [outcome for outcome in listed if heldout.pool_of(regime, outcome.group) == pool]
        held[regime] = _held(mine if len(mine) >= FEWEST_FOR_SPREAD else listed)
    by_engine: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes["families"]:
        if outcome.group == bare.group:
            by_engine[f"{outcome.row.device}|{outcome.row.engine}"].append(outcome)
    errors = {name: _held(listed) for name, listed in sorted(by_engine.items()) if len(listed) >= FEWEST_ROWS}
    return bare.model_copy(update={"held_out": held, "errors": errors})


def _held(outcomes: list[Outcome]) -> HeldOut:
    return HeldOut(
        rows=len(outcomes),
        error_pct=round(error_pct([outcome.error for outcome in outcomes]), 1),
        spread=round(spread(outcomes), 3),
    )


def write(folder: Path, groups: Split, packs: Iterable[Pack]) -> None:
    """One JSON document per group, and `rows.csv` and `sources.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for found in packs:
        content: Any = found.model_dump(mode="json", by_alias=True)
        lines = [f" {json.dumps(key)}: {_lines(value)}" for key, value in content.items()]
        (folder / f"{found.group.replace('/', '-')}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    _write_rows(folder, [row for configurations in groups.values() for m in configurations for row in m.rows])


def _lines(value: Any) -> str:
    """A list of objects or rows has one to a line, so that a change can be read."""
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return "[\n  " + ",\n  ".join(json.dumps(item, separators=(",", ":")) for item in value) + "\n ]"
    return json.dumps(value, separators=(",", ":"))


def _write_rows(folder: Path, rows: list[Row]) -> None:
    """Figures with where they were published. A campaign and a repository are written once, and named by number."""
    campaigns = {name: number for number, (name, _) in enumerate(Counter(row.campaign for row in rows).most_common())}
    repositories = {
        name: number
        for number, (name, _) in enumerate(Counter(row.source.partition(":")[0] for row in rows).most_common())
    }
    with (folder / "sources.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["kind", "number", "name"])
        out.writerows(["repository", number, name] for name, number in repositories.items())
        out.writerows(["campaign", number, name] for name, number in campaigns.items())
    with (folder / "rows.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["id", "device", "engine", "threads", "campaign", "model", "ms", "repository", "path"])
        for row in rows:
            repository, _, path = row.source.partition(":")
            out.writerow(
                [
                    row.id, row.device, row.engine, row.threads, campaigns[row.campaign], row.model,
                    f"{row.ms:.6g}", repositories[repository], path,
                ]
            )  # fmt: skip
