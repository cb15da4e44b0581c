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
from edgeopt.errors import SetupError, UsageError
from edgeopt.types import Frozen

Array = npt.NDArray[np.float64]
Regime = Literal["random", "families", "devices_0", "devices_mean", "devices_3", "threads"]
"""What was held out: random models; whole families; whole devices with no probe, predicted from their relatives or,
where there are none, from the mean of all devices; whole devices with three probes; a device's rows with one number of
threads."""
LEVEL_UNKNOWN: tuple[Regime, ...] = ("devices_0", "devices_mean", "threads")
"""Regimes in which a device's speed is inferred: what is not known of it has nothing to do with the model."""
LONGEST_START_MS = 0.5
"""Of a kernel on a CPU. Measured campaigns lie below 0.25 ms or above 0.75 ms; a scheduler's turn takes 1 to 4 ms."""


class HeldOut(Frozen):
    """How predictions did on rows that the fit had not seen."""

    rows: int
    error_pct: float
    """Median absolute percentage error."""
    spread: float
    """Multiple of a row's own scale that covers 90 % of the held-out log errors; that scale is 1 in
    ``LEVEL_UNKNOWN``."""


class Configuration(Frozen):
    """A device as it was measured, and its log rates."""

    device: str
    engine: str
    threads: str
    campaign: str
    rows: int
    theta: tuple[float, ...]
    own: tuple[tuple[int, float, float], ...]
    """Index of a model, its weight in the configuration's own process, and what its row has beyond both, log."""
    grows: bool = True
    """False where larger models took less time than small ones, as runs do that end before their work is done."""

    @property
    def stands(self) -> bool:
        """Whether it says something of its device."""
        return self.grows and not self.waits

    @property
    def thread_count(self) -> int | None:
        """None where it is not known; TFLite submissions that do not say run as with one, Arm NN's as with many."""
        text = self.threads.split(" ")[0]
        if text.isdigit():
            return int(text)
        return 1 if self.engine.split("/")[0] == "tflite" else None

    @property
    def waits(self) -> bool:
        """Whether its threads wait for each other longer than a kernel's start can take: its times are the machine's
        rest.

        Such campaigns spend the same milliseconds for each kernel, small or large: more threads than free cores.
        """
        on_cpu = self.engine.split("/")[1] == "cpu"
        return on_cpu and float(np.exp(self.theta[QUANTITIES.index("weighted_kernels")])) > LONGEST_START_MS


class Widths(Frozen):
    """How much a device may differ from the measured one that it is most like (``devices.probing``)."""

    rates: float
    """Share of the group's covariance of log rates."""
    residual: float
    """Share of the ``residual`` covariance."""
    speed: float
    """Variance of log latency that all models have in common."""
    tail: float
    """Degrees of freedom of the Student distribution: few where a single probe may be far off."""
    other_engine: float
    """What a double measured with another engine loses in log weight."""
    threads: float
    """What a double loses in log weight for each e-fold of CPU threads that it is away."""


class Pack(Frozen):
    """A group: the prior of its rates, what its models have in common, its configurations, and how well it did."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["edgeopt.rates/2"] = Field(alias="schema")
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
    residual: tuple[tuple[float, ...], ...]
    """Lower triangle, by model: covariance between configurations of what rates and the shared process leave."""
    widths: Widths
    probes: tuple[str, ...]
    """Which models to measure first on a device that is not here."""
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

    @cached_property
    def thetas(self) -> Array:
        """Log rates (configurations, quantities)."""
        return np.array([c.theta for c in self.pack.configurations])

    @cached_property
    def _residual(self) -> Array:
        size = len(self.pack.residual)
        lower = np.zeros((size, size))
        lower[np.tril_indices(size)] = [value for line in self.pack.residual for value in line]
        full: Array = lower + np.tril(lower, -1).T
        return full

    def _seen(self, composition: Array) -> npt.NDArray[np.int64]:
        """Index of the group's model that each one is, -1 for one that it has not seen."""
        away = np.abs(composition[:, None, :] - self.composition[None]).max(2)
        return np.where(away.min(1) < SAME, away.argmin(1), -1)

    def shared_offset(self, x: Array) -> tuple[Array, Array]:
        """Log latency that like models of the group have beyond the sum of rates, and the scale of what is left.

        Args:
            x: (models, quantities).

        Returns:
            both of shape (models,).
        """
        place = rates.composition(x, self.mean)
        near = rates.likeness(place, self.composition, rates.PROCESS.length)
        scale = np.sqrt(self.pack.noise + rates.PROCESS.shared * (1 - near.max(1) ** 2))
        seen = self._seen(place)
        offset = rates.PROCESS.shared * near @ np.array(self.pack.weights)
        return np.where(seen >= 0, np.array(self.pack.offset)[seen], offset), scale

    def own_offset(self, x: Array, configuration: Configuration) -> Array:
        """The same for what only this configuration shows."""
        if not configuration.own:
            return np.zeros(len(x))
        place = rates.composition(x, self.mean)
        index = [i for i, _, _ in configuration.own]
        near = rates.likeness(place, self.composition[index], rates.PROCESS.own_length)
        offset: Array = rates.PROCESS.own * near @ np.array([weight for _, weight, _ in configuration.own])
        left = {i: value for i, _, value in configuration.own}
        return offset + KEPT * np.array([left.get(int(i), 0.0) for i in self._seen(place)])

    def adapted_offset(self, x: Array, adapted: AdaptedRates) -> Array:
        """What probes of one's own board showed beyond its rates, and what those that it resembles show.

        Of a device without rows, latency is the (geometric) mean over those it is like, pulled by the probes; its
        rates only deal the time out to kernels.
        """
        place = rates.composition(x, self.mean)
        offset: Array = self.residual(place, np.array(adapted.composition)) @ np.array(adapted.weights)
        if adapted.pull:
            from_rates = rates.log_latency(x, np.array(adapted.theta))
            offset = offset + rates.shares(x, self.mean) @ np.array(adapted.pull) + adapted.shift - from_rates
        by_name = {(c.device, c.engine, c.threads, c.campaign): c for c in self.pack.configurations}
        for like in adapted.like:
            found = by_name.get((like.device, like.engine, like.threads, like.campaign))
            if found is None:
                raise UsageError(
                    f"the profile was fitted to measurements of {like.device} that this version does not have",
                    hint="Fit it again: edgeopt bench --fit NAME results.json.",
                )
            offset = offset + like.share * self.own_offset(x, found)
            if adapted.pull:
                offset = offset + like.share * rates.log_latency(x, np.array(found.theta))
        return offset

    def residual(self, a: Array, b: Array) -> Array:
        """Covariance of what rates leave between models by their composition.

        As it was seen between models of the group; of others half is shared by likes, and half is a model's own.
        """
        same = np.abs(a[:, None, :] - b[None]).max(2) < SAME
        found: Array = 0.5 * self.pack.noise * (rates.likeness(a, b, PROBE_LENGTH) + same)
        seen_a, seen_b = self._seen(a), self._seen(b)
        known = np.ix_(seen_a >= 0, seen_b >= 0)
        found[known] = self._residual[np.ix_(seen_a[seen_a >= 0], seen_b[seen_b >= 0])]
        return found


PROBE_LENGTH = 0.25
"""How far probes speak for models of other composition (cross-validated with the rest)."""
KEPT = 0.7
"""Of what a published row has beyond the fit, so much is taken for the model's and the device's; the rest for noise."""
SAME = 2e-3
"""Compositions that differ by less are those of one model: they are kept with four digits."""


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
