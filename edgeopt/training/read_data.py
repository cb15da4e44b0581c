"""Training data from what the recipe names: files that edgeopt reads, or a Dataset of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgeopt.data.callables import load_function
from edgeopt.data.samples import LabelledSamples, spread
from edgeopt.digest import of_array, of_files, of_json
from edgeopt.errors import DataError
from edgeopt.training.data import ArraySet, DatasetSet, TrainingSet

MOST_MEMORY = 0.5
"""Of what is free: files are held decoded."""
LOOKS = 16
"""Samples of a Dataset that its digest rests on, besides its code and length: reading all could take hours."""


def in_memory(samples: LabelledSamples) -> ArraySet:
    """All samples, decoded.

    Raises:
        DataError: none, or more than fit.
    """
    if len(samples) == 0:
        raise DataError("no training samples", where=samples.where)
    parts: dict[str, list[Any]] = {}
    for index, feed in enumerate(samples):
        if index == 0:
            needed = len(samples) * sum(array.nbytes for array in feed.values())
            free = psutil.virtual_memory().available
            if needed > MOST_MEMORY * free:
                raise DataError(
                    f"{len(samples)} samples take {needed / 1e9:.1f} GB decoded, and {free / 1e9:.1f} GB are free",
                    where=samples.where,
                    hint="Set data.training.limit, or name a callable that returns a Dataset, read bit by bit.",
                )
        for name, array in feed.items():
            parts.setdefault(name, []).append(array)
    arrays = {name: np.concatenate(rows) for name, rows in parts.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"'{name}' holds NaN or Inf", where=samples.where)
    return ArraySet(arrays, samples.labels, samples.where)


def from_callable(reference: str, root: Path, inputs: Sequence[str], limit: int | None) -> TrainingSet:
    """What ``module:function`` gives: a Dataset, or an iterable of dictionaries of arrays (with ``labels``)."""
    found: Any = load_function(reference, root)()
    if not hasattr(found, "__getitem__") or not hasattr(found, "__len__"):
        found = list(found)
    if limit is not None and limit < len(found):
        found = _Few(found, spread(len(found), limit))
    return DatasetSet(found, inputs, reference)


class _Few:
    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._indices[index]]


def digest_of_callable(reference: str, root: Path, limit: int | None) -> str:
    """Of the code beside the function, the number of samples, and some of them."""
    import torch

    function = load_function(reference, root)
    torch.manual_seed(0)
    np.random.seed(0)
    file = inspect.getsourcefile(function)
    code = of_files(Path(file).parent.glob("*.py"), Path(file).parent) if file else reference
    data = from_callable(reference, root, ["x"], limit)._dataset  # type: ignore[attr-defined]
    looks = [_digest(data[index]) for index in spread(len(data), LOOKS)]
    return of_json([reference, code, len(data), limit, looks])


def _digest(sample: Any) -> Any:
    if isinstance(sample, dict):
        return sorted((str(name), of_array(np.asarray(value))) for name, value in sample.items())
    parts = sample if isinstance(sample, tuple | list) else [sample]
    return [of_array(np.asarray(part)) for part in parts]
