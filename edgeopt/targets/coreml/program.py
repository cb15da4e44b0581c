"""From a Q/DQ graph to an ML program: inputs, operators in order, outputs, and what an app reads of it."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.errors import MissingPackage, TargetError
from edgeopt.graph.model import shape
from edgeopt.graph.qdq import INTEGERS_SUFFIX
from edgeopt.graph.quantization import Quantization
from edgeopt.targets.coreml import operators, weights
from edgeopt.targets.coreml.deployment import number, target_of
from edgeopt.targets.coreml.emit import Emitter, Names

CLASS_LABEL = "classLabel"
"""Name of a classifier's answer, as coremltools gives it by default."""


@dataclass(frozen=True)
class Pixels:
    """How an image becomes the model's input: per channel ``scale · pixels + bias``, pixels 0–255."""

    scale: tuple[float, ...]
    bias: tuple[float, ...]


@dataclass(frozen=True)
class Interface:
    """What an app sees.

    Args:
        pixels: input → how pixels become the model's input; the others are arrays.
        color: order of an image's channels, ``RGB`` or ``BGR``; one channel is grey.
        labels: class names, one per value of the first output; empty: no classifier.
        batch: lowest and highest number of samples; None: as in the graph.
        sizes: all heights and widths that an image may have; empty: as in the graph.
    """

    pixels: Mapping[str, Pixels]
    color: str = "RGB"
    labels: tuple[str, ...] = ()
    batch: tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def open_axis(self) -> str | None:
        if self.batch is not None:
            return "the batch"
        return "height and width" if self.sizes else None


@dataclass(frozen=True)
class Built:
    """A finished program.

    Args:
        spec: ``Model`` message, without metadata.
        weights: bytes of the weight file.
        names: of inputs and outputs in the program, by source name.
        tensors: tensor of the table → variables of its integers and of what they stand for.
        weight_vars: weight of the table → variable.
    """

    spec: Any
    weights: bytes
    names: Mapping[str, str]
    tensors: Mapping[str, tuple[str, str]]
    weight_vars: Mapping[str, str]


FRAMEWORKS = ("torch", "tensorflow", "sklearn", "xgboost")
"""coremltools imports each that is installed, to convert from it: 6 of the 8 s of its import, for nothing here."""


@contextlib.contextmanager
def _without(packages: tuple[str, ...]) -> Iterator[None]:
    """As if these were not installed, but for those that are loaded already."""
    hidden = [name for name in packages if name not in sys.modules]
    # None is Python's own mark of a module that must not be imported (``importlib``'s documentation of sys.modules).
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """coremltools tells of untested versions and shows progress bars, which are not for our users.

    Raises:
        MissingPackage: it is not installed.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            with _without(FRAMEWORKS):
                import coremltools  # noqa: F401
        except ImportError as error:
            raise MissingPackage("coremltools", "coreml", "the target coreml") from error
        try:
            yield
        finally:
            logger.setLevel(level)


def build(
    model: ir.Model,
    table: Quantization,
    half: Callable[[ir.Node], bool],
    minimum: str,
    interface: Interface,
) -> Built:
    """Write the program.

    Args:
        model: Q/DQ form of the graph (``graph.qdq``).
        table: the table that it was made of, for compressed weights.
        half: whether a node computes in float16.
        minimum: deployment target.
        interface: what an app sees.

    Raises:
        UnsupportedOperator: coremltools refuses a node.
        TargetError: a value does not fit into float16; or coremltools refuses the program.
    """
    from coremltools.converters.mil.mil import Function, Program

    opset = target_of(minimum)
    graph, names = model.graph, Names()
    inputs = {value: names.give(value.name or "") for value in graph.inputs}
    outputs = {value: names.give(value.name or "") for value in graph.outputs}
    modern = number(minimum) >= 18
    e = Emitter(
        half,
        weights.writers(table, modern=modern),
        lambda emitter, node: weights.integers(emitter, node, modern=modern),
        names,
        outputs,
    )
    e.open_axis = interface.open_axis
    placeholders = {name: _placeholder(e, value, interface) for value, name in inputs.items()}
    with Function(placeholders, opset_version=opset) as function:
        for value, name in inputs.items():
            e.vars[value] = function.inputs[name]
            if (pixels := interface.pixels.get(value.name or "")) is not None:
                e.vars[value] = _from_pixels(e, value, pixels, half)
        for node in graph:
            operators.emit(e, node)
        taken: set[str] = set()
        left = [e.finish(value, taken) for value in graph.outputs]
        probabilities = _probabilities(e, graph, left[0], names) if interface.labels else None
        function.set_outputs([*left, *([probabilities] if probabilities is not None else [])])
    program = Program()
    program.add_function("main", function)
    spec, data = _converted(program, opset, interface.labels, probabilities)
    _describe(spec, graph, inputs, interface)
    return Built(
        spec,
        data,
        {value.name or "": name for value, name in {**inputs, **outputs}.items()},
        _tensors(e, graph),
        dict(e.weight_vars),
    )


def _placeholder(e: Emitter, value: ir.Value, interface: Interface) -> Any:
    from coremltools.converters.mil.mil import get_new_symbol, types

    sizes: list[Any] = list(shape(value))
    if interface.batch is not None:
        sizes[0] = get_new_symbol()
    if interface.sizes and len(sizes) == 4:
        sizes[2:] = [get_new_symbol(), get_new_symbol()]
    return e.mb.placeholder(shape=tuple(sizes), dtype=types.fp32 if e.is_float(value) else types.int32)


def _from_pixels(e: Emitter, value: ir.Value, pixels: Pixels, half: Callable[[ir.Node], bool]) -> Any:
    """``scale · pixels + bias``, in the precision of the first node that reads it; named as coremltools names it."""
    reader = next((use.node for use in value.uses()), None)
    e.node = reader
    x, wide = e.vars[value], (1, -1, 1, 1)
    if reader is not None and half(reader):
        x = e.mb.cast(x=x, dtype="fp16", name=e.temporary("pixels"))
    scale, bias = (np.asarray(numbers, np.float32).reshape(wide) for numbers in (pixels.scale, pixels.bias))
    if (scale != 1).any():
        factor = e.mb.const(val=e.array(scale, "scale of pixels"), name=e.temporary("pixel_scale"))
        x = e.mb.mul(x=x, y=factor, name=f"{e.vars[value].name}__scaled__")
    if bias.any():
        offset = e.mb.const(val=e.array(bias, "bias of pixels"), name=e.temporary("pixel_bias"))
        x = e.mb.add(x=x, y=offset, name=f"{e.vars[value].name}__biased__")
    e.node = None
    return x


def _probabilities(e: Emitter, graph: ir.Graph, output: Any, names: Names) -> Any:
    """What a classifier's answer is read from: the first output, as shares where it is not already."""
    producer = graph.outputs[0].producer()
    name = names.give("probabilities")
    if producer is not None and producer.op_type == "Softmax":
        return e.mb.identity(x=output, name=name)
    return e.mb.softmax(x=output, axis=-1, name=name)


