"""One case or more per MIL operator: what goes in, and what an evaluation independent of ours makes of it.

Where ``expected`` is None, coremltools' own value inference is that evaluation; else it is PyTorch or, for what both
lack, a plain reading of the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional
Array = np.ndarray[Any, Any]
rng = np.random.default_rng(11)


def real(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    return frozen(rng.uniform(low, high, shape).astype(np.float32))


def whole(*shape: int, low: int = -5, high: int = 5) -> Array:
    return frozen(rng.integers(low, high, shape).astype(np.int32))


def frozen(array: Array) -> Array:
    """Cases share arrays, which nobody may change."""
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class Case:
    """One use of one operator.

    Args:
        op: its name.
        feed: inputs of the program; ``values`` may be a tuple.
        params: constants.
        expected: of the fed arrays as torch tensors, in ``feed``'s order; None: value inference.
        opset: deployment target.
        cast: dtypes that inputs are cast to inside the program, and whether the result is cast back.
    """

    op: str
    feed: Mapping[str, Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    expected: Callable[..., Any] | None = None
    opset: str = "iOS15"
    cast: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 2e-6


X = real(2, 3, 4)
IMAGE = real(2, 4, 7, 6)
UNIT = real(2, 5, low=-0.9, high=0.9)
POSITIVE = real(2, 5, low=0.1, high=3.0)
A, B = real(2, 1, 4), real(3, 1)
N, M = whole(2, 3), whole(3, low=1)
CHANNELS = real(4, low=0.2, high=1.5)


def t(array: Any) -> Any:
    return torch.from_numpy(np.array(array))


CASES: list[Case] = []


def case(op: str, feed: Mapping[str, Any], params: Mapping[str, Any] | None = None, **more: Any) -> None:
    CASES.append(Case(op, feed, params or {}, **more))


# --- elementwise
for name in ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round", "sign", "sin", "sinh",
             "square", "tan", "tanh"):  # fmt: skip
    case(name, {"x": X})
for name in ("acos", "asin", "atanh"):
    case(name, {"x": UNIT})
case("sqrt", {"x": POSITIVE})
case("log", {"x": POSITIVE}, {"epsilon": np.float32(1e-3)})
case("log", {"x": POSITIVE})
case("inverse", {"x": POSITIVE}, {"epsilon": np.float32(0.25)})
case("rsqrt", {"x": POSITIVE}, {"epsilon": np.float32(0.25)})
case("clip", {"x": X}, {"alpha": np.float32(-0.5), "beta": np.float32(1.25)})
case("threshold", {"x": X}, {"alpha": np.float32(0.25)})
case("identity", {"x": X}, expected=lambda x: x)
case("round", {"x": np.array([-1.5, -0.5, 0.5, 1.5, 2.5], np.float32)})
for name in ("add", "sub", "mul", "real_div", "maximum", "minimum", "greater", "greater_equal", "less", "less_equal",
             "floor_div", "mod"):  # fmt: skip
    case(name, {"x": A, "y": B})
case("equal", {"x": N, "y": np.array([[0, 1, 2]], np.int32)})
case("not_equal", {"x": N, "y": np.array([[0, 1, 2]], np.int32)})
case("add", {"x": N, "y": M})
case("mod", {"x": N, "y": M})
case("floor_div", {"x": N, "y": M})
case("pow", {"x": POSITIVE, "y": real(5)})
for name in ("logical_and", "logical_or", "logical_xor"):
    case(name, {"x": N, "y": M - 2}, cast={"x": "bool", "y": "bool"})
case("logical_not", {"x": N}, cast={"x": "bool"})
case("select", {"cond": N, "a": real(2, 3), "b": real(2, 3)}, cast={"cond": "bool"})
case("cast", {"x": X * 3}, {"dtype": "int32"})
case("cast", {"x": X}, {"dtype": "bool"})
case("cast", {"x": N}, {"dtype": "fp32"})

# --- activations
for name in ("relu", "relu6", "sigmoid", "softplus", "softsign"):
    case(name, {"x": X * 4})
case("silu", {"x": X * 4}, expected=F.silu)
for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"):
    case("gelu", {"x": X * 2}, {"mode": mode})
case("gelu", {"x": X}, expected=F.gelu)
HALF, ONE = np.float32(0.5), np.float32(1.0)
case("clamped_relu", {"x": X}, {"alpha": HALF, "beta": ONE})
case("elu", {"x": X}, {"alpha": HALF})
case("leaky_relu", {"x": X}, {"alpha": np.float32(0.1)})
case("linear_activation", {"x": X}, {"alpha": HALF, "beta": ONE})
case("scaled_tanh", {"x": X}, {"alpha": HALF, "beta": ONE + HALF})
case("sigmoid_hard", {"x": X * 4}, {"alpha": np.float32(0.2), "beta": HALF})
case("thresholded_relu", {"x": X}, {"alpha": HALF})
case("prelu", {"x": IMAGE}, {"alpha": CHANNELS})
case("softplus_parametric", {"x": IMAGE}, {"alpha": CHANNELS, "beta": CHANNELS[::-1].copy()})
case("softmax", {"x": X}, {"axis": 1})
case("softmax", {"x": X * 40})

# --- matrix products
W = real(6, 4)
case("linear", {"x": X}, {"weight": W, "bias": real(6)})
case("matmul", {"x": real(2, 3, 4), "y": real(5, 1, 4, 2)}, tolerance=1e-5)
case("matmul", {"x": real(2, 4, 3), "y": real(2, 5, 4)}, {"transpose_x": True, "transpose_y": True}, tolerance=1e-5)
case("einsum", {"values": (real(2, 3, 4, 5), real(2, 5, 4, 6))}, {"equation": "nchw,nwhu->nchu"}, tolerance=1e-5)
case("einsum", {"values": (real(3, 1, 5), real(5, 4, 6))}, {"equation": "chw,whr->chr"}, tolerance=1e-5)
Q, K, V = real(1, 2, 5, 4), real(1, 2, 3, 4), real(1, 2, 3, 4)
case("scaled_dot_product_attention", {"query": Q, "key": K, "value": V}, opset="iOS18",
     expected=F.scaled_dot_product_attention, tolerance=1e-5)  # fmt: skip
case("scaled_dot_product_attention", {"query": Q, "key": K, "value": V, "attn_mask": real(5, 3)}, opset="iOS18",
     expected=F.scaled_dot_product_attention, tolerance=1e-5)  # fmt: skip

# --- convolutions
KERNEL = real(6, 4, 3, 2)
case("conv", {"x": IMAGE}, {"weight": KERNEL, "pad_type": "valid"}, expected=lambda x: F.conv2d(x, t(KERNEL)))
BIAS = real(6)
case("conv", {"x": IMAGE}, {"weight": KERNEL, "bias": BIAS, "strides": [2, 1], "dilations": [1, 2],
     "pad_type": "custom", "pad": [1, 1, 2, 2]},
     expected=lambda x: F.conv2d(x, t(KERNEL), t(BIAS), (2, 1), (1, 2), (1, 2)))  # fmt: skip
case("conv", {"x": IMAGE}, {"weight": KERNEL, "pad_type": "custom", "pad": [0, 2, 1, 0]},
     expected=lambda x: F.conv2d(F.pad(x, (1, 0, 0, 2)), t(KERNEL)))  # fmt: skip
case(
    "conv",
    {"x": IMAGE},
    {"weight": KERNEL, "pad_type": "same"},
    expected=lambda x: F.conv2d(x, t(KERNEL), padding="same"),
)
case("conv", {"x": IMAGE}, {"weight": KERNEL, "pad_type": "same", "strides": [2, 2]},
     expected=lambda x: F.conv2d(F.pad(x, (0, 0, 1, 1)), t(KERNEL), stride=2))  # fmt: skip
case("conv", {"x": IMAGE}, {"weight": KERNEL, "pad_type": "same_lower"}, opset="iOS16",
     expected=lambda x: F.conv2d(F.pad(x, (1, 0, 1, 1)), t(KERNEL)))  # fmt: skip
DEPTHWISE = real(8, 1, 3, 3)
case("conv", {"x": IMAGE}, {"weight": DEPTHWISE, "groups": 4}, expected=lambda x: F.conv2d(x, t(DEPTHWISE), groups=4))
KERNEL_1D, KERNEL_3D = real(5, 3, 2), real(2, 3, 2, 2, 2)
case("conv", {"x": X}, {"weight": KERNEL_1D}, expected=lambda x: F.conv1d(x, t(KERNEL_1D)))
case("conv", {"x": real(1, 3, 4, 5, 3)}, {"weight": KERNEL_3D}, expected=lambda x: F.conv3d(x, t(KERNEL_3D)))
TURNED = real(4, 3, 3, 2)
case("conv_transpose", {"x": IMAGE}, {"weight": TURNED, "strides": [2, 3]},
     expected=lambda x: F.conv_transpose2d(x, t(TURNED), stride=(2, 3)))  # fmt: skip
case("conv_transpose", {"x": IMAGE}, {"weight": TURNED, "bias": real(3) * 0 + 1, "strides": [2, 2], "dilations": [2, 1],
     "pad_type": "custom", "pad": [1, 1, 0, 0]},
     expected=lambda x: F.conv_transpose2d(x, t(TURNED), torch.ones(3), 2, (1, 0), dilation=(2, 1)))  # fmt: skip
case("conv_transpose", {"x": IMAGE}, {"weight": TURNED, "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 0, 0],
     "output_shape": [2, 3, 14, 13]},
     expected=lambda x: F.conv_transpose2d(x, t(TURNED), stride=2, padding=(1, 0), output_padding=(1, 1)))  # fmt: skip
GROUPED = real(4, 2, 4, 4)
case("conv_transpose", {"x": IMAGE}, {"weight": GROUPED, "strides": [2, 2], "groups": 2, "pad_type": "same"},
     expected=lambda x: F.conv_transpose2d(x, t(GROUPED), stride=2, padding=1, groups=2))  # fmt: skip
TURNED_1D = real(3, 2, 3)
case("conv_transpose", {"x": X}, {"weight": TURNED_1D}, expected=lambda x: F.conv_transpose1d(x, t(TURNED_1D)))

# --- pools
SQUARE = {"kernel_sizes": [3, 2], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1]}
case("max_pool", {"x": IMAGE}, SQUARE, expected=lambda x: F.max_pool2d(x, (3, 2), 2, 1))
case(
    "max_pool",
    {"x": IMAGE},
    {**SQUARE, "ceil_mode": True},
    expected=lambda x: F.max_pool2d(x, (3, 2), 2, 1, ceil_mode=True),
)
case("max_pool", {"x": IMAGE - 9}, {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "same"},
     expected=lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 1), value=-torch.inf), 3, 2))  # fmt: skip
case("max_pool", {"x": X}, {"kernel_sizes": [2], "pad_type": "valid"}, expected=lambda x: F.max_pool1d(x, 2, 1))
case("avg_pool", {"x": IMAGE}, SQUARE, expected=lambda x: F.avg_pool2d(x, (3, 2), 2, 1))
case("avg_pool", {"x": IMAGE}, {**SQUARE, "exclude_padding_from_average": True},
     expected=lambda x: F.avg_pool2d(x, (3, 2), 2, 1, count_include_pad=False))  # fmt: skip
for excluded in (False, True):
    case("avg_pool", {"x": IMAGE}, {**SQUARE, "ceil_mode": True, "exclude_padding_from_average": excluded},
         expected=lambda x, e=excluded: F.avg_pool2d(x, (3, 2), 2, 1, True, not e))  # fmt: skip
case("avg_pool", {"x": real(1, 2, 4, 5, 6)}, {"kernel_sizes": [2, 3, 2], "pad_type": "valid"},
     expected=lambda x: F.avg_pool3d(x, (2, 3, 2), 1))  # fmt: skip
case("l2_pool", {"x": IMAGE}, {"kernel_sizes": [2, 3], "strides": [2, 2], "pad_type": "valid"},
     expected=lambda x: F.lp_pool2d(x, 2, (2, 3), 2))  # fmt: skip

# --- normalizations
MEAN, VARIANCE, GAMMA, BETA = real(4), CHANNELS, real(4), real(4)
EPSILON = np.float32(1e-3)
case("batch_norm", {"x": IMAGE}, {"mean": MEAN, "variance": VARIANCE, "gamma": GAMMA, "beta": BETA, "epsilon": EPSILON},
     expected=lambda x: F.batch_norm(x, t(MEAN), t(VARIANCE), t(GAMMA), t(BETA), eps=1e-3))  # fmt: skip
case("batch_norm", {"x": IMAGE}, {"mean": MEAN, "variance": VARIANCE},
     expected=lambda x: F.batch_norm(x, t(MEAN), t(VARIANCE)))  # fmt: skip
case("instance_norm", {"x": IMAGE}, {"gamma": GAMMA, "beta": BETA, "epsilon": EPSILON},
     expected=lambda x: F.instance_norm(x, weight=t(GAMMA), bias=t(BETA), eps=1e-3))  # fmt: skip
LAST_TWO = real(3, 4)
case("layer_norm", {"x": X}, {"axes": [1, 2], "gamma": LAST_TWO, "beta": LAST_TWO + 1, "epsilon": EPSILON})
case(
    "layer_norm",
    {"x": X},
    {"axes": [-1], "gamma": GAMMA, "beta": BETA},
    expected=lambda x: F.layer_norm(x, (4,), t(GAMMA), t(BETA)),
)
case("l2_norm", {"x": IMAGE}, {"epsilon": EPSILON})
case("local_response_norm", {"x": IMAGE}, {"size": 3, "alpha": np.float32(0.5), "beta": HALF, "k": ONE},
     expected=lambda x: F.local_response_norm(x, 3, 0.5, 0.5, 1.0))  # fmt: skip

# --- reductions
for name in ("reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum_exp", "reduce_max", "reduce_mean", "reduce_min",
             "reduce_prod", "reduce_sum", "reduce_sum_square"):  # fmt: skip
    case(name, {"x": X}, {"axes": [-1, 0], "keep_dims": True})
    case(name, {"x": X}, {"axes": [1]})
case("reduce_log_sum", {"x": POSITIVE}, {"axes": [1]})
case("reduce_sum", {"x": X}, expected=torch.sum)
case("reduce_argmax", {"x": X}, {"axis": 1})
case("reduce_argmin", {"x": X}, {"axis": -1, "keep_dims": True})

# --- movement
case("reshape", {"x": X}, {"shape": [4, -1]})
case("reshape", {"x": X}, {"shape": [0, 2, -1]}, expected=lambda x: x.reshape(2, 2, 6))
case("reshape_like", {"x": X, "ref_tensors": (real(4, 3, 9), real(7, 2, 1))},
     {"begins": (0, 1), "ends": (2, 2), "end_masks": (False, False)}, opset="iOS16",
     expected=lambda x, a, b: x.reshape(4, 3, 2))  # fmt: skip
case("expand_dims", {"x": X}, {"axes": [0, -1]})
case("squeeze", {"x": real(1, 3, 1, 2)}, {"axes": [0, 2]})
case("squeeze", {"x": real(1, 3, 1, 2)})
case("transpose", {"x": X}, {"perm": [2, 0, 1]})
case("flatten2d", {"x": X}, {"axis": 2})
case("concat", {"values": (real(2, 3), real(2, 1))}, {"axis": 1})
case("concat", {"values": (real(2, 3), real(2, 3))}, {"axis": 1, "interleave": True},
     expected=lambda a, b: torch.stack([a, b], 2).reshape(2, 6))  # fmt: skip
case("stack", {"values": (real(2, 3), real(2, 3))}, {"axis": 1})
case("split", {"x": X}, {"axis": 1, "split_sizes": [1, 2]}, expected=lambda x: torch.split(x, [1, 2], 1))
case("split", {"x": X}, {"axis": 2, "num_splits": 2}, expected=lambda x: torch.split(x, 2, 2))
case("pad", {"x": X}, {"pad": [1, 0, 0, 2], "mode": "constant", "constant_val": np.float32(3)})
case("pad", {"x": X}, {"pad": [1, 2], "mode": "reflect"})
case("pad", {"x": X}, {"pad": [1, 2], "mode": "replicate"})
case("tile", {"x": X}, {"reps": [2, 1, 3]})
case("reverse", {"x": X}, {"axes": [0, -1]})
case("reverse", {"x": X}, expected=lambda x: x.flip((0, 1, 2)))
case("crop", {"x": IMAGE}, {"crop_height": [1, 2], "crop_width": [0, 1]}, expected=lambda x: x[:, :, 1:-2, :-1])
case("depth_to_space", {"x": real(1, 8, 2, 3)}, {"block_size": 2},
     expected=lambda x: F.pixel_shuffle(x.reshape(1, 4, 2, 2, 3).transpose(1, 2).reshape(1, 8, 2, 3), 2))  # fmt: skip
case("space_to_depth", {"x": real(1, 2, 4, 6)}, {"block_size": 2},
     expected=lambda x: F.pixel_unshuffle(x, 2).reshape(1, 2, 4, 2, 3).transpose(1, 2).reshape(1, 8, 2, 3))  # fmt: skip
case("pixel_shuffle", {"x": real(1, 8, 2, 3)}, {"upscale_factor": 2}, expected=lambda x: F.pixel_shuffle(x, 2))
case("pixel_unshuffle", {"x": real(1, 2, 4, 6)}, {"downscale_factor": np.uint32(2)}, opset="iOS16",
     expected=lambda x: F.pixel_unshuffle(x, 2))  # fmt: skip
BLOCKS = {"block_shape": [2, 3], "paddings": np.array([[1, 0], [0, 0]], np.int32)}


def to_batch(x: Any) -> Any:
    padded = F.pad(x, (0, 0, 1, 0))
    return torch.cat([padded[:, :, i::2, j::3] for i in range(2) for j in range(3)])


case("space_to_batch", {"x": IMAGE}, BLOCKS, expected=to_batch)
SMALL = real(6, 2, 2, 3)


def from_batch(x: Any) -> Any:
    whole_image = torch.zeros(1, 2, 4, 9)
    for index in range(6):
        whole_image[:, :, index // 3 :: 2, index % 3 :: 3] = x[index]
    return whole_image[:, :, 1:, :-2]


case("batch_to_space", {"x": SMALL}, {"block_shape": [2, 3], "crops": np.array([[1, 0], [0, 2]], np.int32)},
     expected=from_batch)  # fmt: skip
case("sliding_windows", {"x": real(2, 7, 3)}, {"axis": 1, "size": 3, "stride": 2},
     expected=lambda x: x.unfold(1, 3, 2).transpose(2, 3))  # fmt: skip
case("shape", {"x": X}, expected=lambda x: torch.tensor(x.shape, dtype=torch.int32))
case("fill", {}, {"shape": [2, 3], "value": np.float32(1.5)}, expected=lambda: torch.full((2, 3), 1.5))
case(
    "fill_like",
    {"ref_tensor": X},
    {"value": np.float32(2.5)},
    opset="iOS16",
    expected=lambda x: torch.full_like(x, 2.5),
)
case(
    "range_1d",
    {"start": np.int32(2), "end": np.int32(11), "step": np.int32(3)},
    expected=lambda *a: torch.tensor([2, 5, 8]),
)
case("one_hot", {"indices": np.array([0, 2, 1], np.int32)}, {"one_hot_vector_size": 4},
     expected=lambda i: F.one_hot(i.long(), 4))  # fmt: skip
case("one_hot", {"indices": np.array([0, 2, 1], np.int32)}, {"one_hot_vector_size": 4, "axis": 0,
     "on_value": np.float32(2), "off_value": np.float32(-1)},
     expected=lambda i: F.one_hot(i.long(), 4).T * 3.0 - 1)  # fmt: skip
case("band_part", {"x": real(2, 4, 5)}, {"lower": 1, "upper": 2})
case("band_part", {"x": real(2, 4, 5)}, {"lower": 0, "upper": -1}, expected=torch.triu)
case("cumsum", {"x": X}, {"axis": 1})
case("cumsum", {"x": X}, {"axis": 2, "reverse": True})
case("cumsum", {"x": X}, {"axis": 2, "exclusive": True}, expected=lambda x: x.cumsum(2) - x)
case("slice_by_index", {"x": IMAGE}, {"begin": [0, 1, -3, 5], "end": [2, 3, 7, 0], "stride": [1, 2, 1, -2]})
case("slice_by_index", {"x": IMAGE}, {"begin": [1, 1, 2, 0], "end": [0, 0, 5, 2],
     "begin_mask": [False, True, False, False], "end_mask": [False, True, False, True],
     "squeeze_mask": [True, False, False, False]})  # fmt: skip
case("slice_by_index", {"x": X}, {"begin": [0, -1, 0], "end": [0, 0, 0], "end_mask": [True, False, True],
     "squeeze_mask": [False, True, False]}, expected=lambda x: x[:, -1])  # fmt: skip
case("slice_by_size", {"x": X}, {"begin": [0, 1, -3], "size": [-1, 2, 2]}, expected=lambda x: x[:, 1:3, -3:-1])
case("slice_update", {"x": X, "update": real(2, 2, 2)}, {"begin": [0, 1, 0], "end": [2, 3, 4], "stride": [1, 1, 2]},
     opset="iOS18")  # fmt: skip

# --- gathering, scattering, sorting
PLACES = np.array([[2, 0], [1, -1]], np.int32)
case("gather", {"x": X, "indices": PLACES}, {"axis": 1})
case("gather", {"x": X}, {"indices": np.int32(1), "axis": 1})
case(
    "gather",
    {"x": real(2, 3, 4), "indices": np.array([[0, 2], [1, 1]], np.int32)},
    {"axis": 2, "batch_dims": 1},
    opset="iOS16",
)
case("gather_along_axis", {"x": X, "indices": whole(2, 2, 4, low=0, high=3)}, {"axis": 1})
case("gather_nd", {"x": X, "indices": np.array([[0, 1], [1, 2]], np.int32)}, expected=lambda x, i: x[[0, 1], [1, 2]])
case("gather_nd", {"x": X, "indices": np.array([[[1]], [[2]]], np.int32)}, {"batch_dims": 1}, opset="iOS16",
     expected=lambda x, i: torch.stack([x[0, 1], x[1, 2]])[:, None])  # fmt: skip
ROWS = np.array([1, 0, 1], np.int32)
UPDATES = real(2, 3, 4)
case("scatter", {"data": real(2, 2, 4), "indices": ROWS, "updates": UPDATES}, {"axis": 1, "mode": "add"},
     expected=lambda d, i, u: d.index_add(1, i.long(), u))  # fmt: skip
case("scatter", {"data": real(2, 3, 4), "indices": np.array([2, 0], np.int32), "updates": real(2, 2, 4)},
     {"axis": 1, "mode": "update"}, expected=lambda d, i, u: d.index_copy(1, i.long(), u))  # fmt: skip
ALONG = np.array([[[1, 0, 2, 1], [1, 1, 0, 0]]] * 2, np.int32)
for mode, reduce in (("add", "sum"), ("mul", "prod"), ("max", "amax"), ("min", "amin")):
    case("scatter_along_axis", {"data": X, "indices": ALONG, "updates": real(2, 2, 4)}, {"axis": 1, "mode": mode},
         expected=lambda d, i, u, r=reduce: d.scatter_reduce(1, i.long(), u, r))  # fmt: skip
case("scatter_nd", {"data": X, "indices": np.array([[0, 1], [1, 2]], np.int32), "updates": real(2, 4)}, {"mode": "sub"},
     expected=lambda d, i, u: d.index_put((i[:, 0].long(), i[:, 1].long()), -u, accumulate=True))  # fmt: skip
case("scatter_nd", {"data": X, "indices": np.array([[0, 1], [1, 2]], np.int32), "updates": real(2, 4)},
     {"mode": "update"}, expected=lambda d, i, u: d.index_put((i[:, 0].long(), i[:, 1].long()), u))  # fmt: skip
case("non_zero", {"x": N}, expected=torch.nonzero)
case("argsort", {"x": X}, {"axis": 1, "ascending": True})
case("argsort", {"x": X}, {"axis": -1})
case("topk", {"x": X}, {"k": 2, "axis": 2}, expected=lambda x: torch.topk(x, 2, 2))
case("topk", {"x": X}, {"k": 2, "axis": 1, "ascending": True}, expected=lambda x: torch.topk(x, 2, 1, largest=False))

# --- resizing
case("upsample_nearest_neighbor", {"x": IMAGE}, {"scale_factor_height": 2, "scale_factor_width": 3},
     expected=lambda x: F.interpolate(x, scale_factor=(2, 3)))  # fmt: skip
case("upsample_nearest_neighbor", {"x": IMAGE},
     {"scale_factor_height": np.float32(1.5), "scale_factor_width": np.float32(0.5)},
     expected=lambda x: F.interpolate(x, size=(10, 3)))  # fmt: skip
case("resize_nearest_neighbor", {"x": IMAGE}, {"target_size_height": 5, "target_size_width": 9},
     expected=lambda x: F.interpolate(x, size=(5, 9)))  # fmt: skip
SIZES = {"target_size_height": 11, "target_size_width": 4}
case("upsample_bilinear", {"x": IMAGE}, {"scale_factor_height": 2, "scale_factor_width": 3, "align_corners": True},
     expected=lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear", align_corners=True))  # fmt: skip
case("upsample_bilinear", {"x": IMAGE}, {"scale_factor_height": 2, "scale_factor_width": 3, "align_corners": False},
     expected=lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear"))  # fmt: skip
case("resize_bilinear", {"x": IMAGE}, {**SIZES, "sampling_mode": "UNALIGN_CORNERS"},
     expected=lambda x: F.interpolate(x, (11, 4), mode="bilinear"))  # fmt: skip
case("resize_bilinear", {"x": IMAGE}, {**SIZES, "sampling_mode": "STRICT_ALIGN_CORNERS"},
     expected=lambda x: F.interpolate(x, (11, 4), mode="bilinear", align_corners=True))  # fmt: skip
# The table of grid points in coremltools' documentation of resize_bilinear: the input [0, 1] shows them.
GRID = {"UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1], "ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
        "DEFAULT": [0, 0.4, 0.8, 1, 1], "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9]}  # fmt: skip
for mode, points in GRID.items():
    case("resize_bilinear", {"x": np.array([[[[0, 1]]]], np.float32)},
         {"target_size_height": 1, "target_size_width": 5, "sampling_mode": mode},
         expected=lambda x, p=points: torch.tensor(p).reshape(1, 1, 1, 5))  # fmt: skip
case("resize", {"x": IMAGE}, {"shape": [11, 0], "resized_dims": np.uint32(2), "sampling_mode": "UNALIGN_CORNERS"},
     opset="iOS17", expected=lambda x: F.interpolate(x, (11, 6), mode="bilinear"))  # fmt: skip
case("resize", {"x": IMAGE}, {"shape": [5, 9], "resized_dims": np.uint32(2), "interpolation_mode": "NEAREST_NEIGHBOR",
     "sampling_mode": "UNALIGN_CORNERS"}, opset="iOS17",
     expected=lambda x: F.interpolate(x, (5, 9), mode="nearest-exact"))  # fmt: skip

# --- quantization
ZERO = np.int8(-3)
case("quantize", {"input": X}, {"scale": np.float32(0.02), "zero_point": ZERO, "output_dtype": "int8"}, opset="iOS17")
SCALES = np.array([0.02, 0.5, 0.01], np.float32)
case("quantize", {"input": X}, {"scale": SCALES, "output_dtype": "uint8", "axis": 1,
     "zero_point": np.array([128, 3, 0], np.uint8)}, opset="iOS17")  # fmt: skip
case("dequantize", {"input": whole(2, 3, 4, low=-128, high=127)}, {"scale": SCALES, "axis": -2,
     "zero_point": np.array([-128, 3, 0], np.int8)}, opset="iOS17", cast={"input": "int8"},
     expected=lambda q: (q.float() - torch.tensor([[-128.0], [3.0], [0.0]])) * t(SCALES)[:, None])  # fmt: skip
