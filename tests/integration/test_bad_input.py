"""Bad input through the command line: the exit code, one message that says what, where and what to do, nothing left."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeopt.cli import run
from edgeopt.pipeline.store import OutOfSpace, open_store
from tests import tiny


class Cli:
    """One command line in this process, in a folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.out = folder / "out"
        self._capsys = capsys
        self.stdout = self.stderr = ""

    def __call__(self, *arguments: object) -> int:
        code = run([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        self.stdout, self.stderr = captured.out, captured.err
        return code

    def convert(self, *arguments: object) -> int:
        return self("convert", *arguments, "--out", self.out)

    def refused(self, *words: str) -> None:
        """One message with all of the words, and no output folder."""
        assert self.stderr.count("error: ") == 1, self.stderr
        assert "Traceback" not in self.stderr
        for word in words:
            assert word in self.stderr, self.stderr
        assert not self.out.exists()


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(tmp_path, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save_model(tmp_path / "model.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.save_samples(tmp_path / "samples.npz")


# --- models


def test_a_missing_model(cli, data):
    assert cli.convert("nowhere.onnx", "--calibration", data) == 2
    cli.refused("nowhere.onnx", "no such file")


def test_a_truncated_model(cli, model, data):
    model.write_bytes(model.read_bytes()[:-300])
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("model.onnx")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", bytes(range(256)) * 8])
def test_what_is_no_model(cli, data, content):
    (cli.folder / "model.onnx").write_bytes(content)
    assert cli.convert("model.onnx", "--calibration", data) == 2
    cli.refused("model.onnx")


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl", "model.onnx", "model.pt2", "model.npz"])
def test_a_pickle_that_runs_code(cli, data, name):
    (cli.folder / name).write_bytes(pickle.dumps(_Bomb()))
    assert cli.convert(name, "--calibration", data) in (2, 3)
    cli.refused(name)
    assert not (cli.folder / "pwned").exists()


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "Inf")])
def test_broken_weights_are_named(cli, data, value, word):
    arrays = tiny.weights()
    arrays["w2"][0, 0, 0, 0] = value
    model = tiny.save_model(cli.folder / "model.onnx", arrays=arrays)
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("w2", word)


def test_an_unsupported_operator_is_named(cli, data):
    model = tiny.save_model(cli.folder / "model.onnx", before="x = Det9 (image)")
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("Det9")


def test_an_open_size(cli, data):
    model = tiny.save_model(cli.folder / "model.onnx", shape="1,3,H,W")
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("image", "--input")


def test_a_wrong_input_name(cli, model, data):
    assert cli.convert(model, "--calibration", data, "--input", "imge=1,3,12,12") == 2
    cli.refused("imge", "Did you mean 'image'?")


def test_a_wrong_input_shape(cli, model, data):
    assert cli.convert(model, "--calibration", data, "--input", "image=1,3,8,8") == 2
    cli.refused("image")


# --- data


def test_int8_without_calibration_data(cli, model):
    assert cli.convert(model) == 2
    cli.refused("calibration")


def test_an_empty_folder(cli, model):
    (cli.folder / "images").mkdir()
    assert cli.convert(model, "--calibration", "images") == 2
    cli.refused("no images", "images")


def test_a_missing_folder(cli, model):
    assert cli.convert(model, "--calibration", "nowhere") == 2
    cli.refused("--calibration", "nowhere")


def test_unreadable_images_are_all_named(cli, model):
    folder = tiny.save_images(cli.folder / "images")
    (folder / "001.png").write_bytes(b"no image")
    whole = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(whole[: len(whole) // 2])
    assert cli.convert(model, "--calibration", folder) == 2
    cli.refused("2 of 6", "001.png", "003.png")


def test_one_image_is_warned_about(cli, model):
    folder = tiny.save_images(cli.folder / "images", 1)
    cli.convert(model, "--calibration", folder, "--target", "onnx")
    assert "warning" in cli.stderr
    assert "one calibration sample" in cli.stderr
    assert json.loads((cli.out / "report.json").read_text())["warnings"]


def test_constant_images(cli, model):
    data = tiny.save_samples(cli.folder / "flat.npz", np.full((5, 3, 12, 12), 0.5, np.float32))
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("constant", "flat.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(cli, model, value):
    images = tiny.samples()
    images[7, 1, 2, 3] = value
    data = tiny.save_samples(cli.folder / "samples.npz", images)
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("sample 7", "NaN" if np.isnan(value) else "infinite")


def test_a_wrong_channel_count_in_arrays(cli, model):
    data = tiny.save_samples(cli.folder / "gray.npz", np.random.default_rng(0).random((5, 1, 12, 12), np.float32))
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("channel", "gray.npz")


def test_a_wrong_channel_count_of_images(cli, model):
    folder = tiny.save_images(cli.folder / "images")
    assert cli.convert(model, "--calibration", folder, "--color", "gray") == 2
    cli.refused("channel count", "gray")


def test_arrays_in_the_other_layout(cli, model):
    data = tiny.save_samples(cli.folder / "nhwc.npz", tiny.samples().transpose(0, 2, 3, 1))
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("NHWC", "transpose")


def test_arrays_of_another_size(cli, model):
    data = tiny.save_samples(cli.folder / "small.npz", tiny.samples()[:, :, :8])
    assert cli.convert(model, "--calibration", data) == 2
    cli.refused("[3, 8, 12]", "[1, 3, 12, 12]")


def test_arrays_under_another_name(cli, model):
    np.savez(cli.folder / "samples.npz", picture=tiny.samples())
    assert cli.convert(model, "--calibration", "samples.npz") == 2
    cli.refused("'image'", "'picture'")


def test_pickled_arrays_are_never_loaded(cli, model):
    np.savez(cli.folder / "samples.npz", image=np.array([_Bomb()], object), allow_pickle=True)
    assert cli.convert(model, "--calibration", "samples.npz") == 2
    cli.refused("samples.npz", "pickled")
    assert not (cli.folder / "pwned").exists()


def test_an_archive_that_is_none(cli, model):
    (cli.folder / "samples.npz").write_bytes(b"PK\x03\x04 and no more")
    assert cli.convert(model, "--calibration", "samples.npz") == 2
    cli.refused("samples.npz")


def test_pixels_where_the_model_saw_less_are_warned_about_with_evidence(cli, model):
    data = tiny.save_samples(cli.folder / "pixels.npz", np.floor(tiny.samples() * 255.99))
    cli.convert(model, "--calibration", data, "--target", "onnx")
    assert "warning" in cli.stderr
    assert "0–255" in cli.stderr
    assert "times its bias" in cli.stderr


def test_no_warning_where_preprocessing_is_inside(cli):
    arrays = {**tiny.weights(), "scale": np.array(1 / 255, np.float32)}
    model = tiny.save_model(cli.folder / "model.onnx", arrays=arrays, before="x = Mul (image, scale)")
    data = tiny.save_samples(cli.folder / "pixels.npz", np.floor(tiny.samples() * 255.99))
    cli.convert(model, "--calibration", data, "--target", "onnx")
    assert "0–255" not in cli.stderr


# --- recipes

RECIPE = """\
edgeopt: 1
model: {onnx: model.onnx}
data:
  calibration: {arrays: samples.npz}
passes:
  - {use: quantize, scheme: int8}
targets:
  onnx: {}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  calibration:", "  calibraton:", ("recipe.yaml:4:3", "'calibraton'", "Did you mean 'calibration'?")),
        ("targets:", "target:", ("recipe.yaml:7:1", "'target'", "Did you mean 'targets'?")),
        ("  onnx: {}", "  onxx: {}", ("recipe.yaml:8:3", "target 'onxx'", "Did you mean 'onnx'?")),
        ("  onnx: {}", "  onnx: {opst: 17}", ("recipe.yaml:8:10", "'opst'", "Did you mean 'opset'?")),
        ("use: quantize", "use: quantise", ("recipe.yaml:6:", "pass 'quantise'", "Did you mean 'quantize'?")),
        ("scheme: int8", "schema: int8", ("recipe.yaml:6:", "'schema'", "Did you mean 'scheme'?")),
        ("scheme: int8", "scheme: int9", ("recipe.yaml:6:", "int9", "Did you mean 'int8'?")),
        ("edgeopt: 1", "edgeopt: 7", ("recipe.yaml:1:1", "version 7", "pip install --upgrade")),
        ("edgeopt: 1\n", "", ("recipe.yaml", "version", "edgeopt: 1")),
        ("edgeopt: 1", "edgeopt: one", ("recipe.yaml:1:1", "'one'")),
        ("{onnx: model.onnx}", "{onnx: modle.onnx}", ("recipe.yaml:2:9", "modle.onnx")),
        ("{onnx: model.onnx}", "{onnx: [1, 2]}", ("recipe.yaml:2:9", "path")),
        ("{onnx: model.onnx}", "{}", ("recipe.yaml:2:1", "exactly one of")),
        ("{arrays: samples.npz}", "{arrays: samples.npz, limit: many}", ("recipe.yaml:4:", "limit", "many")),
        ("data:", "data: [", ("recipe.yaml:", "YAML")),
        ("targets:\n  onnx: {}\n", "", ("recipe.yaml", "'targets' is missing")),
    ],
)
@pytest.mark.usefixtures("model", "data")
def test_a_wrong_recipe(cli, old, new, words):
    (cli.folder / "recipe.yaml").write_text(RECIPE.replace(old, new))
    assert cli.convert("recipe.yaml") == 2
    cli.refused(*words)


def test_the_recipe_of_these_tests_is_right(cli, model, data):
    (cli.folder / "recipe.yaml").write_text(RECIPE)
    assert cli.convert(".") == 0, cli.stderr


def test_an_unknown_target_on_the_command_line(cli, model, data):
    assert cli.convert(model, "--calibration", data, "--target", "onnx,tflight") == 2
    cli.refused("--target", "'tflight'", "Did you mean 'tflite'?")


def test_an_unknown_command_and_an_unknown_option(cli):
    assert cli("convrt") == 2
    cli.refused("convrt", "Did you mean 'convert'?")
    assert cli("convert", "--targt", "onnx") == 2
    cli.refused("--targt", "--target")


# --- output


def test_an_output_folder_that_holds_something_else(cli, model, data):
    cli.out.mkdir()
    (cli.out / "thesis.tex").write_text("mine")
    assert cli.convert(model, "--calibration", data) == 2
    assert "thesis.tex" in cli.stderr
    assert "--out" in cli.stderr
    assert [path.name for path in cli.out.iterdir()] == ["thesis.tex"]


def test_an_output_folder_that_is_a_file(cli, model, data):
    cli.out.write_text("mine")
    assert cli.convert(model, "--calibration", data) == 2
    assert "is a file" in cli.stderr
    assert cli.out.read_text() == "mine"


def test_a_read_only_output(cli, model, data):
    place = cli.folder / "locked"
    place.mkdir(mode=0o500)
    if os.access(place, os.W_OK):  # root may write anywhere but where the kernel itself says no
        place = Path("/proc/self")
    assert cli("convert", model, "--calibration", data, "--out", place / "out") == 2
    assert "cannot be written" in cli.stderr
    assert "--out" in cli.stderr


def test_a_broken_foreign_tflite_file(cli, data):
    broken = cli.folder / "foreign.tflite"
    broken.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(200))
    for command in (("inspect", broken), ("bench", broken), ("convert", broken, "--calibration", data)):
        assert cli(*command) in (2, 4), command
        assert "foreign.tflite" in cli.stderr
        assert "Traceback" not in cli.stderr
    assert cli("parity", broken, broken, "--data", data) == 2, cli.stderr


def test_errors_are_one_json_document_where_json_is_asked(cli, data):
    assert cli.convert("nowhere.onnx", "--calibration", data, "--json") == 2
    document = json.loads(cli.stdout)
    assert document["schema"] == "edgeopt.error/1"
    assert document["exit_code"] == 2
    assert "nowhere.onnx" in document["where"]


# --- a full disk


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))


def test_a_full_disk(tmp_path, model, data):
    """A limit on file sizes stands for it: the same calls fail in the same places."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgeopt", "convert", str(model), "--calibration", str(data), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=_small_files, timeout=120, check=False)
    assert done.returncode == 4, done.stderr
    assert "no space" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not out.exists()


def test_a_full_disk_keeps_what_was_trained(tmp_path):
    trained = tmp_path / "out" / ".edgeopt" / "unfinished" / "1-distill-key" / "train" / "checkpoint.safetensors"
    with pytest.raises(OutOfSpace), open_store(tmp_path / "out"):
        trained.parent.mkdir(parents=True)
        trained.touch()
        raise OSError(errno.ENOSPC, "no space left on device")
    assert trained.is_file()
