"""Operators that compute each value on its own, or two of one place: arithmetic, activations, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.formats.tflite import Layout
from edgeopt.graph.quantization import INT8_MAX, INT8_MIN, QuantParams
from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite.attributes import Array, clip_bounds, constant, constant_input, shape_of
from edgeopt.targets.tflite.draft import options
from edgeopt.targets.tflite.emit import NONE, RELU6, Emitter, Stored, chain_of, dtype_of

ADD_RATIO = (2.0**-10, 2.0**8)
"""Input scale / output scale of ADD and SUB that XNNPACK takes on integers: at least, below."""
MUL_RATIO = (2.0**-16, 2.0**8)
"""Product of the input scales / output scale of MUL."""

FEW_CHANNELS = 16
"""Fewer than one vector register of floats holds."""

OPTIONS = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "MaximumMinimum",
           "MINIMUM": "MaximumMinimum", "POW": "Pow", "SQUARED_DIFFERENCE": "SquaredDifference"}  # fmt: skip

Lower = Callable[[Emitter, ir.Node], None]


# --- two operands


def native_arithmetic(e: Emitter, node: ir.Node) -> bool:
    result = e.native_result(node)
    out = e.grid(result)
    grids = [e.grid(value) for value in node.inputs]
    if out is None or any(grid is None for grid in grids):
        return False
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return False  # a chain of one variable: one table as an island, a real product as MUL
    scales = [float(grid.scale) for grid in grids if grid is not None]
    if node.op_type == "Mul":
        return MUL_RATIO[0] <= scales[0] * scales[1] / float(out.scale) < MUL_RATIO[1]
    return all(ADD_RATIO[0] <= scale / float(out.scale) < ADD_RATIO[1] for scale in scales)


def common_layout(e: Emitter, values: list[ir.Value], out: ir.Value) -> Layout:
    """The layout in which the node at work can read most of its operands as they lie."""
    shape = shape_of(out)
    candidates: list[Layout] = []
    for value in values:
        if constant(value) is None and len(shape_of(value)) == len(shape):
            stored = e.read_as_it_lies(value)
            if lay.is_plain(stored.layout):
                candidates.append(lay.plain(shape, stored.perm))
            elif all(other is value or _is_scalar(other) for other in values):
                # Parts of an axis lie apart: an operation with one scalar or nothing else can leave them so.
                return stored.layout
    if not candidates:
        return lay.plain(shape)
    if any(candidate != candidates[0] for candidate in candidates):
        for perm in e.wanted.get(out, ()):
            if lay.plain(shape, perm) in candidates:
                return lay.plain(shape, perm)
        sizes = [int(np.prod(shape_of(value))) for value in values if constant(value) is None
                 and len(shape_of(value)) == len(shape)]  # fmt: skip
        return candidates[int(np.argmax(sizes[: len(candidates)]))]
    return candidates[0]


def _is_scalar(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.size == 1


def operand(e: Emitter, value: ir.Value, layout: Layout) -> int:
    """One operand, ready to broadcast against ``layout``. Constants are permuted before they are written."""
    rank = len(layout.shape)
    shape = shape_of(value)
    wide = (*(1,) * (rank - len(shape)), *shape)
    array = constant(value)
    if array is not None and not e.native and not (e.scheme == "int8" and e.grid(value) is not None):
        return e.constant(value.name or "constant", _narrow(array, wide, layout))
    if not lay.is_plain(layout):
        return e.read_as_it_lies(value).index
    if len(shape) == rank:
        return e.moved(e.read_as_it_lies(value), layout.perm).index
    stored = e.read(value, lay.identity(len(shape)))
    return e.moved(Stored(e.reshape(stored.index, wide), lay.plain(wide)), layout.perm).index


def _narrow(array: Array, wide: tuple[int, ...], layout: Layout) -> Array:
    if array.size == 1:
        return array.reshape(1)
    if (array == array.flat[0]).all():
        return array.reshape(-1)[:1]
    array = np.ascontiguousarray(array.reshape(wide).transpose(layout.perm))
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return _along_rows(array, layout)


def _along_rows(array: Array, layout: Layout) -> Array:
    """A constant per channel, repeated over a row of the image where channels are few.

    XNNPACK calls its kernel once per stretch that is not broadcast: three values at a time for three channels, which
    made one MUL of a 224-pixel image as slow as a third of a MobileNet.
    """
    stored = lay.stored_shape(layout) if lay.is_plain(layout) else ()
    if array.ndim != 1 or len(stored) < 3 or stored[-1] != len(array) or len(array) >= FEW_CHANNELS:
        return array
    return np.ascontiguousarray(np.broadcast_to(array, (stored[-2], len(array))))


def binary(code: str) -> Lower:
    def lower(e: Emitter, node: ir.Node) -> None:
        values = [value for value in node.inputs if value is not None]
        layout = common_layout(e, values, node.outputs[0])
        inputs = [operand(e, value, layout) for value in values]
        activation, value = e.fused(node) if code in ("ADD", "SUB", "MUL", "DIV") else (NONE, node.outputs[0])
        fields = {"fusedActivationFunction": activation} if code in ("ADD", "SUB", "MUL", "DIV") else {}
        settings = options(OPTIONS[code], **fields) if code in OPTIONS else None
        e.write(value, code, inputs, layout, settings, shape=_shape(e, inputs, layout))

    return lower


def _shape(e: Emitter, inputs: list[int], layout: Layout) -> tuple[int, ...]:
    if lay.is_plain(layout):
        return lay.stored_shape(layout)
    return np.broadcast_shapes(*(e.shape(index) for index in inputs))


def variadic(code: str) -> Lower:
    """Sum, Max and Min of any number of operands: one after the other."""

    def lower(e: Emitter, node: ir.Node) -> None:
        values = [value for value in node.inputs if value is not None]
        layout = common_layout(e, values, node.outputs[0])
        settings = options(OPTIONS[code])
        index = operand(e, values[0], layout)
        if len(values) == 1:
            e.alias(node.outputs[0], Stored(index, layout))
            return
        for value in values[1:-1]:
            other = operand(e, value, layout)
            shape = np.broadcast_shapes(e.shape(index), e.shape(other))
            index = e.step(code, (index, other), shape, settings)
        e.write(node.outputs[0], code, (index, operand(e, values[-1], layout)), layout, settings)

    return lower


def power(e: Emitter, node: ir.Node) -> None:
    exponent = constant_input(node, 1)
    scalar = float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else None
    codes = {2.0: "SQUARE", 0.5: "SQRT", -0.5: "RSQRT"}
    if scalar in codes and shape_of(node.inputs[0]) == shape_of(node.outputs[0]):
        unary(codes[scalar])(e, node)
    else:
        binary("POW")(e, node)


def where(e: Emitter, node: ir.Node) -> None:
    values = [value for value in node.inputs if value is not None]
    layout = common_layout(e, values[1:], node.outputs[0])
    e.write(node.outputs[0], "SELECT_V2", [operand(e, value, layout) for value in values], layout, options("SelectV2"))


def prelu(e: Emitter, node: ir.Node) -> None:
    value, slope = node.inputs[0], node.inputs[1]
    assert value is not None and slope is not None
    layout = common_layout(e, [value], node.outputs[0])
    array = constant(slope)
    inputs = (e.moved(e.read_as_it_lies(value), layout.perm).index, operand(e, slope, layout))
    if array is not None and array.size == 1:
        alpha = float(array.reshape(-1)[0])
        e.write(node.outputs[0], "LEAKY_RELU", inputs[:1], layout, options("LeakyRelu", alpha=alpha))
        return
    e.write(node.outputs[0], "PRELU", inputs, layout)


# --- one operand


def unary(code: str, kind: str | None = None, **fields: object) -> Lower:
    def lower(e: Emitter, node: ir.Node) -> None:
        value = node.inputs[0]
        assert value is not None
        x = e.read_as_it_lies(value)
        settings = options(kind, **fields) if kind is not None else None
        e.write(node.outputs[0], code, (x.index,), x.layout, settings, shape=e.shape(x.index))

    return lower


GATES: Mapping[str, tuple[str, float, int]] = {"Sigmoid": ("LOGISTIC", 1 / 256, INT8_MIN), "Tanh": ("TANH", 1 / 128, 0)}
"""Function → operator, and the grid on which LiteRT's own integer kernel writes it."""


