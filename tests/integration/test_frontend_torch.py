"""PyTorch modules through the worker process, to the canonical graph, and back beside the original."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import MissingPackage, ModelError
from edgeopt.frontends import Imported
from edgeopt.frontends.torch import load_exported, load_torch
from edgeopt.graph.model import serialise
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise
from edgeopt.runtimes.onnxruntime import Session
from tests.unit.canonical_form import assert_canonical, operators, random_feed

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

NET = """
import os, time
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.Hardswish()

    def forward(self, x):
        return x + self.act(self.norm(self.conv(x)))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.drop = nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, image, shift):
        print("this must not disturb the answers")
        x = self.blocks(self.stem(image) + shift)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return {"logits": self.head(self.drop(tokens.mean(1))), "map": torch.sigmoid(self.up(x))}

def build():
    torch.manual_seed(1)
    return Net().eval()

class Odd(nn.Module):
    def forward(self, x):
        y = x + 1
        return torch.linalg.svd(y)[1]

class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x

class Crash(nn.Module):
    def forward(self, x):
        os.write(2, b"the disk is on fire\\n")
        os.abort()

class Hang(nn.Module):
    def forward(self, x):
        time.sleep(60)

def odd(): return Odd().eval()
def branch(): return Branch().eval()
def crash(): return Crash().eval()
def hang(): return Hang().eval()
"""
INPUTS = {"image": (1, 3, 12, 12), "shift": (1, 8, 1, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe")
    (path / "usernet.py").write_text(NET)
    return path


@pytest.fixture(scope="module")
def imported(folder: Path) -> Imported:
    return load_torch("usernet:build", None, INPUTS, root=folder)


def assert_same_as_source(imported: Imported, scratch: Path) -> None:
    model = canonicalise(QuantizedGraph(imported.model), Context(scratch=scratch)).model
    assert_canonical(model)
    feeds = [random_feed(model, seed) for seed in range(2)]
    with Session(serialise(model)) as session:
        for feed, wanted in zip(feeds, imported.source.run(iter(feeds)), strict=True):
            got = session.run(feed)
            assert list(got) == list(wanted)
            for name, value in wanted.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


def test_a_module_becomes_the_canonical_graph_and_stays_the_same_function(imported: Imported, tmp_path: Path) -> None:
    assert [(spec.name, spec.shape) for spec in imported.signature.inputs] == list(INPUTS.items())
    assert [spec.name for spec in imported.signature.outputs] == ["logits", "map"]
    assert imported.kind == "torch"
    assert_same_as_source(imported, tmp_path)
    names = {node.name: node.op_type for node in imported.model.graph}
    assert names["blocks.0.conv"] == "Conv" and names["up"] == "ConvTranspose" and names["head"] == "Gemm"
    assert names["blocks.0.act/HardSwish"] == "HardSwish"
    assert operators(imported.model).count("Gemm") >= 3
    assert any(line.startswith("usernet.py:") and "self.head" in line for line in imported.where.values())


def test_an_operator_without_onnx_form_names_the_line_and_torch_stays_out_of_this_process(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgeopt.frontends.torch import load_torch\n"
        "try: load_torch('usernet:odd', None, {'x': (2, 2)}, root=Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print([m for m in ('torch', 'onnxscript', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "UnsupportedOperator" in done.stdout and "linalg_svd has no form in ONNX" in done.stdout
    assert "usernet.py:" in done.stdout and "torch.linalg.svd(y)[1]" in done.stdout


def test_a_forward_that_decides_by_values(folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot trace") as caught:
        load_torch("usernet:branch", None, {"x": (3,)}, root=folder)
    assert "if x.sum() > 0:" in str(caught.value)


def test_a_crash_says_the_last_words(folder: Path) -> None:
    with pytest.raises(ModelError, match="killed by signal 6") as caught:
        load_torch("usernet:crash", None, {"x": (3,)}, root=folder)
    assert "the disk is on fire" in str(caught.value)


def test_a_hang_ends(folder: Path) -> None:
    with pytest.raises(ModelError, match="did not answer within 3 s"):
        load_torch("usernet:hang", None, {"x": (3,)}, root=folder, limit_s=3.0)


def test_modules_named_as_the_standard_library_do_not_break_the_worker(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')\n")
    (tmp_path / "plain.py").write_text("import torch\ndef build(): return torch.nn.Linear(2, 2).double().eval()\n")
    with pytest.raises(ModelError, match="float64"):
        load_torch("plain:build", None, {"x": (1, 2)}, root=tmp_path)


def test_what_is_wrong_before_a_process_is_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no factory"):
        load_torch("usernet.build", None, INPUTS, root=folder)
    with pytest.raises(ModelError, match="no such file"):
        load_torch("usernet:build", folder / "weights.pth", INPUTS, root=folder)
    with pytest.raises(ModelError, match="leaves sizes open"):
        load_torch("usernet:build", None, {"image": (1, 3, -1, 8)}, root=folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="edgeopt\\[torch\\]"):
        load_torch("usernet:build", None, INPUTS, root=folder)


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.norm(self.conv(x)))


def exported(path: Path, training: bool = False) -> Path:
    batch = torch.export.Dim("batch", min=1, max=64)
    module = Small().train(training)
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def test_an_exported_program_is_loaded(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.pt2")
    imported = load_exported(path, inputs={"x": (3, 3, 8, 8)})
    assert imported.kind == "exported"
    assert imported.signature.outputs[0].shape == (3, 4, 6, 6)
    assert imported.model.graph.inputs[0].name == "x"
    assert_same_as_source(imported, tmp_path)


def test_an_exported_program_in_train_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="train mode: 'norm'"):
        load_exported(exported(tmp_path / "net.pt2", training=True))


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


def test_an_archive_with_a_payload_is_not_loaded_unless_trusted(tmp_path: Path) -> None:
    target = tmp_path / "made_by_the_payload"
    path, evil = exported(tmp_path / "net.pt2"), tmp_path / "evil.pt2"
    torch.save(((Payload(target),), {}), tmp_path / "inputs.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(evil, "w") as new:
        for name in old.namelist():
            data = (tmp_path / "inputs.pt").read_bytes() if "sample_inputs" in name else old.read(name)
            new.writestr(name.replace("net/", "evil/"), data)
    with pytest.raises(ModelError, match="could run code"):
        load_exported(evil)
    assert not target.exists()
    # that the payload is real: trusted, it runs (in the worker), whatever then becomes of the import
    with contextlib.suppress(ModelError):
        load_exported(evil, trust=True)
    assert target.exists()
