"""Any two models on the same samples, whatever made them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgeopt.data.samples import Few
from edgeopt.errors import DataError, ModelError, TargetError
from edgeopt.formats.onnx import load
from edgeopt.formats.onnx_overflow import TEXT, saturated
from edgeopt.frontends import Source
from edgeopt.parity.compare import LevelReport
from edgeopt.parity.models import compare_models
from edgeopt.parity.runners import FileRunner, Port, open_file
from edgeopt.pipeline.jobs import Inputs, load_source
from edgeopt.recipe.load import load_recipe
from edgeopt.recipe.schema import MODEL_FILES, ModelSource, ParityLimits
from edgeopt.runtimes.onnxruntime import saturates
from edgeopt.types import Signature, TensorSpec


@dataclass(frozen=True)
class ComparisonJob:
    """Two models and samples.

    Args:
        reference: what is right: ``.onnx``, ``.tflite``, ``.mlpackage``, ``.pt2``, ``.keras``, or a recipe whose
            source model is meant.
        candidate: what is compared with it; the same kinds.
        inputs: ``evaluation`` names the samples.
        limits: what makes the comparison fail.
        samples: at most so many.
        trust: see ``Options``.
    """

    reference: Path
    candidate: Path
    inputs: Inputs
    limits: ParityLimits
    samples: int
    trust: bool
    threads: int = 1


@dataclass(frozen=True)
class Comparison:
    """The figures, and what is known of a file that may explain them on this machine."""

    report: LevelReport
    notes: tuple[str, ...]


def compare(job: ComparisonJob) -> Comparison:
    """Run both models; in a worker, as a foreign file may crash its runtime.

    Raises:
        ModelError: a model cannot be read or run. DataError: samples do not fit.
    """
    with ExitStack() as stack:
        reference, signature = _open(job.reference, job, stack)
        candidate, _ = _open(job.candidate, job, stack)
        samples = job.inputs.open("evaluation", signature)
        if samples is None:
            raise DataError("no samples to compare on", hint="Give --data.")
        labels = [model.label for model in (reference, candidate) if isinstance(model, FileRunner)]
        report = compare_models(
            reference,
            candidate,
            Few(samples, job.samples),
            label=", ".join([samples.where, *dict.fromkeys(labels)]),
            tolerance=job.limits.tolerance,
            min_sqnr_db=job.limits.min_sqnr_db,
            min_top1_agreement=job.limits.min_top1_agreement,
        )
    return Comparison(report, (*_saturation(job.reference), *_saturation(job.candidate)))


def _saturation(path: Path) -> tuple[str, ...]:
    """Products of an ONNX file that this machine gets wrong."""
    try:
        names = saturated(load(path)) if path.suffix == ".onnx" and saturates() else ()
    except ModelError:  # it ran, so that it can be compared: only its types cannot be told
        names = ()
    return (f"{path}: {len(names)} products on x86 without VNNI, as this machine is: {TEXT}",) if names else ()


def _open(path: Path, job: ComparisonJob, stack: ExitStack) -> tuple[Source | FileRunner, Signature]:
    """Something that runs, and what it takes, in float and in the source's layout."""
    if not path.exists():
        raise ModelError(
            "there is no such file", where=str(path), hint="Give .onnx, .tflite, .mlpackage, .pt2, .keras or a recipe."
        )
    if (path.is_dir() and path.suffix != ".mlpackage") or path.suffix in (".yaml", ".yml"):
        recipe = load_recipe(path)
        imported = load_source(recipe.model, path if path.is_dir() else path.parent, trust=job.trust)
        return imported.source, imported.signature
    if (kind := MODEL_FILES.get(path.suffix.lower(), "onnx")) != "onnx":
        imported = load_source(ModelSource.model_validate({kind: path}), path.parent, trust=job.trust)
        return imported.source, imported.signature
    try:
        runner = stack.enter_context(open_file(path, threads=job.threads))
    except TargetError as error:  # not ours: what was given cannot be accepted
        raise ModelError(
            error.what, where=error.where, hint="Is the file whole, and of the kind its name says?"
        ) from error
    if any(not isinstance(size, int) for port in runner.input_ports.values() for size in port.shape):
        # The frontend says to what open sizes are bound. What runs is the file as it is, in a session as people open
        # it: the frontend's own runs without optimisations, and does not have their faults.
        signature = load_source(ModelSource(onnx=path), path.parent, trust=job.trust).signature
        runner.bind({spec.name: spec.shape for spec in signature.inputs})
        return runner, signature
    return runner, Signature(inputs=_specs(runner.input_ports), outputs=_specs(runner.output_ports))


def _specs(ports: dict[str, Port]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=name,
            dtype="float32" if port.scale is not None or port.dtype == "float16" else port.dtype,
            shape=tuple(size if isinstance(size, int) else 1 for size in port.source_shape),
        )
        for name, port in ports.items()
    )
