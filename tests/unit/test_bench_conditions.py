"""What machines tell of themselves: trees of files as a Raspberry Pi, a Jetson and a PC have them, and this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgeopt.bench import conditions


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def program(folder: Path, name: str, says: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def cpufreq(khz: int, governor: str) -> dict[str, str]:
    found = {}
    for core in range(4):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        found |= {f"{folder}/scaling_cur_freq": f"{khz}\n", f"{folder}/scaling_governor": f"{governor}\n"}
    return found


def test_raspberry_pi(tmp_path, programs):
    root = tree(
        tmp_path / "pi",
        {
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/meminfo": "MemTotal:        8245756 kB\nMemAvailable:    7000000 kB\n",
            "sys/class/thermal/thermal_zone0/temp": "81250\n",
            **cpufreq(2400000, "ondemand"),
        },
    )
    program(programs, "vcgencmd", "throttled=0x50004")
    assert conditions.machine(root)["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert conditions.machine(root)["memory_mb"] == 8052
    before = conditions.read(root)
    assert (before["governor"], before["frequency_mhz"], before["temperature_c"]) == ("ondemand", 2400, 81.2)
    assert before["throttled"] == ["throttled", "under-voltage has occurred", "has been throttled"]
    tree(root, cpufreq(1500000, "ondemand"))
    said = " / ".join(conditions.judge(before | {"load": 3.0}, conditions.read(root), 4))
    for part in ("load 3.0 on 4 cores", "'ondemand'", "from 2400 to 1500 MHz", "hot: 81", "under-voltage has occurred"):
        assert part in said


def test_jetson(tmp_path, programs):
    hwmon, gpu = "sys/class/hwmon/hwmon3", "sys/class/devfreq/17000000.ga10b"
    root = tree(
        tmp_path / "jetson",
        {
            f"{hwmon}/name": "ina3221\n",
            f"{hwmon}/in1_label": "VDD_IN\n",
            f"{hwmon}/in1_input": "19000\n",
            f"{hwmon}/curr1_input": "500\n",
            f"{hwmon}/in2_label": "VDD_CPU_GPU_CV\n",
            f"{hwmon}/in2_input": "19000\n",
            f"{hwmon}/curr2_input": "100\n",
            f"{gpu}/cur_freq": "306000000\n",
            f"{gpu}/min_freq": "306000000\n",
            f"{gpu}/max_freq": "624750000\n",
            **cpufreq(1510400, "schedutil"),
        },
    )
    program(programs, "nvpmodel", "NV Power Mode: 15W\n0")
    found = conditions.read(root)
    assert (found["power_mode"], found["gpu_frequency_mhz"], found["gpu_clocks_locked"]) == ("15W", 306, False)
    assert any("jetson_clocks" in text for text in conditions.judge(found, found, 6))
    meter = conditions.Meter(root)
    assert meter.name == "INA3221, VDD_IN"
    start = time.perf_counter()
    meter.start()
    time.sleep(0.3)
    joules = meter.stop()
    assert joules == pytest.approx(9.5 * (time.perf_counter() - start), rel=0.2)  # 19 V × 0.5 A


def test_rapl_counts_on_when_it_goes_round(tmp_path):
    folder = "sys/class/powercap/intel-rapl:0"
    root = tree(
        tmp_path,
        {
            f"{folder}/name": "package-0\n",
            f"{folder}/energy_uj": "262143000000\n",
            f"{folder}/max_energy_range_uj": "262143328850\n",
            "sys/class/powercap/intel-rapl:0:0/name": "core\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "1\n",
        },
    )
    meter = conditions.Meter(root)
    assert meter.name == "RAPL, processor package"
    meter.start()
    tree(root, {f"{folder}/energy_uj": "1671150\n"})
    assert meter.stop() == pytest.approx(2.0)


def test_a_machine_that_tells_nothing(tmp_path, programs):
    found = conditions.read(tmp_path)
    assert {key for key, value in found.items() if value is None} >= {
        *("governor", "frequency_mhz", "temperature_c", "throttled", "power_mode", "gpu_clocks_locked")
    }
    assert conditions.Meter(tmp_path).name is None
    assert conditions.judge(found | {"load": None}, found, None) == []


def test_this_machine():
    found = conditions.machine()
    assert found["cores"] == os.cpu_count()
    assert found["cpu"]
    assert conditions.read()["affinity"]
