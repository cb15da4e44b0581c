"""The gate on a real segmentation task: which pixels of a noisy scene are a digit's ink; judged by mIoU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ruamel.yaml import YAML

from edgeopt.cli import run as edgeopt

SIZE = 16


def scenes(digits: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits [n, 1, 8, 8] at random places on noise: images [count, 1, 16, 16] and masks [count, 16, 16], 1: ink."""
    random = np.random.default_rng(seed)
    images = random.random((count, 1, SIZE, SIZE), np.float32) / 2
    masks = np.zeros((count, SIZE, SIZE), np.uint8)
    for image, mask in zip(images[:, 0], masks, strict=True):
        row, column = random.integers(0, SIZE - 7, 2)
        digit = digits[random.integers(len(digits)), 0]
        place = np.s_[row : row + 8, column : column + 8]
        image[place] = np.where(digit > 0.3, digit, image[place])
        mask[place] = digit > 0.3
    return images, masks


def train(images: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Weights of conv 3×3, conv 3×3, conv 1×1, trained for a second."""
    import torch
    from torch.nn import Conv2d, ReLU, Sequential
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    net = Sequential(Conv2d(1, 8, 3, padding=1), ReLU(), Conv2d(8, 8, 3, padding=1), ReLU(), Conv2d(8, 2, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        chosen = torch.randint(0, len(images), (64,))
        optimizer.zero_grad()
        loss = cross_entropy(net(torch.from_numpy(images)[chosen]), torch.from_numpy(masks).long()[chosen])
        loss.backward()
        optimizer.step()
    return {name: value.detach().numpy() for name, value in net.named_parameters()}


def save(weights: dict[str, np.ndarray], path: Path) -> None:
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        ink (float[1,1,{SIZE},{SIZE}] image) => (float[1,2,{SIZE},{SIZE}] scores) {{
            c1 = Conv <pads = [1,1,1,1]> (image, w0, b0)
            a1 = Relu (c1)
            c2 = Conv <pads = [1,1,1,1]> (a1, w2, b2)
            a2 = Relu (c2)
            scores = Conv (a2, w4, b4)
        }}
        """
    tensors = [
        ir.tensor(array, name=("w" if name.endswith("weight") else "b") + name[0]) for name, array in weights.items()
    ]
    ir.save(ir.from_onnx_text(text, initializers=tensors), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quickstart) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    with np.load(quickstart / "calibration.npz") as a, np.load(quickstart / "evaluation.npz") as b:
        images, masks = scenes(a["image"], 300, 0)
        unseen, truth = scenes(b["image"], 60, 1)
    save(train(images, masks), folder / "model.onnx")
    np.savez(folder / "calibration.npz", image=images[:100])
    np.savez(folder / "evaluation.npz", image=unseen)
    np.savez(folder / "truth.npz", masks=truth)
    recipe = {
        "edgeopt": 1,
        "model": {"onnx": "model.onnx"},
        "data": {"calibration": {"arrays": "calibration.npz"}, "evaluation": {"arrays": "evaluation.npz"}},
        "passes": [{"use": "quantize", "scheme": "int8"}],
        "targets": {"onnx": {}, "tflite": {}},
        "effort": "fast",
    }
    YAML().dump(recipe, folder / "recipe.yaml")
    (folder / "policy.yaml").write_text(
        "metric: {name: miou, truth: truth.npz, max_drop: 0.02}\nskip: [calibration-data, parity-conversion]\n"
    )
    assert edgeopt(["convert", str(folder), "--out", str(folder / "out")]) == 0
    return folder


def test_a_segmentation_is_judged_by_its_miou(folder, capsys):
    capsys.readouterr()
    assert edgeopt(["gate", str(folder / "out"), "--policy", str(folder / "policy.yaml"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for name in ("onnx", "tflite"):
        metric = result["evidence"][name]["metric"]
        assert metric["name"] == "mIoU"
        assert metric["samples"] == 60
        assert metric["float"]["value"] > 0.85
        assert metric["drop"]["low"] <= metric["drop"]["value"] <= metric["drop"]["high"] < 0.02


def test_a_file_that_takes_ink_for_paper_fails(folder, tmp_path, capsys):
    """Its last layer's channels exchanged, in one of the two files."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = ir.load(copy / "out" / "onnx" / "model.onnx")
    last = next(node for node in reversed(list(model.graph)) if node.op_type == "Conv")
    for stored in (value.producer().inputs[0] for value in last.inputs[1:]):
        stored.const_value = ir.tensor(np.flip(stored.const_value.numpy(), 0).copy(), name=stored.name)
    ir.save(model, copy / "out" / "onnx" / "model.onnx")
    capsys.readouterr()
    assert edgeopt(["gate", str(copy / "out"), "--policy", str(copy / "policy.yaml"), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    failed = {(check["id"], check["target"]) for check in result["checks"] if check["verdict"] == "fail"}
    assert ("task-metric", "onnx") in failed
    assert ("task-metric", "tflite") not in failed
    assert result["evidence"]["onnx"]["metric"]["target"]["value"] < 0.2
