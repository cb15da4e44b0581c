"""Every case: a run folder to be judged, and the images as its fault has them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from benchmarks.faults import data_kinds, file_kinds, table_kinds
from benchmarks.faults.runs import Base, assemble
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.targets.registry import all_constraints

TARGETS = ("onnx", "tflite")
SETTLED = {"input_lattice": False, "equalize": "depthwise", "rounding": "gptq", "bias_correction": True}


@dataclass(frozen=True)
class Case:
    """`kind` "" is clean. `layer`: where the fault is, if in a layer. `given`: unseen images as the fault has them."""

    model: str
    kind: str
    seed: int
    target: str
    out: Path
    layer: str = ""
    given: np.ndarray | None = None
    always_counts: bool = False


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


def clean(base: Base, many: int, work: Path) -> Iterator[Case]:
    """Conversions that are right: other seeds, other halves of the calibration images, other schemes."""
    run = base.read()
    images = data_kinds.read(run.recipe.data.calibration.arrays)[base.input_name]
    for number in range(many):
        random = np.random.default_rng([number, 1])
        step = Quantize(**{**SETTLED, **CLEAN_SCHEMES[number % len(CLEAN_SCHEMES)]})
        chosen = (
            random.choice(len(images), max(32, len(images) * 2 // 3), replace=False)
            if len(images) > 48
            else range(len(images))
        )
        subset = images[np.sort(np.array(chosen))]
        graph = quantized(run.source.clone(), step, subset, base.input_name, number)
        target = TARGETS[(number // len(CLEAN_SCHEMES) + number) % 2]
        out = work / f"clean-{number}"
        file = work / f"clean-{number}.npz"
        np.savez(file, **{base.input_name: subset})
        assemble(base, out, target, recorded=graph, passes=(step,), data_files={"calibration": file})
        yield Case(base.name, "", number, target, out)


def faulty(base: Base, kind: str, seed: int, work: Path) -> Case | None:
    """One fault; None where this model has no place for it."""
    random = np.random.default_rng([seed, *kind.encode()])
    run, target = base.read(), TARGETS[seed % 2]
    out = work / f"{kind}-{seed}"
    if kind in table_kinds.KINDS:
        if (made := table_kinds.KINDS[kind](run.graph, random)) is None:
            return None
        assemble(base, out, target, recorded=made[0])
        return Case(base.name, kind, seed, target, out, made[1])
    if kind in file_kinds.KINDS:
        if (made := file_kinds.KINDS[kind](base.read().graph, random)) is None:
            return None
        assemble(base, out, target, written=made[0])
        return Case(base.name, kind, seed, target, out, made[1])
    calibration = run.recipe.data.calibration.arrays
    images = data_kinds.read(calibration)
    if kind in file_kinds.IMPORT_KINDS:
        found = file_kinds.IMPORT_KINDS[kind](run.source.clone(), random)
        if found is None:
            return None
        graph = quantized(found[0].clone(), Quantize(**SETTLED), images[base.input_name], base.input_name, seed)
        assemble(base, out, target, recorded=graph, imported=found[0])
        return Case(base.name, kind, seed, target, out, found[1])
    if kind in data_kinds.CALIBRATION:
        spoilt = data_kinds.CALIBRATION[kind](images[base.input_name], random).astype(np.float32)
        graph = quantized(run.source.clone(), Quantize(**SETTLED), spoilt, base.input_name, seed)
        file = work / f"{kind}-{seed}.npz"
        np.savez(file, **{base.input_name: spoilt})
        assemble(base, out, target, recorded=graph, data_files={"calibration": file})
        return Case(base.name, kind, seed, target, out)
    change = data_kinds.EVALUATION[kind]
    stored = data_kinds.read(run.recipe.data.evaluation.arrays)
    made = change(stored[base.input_name], stored["labels"], random)
    if made is None:
        return None
    file = work / f"{kind}-{seed}.npz"
    np.savez(file, **{base.input_name: made[0]}, labels=made[1])
    assemble(base, out, target, data_files={"evaluation": file})
    given = change(base.unseen, np.zeros(len(base.unseen), np.int64), random)[0]
    return Case(base.name, kind, seed, target, out, given=given, always_counts=kind.startswith("labels"))


ALL_KINDS = (
    *table_kinds.KINDS,
    *file_kinds.KINDS,
    *file_kinds.IMPORT_KINDS,
    *data_kinds.CALIBRATION,
    *data_kinds.EVALUATION,
)

NAMES = {
    "labels": ("label",),
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
}
"""Words of the first line that name the cause, where it is no layer; by the beginning of the kind's name."""


def named(case: Case, headline: str) -> bool:
    """Whether the first line names the layer, or the cause."""
    if case.layer and case.layer in headline:
        return True
    return any(case.kind.startswith(key) and any(word in headline for word in words) for key, words in NAMES.items())
