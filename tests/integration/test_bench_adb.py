"""Measuring through adb, with stand-ins for adb and for the phone's runner: no phone was there, and results say so."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgeopt.bench.adb import read_launch
from edgeopt.cli import run

ADB = '''#!{python}
"""Stands in for adb: the phone is a folder."""
import os, shutil, subprocess, sys
phone = {phone!r}
words = sys.argv[1:]
assert words[:1] == ["-s"], words
serial, words = words[1], words[2:]
if serial != "PHONE1":
    sys.exit("error: device '" + serial + "' not found")
def there(path):
    return phone + path
if words[0] == "get-state":
    print(open(there("/state")).read())
elif words[0] == "push":
    try:
        shutil.copy(words[1], there(words[2]))
    except OSError as error:
        sys.exit("adb: error: failed to copy: remote " + str(error.strerror))
elif words[1] == "getprop":
    print({{"ro.product.model": "Pixel 8", "ro.product.cpu.abi": "arm64-v8a"}}.get(words[2], "zuma"))
else:
    program = words[1] if not words[1].startswith("/") else there(words[1])
    arguments = [there(word) if word.startswith("/") else word.replace("=/", "=" + phone + "/") for word in words[2:]]
    try:
        sys.exit(subprocess.run([program, *arguments]).returncode)
    except FileNotFoundError:
        print("/system/bin/sh: " + words[1] + ": inaccessible or not found"); sys.exit(127)
    except OSError as error:
        print("/system/bin/sh: " + words[1] + ": not executable: " + str(error.strerror)); sys.exit(126)
'''
RUNNER = '''#!{python}
"""Stands in for benchmark_model: reads its options, prints its lines. Its times are made up."""
import sys
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
assert open(options["graph"], "rb").read()[4:8] == b"TFL3"
slow = 1 if options["use_xnnpack"] == "true" else 3
print("INFO: Replacing 30 out of 31 node(s) with delegate (TfLiteXNNPackDelegate) node")
print("INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=11478 p5=51629 median=51962 p95=87112")
print(f"INFO: count={{options['num_runs']}} first=2100 curr=2001 min=1990 max=2300 avg=2020.5 std=60"
      f" p5=1995 median={{2000 * slow}} p95=2150")
print("INFO: Inference timings in us: Init: 5579, First inference: 3500, Warmup (avg): 2100, Inference (avg): 2020.5")
print("INFO: Memory footprint delta from the start of the tool (MB): init=6.36328 overall=9.832")
'''


@pytest.fixture
def phone(tmp_path, monkeypatch) -> Path:
    """The phone's files; adb is on the path."""
    folder = tmp_path / "phone"
    (folder / "data/local/tmp").mkdir(parents=True)
    (folder / "state").write_text("device")
    programs = tmp_path / "programs"
    programs.mkdir()
    script(programs / "adb", ADB.format(python=sys.executable, phone=str(folder)))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    yield folder
    assert not list((folder / "data/local/tmp").glob("edgeopt-*"))


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def runner(tmp_path) -> Path:
    return script(tmp_path / "benchmark_model", RUNNER.format(python=sys.executable))


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    return tmp_path / "model.tflite"


def test_push_run_and_remove(phone, runner, model, capsys):
    arguments = ["--on", "adb://PHONE1", "--runner", str(runner), "--xnnpack", "both", "--runs", "70"]
    assert run(["bench", str(model), *arguments, "--json"]) == 0
    fast, slow = json.loads(capsys.readouterr().out)["results"]
    assert (fast["latency_ms"]["p50"], slow["latency_ms"]["p50"]) == (2.0, 6.0)
    assert fast["latency_ms"]["p95"] == 2.15
    assert fast["latency_ms"]["p99"] is None
    assert fast["verified"] is False
    assert fast["conditions"]["machine"] == "Pixel 8 zuma"
    assert fast["conditions"]["runs"] == 70
    assert fast["memory_mb"] == 9.832
    assert fast["coverage"] == pytest.approx(30 / 31)
    assert run(["bench", str(model), *arguments]) == 0
    assert "unverified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("serial", "state", "runner_text", "code", "said"),
    [
        ("PHONE2", "device", RUNNER, 3, "device 'PHONE2' not found"),
        ("PHONE1", "unauthorized", RUNNER, 3, "allow USB debugging"),
        ("PHONE1", "device", None, 3, "benchmark_model is not on the phone"),
        ("PHONE1", "device", "\x7fELF of another processor", 3, "built for another processor"),
        ("PHONE1", "device", "#!/bin/sh\necho Failed to mmap the model\n", 2, "Failed to mmap the model"),
        ("PHONE1", "device", "#!/bin/sh\nexit 9\n", 4, "benchmark_model failed on the phone"),
    ],
)
def test_what_can_go_wrong(phone, tmp_path, model, capsys, serial, state, runner_text, code, said):
    (phone / "state").write_text(state)
    arguments = ["--on", f"adb://{serial}"]
    if runner_text is not None:
        text = runner_text.format(python=sys.executable) if runner_text is RUNNER else runner_text
        arguments += ["--runner", str(script(tmp_path / "benchmark_model", text))]
    assert run(["bench", str(model), *arguments]) == code
    assert said in capsys.readouterr().err


def test_without_adb(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["bench", str(model), "--on", "adb://PHONE1"]) == 3
    assert "no adb on this machine" in capsys.readouterr().err


def test_a_release_without_percentiles():
    found = read_launch(
        "count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442\n"
        "Inference timings in us: Init: 16242, First inference: 360262, "
        "Warmup (avg): 304586, Inference (avg): 2.49684e+05\n"
        "Peak memory footprint (MB): init=4.92969 overall=138.809\n"
    )
    assert (found.median_ms, found.mean_ms, found.count, found.memory_mb) == (None, 249.684, 50, 138.809)
    with pytest.raises(ValueError, match="not that of benchmark_model"):
        read_launch("count=1 curr=1")
