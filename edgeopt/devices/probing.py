"""A device of which a few models were measured: which measured devices it is like, and how it differs from them.

Every configuration of the group may be the device's double, those with about as many threads first. Around each lies a
distribution of how a device may differ from its double, so that the prior is a mixture (Parzen 1962) that follows the
clusters in which devices really come: few cores and many, old cores and new. Probes weigh the doubles by their
likelihood, and pull what remains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeopt.devices import rates
from edgeopt.devices.packs import Configuration, Group, Widths
from edgeopt.devices.profile import AdaptedRates, Like

Array = npt.NDArray[np.float64]
LEAST_SHARE = 1e-3
"""A double that counts for less is left out of what is kept."""
UNKNOWN_AWAY = 0.7
"""A double whose threads are not known counts as one with twice as many, or half."""


def at_doubles(group: Group, x: Array) -> Array:
    """log ms of models (models, quantities) on every configuration of the group: (configurations, models)."""
    offset, _ = group.shared_offset(x)
    times = x @ np.exp(group.thetas).T
    own = np.array([group.own_offset(x, c) for c in group.pack.configurations])
    log_ms: Array = np.log(np.maximum(times, 1e-12)).T + offset + own
    return log_ms


def difference(group: Group, x: Array, widths: Widths) -> Array:
    """How a device may differ from its double: covariance (models, models) of log ms."""
    slope = rates.shares(x, group.mean)
    place = rates.composition(x, group.mean)
    found: Array = (
        widths.rates * slope @ group.covariance @ slope.T
        + widths.residual * (group.residual(place, place) + 1e-4 * np.eye(len(x)))
        + widths.speed
    )
    return found


def prior(known: Sequence[Configuration], engine: str, threads: int | None, widths: Widths) -> Array:
    """Log weight of each double before anything is measured.

    Devices count alike, however often they were measured. ``threads``: None where they have no meaning.
    """
    devices = [c.device for c in known]
    often = np.array([devices.count(device) for device in devices], np.float64)
    other = np.array([c.engine != engine for c in known], np.float64)
    found: Array = -np.log(often) - widths.other_engine * other
    if threads is not None:
        away = [abs(np.log(c.thread_count / threads)) if c.thread_count else UNKNOWN_AWAY for c in known]
        found = found - widths.threads * np.array(away)
    return found


def weigh(doubles: Array, y: Array, covariance: Array, log_prior: Array, tail: float) -> tuple[Array, Array]:
    """Weights of doubles (configurations,) and the mean pull of the probes (probes,).

    The likelihood is Student's, so that one odd probe does not decide alone (Lange, Little and Taylor 1989).

    Args:
        doubles: (configurations, probes), log ms.
        y: (probes,), log ms measured.
        covariance: (probes, probes), of ``difference``.
        tail: degrees of freedom.
    """
    error = y - doubles
    pull = np.linalg.solve(covariance, error.T).T
    log_weight = log_prior - 0.5 * (tail + len(y)) * np.log1p((error * pull).sum(1) / tail)
    weights = np.exp(log_weight - log_weight.max())
    weights /= weights.sum()
    return weights, weights @ pull


def adapted(
    group: Group,
    engine: str,
    x: Array,
    y: Array,
    names: Sequence[str],
    threads: int | None,
    widths: Widths | None = None,
) -> AdaptedRates:
    """Rates of a device without rows of its own that follow the probes.

    Args:
        engine: as in the packs.
        x: (probes, quantities).
        y: (probes,), log ms.
        names: of the probes.
        threads: of a CPU; None for other units.
        widths: the pack's by default.
    """
    widths = widths or group.pack.widths
    known = group.pack.configurations
    log_prior = prior(known, engine, threads, widths)
    weights, pull = weigh(at_doubles(group, x), y, difference(group, x, widths), log_prior, widths.tail)
    weights = np.where(weights < LEAST_SHARE, 0, weights)
    weights /= weights.sum()
    by_share = widths.rates * group.covariance @ rates.shares(x, group.mean).T @ pull
    shift = widths.speed * float(pull.sum())
    return AdaptedRates(
        engine=engine,
        threads=threads,
        theta=tuple(float(value) for value in weights @ group.thetas + by_share + shift),
        composition=tuple(tuple(float(v) for v in line) for line in rates.composition(x, group.mean)),
        weights=tuple(float(value) for value in widths.residual * pull),
        like=tuple(
            Like(device=c.device, engine=c.engine, threads=c.threads, campaign=c.campaign, share=float(share))
            for c, share in zip(known, weights, strict=True)
            if share
        ),
        pull=tuple(float(value) for value in by_share),
        shift=shift,
        probes=tuple(names),
    )
