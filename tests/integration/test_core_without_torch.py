"""The core alone, in an interpreter that can see its declared dependencies and nothing else, converts an ONNX model."""

from __future__ import annotations

import json
import subprocess
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def dependencies(root: str) -> dict[str, Distribution]:
    """Everything that ``pip install root`` would bring, without extras; found in the metadata of what is installed."""
    found: dict[str, Distribution] = {}
    todo = [Requirement(root)]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        found[name] = distribution(name)
        for child in map(Requirement, found[name].requires or ()):
            extras = wanted.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(child)
    return found


def link(one: Distribution, site: Path) -> None:
    """Show ``one`` in ``site``: a symlink per file or package; folders without ``__init__.py`` are shared."""
    for file in one.files or ():
        if file.parts[0] == ".." or file.parts[0] == "__pycache__":
            continue
        source = Path(str(one.locate_file(file.parts[0])))
        depth = 1
        while source.is_dir() and not (source / "__init__.py").exists() and depth < len(file.parts):
            source /= file.parts[depth]
            depth += 1
        target = site.joinpath(*file.parts[:depth])
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(source)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter with edgeopt's core and nothing else: not even pip."""
    folder = tmp_path_factory.mktemp("core")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, one in dependencies("edgeopt").items():
        if name != "edgeopt":
            link(one, site)
    (site / "edgeopt").symlink_to(ROOT / "edgeopt")
    return folder / "bin" / "python"


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-I", *arguments], capture_output=True, text=True, timeout=300, check=False)


def edgeopt(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as its console script starts it."""
    return run(python, "-c", "import sys; from edgeopt.cli import main; sys.exit(main())", *arguments)


@pytest.mark.parametrize("name", ["torch", "tensorflow", "onnxscript", "nncf", "sklearn", "pytest"])
def test_the_environment_lacks(python, name):
    assert f"No module named '{name}'" in run(python, "-c", f"import {name}").stderr


def test_convert_works(python, tmp_path):
    model = tmp_path / "model.onnx"
    random = np.random.default_rng(0)
    weights = {
        "w1": random.normal(size=(8, 3, 3, 3)) / 4,
        "b1": random.normal(size=8),
        "w2": random.normal(size=(8, 1, 3, 3)) / 2,
        "w3": random.normal(size=(8, 4)),
    }
    net = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[1,3,16,16] image) => (float[1,4] logits) {
            c1 = Conv <pads = [1,1,1,1]> (image, w1, b1)
            a1 = Relu (c1)
            c2 = Conv <pads = [1,1,1,1], group = 8> (a1, w2)
            a2 = Relu (c2)
            p = GlobalAveragePool (a2)
            f = Flatten (p)
            logits = MatMul (f, w3)
        }
        """,
        initializers=[ir.tensor(array.astype(np.float32), name=name) for name, array in weights.items()],
    )
    ir.save(net, model)
    samples = tmp_path / "samples.npz"
    np.savez(samples, image=random.normal(size=(16, 3, 16, 16)).astype(np.float32))

    command = ["convert", str(model), "--target", "onnx,tflite", "--scheme", "int8", "--calibration", str(samples)]
    done = edgeopt(python, *command, "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {name: target["status"] for name, target in report["targets"].items()} == {"onnx": "ok", "tflite": "ok"}


def test_a_missing_extra_is_named(python, quickstart, tmp_path):
    done = edgeopt(python, "convert", str(quickstart), "--out", str(tmp_path / "out"))
    assert done.returncode == 3, done.stderr
    assert "pip install 'edgeopt[torch]'" in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
