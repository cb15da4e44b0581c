"""Digests: the names of everything that is stored. SHA-256, hexadecimal, never shortened in a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(paths: Iterable[Path], root: Path) -> str:
    """Digest of names (relative to ``root``) and contents, independent of the order in which they are given."""
    return of_json(sorted((path.relative_to(root).as_posix(), of_file(path)) for path in paths))


def of_path(path: Path) -> str:
    """Digest of a file, or of all names and contents in a folder."""
    if path.is_dir():
        return of_files((inside for inside in path.rglob("*") if inside.is_file()), path)
    return of_file(path)


def size_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(inside.stat().st_size for inside in path.rglob("*") if inside.is_file())
    return path.stat().st_size


def of_array(array: npt.NDArray[Any]) -> str:
    header = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def of_json(value: Any) -> str:
    """Digest of anything JSON can say; keys are sorted, so equal values have equal digests."""
    return of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode())
