"""What a board has, found out there: for ``edgeopt doctor --on``.

Travels with the agent: standard library only, nothing of edgeopt, Python 3.6 and later.
"""

import importlib
import json
import os
import shutil
import sys
from typing import Any, Mapping, Optional

from . import conditions

TENSORRT_BIN = "/usr/src/tensorrt/bin"
"""Where JetPack puts trtexec; it is not on the path there."""


def examine(request: "Mapping[str, Any]") -> "dict[str, Any]":
    """What the board has: for ``edgeopt doctor --on``. ``imports``: what to try, name → module."""
    found = {name: _try_import(module) for name, module in request["imports"].items()}
    return {
        "machine": conditions.machine(),
        "now": conditions.read(),
        "free_memory_mb": conditions.free_memory_mb(),
        "energy_counter": conditions.Meter().name,
        "executable": sys.executable,
        "imports": found,
        "programs": {name: _program(name) for name in request["programs"]},
        "user": os.environ.get("USER") or os.environ.get("LOGNAME"),
    }


def _try_import(module: str) -> "dict[str, Optional[str]]":
    """In a process of its own: a library that is built for another processor ends it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        said = {"version": None, "problem": None}  # type: dict[str, Optional[str]]
        try:
            package = module.partition(".")[0]
            importlib.import_module(module)
            said["version"] = str(getattr(sys.modules[package], "__version__", "of unknown version"))
        except Exception as error:  # noqa: BLE001 - a library raises what it likes
            said["problem"] = f"{type(error).__name__}: {error}"
        os.write(theirs, json.dumps(said).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    if data:
        return dict(json.loads(data.decode()))
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no word"
    return {"version": None, "problem": f"its import ended the process with {how}"}


def _program(name: str) -> "Optional[str]":
    return shutil.which(name) or shutil.which(name, path=TENSORRT_BIN)
