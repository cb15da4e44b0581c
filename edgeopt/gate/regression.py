"""The regression set's file: samples by digest, with the class that they must get. Sorted, one line each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from edgeopt.errors import DataError
from edgeopt.types import Frozen

SCHEMA = "edgeopt.regression/1"


class Kept(Frozen):
    """One sample: digest of its arrays, and the class index that must come out."""

    id: str
    expected: int


def read(path: Path) -> tuple[Kept, ...]:
    """Raises ``DataError`` where it is no regression set."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["schema"] != SCHEMA:
            raise ValueError(f"schema is {stored['schema']!r}")
        return tuple(Kept.model_validate(one) for one in stored["samples"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"no regression set: {str(error).splitlines()[0]}",
            where=str(path),
            hint="`edgeopt gate RUN --keep-failures` writes one.",
        ) from error


def as_text(samples: Iterable[Kept]) -> str:
    """Sorted by id, so that two branches that both grow it merge line by line."""
    lines = [f"  {one.model_dump_json()}" for one in sorted(set(samples), key=lambda one: one.id)]
    return f'{{"schema": "{SCHEMA}", "samples": [\n' + ",\n".join(lines) + "\n]}\n"
