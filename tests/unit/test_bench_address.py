"""Addresses of devices: what is one, and that nothing in it can be taken for an option or a password."""

from __future__ import annotations

import pytest

from edgeopt.bench.address import Address, parse
from edgeopt.bench.ssh import Connection
from edgeopt.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://pi@raspberrypi.local", Address("ssh", "raspberrypi.local", "pi")),
        ("ssh://jetson:2222", Address("ssh", "jetson", None, 2222)),
        ("ssh://pi@10.0.0.7/mnt/ssd", Address("ssh", "10.0.0.7", "pi", None, "/mnt/ssd")),
        ("ssh://pi@[fe80::1]:22", Address("ssh", "fe80::1", "pi", 22)),
        ("adb://R58M123ABC", Address("adb", "R58M123ABC")),
        ("adb://192.168.0.7:5555", Address("adb", "192.168.0.7:5555")),
    ],
)
def test_what_is_an_address(text, address):
    assert parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "pi@raspberrypi",
            "http://raspberrypi",
            "ssh://",
            "ssh://pi@",
            "adb://",
            "ssh://host:port",
            "ssh://host:99999",
        ),
        *("ssh://-oProxyCommand=x", "ssh://-l@host", "ssh://host?x=1", "adb://-s", "adb://a b", "ssh://a b"),
    ],
)
def test_what_is_none(text):
    with pytest.raises(UsageError, match="is no address of a device") as caught:
        parse(text)
    assert "ssh://user@host" in str(caught.value.hint)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="password does not belong") as caught:
        parse("ssh://pi:hunter2@raspberrypi")
    assert "hunter2" not in str(caught.value)


def test_host_keys_are_checked_and_nothing_is_asked():
    words = Connection(parse("ssh://pi@raspberrypi.local:2222")).command("true")
    assert "StrictHostKeyChecking=yes" in words
    assert "BatchMode=yes" in words
    assert words[-2:] == ["raspberrypi.local", "true"]
