"""Measuring on a device over a real sshd: what comes back, what can go wrong, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import psutil
import pytest

from edgeopt.bench import remote
from edgeopt.bench.latency import Plan, subject_of
from edgeopt.bench.ssh import BOOTSTRAP, Connection
from edgeopt.cli import run
from edgeopt.errors import DeviceUnreachable, EdgeoptError, ModelError, SetupError
from tests import tiny
from tests.integration import sshd

pytestmark = pytest.mark.needs("sshd", "ssh", "ssh-keygen")

QUICK = Plan(seconds=0.02, runs=10, warm_up_s=0.05)
LONG = Plan(seconds=300, runs=10, warm_up_s=0.05)
SITE = str(Path(np.__file__).parents[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    server = sshd.start(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """The device's folder for scratch folders; it has to be empty in the end, whatever happened."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert becomes(lambda: not list(folder.iterdir())), [str(path) for path in folder.rglob("*")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model") / "model.onnx")


def becomes(condition: Callable[[], Any], patience_s: float = 60) -> bool:
    end = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def python(folder: Path, *options: str, **environment: str) -> str:
    """A Python on the device with an environment of its own."""
    script = folder / "python"
    settings = " ".join(f"{name}='{value}'" for name, value in environment.items())
    script.write_text(f'#!/bin/sh\nexec env {settings} {sys.executable} {" ".join(options)} "$@"\n')
    script.chmod(0o755)
    return str(script)


def with_runtimes(folder: Path) -> str:
    """As a board has it: numpy and runtimes, and nothing of edgeopt."""
    packages = folder / "packages"
    packages.mkdir()
    for name in ("numpy", "numpy.libs", "onnxruntime", "ai_edge_litert", "flatbuffers", "ml_dtypes"):
        if (Path(SITE) / name).exists():
            (packages / name).symlink_to(Path(SITE) / name)
    return python(folder, "-S", PYTHONPATH=str(packages))