def gate(e: Emitter, node: ir.Node) -> None:
    """Sigmoid or Tanh; on integers ``x · f(x)`` with it as two integer operators, which XNNPACK folds into one table.

    As an island the two branches of ``x`` would not be folded: a chain may go back to its integer input only, and
    that costs three times the time. The rounding of the gate is below half a step of the product wherever the
    product's grid spans what ``x`` does; that it never shows as more than one step is checked for every integer.
    """
    code, scale, zero_point = GATES[node.op_type]
    x, product = node.inputs[0], chain_of(node)
    assert x is not None
    grid = e.grid(x)
    if e.scheme != "int8" or product is None or product is node or grid is None or e.grid(node.outputs[0]) is not None:
        unary(code)(e, node)
        return
    out = product.outputs[0]
    result = e.grid(out)
    if result is None or e.table.scheme(product) != "int8":
        unary(code)(e, node)
        return
    ratio = float(grid.scale) * scale / float(result.scale)
    gate_grid = QuantParams(np.asarray(scale, np.float32), np.asarray(zero_point))
    if not MUL_RATIO[0] <= ratio < MUL_RATIO[1] or not _gate_is_fine(code, grid, gate_grid, result):
        unary(code)(e, node)
        return
    source = e.read_integers(x)
    e.node, e.native = product, True
    opened = e.tensor(f"{node.name}/gate", e.shape(source.index), "int8", grid=gate_grid)
    e.operator(code, (source.index,), (opened,))
    e.write(out, "MUL", (source.index, opened), source.layout, options("Mul"), shape=e.shape(source.index))
    e.done.add(product)


