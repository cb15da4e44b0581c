"""Work on a device through the system's own ssh: the user's keys, configuration and known hosts count.

One connection does it all. The receiver goes first, through standard input; it takes the files, runs the agent and
removes everything when our end closes. If it cannot any more (it was killed, the board lost its network), a second
connection tries.
"""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edgeopt.bench.address import Address
from edgeopt.errors import DeviceUnreachable, EdgeoptError, SetupError

PREFIX = "edgeopt:"
BOOTSTRAP = 'python3 -c "import base64,sys;exec(base64.b64decode(sys.stdin.buffer.readline()))"'
"""One word for every login shell: sh, csh and fish read it alike."""
CONNECT_S = 15
ALIVE_S, ALIVE_COUNT = 5, 3
"""ssh asks every five seconds whether the other side is there; after three without an answer it is lost."""
PATIENCE_S = 20.0
"""For the receiver to remove its folder once it was told to end."""
SSH_FAILED = 255
NOT_FOUND = (126, 127)
CHUNK = 1 << 16


@dataclass(frozen=True)
class Answer:
    """What came back: the agent's one ``result`` or ``problem``, or neither with how it ended."""

    message: Mapping[str, Any] | None
    code: int | None
    last: tuple[str, ...]


@dataclass(frozen=True)
class Connection:
    """How to reach a device.

    Args:
        address: an ``ssh://`` one.
        config: in the place of the user's ssh configuration.
        python: interpreter on the device; None: ``~/.edgeopt/bin/python`` if it is there, else ``python3``.
    """

    address: Address
    config: Path | None = None
    python: str | None = None

    def command(self, remote: str) -> list[str]:
        """ssh's command line. Nothing is asked on a terminal, and an unknown or changed host key is refused."""
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "ServerAliveInterval": str(ALIVE_S),
            "ServerAliveCountMax": str(ALIVE_COUNT),
        }
        address = self.address
        return [
            *("ssh", "-T"),
            *(("-F", str(self.config)) if self.config else ()),
            *(part for name, value in options.items() for part in ("-o", f"{name}={value}")),
            *(("-p", str(address.port)) if address.port else ()),
            *(("-l", address.user) if address.user else ()),
            address.host,
            remote,
        ]

    def run(
        self,
        files: Mapping[str, Path | bytes],
        command: Sequence[str],
        *,
        limit_s: float,
        tell: Callable[[str], None] = lambda text: None,
    ) -> Answer:
        """Copy files to a new folder on the device, run Python there, remove the folder.

        Args:
            files: path in the folder → content.
            command: arguments of the device's Python, run in the folder.
            limit_s: wall-clock seconds for all of it.
            tell: told the agent's progress.

        Raises:
            DeviceUnreachable: no connection, or it was lost.
            SetupError: the device lacks Python or room.
            EdgeoptError: it took too long.
        """
        if shutil.which("ssh") is None:
            raise SetupError("there is no ssh on this machine", hint="Install OpenSSH's client.")
        header = {
            "folder": f"edgeopt-{secrets.token_hex(8)}",
            "scratch": self.address.scratch,
            "files": [[name, _size(content)] for name, content in files.items()],
            "command": list(command),
            "python": self.python,
        }
        with _Session(self, header, files) as session:
            return session.answer(time.monotonic() + limit_s, limit_s, tell)


