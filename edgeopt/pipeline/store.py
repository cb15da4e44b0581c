"""The output folder: finished steps, and artifacts that are whole or absent.

::

    OUT/
      onnx/ tflite/ …             artifacts
      report.json report.md manifest.json request.json
      .edgeopt/
        steps/NAME-KEY/           a finished step; the key is the hash of everything that it depends on
        unfinished/NAME-KEY/      checkpoints of a step that trains; gone when it is finished
        scratch/                  work in progress; emptied by whoever comes next
        lock                      held by the one process that works here

Everything is written into ``scratch`` and renamed: a folder that is there is whole. All paths are relative, so the
folder can be moved.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import EdgeoptError, UsageError

HOME = ".edgeopt"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
_NO_RIGHT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class OutOfSpace(EdgeoptError):
    """The disk, or a limit on file sizes, is full. Nothing half written stays."""


class Store:
    """The output folder, held for the length of one run. Made by ``open_store``."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.scratch = out / HOME / "scratch"
        self._steps = out / HOME / "steps"
        self._unfinished = out / HOME / "unfinished"

    def step(self, name: str, key: str) -> Path:
        """Where the finished step is, or will be."""
        return self._steps / f"{name}-{key}"

    def has(self, name: str, key: str) -> bool:
        return self.step(name, key).is_dir()

    def new_scratch(self, name: str) -> Path:
        """An empty folder for work in progress."""
        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def unfinished(self, name: str, key: str) -> Path:
        """Where a step keeps what an interrupted run goes on with."""
        return self._unfinished / f"{name}-{key}"

    def finish(self, folder: Path, name: str, key: str) -> Path:
        """Make a scratch folder the finished step."""
        self._steps.mkdir(parents=True, exist_ok=True)
        target = self.step(name, key)
        folder.rename(target)
        shutil.rmtree(self.unfinished(name, key), ignore_errors=True)
        return target

    def publish(self, folder: Path, name: str) -> Path:
        """Copy a folder of a finished step to ``OUT/name``, in place of what was there."""
        new = self.new_scratch("publish") / name
        shutil.copytree(folder, new)
        self.withdraw(name)
        target = self.out / name
        new.rename(target)
        return target

    def withdraw(self, name: str) -> None:
        """Remove ``OUT/name``: an artifact of an earlier run does not stand beside a report that it failed."""
        if (target := self.out / name).exists():
            old = self.new_scratch("old") / name
            target.rename(old)
            shutil.rmtree(old)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the output folder at once."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        draft = self.scratch / name
        draft.write_text(text, encoding="utf-8")
        target = self.out / name
        draft.rename(target)
        return target

    def keep_only(self, finished: set[Path]) -> None:
        """Forget steps that the run which just ended did not use."""
        for folder in self._steps.iterdir() if self._steps.is_dir() else ():
            if folder not in finished:
                shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def clean(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


@contextmanager
def open_store(out: Path) -> Iterator[Store]:
    """Hold ``out``, made if it is not there, until the end of the ``with``.

    On the way out scratch is removed. A folder that this run made and that holds nothing finished goes too; so it
    does where the request was refused, or the disk is full and no module was trained yet.

    Raises:
        UsageError: ``out`` is a file, holds something that edgeopt did not write, cannot be written, or is in use.
        OutOfSpace: see there.
    """
    made = _missing_parents(out)
    store = Store(out)
    try:
        with _os_errors(out):
            _claim(out)
            with _lock(out / HOME / "lock", out):
                store.clean()
                try:
                    yield store
                finally:
                    store.clean()
    except UsageError:
        _unmake(out, made)
        raise
    except OutOfSpace:
        if not any((out / HOME).glob("*/*/**/*.safetensors")):  # what was trained may have taken hours
            _unmake(out, made)
        raise
    finally:
        if made and out.is_dir() and _is_empty(out, store):
            _unmake(out, made)


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError("is a file", where=str(out), hint="Give a folder with --out.")
    if out.is_dir() and not (out / HOME).is_dir() and (inside := sorted(path.name for path in out.iterdir())):
        raise UsageError(
            f"the output folder exists and holds something that edgeopt did not write ({', '.join(inside[:3])}"
            f"{', …' if len(inside) > 3 else ''})",
            where=str(out),
            hint="Give a new folder with --out, or empty this one.",
        )
    (out / HOME).mkdir(parents=True, exist_ok=True)


@contextmanager
def _lock(path: Path, out: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                "another edgeopt works in this folder",
                where=str(out),
                hint="Wait for it, or give another folder with --out.",
            ) from error
        yield


@contextmanager
def _os_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refused(error, out) from error


def refused(error: OSError, out: Path) -> EdgeoptError:
    """What an error of the operating system under the output folder means for the person."""
    where = str(error.filename or out)
    if error.errno in _NO_SPACE:
        return OutOfSpace(
            f"no space to write: {os.strerror(error.errno or 0).lower()}",
            where=where,
            hint="Free some space, or give --out on another disk. Nothing half written was left.",
        )
    if error.errno in _NO_RIGHT or isinstance(error, FileNotFoundError | NotADirectoryError):
        return UsageError(
            f"the output folder cannot be written: {os.strerror(error.errno or 0).lower()}",
            where=where,
            hint="Give a folder that you may write with --out.",
        )
    return EdgeoptError(f"writing failed: {error.strerror or error}", where=where)


def _missing_parents(out: Path) -> list[Path]:
    """``out`` and its parents as far as they do not exist, deepest first."""
    return [path for path in (out, *out.parents) if not path.exists()]


def _is_empty(out: Path, store: Store) -> bool:
    worth = [out / HOME / "steps", out / HOME / "unfinished"]
    nothing = not any(folder.is_dir() and any(folder.iterdir()) for folder in worth)
    return {path.name for path in out.iterdir()} <= {HOME} and nothing


def _unmake(out: Path, made: list[Path]) -> None:
    """Remove what this run made: ``out`` with all that is in it, its new parents if they are empty."""
    if out in made:
        shutil.rmtree(out, ignore_errors=True)
        for parent in made[1:]:
            try:
                parent.rmdir()
            except OSError:
                return
