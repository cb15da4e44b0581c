"""Run a command and say what it cost: `python -m benchmarks.measure COMMAND...` prints one JSON line on stdout.

Only the standard library, and small on purpose: Linux counts what a parent held before `exec` to the child's peak, so a
parent that has numpy loaded would measure itself. The command's own stdout goes to stderr.

cpu_s:       user and system seconds of the command and of all its descendants that it waited for
max_rss_mb:  the largest peak of any single process among them (getrusage)
tree_pss_mb: the largest sum of memory over all of them at one time, sampled every 50 ms; a page that several share is
             divided between them (Linux's proportional set size)
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def descendants(root: int) -> list[int]:
    """`root` and all below it, now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it ended meanwhile
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def proportional_mb(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it ended meanwhile
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total * 1024 / 1e6


def run(command: list[str]) -> dict[str, float]:
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=sys.stderr)
    peak = 0.0
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, proportional_mb(descendants(child.pid)))
        time.sleep(0.05)
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "wall_s": round(time.perf_counter() - began, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "max_rss_mb": round(usage.ru_maxrss * 1024 / 1e6, 1),
        "tree_pss_mb": round(peak, 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1:])), flush=True)
