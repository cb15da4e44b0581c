"""PyTorch modules, exported programs and Keras models as float graphs. All of PyTorch runs in a worker process.

A module comes as ``factory`` (a function of the user's code, in the recipe's folder) and weights, which are data:
``.safetensors``, or ``.pth`` read with ``weights_only=True``. A ``.pt2`` is searched for what could run code first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from edgeopt import digest, errors
from edgeopt.errors import MissingPackage, ModelError
from edgeopt.frontends import Feed, Imported
from edgeopt.frontends.frames import pack, read_frame, unpack, write_frame
from edgeopt.frontends.onnx import load_onnx
from edgeopt.frontends.pt2_archive import refuse_what_runs_code
from edgeopt.frontends.source_lines import note_lines

EXPORT_LIMIT_S = 900.0
"""The largest of the reference nets takes 40 s to export on two busy cores; twenty times that is a hang."""
RUN_LIMIT_S = 300.0
"""For one sample, and for loading."""
_TAIL_LINES = 12


@dataclass(frozen=True)
class TorchSource:
    """The module or exported program itself, run by PyTorch in a worker process, on the CPU, without gradients."""

    request: Mapping[str, Any] = field(repr=False)
    limit_s: float = RUN_LIMIT_S

    def run(self, samples: Iterable[Feed]) -> Iterator[Feed]:
        with _Worker({**self.request, "do": "run"}, self.limit_s) as worker:
            worker.answer()
            for feed in samples:
                worker.send(pack(feed))
                yield unpack(worker.receive())


def load_torch(
    factory: str,
    weights: Path | None,
    inputs: Mapping[str, tuple[int, ...]],
    *,
    root: Path,
    trained: Path | None = None,
    limit_s: float = EXPORT_LIMIT_S,
) -> Imported:
    """Build a module, load its weights, and export it.

    Args:
        factory: ``module:function``; the function takes nothing and returns a ``torch.nn.Module`` in eval mode.
        weights: ``.safetensors``, ``.pth`` or ``.pt`` (a state dictionary, or one under ``state_dict``); None if the
            factory loads them itself.
        inputs: input name → shape. Names of forward's parameters are matched; other names count in order.
        root: the folder that the factory's module is looked up in (the recipe's).
        trained: what a training pass left, in place of ``weights``.
        limit_s: seconds after which the export is given up.

    Raises:
        ModelError: what the user can mend: factory, weights, train mode, dtypes, open sizes, a forward that cannot be
            traced, a crash of the worker.
        UnsupportedOperator: an operator without an ONNX form; names node, operator and the user's line.
        MissingPackage: torch or onnxscript is not installed.
    """
    request = dict(open_torch(factory, weights, inputs, root=root, trained=trained).request)
    return _load(request, "torch", [file for file in (weights, trained) if file is not None], limit_s)


def open_torch(
    factory: str,
    weights: Path | None,
    inputs: Mapping[str, tuple[int, ...]],
    *,
    root: Path,
    trained: Path | None = None,
) -> TorchSource:
    """The module, to be run; nothing is exported. Arguments as for ``load_torch``.

    Raises:
        ModelError: no factory, or no such file; what else is wrong with it shows when it runs.
    """
    if ":" not in factory:
        raise ModelError(f"{factory!r} is no factory", hint="Write it as 'module:function', for example 'model:build'.")
    if weights is not None and not weights.is_file():
        raise ModelError("there is no such file", where=str(weights), hint="Check model.weights in the recipe.")
    _need_torch()
    return TorchSource(module_request(factory, weights, inputs, root=root, trained=trained))


def module_request(
    factory: str,
    weights: Path | None,
    inputs: Mapping[str, tuple[int, ...]],
    *,
    root: Path,
    trained: Path | None = None,
) -> dict[str, Any]:
    """What ``torch_loading.Loaded`` loads a module from; arguments as for ``load_torch``."""
    return {
        "factory": factory,
        "root": str(root.resolve()),
        "weights": str(weights.resolve()) if weights is not None else None,
        "trained": str(trained.resolve()) if trained is not None else None,
        "inputs": {name: list(sizes) for name, sizes in inputs.items()},
    }


def load_exported(
    path: Path,
    *,
    trust: bool = False,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    limit_s: float = EXPORT_LIMIT_S,
) -> Imported:
    """Load a ``.pt2`` that ``torch.export.save`` wrote.

    Args:
        path: the archive.
        trust: load it although it holds pickled objects or other things that can run code.
        inputs: input name → shape, for sizes that the program leaves open; a batch that alone is open becomes 1.
        limit_s: seconds after which the export is given up.

    Raises:
        ModelError, UnsupportedOperator, MissingPackage: as ``load_torch``; and an archive that could run code.
    """
    return _load(dict(open_exported(path, trust=trust, inputs=inputs).request), "exported", [path], limit_s)


def open_exported(
    path: Path, *, trust: bool = False, inputs: Mapping[str, tuple[int, ...]] | None = None
) -> TorchSource:
    """The program of a ``.pt2``, to be run; no ONNX is made of it. Arguments and errors as for ``load_exported``."""
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path), hint="Check the path; it is relative to the recipe.")
    if not trust:
        refuse_what_runs_code(path)
    _need_torch()
    return TorchSource(
        {
            "exported": str(path.resolve()),
            "inputs": {name: list(sizes) for name, sizes in (inputs or {}).items()},
        }
    )


def load_keras(
    path: Path, inputs: Mapping[str, tuple[int, ...]] | None = None, *, limit_s: float = EXPORT_LIMIT_S
) -> Imported:
    """Load a Keras model; see ``frontends.keras_loading``.

    Args:
        path: ``.keras`` or ``.h5``.
        inputs: input name → shape, channels first, for sizes that the model leaves open.
        limit_s: seconds after which the export is given up.

    Raises:
        ModelError, UnsupportedOperator, MissingPackage: as ``load_torch``; and a model that could run code.
    """
    return _load(dict(open_keras(path, inputs).request), "keras", [path], limit_s)


def open_keras(path: Path, inputs: Mapping[str, tuple[int, ...]] | None = None) -> TorchSource:
    """The Keras model, to be run; no ONNX is made of it. Arguments and errors as for ``load_keras``."""
    if not path.is_file():
        raise ModelError(
            "is a folder; a Keras model is one file" if path.is_dir() else "there is no such file",
            where=str(path),
            hint="Give a .keras or .h5 that model.save wrote; a SavedModel is saved again as .keras.",
        )
    for package in ("torch", "keras", "h5py"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(package, "keras", "importing a Keras model")
    return TorchSource(
        {"keras": str(path.resolve()), "inputs": {name: list(sizes) for name, sizes in (inputs or {}).items()}}
    )


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingPackage("torch", "torch", "importing a PyTorch model")


def _load(
    request: dict[str, Any], kind: Literal["torch", "exported", "keras"], files: list[Path], limit_s: float
) -> Imported:
    for sizes in request["inputs"].values():
        if any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ModelError(f"{sizes} leaves sizes open", hint="Every size of model.inputs is a number, at least 1.")
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        out = Path(folder) / "model.onnx"
        with _Worker({**request, "do": "export", "out": str(out)}, limit_s) as worker:
            answer = worker.answer()
        imported = _import_exported(out, request)
    where = _relative(imported.where, request.get("root"))
    note_lines(imported.model, where)
    read = [digest.of_file(file) for file in [*files, *map(Path, answer["files"])]]
    return Imported(
        model=imported.model,
        signature=imported.signature,
        source=TorchSource(request),
        digest=digest.of_json([read, request.get("factory"), sorted(answer["inputs"].items())]),
        kind=kind,
        where=where,
    )


def _import_exported(out: Path, request: Mapping[str, Any]) -> Imported:
    """The ONNX file is ours and goes away: errors speak of the user's model."""
    name = str(request.get("factory") or request.get("exported") or request.get("keras"))
    try:
        return load_onnx(out)
    except ModelError as error:
        where = (error.where or "").replace(f"{out}: ", "").replace(str(out), name)
        raise type(error)(error.what, where=where or name, hint=error.hint) from error


