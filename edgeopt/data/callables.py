"""Samples from a function of the user: ``module:function`` yields dicts of arrays, and ``labels`` if known."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.data.samples import Feed, fit, one_input
from edgeopt.digest import of_array, of_json
from edgeopt.errors import DataError
from edgeopt.types import TensorSpec

LABELS = "labels"


def load_function(reference: str, root: Path) -> Callable[[], Iterable[Mapping[str, Any]]]:
    """Import ``module:function``; modules beside the recipe (``root``) are found.

    Raises:
        DataError: no such module or function.
    """
    module_name, _, function_name = reference.partition(":")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"cannot be imported: {error}",
            where=reference,
            hint=f"Write `module:function`; modules are looked for in {root} and among installed packages.",
        ) from error
    if not callable(function):
        raise DataError("is no function", where=reference)
    return function  # type: ignore[no-any-return]


class CallableSamples:
    """One call of the function is one pass. The first pass, made at once, counts samples and collects labels."""

    def __init__(self, reference: str, root: Path, specs: Sequence[TensorSpec], *, limit: int | None = None) -> None:
        self.where = reference
        self._function = load_function(reference, root)
        self._specs, self._limit = tuple(specs), limit
        labels = [sample.get(LABELS) for sample in self._raw()]
        self._count = len(labels)
        known = [label for label in labels if label is not None]
        self.labels: npt.NDArray[np.int64] | None = None
        if known and len(known) == len(labels):
            self.labels = np.array([int(np.asarray(label).reshape(())) for label in known], np.int64)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Feed]:
        for index, sample in enumerate(self._raw()):
            where = f"{self.where}: sample {index}"
            one_input(self._specs, [name for name in sample if name != LABELS], where)
            yield {spec.name: fit(np.asarray(sample[spec.name]), spec, where) for spec in self._specs}

    def _raw(self) -> Iterator[Mapping[str, Any]]:
        for index, sample in enumerate(self._function()):
            if index == self._limit:
                return
            if not isinstance(sample, Mapping):
                raise DataError(f"yields {type(sample).__name__}, not a dict of arrays by input name", where=self.where)
            yield sample


def digest(reference: str, root: Path, limit: int | None) -> str:
    """Digest of everything the function yields: what it reads from cannot be known otherwise."""
    parts = []
    for index, sample in enumerate(load_function(reference, root)()):
        if index == limit:
            break
        parts.append(sorted((str(name), of_array(np.asarray(value))) for name, value in sample.items()))
    return of_json(parts)
