"""The target's options, and the order of its rewriting steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from edgeopt import digest
from edgeopt.errors import TargetError
from edgeopt.formats.onnx import IO_QUANTIZATION, spec
from edgeopt.graph.constraints import Constraints
from edgeopt.graph.model import remove_unused
from edgeopt.graph.opset import OLDEST, convert_opset
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.targets.base import Target
from edgeopt.targets.fp16 import compute_in_fp16
from edgeopt.targets.onnx.activations import drop_activations, drop_last_pairs, fold_constants
from edgeopt.targets.onnx.draft import Draft
from edgeopt.targets.onnx.gates import harden, round_sigmoids
from edgeopt.targets.onnx.guards import avoid_refusals, guard_float_nodes
from edgeopt.targets.onnx.integer_io import integer_io
from edgeopt.targets.onnx.movement import move_integers, slice_blocks
from edgeopt.targets.onnx.realised import read_realised
from edgeopt.targets.onnx.weights import drop_zero_points, fold_weights, quantize_at_run_time, shift_weights
from edgeopt.targets.onnx_file import serialised, share_small_constants, stamp, strip_notes
from edgeopt.types import NO_METADATA, Artifact, IoType, Metadata, Realised, Signature


class Onnx(Target):
    """An ``.onnx`` file.

    Args:
        opset: of the default domain, 13 or later; None keeps the graph's.
        activations: the integer type of activations; the grid is the same. ``int8`` is for other providers: on x86
            the CPU provider computes part of such a file in float, which then stands in ``realised.leftovers``.
        weights: the integer type of weights between uint8 activations; the grid is the same. ``uint8`` is exact on
            every processor; ``int8`` is faster, and wrong on x86 without VNNI unless each session sets
            ``session.x64quantprecision`` to 1, or the weights cannot overflow (``overflow_fix``). None, weight by
            weight: ``int8`` where that is exact on every processor, else ``uint8``. The file does not depend on the
            machine that converts.
        io: type of the float inputs and outputs. ``int8`` and ``uint8`` are the integers of the table's grid; scale
            and zero point of each stand in the file's metadata (``edgeopt.io``).
        gates: what ``x · sigmoid(x)``, HardSwish and HardSigmoid between integers compute in. ``int8`` puts the gate
            on a grid of [0, 1], so that all are int8 kernels (QLinearSigmoid, QLinearAdd, QLinearMul): 1.2 times the
            speed on an EfficientNet-B0, and at most half a step away from the exact function that the table means.
            ``float32`` is that function.
    """

    name: ClassVar[str] = "onnx"
    constraints: ClassVar[Constraints] = Constraints()

    opset: Annotated[int, Field(ge=OLDEST)] | None = None
    activations: Literal["uint8", "int8"] = "uint8"
    weights: Literal["int8", "uint8"] | None = None
    io: IoType = "float32"
    gates: Literal["int8", "float32"] = "int8"

    def lower(self, graph: QuantizedGraph, out: Path, metadata: Metadata = NO_METADATA) -> Artifact:
        """Write ``model.onnx`` into ``out``.

        Raises:
            TargetError: a weight does not fit into fp16, an operator does not exist in the asked opset, integer
                inputs or outputs are asked and the table has no grid for one.
        """
        model = to_qdq(graph, unsigned=self.activations == "uint8")
        draft = Draft(model.graph, graph.quantization or Quantization(), np.dtype(self.activations))
        drop_last_pairs(draft)  # before activations go: a Relu that a grid implies needs that grid
        drop_activations(draft)
        if self.gates == "int8":
            round_sigmoids(draft)
            harden(draft)
        avoid_refusals(draft)
        move_integers(draft)
        slice_blocks(draft)
        fold_constants(draft)
        guard_float_nodes(draft)
        drop_zero_points(draft)
        quantize_at_run_time(draft)
        fold_weights(draft)
        if self.weights == "uint8" or (self.weights is None and self.activations == "uint8"):
            shift_weights(draft, only_unsafe=self.weights is None)
        compute_in_fp16(model.graph, lambda node: draft.table.scheme(node) == "fp16")
        grids = integer_io(draft, np.dtype(self.io)) if self.io != "float32" else {}
        opset = self.opset or model.graph.opset_imports[""]
        try:
            convert_opset(model, opset)
        except ValueError as error:
            raise TargetError(
                str(error), where=f"target onnx, opset {opset}", hint="ask for a later opset, or leave it out"
            ) from error
        remove_unused(model.graph)
        share_small_constants(model.graph)
        strip_notes(model.graph)
        for node in model.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node.name = None
        stamp(model, metadata)
        if grids:
            model.metadata_props[IO_QUANTIZATION] = json.dumps(grids, sort_keys=True)
        data = serialised(model)
        path = out / "model.onnx"
        path.write_bytes(data)
        return Artifact(
            target=self.name,
            path=path.name,
            digest=digest.of_bytes(data),
            size_bytes=len(data),
            signature=Signature(
                inputs=tuple(map(spec, model.graph.inputs)), outputs=tuple(map(spec, model.graph.outputs))
            ),
            preprocess=metadata.preprocess,
            confidence=metadata.confidence,
            realised=self.realised(path, graph),
        )

    @model_validator(mode="after")
    def _one_sign(self) -> Onnx:
        if self.weights == "uint8" and self.activations == "int8":
            raise ValueError("'weights: uint8' goes with 'activations: uint8': no kernel takes int8 with uint8")
        return self

    def realised(self, path: Path, graph: QuantizedGraph) -> Realised:
        """What ONNX Runtime's CPU provider makes of the file.

        Raises:
            TargetError: ONNX Runtime does not load the file.
        """
        return read_realised(path, graph, self.activations)
