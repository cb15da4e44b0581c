"""How messages name things."""

from __future__ import annotations

_SHOWN = 5
"""How many names of a long list stand in a message."""


def listed(names: list[str]) -> str:
    """The first few, quoted, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more


def first_line(error: BaseException) -> str:
    """An exception in one line: its class, and the first line of what it says."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"
