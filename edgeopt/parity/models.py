"""Any two models against each other: the same samples in, what comes out compared by name, else by position.

Nothing is known of the two but that they should be the same function, so only relative errors and NaNs can fail;
the three levels, which say where a loss comes from, need the graph and the table (``levels``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import tee
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import DataError
from edgeopt.frontends import Source
from edgeopt.parity.compare import LARGEST, Accumulator, LevelReport, level_report
from edgeopt.parity.runners import FileRunner

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

CHANNELS_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
"""Rank → order of a channels-first tensor's axes in its channels-last form."""


def compare_models(
    reference: Source | FileRunner,
    candidate: Source | FileRunner,
    samples: Iterable[Feed],
    *,
    label: str = "",
    tolerance: float | None = None,
    min_sqnr_db: float | None = None,
    min_top1_agreement: float | None = None,
) -> LevelReport:
    """Run both on the same samples.

    A file's inputs are matched to the samples' by name, else by position; an array is permuted between channels first
    and channels last where only that makes it fit. Outputs are matched to the reference's in the same way; integer
    outputs with a grid are compared as real numbers.

    Args:
        reference: what is right.
        candidate: what is compared with it.
        samples: arrays by input name, read once.
        label: conditions, for the report.
        tolerance: largest relative error of an output; None: nothing fails for its size.
        min_sqnr_db: over all outputs.
        min_top1_agreement: of the first output with more than one value.

    Raises:
        DataError: a sample does not fit a model.
    """
    accumulators: dict[str, Accumulator] = {}
    pairs: dict[str, str] = {}
    count = 0
    first, second = tee(samples)
    for expected, made in zip(_outputs(reference, first), _outputs(candidate, second), strict=True):
        pairs = pairs or _matched(tuple(expected), tuple(made))
        count += 1
        for name, theirs in pairs.items():
            accumulators.setdefault(name, Accumulator()).add(
                expected[name], _fitted(made[theirs], expected[name].shape, name)
            )
    if not count:
        raise DataError("no samples to compare on")
    report = level_report("L2", f"{count} samples{f', {label}' if label else ''}", count, accumulators)
    failures = []
    for name, parity in report.outputs.items():
        if parity.max_abs >= LARGEST:
            failures.append(f"output '{name}': NaN or infinity on one side")
        elif tolerance is not None and not parity.rel <= tolerance:
            failures.append(f"output '{name}': relative error {parity.rel:.2e}; at most {tolerance:g} was asked")
    if min_sqnr_db is not None and report.sqnr_db < min_sqnr_db:
        failures.append(f"SQNR is {report.sqnr_db:.1f} dB; at least {min_sqnr_db:g} dB was asked")
    agreement = report.top1_agreement
    if min_top1_agreement is not None and agreement is not None and agreement < min_top1_agreement:
        failures.append(f"top-1 agreement is {agreement:.2%}; at least {min_top1_agreement:.2%} was asked")
    return report.model_copy(update={"failures": tuple(failures)})


def _outputs(model: Source | FileRunner, samples: Iterable[Feed]) -> Iterable[Mapping[str, Array]]:
    if not isinstance(model, FileRunner):
        return model.run(dict(sample) for sample in samples)
    ports = model.input_ports

    def fitted(feed: Feed) -> dict[str, Array]:
        names = _matched(tuple(ports), tuple(feed), what="input")
        return {
            name: _fitted(feed[given], tuple(ports[name].source_shape), name, what="input")
            for name, given in names.items()
        }

    return model.run(fitted(feed) for feed in samples)


def _matched(names: tuple[str, ...], given: tuple[str, ...], what: str = "output") -> dict[str, str]:
    """Each of ``names`` with one of ``given``: by name where all are there, else by position."""
    if set(names) <= set(given):
        return {name: name for name in names}
    if len(names) != len(given):
        raise DataError(f"{what}s differ: {', '.join(names)} and {', '.join(given)}")
    return dict(zip(names, given, strict=True))


def _fitted(array: Array, shape: tuple[int, ...], name: str, what: str = "output") -> Array:
    """``array`` in ``shape``: as it is, channels moved, or axes of size 1 put in or left out."""
    if array.shape == shape:
        return array
    last = CHANNELS_LAST.get(array.ndim)
    if last is not None and array.ndim == len(shape):
        for order in (last, tuple(int(axis) for axis in np.argsort(last))):
            if tuple(array.shape[axis] for axis in order) == shape:
                return array.transpose(order)
    if array.size == int(np.prod(shape)) and [s for s in array.shape if s != 1] == [s for s in shape if s != 1]:
        return array.reshape(shape)
    raise DataError(f"{what} '{name}' is {list(array.shape)} and should be {list(shape)}")