def _converted(program: Any, opset: Any, labels: tuple[str, ...], probabilities: Any) -> tuple[Any, bytes]:
    import coremltools as ct

    config = None
    if probabilities is not None:
        config = ct.ClassifierConfig(list(labels), CLASS_LABEL, probabilities.name)
    try:
        converted = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=opset,
            # Not one pass of coremltools that rewrites arithmetic: the program is the table, as it stands.
            pass_pipeline=ct.PassPipeline.EMPTY,
            classifier_config=config,
            skip_model_load=True,
        )
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise TargetError(
            f"coremltools {ct.__version__} refuses the program: {error}",
            where="target coreml",
            hint="This is a fault of edgeopt or of coremltools; please report it with the model.",
        ) from error
    folder = converted.weights_dir
    file = Path(folder) / "weight.bin" if folder is not None else None
    data = file.read_bytes() if file is not None and file.is_file() else b""
    return converted.get_spec(), data


def _describe(spec: Any, graph: ir.Graph, inputs: Mapping[ir.Value, str], interface: Interface) -> None:
    """Inputs as images, and the sizes that open axes may have."""
    from coremltools.proto import FeatureTypes_pb2

    described = {feature.name: feature.type for feature in spec.description.input}
    for value, name in inputs.items():
        sizes, kind = list(shape(value)), described[name]
        if (value.name or "") in interface.pixels:
            image = FeatureTypes_pb2.ImageFeatureType(height=sizes[2], width=sizes[3])
            image.colorSpace = image.ColorSpace.Value(_color(interface, sizes[1]))
            for height, width in interface.sizes:
                image.enumeratedSizes.sizes.add(height=height, width=width)
            kind.imageType.CopyFrom(image)
            continue
        array = kind.multiArrayType
        for field in ("shapeRange", "enumeratedShapes", "shape"):
            array.ClearField(field)
        array.shape.extend(sizes)
        if interface.batch is not None:
            for axis, size in enumerate(sizes):
                low, high = interface.batch if axis == 0 else (size, size)
                array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
        elif len(sizes) == 4:
            for height, width in interface.sizes:
                array.enumeratedShapes.shapes.add().shape.extend([*sizes[:2], height, width])


def _color(interface: Interface, channels: int) -> str:
    return "GRAYSCALE" if channels == 1 else interface.color


def _tensors(e: Emitter, graph: ir.Graph) -> dict[str, tuple[str, str]]:
    """Every tensor that the program holds as integers; constants stand in it as numbers."""
    found = {}
    for node in graph:
        if node.op_type != "QuantizeLinear" or node.outputs[0] not in e.vars:
            continue
        integers = node.outputs[0]
        behind = next((u.node for u in integers.uses() if u.node.op_type == "DequantizeLinear"), None)
        if behind is not None and behind.outputs[0] in e.vars:
            name = (integers.name or "").removesuffix(INTEGERS_SUFFIX)
            found[name] = (e.vars[integers].name, e.vars[behind.outputs[0]].name)
    return found
