"""Results as Markdown in README.md, each script's between its own two marks, and as JSON in the work folder."""

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import place

README = Path(__file__).with_name("README.md")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def thousands(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    vnni = " with VNNI" if any("vnni" in line for line in lines if line.startswith("flags")) else ""
    return f"{names[0] if names else platform.machine()}{vnni}, {len(os.sched_getaffinity(0))} cores"


def conditions(command: str, packages: Sequence[str], versions: dict[str, str] | None = None) -> str:
    """One line: date, command, machine, how busy it was, versions. `versions` adds those of another environment."""
    found = {p: metadata.version(p) for p in packages} | (versions or {})
    text = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    load = os.getloadavg()[0]
    return (
        f"`{command}` · {date} · {processor()} · load average {load:.1f} · Python {platform.python_version()} · {text}"
    )


def marks(name: str) -> tuple[str, str]:
    return f"<!-- results: {name} -->", f"<!-- end of results: {name} -->"


def replace_section(text: str, name: str, body: str) -> str:
    """`text` with what stands between the marks of `name` replaced."""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise ValueError(f"README.md has no section between `{begin}` and `{end}`")
    return f"{before}{begin}\n\n{body.strip()}\n\n{end}{after}"


def publish(name: str, body: str, record: Any, *, write: bool, show: bool = True) -> None:
    """Keep numbers and Markdown in the work folder; `write` puts the Markdown into README.md, `show` prints it."""
    folder = place.work() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, default=str))
    (folder / f"{name}.md").write_text(body + "\n")
    if write:
        README.write_text(replace_section(README.read_text(), name, body))
        print(f"written to {README.relative_to(place.REPOSITORY)}", file=sys.stderr)
    if show:
        print(body)
