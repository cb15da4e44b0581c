"""Measuring TFLite files on an Android phone through ``adb``, with TensorFlow Lite's own ``benchmark_model``.

Written after the documentation of both and tried with stand-ins only: results say that the way is unverified.
"""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeopt import events
from edgeopt.bench.address import Address
from edgeopt.bench.latency import Measurement, Plan, Subject
from edgeopt.bench.results import BenchResult, Conditions, LatencyMs
from edgeopt.bench.statistics import BOOTSTRAPS, INTERVAL, WIDE
from edgeopt.errors import DeviceUnreachable, EdgeoptError, ModelError, SetupError, UsageError

PARENT = "/data/local/tmp"
"""The one folder of Android that adb's shell may write to and run programs from."""
LAUNCHES = 7
"""The runner gives percentiles of a launch, not single runs: the interval of the median is that over launches."""
GET_RUNNER = (
    "Get benchmark_model for Android from TensorFlow Lite's performance measurement page (or build it), then give it: "
    "--runner FILE"
)
NUMBER = r"([-+.\deE]+)"


@dataclass(frozen=True)
class Launch:
    """What ``benchmark_model`` printed, in ms and MB; None where this release of it does not say."""

    count: int
    median_ms: float | None
    p95_ms: float | None
    mean_ms: float
    first_ms: float
    load_ms: float
    memory_mb: float | None
    delegated: tuple[int, int] | None


def read_launch(text: str) -> Launch:
    """Raises ValueError where the lines that matter are missing."""
    lines = [line for line in text.splitlines() if "count=" in line]
    summary = re.search(
        rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, "
        rf"Warmup \(avg\): {NUMBER}, Inference \(avg\): {NUMBER}",
        text,
    )
    if not lines or summary is None:
        raise ValueError("its output is not that of benchmark_model")
    last = lines[-1]

    def of(key: str) -> float | None:
        found = re.search(rf"\b{key}={NUMBER}", last)
        return float(found.group(1)) / 1e3 if found else None

    memory = re.search(rf"overall={NUMBER}", text)
    parts = re.search(r"Replacing (\d+) out of (\d+) node", text)
    count = re.search(r"count=(\d+)", last)
    assert count is not None
    return Launch(
        count=int(count.group(1)),
        median_ms=of("median"),
        p95_ms=of("p95"),
        mean_ms=float(summary.group(4)) / 1e3,
        first_ms=float(summary.group(2)) / 1e3,
        load_ms=float(summary.group(1)) / 1e3,
        memory_mb=float(memory.group(1)) if memory else None,
        delegated=(int(parts.group(1)), int(parts.group(2))) if parts else None,
    )


def measure_on(
    address: Address,
    subjects: tuple[Subject, ...],
    plan: Plan,
    *,
    runner: Path | None,
    device: str | None = None,
    limit_s: float = 900.0,
) -> Measurement:
    """Push runner and models, launch them in turns, remove them.

    Args:
        address: an ``adb://`` one.
        subjects: TFLite files.
        plan: threads, seconds and runs count; each of the launches gets its share.
        runner: ``benchmark_model`` for the phone's processor; None: one that lies in /data/local/tmp already.
        device: what to call it in results; default: its address.
        limit_s: seconds for all of it.

    Raises:
        UsageError: a model of another kind. ModelError: the runner refuses it.
        DeviceUnreachable: no such phone, or it is not authorised.
        SetupError: adb or the runner is missing or does not run.
        EdgeoptError: it took too long.
    """
    for one in subjects:
        if one.runtime != "litert":
            raise UsageError("only TFLite files are measured over adb", where=one.name)
    if plan.batch is not None or plan.inputs or plan.profile:
        raise UsageError("--batch, --input and --profile are not for adb://", hint="Leave them out.")
    phone = _Phone(address, time.monotonic() + limit_s, limit_s)
    phone.check()
    folder = f"{PARENT}/edgeopt-{secrets.token_hex(8)}"
    try:
        phone.shell("mkdir", folder)
        program = f"{folder}/benchmark_model" if runner else f"{PARENT}/benchmark_model"
        if runner is not None:
            phone.push(runner, program)
            phone.shell("chmod", "755", program)
        paths = {one.name: f"{folder}/{index}.tflite" for index, one in enumerate(subjects)}
        for one in subjects:
            phone.push(one.path, paths[one.name])
        launches: dict[str, list[Launch]] = {one.name: [] for one in subjects}
        turns = [one for _ in range(LAUNCHES) for one in subjects]
        for one in events.track(turns, f"{address}: launches", len(turns)):
            launches[one.name].append(_launch(phone, program, paths[one.name], one, plan))
        machine = " ".join(phone.shell("getprop", key).strip() for key in ("ro.product.model", "ro.board.platform"))
    finally:
        phone.remove(folder)
    results = tuple(
        _result(one, launches[one.name], plan, machine or "Android", device or str(address), subjects)
        for one in subjects
    )
    return Measurement(results, ())


