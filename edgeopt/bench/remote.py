"""Measuring on a device of one's own: what goes there, and what its answers mean."""

from __future__ import annotations

import io
import json
import signal
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from edgeopt.bench import agent
from edgeopt.bench.latency import Measurement, Plan, Subject, results_of, telling, understood
from edgeopt.bench.ssh import Answer, Connection
from edgeopt.errors import EdgeoptError, ModelError, SetupError, UsageError

ARCHIVE, REQUEST = "agent.pyz", "request.json"
MAIN = "import sys\nfrom bench import agent\nsys.exit(agent.main(sys.argv[1], 'runtimes'))\n"
RUNTIMES = {"onnxruntime": "ONNX Runtime", "litert": "LiteRT", "trtexec": "TensorRT"}
"""Module in ``edgeopt.runtimes`` that can travel → how people call it."""
ALONG = {"trtexec": ("tensorrt_python", "tensorrt")}
"""What travels with a runtime: for a board without trtexec, TensorRT's Python API."""
TRIED = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorrt": "tensorrt",
}
"""Package → module that ``edgeopt doctor --on`` tries to import on the board."""
PROGRAMS = ("trtexec", "vcgencmd", "nvpmodel", "jetson_clocks")
VENV = "python3 -m venv ~/.edgeopt && ~/.edgeopt/bin/pip install"
"""The place where the receiver looks: boards keep pip out of the system's own Python."""
OLDEST = 8
"""Minor version of Python 3 that the runtimes' files here need."""
EXAMINE_LIMIT_S = 180.0


def measure_on(
    connection: Connection,
    subjects: tuple[Subject, ...],
    plan: Plan,
    *,
    device: str | None = None,
    limit_s: float = 600.0,
) -> Measurement:
    """Copy agent and models there, measure, remove them.

    Args:
        connection: to the device.
        subjects: what to measure; PyTorch sources do not travel.
        plan: how.
        device: what to call it in results; default: its address.
        limit_s: seconds for all of it.

    Raises:
        UsageError: a model that does not travel, or that the device's runtime refuses.
        DeviceUnreachable: no connection, or it was lost.
        SetupError: the device lacks something; the hint says how to install it there.
        EdgeoptError: the agent failed or took too long.
    """
    for one in subjects:
        if one.runtime not in RUNTIMES:
            raise UsageError("a PyTorch source is measured here only", where=one.name, hint="Convert it first.")
    files: dict[str, Path | bytes] = {ARCHIVE: archive({one.runtime for one in subjects})}
    paths: dict[str, str] = {}
    for index, one in enumerate(subjects):
        own = f"models/{index}"
        for name, path in files_of(one.path).items():
            files[f"{own}/{name}"] = path
        paths[one.name] = own if one.path.is_dir() else f"{own}/{one.path.name}"
    files[REQUEST] = json.dumps(plan.request(subjects, paths)).encode()
    answer = _ask(connection, files, limit_s, RUNTIMES[subjects[0].runtime])
    return results_of(subjects, plan, answer["result"], device=device or str(connection.address))


def examine(connection: Connection) -> dict[str, Any]:
    """What the board has and lacks: ``agent.examine`` with ``lacks``: runtime → how to install it there."""
    request = {"do": "examine", "imports": TRIED, "programs": list(PROGRAMS)}
    files: dict[str, Path | bytes] = {ARCHIVE: archive(()), REQUEST: json.dumps(request).encode()}
    found: dict[str, Any] = _ask(connection, files, EXAMINE_LIMIT_S, "the agent")["result"]
    imports = found["imports"]
    works = {name: imports[name]["problem"] is None for name in imports}
    have = {
        "onnxruntime": works["onnxruntime"] and works["numpy"],
        "litert": (works["ai-edge-litert"] or works["tflite-runtime"]) and works["numpy"],
        "trtexec": found["programs"]["trtexec"] is not None or (works["tensorrt"] and works["numpy"]),
    }
    machine = found["machine"]
    lacks = {RUNTIMES[name]: how_to_install(name, machine) for name, there in have.items() if not there}
    return {**found, "runtimes": {RUNTIMES[name]: there for name, there in have.items()}, "lacks": lacks}


def archive(runtimes: Sequence[str] | set[str]) -> bytes:
    """The zipapp: the agent and these runtimes, with nothing else of edgeopt."""
    content = io.BytesIO()
    here = resources.files("edgeopt")
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", MAIN)
        travelling = {*runtimes, *(other for name in runtimes for other in ALONG.get(name, ()))}
        for package, modules in (("bench", ("agent", "conditions", "examine")), ("runtimes", sorted(travelling))):
            archive.writestr(f"{package}/__init__.py", "")
            for module in modules:
                archive.writestr(f"{package}/{module}.py", here.joinpath(package, f"{module}.py").read_bytes())
    return content.getvalue()


