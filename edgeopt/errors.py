"""Every error that edgeopt raises on purpose, each with the exit code of the process.

::

    EdgeoptError                4  the work failed
    ├── UsageError              2  the request, the recipe, the model or the data cannot be accepted
    │   ├── RecipeError            a recipe is wrong: file, line and column
    │   ├── ModelError             a model cannot be read, or is not one that edgeopt can take
    │   │   └── UnsupportedOperator   a node that no pass and no target can lower
    │   └── DataError              calibration or evaluation data cannot be used
    ├── SetupError              3  something outside is missing
    │   ├── MissingPackage         an extra is not installed
    │   └── DeviceUnreachable      no connection, or no prediction to be had
    └── TargetError             4  writing or running one artifact failed

A failed gate, parity or budget is a result and no error: it ends with exit code 1. Ctrl-C ends with 130.
Every message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class EdgeoptError(Exception):
    """What went wrong, where, and what to do.

    Args:
        what: one sentence that names the thing that is wrong.
        where: file, ``file:line:column``, node or tensor name.
        hint: what the person can do about it.
    """

    exit_code = 4

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments do not survive pickling between workers otherwise
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def _rebuild(kind: type[EdgeoptError], what: str, where: str | None, hint: str | None) -> EdgeoptError:
    error = kind.__new__(kind)
    EdgeoptError.__init__(error, what, where=where, hint=hint)
    return error


class UsageError(EdgeoptError):
    exit_code = 2


class RecipeError(UsageError):
    """A recipe is wrong; ``where`` is ``file:line:column``."""


class ModelError(UsageError):
    """A model cannot be read, or is not one that edgeopt can take."""


class UnsupportedOperator(ModelError):
    """A node that no pass and no target can lower; ``where`` names the node and the user's source line if known."""


class DataError(UsageError):
    """Calibration or evaluation data cannot be used."""


class SetupError(EdgeoptError):
    exit_code = 3


class MissingPackage(SetupError):
    """An optional package is needed and not installed.

    Args:
        package: the import that failed.
        extra: the extra of edgeopt that brings it.
        needed_for: what needs it, in words.
    """

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed",
            hint=f"pip install 'edgeopt[{extra}]'",
        )


class DeviceUnreachable(SetupError):
    pass


class TargetError(EdgeoptError):
    """Writing or running one artifact failed; other targets go on."""
