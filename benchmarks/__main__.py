"""Run all benchmarks, one after the other, and rewrite the results in README.md: `python -m benchmarks [NAME ...]`.

The peers' results are kept in the work folder (EDGEOPT_BENCH_WORK, default out/benchmarks) and not made again. A
benchmark that lacks its data or its peers is skipped with the reason, and its section stays as it was.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from benchmarks import place

BENCHMARKS = (
    "fidelity",
    "file_latency",
    "cost",
    "nets_tflite",
    "keras_models",
    "latency",
    "coreml",
    "coreml_command",
    "mil_reference",
    "tensorrt",
    "train_vww",
)


def run(command: list[str], limit_s: float) -> int | None:
    """Exit code, or None where the limit was reached: then the command and all that it started are ended."""
    child = subprocess.Popen(command, cwd=place.REPOSITORY, start_new_session=True)
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help=f"which of {', '.join(BENCHMARKS)}; by default all")
    parser.add_argument("--dry", action="store_true", help="leave README.md as it is")
    parser.add_argument("--limit-s", type=float, default=1800, help="stop a benchmark after so long (default 1800)")
    arguments = parser.parse_args()
    unknown = set(arguments.name) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    ended = {}
    for name in arguments.name or BENCHMARKS:
        began = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{name}", *([] if arguments.dry else ["--write"])]
        code = run(command, arguments.limit_s)
        word = {0: "done", place.SKIPPED: "skipped", None: "failed, stopped at its time limit,"}.get(
            code, f"failed with exit code {code}"
        )
        ended[name] = f"{word} after {time.perf_counter() - began:.0f} s"
        print(f"{name}: {ended[name]}", file=sys.stderr, flush=True)
    sys.exit(1 if any("failed" in text for text in ended.values()) else 0)


if __name__ == "__main__":
    main()
