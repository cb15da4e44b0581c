"""From a recipe to artifacts and a report: runs the steps that are not finished, in workers."""

from __future__ import annotations

import datetime
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import events
from edgeopt.bench.latency import machine, runs_here
from edgeopt.bench.results import BenchResult
from edgeopt.data import arrays, images
from edgeopt.errors import DataError, EdgeoptError, SetupError
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.pipeline import jobs
from edgeopt.pipeline.plan import Plan, make_plan
from edgeopt.pipeline.record import (
    Manifest,
    Report,
    StepRecord,
)
from edgeopt.pipeline.request import REQUEST, as_text
from edgeopt.pipeline.store import OutOfSpace, Store, open_store, refused
from edgeopt.pipeline.summary import asked_scheme, summarise
from edgeopt.pipeline.worker import Call, Workers
from edgeopt.recipe.schema import DataSource, Recipe
from edgeopt.targets.base import Target
from edgeopt.types import SchemeName

THREADS = 1
"""Of every run whose results are kept: fixed, so that they repeat whatever the number of cores. One, because targets
run side by side anyway, and a second thread of ONNX Runtime took 2.6 times the processor time for parity (it spins)."""
IMPORT_LIMIT_S = 1800
TRAINING_LIMIT_S = 20 * 24 * 3600
PASSES_LIMIT_S = 6 * 3600
TARGET_LIMIT_S = 3600
LATENCY_LIMIT_S = 900
"""Time limits are for what hangs, not for what is slow: ten times what the slowest known net takes on a laptop."""
LATENCY_SECONDS = 0.4
"""Measured time per model: hundreds of runs of a small net, the minimum of 20 of a large one."""

MANIFEST = "manifest.json"
REPORT = "report.json"


@dataclass(frozen=True)
class Options:
    """What is not in the recipe.

    Args:
        root: folder of the recipe; modules are looked for there.
        trust: load ``.pt2`` archives that hold pickled objects.
        localize: look for the first layer where an error jumps, also where no limit is broken.
    """

    root: Path
    trust: bool = False
    localize: bool = False


@dataclass(frozen=True)
class Outcome:
    """The report, where everything is, and the errors of single targets (all targets are attempted)."""

    report: Report
    out: Path
    errors: tuple[EdgeoptError, ...]

    @property
    def exit_code(self) -> int:
        return self.report.exit_code


Document = Callable[[Report], str]


def convert(
    recipe: Recipe,
    out: Path,
    options: Options,
    *,
    documents: Mapping[str, Document] | None = None,
    workers: Workers | None = None,
) -> Outcome:
    """Run a recipe.

    Args:
        recipe: the request.
        out: output folder; what an earlier, interrupted run finished there is not done again.
        options: see there.
        documents: further files for the output folder: name → what makes its text of the report.
        workers: that are already there, for who converts many times; None: its own.

    Raises:
        EdgeoptError: the request as a whole cannot be carried out. Errors of one target are in the outcome.
        KeyboardInterrupt: workers are dead, scratch is removed, finished steps stay.
    """
    with open_store(out) as store:
        logs = store.scratch / "logs"
        own = Workers(logs, preload="edgeopt.pipeline.jobs") if workers is None else nullcontext(workers)
        with own as used:
            outcome = _Run(recipe, options, store, used).run()
        for name, text in (documents or {}).items():
            store.write(name, text(outcome.report))
        return outcome


