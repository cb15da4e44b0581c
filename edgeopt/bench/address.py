"""Where a device is: ``ssh://user@host[:port][/folder]`` or ``adb://SERIAL``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

from edgeopt.errors import UsageError

FORMS = "ssh://user@host, ssh://user@host:2222, ssh://user@host/folder-for-scratch or adb://SERIAL"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*")
"""Hosts, users and serials: never beginning with a dash, which ssh and adb would take for an option."""


@dataclass(frozen=True)
class Address:
    """One device.

    Args:
        kind: how it is reached.
        host: host name, IP address, or a name of the user's ssh configuration; adb's serial.
        user: None: ssh's own choice.
        port: None: ssh's own choice.
        scratch: folder on the device under which the scratch folder is made; None: the first of /var/tmp, /tmp and the
            home that takes it.
    """

    kind: Literal["ssh", "adb"]
    host: str
    user: str | None = None
    port: int | None = None
    scratch: str | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{self.kind}://{user}{self.host}{f':{self.port}' if self.port else ''}"


def parse(text: str) -> Address:
    """An address from what the user wrote.

    Raises:
        UsageError: another form, or one with a password in it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _wrong(text, str(error)) from error
    if parts.password is not None:
        raise UsageError(
            "a password does not belong on a command line, where others can read it",
            where="--on",
            hint="Log in with a key: ssh-keygen, then ssh-copy-id user@host.",
        )
    if parts.scheme not in ("ssh", "adb"):
        raise _wrong(text, f"'{parts.scheme}' is no way to reach a device" if parts.scheme else "it names no way")
    if parts.query or parts.fragment:
        raise _wrong(text, "it has parts that mean nothing here")
    if parts.scheme == "adb":
        serial = text.removeprefix("adb://")  # with its port, as `adb devices` shows it: 192.168.0.7:5555
        if not _NAME.fullmatch(serial):
            raise _wrong(text, "it names no serial")
        return Address("adb", serial)
    host, user = parts.hostname, unquote(parts.username) if parts.username else None
    if not host or not (_NAME.fullmatch(host) or re.fullmatch(r"[0-9a-f:.]+", host)):
        raise _wrong(text, "it names no host")
    if user is not None and not _NAME.fullmatch(user):
        raise _wrong(text, f"'{user}' is no user name")
    scratch = unquote(parts.path) if parts.path.strip("/") else None
    return Address("ssh", host, user, port, scratch)


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(f"'{text}' is no address of a device: {why}", where="--on", hint=f"Write {FORMS}.")
