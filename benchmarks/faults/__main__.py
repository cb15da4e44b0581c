"""Inject faults, judge them and clean conversions by the gate, and report: `python -m benchmarks.faults`.

Every case is one line of `outcomes*.jsonl` in the work folder as soon as it is judged. Started again, what is there is
not made again; the cases come in an order of which every beginning is balanced, so it may be stopped at any time.

--rounds 6 --clean 120    every kind so often, each time on another model; clean conversions of all models together
--models a,b  --kinds c,d only these
--shard 0/2               every second case: for two processes side by side
--minutes 50              begin no case after so long
--table                   only print what is there
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks import place
from benchmarks.faults import cases, split
from benchmarks.faults.count import harm
from benchmarks.faults.results import Outcome, read, table
from benchmarks.faults.runs import Base, prepare
from edgeopt.gate.judge import GateJob, judge
from edgeopt.gate.policy import Policy, RobustnessPolicy
from edgeopt.gate.registry import CHECKS

SAMPLES = {"resnet20": 100, "mobilenet_v1": 50, "ultraface": 24, "fastestdet": 24}
"""Of the gate's images, those that it looks at: the larger models are judged hundreds of times."""


def policy(model: str) -> Policy:
    """The gate's own defaults; only the perturbed images, fifteen times the work, are left out."""
    return Policy(samples=SAMPLES.get(model), robustness=RobustnessPolicy(samples=0))


LIMIT_S = 900


def _case(base: Base, plan: cases.Plan, out: Path, answer) -> None:
    began = time.process_time()
    try:
        case = cases.faulty(base, plan, out) if plan.kind else cases.clean(base, plan, out)
    except Exception as error:
        answer.send({"verdict": "not built", "headline": f"{type(error).__name__}: {error}"[:300]})
        return
    if case is None:
        answer.send({"verdict": "no place"})
        return
    artifact = next((out / plan.target).glob("model.*"))
    images = base.unseen if case.given is None else case.given
    found = harm(base.right, artifact, images, classifier=base.classifier)
    known = {"layer": case.layer, "sqnr_db": found.sqnr_db, "agreement": found.agreement}
    answer.send({**known, "verdict": "crash", "headline": "the process died"})  # unless the next replaces it
    try:
        made = _judged(out, plan)
    except Exception as error:
        made = {"verdict": "error", "headline": f"{type(error).__name__}: {error}"}
    answer.send({**known, **made, "cpu_s": round(time.process_time() - began, 1)})
    for kept in (out / ".edgeopt").glob("yardstick-*.json"):  # named by its model, pass and samples: right for any run
        if not (base.out / ".edgeopt" / kept.name).exists():
            shutil.copy(kept, base.out / ".edgeopt" / kept.name)


def _judged(out: Path, plan: cases.Plan) -> dict:
    """The gate's verdict. Where causes that it looks for first are likely, only they are looked for at first: if one is
    found, verdict and first line are settled, and the later checks, most of the work, are not run."""
    asked, every = policy(plan.model), [check.id for check in CHECKS]
    later = every[every.index("calibration-data") :]
    two_steps = plan.kind in {**cases.FILE, **cases.IMPORT, **cases.EVALUATION}
    said = []
    for skipped in (later, [name for name in every if name not in later]) if two_steps else ([],):
        said.append(judge(GateJob(out, asked.model_copy(update={"skip": tuple(skipped)}))).result)
        if said[-1].verdict == "fail":
            break
    last = said[-1]
    return {
        "verdict": next(word for word in ("fail", "inconclusive", "pass") if word in [one.verdict for one in said]),
        "headline": last.headline.split("; not checked: ")[0],
        "failed": tuple(c.id for c in last.checks if c.verdict == "fail"),
        "figures": next((c.figures for c in last.checks if c.id == "parity-quantization"), {}),
    }


def run_case(base: Base, plan: cases.Plan, work: Path) -> dict:
    """In a process of its own, as the command does: a broken file may crash its runtime."""
    out = work / str(plan).replace(" ", "-")
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_case, args=(base, plan, out, there))
    child.start()
    there.close()
    said = {"verdict": "crash", "headline": "the process died while the case was made"}
    try:
        while here.poll(LIMIT_S):
            said = here.recv()
        said = {**said, "verdict": "error", "headline": "time limit"}
    except EOFError:
        pass
    finally:
        child.join(5)
        if child.is_alive():
            child.kill()
    shutil.rmtree(out, ignore_errors=True)
    out.with_suffix(".npz").unlink(missing_ok=True)
    return said


def commit() -> str:
    command = ["git", "-C", str(place.REPOSITORY), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join((*split.DEVELOPMENT_MODELS, *split.HELD_OUT_MODELS)))
    parser.add_argument("--kinds", default=",".join(cases.ALL_KINDS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clean", type=int, default=120)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    models, kinds = arguments.models.split(","), arguments.kinds.split(",")
    for what, given, known in (("kind", kinds, cases.ALL_KINDS), ("model", models, cases.SHARE)):
        if unknown := set(given) - set(known):
            parser.error(f"no {what} {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    folder = place.work() / "faults"
    if not arguments.table:
        try:
            _run(arguments, models, kinds, folder)
        except place.CannotRunError as error:
            print(f"skipped: {error}", file=sys.stderr)
            sys.exit(place.SKIPPED)
    text = table(read(folder))
    (folder / "results.md").write_text(text + "\n")
    print(text)


def _run(arguments: argparse.Namespace, models: list[str], kinds: list[str], folder: Path) -> None:
    shard, shards = (int(number) for number in arguments.shard.split("/"))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prepare.lock").open("w") as lock:  # the first shard converts, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        bases = {name: prepare(name) for name in models}
    work = folder / f"cases-{shard}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    done = {str(one.plan) for one in read(folder)}
    began, made_by = time.monotonic(), commit()
    plans = cases.plans(models, kinds, arguments.rounds, arguments.clean)
    with (folder / f"outcomes-{shard}.jsonl").open("a") as log:
        for number, plan in enumerate(plans):
            if number % shards != shard or str(plan) in done:
                continue
            if time.monotonic() - began > 60 * arguments.minutes:
                break
            said = run_case(bases[plan.model], plan, work)
            one = Outcome(plan=plan, commit=made_by, **said)
            log.write(json.dumps(asdict(one)) + "\n")
            log.flush()
            shown = f"{one.sqnr_db:.1f} dB" if one.sqnr_db is not None else ""
            agreed = f", {one.agreement:.1f} % agree" if one.agreement is not None else ""
            text = f"{number + 1}/{len(plans)} {plan}: {shown}{agreed} {one.verdict}: {one.headline[:200]}"
            print(f"{text} ({one.cpu_s} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
