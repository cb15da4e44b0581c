"""Samples: streamed, prepared as the contract says, refused by name."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeopt.data.arrays import ArraySamples
from edgeopt.data.callables import CallableSamples
from edgeopt.data.callables import digest as callable_digest
from edgeopt.data.check import check
from edgeopt.data.images import ImageSamples, complete_preprocess, find_images, prepare, read_labels
from edgeopt.data.images import digest as image_digest
from edgeopt.data.samples import Few, spread
from edgeopt.errors import DataError
from edgeopt.types import Preprocess, TensorSpec
from tests import tiny

SPEC = TensorSpec(name="image", dtype="float32", shape=(1, 3, tiny.SIZE, tiny.SIZE))


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_limit_is_spread_evenly(count, limit):
    chosen = spread(count, limit)
    assert len(chosen) == min(count, limit)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    gaps = np.diff([*chosen, count])
    assert gaps.max() - gaps.min() <= 1


# --- arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("limit", [None, 1, 5])
def test_arrays_are_read_as_they_are(tmp_path, save, limit):
    images, labels = tiny.samples(), np.arange(12)
    save(tmp_path / "a.npz", image=images, labels=labels)
    samples = ArraySamples(tmp_path / "a.npz", [SPEC], limit=limit)
    chosen = spread(12, limit)
    for _ in range(2):
        read = [feed["image"] for feed in samples]
        assert [array.shape for array in read] == [SPEC.shape] * len(samples)
        np.testing.assert_array_equal(np.concatenate(read), images[chosen])
    np.testing.assert_array_equal(samples.labels, labels[chosen])


def test_arrays_with_their_batch_axis_and_of_another_float_type(tmp_path):
    np.savez(tmp_path / "a.npz", image=tiny.samples().astype(np.float64)[:, None])
    (first, *_) = ArraySamples(tmp_path / "a.npz", [SPEC])
    assert first["image"].dtype == np.float32
    assert first["image"].shape == SPEC.shape


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, save):
    def peak(count: int) -> int:
        file = tmp_path / f"{count}.npz"
        save(file, image=np.zeros((count, *SPEC.shape[1:]), np.float32))
        tracemalloc.start()
        for _ in ArraySamples(file, [SPEC]):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(10)
    assert peak(2000) < peak(20) + 200_000  # 2000 samples are 3.5 MB


def test_several_inputs(tmp_path):
    other = TensorSpec(name="mask", dtype="int64", shape=(1, 5))
    np.savez(tmp_path / "a.npz", image=tiny.samples(4), mask=np.arange(20).reshape(4, 5))
    samples = ArraySamples(tmp_path / "a.npz", [SPEC, other])
    assert [feed["mask"][0, 0] for feed in samples] == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": np.zeros((3, 3, 12, 12)), "labels": np.zeros(2, int)}, "has 3 samples and 'labels' has 2"),
        ({"image": np.zeros((3, 3, 12, 12)), "labels": np.zeros(3)}, "one class index per sample"),
        ({"image": np.zeros((3, 3, 12, 12)), "more": np.zeros(3)}, "no input 'more'"),
        ({"image": np.asfortranarray(np.zeros((3, 3, 12, 12)))}, "Fortran"),
        ({"image": np.zeros((3, 12, 12))}, "shape"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        ArraySamples(tmp_path / "a.npz", [SPEC])


def test_a_truncated_archive(tmp_path):
    tiny.save_samples(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="archive"):
        list(ArraySamples(tmp_path / "a.npz", [SPEC]))


# --- images


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_pixels_become_the_input_as_the_contract_says(tmp_path, layout, color):
    folder = tiny.save_images(tmp_path / "images", 2)
    shape = SPEC.shape if layout == "nchw" else (1, tiny.SIZE, tiny.SIZE, 3)
    spec = SPEC.model_copy(update={"shape": shape})
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    contract, assumed = complete_preprocess(
        Preprocess(crop=tiny.SIZE, mean=mean, std=std, layout=layout, color=color), spec
    )
    assert not assumed
    (first, _) = ImageSamples(folder, spec, contract)
    pixels = np.asarray(Image.open(folder / "000.png"), np.float64)
    pixels = pixels[..., ::-1] if color == "bgr" else pixels
    expected = (pixels / 255 - mean) / std
    expected = expected.transpose(2, 0, 1) if layout == "nchw" else expected
    np.testing.assert_allclose(first["image"][0], expected, rtol=1e-5, atol=1e-6)


def test_the_shorter_side_is_resized_and_the_centre_cropped():
    image = prepare(Image.new("RGB", (40, 20)), Preprocess(resize=10, crop=8))
    assert image.size == (8, 8)
    assert prepare(Image.new("RGB", (40, 20)), Preprocess(resize=10)).size == (20, 10)
    assert prepare(Image.new("RGB", (40, 20)), Preprocess(resize=(6, 7))).size == (7, 6)


def test_without_a_contract_what_is_assumed_is_said():
    contract, assumed = complete_preprocess(None, SPEC)
    assert contract.crop == (tiny.SIZE, tiny.SIZE)
    assert any("255" in text for text in assumed)
    gray, _ = complete_preprocess(None, SPEC.model_copy(update={"shape": (1, 28, 28, 1)}))
    assert (gray.color, gray.layout) == ("gray", "nhwc")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"color": "gray"}, "wrong channel count"),
        ({"crop": 8}, "makes images of 8×8"),
        ({"mean": (1.0, 2.0)}, "2 values for 3 channels"),
    ],
)
def test_a_contract_that_the_model_does_not_take(change, words):
    with pytest.raises(DataError, match=words):
        complete_preprocess(Preprocess(**change), SPEC)


def test_integer_inputs_get_plain_pixels(tmp_path):
    folder = tiny.save_images(tmp_path / "images", 1)
    spec = SPEC.model_copy(update={"dtype": "uint8"})
    contract, _ = complete_preprocess(None, spec)
    (only,) = ImageSamples(folder, spec, contract)
    np.testing.assert_array_equal(only["image"][0].transpose(1, 2, 0), np.asarray(Image.open(folder / "000.png")))


def test_labels_from_class_folders_and_from_a_table(tmp_path):
    for name in ("dog", "cat"):
        tiny.save_images(tmp_path / "images" / name, 2)
    files = find_images(tmp_path / "images")
    np.testing.assert_array_equal(read_labels(files, tmp_path / "images", None), [0, 0, 1, 1])
    table = tmp_path / "labels.csv"
    table.write_text(
        "file,class_index,name\n" + "".join(f"{f.relative_to(tmp_path)},{i},x\n" for i, f in enumerate(files))
    )
    np.testing.assert_array_equal(read_labels(files, tmp_path / "images", table), range(4))
    table.write_text("cat/000.png,5\n")
    with pytest.raises(DataError, match=r"no line for cat/001.png"):
        read_labels(files, tmp_path / "images", table)
    table.write_text("file,class_index\ncat/000.png,fish\n")
    with pytest.raises(DataError, match="file,class_index") as error:
        read_labels(files, tmp_path / "images", table)
    assert error.value.where == f"{table}:2"


def test_images_in_one_folder_have_no_labels(tmp_path):
    folder = tiny.save_images(tmp_path / "images")
    assert read_labels(find_images(folder), folder, None) is None


def test_a_digest_knows_contents_names_and_limit_and_no_place(tmp_path):
    a, b = tiny.save_images(tmp_path / "a"), tiny.save_images(tmp_path / "b")
    assert image_digest(a, None, None) == image_digest(b, None, None)
    assert image_digest(a, None, 2) != image_digest(a, None, None)
    (b / "000.png").rename(b / "zzz.png")
    assert image_digest(a, None, None) != image_digest(b, None, None)


# --- functions


def test_a_function_is_called_once_per_pass(tmp_path: Path):
    (tmp_path / "my_samples.py").write_text(
        "import numpy as np\n"
        "def some():\n"
        "    for i in range(4):\n"
        "        yield {'image': np.full((3, 12, 12), i, np.float32), 'labels': i}\n"
    )
    samples = CallableSamples("my_samples:some", tmp_path, [SPEC], limit=3)
    assert len(samples) == 3
    assert [float(feed["image"].max()) for feed in samples] == [0, 1, 2]
    np.testing.assert_array_equal(samples.labels, [0, 1, 2])
    assert callable_digest("my_samples:some", tmp_path, 3) != callable_digest("my_samples:some", tmp_path, 4)
    with pytest.raises(DataError, match="cannot be imported"):
        CallableSamples("my_samples:none", tmp_path, [SPEC])


# --- what is looked at before anything is built


def test_statistics_are_those_of_numpy(tmp_path):
    images = tiny.samples()
    stats = check(ArraySamples(tiny.save_samples(tmp_path / "a.npz"), [SPEC]), "calibration").stats
    found = stats.inputs["image"]
    assert stats.samples == 12
    assert (found.low, found.high) == (images.min(), images.max())
    assert found.mean == pytest.approx(images.mean(), rel=1e-5)
    assert found.std == pytest.approx(images.std(), rel=1e-4)
    assert not found.whole_numbers
    assert stats.warnings == ()


def test_identical_samples_are_warned_about(tmp_path):
    images = np.repeat(tiny.samples(1), 5, axis=0)
    stats = check(ArraySamples(tiny.save_samples(tmp_path / "a.npz", images), [SPEC]), "calibration").stats
    assert "identical" in stats.warnings[0]


def test_few_of_many(tmp_path):
    samples = ArraySamples(tiny.save_samples(tmp_path / "a.npz", labels=np.arange(12)), [SPEC])
    few = Few(samples, 3)
    assert len(list(few)) == len(few) == 3
    np.testing.assert_array_equal(few.labels, [0, 4, 8])


def test_evaluation_on_calibration_samples_is_warned_about(tmp_path):
    calibration = check(ArraySamples(tiny.save_samples(tmp_path / "a.npz"), [SPEC]), "calibration")
    mixed = np.concatenate([tiny.samples()[:2], tiny.samples(5, seed=9)])
    evaluation = check(ArraySamples(tiny.save_samples(tmp_path / "b.npz", mixed), [SPEC]), "evaluation")
    assert "2 of the 7" in evaluation.shared_with(calibration)
    other = check(ArraySamples(tiny.save_samples(tmp_path / "c.npz", mixed[2:]), [SPEC]), "evaluation")
    assert other.shared_with(calibration) is None
    mirrored = np.ascontiguousarray(tiny.samples()[..., ::-1])  # the same moments, other images
    other = check(ArraySamples(tiny.save_samples(tmp_path / "d.npz", mirrored), [SPEC]), "evaluation")
    assert other.shared_with(calibration) is None


def test_a_model_of_another_batch_size(tmp_path):
    spec = SPEC.model_copy(update={"shape": (4, *SPEC.shape[1:])})
    with pytest.raises(DataError, match="batches of 4"):
        ArraySamples(tiny.save_samples(tmp_path / "a.npz"), [spec])
    whole = tiny.save_samples(tmp_path / "b.npz", tiny.samples().reshape(3, 4, *SPEC.shape[1:]))
    assert [feed["image"].shape for feed in ArraySamples(whole, [spec])] == [spec.shape] * 3
