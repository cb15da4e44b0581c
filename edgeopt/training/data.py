"""Training data: samples by index, in memory as arrays, or from a Dataset of the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeopt.errors import DataError

Feed = dict[str, Any]
LABELS = "labels"


class TrainingSet(Protocol):
    """Samples by index; ``labels`` are int64, or None if there are none."""

    labels: npt.NDArray[np.int64] | None
    where: str

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> tuple[Feed, Any]:
        """Tensors by input name (first axis samples) and labels (None without)."""
        ...

    def to(self, device: Any) -> None:
        """Where batches shall be."""
        ...


class ArraySet:
    """Arrays in memory, first axis samples.

    Args:
        arrays: by input name.
        labels: class indices, or None.
        where: for messages.
        scale, offset: uint8 images become ``pixels · scale + offset`` (per channel) when a batch is made.
    """

    def __init__(
        self,
        arrays: dict[str, npt.NDArray[Any]],
        labels: npt.NDArray[np.int64] | None,
        where: str,
        *,
        scale: Sequence[float] = (),
        offset: Sequence[float] = (),
    ) -> None:
        import torch

        self.labels, self.where = labels, where
        self._arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self._labels = None if labels is None else torch.from_numpy(labels)
        self._scale = torch.tensor(scale, dtype=torch.float32).reshape(1, -1, 1, 1)
        self._offset = torch.tensor(offset, dtype=torch.float32).reshape(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def batch(self, indices: Sequence[int]) -> tuple[Feed, Any]:
        import torch

        at = torch.as_tensor(indices, device=next(iter(self._arrays.values())).device)
        feed = {name: array[at] for name, array in self._arrays.items()}
        if self._scale.numel():
            feed = {
                name: array.float() * self._scale + self._offset if array.dtype == torch.uint8 else array
                for name, array in feed.items()
            }
        return feed, None if self._labels is None else self._labels[at]

    def to(self, device: Any) -> None:
        self._arrays = {name: array.to(device) for name, array in self._arrays.items()}
        self._labels = None if self._labels is None else self._labels.to(device)
        self._scale, self._offset = self._scale.to(device), self._offset.to(device)


class DatasetSet:
    """A map-style Dataset of the user: ``len``, and by index an input, ``(input, label)``, or a dictionary.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__``.
        inputs: the model's input names; a sample that is no dictionary holds them in order.
        where: for messages.
    """

    def __init__(self, dataset: Any, inputs: Sequence[str], where: str) -> None:
        self._dataset, self._inputs, self.where = dataset, tuple(inputs), where
        self._device: Any = "cpu"
        if len(dataset) == 0:
            raise DataError("no training samples", where=where, hint="The Dataset's len() is 0.")
        first = self._sample(0)
        self.labels: npt.NDArray[np.int64] | None = None
        if LABELS in first:
            # One look at all labels: they are checked and counted before anything is trained on them.
            labels = [self._sample(index)[LABELS] for index in range(len(dataset))]
            self.labels = np.array([int(np.asarray(label).reshape(())) for label in labels], np.int64)

    def __len__(self) -> int:
        return len(self._dataset)

    def _sample(self, index: int) -> dict[str, Any]:
        sample = self._dataset[index]
        if isinstance(sample, dict):
            found = {("labels" if name == "label" else str(name)): value for name, value in sample.items()}
        else:
            parts = tuple(sample) if isinstance(sample, tuple | list) else (sample,)
            names = [*self._inputs, LABELS]
            if not len(self._inputs) <= len(parts) <= len(names):
                raise DataError(
                    f"a sample has {len(parts)} parts; it needs {', '.join(self._inputs)}, and a label may follow",
                    where=self.where,
                )
            found = dict(zip(names, parts, strict=False))
        if missing := [name for name in self._inputs if name not in found]:
            raise DataError(f"a sample has no '{missing[0]}'", where=self.where, hint="Name the model's inputs.")
        return found

    def batch(self, indices: Sequence[int]) -> tuple[Feed, Any]:
        import torch

        samples = [self._sample(int(index)) for index in indices]
        feed = {
            name: torch.stack([torch.as_tensor(np.asarray(sample[name])) for sample in samples]).to(self._device)
            for name in samples[0]
            if name != LABELS
        }
        labels = None
        if self.labels is not None:
            labels = torch.tensor([int(np.asarray(sample[LABELS]).reshape(())) for sample in samples])
        return feed, None if labels is None else labels.to(self._device)

    def to(self, device: Any) -> None:
        self._device = device


class Part:
    """Some samples of a set."""

    def __init__(self, whole: TrainingSet, indices: npt.NDArray[np.int64]) -> None:
        self._whole, self._indices, self.where = whole, indices, whole.where
        self.labels = None if whole.labels is None else whole.labels[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Sequence[int]) -> tuple[Feed, Any]:
        return self._whole.batch(self._indices[np.asarray(indices, np.int64)])  # type: ignore[arg-type]

    def to(self, device: Any) -> None:
        self._whole.to(device)


def hold_back(data: TrainingSet, share: float, seed: int) -> tuple[TrainingSet, TrainingSet | None]:
    """What to train on and what to judge by; every class is in both where its samples suffice.

    Raises:
        DataError: nothing is left to train on.
    """
    if share == 0:
        return data, None
    random = np.random.default_rng([seed, len(data)])
    labels = np.zeros(len(data), np.int64) if data.labels is None else data.labels
    held: list[int] = []
    for kind in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == kind))
        held += members[: math.floor(len(members) * share)].tolist()
    if not held:
        raise DataError(
            f"{len(data)} samples are too few to hold back {share:.0%} of each class",
            where=data.where,
            hint="Give more, or leave out 'held_back' and 'early_stopping'.",
        )
    chosen = np.zeros(len(data), bool)
    chosen[held] = True
    return Part(data, np.flatnonzero(~chosen)), Part(data, np.flatnonzero(chosen))


def check_labels(data: TrainingSet, classes: int, output: str) -> npt.NDArray[np.int64] | None:
    """Number of samples per class; None without labels.

    Raises:
        DataError: a label that is no class of the model.
    """
    if data.labels is None:
        return None
    bad = np.flatnonzero((data.labels < 0) | (data.labels >= classes))
    if len(bad):
        raise DataError(
            f"the label of sample {bad[0]} is {data.labels[bad[0]]}, and '{output}' has {classes} classes, "
            f"0 to {classes - 1}" + (f" ({len(bad)} such labels)" if len(bad) > 1 else ""),
            where=data.where,
            hint="Count classes from 0, in the order of the model's outputs.",
        )
    counts: npt.NDArray[np.int64] = np.bincount(data.labels, minlength=classes)
    return counts
