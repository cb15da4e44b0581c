"""The first thing that reaches a device: takes files in, runs the agent on them, and removes everything again.

It comes through ssh's standard input as one base64 line, so that nothing lies on the device before it runs. Standard
library only, nothing of edgeopt, Python 3.6 and later. Whatever ends it, the folder goes: its standard input closing
(the connection is lost, or the other side gave up), a signal, a full disk, the agent's end.

Input: one JSON line (``folder``, ``scratch``, ``files``: names and sizes in bytes, ``command``, ``python``), then the
files' bytes in that order, then nothing until it closes. Output: lines of JSON behind ``edgeopt:``; ``removed`` is the
last one.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from typing import Any

PREFIX = "edgeopt:"
CHUNK = 1 << 16
LAST_LINES = 5
PATIENCE_S = 20
"""For an agent that has said all to end by itself."""
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
VENV = "~/.edgeopt/bin/python"
"""An interpreter at this place is used before the system's: boards keep pip out of the system's own."""


class Refused(Exception):
    """Something that ends the work: a kind and a text."""


def say(at: str, **content: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more; what is left to do is to tidy up
        os.write(1, (PREFIX + json.dumps(dict(content, at=at)) + "\n").encode())


def interrupted(number: int, frame: Any) -> None:
    raise Refused("interrupted", f"signal {number}")


def main() -> None:
    for number in ENDING:
        signal.signal(number, interrupted)
    source = sys.stdin.buffer
    folder = None
    try:
        request = json.loads(source.readline().decode())
        folder = make_folder(request)
        say("ready", folder=folder)
        receive(source, folder, request["files"])
        say("received")
        run(folder, request)
    except Refused as refusal:
        say("refused", kind=refusal.args[0], text=refusal.args[1])
    except Exception as error:  # noqa: BLE001 - the other side reports it
        say("refused", kind="bug", text=type(error).__name__ + ": " + str(error))
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            say("removed", clean=not os.path.exists(folder))


def make_folder(request: Any) -> Any:
    """A new folder for us alone, where there is room for the files."""
    parents = [request["scratch"]] if request["scratch"] else ["/var/tmp", "/tmp", os.path.expanduser("~")]  # noqa: S108
    problem = ""
    for parent in parents:
        folder = os.path.join(os.path.expanduser(parent), request["folder"])
        try:
            os.mkdir(folder, 0o700)
            return folder
        except OSError as error:
            problem = problem or str(error)
    raise Refused("folder", problem)


def receive(source: Any, folder: Any, files: Any) -> None:
    for name, size in files:
        path = os.path.join(folder, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        left = size
        try:
            with open(path, "wb") as file:
                while left:
                    data = source.read(min(CHUNK, left))
                    if not data:
                        raise Refused("interrupted", "the connection ended while " + name + " was sent")
                    file.write(data)
                    left -= len(data)
        except OSError as error:
            free = shutil.disk_usage(folder).free
            raise Refused("disk", str(error.strerror) + ": " + str(free // 2**20) + " MB free at " + folder)


def run(folder: Any, request: Any) -> None:
    """Start the agent, pass its lines on, and end it when our input closes."""
    venv = os.path.expanduser(VENV)
    python = os.path.expanduser(request["python"] or (venv if os.path.exists(venv) else sys.executable))
    environment = dict(os.environ, TMPDIR=folder, PYTHONDONTWRITEBYTECODE="1")
    with open(os.path.join(folder, "stderr"), "wb+") as errors:
        try:
            child = subprocess.Popen(
                [python] + request["command"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise Refused("python", python + ": " + str(error.strerror))
        alive = False
        try:
            alive = pass_on(child)
            if alive:
                child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass  # it is ended below
        finally:
            with contextlib.suppress(OSError):  # it has ended
                os.killpg(child.pid, signal.SIGKILL)  # what it started, too
            code = child.wait()
        if not alive:
            raise Refused("interrupted", "the connection ended")
        errors.seek(0)
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        say("ended", code=code, last=lines[-LAST_LINES:])


def pass_on(child: Any) -> Any:
    """The child's lines, until it ends (True) or our input closes (False)."""
    out, ours = child.stdout.fileno(), sys.stdin.fileno()
    while True:
        ready, _, _ = select.select([out, ours], [], [])
        if out in ready:
            data = os.read(out, CHUNK)
            if not data:
                return True
            try:
                while data:
                    data = data[os.write(1, data) :]
            except OSError:
                return False
        if ours in ready and not os.read(ours, CHUNK):
            return False


if __name__ == "__main__":
    main()
