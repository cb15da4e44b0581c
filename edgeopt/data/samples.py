"""What every data source gives: samples that are streamed, labels that are known at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgeopt.errors import DataError
from edgeopt.types import TensorSpec

Array = npt.NDArray[Any]
Feed = dict[str, Array]
"""Model input name → array of the model's static shape and dtype."""
Item = TypeVar("Item")


class LabelledSamples(Protocol):
    """Re-iterable samples; one pass holds one sample in memory.

    ``labels`` is int64 [number of samples], or None if the source has none. ``where`` names the source for messages.
    """

    labels: npt.NDArray[np.int64] | None
    where: str

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Feed]: ...


def spread(count: int, limit: int | None) -> list[int]:
    """Indices of at most ``limit`` of ``count`` items, evenly spread: sorted by class or by time, all are seen."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


class Few:
    """The first samples of a source, evenly spread: what parity and evidence look at.

    Args:
        samples: any labelled source.
        limit: how many at most.

    ``numbers`` are the samples' places in the whole source, for messages.
    """

    def __init__(self, samples: LabelledSamples, limit: int) -> None:
        self._samples = samples
        self._indices = self.numbers = spread(len(samples), limit)
        self.labels = None if samples.labels is None else samples.labels[self._indices]
        self.where = samples.where

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Feed]:
        wanted = set(self._indices)
        for index, feed in enumerate(self._samples):
            if index in wanted:
                yield feed
                wanted.discard(index)
                if not wanted:
                    return


def fit(array: Array, spec: TensorSpec, where: str) -> Array:
    """One sample as the model's input: batch axis added where the model has one of size 1, dtype widened.

    Raises:
        DataError: shape or dtype cannot be that of the input; the message says what was expected.
    """
    expected = spec.shape
    if array.shape == expected[1:] and expected[:1] == (1,):
        array = array[None]
    if array.shape != expected:
        raise shape_error(array.shape, spec, where)
    if array.dtype.name != spec.dtype:
        if not np.can_cast(array.dtype, spec.dtype, casting="same_kind"):
            raise DataError(
                f"'{spec.name}' is {array.dtype.name}, the model's input is {spec.dtype}",
                where=where,
                hint=f"Store the array as {spec.dtype}.",
            )
        array = array.astype(spec.dtype)
    return array


def shape_error(shape: Sequence[int], spec: TensorSpec, where: str) -> DataError:
    """The message for a sample of the wrong shape: channels, layout or size, whichever it is."""
    inner, wanted = tuple(shape), spec.shape
    if len(inner) == len(wanted) - 1:
        inner = (1, *inner)
    hint = "Prepare the data as the model takes it, or give `preprocess:` and `images:`."
    what = f"a sample of '{spec.name}' has shape {list(shape)}, the model takes {list(wanted)}"
    if wanted[:1] > (1,) and inner == (1, *wanted[1:]):
        what = f"the model takes batches of {wanted[0]}: '{spec.name}' is {list(wanted)}, and a sample is {list(inner)}"
        hint = "Export the model with batch 1, or give arrays whose samples are whole batches."
    elif len(inner) == len(wanted) == 4:
        if (inner[3], inner[1], inner[2]) == wanted[1:]:
            hint = "The data is in NHWC order and the model takes NCHW: transpose it (0, 3, 1, 2)."
        elif (inner[2], inner[3], inner[1]) == wanted[1:]:
            hint = "The data is in NCHW order and the model takes NHWC: transpose it (0, 2, 3, 1)."
        elif inner[2:] == wanted[2:]:
            what = (
                f"wrong channel count: a sample of '{spec.name}' has {inner[1]}, the model takes {wanted[1]} "
                f"(shapes {list(shape)} and {list(wanted)})"
            )
    return DataError(what, where=where, hint=hint)


def one_input(specs: Sequence[TensorSpec], names: Sequence[str], where: str) -> None:
    """Refuse arrays whose names are not the model's inputs."""
    inputs = [spec.name for spec in specs]
    missing = [name for name in inputs if name not in names]
    unknown = [name for name in names if name not in inputs]
    if missing:
        has = f"it has {_list(unknown)}" if unknown else "it has none"
        raise DataError(
            f"no array for the model's input {_list(missing)}; {has}",
            where=where,
            hint=f"Name the arrays as the model's inputs: {_list(inputs)} (and 'labels').",
        )
    if unknown:
        raise DataError(
            f"the model has no input {_list(unknown)}",
            where=where,
            hint=f"The model's inputs are {_list(inputs)}; 'labels' holds class indices.",
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
