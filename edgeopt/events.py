"""What the work says while it runs. Only the command line prints; everything below emits events.

A listener is a function of one ``Event``; it lives in a context variable, so that threads and tests do not mix.
With no listener set, events cost nothing and go nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        kind: ``step`` starts a step, ``progress`` moves it on, ``done`` ends it, ``warning`` is for the person.
        text: the step's name, or the warning.
        done: how many units are finished (``progress``).
        total: how many there are, if known (``step`` and ``progress``).
    """

    kind: Literal["step", "progress", "done", "warning"]
    text: str
    done: int = 0
    total: int | None = None


Listener = Callable[[Event], None]
_listener: ContextVar[Listener | None] = ContextVar("edgeopt_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def emit(event: Event) -> None:
    if (listener := _listener.get()) is not None:
        listener(event)


def warn(text: str) -> None:
    """Tell the person something that they should know and that is no error."""
    emit(Event("warning", text))


def track(items: Iterable[Item], text: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` and report how far it is."""
    emit(Event("step", text, total=total))
    for done, item in enumerate(items, 1):
        yield item
        emit(Event("progress", text, done, total))
    emit(Event("done", text))
