"""Digests of data that the user's code gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeopt.data import callables
from edgeopt.training.read_data import digest_of_callable


@dataclass(frozen=True)
class DigestJob:
    reference: str
    root: Path
    limit: int | None


def digest_training_callable(job: DigestJob) -> str:
    """In a worker: it runs the user's code."""
    return digest_of_callable(job.reference, job.root, job.limit)


def digest_callable(job: DigestJob) -> str:
    """In a worker: it runs the user's code."""
    return callables.digest(job.reference, job.root, job.limit)
