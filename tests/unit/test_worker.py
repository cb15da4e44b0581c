"""Workers: results and errors come back, crashes and hangs are said, and nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edgeopt.errors import EdgeoptError
from edgeopt.events import Event, listening
from edgeopt.pipeline import worker
from edgeopt.pipeline.worker import Call, Crashed, Workers

HERE = __name__


def double(number: int) -> int:
    return 2 * number


def report_events(count: int) -> int:
    from edgeopt.events import track

    return sum(track(range(count), "counting", count))


def fail(_: object) -> None:
    raise EdgeoptError("does not work", where="here", hint="try again")


def fail_with_a_bug(_: object) -> None:
    raise ZeroDivisionError("by zero")


def fail_to_write(_: object) -> None:
    raise OSError(28, "No space left on device", "file")


def print_and_end(_: object) -> None:
    print("last words", flush=True)
    os._exit(7)


def segfault(_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def call(name: str, argument: object = None, limit_s: float = 60) -> Call:
    return Call(f"{HERE}:{name}", argument, limit_s)


@pytest.fixture(scope="module", params=[True, False], ids=["forked", "started anew"])
def workers(request, tmp_path_factory):
    if request.param and not worker.CAN_FORK:
        pytest.skip("no fork here")
    logs = tmp_path_factory.mktemp("logs")
    old = worker._START
    if not request.param:  # the nursery is a process of its own: it is told by what it runs
        worker._START = old.replace("; {main}(", "; import edgeopt.pipeline.worker as w; w.CAN_FORK = False; {main}(")
    with Workers(logs) as running:
        worker._START = old
        yield running


def test_a_result(workers):
    assert workers.run_one("double", call("double", 21)) == 42


def test_many_calls_one_after_the_other_and_side_by_side(workers):
    calls = {str(n): call("double", n) for n in range(7)}
    assert workers.run_all(calls, at_once=3) == {str(n): 2 * n for n in range(7)}


def test_events_reach_our_listener(workers):
    heard: list[Event] = []
    with listening(heard.append):
        assert workers.run_one("events", call("report_events", 3)) == 3
    assert [event.kind for event in heard] == ["step", "progress", "progress", "progress", "done"]


def test_errors_come_back_whole(workers):
    with pytest.raises(EdgeoptError) as error:
        workers.run_one("fail", call("fail"))
    assert (error.value.what, error.value.where, error.value.hint) == ("does not work", "here", "try again")
    with pytest.raises(EdgeoptError, match="ZeroDivisionError: by zero") as bug:
        workers.run_one("bug", call("fail_with_a_bug"))
    assert "test_worker.py" in bug.value.where
    with pytest.raises(OSError, match="No space") as full:
        workers.run_one("full", call("fail_to_write"))
    assert full.value.errno == 28


def test_a_crash_is_said_with_the_last_words(workers):
    with pytest.raises(Crashed, match="ended with code 7") as error:
        workers.run_one("ends", call("print_and_end"))
    assert "last words" in error.value.hint
    with pytest.raises(Crashed, match="SIGSEGV"):
        workers.run_one("crash", call("segfault"))


def test_what_hangs_is_given_up_and_the_others_go_on(workers):
    calls = {"hangs": Call("time:sleep", 60, 1.0), "works": call("double", 4)}
    results = workers.run_all(calls)
    assert isinstance(results["hangs"], Crashed)
    assert "gave up" in str(results["hangs"])
    assert results["works"] == 8


PARENT = """
import sys
from pathlib import Path
from edgeopt.pipeline.worker import Call, Workers
with Workers(Path(sys.argv[1])) as workers:
    print("ready", flush=True)
    workers.run_all({str(n): Call("time:sleep", 60, 60) for n in range(2)})
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_its_parent(tmp_path: Path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    parent, end = psutil.Process(process.pid), time.monotonic() + 30
    while len(children := parent.children(recursive=True)) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.wait(20)
    process.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