def processes(part: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(part in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def call() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, errors


def test_what_comes_back_is_what_a_local_run_gives(server, scratch, model, tmp_path):
    found = remote.measure_on(server.connection(scratch, with_runtimes(tmp_path)), (subject_of(model),), QUICK)
    (result,) = found.results
    assert result.device == server.url()
    assert result.runtime == "onnxruntime"
    assert result.kind == "measured"
    assert 0 < result.latency_ms.low <= result.latency_ms.p50 <= result.latency_ms.high
    assert result.memory_mb is not None
    assert result.memory_mb > 0
    assert result.conditions is not None
    assert result.conditions.runs >= 10


def test_command_line_over_ssh(server, scratch, model, tmp_path, capsys):
    there = [
        *("--on", server.url(scratch)),
        *("--ssh-config", str(server.config)),
        *("--python", with_runtimes(tmp_path)),
    ]
    quick = ["--seconds", "0.02", "--runs", "10", "--warm-up", "0.05", "--profile"]
    assert run(["bench", str(model), *there, *quick, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["device"] == server.url()
    assert {operator["op"] for operator in result["profile"]["operators"]} >= {"Conv"}
    assert result["profile"]["kind"] == "measured"


def test_doctor_says_what_a_board_has_and_lacks(server, scratch, tmp_path, capsys):
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("numpy", "numpy.libs", "onnxruntime"):
        if (Path(SITE) / name).exists():
            (packages / name).symlink_to(Path(SITE) / name)
    there = ["--on", server.url(scratch), "--ssh-config", str(server.config)]
    bare = python(tmp_path, "-S", PYTHONPATH=str(packages))
    assert run(["doctor", *there, "--python", bare, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runtimes"]["ONNX Runtime"] is True
    assert found["runtimes"]["LiteRT"] is False
    assert "ai-edge-litert" in found["lacks"]["LiteRT"]
    assert found["machine"]["cores"] == os.cpu_count()
    assert run(["doctor", *there, "--python", python(tmp_path, "-S")]) == 3
    shown = capsys.readouterr().out
    assert "pip install numpy onnxruntime" in shown


def test_a_missing_runtime_comes_with_the_line_that_installs_it(server, scratch, model, tmp_path):
    with pytest.raises(SetupError, match="ONNX Runtime is not installed on the device") as caught:
        remote.measure_on(server.connection(scratch, python(tmp_path, "-S")), (subject_of(model),), QUICK)
    assert "~/.edgeopt/bin/pip install numpy onnxruntime" in str(caught.value.hint)


def test_a_runtime_for_another_processor(server, scratch, model, tmp_path):
    package = tmp_path / "packages" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from onnxruntime import native\n")
    elf = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9) + struct.pack("<HHI", 3, 40, 1) + bytes(64)  # 32 bits, Arm
    (package / "native.so").write_bytes(elf)
    wrong = python(tmp_path, "-S", PYTHONPATH=f"{tmp_path}/packages:{SITE}")
    with pytest.raises(SetupError, match="built for another processor"):
        remote.measure_on(server.connection(scratch, wrong), (subject_of(model),), QUICK)


def test_a_model_that_the_runtime_refuses(server, scratch, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(tiny.save_model(tmp_path / "model.onnx").read_bytes().replace(b"Relu", b"Rolu"))
    with pytest.raises(ModelError, match="Rolu"):
        remote.measure_on(server.connection(scratch, sys.executable), (subject_of(broken),), QUICK)


def test_an_interrupted_transfer(server, scratch, tmp_path):
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(8 << 30)  # sparse: more than can be sent until somebody looks
    connection = server.connection(scratch, sys.executable)
    thread, errors = in_background(lambda: connection.run({"big": big}, ["-c", ""], limit_s=120))
    assert becomes(lambda: list(scratch.rglob("big")))
    (client,) = [child for child in psutil.Process().children() if child.name() == "ssh"]
    client.kill()
    thread.join()
    assert isinstance(errors[0], DeviceUnreachable)
    assert "while files were sent" in str(errors[0])


def test_a_client_that_dies_while_it_sends(server, scratch):
    """Nobody is left to tidy up but the device itself."""
    connection = server.connection(scratch, sys.executable)
    header = {"folder": "edgeopt-x", "scratch": str(scratch), "files": [["f", 10**7]], "command": [], "python": None}
    with subprocess.Popen(connection.command(BOOTSTRAP), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin is not None
        client.stdin.write(receiver_line() + json.dumps(header).encode() + b"\n" + bytes(10**6))
        client.stdin.flush()
        assert becomes(lambda: list(scratch.rglob("f")))
        client.kill()
    assert becomes(lambda: not list(scratch.iterdir()))


def receiver_line() -> bytes:
    import base64

    from edgeopt.bench import receiver

    return base64.b64encode(Path(receiver.__file__).read_bytes()) + b"\n"


def test_a_killed_agent(server, scratch, model):
    connection = server.connection(scratch, sys.executable)
    thread, errors = in_background(lambda: remote.measure_on(connection, (subject_of(model),), LONG))
    assert becomes(lambda: processes(remote.ARCHIVE))
    for process in processes(remote.ARCHIVE):
        process.kill()
    thread.join()
    assert "ended on the device by signal SIGKILL" in str(errors[0])
    assert "memory" in str(errors[0])


def test_a_killed_receiver_takes_the_agent_along(server, scratch, model):
    connection = server.connection(scratch, sys.executable)
    thread, errors = in_background(lambda: remote.measure_on(connection, (subject_of(model),), LONG))
    assert becomes(lambda: processes(remote.ARCHIVE))
    (agent,) = [process for process in processes(remote.ARCHIVE) if "receiver" not in process.name()][:1]
    parent = agent.parent()
    assert parent is not None
    while parent is not None and remote.ARCHIVE in " ".join(parent.cmdline()):
        parent = parent.parent()
    assert parent is not None
    parent.kill()
    thread.join()
    assert isinstance(errors[0], DeviceUnreachable)
    assert becomes(lambda: not processes(remote.ARCHIVE))


def test_a_lost_connection_ends_the_agent(server, scratch, model):
    connection = server.connection(scratch, sys.executable)
    thread, errors = in_background(lambda: remote.measure_on(connection, (subject_of(model),), LONG))
    assert becomes(lambda: processes(remote.ARCHIVE))
    for child in psutil.Process().children():
        if child.name() == "ssh":
            child.kill()
    thread.join()
    assert isinstance(errors[0], DeviceUnreachable)
    assert "while it worked" in str(errors[0])
    assert becomes(lambda: not processes(remote.ARCHIVE))


def test_too_slow_is_given_up(server, scratch, model):
    with pytest.raises(EdgeoptError, match="gave up after 5 s"):
        remote.measure_on(server.connection(scratch, sys.executable), (subject_of(model),), LONG, limit_s=5)
    assert becomes(lambda: not processes(remote.ARCHIVE))


def test_interrupted_here(server, scratch, model):
    """Ctrl-C: the command ends with 130, and the device is tidy."""
    arguments = [*("--on", server.url(scratch)), *("--ssh-config", str(server.config)), *("--python", sys.executable)]
    with subprocess.Popen(
        [sys.executable, "-m", "edgeopt", "bench", str(model), *arguments, "--seconds", "300"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as client:
        assert becomes(lambda: processes(remote.ARCHIVE))
        client.send_signal(2)
        assert client.wait(60) == 130
    assert becomes(lambda: not processes(remote.ARCHIVE))


@pytest.mark.parametrize(
    ("forced", "message", "kind"),
    [
        ('ulimit -f 8; eval "$SSH_ORIGINAL_COMMAND"', "has no room for it", SetupError),
        ('PATH=/nowhere; eval "$SSH_ORIGINAL_COMMAND"', "has no python3", SetupError),
        ("exit 3", "ended at once with code 3", DeviceUnreachable),
    ],
    ids=["full disk", "no python", "no shell"],
)
def test_devices_that_lack_something(tmp_path, scratch, model, forced, message, kind):
    folder = tmp_path / "own-sshd"
    folder.mkdir()
    server = sshd.start(folder, f"ForceCommand {forced}")
    try:
        with pytest.raises(kind, match=message):
            remote.measure_on(server.connection(scratch, sys.executable), (subject_of(model),), QUICK)
    finally:
        server.stop()


def test_a_login_shell_that_talks(tmp_path, scratch, model):
    folder = tmp_path / "own-sshd"
    folder.mkdir()
    server = sshd.start(folder, 'ForceCommand echo "Welcome!"; eval "$SSH_ORIGINAL_COMMAND"')
    try:
        found = remote.measure_on(server.connection(scratch, sys.executable), (subject_of(model),), QUICK)
        assert found.results[0].kind == "measured"
    finally:
        server.stop()


def test_an_unknown_host_key_is_refused(server, scratch, model, tmp_path):
    config = tmp_path / "ssh_config"
    known = server.config.read_text().replace(f"{server.folder}/known_hosts", str(tmp_path / "none"))
    config.write_text(known + "StrictHostKeyChecking no\n")  # whoever asks for it does not get it here
    connection = Connection(server.connection(scratch).address, config)
    with pytest.raises(DeviceUnreachable, match="Host key verification failed") as caught:
        remote.measure_on(connection, (subject_of(model),), QUICK)
    assert "check the key" in str(caught.value.hint)
    assert not (tmp_path / "none").exists()


def test_a_key_that_the_device_does_not_know(server, scratch, model, tmp_path):
    config = tmp_path / "ssh_config"
    other = sshd.key(tmp_path / "other")
    config.write_text(server.config.read_text().replace(f"{server.folder}/user_key", str(other)))
    connection = Connection(server.connection(scratch).address, config)
    with pytest.raises(DeviceUnreachable, match="Permission denied") as caught:
        remote.measure_on(connection, (subject_of(model),), QUICK)
    assert "ssh-copy-id" in str(caught.value.hint)


def test_nobody_answers(model, capsys):
    assert run(["bench", str(model), "--on", f"ssh://nobody@127.0.0.1:{sshd.free_port()}"]) == 3
    assert "Connection refused" in capsys.readouterr().err


def test_a_folder_that_is_not_there(server, model, tmp_path):
    with pytest.raises(SetupError, match="no scratch folder") as caught:
        remote.measure_on(server.connection(tmp_path / "absent", sys.executable), (subject_of(model),), QUICK)
    assert "ssh://user@host/folder" in str(caught.value.hint)


TRTEXEC = '''#!{python}
"""Stands in for trtexec: takes its options, writes its files. Its times are made up and prove nothing of TensorRT."""
import json, sys
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] #", *sys.argv)
if "help" in options:
    print("  --stronglyTyped  Create a strongly typed network.\\n  --skipInference  Exit after the build")
elif "onnx" in options:
    if b"Conv" not in open(options["onnx"], "rb").read():
        print("[E] [TRT] ModelImporter.cpp: ERROR: no network in it"); sys.exit(1)
    assert "stronglyTyped" in options and "skipInference" in options, options
    open(options["saveEngine"], "wb").write(b"engine")
else:
    assert open(options["loadEngine"], "rb").read() == b"engine"
    if "exportTimes" in options:
        runs = [{{"startComputeMs": i, "latencyMs": 2 + i % 5 / 100}} for i in range(int(options["iterations"]))]
        json.dump(runs, open(options["exportTimes"], "w"))
    if "exportProfile" in options:
        layers = [{{"name": name, "averageMs": ms}} for name, ms in (("conv1", 0.3), ("fc", 0.9))]
        json.dump([{{"count": 100}}, *layers], open(options["exportProfile"], "w"))
'''


@pytest.fixture
def jetson(tmp_path):
    """A Python on the device beside a stand-in for trtexec."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "trtexec").write_text(TRTEXEC.format(python=sys.executable))
    (programs / "trtexec").chmod(0o755)
    return python(tmp_path, "-S", PATH=f"{programs}:{os.environ['PATH']}")


def test_a_tensorrt_bundle_is_built_and_timed_there(server, scratch, model, tmp_path, jetson, capsys):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copy(model, bundle / "model.onnx")
    (bundle / "build.sh").write_text("trtexec --onnx=model.onnx\n")
    there = [*("--on", server.url(scratch)), *("--ssh-config", str(server.config)), *("--python", jetson)]
    assert run(["bench", str(bundle), *there, "--profile", "--json", "--device", "here"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["runtime"], result["compute_unit"], result["threads"]) == ("tensorrt", "gpu", None)
    assert result["latency_ms"]["p50"] == 2.02
    assert result["conditions"]["runtime"] == "TensorRT 10.3.0"
    assert [operator["name"] for operator in result["profile"]["operators"]] == ["fc", "conv1"]
    text = '<ir_version: 10, opset_import: ["" : 20]> net (float[1] x) => (float[1] y) { y = Relu (x) }'
    ir.save(ir.from_onnx_text(text), bundle / "model.onnx")
    assert run(["bench", str(bundle), *there]) == 2
    assert "no network in it" in capsys.readouterr().err


def test_tensorrt_where_there_is_none(server, scratch, model, tmp_path):
    from edgeopt.bench.latency import Subject

    with pytest.raises(SetupError, match="TensorRT is not installed on the device") as caught:
        subjects = (Subject("model", model, "trtexec", unit="gpu"),)
        remote.measure_on(server.connection(scratch, python(tmp_path, "-S", PATH="/nowhere")), subjects, QUICK)
    assert "NVIDIA" in str(caught.value.hint)
