"""Measures models where it runs: called here by ``bench.latency``, and on a device as a zipapp with one runtime.

Standard library only (a runtime brings numpy), nothing of edgeopt, Python 3.6 and later. It returns the single times:
what they mean is computed where the answer is read, so that both ways end in the same statistics.

On a device it reads one JSON request (a file) and prints lines of JSON behind ``edgeopt:``; see ``main``.
"""

import contextlib
import ctypes
import importlib
import json
import os
import random
import resource
import select
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import conditions
from .examine import examine

PREFIX = "edgeopt:"
"""Before each line that is ours: a login shell may print things of its own."""
TURN = 5
"""Runs of one model before the next one's turn, at least. One each would time a cache that the other model emptied."""
LONGEST_TURN = 1000
STEADY = 0.05
"""Two windows of the warm-up in a row whose medians differ by less are a steady state."""
WINDOW_S = 0.2
WINDOW_RUNS = 10
PROFILED_RUNS = 30
MOST_RUNS = 200_000
MEMORY_LIMIT_S = 120.0
ENERGY_S = 2.0
"""Counters of energy move every millisecond: over two seconds that is nothing."""
PR_SET_PDEATHSIG = 1


Opener = Callable[[], Any]
"""Returns a session: a context manager with ``specs``, ``reshape``, ``run``, ``placement``, perhaps ``profile``. One
that times itself (a program of the board) has ``times`` in the place of ``run``."""


class Opening(NamedTuple):
    """How a model is opened: its runtime's version, the opener, whether its session times itself, and whether opening
    builds an engine, which takes minutes."""

    version: str
    open: Opener
    times_itself: bool = False
    builds: bool = False


class Problem(Exception):
    """What kept a model from being measured.

    Args:
        kind: ``model`` (its runtime refuses it), ``open_sizes``, ``batch``, ``missing_runtime``, ``broken_runtime`` (it
            is there and does not load), ``old_python``, ``memory``, ``request``.
        text: what the runtime or the system says.
        model: name of the model.
        detail: for ``open_sizes`` the input's name; for a runtime its module.
    """

    def __init__(self, kind: str, text: str, model: str = "", detail: str = "") -> None:
        super().__init__(kind, text, model, detail)
        self.kind, self.text, self.model, self.detail = kind, text, model, detail


def file_opener(subject: "Mapping[str, Any]", request: "Mapping[str, Any]", package: str) -> Opening:
    """How a file is opened; its runtime is imported here.

    Args:
        subject: ``name``, ``path``, ``runtime`` (module), perhaps ``instead`` (module to take where that runtime is
            missing), ``options`` of its session.
        request: ``threads``, ``batch`` and ``inputs`` (name → shape).
        package: where the runtimes' modules are.
    """
    try:
        runtime, version = _runtime(subject, subject["runtime"], package)
    except Problem as problem:
        if problem.kind != "missing_runtime" or not subject.get("instead"):
            raise
        try:
            runtime, version = _runtime(subject, subject["instead"], package)
        except Problem as other:
            if other.kind == "old_python":
                raise problem from other
            raise Problem(other.kind, f"{problem.text}; {other.text}", problem.model, problem.detail) from other

    def opener() -> Any:
        return runtime.Session(Path(subject["path"]), threads=request["threads"], **subject.get("options", {}))

    session = runtime.Session
    return Opening(version, opener, hasattr(session, "times"), getattr(session, "builds", False))


def _runtime(subject: "Mapping[str, Any]", module: str, package: str) -> "tuple[Any, str]":
    """The module of a runtime, and its version."""
    name, called = subject["name"], subject["runtime"]
    try:
        runtime = importlib.import_module(f"{package}.{module}")
        return runtime, runtime.version()
    except SyntaxError as error:
        raise Problem("old_python", f"Python {sys.version.split()[0]} cannot read {error.filename}", name) from error
    except ModuleNotFoundError as error:
        raise Problem("missing_runtime", str(error), name, called) from error
    except (ImportError, OSError) as error:
        raise Problem("broken_runtime", str(error), name, called) from error


