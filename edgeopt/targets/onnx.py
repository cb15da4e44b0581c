"""The ONNX target: Q/DQ in the form that ONNX Runtime's CPU provider fuses.

It starts from the integer reference (``graph.qdq``) and changes only what leaves the meaning of the table as it is:

- Activations are uint8 (integers and zero points + 128: the same grid), because the CPU provider has its fast kernels
  for uint8 × int8. ``activations: int8`` is for other providers.
- A Relu or Clip between a node and its QuantizeLinear stops fusion. Where the grid implies it, it goes; where it does
  not (a grid shared with a tensor that has negative values), it becomes a Clip of the integers behind the
  QuantizeLinear. Both are exact: rounding is monotone, so ``q(clip(x, a, b)) = clip(q(x), q(a), q(b))``.
- An int8 Gemm or MatMul whose result only float nodes or the caller read keeps its float result: its last Q/DQ pair
  is dropped (QGemm with float output, MatMulIntegerToFloat), which saves one rounding and is nearer to float. The
  table's grid still says how far.
- Zero points of weights and biases are 0 and left out.
- **Guard.** ONNX Runtime (WeightBiasQuantization, level 1) turns a float Conv, ConvTranspose or Gemm that sits between
  a per-tensor DequantizeLinear and a QuantizeLinear into per-tensor int8, silently: a MobileNetV1 fell from 26 dB to
  0 dB. It only looks at scalar scales, so such a node reads its input through a DequantizeLinear of its own with the
  same scale written once per channel: the same numbers, the same time, and nothing to rewrite.
- Names stay: a tensor ``X`` of the table is ``X`` before rounding, ``X__q`` as integers, ``X__dq`` as read.

- **Weights** are int8, for which VNNI and ARM have their fastest kernels. On x86 without VNNI those kernels saturate
  pairs of products at 16 bits, and results are wrong without a word: an int8 ResNet20 fell from 32 to 11 dB. There
  weights are uint8 (integers and zero points + 128: the same grid), whose kernels are exact on every processor.

Bytes are a function of the graph, the table and the options: no times, no versions, and one order.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field, model_validator

from edgeopt import digest
from edgeopt.errors import TargetError
from edgeopt.formats.onnx import (
    CONVERSIONS,
    INT8_OPERATORS,
    IO_QUANTIZATION,
    LABELS,
    MOVEMENT,
    PREPROCESS,
    REORDERS,
    STATIC_PRODUCTS,
    load,
    precision_of,
    spec,
)
from edgeopt.graph.constraints import Constraints
from edgeopt.graph.opset import OLDEST, convert_opset, expand_pad_axes
from edgeopt.graph.pairs import along_axis, forget_notes, named_constant
from edgeopt.graph.placement import FUSED_ACTIVATIONS, WEIGHTED
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantParams
from edgeopt.runtimes.onnxruntime import Session, saturates
from edgeopt.targets.base import Target
from edgeopt.targets.fp16 import compute_in_fp16
from edgeopt.types import Artifact, IoType, Preprocess, Realised, Signature

Array = npt.NDArray[Any]
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
"""Opset → the IR version of the ONNX release that brought it (onnx's versioning table): an old reader takes both."""

INTEGER_MOVERS = frozenset({"Pad", "DepthToSpace", "SpaceToDepth", "Slice"})
"""Movers written on integers: ONNX Runtime's kernels move them, but it does not drop the Q/DQ pairs around the first
three, nor around what ``slice_blocks`` makes of the last."""

NO_INT8_KERNEL = frozenset({"ConvTranspose"})
"""Weighted operators that ONNX Runtime's CPU provider computes in float whatever stands around them."""


class Onnx(Target):
    """An ``.onnx`` file.

    Args:
        opset: of the default domain, 13 or later; None keeps the graph's.
        activations: the integer type of activations; the grid is the same. ``int8`` is for other providers: on x86
            the CPU provider computes part of such a file in float, which then stands in ``realised.leftovers``.
        weights: the integer type of weights between uint8 activations; the grid is the same. ``uint8`` is exact on
            every processor; ``int8`` is faster where there is VNNI, and wrong on x86 without it unless each session
            sets ``session.x64quantprecision`` to 1. None: ``int8`` where the machine that converts computes it exactly.
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

    def lower(
        self,
        graph: QuantizedGraph,
        out: Path,
        *,
        preprocess: Preprocess | None = None,
        labels: tuple[str, ...] = (),
    ) -> Artifact:
        """Write ``model.onnx`` into ``out``.

        Raises:
            TargetError: a weight does not fit into fp16, an operator does not exist in the asked opset, integer
                inputs or outputs are asked and the table has no grid for one.
        """
        model = to_qdq(graph, unsigned=self.activations == "uint8")
        writer = _Writer(model, graph.quantization or Quantization(), np.dtype(self.activations))
        writer.drop_last_pairs()  # before activations go: a Relu that a grid implies needs that grid
        writer.drop_activations()
        if self.gates == "int8":
            writer.round_sigmoids()
            writer.harden()
        writer.avoid_refusals()
        writer.move_integers()
        writer.slice_blocks()
        writer.fold_constants()
        writer.guard_float_nodes()
        writer.drop_zero_points()
        writer.quantize_at_run_time()
        writer.fold_weights()
        if self._unsigned_weights():
            writer.shift_weights()
        writer.to_fp16()
        grids = writer.integer_io(np.dtype(self.io)) if self.io != "float32" else {}
        opset = self.opset or model.graph.opset_imports[""]
        try:
            convert_opset(model, opset)
        except ValueError as error:
            raise TargetError(
                str(error), where=f"target onnx, opset {opset}", hint="ask for a later opset, or leave it out"
            ) from error
        writer.strip()
        model.ir_version = IR_VERSIONS.get(opset, max(IR_VERSIONS.values()))
        model.producer_name, model.producer_version = "edgeopt", None
        model.metadata_props.clear()
        if preprocess is not None:
            model.metadata_props[PREPROCESS] = preprocess.model_dump_json()
        if labels:
            model.metadata_props[LABELS] = json.dumps(labels)
        if grids:
            model.metadata_props[IO_QUANTIZATION] = json.dumps(grids, sort_keys=True)
        data = ir.to_proto(model).SerializeToString(deterministic=True)
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
            preprocess=preprocess,
            realised=self.realised(path, graph),
        )

    @model_validator(mode="after")
    def _one_sign(self) -> Onnx:
        if self.weights == "uint8" and self.activations == "int8":
            raise ValueError("'weights: uint8' goes with 'activations: uint8': no kernel takes int8 with uint8")
        return self

    def _unsigned_weights(self) -> bool:
        if self.weights is None:
            return self.activations == "uint8" and saturates()
        return self.weights == "uint8"

    def realised(self, path: Path, graph: QuantizedGraph) -> Realised:
        """What ONNX Runtime's CPU provider makes of the file: read from the model it optimises the file to.

        Raises:
            TargetError: ONNX Runtime does not load the file.
        """
        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder) / "optimised.onnx"
            try:
                with Session(path, save_optimized=optimised):
                    pass
            except ValueError as error:
                raise TargetError(f"ONNX Runtime does not load the file: {error}", where=str(path)) from error
            nodes = list(ir.load(optimised).graph)
        table = graph.quantization or Quantization()
        counts: dict[str, Counter[str]] = {"int8": Counter(), "float": Counter(), "other": Counter()}
        for node in nodes:
            counts[_kind(node)][node.op_type] += 1
        integers = [node for node in nodes if node.op_type in INT8_OPERATORS]
        static = [node for node in nodes if node.op_type in STATIC_PRODUCTS]
        read = {value.name for node in static for value in node.inputs if value is not None}
        named = {_source_name(node) for node in integers}
        leftovers: Counter[str] = Counter()
        unasked: list[str] = []
        for node in graph.model.graph:
            if table.scheme(node) != "int8":
                continue
            if node.op_type in WEIGHTED:
                weight = node.inputs[1]
                if weight is None or f"{weight.name}{INTEGERS_SUFFIX}" in read:
                    continue
                if node.op_type in NO_INT8_KERNEL:
                    leftovers[node.op_type] += 1
                else:
                    unasked.append(node.name or "")
            elif node.op_type == "MatMul" and node.name not in named:
                unasked.append(node.name or "")
            elif node.op_type not in MOVEMENT | FUSED_ACTIVATIONS | {"MaxPool"} and node.name not in named:
                leftovers[node.op_type] += 1
        texts = [
            f"{op_type} x{count}: in float between integers, ONNX Runtime's CPU provider has no int8 kernel for it"
            for op_type, count in sorted(leftovers.items())
        ]
        if self.activations == "uint8" and saturates():
            products = {"QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3, "MatMulIntegerToFloat": 1}
            constants = ir.load(path).graph.initializers
            clipped = sum(
                (weight := node.inputs[products[node.op_type]]) is not None
                and weight.name is not None
                and weight.name in constants
                and constants[weight.name].dtype == ir.DataType.INT8
                for node in integers
                if node.op_type in products
            )
            if clipped:
                texts.append(
                    f"{clipped} products with int8 weights, which this processor (x86 without VNNI) saturates at 16"
                    " bits: results are wrong here unless the session sets session.x64quantprecision to 1"
                    " (weights: uint8 is exact everywhere)"
                )
        if self.activations == "int8" and unasked:
            # The form is what other providers read; x86 has no kernel for int8 activations that several nodes read.
            form = {node.name: precision_of(node) for node in load(path).graph}
            left = [name for name in unasked if form.get(name) != "int8"]
            if len(left) < len(unasked):
                texts.append(
                    f"{len(unasked) - len(left)} weighted nodes: int8 for other providers, in float on ONNX Runtime's"
                    " CPU provider on this machine, which has no kernel for them (activations: uint8 has)"
                )
            unasked = left
        return Realised(
            int8_ops=dict(sorted(counts["int8"].items())),
            float_ops=dict(sorted(counts["float"].items())),
            other_ops=dict(sorted(counts["other"].items())),
            leftovers=tuple(texts),
            unasked_float=tuple(unasked),
        )


def _kind(node: ir.Node) -> Literal["int8", "float", "other"]:
    """What a node of an optimised model is; ONNX Runtime writes no types, so movement is judged by its name."""
    if node.op_type in INT8_OPERATORS:
        return "int8"
    return (
        "other" if node.op_type in CONVERSIONS | REORDERS | MOVEMENT | {"MaxPool", "NhwcMaxPool", "Clip"} else "float"
    )


def _source_name(node: ir.Node) -> str:
    """The source's name of a node that ONNX Runtime made: it adds ``_token_N`` when it changes the layout."""
    return re.sub(r"_token_\d+$", "", node.name or "")


class _Writer:
    """Rewrites one Q/DQ graph in place; holds it with the table for the length of one lowering."""

    def __init__(self, model: ir.Model, table: Quantization, dtype: np.dtype[Any]) -> None:
        self._graph = model.graph
        self._table = table
        self._dtype = dtype
        self._offset = 128 if dtype == np.uint8 else 0

    # What is left between a node and its QuantizeLinear

    def drop_activations(self) -> None:
        """Relu and Clip before a QuantizeLinear: gone where the grid implies them, else on the integers."""
        for quantize in self._of_type("QuantizeLinear"):
            value = quantize.inputs[0]
            activation = value.producer() if value is not None else None
            if value is None or activation is None or activation.op_type not in FUSED_ACTIVATIONS:
                continue
            source = activation.inputs[0]
            before = source.producer() if source is not None else None
            alone = len(value.uses()) == 1 and not value.is_graph_output()
            if source is None or before is None or before.op_type == "DequantizeLinear" or not alone:
                continue
            if len(source.uses()) != 1 or source.is_graph_output():
                continue
            params = self._grid(quantize)
            low, high = (int(params.quantize(np.asarray(bound, np.float32))) for bound in _bounds(activation))
            quantize.replace_input_with(0, source)
            self._graph.remove(activation, safe=True)
            source.name = value.name
            if (low, high) != (-128, 127):
                self._clip_integers(quantize, low, high)

    def _clip_integers(self, quantize: ir.Node, low: int, high: int) -> None:
        integers = quantize.outputs[0]
        name = integers.name or ""
        bounds = [
            self._constant(f"{name}__{end}", np.asarray(bound + self._offset, self._dtype))
            for end, bound in (("low", low), ("high", high))
        ]
        clip = ir.node("Clip", [integers, *bounds])
        ir.convenience.replace_all_uses_with(integers, clip.outputs[0])
        clip.replace_input_with(0, integers)
        integers.name = f"{name}__unclipped"
        _like(clip.outputs[0], integers, name)
        self._graph.insert_after(quantize, [clip])

    def round_sigmoids(self) -> None:
        """In ``x · sigmoid(x)`` between integers, the sigmoid on a grid of its own: 1/256 from 0, as everywhere."""
        for node in self._of_type("Sigmoid"):
            value, result = node.inputs[0], node.outputs[0]
            product = _only_consumer(result)
            if self._table.scheme(node) != "int8" or value is None or product is None or product.op_type != "Mul":
                continue
            before, after = value.producer(), _only_consumer(product.outputs[0])
            if before is None or before.op_type != "DequantizeLinear" or value not in product.inputs:
                continue
            if after is None or after.op_type != "QuantizeLinear":
                continue
            gate = self._round_gate(result, node, 1 / 256)
            for index, operand in enumerate(product.inputs):
                if operand is result:
                    product.replace_input_with(index, gate)

    def harden(self) -> None:
        """HardSigmoid as the saturating sum that it is, and HardSwish as a product with one.

        ``clip(a·x + b, 0, 1)`` is an Add of ``a·x`` (the same integers, their scale times a) and a constant, rounded
        to a grid that ends at 0 and 1.
        """
        for node in list(self._graph):
            if node.op_type not in ("HardSwish", "HardSigmoid") or self._table.scheme(node) != "int8":
                continue
            value, result = node.inputs[0], node.outputs[0]
            before, after = value.producer() if value is not None else None, _only_consumer(result)
            if value is None or before is None or before.op_type != "DequantizeLinear":
                continue
            if after is None or after.op_type != "QuantizeLinear":
                continue
            slope, offset = 1 / 6, 0.5
            if node.op_type == "HardSigmoid":
                slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
                params = self._grid(after)
                ends = [int(params.quantize(np.asarray(end, np.float32))) for end in (0, 1)]
                if ends != [-128, 127] or offset <= 0 or slope <= 0:
                    continue
            name = result.name or ""
            grid = self._grid(before)
            scaled = ir.node(
                "DequantizeLinear",
                [
                    before.inputs[0],
                    self._constant(f"{name}__slope", (grid.scale * np.float32(slope)).astype(np.float32)),
                    before.inputs[2],
                ],
            )
            one = self._constant(f"{name}__one", np.asarray(1, self._dtype))
            shift = ir.node(
                "DequantizeLinear",
                [
                    one,
                    self._constant(f"{name}__shift", np.asarray(offset, np.float32)),
                    self._constant(f"{name}__no_offset", np.asarray(0, self._dtype)),
                ],
            )
            total = ir.node("Add", [scaled.outputs[0], shift.outputs[0]], name=node.name)
            _like(scaled.outputs[0], value, f"{name}__scaled")
            _like(shift.outputs[0], value, f"{name}__shifted")
            shift.outputs[0].shape = ir.Shape(())
            self._graph.insert_before(node, [scaled, shift, total])
            if node.op_type == "HardSigmoid":
                ir.convenience.replace_all_uses_with(result, total.outputs[0])
                self._graph.remove(node, safe=True)
                _like(total.outputs[0], result, name)
                continue
            _like(total.outputs[0], value, f"{name}__gate")
            gate = self._round_gate(total.outputs[0], total, 1 / 255)
            total.name = f"{node.name}__gate"
            product = ir.node("Mul", [value, gate], name=node.name)
            ir.convenience.replace_all_uses_with(result, product.outputs[0])
            self._graph.insert_after(node, [product])
            self._graph.remove(node, safe=True)
            _like(product.outputs[0], result, name)

    def _round_gate(self, value: ir.Value, node: ir.Node, step: float) -> ir.Value:
        """What ``node`` makes, rounded to the grid that starts at 0 and has this step; read as a real number."""
        name = value.name or ""
        grid = [
            self._constant(f"{name}__scale", np.asarray(step, np.float32)),
            self._constant(f"{name}__zero_point", np.asarray(self._offset - 128, self._dtype)),
        ]
        quantize = ir.node("QuantizeLinear", [value, *grid])
        _like(quantize.outputs[0], value, f"{name}{INTEGERS_SUFFIX}")
        quantize.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(self._dtype))
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *grid])
        _like(dequantize.outputs[0], value, f"{name}__dq")
        self._graph.insert_after(node, [quantize, dequantize])
        return dequantize.outputs[0]

    def drop_last_pairs(self) -> None:
        """An int8 product that only float nodes or the caller read gives its float result."""
        for node in (*self._of_type("Gemm"), *self._of_type("MatMul")):
            if self._table.scheme(node) != "int8":
                continue
            value = node.outputs[0]
            quantize = _only_consumer(value)
            if quantize is None or quantize.op_type != "QuantizeLinear" or value.is_graph_output():
                continue
            dequantize = _only_consumer(quantize.outputs[0])
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            read = dequantize.outputs[0]
            if any(self._table.scheme(use.node) == "int8" for use in read.uses()):
                continue
            ir.convenience.replace_all_uses_with(read, value, replace_graph_outputs=True)
            if value.is_graph_output():
                value.name, read.name = read.name, None
            self._graph.remove([dequantize, quantize], safe=True)

    def move_integers(self) -> None:
        """DequantizeLinear → mover → QuantizeLinear on one grid: the mover moves the integers."""
        for node in list(self._graph):
            if node.op_type not in INTEGER_MOVERS or node.inputs[0] is None:
                continue
            before, after = node.inputs[0].producer(), _only_consumer(node.outputs[0])
            if before is None or before.op_type != "DequantizeLinear":
                continue
            if after is None or after.op_type != "QuantizeLinear" or self._grid(before) != self._grid(after):
                continue
            node.replace_input_with(0, before.inputs[0])
            if node.op_type == "Pad":
                zero_point = int(self._grid(before).zero_point) + self._offset
                name = f"{node.outputs[0].name}__pad"
                inputs = [*node.inputs, None, None][:4]
                inputs[2] = self._constant(name, np.asarray(zero_point, self._dtype))
                while inputs[-1] is None:
                    inputs.pop()
                node.resize_inputs(len(inputs))
                for index, value in enumerate(inputs):
                    node.replace_input_with(index, value)
            moved, integers = node.outputs[0], after.outputs[0]
            ir.convenience.replace_all_uses_with(integers, moved, replace_graph_outputs=True)
            moved.type, moved.name, integers.name = integers.type, integers.name, None
            self._graph.remove(after, safe=True)

    def slice_blocks(self) -> None:
        """Every k-th channel as a slice of whole blocks between two Reshapes.

        ONNX Runtime (1.31) takes a Slice with a step value by value, and one without a step block by block: on a
        ShuffleNet, whose channel shuffle is such slices, a quarter of the time.
        """
        for node in self._of_type("Slice"):
            source, result = node.inputs[0], node.outputs[0]
            if source is None or source.shape is None or result.shape is None or len(node.inputs) < 5:
                continue
            constants = [value.const_value.numpy() for value in node.inputs[1:5] if value and value.const_value]
            if len(constants) < 4 or any(array.size != 1 for array in constants):
                continue
            start, _, axis, step = (int(array.reshape(())) for array in constants)
            shape, after = [int(size) for size in source.shape.numpy()], [int(size) for size in result.shape.numpy()]
            axis %= len(shape)
            blocks = shape[axis] // max(step, 1)
            if step < 2 or not 0 <= start < step or shape[axis] % step or after[axis] != blocks:
                continue
            before, block = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
            if axis != 1 or block == 1:
                # Nothing lies together, or it is a row or column of an image: that Slice is quick where channels come
                # last, as ONNX Runtime has them between int8 convolutions, and Reshapes would make it turn back.
                continue
            name = result.name or ""
            rows = self._moved("Reshape", source, [before, blocks, step * block], f"{name}__rows")
            bounds = np.array([[start * block], [(start + 1) * block], [2]], np.int64)
            columns = self._moved("Slice", rows.outputs[0], list(bounds), f"{name}__columns")
            back = self._moved("Reshape", columns.outputs[0], after, f"{name}__blocks")
            for made, sizes in ((rows, (before, blocks, step * block)), (columns, (before, blocks, block))):
                made.outputs[0].shape = ir.Shape(sizes)
            self._graph.insert_before(node, [rows, columns, back])
            ir.convenience.replace_all_uses_with(result, back.outputs[0], replace_graph_outputs=True)
            back.outputs[0].shape, back.outputs[0].name, result.name = result.shape, name, None
            self._graph.remove(node, safe=True)

    def _moved(self, op: str, source: ir.Value, numbers: list[Any], name: str) -> ir.Node:
        """A Reshape or Slice of ``source``; ``numbers`` are its shape, or its starts, ends and axes."""
        arrays = [np.array(numbers, np.int64)] if op == "Reshape" else numbers
        constants = [self._constant(f"{name}__{index}", array) for index, array in enumerate(arrays)]
        node = ir.node(op, [source, *constants], name=name)
        node.outputs[0].name, node.outputs[0].type = name, source.type
        return node

    def avoid_refusals(self) -> None:
        """Two forms that ONNX Runtime (1.31) takes for others, and then fails on.

        It moves a Transpose through a Pad as if the Pad named all axes, and makes an AveragePool with dilations a
        QLinearAveragePool, which knows none: a Max of one tensor, which is that tensor, keeps it in float.
        """
        for node in list(self._graph):
            if node.op_type == "Pad":
                expand_pad_axes(self._graph, node)
            if node.op_type != "AveragePool" or (dilations := node.attributes.get("dilations")) is None:
                continue
            if set(dilations.as_ints()) == {1}:
                del node.attributes["dilations"]
            elif self._table.scheme(node) == "int8":
                result = node.outputs[0]
                same = ir.node("Max", [result])
                ir.convenience.replace_all_uses_with(result, same.outputs[0], replace_graph_outputs=True)
                same.replace_input_with(0, result)
                _like(same.outputs[0], result, result.name or "")
                result.name = f"{result.name}__pooled"
                self._graph.insert_after(node, [same])

    def fold_constants(self) -> None:
        """A constant that is read as an activation is stored as its integers."""
        for quantize in self._of_type("QuantizeLinear"):
            value = quantize.inputs[0]
            if value is None or value.const_value is None:
                continue
            integers = quantize.outputs[0]
            stored = self._grid(quantize).quantize(value.const_value.numpy()).astype(np.int16) + self._offset
            name = integers.name or ""
            integers.name = None
            constant = self._constant(name, stored.astype(self._dtype))
            ir.convenience.replace_all_uses_with(integers, constant)
            self._graph.remove(quantize, safe=True)

    # What ONNX Runtime must not do

    def guard_float_nodes(self) -> None:
        """Weighted nodes that are not int8 read integers through a scale per channel (see the module)."""
        for node in list(self._graph):
            guarded = node.op_type in WEIGHTED and self._table.scheme(node) != "int8"
            # Its weight stays integers, but it has no int8 kernel: let nothing try.
            guarded = guarded or node.op_type in NO_INT8_KERNEL
            if not guarded:
                continue
            reader, index = node, 0
            while (value := reader.inputs[index]) is not None and (before := value.producer()) is not None:
                if before.op_type == "DequantizeLinear":
                    self._spread_scale(reader, before)
                    break
                if before.op_type not in ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"):
                    break  # ONNX Runtime carries a DequantizeLinear through these (QDQPropagation), and no others
                reader = before

    def _spread_scale(self, reader: ir.Node, dequantize: ir.Node) -> None:
        integers = dequantize.inputs[0]
        sizes = integers.shape if integers is not None and integers.shape is not None else ()
        shape = [size if isinstance(size, int) else 1 for size in sizes]
        axis = next((axis for axis, size in enumerate(shape) if size > 1), None)
        if integers is None or axis is None:
            return  # one value: nothing to gain from int8, and a scale of one value counts as scalar
        params = self._grid(dequantize)
        name = f"{integers.name}__spread"
        scale = self._constant(f"{name}_scale", np.full(shape[axis], params.scale, np.float32))
        zero_point = int(params.zero_point) + self._offset
        zeros = self._constant(f"{name}_zero_point", np.full(shape[axis], zero_point, self._dtype))
        spread = ir.node("DequantizeLinear", [integers, scale, zeros], {"axis": axis})
        _like(spread.outputs[0], dequantize.outputs[0], f"{name}_dq")
        self._graph.insert_before(reader, [spread])
        reader.replace_input_with(0, spread.outputs[0])

    # Size

    def drop_zero_points(self) -> None:
        for node in self._of_type("DequantizeLinear"):
            stored, zero_point = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
            if stored is None or stored.const_value is None or zero_point is None or zero_point.const_value is None:
                continue
            if zero_point.const_value.numpy().any() or stored.dtype not in (ir.DataType.INT8, ir.DataType.INT32):
                continue
            # ONNX Runtime makes QGemm only of weights that have a zero point (1.31; QLinearConv does without).
            if stored.dtype == ir.DataType.INT32 or all(use.node.op_type != "Gemm" for use in node.outputs[0].uses()):
                node.resize_inputs(2)

    def strip(self) -> None:
        """What no reader needs: dead nodes, equal constants, shapes that inference finds again, exporters' notes."""
        graph = self._graph
        _remove_dead_nodes(graph)
        kept: dict[tuple[object, ...], ir.Value] = {}
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or not value.uses():
                if not value.is_graph_output():
                    del graph.initializers[value.name]  # type: ignore[arg-type]
                continue
            key = (
                (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()) if tensor.nbytes <= 4096 else (id(value),)
            )
            if (first := kept.setdefault(key, value)) is not value and not value.is_graph_output():
                ir.convenience.replace_all_uses_with(value, first)
                del graph.initializers[value.name]  # type: ignore[arg-type]
        for node in graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node.name = None
        forget_notes(graph)

    # Schemes other than int8

    def quantize_at_run_time(self) -> None:
        """A Gemm of ``int8-dynamic``: DynamicQuantizeLinear → MatMulInteger → scale → bias.

        The form that ONNX Runtime's own ``quantize_dynamic`` writes, and fuses into one kernel. A convolution keeps
        float arithmetic on its integer weights: ConvInteger takes four to six times as long as a float Conv (1.31).
        """
        quantized: dict[ir.Value, ir.Node] = {}
        for node in self._of_type("Gemm"):
            value = node.inputs[0]
            if self._table.scheme(node) != "int8-dynamic" or value is None:
                continue
            if value not in quantized:
                quantized[value] = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
                for output, suffix in zip(quantized[value].outputs, ("q", "scale", "zero_point"), strict=True):
                    output.name = f"{value.name}__dynamic_{suffix}"
                self._graph.insert_before(node, [quantized[value]])
            self._integer_product(node, *quantized[value].outputs)

    def _integer_product(self, node: ir.Node, integers: ir.Value, scale: ir.Value, zero_point: ir.Value) -> None:
        result, bias, dequantize = node.outputs[0], node.inputs[2], node.inputs[1]
        producer = dequantize.producer() if dequantize is not None else None
        stored = producer.inputs[0] if producer is not None else None
        assert bias is not None and stored is not None
        name = result.name or ""
        weight = self._table.weights[(stored.name or "").removesuffix(INTEGERS_SUFFIX)]
        transposed = self._constant(f"{name}__weight", np.ascontiguousarray(weight.integers.T))
        product = ir.node("MatMulInteger", [integers, transposed, zero_point], name=node.name)
        cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        factor = ir.node("Mul", [scale, self._constant(f"{name}__weight_scale", weight.params.scale)])
        scaled = ir.node("Mul", [cast.outputs[0], factor.outputs[0]])
        shifted = ir.node("Add", [scaled.outputs[0], bias])
        for made, suffix in ((product, "sums"), (cast, "cast"), (factor, "factor"), (scaled, "scaled")):
            made.outputs[0].name = f"{name}__{suffix}"
        ir.convenience.replace_nodes_and_values(
            self._graph, node, [node], [product, cast, factor, scaled, shifted], [result], [shifted.outputs[0]]
        )
        shifted.outputs[0].name = name

    def fold_weights(self) -> None:
        """Integer weights of float arithmetic: Cast → Mul, which ONNX Runtime folds into floats when it loads.

        It leaves a DequantizeLinear of constants to every run: twice the time on a MobileNetV2. The numbers are the
        same: ``float(integer) · scale``.
        """
        for dequantize in self._of_type("DequantizeLinear"):
            stored, scale = dequantize.inputs[:2]
            readers = [use.node for use in dequantize.outputs[0].uses()]
            if stored is None or stored.const_value is None or scale is None or scale.const_value is None:
                continue
            if any(node.op_type not in WEIGHTED or self._has_int8_kernel(node) for node in readers):
                continue
            if len(dequantize.inputs) > 2 and dequantize.inputs[2] is not None:
                zero_point = dequantize.inputs[2].const_value
                if zero_point is None or zero_point.numpy().any():
                    continue
            factor = along_axis(dequantize)
            read = dequantize.outputs[0]
            name = read.name or ""
            cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
            product = ir.node("Mul", [cast.outputs[0], self._constant(f"{name}__scale", factor)])
            _like(cast.outputs[0], read, f"{name}__steps")
            self._graph.insert_before(dequantize, [cast, product])
            ir.convenience.replace_all_uses_with(read, product.outputs[0])
            self._graph.remove(dequantize, safe=True)
            _like(product.outputs[0], read, name)

    def shift_weights(self) -> None:
        """int8 weights of products as uint8: integers and zero points + 128."""
        for node in list(self._graph):
            if node.op_type == "MatMulInteger":
                stored = node.inputs[1]
                assert stored is not None and stored.const_value is not None
                shifted = self._shifted(stored)
                node.resize_inputs(4)
                node.replace_input_with(1, shifted)
                node.replace_input_with(3, self._constant(f"{shifted.name}__zero_point", np.asarray(128, np.uint8)))
            if node.op_type != "DequantizeLinear" or node.inputs[0] is None or node.inputs[1] is None:
                continue
            stored, scale = node.inputs[0], node.inputs[1].const_value
            if stored.const_value is None or stored.dtype != ir.DataType.INT8 or scale is None:
                continue
            if not any(use.node.op_type in WEIGHTED and use.idx == 1 for use in node.outputs[0].uses()):
                continue
            shifted = self._shifted(stored)
            zero_point = np.full(tuple(scale.shape.numpy()), 128, np.uint8)
            node.resize_inputs(3)
            node.replace_input_with(0, shifted)
            node.replace_input_with(2, self._constant(f"{shifted.name}__zero_point", zero_point))

    def _shifted(self, stored: ir.Value) -> ir.Value:
        """A constant of int8 integers as uint8, under its name."""
        assert stored.const_value is not None and stored.name is not None
        name, stored.name = stored.name, f"{stored.name}__int8"
        return self._constant(name, (stored.const_value.numpy().astype(np.int16) + 128).astype(np.uint8))

    def _has_int8_kernel(self, node: ir.Node) -> bool:
        return self._table.scheme(node) == "int8" and node.op_type not in NO_INT8_KERNEL

    def to_fp16(self) -> None:
        """Nodes of scheme ``fp16`` compute in float16; casts stand where float32 meets them."""
        compute_in_fp16(self._graph, lambda node: self._table.scheme(node) == "fp16")

    # Integer inputs and outputs

    def integer_io(self, dtype: np.dtype[Any]) -> dict[str, dict[str, float | int | str]]:
        """Make float inputs and outputs integers of the table's grid; grids by name, zero points in ``dtype``."""
        grids: dict[str, dict[str, float | int | str]] = {}
        offset = 128 if dtype == np.uint8 else 0
        for value in list(self._graph.inputs):
            if value.dtype != ir.DataType.FLOAT:
                continue
            params = self._io_grid(value)
            grids[value.name or ""] = _described(params, offset, dtype)
            read = self._dequantize_input(value, params, dtype, offset)
            value.type = ir.TensorType(ir.DataType.from_numpy(dtype))
            del read
        for index, value in enumerate(list(self._graph.outputs)):
            if value.dtype != ir.DataType.FLOAT:
                continue
            params = self._io_grid(value)
            grids[value.name or ""] = _described(params, offset, dtype)
            self._quantize_output(index, value, params, dtype, offset)
        return grids

    def _io_grid(self, value: ir.Value) -> QuantParams:
        name = value.name or ""
        if (params := self._table.activations.get(name)) is not None:
            return params
        if (bounds := self._table.ranges.get(name)) is not None:
            return QuantParams.from_range(bounds)
        raise TargetError(
            f"'{name}' has no grid in the table of scales, so it cannot be {self._dtype.name}",
            where="target onnx, io",
            hint="io: float32, or scheme int8, which finds a range for every input and output",
        )

    def _dequantize_input(self, value: ir.Value, params: QuantParams, dtype: np.dtype[Any], offset: int) -> ir.Value:
        name = value.name or ""
        uses = list(value.uses())
        scale = self._constant(f"{name}__io_scale", params.scale)
        zero_point = self._constant(f"{name}__io_zero_point", (params.zero_point + offset).astype(dtype))
        dequantize = ir.node("DequantizeLinear", [value, scale, zero_point])
        _like(dequantize.outputs[0], value, f"{name}__real")
        for use in uses:
            quantize = use.node
            if quantize.op_type == "QuantizeLinear" and dtype == self._dtype and self._grid(quantize) == params:
                # The caller gives the integers that this node would have made.
                ir.convenience.replace_all_uses_with(quantize.outputs[0], value)
                self._graph.remove(quantize, safe=True)
            else:
                use.node.replace_input_with(use.idx, dequantize.outputs[0])
        if dequantize.outputs[0].uses():
            self._graph.insert_before(self._graph[0], [dequantize])
        return dequantize.outputs[0]

    def _quantize_output(
        self, index: int, value: ir.Value, params: QuantParams, dtype: np.dtype[Any], offset: int
    ) -> None:
        name = value.name or ""
        before = value.producer()
        value.name = f"{name}__real"
        if before is not None and before.op_type == "DequantizeLinear" and dtype == self._dtype:
            integers = before.inputs[0]
            made = integers is not None and integers.producer() is not None and not integers.is_graph_output()
            if integers is not None and made and self._grid(before) == params:
                integers.name = name
                self._graph.outputs[index] = integers
                return
        scale = self._constant(f"{name}__io_scale", params.scale)
        zero_point = self._constant(f"{name}__io_zero_point", (params.zero_point + offset).astype(dtype))
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point])
        _like(quantize.outputs[0], value, name)
        quantize.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(dtype))
        self._graph.append(quantize)
        self._graph.outputs[index] = quantize.outputs[0]

    # Small parts

    def _of_type(self, op_type: str) -> list[ir.Node]:
        return [node for node in self._graph if node.op_type == op_type]

    def _grid(self, node: ir.Node) -> QuantParams:
        """Per-tensor parameters of a Q or DQ node of this graph, on the int8 grid."""
        scale, zero_point = node.inputs[1], node.inputs[2]
        assert scale is not None and scale.const_value is not None
        assert zero_point is not None and zero_point.const_value is not None
        stored = zero_point.const_value.numpy()
        return QuantParams(
            scale.const_value.numpy(), stored.astype(np.int32) - (128 if stored.dtype == np.uint8 else 0)
        )

    def _constant(self, name: str, array: Array) -> ir.Value:
        return named_constant(self._graph, name, array)


def _bounds(activation: ir.Node) -> tuple[float, float]:
    """What a Relu or Clip lets through; a missing bound is infinite."""
    if activation.op_type == "Relu":
        return 0.0, float("inf")
    low, high = (
        float(value.const_value.numpy()) if value is not None and value.const_value is not None else default
        for value, default in zip([*activation.inputs[1:], None, None], (-np.inf, np.inf), strict=False)
    )
    return low, high


def _described(params: QuantParams, offset: int, dtype: np.dtype[Any]) -> dict[str, float | int | str]:
    return {"scale": float(params.scale), "zero_point": int(params.zero_point) + offset, "dtype": dtype.name}


def _like(value: ir.Value, model: ir.Value, name: str) -> None:
    value.name, value.type, value.shape = name, model.type, model.shape


def _only_consumer(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _remove_dead_nodes(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
