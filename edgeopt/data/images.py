"""Samples from image files, made into the model's input by the recipe's ``preprocess``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from edgeopt.data.samples import Array, Feed, spread
from edgeopt.digest import of_file, of_files, of_json
from edgeopt.errors import DataError
from edgeopt.types import Preprocess, TensorSpec

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}


def find_images(folder: Path, limit: int | None = None) -> list[Path]:
    """Image files in the folder and below, sorted by path; ``limit`` of them evenly spread.

    Raises:
        DataError: not a folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), hint="Give the folder that holds the images.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(
            "no images in this folder",
            where=str(folder),
            hint=f"Put real images there ({', '.join(sorted(SUFFIXES))}); a few hundred make a good calibration.",
        )
    return [files[index] for index in spread(len(files), limit)]


def read_labels(files: Sequence[Path], folder: Path, table: Path | None) -> npt.NDArray[np.int64] | None:
    """Class index per file, int64 [files]: from ``table`` (CSV ``file,class_index,…``), else one folder per class.

    Files stand in the table relative to ``folder`` or to the table's own folder. Class folders count in sorted order.
    None where there is no table and the images lie in one folder.

    Raises:
        DataError: an image has no line in the table, or a line is not ``file,class_index``.
    """
    if table is None:
        folders = sorted({path.relative_to(folder).parts[0] for path in folder.rglob("*/*") if path.is_file()})
        if len(folders) < 2 or any(path.parent == folder for path in files):
            return None
        return np.array([folders.index(path.relative_to(folder).parts[0]) for path in files], np.int64)
    classes = _read_table(table)
    labels = []
    for path in files:
        names = [path.relative_to(folder).as_posix()]
        if path.is_relative_to(table.parent):
            names.insert(0, path.relative_to(table.parent).as_posix())
        index = next((classes[name] for name in names if name in classes), None)
        if index is None:
            raise DataError(
                f"no line for {names[-1]}",
                where=str(table),
                hint="Every image needs a line `file,class_index`; files relative to the images or to the table.",
            )
        labels.append(index)
    return np.array(labels, np.int64)


def _read_table(table: Path) -> dict[str, int]:
    classes: dict[str, int] = {}
    try:
        rows = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(table), hint="A CSV file: `file,class_index`.") from error
    for line, row in enumerate(rows, 1):
        if not row or (line == 1 and not row[-1].strip().isdigit() and not (len(row) > 1 and row[1].strip().isdigit())):
            continue  # an empty line, or the header
        if len(row) < 2 or not row[1].strip().isdigit():
            raise DataError("not `file,class_index`", where=f"{table}:{line}", hint="For example: cat/0001.png,3")
        classes[row[0].strip()] = int(row[1])
    return classes


def complete_preprocess(preprocess: Preprocess | None, spec: TensorSpec) -> tuple[Preprocess, tuple[str, ...]]:
    """The whole contract for an image input, and in words what had to be assumed.

    Raises:
        DataError: the input is no image, or takes other channels or sizes than the contract gives.
    """
    assumed: list[str] = []
    if len(spec.shape) != 4:
        raise DataError(
            f"the model's input '{spec.name}' has shape {list(spec.shape)} and is no image",
            hint="Give `arrays:` or `callable:` instead of `images:`.",
        )
    if spec.shape[0] != 1:
        raise DataError(
            f"the model takes batches of {spec.shape[0]}, and images come one by one",
            hint="Export the model with batch 1, or give `arrays:` whose samples are whole batches.",
        )
    if preprocess is None:
        layout = "nhwc" if spec.shape[1] not in (1, 3) and spec.shape[3] in (1, 3) else "nchw"
        channels = spec.shape[3] if layout == "nhwc" else spec.shape[1]
        preprocess = Preprocess(color="gray" if channels == 1 else "rgb", layout=layout)
        assumed.append("pixels are divided by 255, with no mean and standard deviation")
    nchw = preprocess.layout == "nchw"
    channels, height, width = (spec.shape[i] for i in ((1, 2, 3) if nchw else (3, 1, 2)))
    if channels != CHANNELS[preprocess.color]:
        raise DataError(
            f"wrong channel count: the model's input '{spec.name}' {list(spec.shape)} takes {channels} and "
            f"preprocess gives {CHANNELS[preprocess.color]} ({preprocess.color}, {preprocess.layout})",
            hint="Set `color: gray` or `rgb`, or `layout: nhwc`, in preprocess; other data goes in as `arrays:`.",
        )
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) not in (1, channels):
            raise DataError(
                f"preprocess.{name} has {len(values)} values for {channels} channels",
                hint="Give one value, or one per channel.",
            )
    if preprocess.resize is None and preprocess.crop is None:
        preprocess = preprocess.model_copy(update={"resize": min(height, width), "crop": (height, width)})
        if height != width:
            preprocess = preprocess.model_copy(update={"resize": (height, width)})
        assumed.append(f"images of another size are resized to {height}×{width} (shorter side, then centre crop)")
    size = _pair(preprocess.crop) or (preprocess.resize if isinstance(preprocess.resize, tuple) else None)
    if size is not None and size != (height, width):
        raise DataError(
            f"preprocess makes images of {size[0]}×{size[1]}, the model's input '{spec.name}' takes {height}×{width}",
            hint=f"Set `crop: {height}`." if height == width else f"Set `crop: [{height}, {width}]`.",
        )
    return preprocess, tuple(assumed)