def _gate_is_fine(code: str, x: QuantParams, gate: QuantParams, out: QuantParams) -> bool:
    """Whether all 256 products with a rounded gate are within a step of the exact ones."""
    real = x.dequantize(np.arange(INT8_MIN, INT8_MAX + 1)).astype(np.float64)
    opened = np.tanh(real) if code == "TANH" else 0.5 + 0.5 * np.tanh(0.5 * real)
    exact = out.quantize(real * opened).astype(np.int32)
    rounded = out.quantize(real * gate.dequantize(gate.quantize(opened))).astype(np.int32)
    return int(np.abs(exact - rounded).max()) <= 1


class Chain:
    """Several operators for one operator of the graph, on one variable, the last of which writes its output."""

    def __init__(self, e: Emitter, node: ir.Node) -> None:
        value = node.inputs[0]
        assert value is not None
        self._e = e
        self._node = node
        x = e.read_as_it_lies(value)
        self.x = x.index
        self._layout = x.layout
        self._shape = e.shape(x.index)

    def step(self, code: str, *inputs: int | float, settings: object = None) -> int:
        return self._e.step(code, self._inputs(inputs), self._shape, settings)

    def end(self, code: str, *inputs: int | float, settings: object = None) -> None:
        self._e.write(self._node.outputs[0], code, self._inputs(inputs), self._layout, settings, shape=self._shape)

    def _inputs(self, inputs: tuple[int | float, ...]) -> list[int]:
        return [self._e.constant("scalar", np.asarray([i], np.float32)) if isinstance(i, float) else i for i in inputs]


