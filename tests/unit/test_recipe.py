"""Recipes: what is read, where paths start, what the command line changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt.cli.convert import read_request
from edgeopt.errors import RecipeError, UsageError
from edgeopt.passes.registry import PASSES
from edgeopt.recipe.load import did_you_mean, load_recipe, recipe_from
from edgeopt.targets.registry import TARGETS
from tests import tiny

TEXT = """\
edgeopt: 1
model: {onnx: nets/model.onnx, inputs: {image: [1, 3, 12, 12]}}
preprocess: {resize: 16, crop: 12, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
data:
  calibration: {arrays: samples.npz, limit: 5}
passes:
  - {use: quantize, scheme: int8, keep_float: ["head*"]}
targets:
  onnx: {opset: 17}
  tflite:
parity: {min_sqnr_db: 20}
labels: [cat, dog]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets").mkdir()
    tiny.save_model(tmp_path / "nets" / "model.onnx")
    tiny.save_samples(tmp_path / "samples.npz")
    (tmp_path / "recipe.yaml").write_text(TEXT)
    return tmp_path


def test_everything_is_typed_and_paths_start_at_the_recipe(folder):
    recipe = load_recipe(folder)
    assert recipe.model.onnx == folder / "nets" / "model.onnx"
    assert recipe.model.inputs == {"image": (1, 3, 12, 12)}
    assert recipe.data.calibration.arrays == folder / "samples.npz"
    assert recipe.passes[0].scheme == "int8"
    assert recipe.requested().keys() == {"onnx", "tflite"}
    assert recipe.requested()["onnx"].opset == 17
    assert recipe.class_names() == ("cat", "dog")


def test_every_registered_pass_and_target_is_a_part_of_recipes(folder):
    passes = [{"use": kind.model_fields["use"].default} for kind in PASSES]
    recipe = recipe_from(
        {"model": {"onnx": "nets/model.onnx"}, "targets": dict.fromkeys(TARGETS), "passes": passes}, {}, folder
    )
    assert [type(step) for step in recipe.passes] == list(PASSES)
    assert {name: type(target) for name, target in recipe.requested().items()} == dict(TARGETS)


def test_the_command_line_says_the_same_as_a_recipe(folder, monkeypatch):
    monkeypatch.chdir(folder)
    options = {
        "target": "onnx",
        "calibration": "samples.npz",
        "limit": 5,
        "mean": "0.5,0.5,0.5",
        "inputs": ("image=1,3,12,12",),
        "keep_float": ("head*",),
        "effort": "fast",
    }
    recipe, name = read_request(Path("nets/model.onnx"), options)
    assert name == "model"
    assert recipe.requested().keys() == {"onnx"}
    assert recipe.data.calibration.limit == 5
    assert recipe.preprocess.mean == (0.5, 0.5, 0.5)
    assert recipe.model.inputs == {"image": (1, 3, 12, 12)}
    assert recipe.passes[0].scheme == "int8"
    assert recipe.passes[0].keep_float == ("head*",)
    assert recipe.effort == "fast"


def test_options_change_a_recipe_and_leave_the_rest(folder):
    recipe, name = read_request(folder, {"target": "onnx", "scheme": "fp16", "min_top1_agreement": 0.9})
    assert name == folder.name
    assert recipe.requested()["onnx"].opset == 17
    assert recipe.passes[0].scheme == "fp16"
    assert recipe.passes[0].keep_float == ("head*",)
    assert (recipe.parity.min_sqnr_db, recipe.parity.min_top1_agreement) == (20, 0.9)


def test_class_names_from_a_file(folder):
    (folder / "names.txt").write_text("cat\ndog\n\n")
    (folder / "recipe.yaml").write_text(TEXT.replace("[cat, dog]", "names.txt"))
    assert load_recipe(folder).class_names() == ("cat", "dog")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{onnx: nets/model.onnx,", "{factory: build,", "module:function"),
        ("{onnx: nets/model.onnx,", "{onnx: nets,", "is a folder"),
        ("inputs: {image: [1, 3, 12, 12]}", "inputs: {image: [1, 3, 0, 12]}", "model.inputs.image.2"),
        ("arrays: samples.npz", "arrays: samples.npz, images: nets", "exactly one"),
        ("arrays: samples.npz", "arrays: samples.npz, labels: recipe.yaml", "'labels' is for 'images'"),
        ("min_sqnr_db: 20", "min_top1_agreement: 98", "min_top1_agreement"),
        ("onnx: {opset: 17}", "onnx: 17", "onnx"),
        ("edgeopt: 1", "edgeopt: true", "no recipe version"),
        ("edgeopt: 1\n", "edgeopt: 1\nedgeopt: 1\n", "YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(folder, old, new, words):
    assert old in TEXT
    (folder / "recipe.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(RecipeError, match=words) as error:
        load_recipe(folder)
    assert str(error.value.where).startswith(f"{folder / 'recipe.yaml'}:")


@pytest.mark.parametrize("options", [{"inputs": ("image",)}, {"mean": "a,b"}, {"inputs": ("image=1,x",)}])
def test_options_that_say_nothing(folder, options):
    with pytest.raises(UsageError):
        read_request(folder / "nets" / "model.onnx", options)


def test_the_nearest_word_or_all_of_them():
    assert did_you_mean("tflight", ["onnx", "tflite"]) == "Did you mean 'tflite'?"
    assert did_you_mean("zebra", ["onnx", "tflite"]) == "Known here: onnx, tflite."