class _Run:
    """One conversion: what was asked, where it goes, which steps were used."""

    def __init__(self, recipe: Recipe, options: Options, store: Store, workers: Workers) -> None:
        self._recipe, self._options, self._store, self._workers = recipe, options, store, workers
        self._started = datetime.datetime.now(datetime.UTC)
        self._clock = time.monotonic()
        self._steps: list[StepRecord] = []
        data = recipe.data
        self._inputs = jobs.Inputs(data.training, data.calibration, data.evaluation, recipe.preprocess, options.root)

    def run(self) -> Outcome:
        recipe, options = self._recipe, self._options
        _refuse_uncalibrated(recipe)
        _refuse_schemes(recipe)
        plan = make_plan(
            recipe,
            root=options.root,
            trust=options.trust,
            localize=options.localize,
            threads=THREADS,
            data_digests=self._data_digests(),
        )
        trained = self._train(plan)
        imported = self._step(
            "import",
            plan.import_key,
            "import_model",
            IMPORT_LIMIT_S,
            lambda out: jobs.ImportJob(
                recipe.model,
                trained[-1] if trained else None,
                self._inputs,
                options.trust,
                recipe.parity.tolerance,
                options.localize,
                THREADS,
                recipe.seed,
                out,
            ),
        )
        for text in jobs.read_result(imported, jobs.ImportResult).warnings:
            events.warn(text)  # now, before the long part of the work rests on what they speak of
        rejected = self._check_targets(imported)
        passed = self._step(
            "passes",
            plan.passes_key,
            "run_passes",
            PASSES_LIMIT_S,
            lambda out: jobs.PassesJob(
                imported,
                trained[-1] if trained else None,
                recipe.model,
                recipe.graph_passes(),
                self._inputs,
                recipe.effort,
                THREADS,
                recipe.seed,
                self._store.unfinished("passes", plan.passes_key),
                plan.passes_key,
                out,
            ),
        )
        if (passed / jobs.PYTORCH).is_dir():
            self._store.publish(passed / jobs.PYTORCH, jobs.PYTORCH)
        else:
            self._store.withdraw(jobs.PYTORCH)
        built = self._build_targets(plan, imported, passed, rejected)
        folders = {name: result for name, result in built.items() if isinstance(result, Path)}
        errors = {name: result for name, result in built.items() if isinstance(result, EdgeoptError)}
        for name in built:
            if name in folders:
                self._store.publish(folders[name] / jobs.ARTIFACT, name)
            else:
                self._store.withdraw(name)
        latencies = self._measure(imported, folders)
        report = summarise(
            recipe,
            plan=plan,
            trained=trained,
            imported=imported,
            passed=passed,
            folders=folders,
            errors=errors,
            latencies=latencies,
            steps=self._steps,
            seconds=_since(self._clock),
        )
        self._write(plan, report)
        return Outcome(report, self._store.out, tuple(errors.values()))

    # --- steps

    def _train(self, plan: Plan) -> list[Path]:
        """The training passes, one step each; folders of what they left."""
        recipe, folders = self._recipe, list[Path]()
        for number, (step, key) in enumerate(zip(recipe.training_passes(), plan.training_keys, strict=True), 1):
            name = f"{number}-{getattr(step, 'use', 'train')}"
            before = folders[-1] if folders else None

            def job(
                out: Path, step: Any = step, name: str = name, key: str = key, before: Path | None = before
            ) -> jobs.TrainingJob:
                unfinished = self._store.unfinished(name, key)
                return jobs.TrainingJob(recipe.model, before, step, self._inputs, recipe.seed, unfinished, key, out)

            folders.append(self._step(name, key, "train_module", TRAINING_LIMIT_S, job))
        return folders

    def _data_digests(self) -> dict[str, str]:
        digests = {}
        for name in ("training", "calibration", "evaluation"):
            source: DataSource | None = getattr(self._recipe.data, name)
            if source is None:
                continue
            if source.images is not None:
                digests[name] = images.digest(source.images, source.labels, source.limit)
            elif source.arrays is not None:
                digests[name] = arrays.digest(source.arrays)
            elif source.callable is not None:
                job = jobs.DigestJob(source.callable, self._options.root, source.limit)
                function = "digest_training_callable" if name == "training" else "digest_callable"
                digests[name] = self._work(f"{name} data", function, job, IMPORT_LIMIT_S)
        return digests

    def _step(self, name: str, key: str, function: str, limit_s: float, job: Any) -> Path:
        """The folder of a finished step; runs it if it is not there. ``job`` makes the argument for a folder."""
        start = time.monotonic()
        cached = self._store.has(name, key)
        if not cached:
            scratch = self._store.new_scratch(name)
            self._work(name, function, job(scratch), limit_s)
            self._store.finish(scratch, name, key)
        self._steps.append(StepRecord(name=name, key=key, cached=cached, seconds=_since(start)))
        return self._store.step(name, key)

    def _work(self, name: str, function: str, job: Any, limit_s: float) -> Any:
        try:
            return self._workers.run_one(name, Call(f"edgeopt.pipeline.jobs:{function}", job, limit_s))
        except OSError as error:
            raise refused(error, self._store.out) from error

    def _check_targets(self, imported: Path) -> dict[str, EdgeoptError]:
        """Targets that cannot be had; where none is left that could, the first one's error ends the run here."""
        requested = self._recipe.requested()
        looking = {name: target for name, target in requested.items() if type(target).check is not Target.check}
        if not looking:
            return {}
        rejected: dict[str, EdgeoptError] = self._work(
            "check targets", "check_targets", jobs.CheckJob(imported, looking), IMPORT_LIMIT_S
        )
        if len(rejected) == len(requested) and not any(isinstance(e, SetupError) for e in rejected.values()):
            raise next(iter(rejected.values()))
        return rejected

    def _build_targets(
        self, plan: Plan, imported: Path, passed: Path, rejected: Mapping[str, EdgeoptError]
    ) -> dict[str, Path | EdgeoptError]:
        """All targets, side by side; one that fails does not stop the others."""
        recipe, store, start = self._recipe, self._store, time.monotonic()
        requested = recipe.requested()
        calls, folders = {}, {}
        for name, target in requested.items():
            if name in rejected or store.has(name, plan.target_keys[name]):
                continue
            folders[name] = store.new_scratch(name)
            job = jobs.TargetJob(
                imported,
                passed,
                target,
                self._inputs,
                recipe.class_names(),
                recipe.parity,
                self._options.localize,
                THREADS,
                recipe.seed,
                folders[name],
            )
            calls[name] = Call("edgeopt.pipeline.jobs:build_target", job, TARGET_LIMIT_S)
        results = self._workers.run_all(calls)
        built: dict[str, Path | EdgeoptError] = {}
        for name in requested:
            result = rejected.get(name, results.get(name))
            if isinstance(result, OSError):
                result = refused(result, store.out)
            if isinstance(result, OutOfSpace):
                raise result
            if isinstance(result, EdgeoptError):
                built[name] = result
                continue
            if name in folders:
                store.finish(folders[name], name, plan.target_keys[name])
            built[name] = store.step(name, plan.target_keys[name])
            cached = name not in folders
            self._steps.append(StepRecord(name=name, key=plan.target_keys[name], cached=cached, seconds=_since(start)))
        return built

    def _measure(
        self, imported: Path, folders: Mapping[str, Path]
    ) -> dict[str, tuple[BenchResult, BenchResult | None]]:
        if not folders:
            return {}
        targets = self._recipe.requested()
        built = {name: jobs.read_result(folder, jobs.TargetResult).artifact for name, folder in folders.items()}
        artifacts = {
            name: folders[name] / jobs.ARTIFACT / artifact.path
            for name, artifact in built.items()
            if artifact.emulation is None  # another runtime's time says nothing of the device
        }
        artifacts = {name: path for name, path in artifacts.items() if runs_here(path)}
        if not artifacts:
            return {}
        job = jobs.LatencyJob(
            imported,
            artifacts,
            {name: targets[name] for name in artifacts},
            compare_float=asked_scheme(self._recipe) != "fp32",
            seconds=LATENCY_SECONDS,
            scratch=self._store.new_scratch("latency"),
        )
        try:
            found: dict[str, tuple[BenchResult, BenchResult | None]] = self._work(
                "latency", "measure_latency", job, LATENCY_LIMIT_S
            )
        except EdgeoptError as error:
            events.warn(f"latency was not measured: {error.what}")
            return {}
        return found

    def _write(self, plan: Plan, report: Report) -> None:
        store = self._store
        manifest = Manifest(
            model_digest=plan.model_digest,
            data_digests=plan.data_digests,
            recipe_digest=plan.recipe_digest,
            artifacts={
                t.path: t.digest for t in report.targets.values() if t.path is not None and t.digest is not None
            },
            versions=plan.versions,
            code_digest=plan.code_digest,
            machine=machine(),
            git_commit=_git_commit(self._options.root),
            seed=self._recipe.seed,
            started=self._started.isoformat(timespec="seconds"),
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds={step.name: step.seconds for step in self._steps},
        )
        store.write(MANIFEST, manifest.model_dump_json(by_alias=True, indent=2) + "\n")
        store.write(REQUEST, as_text(self._recipe, self._options.root, store.out))
        store.write(REPORT, report.model_dump_json(by_alias=True, indent=2) + "\n")
        store.keep_only({store.step(step.name, step.key) for step in self._steps})


def _refuse_uncalibrated(recipe: Recipe) -> None:
    """What the quantize pass would say, before a long import."""
    steps = [step for step in recipe.passes if isinstance(step, Quantize)]
    if recipe.data.calibration is None and any("int8" in (s.scheme, *s.rules.values()) for s in steps):
        raise DataError(
            "int8 needs calibration data, and none is given",
            hint="Name real samples under data.calibration (or --calibration DATA), or ask for int8-weights.",
        )


def _refuse_schemes(recipe: Recipe) -> None:
    """A scheme that a target's format cannot hold, before anything is read."""
    asked: set[SchemeName] = set()
    for step in recipe.passes:
        if isinstance(step, Quantize):
            asked |= {step.scheme, *step.rules.values()}
    for target in recipe.requested().values():
        target.check_schemes(frozenset(asked))


def _git_commit(root: Path) -> str | None:
    """Commit of the repository that the recipe lies in; None if there is none, or no git."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)