def _launch(phone: _Phone, program: str, path: str, one: Subject, plan: Plan) -> Launch:
    delegate = one.options.get("delegate", True)
    said = phone.shell(
        program,
        f"--graph={path}",
        f"--num_threads={plan.threads}",
        f"--use_xnnpack={'true' if delegate else 'false'}",
        f"--num_runs={max(1, -(-plan.runs // LAUNCHES))}",
        f"--min_secs={plan.seconds / LAUNCHES:g}",
        "--warmup_min_secs=0.5",
        "--report_peak_memory_footprint=true",
    )
    try:
        return read_launch(said)
    except ValueError as error:
        last = " / ".join(said.strip().splitlines()[-3:])
        raise ModelError(f"{error}: {last or 'nothing'}", where=one.name) from error


def _result(
    one: Subject, launches: Sequence[Launch], plan: Plan, machine: str, device: str, subjects: Sequence[Subject]
) -> BenchResult:
    medians = np.array([launch.median_ms if launch.median_ms is not None else launch.mean_ms for launch in launches])
    draws = np.random.default_rng(plan.seed).choice(medians, (BOOTSTRAPS, len(medians)))
    low, high = np.percentile(np.median(draws, axis=1), INTERVAL)
    p95 = [launch.p95_ms for launch in launches if launch.p95_ms is not None]
    middle, mean = float(np.median(medians)), float(np.mean([launch.mean_ms for launch in launches]))
    delegated = launches[0].delegated
    memory = [launch.memory_mb for launch in launches if launch.memory_mb is not None]
    wide = (high - low) / middle > WIDE
    no_median = any(launch.median_ms is None for launch in launches)
    return BenchResult(
        model=one.name,
        device=device,
        runtime="tflite",
        precision=one.precision,
        threads=plan.threads,
        verified=False,
        latency_ms=LatencyMs(
            p50=round(middle, 5),
            p95=round(float(np.median(p95)), 5) if len(p95) == len(launches) else None,
            mean=round(mean, 5),
            low=round(float(low), 5),
            high=round(float(high), 5),
        ),
        throughput_per_s=round(1e3 / mean, 3),
        load_ms=launches[0].load_ms,
        first_ms=launches[0].first_ms,
        memory_mb=max(memory) if memory else None,
        stable=not wide,
        unstable_because=(f"launches differ: {medians.min():.3g}–{medians.max():.3g} ms",) if wide else (),
        coverage=delegated[0] / delegated[1] if delegated and delegated[1] else None,
        conditions=Conditions(
            machine=machine,
            runtime="benchmark_model",
            threads=plan.threads,
            runs=sum(launch.count for launch in launches),
            load=None,
            interleaved_with=tuple(other.name for other in subjects if other is not one),
            delegate="XNNPACK" if delegated else None,
            judged=("this release of benchmark_model gives no median: its mean stands for it",) if no_median else (),
        ),
    )


class _Phone:
    """adb's command line for one phone."""

    def __init__(self, address: Address, deadline: float, limit_s: float) -> None:
        self._address, self._deadline, self._limit_s = address, deadline, limit_s

    def check(self) -> None:
        if shutil.which("adb") is None:
            raise SetupError("there is no adb on this machine", hint="Install Android's platform tools.")
        state = self._adb("get-state")
        said = (state.stdout + state.stderr).strip()
        if state.returncode or state.stdout.strip() != "device":
            hint = "Unlock it and allow USB debugging." if "unauthorized" in said else "`adb devices` lists them."
            raise DeviceUnreachable(f"the phone does not answer: {said}", where=str(self._address), hint=hint)

    def push(self, source: Path, target: str) -> None:
        done = self._adb("push", str(source), target)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["adb said nothing"]
            if "No space left" in said[0]:
                raise SetupError(
                    f"the phone has no room for it: {said[0]}", where=str(self._address), hint="Make room."
                )
            raise DeviceUnreachable(f"{source.name} could not be sent: {said[0]}", where=str(self._address))

    def shell(self, *words: str) -> str:
        """What a program on the phone prints. ``words`` are ours: nothing in them means more to the phone's shell."""
        done = self._adb("shell", *words)
        said = done.stdout + done.stderr
        if done.returncode == 0:
            return said
        last = said.strip().splitlines()[-1:] or ["nothing"]
        if "benchmark" in words[0] and any(text in said for text in ("not found", "No such file")):
            raise SetupError("benchmark_model is not on the phone", where=str(self._address), hint=GET_RUNNER)
        if any(text in said for text in ("not executable", "Exec format error", "syntax error")):
            abi = self._adb("shell", "getprop", "ro.product.cpu.abi").stdout.strip()
            raise SetupError(
                f"the runner is built for another processor: {last[0]}",
                where=str(self._address),
                hint=f"The phone is {abi or 'of an unknown kind'}; {GET_RUNNER}",
            )
        if "device" in said and ("offline" in said or "not found" in said):
            raise DeviceUnreachable(f"the phone went away: {last[0]}", where=str(self._address))
        raise EdgeoptError(f"{Path(words[0]).name} failed on the phone: {last[0]}", where=str(self._address))

    def remove(self, folder: str) -> None:
        try:
            subprocess.run(self._command("shell", "rm", "-rf", folder), capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            events.warn(f"{folder} may be left on {self._address}")

    def _adb(self, *words: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                self._command(*words),
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=max(0.1, self._deadline - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise EdgeoptError(
                f"gave up after {self._limit_s:.0f} s",
                where=str(self._address),
                hint="Give it more time with --timeout.",
            ) from error

    def _command(self, *words: str) -> list[str]:
        return ["adb", "-s", self._address.host, *words]
