"""Inject faults, judge them and clean conversions by the gate, and report: `python -m benchmarks.faults`.

--models quickstart,vww   which (default: those of the development, with --held-out also the others)
--kinds a,b               which kinds
--seeds 2 --clean 30      of every kind and model; clean conversions of each model
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import place
from benchmarks.faults import cases, split
from benchmarks.faults.count import Harm, counts, harm
from benchmarks.faults.runs import Base, prepare
from edgeopt.gate.judge import GateJob, judge
from edgeopt.gate.policy import Policy, RobustnessPolicy

POLICY = Policy(robustness=RobustnessPolicy(samples=0))
"""The gate's own defaults; only the perturbed images, fifteen times the work, are left out."""
LIMIT_S = 900


@dataclass(frozen=True)
class Outcome:
    model: str
    kind: str
    seed: int
    target: str
    sqnr_db: float
    agreement: float
    counts: bool
    verdict: str
    named: bool
    headline: str
    failed: tuple[str, ...]
    figures: dict
    """Of the quantization check: its own SQNR, the yardstick's, the tolerance."""


def _judge(out: Path, answer) -> None:
    try:
        result = judge(GateJob(out, POLICY)).result
        failed = tuple(c.id for c in result.checks if c.verdict == "fail")
        figures = next((c.figures for c in result.checks if c.id == "parity-quantization"), {})
        answer.send((result.verdict, result.headline, failed, figures))
    except Exception as error:
        answer.send(("error", f"{type(error).__name__}: {error}", (), {}))


def judged(out: Path) -> tuple[str, str, tuple[str, ...], dict]:
    """In a process of its own, as the command does: a broken file may crash its runtime."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_judge, args=(out, there))
    child.start()
    there.close()
    try:
        return here.recv() if here.poll(LIMIT_S) else ("error", "time limit", (), {})
    except EOFError:
        return "error", "the process died", (), {}
    finally:
        if child.is_alive():
            child.join(5)
            child.kill()


def outcome(base: Base, case: cases.Case, clean: list[Harm]) -> Outcome:
    artifact = next((case.out / case.target).glob("model.*"))
    found = harm(base.source, artifact, base.unseen, case.given)
    verdict, headline, failed, figures = judged(case.out)
    shutil.rmtree(case.out)
    return Outcome(
        model=base.name,
        kind=case.kind,
        seed=case.seed,
        target=case.target,
        sqnr_db=found.sqnr_db,
        agreement=found.agreement,
        counts=case.always_counts or (bool(clean) and counts(found, clean)),
        verdict=verdict,
        named=cases.named(case, headline),
        headline=headline,
        failed=failed,
        figures=figures,
    )


def run_model(name: str, kinds: list[str], seeds: int, clean: int, log) -> list[Outcome]:
    base = prepare(name)
    work = place.work() / "faults" / name / "cases"
    work.mkdir(parents=True, exist_ok=True)
    judged(base.out)  # its yardstick is then known to all copies
    made: list[Outcome] = []

    def note(one: Outcome) -> None:
        made.append(one)
        log.write(json.dumps(asdict(one)) + "\n")
        log.flush()
        harmed = f"{one.sqnr_db:.1f} dB, {one.agreement:.1f} % agree, {'counts' if one.counts else 'does not count'}"
        what = f"{name} {one.target} {one.kind or 'clean'} {one.seed}"
        print(f"{what}: {harmed}, {one.verdict}: {one.headline[:160]}", file=sys.stderr, flush=True)

    for case in cases.clean(base, clean, work):
        note(outcome(base, case, []))
    for seed in range(seeds):
        for kind in kinds:
            try:
                case = cases.faulty(base, kind, seed, work)
            except Exception as error:
                print(f"{name} {kind} {seed}: cannot be built: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            if case is None:
                continue
            like = [Harm(o.sqnr_db, o.agreement) for o in made if not o.kind and o.target == case.target]
            note(outcome(base, case, like))
    return made


def table(found: list[Outcome]) -> str:
    """The confusion by kind, and the summary."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for one in found:
        by_kind[one.kind].append(one)
    lines = [
        "| kind | held out | faults | count | caught | named | of those that do not count, failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in sorted(k for k in by_kind if k):
        every = by_kind[kind]
        counting = [o for o in every if o.counts]
        caught = [o for o in counting if o.verdict in ("fail", "error")]
        other = [o for o in every if not o.counts]
        held_out = "yes" if kind in split.HELD_OUT_KINDS else ""
        failed = f"{sum(o.verdict == 'fail' for o in other)} of {len(other)}"
        named = sum(o.named for o in caught)
        lines.append(f"| {kind} | {held_out} | {len(every)} | {len(counting)} | {len(caught)} | {named} | {failed} |")
    return "\n".join([*lines, "", *_summary(found)])


def _summary(found: list[Outcome]) -> list[str]:
    lines = []
    groups = {
        "all": lambda o: True,
        "development kinds and models": lambda o: (
            o.kind not in split.HELD_OUT_KINDS and o.model in split.DEVELOPMENT_MODELS
        ),
        "held-out kinds": lambda o: o.kind in split.HELD_OUT_KINDS,
        "held-out models": lambda o: o.model in split.HELD_OUT_MODELS,
    }
    for name, wanted in groups.items():
        counting = [o for o in found if o.kind and o.counts and wanted(o)]
        caught = [o for o in counting if o.verdict in ("fail", "error")]
        if counting:
            named = sum(o.named for o in caught)
            share, named_share = len(caught) / len(counting), named / max(len(caught), 1)
            text = f"- {name}: {len(caught)} of {len(counting)} counting faults caught ({share:.1%})"
            lines.append(f"{text}, cause or layer named in {named} ({named_share:.1%})")
    clean = [o for o in found if not o.kind]
    alarms = [o for o in clean if o.verdict in ("fail", "error")]
    if clean:
        lines.append(
            f"- clean conversions: {len(alarms)} false alarms of {len(clean)} ({len(alarms) / len(clean):.1%})"
        )
    lines += [f"- false alarm: {o.model} {o.target} {o.seed} ({o.sqnr_db:.1f} dB): {o.headline}" for o in alarms]
    missed = [o for o in found if o.kind and o.counts and o.verdict not in ("fail", "error")]
    for o in missed:
        where = f"{o.kind} {o.seed} on {o.model} {o.target}"
        lines.append(f"- missed: {where}: {o.sqnr_db:.1f} dB, {o.agreement:.1f} % agree; {o.headline}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(split.DEVELOPMENT_MODELS))
    parser.add_argument("--held-out", action="store_true", help="the held-out models too")
    parser.add_argument("--kinds", default="", help="comma-separated; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clean", type=int, default=36)
    arguments = parser.parse_args()
    models = [*arguments.models.split(","), *(split.HELD_OUT_MODELS if arguments.held_out else ())]
    kinds = arguments.kinds.split(",") if arguments.kinds else list(cases.ALL_KINDS)
    if unknown := set(kinds) - set(cases.ALL_KINDS):
        parser.error(f"no kind {', '.join(sorted(unknown))}: there are {', '.join(cases.ALL_KINDS)}")
    began, found = time.perf_counter(), []
    folder = place.work() / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "outcomes.jsonl").open("w") as log:
            for name in models:
                found += run_model(name, kinds, arguments.seeds, arguments.clean, log)
    except place.CannotRunError as error:
        print(f"skipped: {error}", file=sys.stderr)
        sys.exit(place.SKIPPED)
    text = table(found)
    (folder / "results.md").write_text(text + "\n")
    print(text)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
