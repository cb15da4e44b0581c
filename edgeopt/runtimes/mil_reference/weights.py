"""Reads the weight file of an ML program (``weights/weight.bin``), checking every offset and length.

Format (coremltools' ``mlmodel/src/MILBlob/Blob/StorageFormat.hpp``): a header of 64 bytes (count of blobs, version),
then blobs, each aligned to 64 bytes: metadata of 64 bytes (sentinel, dtype code, size in bytes, offset of the data,
padding in bits) and the data. Values smaller than a byte are packed without gaps, lowest bit first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

HEADER = struct.Struct("<II56x")
METADATA = struct.Struct("<IIQQQ32x")
SENTINEL = 0xDEADBEEF
VERSION = 2
ALIGNMENT = 64

DTYPES = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    5: "bfloat16",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
    16: "float8e4m3fn",
    17: "float8e5m2",
}
"""Code in the file → name."""

SUB_BYTE_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
NUMPY_DTYPES = {
    **{name: np.dtype(np.int8 if name.startswith("int") else np.uint8) for name in SUB_BYTE_BITS},
    **{name: np.dtype(name) for name in ("bool", "float16", "float32", "float64")},
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}
"""Name → dtype that its values have in memory: those smaller than a byte take one each."""


def packed_bytes(count: int, dtype: str) -> int:
    """Bytes that so many values take in a file."""
    bits = SUB_BYTE_BITS.get(dtype)
    return count * NUMPY_DTYPES[dtype].itemsize if bits is None else -(-count * bits // 8)


def unpack(data: bytes | memoryview, count: int, dtype: str) -> Array:
    """Values from their packed bytes, as a flat read-only array.

    Raises:
        ValueError: not the number of bytes that ``count`` values take.
    """
    if len(data) != packed_bytes(count, dtype):
        raise ValueError(f"{count} values of {dtype} take {packed_bytes(count, dtype)} bytes; there are {len(data)}")
    bits = SUB_BYTE_BITS.get(dtype)
    if bits is None:
        return np.frombuffer(data, NUMPY_DTYPES[dtype])
    rows = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    values: Array = np.packbits(rows, axis=1, bitorder="little").reshape(count)
    if dtype.startswith("int"):
        values = (values ^ (1 << (bits - 1))).astype(np.int8) - np.int8(1 << (bits - 1))
    return values.astype(NUMPY_DTYPES[dtype], copy=False)


@dataclass(frozen=True)
class WeightFile:
    """One weight file in memory.

    Args:
        path: for messages.
        data: all of it.
    """

    path: Path
    data: memoryview

    @classmethod
    def read(cls, path: Path) -> WeightFile:
        """Read and check the header.

        Raises:
            ValueError: missing, or no weight file; the message names the file.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: the weight file cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # a damaged name with a zero byte in it
            raise ValueError(f"{path!r}: the weight file cannot be read: {error}") from error
        if len(data) < HEADER.size:
            raise ValueError(f"{path}: cut short: {len(data)} bytes, the header alone has {HEADER.size}")
        _, version = HEADER.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"{path}: no weight file, or damaged: version {version} in its header, not {VERSION}")
        return cls(path, memoryview(data))

    def values(self, offset: int, dtype: str, count: int) -> Array:
        """The blob whose metadata lies at ``offset``, as a flat read-only array.

        Args:
            offset: in bytes, from the start of the file.
            dtype: what the program says it is.
            count: how many values the program says it has.

        Raises:
            ValueError: the offset, the sentinel, the dtype, the size or the end of the file contradict that.
        """
        where = f"{self.path}, offset {offset}"
        length = len(self.data)
        if offset % ALIGNMENT or offset < HEADER.size:
            raise ValueError(
                f"{where}: no blob can start here: they are aligned to {ALIGNMENT} bytes, after the header"
            )
        if offset + METADATA.size > length:
            raise ValueError(f"{where}: cut short: the file ends at {length}, before the metadata of this blob does")
        sentinel, code, size, start, padding = METADATA.unpack_from(self.data, offset)
        if sentinel != SENTINEL:
            raise ValueError(f"{where}: damaged: no blob starts here (0x{sentinel:08X}, not 0x{SENTINEL:08X})")
        found = DTYPES.get(code, f"an unknown dtype (code {code})")
        if found != dtype:
            raise ValueError(f"{where}: the blob holds {found}; the program says {dtype}")
        if dtype not in NUMPY_DTYPES:
            raise ValueError(f"{where}: values of {dtype} cannot be read")
        expected = packed_bytes(count, dtype)
        if size != expected or padding > 7:
            raise ValueError(f"{where}: damaged: {size} bytes; {count} values of {dtype} take {expected}")
        if start < offset + METADATA.size or start % ALIGNMENT:
            raise ValueError(f"{where}: damaged: its data cannot start at {start}")
        if start + size > length:
            raise ValueError(f"{where}: cut short: the data ends at {start + size}, the file at {length}")
        return unpack(self.data[start : start + size], count, dtype)
