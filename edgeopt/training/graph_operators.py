"""The operators of a canonical graph in torch, with gradients, for a batch of any size.

Each function takes the inputs (tensors, None where one is left out), the attributes, and the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Inputs = Sequence[Any]
Attributes = dict[str, Any]
Operator = Callable[[Inputs, Attributes, int], Any]

POINTWISE: dict[str, str] = {
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Abs": "abs", "Neg": "neg",
    "Erf": "erf", "Floor": "floor", "Ceil": "ceil", "Reciprocal": "reciprocal", "Sin": "sin", "Cos": "cos",
}  # fmt: skip
"""ONNX operator → function of torch of one tensor."""
BINARY: dict[str, str] = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "MatMul": "matmul", "Max": "maximum",
    "Min": "minimum",
}  # fmt: skip


def operator(kind: str) -> Operator | None:
    """The function of an ONNX operator type; None if there is none here."""
    import torch

    if kind in POINTWISE:
        function = getattr(torch, POINTWISE[kind])
        return lambda x, a, n: function(x[0])
    if kind in BINARY:
        both = getattr(torch, BINARY[kind])
        return lambda x, a, n: both(x[0], x[1])
    return _OTHERS.get(kind)


def _conv(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    data, weight, bias = x[0], x[1], x[2] if len(x) > 2 else None
    rank = weight.ndim - 2
    pads = list(a.get("pads", [0] * 2 * rank))
    data, padding = _padded(data, pads, rank)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return function(
        data, weight, bias, a.get("strides", [1] * rank), padding, a.get("dilations", [1] * rank), a.get("group", 1)
    )


def _padded(data: Any, pads: list[int], rank: int, value: float = 0.0) -> tuple[Any, list[int]]:
    """The data, and the padding that torch can do by itself: the same on both sides."""
    from torch.nn import functional

    begin, end = pads[:rank], pads[rank:]
    if begin == end:
        return data, begin
    order = [side for axis in reversed(range(rank)) for side in (begin[axis], end[axis])]
    return functional.pad(data, order, value=value), [0] * rank


def _conv_transpose(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    weight = x[1]
    rank = weight.ndim - 2
    pads = list(a.get("pads", [0] * 2 * rank))
    begin, end = pads[:rank], pads[rank:]
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    result = function(
        x[0],
        weight,
        x[2] if len(x) > 2 else None,
        a.get("strides", [1] * rank),
        0,
        a.get("output_padding", [0] * rank),
        a.get("group", 1),
        a.get("dilations", [1] * rank),
    )
    for axis in range(rank):
        size = result.shape[2 + axis]
        result = result.narrow(2 + axis, begin[axis], size - begin[axis] - end[axis])
    return result


def _gemm(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    return functional.linear(x[0], x[1], x[2] if len(x) > 2 else None)


def _clip(x: Inputs, a: Attributes, n: int) -> Any:
    import torch

    low = x[1] if len(x) > 1 else None
    high = x[2] if len(x) > 2 else None
    result = x[0]
    if low is not None:
        result = torch.maximum(result, low.to(result.dtype))
    return result if high is None else torch.minimum(result, high.to(result.dtype))


def _hard_sigmoid(x: Inputs, a: Attributes, n: int) -> Any:
    return (x[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1)


def _hard_swish(x: Inputs, a: Attributes, n: int) -> Any:
    return x[0] * (x[0] / 6 + 0.5).clamp(0, 1)


def _function(name: str, **fixed: str) -> Operator:
    """A function of ``torch.nn.functional``; ``fixed``: its parameter → ONNX attribute."""

    def call(x: Inputs, a: Attributes, n: int) -> Any:
        from torch.nn import functional

        return getattr(functional, name)(x[0], **{to: a[come] for to, come in fixed.items() if come in a})

    return call


def _leaky_relu(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    return functional.leaky_relu(x[0], a.get("alpha", 0.01))


def _gelu(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    return functional.gelu(x[0], approximate=a.get("approximate", "none"))


def _average_pool(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    rank = len(a["kernel_shape"])
    pads = list(a.get("pads", [0] * 2 * rank))
    includes = bool(a.get("count_include_pad", 0))
    if pads[:rank] != pads[rank:] and not includes:
        ones = _pool_sum(x[0].new_ones(1, 1, *x[0].shape[2:]), a, pads, rank)
        return _pool_sum(x[0], a, pads, rank) / ones
    data, padding = _padded(x[0], pads, rank)
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    return function(
        data,
        a["kernel_shape"],
        a.get("strides", [1] * rank),
        padding,
        ceil_mode=bool(a.get("ceil_mode", 0)),
        count_include_pad=includes,
    )


def _pool_sum(data: Any, a: Attributes, pads: list[int], rank: int) -> Any:
    from torch.nn import functional

    order = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[rank + axis])]
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    data = functional.pad(data, order)
    result = function(data, a["kernel_shape"], a.get("strides", [1] * rank), ceil_mode=bool(a.get("ceil_mode", 0)))
    return result * math.prod(a["kernel_shape"])


def _max_pool(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    rank = len(a["kernel_shape"])
    data, padding = _padded(x[0], list(a.get("pads", [0] * 2 * rank)), rank, -math.inf)
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    return function(
        data,
        a["kernel_shape"],
        a.get("strides", [1] * rank),
        padding,
        a.get("dilations", [1] * rank),
        ceil_mode=bool(a.get("ceil_mode", 0)),
    )


def _global_average_pool(x: Inputs, a: Attributes, n: int) -> Any:
    return x[0].mean(tuple(range(2, x[0].ndim)), keepdim=True)


def _reshape(x: Inputs, a: Attributes, n: int) -> Any:
    sizes = x[1].tolist()
    sizes = [x[0].shape[axis] if size == 0 and not a.get("allowzero") else size for axis, size in enumerate(sizes)]
    return x[0].reshape([n if sizes[0] == 1 else sizes[0], *sizes[1:]])


def _slice(x: Inputs, a: Attributes, n: int) -> Any:
    import torch

    starts, ends = x[1].tolist(), x[2].tolist()
    axes = x[3].tolist() if len(x) > 3 and x[3] is not None else list(range(len(starts)))
    steps = x[4].tolist() if len(x) > 4 and x[4] is not None else [1] * len(starts)
    result = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = range(result.shape[axis])[slice(start, None if end < -result.shape[axis] else end, step)]
        result = result.index_select(axis, torch.tensor(list(at), device=result.device))
    return result


def _split(x: Inputs, a: Attributes, n: int) -> Any:
    axis = a.get("axis", 0)
    if len(x) > 1 and x[1] is not None:
        return x[0].split(x[1].tolist(), axis)
    return x[0].chunk(a["num_outputs"], axis)


def _gather(x: Inputs, a: Attributes, n: int) -> Any:
    axis = a.get("axis", 0) % x[0].ndim
    indices = x[1].to(x[0].device) % x[0].shape[axis]
    flat = x[0].index_select(axis, indices.flatten())
    return flat.reshape(*x[0].shape[:axis], *indices.shape, *x[0].shape[axis + 1 :])


def _pad(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    pads, rank = x[1].tolist(), x[0].ndim
    if len(x) > 3 and x[3] is not None:
        full = [0] * 2 * rank
        count = len(pads) // 2
        for index, axis in enumerate(x[3].tolist()):
            full[axis], full[axis + rank] = pads[index], pads[index + count]
        pads = full
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[a.get("mode", "constant")]
    order = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]
    if mode == "constant":
        value = float(x[2]) if len(x) > 2 and x[2] is not None else 0.0
        return functional.pad(x[0], order, value=value)
    return functional.pad(x[0], order[: 2 * (rank - 2)], mode=mode)


def _resize(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    how, where = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if len(x) > 3 and x[3] is not None:
        sizes = x[3].tolist()[-2:]
    else:
        sizes = [int(size * scale) for size, scale in zip(x[0].shape[-2:], x[2].tolist()[-2:], strict=True)]
    if how == "nearest":
        return functional.interpolate(x[0], sizes, mode="nearest")
    return functional.interpolate(x[0], sizes, mode="bilinear", align_corners=where == "align_corners")


def _expand(x: Inputs, a: Attributes, n: int) -> Any:
    import torch

    sizes = x[1].tolist()
    shape = torch.broadcast_shapes(tuple(x[0].shape), (n if sizes[0] == 1 else sizes[0], *sizes[1:]))
    return x[0].expand(shape)


def _depth_to_space(x: Inputs, a: Attributes, n: int) -> Any:
    size = a["blocksize"]
    batch, channels, height, width = x[0].shape
    if a.get("mode", "DCR") == "CRD":
        parts = x[0].reshape(batch, channels // size**2, size, size, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x[0].reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, channels // size**2, height * size, width * size)


def _space_to_depth(x: Inputs, a: Attributes, n: int) -> Any:
    size = a["blocksize"]
    batch, channels, height, width = x[0].shape
    parts = x[0].reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(batch, channels * size**2, height // size, width // size)


def _layer_normalization(x: Inputs, a: Attributes, n: int) -> Any:
    from torch.nn import functional

    axis = a.get("axis", -1) % x[0].ndim
    bias = x[2] if len(x) > 2 else None
    return functional.layer_norm(x[0], list(x[0].shape[axis:]), x[1], bias, a.get("epsilon", 1e-5))


def _reduce(name: str) -> Operator:
    def call(x: Inputs, a: Attributes, n: int) -> Any:
        axes = x[1].tolist() if len(x) > 1 and x[1] is not None else list(range(x[0].ndim))
        return getattr(x[0], name)(axes, keepdim=bool(a.get("keepdims", 1)))

    return call


def _cast(x: Inputs, a: Attributes, n: int) -> Any:
    return x[0].float() if a.get("to") == 1 else x[0].long()


_OTHERS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "Relu": _function("relu"),
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "Elu": _function("elu", alpha="alpha"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Gelu": _gelu,
    "Softplus": _function("softplus"),
    "Mish": _function("mish"),
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _global_average_pool,
    "Reshape": _reshape,
    "Transpose": lambda x, a, n: x[0].permute(a["perm"]),
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
    "Concat": lambda x, a, n: _concat(x, a),
    "Resize": _resize,
    "Expand": _expand,
    "Tile": lambda x, a, n: x[0].repeat(x[1].tolist()),
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Softmax": lambda x, a, n: x[0].softmax(a.get("axis", -1)),
    "LogSoftmax": lambda x, a, n: x[0].log_softmax(a.get("axis", -1)),
    "LayerNormalization": _layer_normalization,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Identity": lambda x, a, n: x[0],
    "Cast": _cast,
}


def _concat(x: Inputs, a: Attributes) -> Any:
    import torch

    batch = max(one.shape[0] for one in x) if a["axis"] else 0
    parts = [one.expand(batch, *one.shape[1:]) if batch and one.shape[0] != batch else one for one in x]
    return torch.cat(parts, a["axis"])


def mixes_samples(kind: str, attributes: Attributes, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether an operator, given activations of these shapes in and out, could mix samples of a batch, or put another
    axis in their place."""
    if any(not shape or shape[0] != 1 for shape in shapes):
        return True
    if kind == "Transpose":
        return bool(attributes["perm"][0] != 0)
    if kind in ("Concat", "Split", "Gather", "Softmax", "LogSoftmax"):
        default = -1 if kind.endswith("Softmax") else 0
        return int(attributes.get("axis", default)) % len(shapes[0]) == 0
    return False
