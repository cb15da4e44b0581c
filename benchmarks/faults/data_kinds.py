"""Faults in the data: labels and images of the evaluation set, and what was calibrated on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
MEAN, STD = 0.45, 0.225


def labels_truncated(images: np.ndarray, labels: np.ndarray, random) -> tuple[np.ndarray, np.ndarray] | None:
    """The second half of the file was lost and filled with class 0."""
    made = labels.copy()
    made[len(made) // 2 :] = 0
    return None if np.array_equal(made, labels) else (images, made)


def labels_off_by_one(images, labels, random):
    return images, labels + 1


def labels_shuffled(images, labels, random):
    """A third of the lines in another order."""
    made, chosen = labels.copy(), random.choice(len(labels), len(labels) // 3, replace=False)
    made[np.sort(chosen)] = labels[chosen]
    return images, made


def labels_two_swapped(images, labels, random):
    """Two classes under each other's number."""
    a, b = random.choice(int(labels.max()) + 1, 2, replace=False)
    return images, np.where(labels == a, b, np.where(labels == b, a, labels))


def bgr(images, labels, random):
    return (images[:, ::-1].copy(), labels) if images.shape[1] == 3 else None


def pixels_255(images, labels, random):
    return images * np.float32(255), labels


def without_mean(images, labels, random):
    return images * np.float32(STD) + np.float32(MEAN), labels


def rotated(images, labels, random):
    """A quarter turn, as by an orientation tag that nobody read."""
    return (np.rot90(images, 1, (2, 3)).copy(), labels) if images.shape[2] == images.shape[3] else None


EVALUATION = {
    "labels_truncated": labels_truncated,
    "labels_off_by_one": labels_off_by_one,
    "labels_shuffled": labels_shuffled,
    "labels_two_swapped": labels_two_swapped,
    "evaluation_rotated": rotated,
    "evaluation_bgr": bgr,
    "evaluation_0_to_255": pixels_255,
    "evaluation_without_mean": without_mean,
}
"""Labels do not change what a file answers: such a fault counts by itself, as all figures of the run are then wrong."""


def inverted(images: np.ndarray, random) -> np.ndarray:
    return images.min() + images.max() - images


def dark(images: np.ndarray, random) -> np.ndarray:
    """Taken at a tenth of the light."""
    return images.min() + (images - images.min()) * np.float32(0.1)


def one_image(images: np.ndarray, random) -> np.ndarray:
    return np.repeat(images[int(random.integers(len(images)))][None], min(len(images), 64), 0)


def noise(images: np.ndarray, random) -> np.ndarray:
    made = random.normal(images.mean(), images.std(), (min(len(images), 64), *images.shape[1:]))
    return made.astype(np.float32)


CALIBRATION: dict[str, Callable] = {
    "calibrated_on_dark": dark,
    "calibrated_on_one_image": one_image,
    "calibrated_on_noise": noise,
    "calibrated_on_inverted": inverted,
}


class Images:
    """Samples for the quantize pass."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._name, self._images = name, images

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Arrays]:
        return ({self._name: image[None]} for image in self._images)


def read(path: Path) -> Arrays:
    with np.load(path) as stored:
        return dict(stored)
