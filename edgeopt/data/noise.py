"""Seeded noise, for one thing only: to see that a conversion kept the function where no data was given.

Nothing is ever calibrated on it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgeopt.data.samples import Feed
from edgeopt.types import Signature

COUNT = 8


class NoiseSamples:
    """Standard normal values for float inputs, zeros for integer ones: an index of 0 is in any range."""

    labels: npt.NDArray[np.int64] | None = None
    where = "noise"

    def __init__(self, signature: Signature, seed: int) -> None:
        self._signature, self._seed = signature, seed

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[Feed]:
        random = np.random.default_rng(self._seed)
        for _ in range(COUNT):
            yield {
                spec.name: random.standard_normal(spec.shape).astype(spec.dtype)
                if np.dtype(spec.dtype).kind == "f"
                else np.zeros(spec.shape, spec.dtype)
                for spec in self._signature.inputs
            }