def clip(e: Emitter, node: ir.Node) -> None:
    low, high = clip_bounds(node)
    codes = {(0.0, float("inf")): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    chain = Chain(e, node)
    if (low, high) in codes:
        chain.end(codes[low, high], chain.x)
    elif np.isinf(low) and np.isinf(high):
        e.alias(node.outputs[0], e.read_as_it_lies(node.inputs[0]))  # type: ignore[arg-type]  # Clip has an input
    elif np.isinf(high):
        chain.end("MAXIMUM", chain.x, low, settings=options("MaximumMinimum"))
    elif np.isinf(low):
        chain.end("MINIMUM", chain.x, high, settings=options("MaximumMinimum"))
    else:
        floor = chain.step("MAXIMUM", chain.x, low, settings=options("MaximumMinimum"))
        chain.end("MINIMUM", floor, high, settings=options("MaximumMinimum"))


def hard_sigmoid(e: Emitter, node: ir.Node) -> None:
    """clip(αx + β, 0, 1) = relu6(6αx + 6β) / 6: the clip that TFLite can fuse. α = 1/6 saves a product."""
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    chain = Chain(e, node)
    x = chain.x
    if abs(6 * alpha - 1) > 1e-6:
        x = chain.step("MUL", x, 6 * alpha, settings=options("Mul"))
    clipped = chain.step("ADD", x, 6 * beta, settings=options("Add", fusedActivationFunction=RELU6))
    chain.end("MUL", clipped, 1 / 6, settings=options("Mul"))


def leaky_relu(e: Emitter, node: ir.Node) -> None:
    unary("LEAKY_RELU", "LeakyRelu", alpha=node.attributes.get_float("alpha", 0.01))(e, node)


def gelu(e: Emitter, node: ir.Node) -> None:
    approximate = node.attributes.get_string("approximate", "none") == "tanh"
    unary("GELU", "Gelu", approximate=approximate)(e, node)


def elu(e: Emitter, node: ir.Node) -> None:
    """α(eˣ − 1) below zero is the ELU of α = 1 with its negative values times α."""
    chain = Chain(e, node)
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha == 1.0:
        chain.end("ELU", chain.x)
    else:
        chain.end("LEAKY_RELU", chain.step("ELU", chain.x), settings=options("LeakyRelu", alpha=alpha))


def selu(e: Emitter, node: ir.Node) -> None:
    chain = Chain(e, node)
    alpha, gamma = node.attributes.get_float("alpha", 1.6732632), node.attributes.get_float("gamma", 1.050701)
    bent = chain.step("LEAKY_RELU", chain.step("ELU", chain.x), settings=options("LeakyRelu", alpha=alpha))
    chain.end("MUL", bent, gamma, settings=options("Mul"))


def celu(e: Emitter, node: ir.Node) -> None:
    """α · elu(x / α)."""
    chain = Chain(e, node)
    alpha = node.attributes.get_float("alpha", 1.0)
    bent = chain.step("ELU", chain.step("MUL", chain.x, 1 / alpha, settings=options("Mul")))
    chain.end("MUL", bent, alpha, settings=options("Mul"))


def erf(e: Emitter, node: ir.Node) -> None:
    """2Φ(z) − 1 with z = √2·x, and Φ(z) = gelu(z) / z: TFLite has no other way to the error function."""
    chain = Chain(e, node)
    z = chain.step("MUL", chain.x, float(np.sqrt(2)), settings=options("Mul"))
    z = chain.step("ADD", z, 1e-12, settings=options("Add"))  # 0 / 0 is what zero must not become
    share = chain.step("DIV", chain.step("GELU", z, settings=options("Gelu")), z, settings=options("Div"))
    chain.end("SUB", chain.step("MUL", share, 2.0, settings=options("Mul")), 1.0, settings=options("Sub"))


def softplus(e: Emitter, node: ir.Node) -> None:
    """log(1 + exp(x)) as relu(x) + log(1 + exp(−|x|)), which cannot overflow."""
    chain = Chain(e, node)
    bump = _bump(chain)
    chain.end("ADD", chain.step("RELU", chain.x), bump, settings=options("Add"))


def mish(e: Emitter, node: ir.Node) -> None:
    """x · tanh(softplus(x))."""
    chain = Chain(e, node)
    plus = chain.step("ADD", chain.step("RELU", chain.x), _bump(chain), settings=options("Add"))
    chain.end("MUL", chain.x, chain.step("TANH", plus), settings=options("Mul"))


def _bump(chain: Chain) -> int:
    negative = chain.step("NEG", chain.step("ABS", chain.x), settings=options("Neg"))
    one_more = chain.step("ADD", chain.step("EXP", negative, settings=options("Exp")), 1.0, settings=options("Add"))
    return chain.step("LOG", one_more)


def softsign(e: Emitter, node: ir.Node) -> None:
    chain = Chain(e, node)
    below = chain.step("ADD", chain.step("ABS", chain.x), 1.0, settings=options("Add"))
    chain.end("DIV", chain.x, below, settings=options("Div"))


def reciprocal(e: Emitter, node: ir.Node) -> None:
    chain = Chain(e, node)
    one = e.constant("scalar", np.asarray([1.0], np.float32))
    chain.end("DIV", one, chain.x, settings=options("Div"))


def cast(e: Emitter, node: ir.Node) -> None:
    value = node.inputs[0]
    assert value is not None
    x = e.read_as_it_lies(value)
    if dtype_of(value) == dtype_of(node.outputs[0]):
        e.alias(node.outputs[0], x)
    else:
        e.write(node.outputs[0], "CAST", (x.index,), x.layout, options("Cast"), shape=e.shape(x.index))


def check_cast(node: ir.Node) -> str | None:
    known = (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL)
    return None if node.outputs[0].dtype in known else f"a cast to {node.outputs[0].dtype}"


def alias(e: Emitter, node: ir.Node) -> None:
    """Operators that do nothing when a model is only run."""
    value = node.inputs[0]
    assert value is not None
    e.alias(node.outputs[0], e.read_as_it_lies(value))
