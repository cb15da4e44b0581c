"""The Core ML target: its options, and the whole way from graph and table to a package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from edgeopt import digest
from edgeopt.errors import MissingPackage, UsageError
from edgeopt.graph.constraints import Constraints
from edgeopt.graph.half import scales_fit
from edgeopt.graph.model import serialise, shape
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.targets.base import Target
from edgeopt.targets.coreml import operators, package, realise
from edgeopt.targets.coreml.deployment import OLDEST, Minimum, lowest_for, refuse_missing, refuse_unknown
from edgeopt.targets.coreml.program import Built, Interface, Pixels, build, quiet
from edgeopt.types import (
    CONFIDENCE,
    NO_METADATA,
    Artifact,
    Metadata,
    Preprocess,
    Realised,
    SchemeName,
    Signature,
    TensorSpec,
)

FILE_NAME = "model.mlpackage"
TENSORS, WEIGHTS = "edgeopt.tensors", "edgeopt.weights"
"""Metadata: tensor of the table → variables of its integers and their values; weight of the table → variable."""
PREPROCESS, LABELS, PROVENANCE, NAMES = (
    "edgeopt.preprocess", "edgeopt.labels", "edgeopt.provenance", "edgeopt.names",
)  # fmt: skip

Count = Annotated[int, Field(ge=1)]


class CoremlTarget(Target):
    """Writes ``model.mlpackage``, an ML program, in the source's NCHW.

    Args:
        minimum: deployment target, ``iOS15`` or later, or another platform's (``macOS14``). None: the lowest that can
            hold what is asked: iOS15 for floats, iOS16 for compressed weights, iOS17 for int8, iOS18 for 4 bits.
        precision: of float parts where the scheme leaves it open. ``fp16`` is what the Neural Engine computes in; it
            rounds the scales of an int8 program too. ``fp32`` carries the table's integers exactly. None: ``fp32``
            where the scheme is fp32, else ``fp16``.
        input: ``image``: takes pixels 0–255, and normalises them inside as the recipe's ``preprocess`` says.
            ``tensor``: takes the model's own input. ``auto``: image where there is a ``preprocess`` that fits.
        classifier: where class names are given and fit the first output, answer with a class too.
        batch: lowest and highest number of samples; None: the source's. An image is always one.
        sizes: heights and widths that the input may have; the source's own must be among them. Empty: only that.
    """

    name: ClassVar[str] = "coreml"
    # quantize and dequantize take any scale and any zero point, operator by operator: the format forces nothing.
    constraints: ClassVar[Constraints] = Constraints()
    schemes: ClassVar[frozenset[SchemeName]] = frozenset(
        {"fp32", "fp16", "int8", "int8-weights", "int4-weights", "palette4-weights", "palette6-weights",
         "palette8-weights"}
    )  # fmt: skip

    minimum: Minimum | None = None
    precision: Literal["fp16", "fp32"] | None = None
    input: Literal["auto", "image", "tensor"] = "auto"
    classifier: bool = True
    batch: tuple[Count, Count] | None = None
    sizes: tuple[tuple[Count, Count], ...] = ()

    @model_validator(mode="after")
    def _one_open_axis(self) -> CoremlTarget:
        if self.batch is not None and self.batch[0] > self.batch[1]:
            raise ValueError(f"'batch' is lowest and highest, and {self.batch[0]} is above {self.batch[1]}")
        if self.batch is not None and (self.sizes or self.input == "image"):
            raise ValueError("an open 'batch' goes with tensors of one size only")
        return self

    def check_schemes(self, schemes: frozenset[SchemeName]) -> None:
        """Also refuses a scheme that the asked deployment target cannot hold, with the lowest that can."""
        super().check_schemes(schemes)
        if self.minimum is not None:
            refuse_unknown(self.minimum)
            refuse_missing(self.minimum, sorted(schemes))

    def check(self, model: ir.Model) -> None:
        """Also says that coremltools is missing: MissingPackage."""
        if importlib.util.find_spec("coremltools") is None:
            raise MissingPackage("coremltools", "coreml", "the target coreml")
        operators.check(model.graph, self.minimum or OLDEST)

    def lower(self, graph: QuantizedGraph, out: Path, metadata: Metadata = NO_METADATA) -> Artifact:
        """Write ``model.mlpackage`` into ``out``.

        Raises:
            MissingPackage: coremltools is not installed.
            UsageError: the deployment target or the options do not fit this graph and table.
            UnsupportedOperator: a node that Core ML cannot be given.
            TargetError: a value that float16 cannot hold, or coremltools refuses the program.
        """
        table = graph.quantization or Quantization()
        schemes: frozenset[SchemeName] = frozenset(table.schemes.values())
        with quiet():
            self.check_schemes(schemes)
            minimum = self.minimum or lowest_for(schemes)
            model = to_qdq(graph)
            operators.check(model.graph, minimum)
            interface = self._interface(model.graph, metadata.preprocess, metadata.labels)
            built = build(model, table, self._half(graph), minimum, interface)
            path = out / FILE_NAME
            _add_metadata(built, graph, metadata)
            package.write(path, built.spec, built.weights)
        return Artifact(
            target=self.name,
            path=path.name,
            digest=digest.of_path(path),
            size_bytes=digest.size_bytes(path),
            signature=_signature(model, built, interface),
            names={ours: theirs for ours, theirs in built.names.items() if ours != theirs},
            preprocess=metadata.preprocess,
            confidence=metadata.confidence,
            realised=self.realised(path, graph),
            float_dtype="float16" if self._default_half(graph) else "float32",
        )

    def realised(self, path: Path, graph: QuantizedGraph) -> Realised:
        """Read back from the package: precision and compression of every operator."""
        return realise.realised(path, graph)

    # --- precision

    def _default_half(self, graph: QuantizedGraph) -> bool:
        table = graph.quantization
        if table is not None and "fp16" in table.schemes.values():
            return True
        if self.precision is not None:
            return self.precision == "fp16"
        # A recipe that asks for fp32 has a table without schemes; one that asks for nothing has none.
        return table is None or bool(table.schemes)

    def _half(self, graph: QuantizedGraph) -> operators.Precision:
        table = graph.quantization or Quantization()
        default = self._default_half(graph)
        by_node = "fp16" in table.schemes.values()
        kept = {
            node.name
            for node in graph.model.graph
            if node.op_type in WEIGHTED and not scales_fit(table, node.inputs[1])
        }
        known = {node.name for node in graph.model.graph}

        def half(node: ir.Node) -> bool:
            if by_node and node.name in known:
                return table.scheme(node) == "fp16"
            return default and node.name not in kept

        return half

    # --- what an app sees

    def _interface(self, graph: ir.Graph, preprocess: Preprocess | None, labels: tuple[str, ...]) -> Interface:
        pixels: dict[str, Pixels] = {}
        if self.input != "tensor":
            reason = self._no_image(graph, preprocess)
            if reason is None and preprocess is not None:
                pixels[graph.inputs[0].name or ""] = _pixels(preprocess, shape(graph.inputs[0])[1])
            elif self.input == "image":
                raise UsageError(
                    f"an image input was asked, and {reason}",
                    where="targets.coreml.input",
                    hint="Say under 'preprocess' how an image becomes the input, or ask for 'tensor'.",
                )
        first = graph.outputs[0]
        fits = first.dtype == ir.DataType.FLOAT and shape(first) == (1, len(labels)) and len(set(labels)) == len(labels)
        own = [shape(value)[2:] for value in graph.inputs if len(shape(value)) == 4]
        if self.sizes and (len(own) != 1 or own[0] not in self.sizes):
            raise UsageError(
                f"'sizes' must name the source's own, which is {own[0] if own else 'none: there is no image'}",
                where="targets.coreml.sizes",
                hint="Add it: {sizes: [[224, 224], [192, 320]]}, each a height and a width.",
            )
        return Interface(
            pixels=pixels,
            color="BGR" if preprocess is not None and preprocess.color == "bgr" else "RGB",
            labels=labels if self.classifier and fits and self.batch is None else (),
            batch=self.batch,
            sizes=self.sizes,
        )

    def _no_image(self, graph: ir.Graph, preprocess: Preprocess | None) -> str | None:
        """Why the input cannot be an image, in words; None if it can."""
        if preprocess is None:
            return "the recipe does not say how an image becomes the input"
        if len(graph.inputs) != 1 or len(shape(graph.inputs[0])) != 4 or graph.inputs[0].dtype != ir.DataType.FLOAT:
            return "the model does not take one float tensor of four axes"
        batch, channels = shape(graph.inputs[0])[:2]
        if batch != 1 or self.batch is not None:
            return "an image is a batch of one"
        if preprocess.layout != "nchw" or channels != (1 if preprocess.color == "gray" else 3):
            return f"the model's input {list(shape(graph.inputs[0]))} does not have the channels of {preprocess.color}"
        return None


def _pixels(preprocess: Preprocess, channels: int) -> Pixels:
    mean, std = (np.broadcast_to(np.asarray(v, np.float64), (channels,)) for v in (preprocess.mean, preprocess.std))
    return Pixels(
        scale=tuple(float(np.float32(preprocess.scale / s)) for s in std),
        bias=tuple(float(np.float32(-m / s)) for m, s in zip(mean, std, strict=True)),
    )


def _signature(model: ir.Model, built: Built, interface: Interface) -> Signature:
    def spec(value: ir.Value) -> TensorSpec:
        name = value.name or ""
        dtype = "float32" if value.dtype == ir.DataType.FLOAT else "int32"
        return TensorSpec(
            name=built.names[name], dtype="uint8" if name in interface.pixels else dtype, shape=shape(value)
        )

    return Signature(inputs=tuple(map(spec, model.graph.inputs)), outputs=tuple(map(spec, model.graph.outputs)))


def _add_metadata(built: Built, graph: QuantizedGraph, metadata: Metadata) -> None:
    description = built.spec.description.metadata
    description.Clear()
    description.shortDescription = "Written by edgeopt"
    told: dict[str, object] = {
        TENSORS: {name: list(pair) for name, pair in built.tensors.items()},
        WEIGHTS: dict(built.weight_vars),
        NAMES: {ours: theirs for ours, theirs in built.names.items() if ours != theirs},
        LABELS: list(metadata.labels),
    }
    for key, value in told.items():
        if value:
            description.userDefined[key] = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if metadata.preprocess is not None:
        description.userDefined[PREPROCESS] = metadata.preprocess.model_dump_json()
    if metadata.confidence is not None:
        description.userDefined[CONFIDENCE] = metadata.confidence.model_dump_json()
    description.userDefined[PROVENANCE] = _provenance(graph)


def _provenance(graph: QuantizedGraph) -> str:
    """Digest of the float graph and its table: what the artifact was made from."""
    table = graph.quantization or Quantization()
    parts: list[object] = [digest.of_bytes(serialise(graph.model)), sorted(table.schemes.items())]
    parts += [
        [name, digest.of_array(params.scale), digest.of_array(params.zero_point)]
        for name, params in sorted(table.activations.items())
    ]
    parts += [
        [name, digest.of_array(weight.integers), digest.of_array(weight.params.scale)]
        for name, weight in sorted(table.weights.items())
    ]
    parts += [[name, digest.of_array(stored.dequantize())] for name, stored in sorted(table.compressed.items())]
    return digest.of_json(parts)