def read_image(path: Path, color: str) -> Image.Image:
    """One image in the mode that ``color`` wants. OSError or ValueError if it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("L" if color == "gray" else "RGB")
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def prepare(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resize (bilinear, as torchvision does) and crop the centre."""
    width, height = image.size
    if (resize := preprocess.resize) is not None:
        if isinstance(resize, int):
            short = min(width, height)
            size = (max(resize, round(width * resize / short)), max(resize, round(height * resize / short)))
        else:
            size = (resize[1], resize[0])
        if size != (width, height):
            image = image.resize(size, Image.Resampling.BILINEAR)
    if (crop := _pair(preprocess.crop)) is not None:
        width, height = image.size
        left, top = (width - crop[1]) // 2, (height - crop[0]) // 2
        if left < 0 or top < 0:
            raise ValueError(f"is {height}×{width}, smaller than the crop of {crop[0]}×{crop[1]}")
        image = image.crop((left, top, left + crop[1], top + crop[0]))
    return image


def normalise(image: Image.Image, preprocess: Preprocess, dtype: str) -> Array:
    """Pixels as the model's input without batch axis, in ``preprocess.layout``; integer inputs get plain pixels."""
    pixels: Array = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if preprocess.color == "bgr":
        pixels = pixels[:, :, ::-1]
    if np.dtype(dtype).kind == "f":
        mean, std = np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32)
        pixels = (pixels.astype(np.float32) * np.float32(preprocess.scale) - mean) / std
    if preprocess.layout == "nchw":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels.astype(dtype, copy=False))


class ImageSamples:
    """Images of a folder as samples of the model's one image input.

    Args:
        folder: where they are, at any depth.
        spec: the input, float32 or an integer type, [1, C, H, W] or [1, H, W, C].
        preprocess: whole, as ``complete_preprocess`` gives it.
        labels: CSV of ``file,class_index``; else class folders.
        limit: how many at most.
    """

    def __init__(
        self,
        folder: Path,
        spec: TensorSpec,
        preprocess: Preprocess,
        *,
        labels: Path | None = None,
        limit: int | None = None,
    ) -> None:
        self.where = str(folder)
        self._spec, self._preprocess = spec, preprocess
        self._files = find_images(folder, limit)
        self.labels = read_labels(self._files, folder, labels)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Feed]:
        for path in self._files:
            try:
                yield {self._spec.name: self._sample(path)}
            except (OSError, ValueError) as error:
                raise self._unreadable(path, error) from error

    def _sample(self, path: Path) -> Array:
        image = prepare(read_image(path, self._preprocess.color), self._preprocess)
        sample = normalise(image, self._preprocess, self._spec.dtype)[None]
        if sample.shape != self._spec.shape:
            raise ValueError(f"is {image.height}×{image.width}, the model takes {list(self._spec.shape)}")
        return sample

    def _unreadable(self, first: Path, error: Exception) -> DataError:
        """Name every image that fails, not only the first."""
        bad = []
        for path in self._files:
            try:
                self._sample(path)
            except (OSError, ValueError):
                bad.append(path)
        names = ", ".join(path.name for path in bad[:10]) + (", …" if len(bad) > 10 else "")
        return DataError(
            f"{len(bad)} of {len(self._files)} images cannot be used: {names} ({first.name}: {error})",
            where=self.where,
            hint="Remove or replace them.",
        )


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def digest(folder: Path, labels: Path | None, limit: int | None) -> str:
    """Digest of the images that are used, their names, and the labels."""
    table = of_file(labels) if labels is not None else ""
    return of_json([of_files(find_images(folder, limit), folder), table])


def image_input(specs: Sequence[TensorSpec], where: str) -> TensorSpec:
    """The model's one input.

    Raises:
        DataError: the model has several.
    """
    if len(specs) == 1:
        return specs[0]
    raise DataError(
        f"the model has {len(specs)} inputs ({', '.join(spec.name for spec in specs)}), and images are only one",
        where=where,
        hint="Give `arrays:` or `callable:` with all of them.",
    )
