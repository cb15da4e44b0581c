"""Latency and memory of other devices, from a file of ``edgeopt bench --json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import DataError
from edgeopt.gate.evidence import Evidence


@dataclass(frozen=True)
class Measured:
    """One result: where, how it came to be, median and upper end in ms, peak memory."""

    device: str
    kind: str
    p50_ms: float
    high_ms: float
    memory_mb: float | None


def matching(evidence: Evidence, target: str) -> list[Measured]:
    """Results of this target's file, by its name; all results where the file names no model.

    Raises:
        DataError: not the output of ``edgeopt bench --json``.
    """
    path = evidence.policy.latency.results
    if path is None:
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not str(document["schema"]).startswith("edgeopt.bench/"):
            raise ValueError(f"schema is {document['schema']!r}")
        found = []
        for one in document["results"]:
            model = Path(str(one.get("model", "")))
            if model.suffix and model.suffix != evidence.run.path(target).suffix:
                continue
            times = one["latency_ms"]
            high = times["high"] if times.get("high") is not None else times["p50"]
            found.append(
                Measured(str(one["device"]), str(one["kind"]), float(times["p50"]), float(high), one.get("memory_mb"))
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"no benchmark results: {error}", where=str(path), hint="Write it with `edgeopt bench MODEL --json`."
        ) from error
    return found
