"""Work in processes of its own: what can crash or hang an interpreter is not run in ours.

Our process starts one *nursery*: a fresh interpreter without threads that imports what workers need, once, and forks
one worker per call (where forking is safe; elsewhere each worker starts anew). Calls go to the nursery through a
socket; each worker writes pickled messages to a pipe of its own. Both ends of everything are ours.

Whoever dies first, nothing is left: the nursery kills its workers when our end of the socket closes, which the kernel
does even for ``kill -9``. Ctrl-C reaches our process only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgeopt import events
from edgeopt.errors import EdgeoptError

CAN_FORK = sys.platform == "linux"
"""macOS's own libraries (Accelerate, libdispatch) do not survive a fork."""

_LENGTH = struct.Struct("<Q")
_EXIT_CODE = struct.Struct("<i")
_START = "import sys; sys.path[:] = {path!r}; from edgeopt.pipeline.worker import {main}; {main}({arguments})"
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # thread counts are fixed, so that results repeat; more threads burn time spinning
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # glibc keeps freed memory per arena, and makes one per thread
}
_LAST_LINES = 3
_PATIENCE_S = 10.0
"""For the nursery to end by itself: it has nothing to do but to kill its workers."""


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


class Workers:
    """A nursery and its workers; a context manager. On the way out all of them are dead.

    Args:
        logs: folder for the workers' stdout and stderr, which are read when one dies, and for their temporary files.
        preload: module that the nursery imports before it forks.
    """

    def __init__(self, logs: Path, *, preload: str = "") -> None:
        self._logs, self._preload = logs, preload

    def __enter__(self) -> Workers:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._socket, theirs = socket.socketpair()
        arguments = f"{theirs.fileno()}, {self._preload!r}"
        with (self._logs / "nursery.log").open("wb") as output, theirs:
            self._nursery = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, main="nursery", arguments=arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={**_ENVIRONMENT, **os.environ, "TMPDIR": str(self._logs.resolve())},
                start_new_session=True,  # the terminal's Ctrl-C is for us
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        try:
            self._nursery.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._nursery.kill()
            self._nursery.wait()

    def run_all(self, calls: Mapping[str, Call], *, at_once: int = 2) -> dict[str, Any]:
        """Run calls side by side, each in a process; events of the workers go to our listener.

        Args:
            calls: name (for messages) → call.
            at_once: how many processes run at a time.

        Returns:
            Name → result, or the ``EdgeoptError`` or ``OSError`` that it raised or ended with.
        """
        waiting, running = list(calls.items()), dict[str, _Worker]()
        results: dict[str, Any] = {}
        with selectors.DefaultSelector() as selector:
            while waiting or running:
                while waiting and len(running) < at_once:
                    name, call = waiting.pop(0)
                    running[name] = _Worker(name, call, self._logs / f"{name}.log", self._socket)
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
        return results

    def run_one(self, name: str, call: Call) -> Any:
        """``run_all`` for one call: returns its result or raises its error."""
        result = self.run_all({name: call})[name]
        if isinstance(result, EdgeoptError | OSError):
            raise result
        return result


class _Worker:
    """Our view of one worker."""

    def __init__(self, name: str, call: Call, log: Path, nursery: socket.socket) -> None:
        self._name, self._call, self._log = name, call, log
        self._pid: int | None = None
        self._result: Any = None
        self.ended = False
        self.deadline = time.monotonic() + call.limit_s
        messages, their_messages = os.pipe()
        exit_code, their_exit_code = os.pipe()
        self.messages = os.fdopen(messages, "rb", buffering=0)
        self._exit_code = os.fdopen(exit_code, "rb", buffering=0)
        data = pickle.dumps((call, str(log)))
        try:
            socket.send_fds(nursery, [_LENGTH.pack(len(data))], [their_messages, their_exit_code])
            nursery.sendall(data)
        except OSError:  # the nursery is dead, and its log says why: both pipes end at once
            self._log = log.with_name("nursery.log")
        finally:
            os.close(their_messages)
            os.close(their_exit_code)

    def receive(self) -> None:
        """One message, or the end."""
        try:
            kind, content = _receive(self.messages)
        except EOFError:
            self._died()
            return
        if kind == "pid":
            self._pid = content
        elif kind == "event":
            events.emit(content)
        else:
            self._result, self.ended = content, True

    def give_up(self) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended just now
                os.killpg(self._pid, signal.SIGKILL)
        self.ended = True
        self._result = Crashed(
            f"gave up after {self._call.limit_s:.0f} s",
            where=self._name,
            hint="It hangs, or this machine is too slow for it.",
        )

    def _died(self) -> None:
        self.ended = True
        data = self._exit_code.read(_EXIT_CODE.size)
        code = _EXIT_CODE.unpack(data)[0] if len(data) == _EXIT_CODE.size else -signal.SIGKILL
        how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        tail = self._log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:] if self._log.exists() else []
        hint = "Was there enough memory?" if code == -signal.SIGKILL else " / ".join(tail)
        self._result = Crashed(f"the worker process {how}", where=self._name, hint=hint or None)

    def close(self) -> Any:
        """The result, once the process is gone."""
        self._exit_code.read(_EXIT_CODE.size)
        self._exit_code.close()
        self.messages.close()
        return self._result


