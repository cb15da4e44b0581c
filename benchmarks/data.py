"""The trained models of the benchmarks, with their images as the float model takes them.

Calibration and evaluation images are disjoint. Every tool is given the same calibration array.
"""

import csv
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import place

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Boxes:
    """Ground truth of one image: `classes` (n,), `boxes` (n, 4) as x1, y1, x2, y2 in 0..1."""

    classes: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class TrainedModel:
    """One model: its float ONNX file and functions that load its images.

    `calibration()` is (n, C, H, W) float32. `evaluation()` is the same and its labels: (n,) int64 class indices, or for
    a detector a list of `Boxes`. With `labelled` False there are none: only SQNR can be told.
    """

    name: str
    title: str
    onnx: Path
    input_name: str
    calibration: Callable[[], np.ndarray]
    evaluation: Callable[[], tuple[np.ndarray, np.ndarray | list[Boxes]]]
    detector: bool = False
    labelled: bool = True


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """(3, size, size) uint8, RGB."""
    pixels = np.asarray(image.convert("RGB"))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size].transpose(2, 0, 1)


def imagenet_rows(folder: Path, part: str) -> list[dict[str, str]]:
    with (folder / "labels.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["file"].startswith(part)]


def imagenet(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    rows = imagenet_rows(folder, part)
    pixels = np.stack([centre_crop(Image.open(folder / row["file"]), 224) for row in rows])
    return pixels.astype(np.float32) / np.float32(127.5) - 1, np.array([int(row["class_index"]) for row in rows])


def cifar10(folder: Path, calibration: bool) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(folder / "test_5000_jpg.zip") as archive:
        names = [n for n in archive.namelist() if n.endswith(".jpg") and n.startswith("calib_train/") == calibration]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in names]).transpose(0, 3, 1, 2)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    labels = np.array([CIFAR10_CLASSES.index(n.split("/")[-2]) for n in names])
    return ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32), labels


def visual_wake_words(folder: Path, calibration: bool) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "images_400.npz") as arrays:
        chosen = arrays["is_calib"] == calibration
        return arrays["X"][chosen].astype(np.float32) / 255, arrays["Y"][chosen]


def coco(folder: Path, part: int, size: int) -> tuple[np.ndarray, list[Boxes]]:
    """By sorted name even indices (part 0) calibrate, odd ones (1) evaluate. BGR / 255, stretched to `size`."""
    images, truth = [], []
    for path in sorted((folder / "images").glob("*.jpg"))[part::2]:
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)[..., ::-1]
        images.append(resize_bilinear(pixels, size, size).transpose(2, 0, 1))
        labels = folder / "labels" / f"{path.stem}.txt"  # absent: nothing to be found on that image
        text = labels.read_text().split() if labels.is_file() else []
        rows = np.array(text, np.float64).reshape(-1, 5)
        centre, extent = rows[:, 1:3], rows[:, 3:5]
        truth.append(Boxes(rows[:, 0].astype(np.int64), np.concatenate([centre - extent / 2, centre + extent / 2], 1)))
    return np.stack(images) / np.float32(255), truth


def resize_bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, c) to (height, width, c), float32: two-tap bilinear between half-pixel centres, without smoothing before.

    What OpenCV's INTER_LINEAR does and this detector was trained with; Pillow's filter widens when it shrinks an image.
    Rounded to whole pixels, as a camera pipeline has them.
    """
    for axis, size in enumerate((height, width)):
        length = pixels.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.minimum(at.astype(int), length - 2)
        share = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(low + 1, axis) * share
    return np.round(pixels).astype(np.float32)


def people(folder: Path, part: int) -> np.ndarray:
    """The COCO images, even or odd ones, as the face detector takes them: RGB, 320 × 240, (pixels − 127) / 128."""
    paths = sorted((folder / "images").glob("*.jpg"))[part::2]
    pixels = [resize_bilinear(np.asarray(Image.open(p).convert("RGB"), np.float32), 240, 320) for p in paths]
    return (np.stack(pixels).transpose(0, 3, 1, 2) - np.float32(127)) / np.float32(128)


def trained_models() -> dict[str, TrainedModel]:
    """By name, smallest first. Raises `CannotRunError` where the data folder is absent."""
    data = place.data()
    vww, imagenet_, cifar, coco_ = (data / n for n in ("visual_wake_words", "imagenet", "cifar10", "coco128"))
    faces = data / "faces"
    models = [
        TrainedModel(
            "resnet20", "ResNet20, CIFAR-10", cifar / "resnet20.onnx", "x",
            lambda: cifar10(cifar, True)[0], lambda: cifar10(cifar, False),
        ),
        TrainedModel(
            "vww", "MobileNetV1-0.25, VWW", vww / "mobilenet_v1_025.onnx", "x",
            lambda: visual_wake_words(vww, True)[0], lambda: visual_wake_words(vww, False),
        ),
        TrainedModel(
            "mobilenet_v1", "MobileNetV1-0.75, ImageNet", imagenet_ / "mobilenet_v1_075.onnx", "x",
            lambda: imagenet(imagenet_, "calibration")[0], lambda: imagenet(imagenet_, "evaluation"),
        ),
        TrainedModel(
            "fastestdet", "FastestDet, COCO", coco_ / "fastestdet.onnx", "input.1",
            lambda: coco(coco_, 0, 352)[0], lambda: coco(coco_, 1, 352), detector=True,
        ),
        TrainedModel(
            "ultraface", "UltraFace RFB-320, COCO", faces / "ultraface_rfb_320.onnx", "input",
            lambda: people(coco_, 0), lambda: (people(coco_, 1), []), labelled=False,
        ),
    ]  # fmt: skip
    for model in models:
        if not model.onnx.is_file():
            raise place.CannotRunError(f"{model.title}: no model at {model.onnx}")
    return {model.name: model for model in models}