def bound_shapes(
    specs: "Mapping[str, Tuple[str, Tuple[Optional[int], ...]]]", request: "Mapping[str, Any]", name: str
) -> "dict[str, tuple[int, ...]]":
    """A shape for every input: as given, else the batch first where that size is open, else as the file has it."""
    given, batch = request.get("inputs") or {}, request.get("batch")
    unknown = [key for key in given if key not in specs]
    if unknown and len(request.get("models", ())) < 2:
        raise Problem("request", f"no input named {unknown[0]!r}; it has {', '.join(specs)}", name)
    if not specs and (given or batch is not None):
        raise Problem("batch", "an engine has the shapes of its file", name)
    shapes = {}
    for key, (_, shape) in specs.items():
        sizes = list(given[key]) if key in given else list(shape)
        if sizes and batch is not None and key not in given and sizes[0] != batch:
            sizes[0] = batch
        elif sizes and sizes[0] is None:
            sizes[0] = 1
        if any(size is None for size in sizes):
            shown = ", ".join("?" if size is None else str(size) for size in shape)
            raise Problem("open_sizes", f"input '{key}' is [{shown}]", name, key)
        shapes[key] = tuple(int(size or 0) for size in sizes)
    return shapes


def fill(specs: "Mapping[str, Any]", shapes: "Mapping[str, tuple[int, ...]]", seed: int) -> "dict[str, Any]":
    """Seeded inputs: floats in 0–1, bytes of all values, zeros for what may be an index."""
    import numpy as np

    source = np.random.RandomState(seed)  # the newer generators are not there in old numpys
    feed = {}
    for name, (dtype, _) in specs.items():
        kind = np.dtype(dtype)
        if kind.kind == "f":
            feed[name] = source.random_sample(shapes[name]).astype(kind)
        elif kind.itemsize == 1 and kind.kind in "iu":
            feed[name] = source.randint(0, 256, shapes[name]).astype(np.uint8).view(kind)
        else:
            feed[name] = np.zeros(shapes[name], kind)
    return feed


class Measured:
    """One model: opened, fed, and its times in ms, turn by turn."""

    def __init__(self, name: str, opening: Opening, request: "Mapping[str, Any]") -> None:
        self.name, self.version, self.times_itself = name, opening.version, opening.times_itself
        # what times itself works in processes of its own, and an engine is not built twice
        alone = opening.times_itself or opening.builds
        self.memory_mb = None if alone else _memory_mb(name, opening.open, request)
        self.session, self.shapes, self.feed, self.load_ms, self.first_ms = _opened(name, opening.open, request)
        self.warm_up_runs = 1
        self.turns = []  # type: list[list[float]]
        self.per_turn = TURN
        self.energy = None  # type: Optional[dict[str, Any]]
        self.profile = None  # type: Optional[list[dict[str, Any]]]

    def run(self, count: int) -> "list[float]":
        """Milliseconds of ``count`` runs: inputs copied in, inference, outputs copied out."""
        run, feed, clock = self.session.run, self.feed, time.perf_counter
        times = []
        for _ in range(count):
            start = clock()
            run(feed)
            times.append((clock() - start) * 1e3)
        return times

    def batch(self) -> int:
        sizes = [shape[0] for shape in self.shapes.values() if shape]
        return sizes[0] if sizes else 1


def _opened(name: str, opener: Opener, request: "Mapping[str, Any]") -> "tuple[Any, Any, Any, float, float]":
    """Session, shapes, feed, and the ms that loading and the first run took."""
    start, session = time.perf_counter(), None
    kind = "batch" if request.get("batch") is not None else "model"
    try:
        session = opener()
        specs = session.specs()
        shapes = bound_shapes(specs, request, name)
        session.reshape(shapes)
        load_ms = (time.perf_counter() - start) * 1e3
        if hasattr(session, "times"):
            return session, shapes, {}, load_ms, 0.0
        feed = fill(specs, shapes, request.get("seed", 0))
        start = time.perf_counter()
        session.run(feed)
    except Exception as error:
        if session is not None:
            session.__exit__(None, None, None)
        if isinstance(error, ValueError):
            raise Problem(kind, str(error), name) from error
        raise
    return session, shapes, feed, load_ms, (time.perf_counter() - start) * 1e3


