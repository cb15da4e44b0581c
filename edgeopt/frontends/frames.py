"""Messages between a process and its worker: eight bytes of length (little-endian), then JSON or an npz."""

from __future__ import annotations

import io
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def read_frame(stream: IO[bytes]) -> bytes | None:
    header = stream.read(8)
    if len(header) < 8:
        return None
    length = int.from_bytes(header, "little")
    data = stream.read(length)
    return data if len(data) == length else None


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def pack(arrays: dict[str, Array]) -> bytes:
    buffer = io.BytesIO()
    members: dict[str, Any] = {f"a/{name}": array for name, array in arrays.items()}
    np.savez(buffer, **members)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Array]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return {name.removeprefix("a/"): stored[name] for name in stored.files}
