"""Training data from image folders, arrays and Datasets of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeopt.errors import DataError
from edgeopt.pipeline.jobs import Inputs, graph_training_data
from edgeopt.recipe.schema import DataSource
from edgeopt.types import Preprocess, Signature, TensorSpec

torch = pytest.importorskip("torch", reason="torch is not installed")

from edgeopt.training.augment import augment, mix  # noqa: E402
from edgeopt.training.data import ArraySet, hold_back  # noqa: E402
from edgeopt.training.read_data import digest_of_callable, from_callable  # noqa: E402
from edgeopt.training.settings import Augment  # noqa: E402

SIGNATURE = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8)),), outputs=())

DATASETS = """
import numpy as np

class Numbers:
    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= 6:
            raise IndexError
        return np.full((3, 8, 8), index, np.float32), index % 2

def dataset():
    return Numbers()

def rows():
    for index in range(6):
        yield {"x": np.full((3, 8, 8), index, np.float32), "labels": index % 2}

def short():
    return [(np.zeros((3, 8, 8), np.float32), 0, "what is this")]

def empty():
    return []
"""


def opened(source: DataSource, root: Path):
    inputs = Inputs(source, None, None, Preprocess(resize=8, crop=8), root)
    return graph_training_data(inputs, SIGNATURE)


def test_one_folder_per_class(tmp_path):
    for label, name in enumerate(("cats", "dogs")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(3):
            value = 100 * label + index
            Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / "images" / name / f"{index}.png")
    data = opened(DataSource(images=tmp_path / "images"), tmp_path)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    feed, labels = data.batch([4, 1])
    assert labels.tolist() == [1, 0]
    assert feed["x"].shape == (2, 3, 8, 8)
    assert feed["x"][:, 0, 0, 0].tolist() == pytest.approx([101 / 255, 1 / 255])


def test_arrays_with_a_limit(tmp_path):
    images = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1) * np.ones((1, 3, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", x=images, labels=np.arange(10))
    data = opened(DataSource(arrays=tmp_path / "data.npz", limit=5), tmp_path)
    assert data.labels.tolist() == [0, 2, 4, 6, 8]
    assert data.batch([2])[0]["x"][0, 0, 0, 0] == 4


def test_not_finite_is_refused(tmp_path):
    images = np.zeros((4, 3, 8, 8), np.float32)
    images[2, 1, 3, 3] = np.nan
    np.savez(tmp_path / "data.npz", x=images)
    with pytest.raises(DataError, match="'x' holds NaN or Inf"):
        opened(DataSource(arrays=tmp_path / "data.npz"), tmp_path)


@pytest.mark.parametrize("name", ["dataset", "rows"])
def test_a_dataset_and_a_generator_give_the_same(tmp_path, name):
    (tmp_path / "datasets_of_training.py").write_text(DATASETS)
    reference = f"datasets_of_training:{name}"
    data = from_callable(reference, tmp_path, ["x"], None)
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.batch([5])[0]["x"][0, 0, 0, 0] == 5
    assert len(from_callable(reference, tmp_path, ["x"], 3)) == 3
    assert digest_of_callable(reference, tmp_path, None) == digest_of_callable(reference, tmp_path, None)
    assert digest_of_callable(reference, tmp_path, None) != digest_of_callable(reference, tmp_path, 3)


@pytest.mark.parametrize(("name", "said"), [("short", "a sample has 3 parts"), ("empty", "no training samples")])
def test_a_dataset_that_cannot_be(tmp_path, name, said):
    (tmp_path / "datasets_of_training.py").write_text(DATASETS)
    with pytest.raises(DataError, match=said):
        from_callable(f"datasets_of_training:{name}", tmp_path, ["x"], None)


def test_what_is_held_back_is_of_every_class_and_not_trained_on():
    labels = np.repeat(np.arange(4), 10)
    data = ArraySet({"x": np.arange(40, dtype=np.float32)[:, None]}, labels, "numbers")
    kept, held = hold_back(data, 0.2, 1)
    assert np.bincount(held.labels).tolist() == [2, 2, 2, 2]
    both = {float(part.batch([i])[0]["x"]) for part in (kept, held) for i in range(len(part))}
    assert len(both) == 40 == len(kept) + len(held)
    assert hold_back(data, 0.2, 1)[1].labels.tolist() == held.labels.tolist()
    with pytest.raises(DataError, match="too few to hold back"):
        hold_back(data, 0.05, 1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def test_augmentation_repeats_and_keeps_what_it_should():
    images = torch.rand(32, 1, 8, 8)
    for how in (
        Augment(flip=True),
        Augment(shift=2),
        Augment(rotate=20, scale=0.2, shear=0.1, shift=1),
        Augment(cutout=3),
    ):
        one, two = augment(images, how, generator()), augment(images, how, generator())
        assert torch.equal(one, two)
        assert one.shape == images.shape
        assert not torch.equal(one, images)
    flipped = augment(images, Augment(flip=True), generator())
    assert all(torch.equal(new, old) or torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True))
    assert torch.equal(augment(images, Augment(), generator()), images)


def test_mixing_keeps_the_larger_share():
    images, labels = torch.rand(16, 1, 4, 4), torch.arange(16)
    mixed, others, share = mix({"x": images}, labels, 0.4, generator())
    assert 0.5 <= share <= 1
    assert torch.allclose(mixed["x"], images * share + images[others] * (1 - share))
