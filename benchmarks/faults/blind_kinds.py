"""Faults written by someone who had not seen the gate, from what goes wrong when real models are brought to devices.

Of every stage as the others are: imported graph, table of scales, written file, calibration and evaluation data. Where
a fault is in many layers at once, as a wrong rule of a converter has it, the name is that of the first.
"""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from PIL import Image

from benchmarks.faults.table_kinds import Faulty, Kind, Random, layers, with_weight
from edgeopt.graph.model import (
    add_initializer,
    constant,
    insert_before,
    make_like,
    only_user,
    remove_unused,
    scalar,
    set_constant,
    shape,
)
from edgeopt.graph.quantization import QuantizedGraph, QuantizedTensor, QuantParams, Range

Imported = tuple[ir.Model, str] | None
ACTIVATIONS = ("Relu", "Clip")


def _nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in op_types]


def _one(found: list, random: Random):
    return found[int(random.integers(len(found)))]


def _along(array: np.ndarray, axis: int | None, ndim: int) -> np.ndarray:
    return array.reshape([-1 if place == axis else 1 for place in range(ndim)])


# --- in the imported graph


def wrong_epsilon(model: ir.Model, random: Random) -> Imported:
    """Every BatchNorm folded with 10⁻³, the default elsewhere, where it was trained with 10⁻⁵.

    A canonical graph has no variances any more, so they are drawn: 0.03, and a factor of five more or less.
    """
    found = _nodes(model, "Conv")
    for node in found:
        weight, bias = constant(node.inputs[1]), constant(node.inputs[2])
        variance = 10.0 ** random.normal(-1.5, 0.7, len(weight))
        factor = np.sqrt((variance + 1e-5) / (variance + 1e-3))
        set_constant(node, 1, (weight * _along(factor, 0, weight.ndim)).astype(np.float32), "weight")
        set_constant(node, 2, (bias * factor).astype(np.float32), "bias")
    return (model, str(found[0].name)) if found else None


def skip_from_elsewhere(model: ir.Model, random: Random) -> Imported:
    """A residual sum adds another tensor of the right shape, computed earlier."""
    order = {value: place for place, node in enumerate(model.graph) for value in node.outputs}
    places = []
    for node in _nodes(model, "Add"):
        if any(value not in order or shape(value) != shape(node.outputs[0]) for value in node.inputs):
            continue
        skip = min(range(2), key=lambda index: order[node.inputs[index]])
        other = order[node.inputs[skip]]
        near = [v for v, place in order.items() if place < other and shape(v) == shape(node.outputs[0])]
        places += [(node, skip, value) for value in near[-3:]]
    if not places:
        return None
    node, skip, value = _one(places, random)
    node.replace_input_with(skip, value)
    remove_unused(model.graph)
    return model, node.name


def _behind(node: ir.Node) -> ir.Node | None:
    """The convolution that alone reads this one's result, an activation between them or none."""
    user = only_user(node.outputs[0])
    if user is not None and user.op_type in ACTIVATIONS:
        user = only_user(user.outputs[0])
    return user if user is not None and user.op_type == "Conv" else None


def _size(node: ir.Node, sizes: tuple[int, ...]) -> tuple[int, ...]:
    kernel, pads, strides = (
        shape(node.inputs[1])[2:],
        node.attributes.get_ints("pads"),
        node.attributes.get_ints("strides"),
    )
    rank = len(kernel)
    dilations = node.attributes.get_ints("dilations") or (1,) * rank
    return tuple(
        (sizes[k] + pads[k] + pads[k + rank] - (kernel[k] - 1) * dilations[k] - 1) // strides[k] + 1
        for k in range(rank)
    )


def stride_moved(model: ir.Model, random: Random) -> Imported:
    """A stride of 2 in the neighbouring convolution: what two versions of one architecture differ in."""
    pairs = [(node, other) for node in _nodes(model, "Conv") if (other := _behind(node)) is not None]
    for place in random.permutation(len(pairs)):
        first, second = pairs[place]
        strides = [node.attributes.get_ints("strides") for node in (first, second)]
        if strides[0] == strides[1] or max(shape(second.inputs[1])[2:]) == 1:
            continue  # before a kernel of 1 × 1 it would be the same network
        before, result = shape(first.inputs[0])[2:], shape(second.outputs[0])[2:]
        for node, moved in zip((first, second), reversed(strides), strict=True):
            node.attributes["strides"] = ir.AttrInt64s("strides", moved)
        between = _size(first, before)
        if _size(second, between) == result:
            for node in {first, second.inputs[0].producer()}:
                output = node.outputs[0]
                output.shape = ir.Shape((*shape(output)[:2], *between))
            return model, str(first.name)
        for node, kept in zip((first, second), strides, strict=True):
            node.attributes["strides"] = ir.AttrInt64s("strides", kept)
    return None


