"""Where the benchmarks find their data and leave their files, and how they say that they cannot run."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

SKIPPED = 75  # exit code: nothing is wrong, but something that is needed is absent (sysexits.h, EX_TEMPFAIL)
REPOSITORY = Path(__file__).resolve().parent.parent


class CannotRunError(Exception):
    """Something that a benchmark needs is absent; the message says what, and how to get it."""


def data() -> Path:
    """The folder of models and images: EDGEOPT_BENCH_DATA, by default ../shared/data beside the repository."""
    folder = Path(os.environ.get("EDGEOPT_BENCH_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        raise CannotRunError(f"no benchmark data at {folder}: set EDGEOPT_BENCH_DATA to a folder that holds them")
    return folder


def seeded_nets() -> Path:
    """nets.py, which lies beside the data folder."""
    path = data().parent / "nets.py"
    if not path.is_file():
        raise CannotRunError(f"no nets.py at {path}: it builds the seven seeded nets")
    return path


def work() -> Path:
    """Where artifacts, peers' results and measurements are kept: EDGEOPT_BENCH_WORK, by default out/benchmarks."""
    return Path(os.environ.get("EDGEOPT_BENCH_WORK", REPOSITORY / "out" / "benchmarks")).resolve()


def run(main: Callable[[], None]) -> None:
    """A benchmark's main; where something that it needs is absent, says so and ends with `SKIPPED`."""
    try:
        main()
    except CannotRunError as reason:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)
