"""What the person sees while the work runs, on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edgeopt.events import Event, listening

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SLOW_S = 2.0
"""What takes longer shows how far it is."""


@contextmanager
def showing() -> Iterator[None]:
    """Print events until the end of the ``with``; warnings in full, where they come."""
    if not sys.stderr.isatty():
        with listening(_Lines().receive):
            yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        listening(_Bars(progress).receive),
    ):
        yield


class _Lines:
    """One line per step that is done."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def receive(self, event: Event) -> None:
        if event.kind == "warning":
            _warn(event.text)
        elif event.kind == "step":
            self._started[event.text] = time.monotonic()
        elif event.kind == "done":
            seconds = time.monotonic() - self._started.pop(event.text, time.monotonic())
            click.echo(f"  {event.text}  {seconds:.1f} s", err=True)


class _Bars:
    """One bar per running step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, tuple[TaskID, float]] = {}

    def receive(self, event: Event) -> None:
        if event.kind == "warning":
            self._progress.console.print(f"[bold yellow]warning[/]: {event.text}", highlight=False, soft_wrap=True)
        elif event.kind == "step":
            self._tasks[event.text] = (self._progress.add_task(event.text, total=event.total), time.monotonic())
        elif event.text in self._tasks:
            task, started = self._tasks[event.text]
            if event.kind == "progress":
                self._progress.update(task, completed=event.done, total=event.total)
                return
            self._progress.remove_task(task)
            del self._tasks[event.text]
            if (seconds := time.monotonic() - started) > SLOW_S:
                self._progress.console.print(f"  {event.text}  {seconds:.1f} s", highlight=False)


def _warn(text: str) -> None:
    click.echo(click.style("warning", fg="yellow", bold=True) + f": {text}", err=True)