def pool_counts_padding(model: ir.Model, random: Random) -> Imported:
    """An average that divides by the padding too: by its flag, or by a window made for a larger input."""
    padded = [node for node in _nodes(model, "AveragePool") if any(node.attributes.get_ints("pads") or ())]
    whole = _nodes(model, "GlobalAveragePool")
    if padded:
        node = _one(padded, random)
        flag = 1 - node.attributes.get_int("count_include_pad", 0)
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", flag)
        return model, str(node.name)
    if not whole:
        return None
    node = _one(whole, random)
    sizes = [size + 1 for size in shape(node.inputs[0])[2:]]
    window = {"kernel_shape": sizes, "pads": [0] * len(sizes) + [1] * len(sizes), "strides": [1] * len(sizes)}
    return model, _exchanged(node, "AveragePool", [node.inputs[0]], {**window, "count_include_pad": 1})


def _exchanged(node: ir.Node, op_type: str, inputs: list, attributes: dict | None = None) -> str:
    """Another operator under the node's name."""
    graph, old, name = node.graph, node.outputs[0], str(node.name)
    new = ir.node(op_type, inputs, attributes or {}, metadata_props=dict(node.metadata_props))
    make_like(new.outputs[0], old, str(old.name))
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(old, new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name, new.outputs[0].name = name, old.name
    return name


def relu6_confused(model: ir.Model, random: Random) -> Imported:
    """The codes of ReLU and ReLU6 exchanged, in every node: 6 is lost where it was, and comes where it was not."""
    found = []
    for node in _nodes(model, *ACTIVATIONS):
        if node.op_type == "Relu":
            bounds = [add_initializer(model.graph, f"{node.name}_{b}", np.asarray(b, np.float32)) for b in (0, 6)]
            found.append(_exchanged(node, "Clip", [node.inputs[0], *bounds]))
        elif len(node.inputs) > 2 and (scalar(node.inputs[1]), scalar(node.inputs[2])) == (0, 6):
            found.append(_exchanged(node, "Relu", [node.inputs[0]]))
    remove_unused(model.graph)
    return (model, found[0]) if found else None


def channel_duplicated(model: ir.Model, random: Random) -> Imported:
    """One output channel, bias too, written over another one; neither is dead."""
    node = _one(_nodes(model, "Conv"), random)
    weight, bias = np.array(constant(node.inputs[1])), np.array(constant(node.inputs[2]))
    living = np.flatnonzero(np.abs(weight).reshape(len(weight), -1).max(1))
    if len(living) < 2:
        return None
    source, lost = random.choice(living, 2, replace=False)
    weight[lost], bias[lost] = weight[source], bias[source]
    set_constant(node, 1, weight, "weight")
    set_constant(node, 2, bias, "bias")
    return model, str(node.name)


def largest_lost(model: ir.Model, random: Random) -> Imported:
    """The few largest weights of a layer overflowed in a checkpoint of half precision, and became 0 as `nan_to_num`
    has it where infinity is told to be nothing."""
    node = _one(_nodes(model, "Conv", "Gemm"), random)
    weight = np.array(constant(node.inputs[1]))
    many = max(3, weight.size // 500)
    weight.reshape(-1)[np.argsort(-np.abs(weight), axis=None)[:many]] = 0
    set_constant(node, 1, weight, "weight")
    return model, str(node.name)


IMPORT: dict[str, Callable[[ir.Model, Random], Imported]] = {
    "import_wrong_epsilon": wrong_epsilon,
    "import_skip_from_elsewhere": skip_from_elsewhere,
    "import_stride_moved": stride_moved,
    "import_pool_counts_padding": pool_counts_padding,
    "import_relu6_confused": relu6_confused,
    "import_channel_duplicated": channel_duplicated,
    "import_largest_weights_lost": largest_lost,
}


# --- in the table


def _with_grids(graph: QuantizedGraph, grids: dict[str, QuantParams], ranges: dict[str, Range]) -> QuantizedGraph:
    """Other grids, and biases in their steps: an exporter with wrong ranges is right in all that follows."""
    table = graph.quantization
    grids, biases = {**table.activations, **grids}, dict(table.biases)
    whole = np.iinfo(np.int32)
    for node in layers(graph):
        name, bias = node.inputs[0].name, node.inputs[2].name if len(node.inputs) > 2 else None
        if bias in biases and name in grids:
            ratio = np.float64(table.activations[name].scale) / np.float64(grids[name].scale)
            biases[bias] = np.clip(np.rint(biases[bias] * ratio), whole.min, whole.max).astype(np.int32)
    changed = replace(table, activations=grids, biases=biases, ranges={**table.ranges, **ranges})
    return replace(graph, quantization=changed)


def _computed(graph: QuantizedGraph) -> dict[str, str]:
    """Tensors with a grid of their own choice → the node that makes them, in the graph's order."""
    table = graph.quantization
    makers = {v.name: node.name for node in graph.model.graph for v in node.outputs}
    return {n: maker for n, maker in makers.items() if n in table.activations and table.labels.get(n) != "fixed"}


def neighbour_scales(graph: QuantizedGraph, random: Random) -> Faulty:
    """A layer came in when the model was exported again: from there on, every tensor has the grid of the one before."""
    table, makers = graph.quantization, _computed(graph)
    turns: list[str] = []  # of tensors with one grid, the first
    for name in makers:
        if all(table.activations[name] != table.activations[other] for other in turns):
            turns.append(name)
    if len(turns) < 2:
        return None
    start = int(random.integers(1, max(2, len(turns) - 1)))  # not from the output on: it may be written in float
    grids, ranges = {}, {}
    for before, turn in zip(turns[start - 1 :], turns[start:], strict=False):
        for name in makers:
            if table.activations[name] == table.activations[turn]:
                grids[name] = table.activations[before]
                ranges |= {name: table.ranges[before]} if name in table.ranges and before in table.ranges else {}
    return _with_grids(graph, grids, ranges), makers[turns[start]]


def everywhere(change: Callable[[QuantParams], QuantParams]) -> Kind:
    """The same wrong rule for every activation."""

    def kind(graph: QuantizedGraph, random: Random) -> Faulty:
        makers, table = _computed(graph), graph.quantization
        grids = {name: change(table.activations[name]) for name in makers}
        first = next((makers[name] for name, made in grids.items() if made != table.activations[name]), None)
        return None if first is None else (_with_grids(graph, grids, {}), first)

    return kind


def power_of_two(p: QuantParams) -> QuantParams:
    """The nearest scale that is a shift, the low end of the range where it was."""
    scale = np.float32(2.0 ** np.rint(np.log2(float(p.scale))))
    return QuantParams(scale, np.clip(np.rint(-128 - p.range.low / scale), -128, 127))


def signed(p: QuantParams) -> QuantParams:
    """The grid of a signed tensor, around zero, also where nothing is below zero: half of it is never used."""
    return QuantParams.from_range(p.range, symmetric=True)


def branch_scales(graph: QuantizedGraph, random: Random) -> Faulty:
    """Both inputs of a residual sum on the grid of one of them."""
    table, makers = graph.quantization, _computed(graph)
    places = [
        (kept.name, other.name)
        for node in _nodes(graph.model, "Add", "Concat")
        for kept in node.inputs
        for other in node.inputs
        if kept.name in makers
        and other.name in makers
        and table.activations[kept.name] != table.activations[other.name]
    ]
    if not places:
        return None
    kept, other = _one(places, random)
    same = [name for name in makers if table.activations[name] == table.activations[other]]
    ranges = {name: table.ranges[kept] for name in same if name in table.ranges and kept in table.ranges}
    return _with_grids(graph, dict.fromkeys(same, table.activations[kept]), ranges), makers[other]


def every_weight(change: Callable[[np.ndarray, Random], np.ndarray]) -> Kind:
    """`change(integers, random)`, in all layers."""

    def kind(graph: QuantizedGraph, random: Random) -> Faulty:
        weights, changed = dict(graph.quantization.weights), []
        for node in layers(graph):
            old = weights[node.inputs[1].name]
            made = change(old.integers, random).astype(np.int8)
            if not np.array_equal(made, old.integers):
                changed.append(node.name)
                weights[node.inputs[1].name] = QuantizedTensor(made, old.params)
        if not changed:
            return None
        return replace(graph, quantization=replace(graph.quantization, weights=weights)), changed[0]

    return kind


def toward_zero(integers: np.ndarray, random: Random) -> np.ndarray:
    """A cast to int8 where rounding was meant: every second integer is one nearer to zero, for rounding had brought it
    outwards. Which ones is drawn: the float weights behind an equalised table are not those of the graph."""
    return integers - np.sign(integers) * (random.random(integers.shape) < 0.5)


TABLE: dict[str, Kind] = {
    "neighbour_scales": neighbour_scales,
    "power_of_two_scales": everywhere(power_of_two),
    "signed_grids": everywhere(signed),
    "branch_scales": branch_scales,
    "weights_cut_toward_zero": every_weight(toward_zero),
}


# --- in the file

INPUT_GRIDS = ((1 / 255, -128), (2 / 255, 0), (0.0186584, -14))
"""Scale and zero point for pixels of 0 to 1, of −1 to 1, and with ImageNet's mean and deviation."""


def input_grid(graph: QuantizedGraph, random: Random) -> Faulty:
    """The input quantized as another model has it: of the usual ways the one most like this model's, and not it."""
    table, first = graph.quantization, layers(graph)[0]
    value = first.inputs[0]
    if value.name not in table.activations:
        return None
    add = value.producer()
    if add is None:
        own = table.activations[value.name]
        scale, zero = _unlike(float(own.scale), float(own.zero_point))
        made = {**table.activations, value.name: QuantParams(np.float32(scale), np.int32(zero))}
        return replace(graph, quantization=replace(table, activations=made)), first.name
    multiply = add.inputs[0].producer() if add.op_type == "Add" else None
    if multiply is None or multiply.op_type != "Mul":
        return None
    factor, offset = constant(multiply.inputs[1]), constant(add.inputs[1])
    if factor is None or offset is None:
        return None
    scale, zero = _unlike(float(np.mean(1 / factor)), float(offset.mean()))
    set_constant(multiply, 1, np.full_like(factor, 1 / scale), "factor")
    set_constant(add, 1, np.full_like(offset, zero), "offset")
    return graph, first.name


def _unlike(scale: float, zero: float) -> tuple[float, int]:
    others = [(s, z) for s, z in INPUT_GRIDS if abs(np.log(s / scale)) > 0.02 or abs(z - zero) > 2]
    return min(others, key=lambda one: abs(np.log(one[0] / scale)))


def kernel_mirrored(graph: QuantizedGraph, random: Random) -> Faulty:
    """Left and right exchanged: a convolution where a correlation was meant, in one axis."""
    weights = graph.quantization.weights
    found = [
        (node.name, node.inputs[1].name)
        for node in layers(graph)
        if weights[node.inputs[1].name].integers.ndim == 4 and weights[node.inputs[1].name].integers.shape[3] > 1
    ]
    if not found:
        return None
    layer, name = _one(found, random)
    return with_weight(graph, name, lambda w: QuantizedTensor(w.integers[..., ::-1].copy(), w.params)), layer


def padded_with_integer_zero(graph: QuantizedGraph, random: Random) -> Faulty:
    """Padding with the byte 0 instead of the zero point: a frame of mid grey."""
    table = graph.quantization
    found = [
        node
        for node in layers(graph)
        if node.op_type == "Conv"
        and any(node.attributes.get_ints("pads") or ())
        and node.inputs[0].name in table.activations
        and int(table.activations[node.inputs[0].name].zero_point) != 0
    ]
    if not found:
        return None
    node = _one(found, random)
    value, pads = node.inputs[0], node.attributes.get_ints("pads")
    grid, inner, rank = table.activations[value.name], value, len(pads) // 2
    grey, added, schemes = grid.dequantize(np.zeros((), np.int8)), {}, dict(table.schemes)
    for axis in range(2, 2 + rank):  # as Concat: a Pad of integers has the zero point, whatever it is told
        sizes, parts = shape(inner), [inner]
        for place, amount in ((0, pads[axis - 2]), (len(parts) + 1, pads[axis - 2 + rank])):
            if amount:
                frame = np.full((*sizes[:axis], amount, *sizes[axis + 1 :]), grey, np.float32)
                parts.insert(place, add_initializer(graph.model.graph, f"{node.name}_frame", frame))
        if len(parts) == 1:
            continue
        name, whole = f"{node.name}_padded_{axis}", sum(shape(part)[axis] for part in parts)
        sizes = (*sizes[:axis], whole, *sizes[axis + 1 :])
        inner = insert_before(node, "Concat", parts, {"axis": axis}, output_shape=sizes, like=value, name=name)
        schemes[name] = "int8"
        added |= {str(one.name): grid for one in (*parts, inner)}
    node.replace_input_with(0, inner)
    node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    ranges = {**table.ranges, **dict.fromkeys(added, grid.range)}
    changed = replace(table, activations={**table.activations, **added}, schemes=schemes, ranges=ranges)
    return replace(graph, quantization=changed), node.name


FILE: dict[str, Kind] = {
    "file_input_grid_of_another": input_grid,
    "file_kernel_mirrored": kernel_mirrored,
    "file_padded_with_integer_zero": padded_with_integer_zero,
    "file_weights_of_7_bits": every_weight(lambda w, random: np.maximum((w >> 1) << 1, -126)),
}


# --- in the data


def one_class(images: np.ndarray, random) -> np.ndarray:
    """An image and the tenth of all that look most like it, as a folder of one class would have them."""
    chosen = images[int(random.integers(len(images)))]
    distance = ((images - chosen) ** 2).reshape(len(images), -1).sum(1)
    return images[np.sort(np.argsort(distance, kind="stable")[: max(8, len(images) // 10)])]


def jpeg_10(images: np.ndarray, random) -> np.ndarray:
    """Stored as JPEG of quality 10 on the way."""
    low, span = _span(images)
    pixels = np.rint((images - low) / span * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return (np.stack([_stored(one) for one in pixels]).transpose(0, 3, 1, 2) * (span / 255) + low).astype(np.float32)


def _stored(pixels: np.ndarray) -> np.ndarray:
    planes = [pixels] if pixels.shape[2] == 3 else [pixels[..., k] for k in range(pixels.shape[2])]
    read = []
    for plane in planes:
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "JPEG", quality=10)
        read.append(np.asarray(Image.open(file)).reshape(*pixels.shape[:2], -1))
    return np.concatenate(read, 2)


def _span(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest value and width of every channel."""
    low, high = images.min((0, 2, 3), keepdims=True), images.max((0, 2, 3), keepdims=True)
    return low, np.maximum(high - low, np.float32(1e-6))


def with_outliers(images: np.ndarray, random) -> np.ndarray:
    """A faulty sensor: in every sixteenth image a pixel in a hundred is thirty times too bright."""
    made = images.copy()
    for index in range(0, len(made), 16):
        hot = random.random(made.shape[2:]) < 0.01
        hot.reshape(-1)[int(random.integers(hot.size))] = True
        made[index][:, hot] = 30 * np.abs(images).max()
    return made


CALIBRATION: dict[str, Callable] = {
    "calibrated_on_one_class": one_class,
    "calibrated_on_jpeg_10": jpeg_10,
    "calibrated_with_outliers": with_outliers,
}


def nearest(images, labels, random):
    """Brought to size by the nearest pixel: three of every four rows and columns, one of them twice."""
    height, width = images.shape[2:]
    return images[:, :, _rows(height)][:, :, :, _rows(width)], labels


def _rows(size: int) -> np.ndarray:
    fewer = np.floor((np.arange(size * 3 // 4) + 0.5) * 4 / 3).astype(int)
    return fewer[np.floor((np.arange(size) + 0.5) * len(fewer) / size).astype(int)]


def letterboxed(images, labels, random):
    """The shape of the photo kept between bars of grey 114, where the model was trained on stretched ones."""
    height = images.shape[2]
    kept = max(1, height * 5 // 8)
    low, span = _span(images)
    made = np.broadcast_to(low + span * np.float32(114 / 255), images.shape).copy()
    top = (height - kept) // 2
    made[:, :, top : top + kept] = images[:, :, np.floor((np.arange(kept) + 0.5) * height / kept).astype(int)]
    return made, labels


def gamma(images, labels, random):
    """Linear light, where the model knows what a camera stores."""
    low, span = _span(images)
    return (low + span * ((images - low) / span) ** np.float32(2.2)).astype(np.float32), labels


def mean_in_other_order(images, labels, random):
    """The mean of red taken off blue, and the other way round, on planes that stand right: ImageNet's means."""
    if images.shape[1] != 3:
        return None
    mean = np.array((0.485, 0.456, 0.406), np.float32).reshape(1, 3, 1, 1)
    return images + _span(images)[1] * (mean - mean[:, ::-1]), labels


def labels_sorted_as_text(images, labels, random):
    """Labels by the names of their files in the order of letters, 0, 1, 10, 100, 101, …; images in that of numbers."""
    made = labels[sorted(range(len(labels)), key=str)]
    return None if np.array_equal(made, labels) else (images, made)


EVALUATION = {
    "evaluation_nearest": nearest,
    "evaluation_letterboxed": letterboxed,
    "evaluation_gamma": gamma,
    "evaluation_mean_in_other_order": mean_in_other_order,
    "labels_sorted_as_text": labels_sorted_as_text,
}
