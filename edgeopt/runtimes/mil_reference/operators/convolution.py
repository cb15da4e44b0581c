"""``conv`` and ``conv_transpose`` in numpy, or in torch where the session was told to use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference.operators.padding import Pads, integers, window_pads

Array = npt.NDArray[Any]
Sizes = Sequence[int]


@dataclass(frozen=True)
class Backend:
    """Two plain convolutions over any number of spatial axes, without bias.

    Args:
        direct: padded input (N, C_in, …), weight (C_out, C_in/groups, …), strides, dilations, groups.
        transposed: input (N, C_in, …), weight (C_in, C_out/groups, …), strides, dilations, groups; nothing is cropped.
    """

    direct: Callable[[Array, Array, Sizes, Sizes, int], Array]
    transposed: Callable[[Array, Array, Sizes, Sizes, int], Array]


def operators(backend: Backend, *, wide: bool = False) -> dict[str, Callable[..., Array]]:
    """``conv`` and ``conv_transpose`` on a backend; ``wide``: with sums in float64, which the caller rounds."""
    if wide:
        backend = Backend(_widened(backend.direct), _widened(backend.transposed))

    def conv(
        x: Array,
        weight: Array,
        bias: Any = None,
        strides: Any = None,
        pad_type: str = "valid",
        pad: Any = None,
        dilations: Any = None,
        groups: int = 1,
    ) -> Array:
        axes = x.ndim - 2
        steps, holes = integers(strides, axes, 1), integers(dilations, axes, 1)
        pads = window_pads(pad_type, pad, x.shape[2:], weight.shape[2:], steps, holes)
        return with_bias(backend.direct(padded(x, pads), weight, steps, holes, int(groups)), bias)

    def conv_transpose(
        x: Array,
        weight: Array,
        bias: Any = None,
        pad: Any = None,
        output_shape: Any = None,
        pad_type: str = "valid",
        strides: Any = None,
        dilations: Any = None,
        groups: int = 1,
    ) -> Array:
        axes = x.ndim - 2
        steps, holes = integers(strides, axes, 1), integers(dilations, axes, 1)
        whole = backend.transposed(x, weight, steps, holes, int(groups))
        wanted = None if output_shape is None else [int(size) for size in np.asarray(output_shape).reshape(-1)[-axes:]]
        return with_bias(_cropped(whole, x.shape[2:], steps, pad_type, pad, wanted), bias)

    return {"conv": conv, "conv_transpose": conv_transpose}


def _widened(function: Callable[..., Array]) -> Callable[..., Array]:
    def evaluate(x: Array, weight: Array, *rest: Any) -> Array:
        return function(x.astype(np.float64), weight.astype(np.float64), *rest)

    return evaluate


def _cropped(whole: Array, sizes: Sizes, strides: Sizes, pad_type: str, pad: Any, wanted: Sizes | None) -> Array:
    """What padding leaves of a whole transposed convolution; ``wanted`` sizes may reach behind it, into zeros."""
    cuts: list[tuple[int, int]] = []
    for axis, full in enumerate(whole.shape[2:]):
        if pad_type in ("same", "same_lower"):
            target = sizes[axis] * strides[axis] if wanted is None else wanted[axis]
            total = max(0, full - target)
            before = total // 2 if pad_type == "same" else total - total // 2
        else:
            flat = integers(pad if pad_type == "custom" else None, 2 * len(sizes), 0)
            before = flat[2 * axis]
            target = full - before - flat[2 * axis + 1] if wanted is None else wanted[axis]
        cuts.append((before, before + target))
    for axis, (begin, end) in enumerate(cuts, 2):
        if end > whole.shape[axis]:
            behind = [(0, end - whole.shape[axis] if other == axis else 0) for other in range(whole.ndim)]
            whole = np.pad(whole, behind)
        whole = whole[(slice(None),) * axis + (slice(begin, end),)]
    return whole


def padded(x: Array, pads: Pads) -> Array:
    return x if not any(map(any, pads)) else np.pad(x, ((0, 0), (0, 0), *pads))


def with_bias(y: Array, bias: Any) -> Array:
    return y if bias is None else np.asarray(y + np.asarray(bias).reshape(-1, *(1,) * (y.ndim - 2)))


def numpy_direct(x: Array, weight: Array, strides: Sizes, dilations: Sizes, groups: int) -> Array:
    """Every window as a column, then one matrix product per group."""
    axes = tuple(range(2, x.ndim))
    reach = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    steps = tuple(slice(None, None, stride) for stride in strides)
    holes = tuple(slice(None, None, dilation) for dilation in dilations)
    windows = windows[(slice(None), slice(None), *steps, *holes)]
    samples, channels = x.shape[:2]
    out = windows.shape[2 : 2 + len(axes)]
    columns = windows.reshape(samples, groups, channels // groups, int(np.prod(out)), -1)
    columns = columns.transpose(0, 1, 2, 4, 3).reshape(samples, groups, -1, int(np.prod(out)))
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    return np.asarray(np.matmul(rows, columns).reshape(samples, weight.shape[0], *out))


def numpy_transposed(x: Array, weight: Array, strides: Sizes, dilations: Sizes, groups: int) -> Array:
    """A convolution of the input with zeros put between, with the kernel turned round."""
    kernel = weight.shape[2:]
    spread = np.zeros(
        (*x.shape[:2], *((size - 1) * step + 1 for size, step in zip(x.shape[2:], strides, strict=True))), x.dtype
    )
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in strides))] = x
    edge = tuple(((k - 1) * d, (k - 1) * d) for k, d in zip(kernel, dilations, strict=True))
    turned = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).swapaxes(1, 2)
    turned = turned.reshape(-1, weight.shape[0] // groups, *kernel)
    turned = np.flip(turned, tuple(range(2, turned.ndim)))
    return numpy_direct(padded(spread, edge), turned, (1,) * len(kernel), dilations, groups)


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def torch_direct(x: Array, weight: Array, strides: Sizes, dilations: Sizes, groups: int) -> Array:
    import torch

    function = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")
    with torch.no_grad():
        result: Array = function(_tensor(x), _tensor(weight), None, tuple(strides), 0, tuple(dilations), groups).numpy()
    return result


def torch_transposed(x: Array, weight: Array, strides: Sizes, dilations: Sizes, groups: int) -> Array:
    import torch

    function = getattr(torch.nn.functional, f"conv_transpose{x.ndim - 2}d")
    with torch.no_grad():
        result: Array = function(
            _tensor(x), _tensor(weight), None, tuple(strides), 0, 0, groups, tuple(dilations)
        ).numpy()
    return result


NUMPY = Backend(numpy_direct, numpy_transposed)
TORCH = Backend(torch_direct, torch_transposed)
