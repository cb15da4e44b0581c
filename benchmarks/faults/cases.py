"""Every case: a run folder to be judged, and the images as its fault has them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from benchmarks.faults import blind_kinds, data_kinds, file_kinds, more_kinds, table_kinds
from benchmarks.faults.runs import Base, assemble
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.targets.registry import all_constraints

TARGETS = ("onnx", "tflite")
SETTLED = {"input_lattice": False, "equalize": "depthwise", "rounding": "gptq", "bias_correction": True}


@dataclass(frozen=True)
class Plan:
    """A case to be made; `kind` "" is a clean conversion."""

    model: str
    kind: str
    number: int
    target: str

    def __str__(self) -> str:
        return f"{self.model} {self.target} {self.kind or 'clean'} {self.number}"


@dataclass(frozen=True)
class Case:
    """`layer`: where the fault is, if in a layer. `given`: unseen images as the fault has them."""

    plan: Plan
    out: Path
    layer: str = ""
    given: np.ndarray | None = None


def quantized(model: ir.Model, step: Quantize, images: np.ndarray, name: str, seed: int) -> QuantizedGraph:
    with TemporaryDirectory() as scratch:
        samples = data_kinds.Images(name, images)
        context = Context(Path(scratch), samples, all_constraints(), effort="fast", threads=1, seed=seed)
        return step.run(QuantizedGraph(model), context)


CLEAN_SCHEMES = (
    {},
    {"rounding": "nearest"},
    {"ranges": "minmax"},
    {"ranges": "mse", "rounding": "nearest"},
    {"bias_correction": False},
    {"equalize": "none"},
    {"equalize": "none", "ranges": "minmax", "rounding": "nearest", "bias_correction": False},
    {"scheme": "int8-weights"},
    {"scheme": "int8-dynamic"},
)


CALIBRATED = {"mobilenet_v1": 48, "ultraface": 32, "fastestdet": 32}
"""Calibration images of a clean conversion where two thirds of all would take minutes."""


def clean(base: Base, plan: Plan, out: Path) -> Case:
    """A conversion that is right: another seed, other calibration images, another scheme."""
    run = base.read()
    images = data_kinds.read(run.recipe.data.calibration.arrays)[base.input_name]
    random = np.random.default_rng([plan.number, 1])
    step = Quantize(**{**SETTLED, **CLEAN_SCHEMES[plan.number % len(CLEAN_SCHEMES)]})
    most = CALIBRATED.get(base.name, len(images) * 2 // 3)
    chosen = np.sort(random.choice(len(images), most, replace=False))
    graph = quantized(run.source.clone(), step, images[chosen], base.input_name, plan.number)
    file = out.with_suffix(".npz")
    np.savez(file, **{base.input_name: images[chosen]})
    assemble(base, out, plan.target, recorded=graph, passes=(step,), data_files={"calibration": file})
    return Case(plan, out)


def faulty(base: Base, plan: Plan, out: Path) -> Case | None:
    """One fault; None where this model has no place for it."""
    random, kind, target = np.random.default_rng([plan.number, *plan.kind.encode()]), plan.kind, plan.target
    run = base.read()
    if kind in TABLE:
        if (made := TABLE[kind](run.graph, random)) is None:
            return None
        assemble(base, out, target, recorded=made[0])
        return Case(plan, out, made[1])
    if kind in FILE:
        if (made := FILE[kind](base.read().graph, random)) is None:
            return None
        assemble(base, out, target, written=made[0])
        return Case(plan, out, made[1])
    images = data_kinds.read(run.recipe.data.calibration.arrays)[base.input_name]
    if kind in IMPORT:
        if (found := IMPORT[kind](run.source.clone(), random)) is None:
            return None
        graph = quantized(found[0].clone(), Quantize(**SETTLED), images, base.input_name, plan.number)
        assemble(base, out, target, recorded=graph, imported=found[0])
        return Case(plan, out, found[1])
    file = out.with_suffix(".npz")
    if kind in CALIBRATION:
        spoilt = CALIBRATION[kind](images, random).astype(np.float32)
        graph = quantized(run.source.clone(), Quantize(**SETTLED), spoilt, base.input_name, plan.number)
        np.savez(file, **{base.input_name: np.ascontiguousarray(spoilt)})
        assemble(base, out, target, recorded=graph, data_files={"calibration": file})
        return Case(plan, out)
    stored = data_kinds.read(run.recipe.data.evaluation.arrays)
    labels = stored.get("labels")
    if labels is None and kind.startswith("labels"):
        return None
    made = EVALUATION[kind](stored[base.input_name], labels, random)
    if made is None:
        return None
    np.savez(
        file, **{base.input_name: np.ascontiguousarray(made[0])}, **({} if labels is None else {"labels": made[1]})
    )
    assemble(base, out, target, data_files={"evaluation": file})
    if kind.startswith("labels"):
        return Case(plan, out)
    return Case(plan, out, given=EVALUATION[kind](base.unseen, None, random)[0])


TABLE = {**table_kinds.KINDS, **more_kinds.TABLE, **blind_kinds.TABLE}
FILE = {**file_kinds.KINDS, **more_kinds.FILE, **blind_kinds.FILE}
IMPORT = {**file_kinds.IMPORT_KINDS, **more_kinds.IMPORT, **blind_kinds.IMPORT}
CALIBRATION = {**data_kinds.CALIBRATION, **more_kinds.CALIBRATION, **blind_kinds.CALIBRATION}
EVALUATION = {**data_kinds.EVALUATION, **more_kinds.EVALUATION, **blind_kinds.EVALUATION}
ALL_KINDS = (*TABLE, *FILE, *IMPORT, *CALIBRATION, *EVALUATION)


def always_counts(kind: str) -> bool:
    """A wrong label changes no answer, and makes every figure of the run wrong."""
    return kind.startswith("labels")


def plans(models: Iterable[str], kinds: Iterable[str], rounds: int, clean: int) -> list[Plan]:
    """Every kind once per round, each time on another model, small models more often; clean conversions in between.

    Any beginning of the list is balanced over kinds, models and targets.
    """
    models, kinds = tuple(models), tuple(kinds)
    turns, clean_turns = _turns(models, SHARE), _turns(models, CLEAN_SHARE)
    order = np.random.default_rng(0).permutation(len(kinds))
    faults = []
    for number in range(rounds):
        for place, index in enumerate(order):
            turn = place + number * STRIDE
            target = TARGETS[(place + number) % 2]
            faults.append(Plan(turns[turn % len(turns)], kinds[index], number, target))
    many = dict.fromkeys(models, 0)
    found: list[Plan] = []
    for place in range(clean):
        model = clean_turns[place % len(clean_turns)]
        number = many[model]
        many[model] += 1
        target = TARGETS[(number // len(CLEAN_SCHEMES) + number) % 2]
        found += faults[place * len(faults) // clean : (place + 1) * len(faults) // clean]
        found.append(Plan(model, "", number, target))
    return found if clean else faults


def _turns(models: tuple[str, ...], share: dict[str, int]) -> list[str]:
    """Models as often as their share says, each one's turns evenly spread."""
    places = [(number + 0.5) / share[model] for model in models for number in range(share[model])]
    named = [model for model in models for _ in range(share[model])]
    return [named[place] for place in np.argsort(places, kind="stable")]