class _Session:
    """One connection, from its start until nothing is left of it here and there."""

    def __init__(self, connection: Connection, header: Mapping[str, Any], files: Mapping[str, Path | bytes]) -> None:
        self._connection, self._header, self._files = connection, header, files
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._folder: str | None = None
        self._removed = False
        self._received = False
        self._ended = False

    def __enter__(self) -> _Session:
        self._process = subprocess.Popen(
            self._connection.command(BOOTSTRAP),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches us only: the device is to be tidied up first
        )
        self._errors: list[str] = []
        for work in (self._read, self._read_errors, self._send):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Close our end, let the device tidy up, and look after it where it did not."""
        self._close()
        end = time.monotonic() + PATIENCE_S
        while not self._removed and not self._ended and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                self._note(self._lines.get(timeout=0.2))
        self._process.kill()
        self._process.wait()
        if self._folder is not None and not self._removed:
            self._remove_again(self._folder)

    def answer(self, deadline: float, limit_s: float, tell: Callable[[str], None]) -> Answer:
        message: Mapping[str, Any] | None = None
        refused: Mapping[str, Any] | None = None
        ended: Mapping[str, Any] | None = None
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise EdgeoptError(
                    f"gave up after {limit_s:.0f} s",
                    where=str(self._connection.address),
                    hint="Give it more time with --timeout, or measure less: --seconds, --runs.",
                ) from None
            said = self._note(line)
            if self._ended:
                raise self._end_of(refused)
            if said is None:
                continue
            at = said["at"]
            if at == "progress":
                tell(said["text"])
            elif at in ("result", "problem"):
                message = said
            elif at == "ended":
                ended = said
            elif at == "refused":
                refused = said
            elif at == "removed":
                if refused is not None:
                    raise self._refused(refused)
                assert ended is not None
                return Answer(message, ended["code"], tuple(ended["last"]))

    def _note(self, line: str | None) -> dict[str, Any] | None:
        """One line of ours, noted; None at the end, and if a login shell said it."""
        if line is None:
            self._ended = True
        if line is None or not line.startswith(PREFIX):
            return None
        said: dict[str, Any] = json.loads(line.removeprefix(PREFIX))
        if said["at"] == "ready":
            self._folder = said["folder"]
        elif said["at"] == "received":
            self._received = True
        elif said["at"] == "removed":
            self._removed = said["clean"]
        return said

    def _refused(self, said: Mapping[str, Any]) -> EdgeoptError:
        where, text = str(self._connection.address), said["text"]
        if said["kind"] == "disk":
            return SetupError(
                f"the device has no room for it: {text}",
                where=where,
                hint="Make room, or name another folder: ssh://user@host/folder.",
            )
        if said["kind"] == "folder":
            return SetupError(
                f"no scratch folder can be made: {text}", where=where, hint="Name one: ssh://user@host/folder."
            )
        if said["kind"] == "python":
            return SetupError(f"the device's Python does not start: {text}", where=where, hint="Check --python.")
        if said["kind"] == "interrupted":
            return DeviceUnreachable(f"was interrupted on the device: {text}", where=where)
        return EdgeoptError(f"failed on the device: {text}", where=where)

    def _end_of(self, refused: Mapping[str, Any] | None) -> EdgeoptError:
        """Why the stream ended before all was said."""
        try:
            code: int | None = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = None
        time.sleep(0.1)  # for the last words
        address = str(self._connection.address)
        said = [line for line in self._errors if line]
        last = said[-1] if said else ""
        if refused is not None:
            return self._refused(refused)
        if self._folder is not None:
            doing = "while it worked" if self._received else "while files were sent"
            return DeviceUnreachable(
                f"the connection was lost, or its process there was ended, {doing}{f': {last}' if last else ''}",
                where=address,
            )
        if code in NOT_FOUND:
            return SetupError(
                "the device has no python3", where=address, hint="Install it there: sudo apt install python3"
            )
        if code == SSH_FAILED:
            return DeviceUnreachable(
                f"cannot be reached: {last or 'ssh said nothing'}",
                where=address,
                hint=_advice(" ".join(said), self._login()),
            )
        return DeviceUnreachable(f"ended at once with code {code}: {last or 'nothing was said'}", where=address)

    def _login(self) -> str:
        address = self._connection.address
        port = f"-p {address.port} " if address.port else ""
        return f"{port}{address.user}@{address.host}" if address.user else f"{port}{address.host}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode(errors="replace").rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line.decode(errors="replace").strip())

    def _send(self) -> None:
        """All that the device takes in; our end stays open after it."""
        receiver = resources.files(__package__).joinpath("receiver.py").read_bytes()
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):  # it ended, and says why; or we closed
            stream.write(base64.b64encode(receiver) + b"\n")
            stream.write(json.dumps(self._header).encode() + b"\n")
            for content in self._files.values():
                if isinstance(content, bytes):
                    stream.write(content)
                    continue
                with content.open("rb") as file:
                    while data := file.read(CHUNK):
                        stream.write(data)
            stream.flush()

    def _close(self) -> None:
        """Tell the receiver to end. A sender that still writes is ended with ssh's process."""
        if self._received or self._process.poll() is not None:
            with contextlib.suppress(OSError, ValueError):
                assert self._process.stdin is not None
                self._process.stdin.close()
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def _remove_again(self, folder: str) -> None:
        """Over a new connection; if it fails too, there is nobody to ask."""
        name = Path(folder).name
        assert name == self._header["folder"]
        code = f"import shutil;shutil.rmtree({folder!r}, ignore_errors=True)"
        line = base64.b64encode(code.encode()) + b"\n"
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                self._connection.command(BOOTSTRAP), input=line, capture_output=True, timeout=2 * CONNECT_S, check=False
            )


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _advice(said: str, login: str) -> str:
    if "Host key verification failed" in said or "IDENTIFICATION HAS CHANGED" in said:
        return (
            f"Its host key is unknown or has changed. Log in once by hand and check the key that it shows: ssh {login}"
        )
    if "Permission denied" in said:
        return f"Log in with a key: ssh-copy-id {login}. Passwords are never asked for here."
    if "Could not resolve" in said:
        return "Check the name, or give its IP address."
    return f"Is it on, in this network, with sshd running? Try: ssh {login}"
