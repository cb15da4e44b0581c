"""The types that cross a boundary: files, processes, packages. Data without behaviour, frozen."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SchemeName = Literal[
    "fp32", "fp16", "int8", "int8-dynamic", "int8-weights",
    "int4-weights", "palette4-weights", "palette6-weights", "palette8-weights",
]  # fmt: skip
"""``fp32``; ``fp16``; ``int8`` static, weights and activations; ``int8-dynamic`` int8 weights, activations quantized
at run time; ``int8-weights`` int8 weights, float arithmetic; ``int4-weights`` the same with 4 bits and a scale per
block; ``palette4-weights`` (6, 8) weights as 4-bit (6, 8) indices into a palette. Not every target has every scheme."""

Effort = Literal["fast", "default", "best"]
Layout = Literal["nchw", "nhwc"]
IoType = Literal["float32", "int8", "uint8"]
Kind = Literal["measured", "predicted", "emulated"]
Status = Literal["ok", "failed", "not_built", "unavailable"]


class Frozen(BaseModel):
    """Base of everything that crosses a file boundary: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(Frozen):
    """Name, numpy dtype name and static shape of one input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Signature(Frozen):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Preprocess(Frozen):
    """The contract that travels with every artifact: how an image becomes the model's input.

    ``input = (pixels * scale - mean) / std`` per channel, where ``pixels`` are 0–255 after ``resize`` (shorter side,
    pixels) and centre ``crop`` (pixels), in ``color`` order. ``scale`` defaults to 1/255.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout = "nchw"


class Realised(Frozen):
    """What a built file holds, read back from the file itself.

    ``int8_ops`` and ``float_ops`` count weighted and arithmetic operators by type; ``leftovers`` names what should
    not be there (a TRANSPOSE the source did not ask for, a QUANTIZE/DEQUANTIZE island, a float operator where int8
    was asked); ``partitions`` counts delegate partitions where the runtime has such.
    """

    int8_ops: dict[str, int]
    float_ops: dict[str, int]
    other_ops: dict[str, int] = {}
    leftovers: tuple[str, ...] = ()
    partitions: int | None = None
    unasked_float: tuple[str, ...] = ()
    """Weighted operators that were asked in int8 and are float in the file: the artifact has failed."""


class Engine(Frozen):
    """What a device's own runtime built of an artifact, and how it does on the saved samples, measured there."""

    path: str
    """Relative to the artifact's folder, POSIX."""
    runtime: str
    """Name and version."""
    seconds: float
    sqnr_db: float
    """Against the saved outputs."""
    samples: int
    median_ms: float


CONFIDENCE = "edgeopt.confidence"
"""Key of ``Confidence`` in the metadata of every format; JSON."""


class Confidence(Frozen):
    """What the confidence of an artifact means: ``softmax(logits / temperature)`` is the chance that it is right.

    Fitted on ``samples`` labelled calibration samples (Guo et al., 2017, arXiv:1706.04599). ``temperature`` is None
    where no answer was wrong: there is nothing to fit it to. Above ``threshold`` (of that confidence) stands the share
    ``coverage`` of the samples, and ``error`` of their answers are wrong, at most ``max_error``; None: no threshold
    does that.
    """

    temperature: float | None
    threshold: float | None
    coverage: float | None
    error: float | None
    max_error: float
    samples: int


class Metadata(Frozen):
    """What an artifact tells the app that runs it, beside the graph."""

    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    """One per class, in the order of the first output."""
    confidence: Confidence | None = None


NO_METADATA = Metadata()


class Artifact(Frozen):
    """One built file (or folder) of one target."""

    target: str
    path: str
    """Relative to the output folder, POSIX."""
    digest: str
    size_bytes: int
    """Of the model: what else lies in a bundle (samples, tools, companions) does not count."""
    signature: Signature
    """As the runtime sees it: after layout and io type."""
    layouts: dict[str, tuple[int, ...]] = {}
    """Input or output name → permutation that was applied to the source's axes (absent: none)."""
    names: dict[str, str] = {}
    """Source input or output name → name in the artifact, where they differ."""
    preprocess: Preprocess | None = None
    confidence: Confidence | None = None
    realised: Realised | None = None
    float_dtype: Literal["float32", "float16"] = "float32"
    """What the file's float parts compute in, where the scheme leaves that to the target."""
    emulation: str | None = None
    """File in the artifact's folder that ONNX Runtime, optimisations off, runs here in the device's place."""
    not_built: str | None = None
    """Why what the device runs is not there yet, and how it comes to be."""
    engine: Engine | None = None


class Kept(Frozen):
    """One thing that was tried, what it brought, and whether it stayed."""

    what: str
    brought_db: float | None
    kept: bool
    why: str
    details: dict[str, Any] = {}
