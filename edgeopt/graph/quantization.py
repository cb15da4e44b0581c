"""The table of scales: quantization as data beside the float graph.

One affine grid everywhere: ``real = scale · (integer − zero_point)``, integers int8 in [−128, 127], ties to even
(Jacob et al., 2018, arXiv:1712.05877). Targets shift the grid (+128 for uint8), never the steps.

What the table means for execution (every target and the integer reference follow it):

- A node's scheme stands in ``schemes`` (absent: ``fp32``).
- An ``int8`` node reads each activation input that has ``QuantParams`` through quantize → dequantize, its weight
  from ``weights`` and its bias from ``biases``. An input without ``QuantParams`` is read as it is: inside a fused
  chain (Conv → Relu, Sigmoid → Mul) nothing is rounded.
- A tensor with ``QuantParams`` whose producer is an ``int8`` node *is* its integers: every consumer, float ones too,
  reads the dequantized integers. Where the producer is a float node or a graph input, only int8 consumers read it
  through the grid; float consumers read the float tensor.
- ``int8-weights``: weight from ``weights`` (dequantized), everything else float. ``int8-dynamic``: the same, and the
  runtime quantizes the activation input when it runs.
- ``int4-weights`` and palettes: weight from ``compressed`` (decompressed), everything else float.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.compression import Blocks, Palette
from edgeopt.types import Kept, SchemeName

INT8_MIN, INT8_MAX = -128, 127
SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2**20
"""A constant-zero tensor gets this scale instead of 0: far above subnormals, which some kernels flush."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Range:
    """Real interval that a tensor's grid must cover. ``low <= 0 <= high``: zero is always exact (padding, ReLU)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low <= 0 <= self.high):
            raise ValueError(f"not a range around zero: [{self.low}, {self.high}]")

    def union(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Scale and zero point of one tensor.

    Args:
        scale: float32, shape () per tensor or (channels,) per channel; > 0.
        zero_point: int32, the shape of ``scale``; in [−128, 127].
        axis: channel axis, or None per tensor.
    """

    scale: Array
    zero_point: Array
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", np.asarray(self.scale, np.float32))
        object.__setattr__(self, "zero_point", np.asarray(self.zero_point, np.int32))
        if self.scale.shape != self.zero_point.shape or self.scale.ndim != (self.axis is not None):
            raise ValueError(f"scale {self.scale.shape}, zero point {self.zero_point.shape}, axis {self.axis} disagree")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("scales must be finite and positive")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, QuantParams)
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    @classmethod
    def from_range(cls, bounds: Range, *, symmetric: bool = False) -> QuantParams:
        """Per-tensor parameters of the int8 grid that covers ``bounds``; zero is exactly representable.

        Symmetric: zero point 0, steps −127…127 cover ±max(|low|, high).
        """
        if symmetric:
            scale = max(-bounds.low, bounds.high) / INT8_MAX
            return cls(np.asarray(max(scale, SMALLEST_SCALE), np.float32), np.asarray(0))
        # The zero point is chosen for the scale as stored, in float32.
        step = float(np.float32(max((bounds.high - bounds.low) / (INT8_MAX - INT8_MIN), SMALLEST_SCALE)))
        zero_point = int(np.clip(np.rint(INT8_MIN - bounds.low / step), INT8_MIN, INT8_MAX))
        return cls(np.asarray(step, np.float32), np.asarray(zero_point))

    @property
    def range(self) -> Range:
        """Real interval that the grid covers (per tensor only)."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        return Range(scale * (INT8_MIN - zero_point), scale * (INT8_MAX - zero_point))

    def _along(self, array: Array, ndim: int) -> Array:
        if self.axis is None:
            return array
        shape = [1] * ndim
        shape[self.axis] = -1
        return array.reshape(shape)

    def quantize(self, real: Array) -> npt.NDArray[np.int8]:
        """Round half to even, saturate. Any shape; float arithmetic in float32, as the runtimes do."""
        real = np.asarray(real, np.float32)
        steps = np.rint(real / self._along(self.scale, real.ndim)) + self._along(self.zero_point, real.ndim)
        integers: npt.NDArray[np.int8] = np.clip(steps, INT8_MIN, INT8_MAX).astype(np.int8)
        return integers

    def dequantize(self, integers: Array) -> npt.NDArray[np.float32]:
        integers = np.asarray(integers)
        steps = integers.astype(np.int32) - self._along(self.zero_point, integers.ndim)
        return (steps.astype(np.float32) * self._along(self.scale, integers.ndim)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A weight: int8 integers of the float weight's shape, zero point 0, per channel on ``params.axis``."""

    integers: npt.NDArray[np.int8]
    params: QuantParams

    def dequantize(self) -> npt.NDArray[np.float32]:
        return self.params.dequantize(self.integers)


