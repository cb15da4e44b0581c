"""What is said of a calibration set before anything is quantized on it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.cli import run as edgeopt
from edgeopt.pipeline.calibration_doctor import distance, far_apart, warnings
from tests import tiny


class Samples:
    """In memory."""

    where = "here"

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return ({"image": image[None]} for image in self.images)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ir.Model:
    return ir.load(tiny.save_model(tmp_path_factory.mktemp("doctor") / "model.onnx"))


GOOD = tiny.samples(40, seed=1)
CLASSES = np.arange(40) % tiny.CLASSES


def test_a_good_set_gets_no_word(model):
    assert warnings(model, Samples(GOOD, CLASSES), Samples(tiny.samples(40, seed=2), CLASSES)) == []


@pytest.mark.parametrize(
    ("calibration", "evaluation", "said"),
    [
        (Samples(np.repeat(GOOD[:10], 4, 0)), None, "75% of the calibration samples are copies of others"),
        (Samples(GOOD[:5]), None, "5 calibration samples: ranges hang on single ones"),
        (Samples(GOOD), Samples(GOOD[::-1] * 255), "far apart: 0.9"),
        (Samples(GOOD), Samples(1 - GOOD[::-1] ** 3), "far apart"),
        (Samples(GOOD, CLASSES % 2), Samples(tiny.samples(40, seed=2), CLASSES), "is of class 2, 3, and"),
    ],
    ids=["copies", "few", "scale", "distribution", "classes"],
)
def test_what_it_lacks_is_said(model, calibration, evaluation, said):
    (text,) = warnings(model, calibration, evaluation)
    assert said in text


def test_a_sample_that_stretches_ranges_is_named(model):
    images = GOOD.copy()
    images[17] *= 30
    (first, *_) = warnings(model, Samples(images), None)
    assert first.startswith("calibration sample 17 reaches")
    assert "times any other" in first


def test_distance_does_not_hang_on_the_order():
    assert distance(list(GOOD[:20, None]), list(GOOD[20:, None]))[0] < 0.1
    assert distance(list(GOOD[:, None]), list(GOOD[::-1, None]))[0] == 0


def test_it_is_said_before_anything_is_quantized(tmp_path, capsys):
    tiny.save_model(tmp_path / "model.onnx")
    tiny.save_samples(tmp_path / "calibration.npz", GOOD[:6])
    asked = ["convert", str(tmp_path / "model.onnx"), "--calibration", str(tmp_path / "calibration.npz")]
    assert edgeopt([*asked, "--target", "onnx", "--effort", "fast", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.index("warning: 6 calibration samples: ranges hang on single ones") < said.index("calibrate: ranges")
    assert said.count("ranges hang on single ones") == 1


def test_a_few_samples_that_differ_among_themselves_are_not_far_apart():
    """Photographs differ in brightness: of four against four the histograms lie far apart, by chance."""
    random = np.random.default_rng(3)
    levels = random.uniform(0, 1, 12)
    photographs = [np.clip(random.normal(level, 0.05, (1, 3, 8, 8)), 0, 1).astype(np.float32) for level in levels]
    apart, _ = distance(photographs[:6], photographs[6:])
    assert 0.35 < apart < 0.7
    assert not far_apart(photographs[:6], photographs[6:], apart)
    darker = [image * 0.5 for image in photographs * 3]
    apart, _ = distance(darker, photographs * 3)
    assert 0.35 < apart < 0.7
    assert far_apart(darker, photographs * 3, apart)
