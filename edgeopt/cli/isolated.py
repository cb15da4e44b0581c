"""Work that a command hands to a process of its own: a broken foreign file can crash its runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgeopt.cli.progress import showing


def in_worker(name: str, function: str, argument: Any, *, limit_s: float) -> Any:
    """The result of ``module:function`` called with ``argument`` in a worker.

    Raises:
        EdgeoptError: what it raised, or that it died or hung.
    """
    from edgeopt.pipeline.worker import Call, Workers

    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder, Workers(Path(folder)) as workers, showing():
        return workers.run_one(name, Call(function, argument, limit_s))
