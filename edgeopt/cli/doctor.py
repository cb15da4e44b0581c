"""``edgeopt doctor``: what is installed here, or on a device of one's own, and whether it works."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import click

EXAMPLES = """\b
Examples:
  edgeopt doctor --json
  edgeopt doctor --on ssh://pi@raspberrypi.local
"""
CORE = ("numpy", "onnx", "onnx-ir", "onnxruntime", "ai-edge-litert", "pillow", "pydantic", "safetensors")
EXTRAS = {
    "torch": "torch",
    "onnxscript": "torch",
    "keras": "keras",
    "h5py": "keras",
    "tensorflow": "tensorflow",
    "coremltools": "coreml",
    "nncf": "nncf",
}
"""Package → the extra of edgeopt that brings it."""
RUNTIMES = {"ONNX Runtime": "onnxruntime", "LiteRT": "ai_edge_litert.interpreter"}
"""Runtime → module that a worker imports to see whether it works on this processor."""
CPU_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
"""Instructions that int8 kernels use: without them int8 may be slower than float."""


@click.command("doctor", epilog=EXAMPLES)
@click.option("--on", metavar="URL", help="Look at this device instead: ssh://user@host[:port].")
@click.option("--python", metavar="PATH", help="Python on the device.  [default: ~/.edgeopt/bin/python, then python3]")
@click.option("--ssh-config", type=click.Path(exists=True, path_type=Path), help="In place of one's own.")
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
def command(on: str | None, python: str | None, ssh_config: Path | None, json_wanted: bool) -> int:
    """Say what is installed here and whether it works. Ends with 3 if something that edgeopt needs does not.

    Of a device: which board it is, which runtimes it has, and how to install those that it lacks. Ends with 3 if it can
    run none of them.
    """
    if on is not None:
        return _look_at_device(on, python, ssh_config, json_wanted=json_wanted)
    found = examine()
    if json_wanted:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0 if found["works"] else 3


def examine() -> dict[str, Any]:
    """What ``doctor --json`` prints (``edgeopt.doctor/1``)."""
    packages = {name: _version(name) for name in CORE}
    runtimes = {name: _try(module) for name, module in RUNTIMES.items()}
    return {
        "schema": "edgeopt.doctor/1",
        "works": None not in packages.values() and not any(runtimes.values()),
        "edgeopt": _version("edgeopt"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "cpu_flags": _cpu_flags(),
        "packages": packages,
        "extras": {name: {"version": _version(name), "extra": extra} for name, extra in EXTRAS.items()},
        "runtimes": {name: problem or "works" for name, problem in runtimes.items()},
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }


def _look_at_device(on: str, python: str | None, ssh_config: Path | None, *, json_wanted: bool) -> int:
    from edgeopt.bench import remote
    from edgeopt.bench.address import parse
    from edgeopt.bench.ssh import Connection
    from edgeopt.cli.progress import showing
    from edgeopt.errors import UsageError

    address = parse(on)
    if address.kind != "ssh":
        raise UsageError("doctor looks at ssh:// devices only", where="--on", hint="`adb devices` lists phones.")
    with showing():
        found = remote.examine(Connection(address, ssh_config, python))
    works = any(found["runtimes"].values())
    if json_wanted:
        document = {"schema": "edgeopt.doctor/1", "works": works, "device": str(address), **found}
        click.echo(json.dumps(document, indent=2))
    else:
        _print_device(str(address), found)
    return 0 if works else 3


def _print_device(address: str, found: dict[str, Any]) -> None:
    machine, now = found["machine"], found["now"]
    memory = f"{machine['memory_mb']} MB of memory, {found['free_memory_mb']} free, " if machine["memory_mb"] else ""
    click.echo(
        f"{address}: {machine['board'] or machine['cpu']}, {machine['cores']} cores, {memory}{machine['system']}"
    )
    click.echo(f"  Python {machine['python']} ({found['executable']})")
    for name, one in found["imports"].items():
        click.echo(f"  {name}: {one['version'] or one['problem']}")
    for name, path in found["programs"].items():
        click.echo(f"  {name}: {path or 'not there'}")
    said = {
        "governor": now["governor"],
        "frequency": now["frequency_mhz"] and f"{now['frequency_mhz']:.0f} MHz",
        "temperature": now["temperature_c"] and f"{now['temperature_c']:.0f} °C",
        "power mode": now["power_mode"],
        "firmware": ", ".join(now["throttled"] or ()) or None,
        "energy counter": found["energy_counter"],
    }
    click.echo("  " + ", ".join(f"{name} {value or 'not known'}" for name, value in said.items()))
    for name, there in found["runtimes"].items():
        click.echo(f"  {name}: {'works' if there else 'lacks; ' + found['lacks'][name]}")


def load(module: str) -> str:
    """In a worker: a library built for another processor ends its process."""
    import importlib

    importlib.import_module(module)
    return ""


def _try(module: str) -> str:
    from edgeopt.cli.isolated import in_worker
    from edgeopt.errors import EdgeoptError

    try:
        return str(in_worker(module, "edgeopt.cli.doctor:load", module, limit_s=60))
    except EdgeoptError as error:
        return error.what


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_flags() -> list[str]:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [flag for flag in CPU_FLAGS if flag in words]


def _print(found: dict[str, Any]) -> None:
    click.echo(f"edgeopt {found['edgeopt']}, Python {found['python']}, {found['platform']}, {found['cores']} cores")
    click.echo(f"  {sys.executable}")
    click.echo(f"  int8 instructions: {', '.join(found['cpu_flags']) or 'none known'}")
    for name, version in found["packages"].items():
        click.echo(f"  {name}: {version or 'MISSING'}")
    for name, extra in found["extras"].items():
        click.echo(f"  {name}: {extra['version'] or 'not installed, pip install edgeopt[' + extra['extra'] + ']'}")
    for name, verdict in found["runtimes"].items():
        click.echo(f"  {name}: {verdict}")
    click.echo(f"  free disk space here: {found['free_disk_gb']} GB")
