"""The fitted rates as they are kept: one JSON document per group under ``hardware_profiles/packs``. No pickle.

``python -m benchmarks.latency --packs`` writes them; ``rows.csv`` beside them has every published row that was used,
with its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, ValidationError

from edgeopt.devices import rates
from edgeopt.devices.catalogue import folder
from edgeopt.devices.kernels import QUANTITIES
from edgeopt.devices.profile import AdaptedRates
from edgeopt.errors import SetupError
from edgeopt.types import Frozen

Array = npt.NDArray[np.float64]
Regime = Literal["random", "families", "devices_0", "devices_3"]
"""What was held out: random models; whole families; whole devices with no probe, and with three."""


class HeldOut(Frozen):
    """How predictions did on rows that the fit had not seen."""

    rows: int
    error_pct: float
    """Median absolute percentage error."""
    spread: float
    """Multiple of a row's own scale that covers 90 % of the held-out log errors; with ``devices_0`` that scale is 1,
    for what is not known of a device has nothing to do with the model."""


class Configuration(Frozen):
    """A device as it was measured, and its log rates."""

    device: str
    engine: str
    threads: str
    campaign: str
    rows: int
    theta: tuple[float, ...]
    own: tuple[tuple[int, float], ...]
    """Index of a model and its weight in the configuration's own process."""


class Pack(Frozen):
    """A group: the prior of its rates, what its models have in common, its configurations, and how well it did."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["edgeopt.rates/1"] = Field(alias="schema")
    group: str
    quantities: tuple[str, ...]
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    noise: float
    thread_exponent: float
    """Latency goes with threads to this power between a device's own thread counts."""
    models: tuple[str, ...]
    composition: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    """Of the shared process, by model."""
    offset: tuple[float, ...]
    """What the group has beyond the rates for a model that it has seen, log."""
    configurations: tuple[Configuration, ...]
    held_out: dict[Regime, HeldOut]
    errors: dict[str, HeldOut] = Field(default_factory=dict)
    """``device|engine`` → families held out, where ten rows or more are known."""


@dataclass(frozen=True)
class Group:
    """A pack with its arrays at hand."""

    pack: Pack

    @cached_property
    def mean(self) -> Array:
        return np.array(self.pack.mean)

    @cached_property
    def covariance(self) -> Array:
        return np.array(self.pack.covariance)

    @cached_property
    def composition(self) -> Array:
        return np.array(self.pack.composition)

    def shared_offset(self, x: Array) -> tuple[Array, Array]:
        """Log latency that like models of the group have beyond the sum of rates, and the scale of what is left.

        Args:
            x: (models, quantities).

        Returns:
            both of shape (models,).
        """
        near = rates.likeness(rates.composition(x, self.mean), self.composition, rates.PROCESS.length)
        scale = np.sqrt(self.pack.noise + rates.PROCESS.shared * (1 - near.max(1) ** 2))
        return rates.PROCESS.shared * near @ np.array(self.pack.weights), scale

    def own_offset(self, x: Array, configuration: Configuration) -> Array:
        """The same for what only this configuration shows."""
        if not configuration.own:
            return np.zeros(len(x))
        index = [i for i, _ in configuration.own]
        near = rates.likeness(rates.composition(x, self.mean), self.composition[index], rates.PROCESS.own_length)
        offset: Array = rates.PROCESS.own * near @ np.array([weight for _, weight in configuration.own])
        return offset

    def adapted_offset(self, x: Array, adapted: AdaptedRates) -> Array:
        """What probes of one's own board showed beyond its rates, for models like them."""
        near = self.probe_likeness(rates.composition(x, self.mean), np.array(adapted.composition))
        offset: Array = near @ np.array(adapted.weights)
        return offset

    def probe_likeness(self, a: Array, b: Array) -> Array:
        """Covariance of residuals between models by their composition: half of the noise is shared by likes."""
        shared: Array = 0.5 * self.pack.noise * rates.likeness(a, b, PROBE_LENGTH)
        return shared


PROBE_LENGTH = 0.25
"""How far probes speak for models of other composition (cross-validated with the rest)."""


@lru_cache(maxsize=1)
def groups() -> dict[str, Group]:
    """All packs, by group.

    Raises:
        SetupError: they are missing, or from another version.
    """
    found = {}
    for path in sorted((folder() / "packs").glob("*.json")):
        found_group = Group(read(path))
        found[found_group.pack.group] = found_group
    if not found:
        raise SetupError(
            "there are no fitted rates in this installation", hint="Install edgeopt again, or run make bench-latency."
        )
    return found


def read(path: Path) -> Pack:
    """One pack.

    Raises:
        SetupError: no pack, or one of another version.
    """
    try:
        pack = Pack.model_validate_json(path.read_text())
    except ValidationError as error:
        raise SetupError(
            f"these rates are from another version of edgeopt: {error.errors()[0]['msg']}",
            where=str(path),
            hint="Install edgeopt again, or write them anew with python -m benchmarks.latency --packs.",
        ) from error
    if pack.quantities != QUANTITIES:
        raise SetupError(
            "these rates are of other quantities than this version of edgeopt counts",
            where=str(path),
            hint="Write them anew with python -m benchmarks.latency --packs.",
        )
    return pack
