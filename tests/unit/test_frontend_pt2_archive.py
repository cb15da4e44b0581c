"""``.pt2`` archives that could run code are found without loading them; archives are made by hand, without torch."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import ModelError
from edgeopt.frontends.pt2_archive import refuse_what_runs_code

PROGRAM = {
    "graph_module": {"graph": {"nodes": [{"target": "torch.ops.aten.conv2d.default"}, {"target": "_operator.mul"}]}},
    "range_constraints": {"s0": {"min_val": 1}},
    "size": {"expr_str": "Max(1, 2*s0 + FloorDiv(Symbol('s1', positive=True, integer=True), 2))"},
}
CONFIG = {"config": {"conv.weight": {"path_name": "weight_0", "use_pickle": False}}}


def archive(folder: Path, **changed: bytes | None) -> Path:
    members: dict[str, bytes | None] = {
        "models/model.json": json.dumps(PROGRAM).encode(),
        "data/weights/model_weights_config.json": json.dumps(CONFIG).encode(),
        "data/weights/weight_0": b"\0" * 16,
        "data/sample_inputs/model.pt": pickle.dumps(OrderedDict(a=1), protocol=2),
        "archive_format": b"pt2",
        **changed,
    }
    path = folder / "net.pt2"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            if data is not None:
                file.writestr(f"net/{name}", data)
    return path


class Payload:
    def __reduce__(self) -> Any:
        return (os.system, ("true",))


def test_an_ordinary_archive_is_let_through(tmp_path: Path) -> None:
    refuse_what_runs_code(archive(tmp_path))


def program(**changed: Any) -> bytes:
    return json.dumps({**PROGRAM, **changed}).encode()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data/sample_inputs/model.pt": pickle.dumps(Payload(), protocol=2)}, "system"),
        ({"data/sample_inputs/model.pt": pickle.dumps(Payload(), protocol=5)}, "system"),
        ({"data/weights/model.pt": b"anything"}, "is a pickle"),
        ({"data/constants/model.pt": b"anything"}, "is a pickle"),
        ({"data/constants/custom_obj_0": b"anything"}, "pickled object"),
        ({"data/constants/opaque_obj_0": b"anything"}, "pickled object"),
        ({"data/aotinductor/model/x.so": b"anything"}, "compiled code"),
        (
            {"data/weights/model_weights_config.json": b'{"config": {"w": {"use_pickle": true}}}'},
            "stored as a pickle",
        ),
        ({"data/weights/model_weights_config.json": b'{"config": {"w": {}}}'}, "as a pickle"),
        ({"models/model.json": program(size={"expr_str": "__import__('os').system('true')"})}, "no arithmetic"),
        ({"models/model.json": program(size={"expr_str": "s0.__class__"})}, "no arithmetic"),
        ({"models/model.json": program(size={"expr_str": "Symbol('__import__')"})}, "no arithmetic"),
        ({"models/model.json": program(size={"expr_str": "[exit for s0 in (1,)]"})}, "no arithmetic"),
        ({"models/model.json": program(size={"expr_str": 3})}, "no arithmetic"),
        ({"models/model.json": program(range_constraints={"__import__('os')": {}})}, "no symbol"),
        ({"models/model.json": program(node={"target": "torch.hub.load"})}, "none of PyTorch's"),
        ({"models/model.json": program(node={"target": "torch.ops.load_library"})}, "none of PyTorch's"),
    ],
)  # fmt: skip
def test_what_could_run_is_refused(tmp_path: Path, changed: dict[str, bytes], words: str) -> None:
    with pytest.raises(ModelError, match="could run code") as caught:
        refuse_what_runs_code(archive(tmp_path, **changed))
    assert words in str(caught.value)
    assert "--trust" in str(caught.value)


def test_the_older_format_is_pickled(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("serialized_state_dict.pt", b"x")
    with pytest.raises(ModelError, match="older format"):
        refuse_what_runs_code(path)


def test_no_archive_at_all(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ModelError, match=r"no \.pt2 archive"):
        refuse_what_runs_code(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/readme", b"x")
    with pytest.raises(ModelError, match="no exported program"):
        refuse_what_runs_code(path)
