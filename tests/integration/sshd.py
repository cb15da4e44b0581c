"""A real sshd on loopback: own port, own host key, own user key, nothing of the machine's configuration."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from edgeopt.bench.address import Address
from edgeopt.bench.ssh import Connection

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Server:
    """A running sshd and what a client needs to reach it."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    config: Path

    def url(self, scratch: Path | str = "") -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{scratch}"

    def connection(self, scratch: Path, python: str | None = None) -> Connection:
        address = Address("ssh", "127.0.0.1", getpass.getuser(), self.port, str(scratch))
        return Connection(address, self.config, python)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def start(folder: Path, *more: str) -> Server:
    """Start one. ``more``: lines of its configuration."""
    folder.chmod(0o700)
    host, user, port = key(folder / "host_key"), key(folder / "user_key"), free_port()
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    (folder / "authorized_keys").chmod(0o600)
    public = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    lines = [
        f"ListenAddress 127.0.0.1:{port}",
        f"HostKey {host}",
        "PidFile none",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        "StrictModes no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        *more,
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    config = folder / "ssh_config"
    config.write_text(f"IdentityFile {user}\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation wants the folder, as a service has it
    assert SSHD is not None
    process = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=(folder / "sshd.log").open("wb")
    )
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Server(process, port, folder, config)
        assert process.poll() is None, (folder / "sshd.log").read_text()
        time.sleep(0.05)
    raise AssertionError("sshd does not answer")
