"""All passes and targets there are, found by looking: a new file is tested by existing."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

import edgeopt.passes
import edgeopt.targets
from edgeopt.passes.base import Pass
from edgeopt.targets.base import Target

Kind = TypeVar("Kind")


def _concrete(package: ModuleType, base: type[Kind]) -> list[type[Kind]]:
    found = {
        value
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        for value in vars(importlib.import_module(module.name)).values()
        if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
    }
    return sorted(found, key=lambda kind: kind.__qualname__)


PASSES = _concrete(edgeopt.passes, Pass)
TARGETS = _concrete(edgeopt.targets, Target)
