"""What a machine is and how it is while something is measured on it, read from Linux's own files.

Travels to devices with the agent: standard library only, nothing of edgeopt, Python 3.6 and later.
What a machine does not tell is ``None``, never a guess. Each reader takes the folder that stands for ``/``.
"""

import os
import platform
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Optional

ROOT = Path("/")
MOVED = 0.10
"""Share by which a frequency may move before the times are called those of a changing machine."""
BUSY = 0.5
"""Load average per core from which others share the machine."""
HOT_C = 80.0
"""A Raspberry Pi slows down from 80 °C (its firmware's soft limit); most boards somewhat later."""
THROTTLING = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
    16: "under-voltage has occurred",
    17: "frequency has been capped",
    18: "has been throttled",
    19: "soft temperature limit has been reached",
}
"""Bits of ``vcgencmd get_throttled``, from Raspberry Pi's documentation of vcgencmd."""
GPU_CLOCKS = re.compile(r"(gpu|gm20b|gp10b|gv11b|ga10b|gb10b)")
"""Names of Jetson GPUs in /sys/class/devfreq: Nano, TX2, Xavier, Orin, Thor."""
WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails of Jetson's INA sensors that carry everything."""
SAMPLE_S = 0.05


def machine(root: Path = ROOT) -> "dict[str, Any]":
    """What does not change: processor, board, cores, memory, system."""
    return {
        "cpu": _cpu_name(root),
        "board": _text(root / "proc/device-tree/model"),
        "cores": os.cpu_count(),
        "memory_mb": _memory_mb(root, "MemTotal"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "architecture": platform.machine(),
        "word_bits": 64 if platform.architecture()[0] == "64bit" else 32,
        "python": platform.python_version(),
    }


def read(root: Path = ROOT) -> "dict[str, Any]":
    """What changes: load, frequency, temperature, throttling, power mode."""
    return {
        "load": _load(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": _governor(root),
        "frequency_mhz": _frequency_mhz(root),
        "temperature_c": _temperature_c(root),
        "throttled": _throttled(),
        "power_mode": _power_mode(),
        "gpu_frequency_mhz": _gpu_mhz(root, "cur_freq"),
        "gpu_clocks_locked": _gpu_locked(root),
    }


def judge(before: "dict[str, Any]", after: "dict[str, Any]", cores: "Optional[int]") -> "list[str]":
    """What of it makes the times doubtful, in words; empty if nothing known does."""
    found = []
    load = before["load"]
    if load is not None and cores and load / cores > BUSY:
        found.append(f"others used the machine: load {load:.1f} on {cores} cores before measuring")
    if before["governor"] not in (None, "performance"):
        found.append(f"the frequency governor is '{before['governor']}': set 'performance' for repeatable times")
    for key, what in (("frequency_mhz", "the processor's"), ("gpu_frequency_mhz", "the GPU's")):
        first, last = before[key], after[key]
        if first and last and abs(last - first) / first > MOVED:
            found.append(f"{what} frequency moved from {first:.0f} to {last:.0f} MHz")
    if after["temperature_c"] is not None and after["temperature_c"] >= HOT_C:
        found.append(f"hot: {after['temperature_c']:.0f} °C")
    found += [f"the firmware says: {text}" for text in after["throttled"] or ()]
    if after["gpu_clocks_locked"] is False:
        found.append("the GPU's clocks are not locked: run jetson_clocks for repeatable times")
    return found


class Meter:
    """Joules that the whole machine used between ``start`` and ``stop``.

    Intel's and AMD's counters of the processor package (RAPL) count by themselves; Jetson's INA sensors show power,
    which is sampled 20 times a second and integrated.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._packages = [
            folder
            for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
            if (_text(folder / "name") or "").startswith("package") and _number(folder / "energy_uj") is not None
        ]
        self._rails = [] if self._packages else _rails(root)
        self.name = None  # type: Optional[str]  # what counts, or None where nothing does
        if self._packages:
            self.name = "RAPL, processor package"
        elif self._rails:
            self.name = "INA3221, " + " + ".join(label for label, _, _ in self._rails)

    def start(self) -> None:
        self._began = [_number(folder / "energy_uj") or 0.0 for folder in self._packages]
        self._joules = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if self._rails:
            self._thread.start()

    def stop(self) -> float:
        self._stopped.set()
        if self._rails:
            self._thread.join()
        joules = self._joules
        for folder, began in zip(self._packages, self._began):  # noqa: B905 - Python 3.6 knows no strict
            used = (_number(folder / "energy_uj") or 0.0) - began
            if used < 0:  # the counter went round
                used += _number(folder / "max_energy_range_uj") or 0.0
            joules += used / 1e6
        return joules

    def _sample(self) -> None:
        last = time.perf_counter()
        watts = self._watts()
        while not self._stopped.wait(SAMPLE_S):
            now, new = time.perf_counter(), self._watts()
            self._joules += (watts + new) / 2 * (now - last)
            last, watts = now, new
        self._joules += watts * (time.perf_counter() - last)

    def _watts(self) -> float:
        return sum((_number(volts) or 0.0) * (_number(amps) or 0.0) for _, volts, amps in self._rails) / 1e6


def _rails(root: Path) -> "list[tuple[str, Path, Path]]":
    """Label, millivolts and milliamperes of the rails that together carry everything."""
    found = []
    for label in sorted((root / "sys/class/hwmon").glob("hwmon*/in*_label")):
        number = re.sub(r"\D", "", label.name)
        amps = label.parent / f"curr{number}_input"
        if (_text(label.parent / "name") or "").startswith("ina3221") and amps.exists():
            found.append((_text(label) or number, label.parent / f"in{number}_input", amps))
    found = [rail for rail in found if rail[0] != "NC" and "sum" not in rail[0].lower()]
    whole = [rail for rail in found if rail[0] in WHOLE_BOARD]
    return whole[:1] or found


def _cpu_name(root: Path) -> str:
    text = _text(root / "proc/cpuinfo") or ""
    for key in ("model name", "Hardware", "Model"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.M)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _memory_mb(root: Path, key: str) -> "Optional[float]":
    found = re.search(rf"^{key}:\s*(\d+) kB", _text(root / "proc/meminfo") or "", re.M)
    return round(int(found.group(1)) / 1024) if found else None


def free_memory_mb(root: Path = ROOT) -> "Optional[float]":
    """What programs may still take without swapping."""
    return _memory_mb(root, "MemAvailable")


def _load() -> "Optional[float]":
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _cores(root: Path) -> "list[Path]":
    """cpufreq folders of the cores that this process may use."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    return [folder for folder in folders if int(folder.parent.name[3:]) in allowed] or folders


def _governor(root: Path) -> "Optional[str]":
    names = sorted({_text(folder / "scaling_governor") or "" for folder in _cores(root)} - {""})
    return ", ".join(names) or None


def _frequency_mhz(root: Path) -> "Optional[float]":
    """Of the fastest core that this process may use."""
    found = [_number(folder / "scaling_cur_freq") for folder in _cores(root)]
    known = [value / 1e3 for value in found if value]
    if not known:
        cpuinfo = _text(root / "proc/cpuinfo") or ""
        known = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.M)]
    return round(max(known)) if known else None


