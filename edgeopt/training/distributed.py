"""A training pass in several processes: torch's own launcher (``torchrun``) starts them, gloo or NCCL joins them.

``python -m torch.distributed.run … -m edgeopt.training.distributed REQUEST`` is what each of them runs. Every process
holds the whole model and takes its share of every batch; gradients are averaged, the first process writes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeopt.errors import EdgeoptError

REQUEST, ERROR = "request.pickle", "error.pickle"
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


def launch(work: Callable[[Any], None], argument: Any, processes: int, folder: Path) -> None:
    """Run ``work(argument)`` in so many processes on this machine.

    Args:
        work: a function of a module; the first process alone shall write.
        argument: anything that can be pickled.
        processes: how many.
        folder: for the request and what was said.

    Raises:
        EdgeoptError: what a process raised, or that one died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    with (folder / REQUEST).open("wb") as file:
        pickle.dump((sys.path, f"{work.__module__}:{work.__qualname__}", argument), file)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    log = folder / "distributed.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, "-m", "edgeopt.training.distributed", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
    if done.returncode == 0:
        return
    if (folder / ERROR).is_file():
        with (folder / ERROR).open("rb") as file:
            error: BaseException = pickle.load(file)  # noqa: S301 - written by the process that we started
        raise error
    tail = " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    raise EdgeoptError(f"one of {processes} processes ended with code {done.returncode}", where="torchrun", hint=tail)


def main() -> int:
    """One of the processes."""
    import torch
    import torch.distributed as dist

    _die_with_parent()
    folder = Path(sys.argv[1])
    with (folder / REQUEST).open("rb") as file:
        sys.path[:], name, argument = pickle.load(file)  # noqa: S301 - written by the process that started us
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    module, _, function = name.partition(":")
    try:
        getattr(importlib.import_module(module), function)(argument)
    except (EdgeoptError, OSError) as error:
        draft = folder / f"{ERROR}.{os.getpid()}"
        draft.write_bytes(pickle.dumps(error))
        draft.replace(folder / ERROR)
        return 1
    except Exception:  # noqa: BLE001 - a bug of ours or a library's: the log says where
        traceback.print_exc()
        return 1
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _die_with_parent() -> None:
    """The launcher gives each process a session of its own: without this they would outlive a ``kill -9``."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
