"""Latency on this machine: several models interleaved in one process, so that all see the same machine.

The measuring itself is the agent's, the very code that travels to devices; what its times mean is computed here, for
both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt import events
from edgeopt.bench import agent, conditions, statistics
from edgeopt.bench.results import (
    BenchResult,
    Change,
    Conditions,
    Energy,
    OperatorTime,
    Profile,
    Ratio,
)
from edgeopt.devices.profile import ComputeUnit, Runtime
from edgeopt.errors import EdgeoptError, ModelError, SetupError

RUNTIME_OF = {".tflite": "litert", ".onnx": "onnxruntime", ".mlpackage": "coreml"}
"""File's ending → module in ``edgeopt.runtimes``."""
CALLED: dict[str, tuple[Runtime, str]] = {
    "litert": ("tflite", "ai-edge-litert"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "coreml": ("coreml", "Core ML"),
    "trtexec": ("tensorrt", "TensorRT"),
    "torch": ("pytorch", "torch"),
}
"""Module of a runtime → its name in results, and the package whose version is given."""
INSTEAD = {"trtexec": "tensorrt_python"}
"""Module of a runtime → the one to take on a machine that lacks it."""
UNVERIFIED = frozenset({"trtexec", "coreml"})
"""Runtimes that were tried with a stand-in only, or not at all."""


@dataclass(frozen=True)
class Subject:
    """One model to be measured.

    Args:
        name: unique among those measured together; the path, with a word where one file is measured twice.
        path: file or folder.
        runtime: module in ``edgeopt.runtimes``, or ``torch`` for a PyTorch source.
        options: of the runtime's session, or for ``torch`` the frontend's request.
        precision: as far as it is known.
        unit: what it runs on.
    """

    name: str
    path: Path
    runtime: str
    options: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None
    unit: ComputeUnit = "cpu"


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Args:
        threads: of the runtime.
        batch: first axis of every input; None: as the file has it, 1 where it is open.
        inputs: input name → shape, for sizes that the file leaves open.
        seconds: measured time per model, at least.
        runs: per model, at least.
        warm_up_s: at most so long until two windows of runs agree; later the result is called unstable.
        profile: also time per operator.
        seed: of input values, order of turns and bootstrap draws.
    """

    threads: int = 1
    batch: int | None = None
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seconds: float = 3.0
    runs: int = 50
    warm_up_s: float = 10.0
    profile: bool = False
    seed: int = 0

    def request(self, subjects: tuple[Subject, ...], paths: Mapping[str, str]) -> dict[str, Any]:
        """As the agent takes it; ``paths``: subject's name → where the agent finds its file."""
        return {
            "do": "measure",
            "models": [
                {
                    "name": one.name,
                    "path": paths[one.name],
                    "runtime": one.runtime,
                    "instead": INSTEAD.get(one.runtime),
                    "options": dict(one.options),
                }
                for one in subjects
            ],
            "threads": self.threads,
            "batch": self.batch,
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "seconds": self.seconds,
            "runs": self.runs,
            "warm_up_s": self.warm_up_s,
            "profile": self.profile,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Measurement:
    results: tuple[BenchResult, ...]
    ratios: tuple[Ratio, ...]


def measure(
    models: Mapping[str, Path], *, threads: int = 1, seconds: float = 1.0, seed: int = 0, runs: int = 20
) -> dict[str, BenchResult]:
    """Measure files in turns.

    Args:
        models: name → ``.onnx`` or ``.tflite`` file; on macOS also an ``.mlpackage``.
        threads: of the runtime.
        seconds: measured time per model, at least.
        seed: of the input values.
        runs: per model, at least.

    Raises:
        ModelError: a file that its runtime does not load, or of another kind.
    """
    subjects = tuple(subject_of(path, name=name) for name, path in models.items())
    plan = Plan(threads=threads, seconds=seconds, runs=runs, warm_up_s=seconds, seed=seed)
    found = measure_here(subjects, plan, tell=lambda text: None)
    return {
        one.name: result.model_copy(update={"model": str(one.path)})
        for one, result in zip(subjects, found.results, strict=True)
    }


def runs_here(path: Path) -> bool:
    """Whether this machine has a runtime whose time says something: Core ML has its own on macOS only."""
    return path.suffix in RUNTIME_OF and (path.suffix != ".mlpackage" or sys.platform == "darwin")


def subject_of(path: Path, *, name: str | None = None, delegate: bool = True) -> Subject:
    """What to measure for a file.

    Raises:
        ModelError: neither ``.onnx`` nor ``.tflite``.
    """
    if path.suffix not in RUNTIME_OF:
        raise ModelError("is neither .onnx nor .tflite", where=str(path), hint="Convert it first: edgeopt convert")
    options = {} if delegate or path.suffix != ".tflite" else {"delegate": False}
    return Subject(name or str(path), path, RUNTIME_OF[path.suffix], options)


def measure_here(subjects: tuple[Subject, ...], plan: Plan, *, tell: Callable[[str], None]) -> Measurement:
    """Measure on this machine, in this process: run foreign files in a worker.

    Args:
        subjects: what to measure.
        plan: how.
        tell: told what is being done.

    Raises:
        ModelError: a model that its runtime refuses, or whose sizes are open.
        SetupError: a runtime is missing or does not load.
    """
    request = plan.request(subjects, {one.name: str(one.path) for one in subjects})
    try:
        openers = {
            one.name: torch_opener(one, plan)
            if one.runtime == "torch"
            else agent.file_opener(asked, request, "edgeopt.runtimes")
            for one, asked in zip(subjects, request["models"], strict=True)
        }
        answer = agent.measure(openers, request, tell)
    except agent.Problem as problem:
        raise understood(problem) from problem
    return results_of(subjects, plan, answer)


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """A function for what is being done: each text is a step, which ends where the next one begins."""
    last: list[str] = []

    def tell(text: str) -> None:
        end()
        last.append(text)
        events.emit(events.Event("step", text))

    def end() -> None:
        if last:
            events.emit(events.Event("done", last.pop()))

    try:
        yield tell
    finally:
        end()


def torch_opener(subject: Subject, plan: Plan) -> agent.Opening:
    from edgeopt.bench.torch_session import TorchSession, version

    return agent.Opening(version(), lambda: TorchSession(subject.options, plan.threads))


def understood(problem: agent.Problem) -> EdgeoptError:
    """The agent's problem as an error with what to do about it; what only a device can have is ``bench.remote``'s."""
    said = " ".join(problem.text.split())[:300]
    if problem.kind == "open_sizes":
        return ModelError(
            f"leaves sizes open: {said}", where=problem.model, hint=f"Say which: --input {problem.detail}=1,3,224,224"
        )
    if problem.kind == "batch":
        return ModelError(
            f"does not run with that batch: {said}",
            where=problem.model,
            hint="Its batch is fixed in the file: convert it with that batch (--input NAME=8,3,224,224), "
            "or leave --batch out.",
        )
    if problem.kind in ("missing_runtime", "broken_runtime"):
        hint = "edgeopt doctor says more."
        if "trtexec" in said:
            hint = "Measure it on a board that has it: --on ssh://user@host. Or predict: --device jetson."
        return SetupError(f"its runtime cannot be used: {said}", where=problem.model, hint=hint)
    if problem.kind == "memory":
        return EdgeoptError("there was not enough memory", where=problem.model)
    return ModelError(f"cannot be run: {said}", where=problem.model)


def results_of(
    subjects: tuple[Subject, ...], plan: Plan, answer: Mapping[str, Any], *, device: str = "host"
) -> Measurement:
    """Results from what the agent measured."""
    models = {one["name"]: one for one in answer["models"]}
    results = tuple(_result(one, plan, models[one.name], answer, device) for one in subjects)
    ratios = []
    for one, result in zip(subjects[1:], results[1:], strict=True):
        found = statistics.ratio(models[one.name]["turns"], models[subjects[0].name]["turns"], plan.seed)
        middle, low, high = (round(value, 4) for value in found)
        stable = result.stable and results[0].stable
        ratios.append(Ratio(model=one.name, to=subjects[0].name, ratio=middle, low=low, high=high, stable=stable))
    return Measurement(results, tuple(ratios))


def _result(one: Subject, plan: Plan, found: Mapping[str, Any], answer: Mapping[str, Any], device: str) -> BenchResult:
    turns, placement = found["turns"], found["placement"]
    latency = statistics.summarise(turns, plan.seed)
    unstable = statistics.unsettled(turns, latency, steady=found["steady"])
    before, after = answer["before"], answer["after"]

    def change(key: str) -> Change | None:
        known = before[key] is not None or after[key] is not None
        return Change(before=before[key], after=after[key]) if known else None

    runtime, package = CALLED[one.runtime]
    profile = found["profile"]
    return BenchResult(
        model=one.name,
        device=device,
        runtime=runtime,
        compute_unit=one.unit,
        precision=one.precision,
        threads=plan.threads if one.unit == "cpu" else None,
        batch=found["batch"],
        verified=one.runtime not in UNVERIFIED,
        latency_ms=latency,
        throughput_per_s=round(found["batch"] * 1e3 / latency.mean, 3) if latency.mean else None,
        load_ms=_rounded(found["load_ms"]),
        first_ms=_rounded(found["first_ms"]) if found["first_ms"] else None,
        memory_mb=_rounded(found["memory_mb"], 2),
        energy=Energy.model_validate(found["energy"]) if found["energy"] else None,
        stable=not unstable,
        unstable_because=unstable,
        coverage=_rounded(placement["coverage"], 4),
        conditions=Conditions(
            machine=in_words(answer["machine"]),
            runtime=with_version(package, found["version"]),
            threads=plan.threads if one.unit == "cpu" else None,
            batch=found["batch"],
            runs=sum(len(turn) for turn in turns),
            warm_up_runs=found["warm_up_runs"],
            load=before["load"],
            interleaved_with=tuple(found["in_turns_with"]),
            cores=answer["machine"]["cores"],
            affinity=before["affinity"],
            governor=before["governor"],
            frequency_mhz=change("frequency_mhz"),
            temperature_c=change("temperature_c"),
            gpu_frequency_mhz=change("gpu_frequency_mhz"),
            gpu_clocks_locked=after["gpu_clocks_locked"],
            throttled=after["throttled"],
            power_mode=before["power_mode"],
            delegate=placement["delegate"],
            partitions=placement["partitions"],
            undelegated=placement["undelegated"],
            judged=answer["judged"],
        ),
        quantiles_ms=statistics.quantiles(turns),
        timeline_ms=statistics.timeline(turns),
        profile=Profile(
            kind="measured",
            source=f"profiler of {package}",
            operators=tuple(OperatorTime.model_validate(operator) for operator in profile),
        )
        if profile
        else None,
    )


def with_version(package: str, version: str) -> str:
    """``ai-edge-litert 2.3.0``; a runtime that says to be the forerunner has its name: ``tflite-runtime 2.14.0``."""
    number, forerunner, name = version.removesuffix(")").partition(" (")
    return f"{name} {number}" if forerunner else f"{package} {version}"


def machine() -> str:
    """Processor and operating system in words."""
    return in_words(conditions.machine())


def in_words(found: Mapping[str, Any]) -> str:
    board = f"{found['board']}, " if found["board"] else ""
    return f"{board}{found['cpu']}, {found['cores']} cores, {found['system']}"


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)