def _temperature_c(root: Path) -> "Optional[float]":
    """Of the hottest thermal zone."""
    found = [_number(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    sane = [value / 1e3 for value in found if value is not None and 0 < value < 150e3]
    return round(max(sane), 1) if sane else None


def _throttled() -> "Optional[list[str]]":
    said = command("vcgencmd", "get_throttled")
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", said or "")
    if not found:
        return None
    bits = int(found.group(1), 16)
    return [text for bit, text in THROTTLING.items() if bits >> bit & 1]


def _power_mode() -> "Optional[str]":
    found = re.search(r"NV Power Mode:\s*(\S+)", command("nvpmodel", "-q") or "")
    return found.group(1) if found else None


def _gpu_folder(root: Path) -> "Optional[Path]":
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if GPU_CLOCKS.search(folder.name):
            return folder
    return None


def _gpu_mhz(root: Path, name: str) -> "Optional[float]":
    folder = _gpu_folder(root)
    hertz = _number(folder / name) if folder else None
    return round(hertz / 1e6) if hertz else None


def _gpu_locked(root: Path) -> "Optional[bool]":
    low, high = _gpu_mhz(root, "min_freq"), _gpu_mhz(root, "max_freq")
    return low == high if low and high else None


def command(*arguments: str) -> "Optional[str]":
    """What a program of the board says; None if it is not there, hangs or fails."""
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _text(path: Path) -> "Optional[str]":
    try:
        return path.read_text(errors="replace").strip(" \n\0")
    except OSError:
        return None


def _number(path: Path) -> "Optional[float]":
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