def _memory_mb(name: str, opener: Opener, request: "Mapping[str, Any]") -> "Optional[float]":
    """Most that loading and one run add, in a process of its own: what one leaves behind the next would use again."""
    if sys.platform != "linux":
        return None
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = _begin_peak()
            kept = _opened(name, opener, request)
            os.write(theirs, f"{_peak_mb() - before:.3f}".encode())
            del kept
        finally:
            os._exit(0)  # whatever went wrong here goes wrong again, and is said, when the parent opens the file
    os.close(theirs)
    ready, _, _ = select.select([ours], [], [], MEMORY_LIMIT_S)
    said = os.read(ours, 64) if ready else b""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)
    return max(0.0, float(said)) if said else None


def measure(
    openers: "Mapping[str, Opening]",
    request: "Mapping[str, Any]",
    say: "Callable[[str], None]" = lambda text: None,
) -> "dict[str, Any]":
    """Warm all models up until their times are steady, then time them in turns.

    Args:
        openers: name → how it is opened.
        request: ``threads``, ``batch``, ``inputs``, ``seconds`` and ``runs`` (both at least, per model), ``warm_up_s``
            (at most, per model), ``seed``, ``profile``.
        say: told what is being done.

    Returns:
        ``machine``, ``before`` and ``after`` (see ``conditions``), ``judged``, and per model in ``models`` what was
        measured: ``turns`` are the times in ms, in the order in which they were taken.

    Raises:
        Problem: a model that cannot be opened or run.
    """
    names = list(openers)
    before = conditions.read()
    measured = []  # type: list[Measured]
    steady = {}  # type: dict[str, bool]
    try:
        for name in names:
            say(f"loading {name}")
            measured.append(Measured(name, openers[name], request))
        for one in measured:
            if one.times_itself:
                say(f"measuring {one.name}")
                one.turns = [one.session.times(request["seconds"], request["runs"])]
        ours = [one for one in measured if not one.times_itself]
        if ours:
            say("warming up")
            steady = warm_up(ours, request["warm_up_s"])
            say("measuring")
            take_turns(ours, request["seconds"], request["runs"], request.get("seed", 0))
        after = conditions.read()
        meter = conditions.Meter()
        for one in ours:
            if meter.name is not None:
                say(f"energy of {one.name}")
                one.energy = energy(one, meter, min(ENERGY_S, request["seconds"]))
        if request.get("profile"):
            for one in measured:
                if hasattr(one.session, "profile"):
                    say(f"profiling {one.name}")
                    one.profile = one.session.profile(one.feed, PROFILED_RUNS)
        machine = conditions.machine()
        return {
            "machine": machine,
            "before": before,
            "after": after,
            "judged": conditions.judge(before, after, machine["cores"]),
            "models": [
                {
                    "name": one.name,
                    "version": one.version,
                    "batch": one.batch(),
                    "shapes": {name: list(shape) for name, shape in one.shapes.items()},
                    "load_ms": one.load_ms,
                    "first_ms": one.first_ms,
                    "memory_mb": one.memory_mb,
                    "warm_up_runs": one.warm_up_runs,
                    "steady": steady.get(one.name, True),
                    "in_turns_with": [other.name for other in ours if other is not one] if one in ours else [],
                    "turns": [[round(ms, 6) for ms in turn] for turn in one.turns],
                    "placement": one.session.placement(),
                    "energy": one.energy,
                    "profile": one.profile,
                }
                for one in measured
            ],
        }
    finally:
        for one in measured:
            one.session.__exit__(None, None, None)


