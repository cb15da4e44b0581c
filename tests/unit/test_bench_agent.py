"""The agent stands alone: it runs without edgeopt, on an old Python, and says what is wrong."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeopt.bench import agent, receiver, remote
from edgeopt.bench.latency import Plan, Subject
from edgeopt.errors import ModelError
from tests import tiny
from tests.conftest import ROOT

TRAVELS = ("bench/agent.py", "bench/conditions.py", "bench/examine.py", "bench/receiver.py", "runtimes/trtexec.py")
YOUNGER = ("runtimes/onnxruntime.py", "runtimes/litert.py", "runtimes/tensorrt.py", "runtimes/tensorrt_python.py")


@pytest.mark.parametrize("name", TRAVELS)
def test_python_3_6_reads_it(name):
    """JetPack 4, of the Jetson Nano and TX2, has Python 3.6."""
    text = (ROOT / "edgeopt" / name).read_text()
    tree = ast.parse(text, feature_version=(3, 6))
    future = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert not future  # annotations came with 3.7


@pytest.mark.parametrize("name", YOUNGER)
def test_python_3_8_reads_runtimes(name):
    ast.parse((ROOT / "edgeopt" / name).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("name", [*TRAVELS, *YOUNGER])
def test_nothing_of_edgeopt_is_imported(name):
    for node in ast.walk(ast.parse((ROOT / "edgeopt" / name).read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [module for module in modules if module.startswith("edgeopt")]


def test_the_archive_holds_the_agent_and_its_runtime_only():
    with zipfile.ZipFile(io.BytesIO(remote.archive({"onnxruntime"}))) as archive:
        names = {name for name in archive.namelist() if not name.endswith("__init__.py")}
        ours = {"bench/agent.py", "bench/conditions.py", "bench/examine.py"}
        assert names == {"__main__.py", *ours, "runtimes/onnxruntime.py"}
        assert archive.read("bench/agent.py") == Path(agent.__file__).read_bytes()


def answer(folder: Path, request: dict, runtimes: set[str] | None = None) -> dict:
    """What the zipapp says, run as on a device: by Python alone, edgeopt out of reach."""
    (folder / "agent.pyz").write_bytes(remote.archive(runtimes or {"onnxruntime"}))
    (folder / "request.json").write_text(json.dumps(request))
    code = (
        "import runpy, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert not name.startswith('edgeopt'), name\n"
        "sys.meta_path.insert(0, Absent())\n"
        "sys.argv = ['agent.pyz', 'request.json']\n"
        "runpy.run_path('agent.pyz', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix(agent.PREFIX) for line in done.stdout.splitlines() if line.startswith(agent.PREFIX)]
    found: dict = json.loads(lines[-1])
    return found


def request_for(model: str, **changes) -> dict:
    plan = Plan(seconds=0.01, runs=10, warm_up_s=0.05, **changes)
    return plan.request((Subject("m", Path(model), "onnxruntime"),), {"m": model})


def test_the_zipapp_measures(tmp_path):
    tiny.save_model(tmp_path / "model.onnx")
    found = answer(tmp_path, request_for("model.onnx"))
    assert found["at"] == "result"
    (model,) = found["result"]["models"]
    assert sum(map(len, model["turns"])) >= 10
    assert all(ms > 0 for turn in model["turns"] for ms in turn)
    assert model["shapes"] == {"image": [1, 3, 12, 12]}


@pytest.mark.parametrize(
    ("shape", "changes", "kind"),
    [
        ("1,3,H,W", {}, "open_sizes"),
        ("1,3,12,12", {"batch": 4}, "batch"),
        ("1,3,12,12", {"inputs": {"picture": (1, 3, 12, 12)}}, "request"),
    ],
)
def test_the_zipapp_says_what_is_wrong(tmp_path, shape, changes, kind):
    tiny.save_model(tmp_path / "model.onnx", shape=shape)
    found = answer(tmp_path, request_for("model.onnx", **changes))
    assert (found["at"], found["kind"]) == ("problem", kind)
    assert found["machine"]["architecture"]


def test_a_runtime_that_is_not_in_the_archive_is_missing(tmp_path):
    tiny.save_model(tmp_path / "model.onnx")
    found = answer(tmp_path, request_for("model.onnx"), {"litert"})
    assert (found["kind"], found["detail"]) == ("missing_runtime", "onnxruntime")


def test_without_trtexec_the_archive_turns_to_tensorrts_python_api(tmp_path, monkeypatch):
    """A stand-in for the package; there is no GPU behind it, and that is what is said."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tiny.save_model(tmp_path / "model.onnx")
    (tmp_path / "tensorrt.py").write_text('__version__ = "10.3.0"')
    plan = Plan(seconds=0.01, runs=10)
    request = plan.request((Subject("m", Path("model.onnx"), "trtexec", unit="gpu"),), {"m": "model.onnx"})
    found = answer(tmp_path, request, {"trtexec"})
    assert (found["kind"], found["detail"]) == ("broken_runtime", "trtexec")
    first, _, second = found["text"].partition("; ")
    assert "no trtexec" in first
    assert "no GPU" in second or "the CUDA runtime is not here" in second
    (tmp_path / "tensorrt.py").unlink()
    found = answer(tmp_path, request, {"trtexec"})
    assert found["kind"] == "missing_runtime"
    assert "No module named 'tensorrt'" in found["text"]