@dataclass(frozen=True)
class Quantization:
    """The table. Keys are value names (activations), initializer names (weights, biases) and node names (schemes).

    ``biases`` hold int32 integers whose scale is ``input scale · weight scale`` per channel and zero point 0.
    ``ranges`` hold what calibration chose before a target's zero-point rule made parameters of it; tensors of one
    equal-scale group have one range. ``labels`` say how a range was found (``minmax``, ``mse``, ``fixed``…).
    """

    activations: Mapping[str, QuantParams] = field(default_factory=dict)
    weights: Mapping[str, QuantizedTensor] = field(default_factory=dict)
    biases: Mapping[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    schemes: Mapping[str, SchemeName] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    compressed: Mapping[str, Palette | Blocks] = field(default_factory=dict)

    def scheme(self, node: ir.Node) -> SchemeName:
        return self.schemes.get(node.name or "", "fp32")

    def save(self, path: Path) -> None:
        """Write as npz (arrays, and one JSON document of everything else); ``load`` gives it back exactly."""
        arrays: dict[str, Array] = {}
        for name, params in self.activations.items():
            arrays[f"a/s/{name}"], arrays[f"a/z/{name}"] = params.scale, params.zero_point
        for name, weight in self.weights.items():
            arrays[f"w/q/{name}"], arrays[f"w/s/{name}"] = weight.integers, weight.params.scale
        for name, bias in self.biases.items():
            arrays[f"b/{name}"] = bias
        for name, stored in self.compressed.items():
            if isinstance(stored, Palette):
                arrays[f"p/i/{name}"], arrays[f"p/v/{name}"] = stored.indices, stored.values
            else:
                arrays[f"4/q/{name}"], arrays[f"4/s/{name}"] = stored.integers, stored.scale
        text = {
            "axes": {name: weight.params.axis for name, weight in self.weights.items()},
            "ranges": {name: [r.low, r.high] for name, r in self.ranges.items()},
            "schemes": dict(self.schemes),
            "labels": dict(self.labels),
        }
        arrays["json"] = np.frombuffer(json.dumps(text, sort_keys=True).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        path.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Quantization:
        with np.load(path, allow_pickle=False) as stored:
            text = json.loads(stored["json"].tobytes())
            names = stored.files
            return cls(
                activations={n[4:]: QuantParams(stored[n], stored["a/z/" + n[4:]]) for n in names if n[:4] == "a/s/"},
                weights={
                    n[4:]: _weight(stored[n], stored["w/s/" + n[4:]], text["axes"][n[4:]])
                    for n in names
                    if n[:4] == "w/q/"
                },
                biases={n[2:]: stored[n] for n in names if n[:2] == "b/"},
                ranges={n: Range(*r) for n, r in text["ranges"].items()},
                schemes=text["schemes"],
                labels=text["labels"],
                compressed={n[4:]: Palette(stored[n], stored["p/v/" + n[4:]]) for n in names if n[:4] == "p/i/"}
                | {n[4:]: Blocks(stored[n], stored["4/s/" + n[4:]]) for n in names if n[:4] == "4/q/"},
            )


def _weight(integers: Array, scale: Array, axis: int | None) -> QuantizedTensor:
    return QuantizedTensor(integers, QuantParams(scale, np.zeros(scale.shape, np.int32), axis))


@dataclass(frozen=True)
class QuantizedGraph:
    """A float graph and, once quantized, its table. What every pass takes and gives, and every target lowers.

    ``record`` is what passes tried, what it brought, and what stayed; ``warnings`` are for the person.
    """

    model: ir.Model
    quantization: Quantization | None = None
    record: tuple[Kept, ...] = ()
    warnings: tuple[str, ...] = ()

    def with_model(self, model: ir.Model) -> QuantizedGraph:
        return replace(self, model=model)
