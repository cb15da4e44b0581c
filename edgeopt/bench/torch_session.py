"""The PyTorch source as something that can be timed: PyTorch itself, eager, on the CPU, without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from edgeopt.errors import MissingPackage


def version() -> str:
    """Of PyTorch.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingPackage("torch", "torch", "measuring a PyTorch model") from error
    return str(torch.__version__)


class TorchSession:
    """A module or exported program, loaded as the frontend loads it; runs the user's code: in a worker only.

    Args:
        request: the frontend's: ``factory``, ``root``, ``weights`` and ``inputs``, or ``exported`` and ``inputs``.
        threads: of PyTorch's operators.

    Raises:
        ModelError: factory, weights or forward are not as they should be.
    """

    def __init__(self, request: Mapping[str, Any], threads: int) -> None:
        import torch

        from edgeopt.frontends.torch_loading import Loaded

        torch.set_num_threads(threads)
        self._torch = torch
        self._loaded = Loaded(dict(request))

    def specs(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Inputs: numpy dtype name and shape."""
        return {
            name: (str(self._loaded.dtypes[name]).removeprefix("torch."), tuple(sizes))
            for name, sizes in self._loaded.inputs.items()
        }

    def reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """PyTorch takes shapes as they come."""

    def run(self, feed: Mapping[str, Any]) -> Any:
        """One forward; ValueError where it fails."""
        try:
            return self._loaded.run({name: self._torch.from_numpy(array) for name, array in feed.items()})
        except Exception as error:  # the user's forward raises what it likes
            raise ValueError(str(error)) from error

    def placement(self) -> dict[str, Any]:
        return {"delegate": None, "coverage": None, "partitions": None, "undelegated": []}

    def profile(self, feed: Mapping[str, Any], runs: int) -> list[dict[str, Any]]:
        """Mean time per operator type in ms, costliest first, by PyTorch's own profiler."""
        with self._torch.profiler.profile(activities=[self._torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(runs):
                self.run(feed)
        total = {event.key: event.self_cpu_time_total / 1e3 / runs for event in profiler.key_averages()}
        everything = sum(total.values()) or 1.0
        return [
            {"name": name, "op": name, "ms": ms, "share": ms / everything}
            for name, ms in sorted(total.items(), key=lambda item: -item[1])
        ]

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._loaded