SHARE = {"quickstart": 14, "vww": 6, "resnet20": 3, "mobilenet_v1": 1, "ultraface": 1, "fastestdet": 1}
"""Turns of each model: how many of its cases are made, by what one costs."""
CLEAN_SHARE = {"quickstart": 8, "vww": 5, "resnet20": 4, "mobilenet_v1": 3, "ultraface": 3, "fastestdet": 3}
"""Of the clean conversions: every model needs a dozen for a limit of its own."""
STRIDE = 7
"""Turns from one round to the next: no divisor of their number, so a kind meets another model in every round."""

NAMES = {
    "labels": ("label",),
    "evaluation": ("the data is at fault", "far apart", "evaluation data", "evaluation samples"),
    "evaluation_bgr": ("BGR",),
    "evaluation_0_to_255": ("255", "0 to 1", "−1 to 1", "far apart"),
    "evaluation_without_mean": ("mean", "0 to 1", "−1 to 1", "far apart"),
    "calibrated": ("calibration",),
    "softmax": ("softmax", "probabilities"),
    "outputs_permuted": ("permuted",),
    "output_constant": ("constant", "never changes"),
    "logits": ("confidence",),
    "class_zeroed": ("never changes",),
    "weights_rolled": ("permuted",),
    "per_tensor": ("steps off", "jumps", "expect"),
    "import_wrong_epsilon": ("BatchNorm", "epsilon", "normalisation", "normalization"),
    "import_skip_from_elsewhere": ("skip", "residual", "shortcut"),
    "import_stride_moved": ("stride",),
    "import_pool_counts_padding": ("AveragePool", "average pool", "counts padding", "count_include_pad"),
    "import_relu6_confused": ("ReLU6", "Relu6", "Clip"),
    "import_channel_duplicated": ("duplicate", "twice", "same channel", "equal channels"),
    "import_largest_weights_lost": ("largest weights", "overflow"),
    "neighbour_scales": ("neighbour", "another tensor", "other tensor", "next tensor", "tensor before"),
    "power_of_two_scales": ("power of two", "powers of two"),
    "signed_grids": ("symmetric", "signed", "zero point", "half of its steps", "half the steps"),
    "branch_scales": ("branch", "both inputs", "residual"),
    "weights_cut_toward_zero": ("toward zero", "towards zero", "truncated", "rounded", "rounding"),
    "file_input_grid_of_another": ("input grid", "input's grid", "input scale", "input's scale", "input is quantized"),
    "file_kernel_mirrored": ("mirrored", "flipped"),
    "file_padded_with_integer_zero": ("padding", "padded"),
    "file_weights_of_7_bits": ("7 bits", "seven bits", "lowest bit"),
    "calibrated_with_outliers": ("outlier",),
    "evaluation_nearest": ("nearest", "resized", "interpolation"),
    "evaluation_letterboxed": ("letterbox", "bars", "border"),
    "evaluation_gamma": ("gamma", "brightness", "darker"),
    "evaluation_mean_in_other_order": ("mean", "BGR", "channel order"),
}
"""Words of the first line that name the cause, where it is no layer; by the beginning of the kind's name."""


def named(kind: str, layer: str, headline: str) -> bool:
    """Whether the first line names the layer, or the cause."""
    if layer and re.search(rf"(?<![\w./]){re.escape(layer)}(?![\w/])", headline):
        return True
    return any(kind.startswith(key) and any(word in headline for word in words) for key, words in NAMES.items())
