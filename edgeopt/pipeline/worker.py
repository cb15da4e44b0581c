"""Work in processes of its own: what can crash or hang an interpreter is not run in ours.

The parent starts Python anew (no fork: frameworks with threads do not survive one), sends one pickled call through
stdin and reads pickled messages from a pipe; both ends are ours. A worker whose parent is gone sees stdin close and
ends. Ctrl-C reaches the parent only, which kills its workers.
"""

from __future__ import annotations

import importlib
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgeopt import events
from edgeopt.errors import EdgeoptError

_LENGTH = struct.Struct("<Q")
_START = "import sys; sys.path[:] = {path!r}; from edgeopt.pipeline.worker import main; main({fd})"
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # thread counts are fixed, so that results repeat; more threads burn time spinning
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # glibc keeps freed memory per arena, and makes one per thread
}


@dataclass(frozen=True)
class Call:
    """One piece of work.

    Args:
        function: ``module:function``, importable; it takes ``argument`` and returns something that can be pickled.
        argument: anything that can be pickled.
        limit_s: wall-clock seconds until it is given up.
    """

    function: str
    argument: Any
    limit_s: float


class Crashed(EdgeoptError):
    """A worker died or hung; ``where`` names the work."""


def run_all(calls: Mapping[str, Call], log_folder: Path, *, at_once: int = 2) -> dict[str, Any]:
    """Run calls side by side, each in a process; events of the workers go to our listener.

    Args:
        calls: name (for messages) → call.
        log_folder: where the workers' stdout and stderr go; read when one dies.
        at_once: how many processes run at a time.

    Returns:
        Name → result, or the ``EdgeoptError`` or ``OSError`` that it raised or ended with.

    Raises:
        KeyboardInterrupt: after all workers are dead.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    waiting, running = list(calls.items()), dict[str, _Worker]()
    results: dict[str, Any] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    name, call = waiting.pop(0)
                    running[name] = _Worker(name, call, log_folder / f"{name}.log")
                    selector.register(running[name].messages, selectors.EVENT_READ, name)
                soonest = min(worker.deadline for worker in running.values())
                ready = {key.data for key, _ in selector.select(max(0.0, soonest - time.monotonic()))}
                for name, worker in list(running.items()):
                    if name in ready:
                        worker.receive()
                    elif time.monotonic() > worker.deadline:
                        worker.give_up()
                    if worker.ended:
                        selector.unregister(worker.messages)
                        results[name] = worker.close()
                        del running[name]
        finally:
            for worker in running.values():
                worker.kill()
    return results


def run_one(name: str, call: Call, log_folder: Path) -> Any:
    """``run_all`` for one call: returns its result or raises its error."""
    result = run_all({name: call}, log_folder)[name]
    if isinstance(result, EdgeoptError | OSError):
        raise result
    return result


class _Worker:
    """The parent's view of one process."""

    def __init__(self, name: str, call: Call, log: Path) -> None:
        self._name, self._call, self._log = name, call, log
        self._result: Any = None
        self.ended = False
        self.deadline = time.monotonic() + call.limit_s
        read_end, write_end = os.pipe()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, fd=write_end)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write_end],
                env={**_ENVIRONMENT, **os.environ},
                start_new_session=True,  # the terminal's Ctrl-C is for the parent
            )
        os.close(write_end)
        self.messages = os.fdopen(read_end, "rb", buffering=0)
        try:
            _send(self._stdin(), call)
        except BrokenPipeError:
            self.receive()

    def receive(self) -> None:
        """One message, or the end."""
        try:
            kind, content = _receive(self.messages)
        except EOFError:
            self._died()
            return
        if kind == "event":
            events.emit(content)
            return
        self._result, self.ended = content, True

    def give_up(self) -> None:
        self.kill()
        self.ended = True
        self._result = Crashed(
            f"gave up after {self._call.limit_s:.0f} s",
            where=self._name,
            hint="It hangs, or this machine is too slow for it.",
        )

    def _died(self) -> None:
        code, self.ended = self._process.wait(), True
        how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        tail = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        hint = "Was there enough memory?" if code == -signal.SIGKILL else " / ".join(tail)
        self._result = Crashed(f"the worker process {how}", where=self._name, hint=hint or None)

    def close(self) -> Any:
        self._stdin().close()
        self._process.wait()
        self.messages.close()
        return self._result

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin


def main(fd: int) -> None:
    """The worker's side: one call in, events and one result out."""
    with os.fdopen(fd, "wb", buffering=0) as out:
        requests = os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
        call: Call = _receive(requests)
        threading.Thread(target=_end_with_parent, args=(requests,), daemon=True).start()
        lock = threading.Lock()

        def answer(kind: str, content: Any) -> None:
            with lock:
                _send(out, (kind, content))

        try:
            module, _, name = call.function.partition(":")
            with events.listening(lambda event: answer("event", event)):
                result = getattr(importlib.import_module(module), name)(call.argument)
        except (EdgeoptError, OSError) as error:
            result = error
        except Exception as error:  # noqa: BLE001 - a bug of ours or a library's: the parent reports it
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            result = EdgeoptError(
                f"{type(error).__name__}: {error}",
                where=f"{Path(last.filename).name}:{last.lineno}",
                hint="This is a bug in edgeopt or in a library under it; please report it with the model.",
            )
        answer("result", result)
    os._exit(0)  # a framework's own exit handlers may hang, and everything is said


def _end_with_parent(requests: IO[bytes]) -> None:
    requests.read(1)
    os._exit(1)


def _send(stream: IO[bytes], content: Any) -> None:
    data = pickle.dumps(content)
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[stream.write(view) or 0 :]
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    return pickle.loads(_read(stream, length))  # noqa: S301 - written by the process that we started, or that started us


def _read(stream: IO[bytes], size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = stream.read(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