def _relative(where: Mapping[str, str], root: str | None) -> dict[str, str]:
    prefix = f"{root}{os.sep}" if root else None
    return {name: line.removeprefix(prefix) if prefix else line for name, line in where.items()}


class _Worker:
    """One worker process: frames to and from it, a time limit per answer, and its last words when it dies."""

    def __init__(self, request: Mapping[str, Any], limit_s: float) -> None:
        self.request = request
        self.limit_s = limit_s
        self.timed_out = False

    def __enter__(self) -> _Worker:
        self.errors = tempfile.TemporaryFile()
        # -P: the folder that edgeopt was started in must not shadow modules; edgeopt itself is found as it was here
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgeopt.frontends.torch_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
        )
        self.send(json.dumps(dict(self.request)).encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        if kind is not None:
            self.process.kill()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it died of is said by ``receive``
            write_frame(self.process.stdin, data)

    def receive(self) -> bytes:
        """The next answer.

        Raises:
            EdgeoptError: what the worker reported; ModelError: it died, or did not answer in time.
        """
        assert self.process.stdout is not None
        timer = threading.Timer(self.limit_s, self._give_up)
        timer.start()
        try:
            data = read_frame(self.process.stdout)
        finally:
            timer.cancel()
        if data is None:
            raise self._death()
        if data.startswith(b'{"error"'):
            text = json.loads(data)["error"]
            if text["kind"] == "MissingPackage":
                raise errors.SetupError(text["what"], where=text["where"], hint=text["hint"])
            raise getattr(errors, text["kind"])(text["what"], where=text["where"], hint=text["hint"])
        return data

    def answer(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.receive())["ok"]
        return result

    def _give_up(self) -> None:
        self.timed_out = True
        self.process.kill()

    def _death(self) -> ModelError:
        name = str(self.request.get("factory") or self.request.get("exported") or self.request.get("keras"))
        code = self.process.wait()
        self.errors.seek(0)
        tail = self.errors.read().decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        said = "\n  ".join(["Its last words:", *tail]) if tail else "It said nothing."
        if self.timed_out:
            return ModelError(f"PyTorch did not answer within {self.limit_s:g} s", where=name, hint=said)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ModelError(f"the PyTorch process {how} while it worked on this model", where=name, hint=said)
