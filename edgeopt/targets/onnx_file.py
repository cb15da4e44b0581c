"""What every ONNX file that is written here carries, and what it does not."""

from __future__ import annotations

import json

import onnx_ir as ir

from edgeopt.formats.onnx import LABELS, PREPROCESS
from edgeopt.types import CONFIDENCE, Metadata

IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
"""Opset → the IR version of the ONNX release that brought it (onnx's versioning table): an old reader takes both."""
SMALL_BYTES = 4096
"""Equal constants up to this size are stored once: scales and zero points; larger ones are weights, and differ."""


def stamp(model: ir.Model, metadata: Metadata) -> None:
    """IR version of its opset, producer, and ``metadata``; no other stays."""
    model.ir_version = IR_VERSIONS.get(model.graph.opset_imports[""], max(IR_VERSIONS.values()))
    model.producer_name, model.producer_version = "edgeopt", None
    model.metadata_props.clear()
    if metadata.preprocess is not None:
        model.metadata_props[PREPROCESS] = metadata.preprocess.model_dump_json()
    if metadata.labels:
        model.metadata_props[LABELS] = json.dumps(metadata.labels)
    if metadata.confidence is not None:
        model.metadata_props[CONFIDENCE] = metadata.confidence.model_dump_json()


def share_small_constants(graph: ir.Graph) -> None:
    """Constants of one dtype, shape and content become one."""
    kept: dict[tuple[object, ...], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes > SMALL_BYTES or value.is_graph_output():
            continue
        first = kept.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[value.name]  # type: ignore[arg-type]


def strip_notes(graph: ir.Graph) -> None:
    """Without shapes that inference finds again, documentation and exporters' notes."""
    for node in graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.doc_string = None
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type = value.shape = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.doc_string = None
        value.metadata_props.clear()
    graph.doc_string = None
    graph.metadata_props.clear()


def serialised(model: ir.Model) -> bytes:
    """The file's bytes: equal for equal models."""
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data