def warm_up(measured: "Sequence[Measured]", limit_s: float) -> "dict[str, bool]":
    """Run windows until two in a row agree; whether each model came to rest within ``limit_s`` seconds."""
    steady = {}
    for one in measured:
        end = time.perf_counter() + limit_s
        last = None  # type: Optional[float]
        steady[one.name] = False
        while not steady[one.name]:
            start, times = time.perf_counter(), []  # type: float, list[float]
            while len(times) < WINDOW_RUNS or time.perf_counter() - start < min(WINDOW_S, limit_s / 4):
                times += one.run(TURN)
            one.warm_up_runs += len(times)
            median = statistics.median(times)
            steady[one.name] = last is not None and abs(median - last) <= STEADY * last
            last = median
            if time.perf_counter() > end:
                break
    slowest = max(statistics.median(one.run(TURN)) for one in measured)
    for one in measured:  # so that each gets about the same share of the time
        own = statistics.median(one.run(TURN))
        one.warm_up_runs += 2 * TURN
        one.per_turn = max(TURN, min(LONGEST_TURN, round(TURN * slowest / max(own, 1e-3))))
    return steady


def take_turns(measured: "Sequence[Measured]", seconds: float, runs: int, seed: int) -> None:
    """Turns in a drawn order until each model has its seconds and its runs."""
    order, draw = list(measured), random.Random(seed)  # noqa: S311 - an order, no secret
    spent = {one.name: 0.0 for one in measured}
    count = {one.name: 0 for one in measured}

    def open_still(one: Measured) -> bool:
        return count[one.name] < runs or (spent[one.name] < seconds and count[one.name] < MOST_RUNS)

    while any(open_still(one) for one in measured):
        draw.shuffle(order)
        for one in order:
            times = one.run(one.per_turn)
            one.turns.append(times)
            spent[one.name] += sum(times) / 1e3
            count[one.name] += len(times)


def energy(one: Measured, meter: conditions.Meter, seconds: float) -> "dict[str, Any]":
    """Millijoules per run, the machine's rest included, over a stretch in which nothing else is measured."""
    runs, start = 0, time.perf_counter()
    meter.start()
    while runs == 0 or time.perf_counter() - start < seconds:
        one.run(one.per_turn)
        runs += one.per_turn
    joules, took = meter.stop(), time.perf_counter() - start
    return {"counter": meter.name, "mj_per_inference": joules / runs * 1e3, "watts": joules / took}


def _begin_peak() -> float:
    """MB in use now; the kernel's record of the peak begins anew where it lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak_mb()  # only what exceeds the peak so far will be seen
    return _status_mb("VmRSS") or _peak_mb()


def _peak_mb() -> float:
    peak = _status_mb("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _status_mb(key: str) -> "Optional[float]":
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), None)


# --- on a device


def emit(at: str, **content: Any) -> None:
    """One line for the other side."""
    sys.stdout.write(f"{PREFIX}{json.dumps(dict(content, at=at))}\n")
    sys.stdout.flush()


def main(file: str, package: str) -> int:
    """Do what the JSON request in ``file`` asks: ``measure`` or ``examine``.

    Prints lines ``progress``, and one ``result`` or ``problem``.
    """
    _die_with_parent()
    request = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        if request["do"] == "examine":
            emit("result", result=examine(request))
        else:
            emit("result", result=_measure_files(request, package))
    except Problem as problem:
        _emit_problem(problem)
    except MemoryError:
        _emit_problem(Problem("memory", "not enough memory"))
    except Exception as error:  # noqa: BLE001 - the other side reports it
        traceback.print_exc()
        _emit_problem(Problem("bug", f"{type(error).__name__}: {error}"))
    return 0


def _emit_problem(problem: Problem) -> None:
    """With the machine that has it: what helps depends on it."""
    content = {"kind": problem.kind, "text": problem.text, "model": problem.model, "detail": problem.detail}
    emit("problem", machine=conditions.machine(), **content)


def _die_with_parent() -> None:
    """A receiver that is killed takes its agent along (Linux; elsewhere the agent runs to its end)."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _measure_files(request: "Mapping[str, Any]", package: str) -> "dict[str, Any]":
    root = Path(sys.argv[0]).resolve().parent

    openers = {
        subject["name"]: file_opener(dict(subject, path=str(root / subject["path"])), request, package)
        for subject in request["models"]
    }
    return measure(openers, request, lambda text: emit("progress", text=text))
