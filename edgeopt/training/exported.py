"""The canonical graph of a module as it is: exported, or, where channel counts alone differ, an export resized.

An export takes seconds, and where to cut is asked for every group of channels. An ONNX graph whose weights are given
the shapes of the module's own says the same in hundredths of a second, unless a number that came from a channel count
was written into it (a reshape into heads, the end of a slice); then it is not used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.errors import EdgeoptError
from edgeopt.frontends.onnx import load_onnx
from edgeopt.frontends.torch_loading import Loaded
from edgeopt.frontends.torch_worker import export
from edgeopt.graph.cost import Operation, operations
from edgeopt.graph.model import shape
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.canonical import canonicalise

_WRITTEN_IN = frozenset({"Expand", "Gather", "GatherElements", "GatherND", "ScatterND", "Slice", "Split", "Tile"})
"""Operators that may have been given a channel count as a constant."""
_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})


def exported(loaded: Loaded) -> ir.Model:
    """The module as targets would get it, in eval mode."""
    return _canonical(_onnx(loaded))


def shapes_of(loaded: Loaded) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Of all weights: what an export's shapes depend on."""
    return tuple((key, tuple(value.shape)) for key, value in loaded.module.state_dict().items())


class Resized:
    """An export of a module, given other channel counts.

    Args:
        loaded: the module; it is exported once.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded, self._onnx = loaded, _onnx(loaded)
        self.model, self.shapes = _canonical(self._onnx), shapes_of(loaded)
        self._whole = operations(self.model)
        self._outputs = [shape(value) for value in self.model.graph.outputs]
        self._source = _sources(self._onnx, loaded.module.state_dict())

    def now(self) -> ir.Model | None:
        """The canonical graph with the shapes that the module's weights have now (its values mean nothing); None if it
        may not be that of the module."""
        state = self._loaded.module.state_dict()
        proto = onnx.ModelProto()
        proto.CopyFrom(self._onnx)
        del proto.graph.value_info[:]
        stored = {one.name: one for one in proto.graph.initializer}
        depthwise = [node for node in proto.graph.node if _is_depthwise(node, stored)]
        for name, (key, transposed) in self._source.items():
            sizes = tuple(state[key].shape)
            _resize(stored[name], sizes[::-1] if transposed else sizes)
        for node in depthwise:
            _group(node).i = stored[node.input[1]].dims[0]
        for node in proto.graph.node:
            if node.op_type in _WITH_BIAS and len(node.input) > 2 and node.input[2] in stored:
                weight, bias = stored.get(node.input[1]), stored[node.input[2]]
                if weight is not None and len(bias.dims) == 1 and node.input[2] not in self._source:
                    _resize(bias, (_outputs(node, weight),))  # a folded BatchNorm's
        try:
            model = _canonical(proto)
            listed = operations(model)
        except (EdgeoptError, ValueError, RuntimeError):
            return None
        return model if self._is_of_the_module(model, listed) else None

    def _is_of_the_module(self, model: ir.Model, listed: Sequence[Operation]) -> bool:
        for node in model.graph:
            if node.op_type == "Reshape" and _elements(node.inputs[0]) != _elements(node.outputs[0]):
                return False
        if [shape(value) for value in model.graph.outputs] != self._outputs:
            return False
        before = {one.name: one.outputs for one in self._whole}
        return not any(one.operator in _WRITTEN_IN and one.outputs != before.get(one.name) for one in listed)


def _onnx(loaded: Loaded) -> onnx.ModelProto:
    loaded.module.eval()
    with TemporaryDirectory(prefix="edgeopt-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of itself
        path = Path(folder) / "model.onnx"
        export(loaded, path)
        return onnx.load(path)


def _canonical(proto: onnx.ModelProto) -> ir.Model:
    with TemporaryDirectory(prefix="edgeopt-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        return canonicalise(QuantizedGraph(load_onnx(path).model), Context(scratch=Path(folder))).model


def _sources(proto: onnx.ModelProto, state: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Initializer → the module's tensor that it is, and whether it is transposed."""
    found = {}
    for one in proto.graph.initializer:
        if one.name in state:
            found[one.name] = (one.name, False)
        elif len(one.dims) == 2:
            array = onnx.numpy_helper.to_array(one)
            for key, value in state.items():
                if tuple(value.shape) == array.shape[::-1] and np.array_equal(value.detach().numpy().T, array):
                    found[one.name] = (key, True)
                    break
    return found


def _resize(one: onnx.TensorProto, sizes: tuple[int, ...]) -> None:
    if tuple(one.dims) != sizes:
        name, dtype = one.name, onnx.helper.tensor_dtype_to_np_dtype(one.data_type)
        one.CopyFrom(onnx.numpy_helper.from_array(np.ones(sizes, dtype), name))


def _group(node: onnx.NodeProto) -> Any:
    return next((one for one in node.attribute if one.name == "group"), None)


def _is_depthwise(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    group = _group(node) if node.op_type == "Conv" else None
    return group is not None and group.i > 1 and list(stored[node.input[1]].dims[:2]) == [group.i, 1]


def _outputs(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    attributes = {one.name: one.i for one in node.attribute}
    if node.op_type == "ConvTranspose":
        return int(weight.dims[1]) * int(attributes.get("group", 1))
    if node.op_type == "Gemm" and not attributes.get("transB", 0):
        return int(weight.dims[1])
    return int(weight.dims[0])


def _elements(value: ir.Value | None) -> int:
    return 0 if value is None else math.prod(shape(value))
