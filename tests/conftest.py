"""What all tests share: where the benchmark data lives, and what a skip means in CI."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Two workers with two spinning OpenMP threads each on two cores took ten times as long as with one each. Subprocesses
# inherit it; onnxruntime and LiteRT have pools of their own, whose size edgeopt sets.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, and every child inherits that: tests that interrupt need it back.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST_FIRST = (
    *("test_gate", "test_pipeline", "test_frontend_torch", "test_bad_input", "test_coreml_target"),
    *("test_training_pipeline", "test_quickstart", "test_quantize_pass", "test_coreml_operators", "test_cli"),
)
"""Files that take the most processor time, as of 2026-11. A worker that began with one of these at the end would go on
for minutes beside idle ones: they come first, and the many short files fill up."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))  # stable: the rest stays in order


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*commands): skipped where one of these system commands is missing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        missing = [command for command in marker.args if shutil.which(command) is None]
        if missing:
            pytest.skip(f"not on this machine: {', '.join(missing)}")


def _skip_not_allowed(reason: str) -> bool:
    """With EDGEOPT_CI=1 everything a test needs is there, so a skip is a hole. Benchmark data alone may be absent."""
    return os.environ.get("EDGEOPT_CI") == "1" and "EDGEOPT_BENCH_DATA" not in reason


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    reason = str(call.excinfo.value) if call.excinfo else ""
    if report.skipped and not hasattr(report, "wasxfail") and _skip_not_allowed(reason):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    report = yield
    if report.skipped and _skip_not_allowed(str(report.longrepr)):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def bench_data() -> Path:
    """The folder of benchmark models and images, which is no part of the repository."""
    folder = Path(os.environ.get("EDGEOPT_BENCH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"EDGEOPT_BENCH_DATA: no benchmark data at {folder}")
    return folder


@pytest.fixture(scope="session")
def quickstart() -> Path:
    return ROOT / "recipes" / "quickstart"