# --- in the nursery


def nursery(fd: int, preload: str) -> None:
    """Fork a worker for every call that comes through the socket ``fd``, until it closes. Never returns."""
    if preload:
        with contextlib.suppress(ImportError):  # the call that needs it says so, in a message of its own
            importlib.import_module(preload)
    calls = socket.socket(fileno=fd)
    exits: dict[int, int] = {}  # pid of a worker → where its exit code goes
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    with selectors.DefaultSelector() as selector:
        selector.register(calls, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is calls:
                    head, fds, _, _ = socket.recv_fds(calls, _LENGTH.size, 2)
                    if not head:
                        _end(exits)
                    messages, exit_code = fds
                    content = _read_socket(calls, _LENGTH.unpack(head)[0])
                    exits[_start_worker(content, messages, [fd, woken, wake, exit_code, *exits.values()])] = exit_code
                    os.close(messages)
                else:
                    os.read(woken, 4096)
            _reap(exits)


def _start_worker(content: bytes, messages: int, not_theirs: list[int]) -> int:
    """The pid of a new process that works on a call and writes to ``messages``."""
    if not CAN_FORK:
        start = _START.format(path=sys.path, main="work", arguments=f"{messages}, sys.stdin.buffer.read()")
        process = subprocess.Popen(
            [sys.executable, "-c", start], stdin=subprocess.PIPE, pass_fds=[messages], process_group=0
        )
        assert process.stdin is not None
        process.stdin.write(content)
        process.stdin.close()
        process.returncode = 0  # it is reaped here, by pid: subprocess must not wait for it too
        return process.pid
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in not_theirs:
            os.close(fd)
        _lead_group(0)
        work(messages, content)
    _lead_group(pid)
    return pid


def _lead_group(pid: int) -> None:
    """One process group with whatever it starts, so that all of it can be killed.

    Both parent and child say so: whoever is first, the group is there before anyone kills it.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended already
        os.setpgid(pid, pid)


def _reap(exits: dict[int, int]) -> None:
    while exits:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if (fd := exits.pop(pid, None)) is not None:
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                os.write(fd, _EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))
            os.close(fd)


def _end(exits: dict[int, int]) -> None:
    """Our parent is gone, or has all it wanted."""
    for pid in exits:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    for pid in exits:
        os.waitpid(pid, 0)
    os._exit(0)


# --- in a worker


def work(messages: int, content: bytes) -> None:
    """Do one call: events and one result go to ``messages``. Never returns."""
    with os.fdopen(messages, "wb", buffering=0) as out:
        lock = threading.Lock()

        def answer(kind: str, value: Any) -> None:
            with lock:
                _send(out, (kind, value))

        answer("pid", os.getpid())
        call, log = pickle.loads(content)  # noqa: S301 - written by the process that started us
        with open(log, "wb") as output:  # noqa: PTH123 - its descriptor is what matters
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        result: Any
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


# --- messages


def _send(stream: IO[bytes], content: Any) -> None:
    data = pickle.dumps(content)
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[stream.write(view) or 0 :]


def _receive(stream: IO[bytes]) -> Any:
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    return pickle.loads(_read(stream, length))  # noqa: S301 - written by the process that we started


def _read(stream: IO[bytes], size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = stream.read(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _read_socket(stream: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = stream.recv(size - len(parts))
        if not part:
            os._exit(0)  # the parent died in the middle of a call
        parts += part
    return bytes(parts)
