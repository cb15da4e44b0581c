"""Samples from an ``.npz``: arrays by input name, first axis samples, ``labels`` if known.

Nothing is loaded whole: each pass reads the archive's members as streams, one sample at a time, whether they are
compressed or not.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from edgeopt.data.samples import Array, Feed, fit, one_input, shape_error, spread
from edgeopt.digest import of_file
from edgeopt.errors import DataError
from edgeopt.types import TensorSpec

LABELS = "labels"


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool


class ArraySamples:
    """See the module. ``labels`` are int64 [samples] or None.

    Raises:
        DataError: not an npz of plain arrays, unknown or missing names, lengths that differ, wrong shapes.
    """

    def __init__(self, file: Path, specs: Sequence[TensorSpec], *, limit: int | None = None) -> None:
        self.where = str(file)
        self._file, self._specs = file, tuple(specs)
        headers = self._read_headers()
        one_input(specs, [name for name in headers if name != LABELS], self.where)
        lengths = {name: header.shape[0] if header.shape else 0 for name, header in headers.items()}
        count = lengths[specs[0].name]
        if different := {name: length for name, length in lengths.items() if length != count}:
            name, length = next(iter(different.items()))
            raise DataError(
                f"'{specs[0].name}' has {count} samples and '{name}' has {length}",
                where=self.where,
                hint="The first axis of every array counts samples.",
            )
        for spec in specs:
            header = headers[spec.name]
            _check_shape(header.shape[1:], spec, self.where)
            if header.fortran:
                raise DataError(
                    f"'{spec.name}' is stored in Fortran order and cannot be read sample by sample",
                    where=self.where,
                    hint="Store np.ascontiguousarray(array).",
                )
        self._headers, self._count = headers, count
        self._indices = spread(count, limit)
        self.labels = self._read_labels() if LABELS in headers else None

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Feed]:
        if not self._indices:
            return
        with self._open() as archive, ExitStack() as stack:
            streams = {spec.name: stack.enter_context(archive.open(spec.name + ".npy")) for spec in self._specs}
            for stream in streams.values():
                _header(stream)
            at = 0
            for index in self._indices:
                feed: Feed = {}
                for spec in self._specs:
                    header = self._headers[spec.name]
                    size = header.dtype.itemsize * int(np.prod(header.shape[1:], dtype=np.int64))
                    raw = self._read(streams[spec.name], size, skip=(index - at) * size)
                    sample: Array = np.frombuffer(raw, header.dtype).reshape(header.shape[1:])
                    feed[spec.name] = fit(sample, spec, f"{self.where}: sample {index}")
                at = index + 1
                yield feed

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"not an npz archive: {error}", where=self.where, hint="Write it with numpy.savez(FILE, INPUT=array)."
            ) from error

    def _read(self, stream: IO[bytes], size: int, *, skip: int) -> bytes:
        try:
            while skip > 0:
                skipped = len(stream.read(min(skip, 1 << 20)))
                skip = skip - skipped if skipped else 0
            raw = stream.read(size)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise DataError(f"the archive is damaged: {error}", where=self.where) from error
        if len(raw) != size:
            raise DataError("the archive is truncated", where=self.where, hint="Write or copy it again.")
        return raw

    def _read_headers(self) -> dict[str, _Header]:
        headers: dict[str, _Header] = {}
        with self._open() as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                try:
                    with archive.open(member) as stream:
                        headers[name] = _header(stream)
                except (ValueError, zipfile.BadZipFile, EOFError) as error:
                    raise DataError(
                        f"'{name}' is no plain array: {error}",
                        where=self.where,
                        hint="Only arrays of numbers are read; pickled objects never are.",
                    ) from error
                if headers[name].dtype.hasobject:
                    raise DataError(
                        f"'{name}' holds pickled Python objects, which are never loaded",
                        where=self.where,
                        hint="Store arrays of numbers.",
                    )
        return headers

    def _read_labels(self) -> npt.NDArray[np.int64]:
        header = self._headers[LABELS]
        with self._open() as archive, archive.open(LABELS + ".npy") as stream:
            labels = npy.read_array(stream, allow_pickle=False)
        if header.dtype.kind not in "iu" or len(header.shape) != 1:
            raise DataError(
                f"'labels' is {header.dtype.name} of shape {list(header.shape)}, not one class index per sample",
                where=self.where,
                hint="Store int64 class indices of shape [samples].",
            )
        chosen: npt.NDArray[np.int64] = labels[self._indices].astype(np.int64)
        return chosen


def _header(stream: IO[bytes]) -> _Header:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return _Header(shape, dtype, fortran and len(shape) > 1)


def _check_shape(sample: tuple[int, ...], spec: TensorSpec, where: str) -> None:
    if sample != spec.shape and not (spec.shape[:1] == (1,) and sample == spec.shape[1:]):
        raise shape_error(sample, spec, where)


def digest(file: Path) -> str:
    """Digest of the whole file. DataError if it is not there."""
    if not file.is_file():
        raise DataError("no such file", where=str(file), hint="Give an .npz of arrays by input name.")
    return of_file(file)
