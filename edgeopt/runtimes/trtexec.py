"""Builds TensorRT engines and times them with ``trtexec``, the program that comes with TensorRT on Jetson boards.

Engines are built on the device that they run on. Needs no package of Python; Python 3.6 and later (JetPack 4).
Written after NVIDIA's description of trtexec and tried with a stand-in only, never on a board.
"""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

JETPACK = "/usr/src/tensorrt/bin"
"""Where JetPack puts trtexec; it is not on the path there."""
WARM_UP_MS = 1000
LAST = 4
"""Lines of an error that are handed on."""


class Session:
    """An engine, built from a model.

    Args:
        model: an ONNX file, or a bundle: a folder with ``model.onnx``.
        threads: not used: the GPU has no such setting.
        flags: builder flags of this release of trtexec; None: what int8 Q/DQ files need, as trtexec's own help says.

    Raises:
        ValueError: TensorRT refuses the model; the message is its own.
    """

    def __init__(self, model: Path, *, threads: int = 1, flags: "Optional[Sequence[str]]" = None) -> None:
        self._program = _program()
        self._folder = tempfile.TemporaryDirectory(prefix="edgeopt-")
        self._engine = Path(self._folder.name) / "model.engine"
        onnx = Path(model) / "model.onnx" if Path(model).is_dir() else Path(model)
        said = _help(self._program)
        build_only = "--skipInference" if "--skipInference" in said else "--buildOnly"
        wanted = _flags(said) if flags is None else list(flags)
        self._run([f"--onnx={onnx}", f"--saveEngine={self._engine}", build_only, *wanted])
        if not self._engine.is_file():
            self.__exit__()
            raise ValueError("trtexec wrote no engine and said nothing of it")

    def specs(self) -> "dict[str, tuple[str, tuple[Optional[int], ...]]]":
        """Nothing: trtexec fills the inputs itself."""
        return {}

    def reshape(self, shapes: "Mapping[str, tuple[int, ...]]") -> None:
        """The engine has the shapes of the file."""

    def times(self, seconds: float, runs: int) -> "list[float]":
        """Latency of each run in ms, the copies to and from the GPU included."""
        file = Path(self._folder.name) / "times.json"
        self._run(
            [
                f"--loadEngine={self._engine}",
                f"--duration={max(1, round(seconds))}",
                f"--iterations={runs}",
                f"--warmUp={WARM_UP_MS}",
                f"--exportTimes={file}",
            ]
        )
        return [float(run["latencyMs"]) for run in json.loads(file.read_text(encoding="utf-8"))]

    def profile(self, feed: "Mapping[str, Any]", runs: int) -> "list[dict[str, Any]]":
        """Mean time per layer of the engine in ms, costliest first, by TensorRT's own profiler."""
        file = Path(self._folder.name) / "profile.json"
        self._run(
            [
                f"--loadEngine={self._engine}",
                f"--iterations={runs}",
                "--dumpProfile",
                "--separateProfileRun",
                f"--exportProfile={file}",
            ]
        )
        layers = [layer for layer in json.loads(file.read_text(encoding="utf-8")) if "averageMs" in layer]
        everything = sum(layer["averageMs"] for layer in layers) or 1.0
        return [
            {
                "name": layer["name"],
                "op": "layer",
                "ms": float(layer["averageMs"]),
                "share": layer["averageMs"] / everything,
            }
            for layer in sorted(layers, key=lambda layer: -layer["averageMs"])
        ]

    def placement(self) -> "dict[str, Any]":
        """All of an engine runs in TensorRT."""
        return {"delegate": "TensorRT", "coverage": 1.0, "partitions": 1, "undelegated": []}

    def _run(self, arguments: "list[str]") -> None:
        done = subprocess.run(
            [self._program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
            errors = [line for line in lines if "[E]" in line] or lines
            self.__exit__()
            raise ValueError("trtexec: " + " / ".join(errors[-LAST:]))

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: Any) -> None:
        self._folder.cleanup()


def version() -> str:
    """TensorRT's version, as trtexec says it in its first line: ``[TensorRT v100300]``."""
    found = re.search(r"TensorRT v(\d+)", _help(_program()))
    if not found:
        return "of unknown version"
    number = int(found.group(1))  # two digits for minor and patch from 10 on, one below: 8502 is 8.5.2
    if number >= 100000:
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return f"{number // 1000}.{number // 100 % 10}.{number % 100}"


def _program() -> str:
    found = shutil.which("trtexec") or shutil.which("trtexec", path=JETPACK)
    if found is None:
        raise ModuleNotFoundError(f"there is no trtexec on the path, nor in {JETPACK}", name="trtexec")
    return found


def _help(program: str) -> str:
    done = subprocess.run(
        [program, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout.decode("utf-8", "replace")


def _flags(said: str) -> "list[str]":
    """8.x takes precisions as flags, 10.x types from the file if told so, 11.x always."""
    if "--stronglyTyped" in said:
        return ["--stronglyTyped"]
    return ["--int8", "--fp16"] if "--int8" in said else []