@pytest.mark.parametrize(
    ("machine", "runtime", "line"),
    [
        (
            {"architecture": "aarch64", "word_bits": 64, "python": "3.11.2"},
            "onnxruntime",
            "pip install numpy onnxruntime",
        ),
        (
            {"architecture": "aarch64", "word_bits": 64, "python": "3.13.5"},
            "litert",
            "pip install numpy ai-edge-litert",
        ),
        ({"architecture": "aarch64", "word_bits": 64, "python": "3.8.10"}, "litert", "tflite-runtime"),
        ({"architecture": "armv7l", "word_bits": 32, "python": "3.11.2"}, "litert", "tflite-runtime"),
        ({"architecture": "armv7l", "word_bits": 32, "python": "3.11.2"}, "onnxruntime", "64-bit system"),
        ({"architecture": "aarch64", "word_bits": 32, "python": "3.11.2"}, "onnxruntime", "64-bit system"),
        ({"architecture": "x86_64", "word_bits": 64, "python": "3.11.2"}, "trtexec", "NVIDIA GPUs"),
        ({"architecture": "aarch64", "word_bits": 64, "python": "3.6.9"}, "litert", "need Python 3.8 or later"),
    ],
)
def test_how_to_install(machine, runtime, line):
    assert line in remote.how_to_install(runtime, {"board": None, **machine})
    jetson = {"board": "NVIDIA Jetson Orin Nano", **machine}
    assert "nvidia-jetpack" in remote.how_to_install("trtexec", jetson)


def test_external_data_travels_and_stays_in_its_folder(tmp_path):
    import onnx

    model = onnx.load(tiny.save_model(tmp_path / "model.onnx"))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
    assert set(remote.files_of(tmp_path / "big.onnx")) == {"big.onnx", "big.bin"}
    (tmp_path / "big.bin").unlink()
    with pytest.raises(ModelError, match=r"its data 'big.bin' is not beside it"):
        remote.files_of(tmp_path / "big.onnx")
    text = (tmp_path / "big.onnx").read_bytes().replace(b"big.bin", b"../data")
    (tmp_path / "out.onnx").write_bytes(text)
    (tmp_path.parent / "data").write_bytes(b"secret")
    with pytest.raises(ModelError, match="not beside it"):
        remote.files_of(tmp_path / "out.onnx")


def test_the_receiver_is_one_line_of_shell():
    from edgeopt.bench.ssh import BOOTSTRAP

    assert "\n" not in BOOTSTRAP
    assert not set("$`!'\\") & set(BOOTSTRAP)  # what sh, csh and fish read differently
    assert receiver.PREFIX == agent.PREFIX
