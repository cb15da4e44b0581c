"""Fit the latency predictor and judge it on held-out rows: `python -m benchmarks.latency` (or `make bench-latency`).

`--write` puts the errors into benchmarks/README.md, `--packs` writes the fitted rates to hardware_profiles/packs.
Model selection, where there was any, was cross-validation on the published rows alone; model families were fixed in
families.json before anything was fitted.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # thousands of 15 × 15 systems: threads only stand in each other's way

import numpy as np

from benchmarks import place, tables
from benchmarks.latency import fitting, heldout, packing, probes, rows, selection
from benchmarks.latency.baselines import Baselines
from benchmarks.latency.heldout import Outcome, coverage, error_pct
from edgeopt.devices import catalogue
from edgeopt.devices.packs import Group, Pack, Widths

PACKS = place.REPOSITORY / "hardware_profiles" / "packs"
ASKED = {"random": 8.0, "families": 14.0, "devices_3": 6.0}  # median absolute percentage error, at most
COVERED = (85.0, 95.0)  # per cent of held-out rows inside the 90 % interval
NAMES = {
    "random": "random models held out",
    "families": "whole families held out",
    "devices_0": "whole devices held out, no probe",
    "devices_mean": "the same, from the mean of all devices",
    "devices_3": "whole devices held out, 3 probes",
    heldout.RANDOM: "the same, 3 random models as probes",
    "threads": "a device's number of CPU threads held out",
}
FEWEST = 10


def judge_regime(regime: str, folder: Path) -> dict[str, list[Outcome]]:
    """Outcomes of one regime; "devices" makes two of it. In a process of its own."""
    began = time.perf_counter()
    groups = fitting.gather(folder, rows.read(folder))
    baselines = Baselines(folder)
    found: dict[str, list[Outcome]] = defaultdict(list)
    if regime == "devices":
        for name, outcome in heldout.by_devices(groups, baselines):
            found[name].append(outcome)
    else:
        found[regime] = list(heldout.by_models(regime, groups, baselines))
    print(f"{regime}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return dict(found)


def judge(folder: Path) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    with ProcessPoolExecutor() as pool:
        for outcomes in pool.map(judge_regime, ("families", "random", "devices"), [folder] * 3):
            found |= outcomes
    return {regime: found[regime] for regime in NAMES if regime in found}


def _pct(values: list[float]) -> str:
    return f"{error_pct(values):.1f}" if values else "–"


def _line(outcomes: list[Outcome], inside: dict[str, bool]) -> list[str]:
    whole = [o.whole for o in outcomes if o.whole is not None]
    operator = [o.operator for o in outcomes if o.operator is not None]
    known = [inside[o.row.id] for o in outcomes if o.row.id in inside]
    held = f"{100 * float(np.mean(known)):.0f}" if known else "–"
    return [str(len(outcomes)), _pct([o.error for o in outcomes]), _pct(whole), _pct(operator), held]


HEADER = ["rows", "predictor", "whole-model roofline", "operator roofline", "inside 90 % interval"]


def markdown(found: dict[str, list[Outcome]], aside: set[heldout.Key]) -> str:
    parts = [tables.conditions("python -m benchmarks.latency", ["numpy", "scipy"]), ""]
    inside = {
        regime: coverage(heldout.asked_for(regime, outcomes, aside), regime) for regime, outcomes in found.items()
    }
    profiled = {name for profile in catalogue.profiles() for name in profile.measured_as}
    pooled = []
    for regime, outcomes in found.items():
        mine = [o for o in outcomes if o.row.device in profiled]
        pooled.append([NAMES[regime], "all", *_line(outcomes, inside[regime])])
        pooled.append([NAMES[regime], "with a profile", *_line(mine, inside[regime])])
    parts += [
        "Median absolute percentage error, pooled. The rooflines are fitted on the same rows, for the boards that "
        "the data name as such.",
        "",
    ]
    parts += [tables.table(["", "devices", *HEADER], pooled), ""]
    for regime, most in ASKED.items():
        got = error_pct([o.error for o in found[regime]])
        parts.append(f"{'Met' if got <= most else 'Not met'}: {NAMES[regime]}, {got:.1f} %; asked for {most:.0f} %.\n")
    for regime, held in inside.items():
        share = 100 * float(np.mean(list(held.values())))
        word = "Met" if COVERED[0] <= share <= COVERED[1] else "Not met"
        parts.append(f"{word}: {NAMES[regime]}, {share:.1f} % inside the 90 % interval; asked for 85–95 %.\n")
    for regime, outcomes in found.items():
        if regime in (heldout.RANDOM, "devices_mean"):
            continue
        by_engine: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            if outcome.row.role == "calibrate" or outcome.row.device in profiled:
                by_engine[outcome.row.device, outcome.row.engine].append(outcome)
        lines = [
            [device, engine, *_line(listed, inside[regime])]
            for (device, engine), listed in sorted(by_engine.items())
            if len(listed) >= FEWEST
        ]
        title = NAMES[regime][0].upper() + NAMES[regime][1:]
        parts += [f"<details><summary>{title}, by device, runtime and precision</summary>", ""]
        parts += [tables.table(["device", "runtime/unit/precision", *HEADER], lines), "", "</details>", ""]
    return "\n".join(parts)


def planned(group: Group, measured: list[fitting.Measured], widths: Widths) -> Pack:
    """The pack with the models to measure first on a new device, and how they are weighed."""
    chosen = probes.plan(group, measured, group.pack.models)
    return group.pack.model_copy(update={"probes": tuple(chosen), "widths": widths})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the results into README.md")
    parser.add_argument("--packs", action="store_true", help="write hardware_profiles/packs")
    arguments = parser.parse_args()
    try:
        folder = place.data() / "latency"
    except place.CannotRunError as error:
        print(error, file=sys.stderr)
        sys.exit(place.SKIPPED)
    found = judge(folder)
    groups = fitting.gather(folder, rows.read(folder))
    fitted = fitting.fit(groups)
    bare = {name: fitting.as_group(name, groups[name], fitted[name]) for name in groups}
    known = [c for group in bare.values() for c in group.pack.configurations]
    aside = {(c.device, c.engine, c.threads, c.campaign) for c in known if not c.stands}
    found["threads"] = list(heldout.by_threads(groups, fitted, aside))
    if arguments.packs:
        widths = selection.choose(groups)
        packs = [planned(group, groups[name], widths) for name, group in bare.items()]
        packing.write(PACKS, groups, [packing.judged(pack, found, aside) for pack in packs])
    record = {
        regime: [[o.row.id, round(o.error, 4), o.whole, o.operator] for o in outcomes]
        for regime, outcomes in found.items()
    }
    tables.publish("latency", markdown(found, aside), record, write=arguments.write)


if __name__ == "__main__":
    main()