def files_of(model: Path) -> dict[str, Path]:
    """Everything that a model consists of, by its path beside it: an ONNX file's external data, a bundle's model.

    Raises:
        ModelError: no such file, or external data that is missing or lies outside the model's folder.
    """
    if model.is_dir():
        return files_of(model / "model.onnx")  # its samples and scripts stay
    if not model.is_file():
        raise ModelError("there is no such file", where=str(model))
    found = {model.name: model}
    if model.suffix == ".onnx":
        for name in _external_data(model):
            path = model.parent / name
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not path.is_file():
                raise ModelError(f"its data '{name}' is not beside it", where=str(model))
            found[name] = path
    return found


def _external_data(model: Path) -> set[str]:
    import onnx

    try:
        graph = onnx.load(model, load_external_data=False).graph
    except Exception as error:  # protobuf raises its own
        raise ModelError(f"is no ONNX model: {error}", where=str(model)) from error
    return {
        entry.value
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _ask(connection: Connection, files: Mapping[str, Path | bytes], limit_s: float, runtime: str) -> Mapping[str, Any]:
    """The agent's result."""
    where = str(connection.address)

    with telling() as tell:
        tell(f"{where}: connecting")
        answer = connection.run(files, [ARCHIVE, REQUEST], limit_s=limit_s, tell=lambda text: tell(f"{where}: {text}"))
    if answer.message is None:
        raise _dead(answer, where, runtime)
    if answer.message["at"] == "problem":
        raise _problem(answer.message, where)
    return answer.message


def _problem(said: Mapping[str, Any], where: str) -> EdgeoptError:
    """The agent's problem as an error, with what a board needs."""
    problem = agent.Problem(said["kind"], said["text"], said["model"], said["detail"])
    text = " ".join(problem.text.split())[:300]
    machine = said["machine"]
    if problem.kind == "missing_runtime":
        return SetupError(
            f"{RUNTIMES[problem.detail]} is not installed on the device: {text}",
            where=where,
            hint=f"Install it there: {how_to_install(problem.detail, machine)}",
        )
    if problem.kind == "broken_runtime":
        wrong = any(word in text for word in ("ELF", "wrong architecture", "Exec format", "cannot open shared object"))
        return SetupError(
            f"{RUNTIMES[problem.detail]} does not load on the device"
            f"{', it is built for another processor or system' if wrong else ''}: {text}",
            where=where,
            hint=f"The device is {machine['architecture']}, Python {machine['python']}. "
            f"Install it anew: {how_to_install(problem.detail, machine)}",
        )
    if problem.kind == "old_python":
        return SetupError(
            f"{text}: the runtimes need 3.8",
            where=where,
            hint="Install a newer one there and name it with --python; trtexec alone needs no newer one.",
        )
    if problem.kind == "bug":
        return EdgeoptError(
            f"the agent failed: {text}", where=where, hint="This is a bug in edgeopt; please report it."
        )
    error = understood(problem)
    return type(error)(error.what, where=f"{where}: {error.where}", hint=error.hint)


def _dead(answer: Answer, where: str, runtime: str) -> EdgeoptError:
    """The agent ended without an answer."""
    code, last = answer.code, " / ".join(answer.last)
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = {
            "SIGKILL": "Somebody ended it, or the device ran out of memory (see dmesg there).",
            "SIGILL": f"{runtime} there is built for a newer processor: the device's lacks instructions that it uses.",
        }.get(name, last or None)
        return EdgeoptError(f"the agent was ended on the device by signal {name}", where=where, hint=hint)
    return EdgeoptError(f"the agent ended with code {code} and no answer", where=where, hint=last or None)


def how_to_install(runtime: str, machine: Mapping[str, Any]) -> str:
    """The line that installs a runtime on that board, or why there is none."""
    architecture, board = machine["architecture"], machine["board"] or ""
    narrow = machine["word_bits"] == 32 or architecture in ("armv6l", "armv7l", "i686")
    minor = int(machine["python"].split(".")[1])
    if runtime == "trtexec":
        if "Jetson" in board or "NVIDIA" in board:
            return "sudo apt install nvidia-jetpack (or tensorrt); trtexec is then in /usr/src/tensorrt/bin"
        return "TensorRT runs on NVIDIA GPUs; on a board without one, bench the ONNX or TFLite file"
    if minor < OLDEST:
        return f"its runtimes need Python 3.{OLDEST} or later, and the device's is {machine['python']}"
    if runtime == "onnxruntime":
        if narrow:
            return "there is no build of ONNX Runtime for 32-bit systems: install the board's 64-bit system"
        return f"{VENV} numpy onnxruntime"
    if (
        narrow or minor < 10
    ):  # LiteRT's own packages are for 64 bits and Python 3.10 on; its forerunner's go back further
        return f"{VENV} 'numpy<2' tflite-runtime"
    return f"{VENV} numpy ai-edge-litert"
