"""What the worker refuses of a user's module and weights; run here without the worker, for speed."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import ModelError

torch = pytest.importorskip("torch", reason="torch is not installed")

from edgeopt.frontends.torch_loading import Loaded  # noqa: E402

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x, shift=None):
        y = self.norm(self.conv(x))
        return y if shift is None else y + shift

def build():
    return Net().eval()
"""
COUNT = itertools.count()


def request(folder: Path, extra: str = "", function: str = "build", **options: Any) -> dict[str, Any]:
    name = f"user_net_{next(COUNT)}"
    (folder / f"{name}.py").write_text(NET + extra)
    return {"factory": f"{name}:{function}", "root": str(folder), "inputs": {"x": [1, 3, 8, 8]}, **options}


def refusal(asked: dict[str, Any]) -> str:
    with pytest.raises(ModelError) as caught:
        Loaded(asked)
    return str(caught.value)


class Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_are_loaded_from_pth(tmp_path: Path, wrapped: bool) -> None:
    asked = request(tmp_path)
    state = {name: torch.full_like(value, 0.25) for name, value in Loaded(asked).module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "w.pth")
    loaded = Loaded({**asked, "weights": str(tmp_path / "w.pth")})
    assert bool((loaded.module.conv.weight == 0.25).all())


def test_weights_are_loaded_from_safetensors_and_data_parallel(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    asked = request(tmp_path)
    state = {f"module.{name}": torch.full_like(v, 2) for name, v in Loaded(asked).module.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = Loaded({**asked, "weights": str(tmp_path / "w.safetensors")})
    assert bool((loaded.module.norm.weight == 2).all())


@pytest.mark.parametrize("place", ["alone", "in state_dict"])
def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path, place: str) -> None:
    target = tmp_path / "made_by_the_payload"
    evil: Any = Payload(target)
    torch.save(evil if place == "alone" else {"state_dict": {"conv.weight": evil}}, tmp_path / "w.pth")
    message = refusal(request(tmp_path, weights=str(tmp_path / "w.pth")))
    assert "would run code" in message and "safetensors" in message
    assert not target.exists()


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    asked = request(tmp_path)
    state = Loaded(asked).module.state_dict()
    state["head.weight"] = state.pop("conv.weight")
    state["conv.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "w.pth")
    message = refusal({**asked, "weights": str(tmp_path / "w.pth")})
    assert "missing 'conv.weight'" in message
    assert "unexpected 'head.weight'" in message
    assert "conv.bias: [7] in the file, [4] in the model" in message


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut"])
def test_weights_that_are_none(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(request(tmp_path, weights=str(tmp_path / name)))


def test_broken_weights_are_named(tmp_path: Path) -> None:
    extra = "\ndef broken():\n    net = build()\n    net.conv.weight.data[0, 0, 0, 0] = float('nan')\n    return net\n"
    assert "weight 'conv.weight' holds NaN: 1 of 108" in refusal(request(tmp_path, extra, "broken"))


def test_train_mode_names_the_modules(tmp_path: Path) -> None:
    assert "train mode: 'Net', 'conv', 'norm'" in refusal(request(tmp_path, "\ndef train(): return Net()\n", "train"))
    extra = "\ndef half():\n    net = build()\n    net.norm.train()\n    return net\n"
    assert "train mode: 'norm'" in refusal(request(tmp_path, extra, "half"))


def test_float64_and_complex_modules_are_refused(tmp_path: Path) -> None:
    extra = """
def wide(): return build().double()
def odd():
    net = build()
    net.register_buffer('k', torch.ones(1, dtype=torch.complex64))
    return net
"""
    assert "float64" in refusal(request(tmp_path, extra, "wide"))
    assert "complex64" in refusal(request(tmp_path, extra, "odd"))


@pytest.mark.parametrize(
    ("extra", "function", "words"),
    [
        ("", "biuld", "Did you mean 'build'"),
        ("\ndef fails(): raise OSError('no such disk')\n", "fails", "no such disk"),
        ("\ndef number(): return 3\n", "number", "returns a int"),
        ("\nimport nowhere_to_be_found\n", "build", "not installed"),
        ("\nraise SyntaxError('bad')\n", "build", "cannot be imported"),
    ],
)
def test_factories_that_do_not_work(tmp_path: Path, extra: str, function: str, words: str) -> None:
    assert words in refusal(request(tmp_path, extra, function))


def test_a_missing_module_says_where_it_was_looked_for(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal({"factory": "no_such_net:build", "root": str(tmp_path), "inputs": {"x": [1]}})


def test_inputs_are_named_after_parameters_or_ordered(tmp_path: Path) -> None:
    by_name = Loaded(request(tmp_path, inputs={"shift": [1, 4, 1, 1], "x": [1, 3, 8, 8]}))
    assert list(by_name.inputs) == ["x", "shift"]
    ordered = Loaded(request(tmp_path, inputs={"image": [1, 3, 8, 8], "offset": [1, 4, 1, 1]}))
    assert list(ordered.inputs) == ["image", "offset"]
    assert "no parameter 'shfit'" in refusal(request(tmp_path, inputs={"x": [1, 3, 8, 8], "shfit": [1, 4, 1, 1]}))


def test_sizes_left_open(tmp_path: Path) -> None:
    assert "no shape is given for 'x'" in refusal(request(tmp_path, inputs={"shift": [1, 4, 1, 1]}))
    assert "sizes are left open" in refusal(request(tmp_path, inputs={}))


def test_shapes_the_module_does_not_take(tmp_path: Path) -> None:
    message = refusal(request(tmp_path, inputs={"x": [1, 5, 8, 8]}))
    assert "fails on inputs of these shapes" in message and "x [1, 5, 8, 8]" in message
    assert "user_net_" in message  # the user's own file and line


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        ("y", ["output"]),
        ("(y, y + 1)", ["output_0", "output_1"]),
        ("{'boxes': y, 'scores': y + 1}", ["boxes", "scores"]),
        ("{'x': y}", ["x_2"]),
        ("[y, {'a': y}]", ["output_0", "output_1_a"]),
    ],
)
def test_outputs_have_names(tmp_path: Path, returned: str, names: list[str]) -> None:
    extra = f"""
class Out(Net):
    def forward(self, x):
        y = self.conv(x)
        return {returned}
def out(): return Out().eval()
"""
    assert Loaded(request(tmp_path, extra, "out")).outputs == names


def test_an_exported_program_names_its_outputs_as_a_run_would(tmp_path: Path) -> None:
    extra = """
class Out(Net):
    def forward(self, x):
        y = self.conv(x)
        return y, {'a': y + 1, 'x': x}
def out(): return Out().eval()
"""
    loaded = Loaded(request(tmp_path, extra, "out"))
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(loaded.module, (torch.zeros(1, 3, 8, 8),)), path)
    exported = Loaded({"exported": str(path), "inputs": {}})
    assert exported.outputs == loaded.outputs == ["output_0", "output_1_a", "output_1_x"]
    assert set(exported.run({"x": torch.ones(1, 3, 8, 8)})) == set(loaded.outputs)


def test_outputs_that_are_no_tensors(tmp_path: Path) -> None:
    extra = "\nclass Out(Net):\n    def forward(self, x): return x, 'text'\ndef out(): return Out().eval()\n"
    assert "returns a str" in refusal(request(tmp_path, extra, "out"))


def test_running_gives_arrays_by_name(tmp_path: Path) -> None:
    loaded = Loaded(request(tmp_path))
    result = loaded.run({"x": torch.ones(1, 3, 8, 8)})
    assert {name: value.shape for name, value in result.items()} == {"output": (1, 4, 6, 6)}
    assert result["output"].dtype == np.float32
