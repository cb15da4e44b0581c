"""A minimal reproduction: the part of a model in which a difference arises, with real inputs.

The part ends in the first tensor at or behind the layer that a check named at which both models can be cut, and begins
at the tensors before it; if the difference does not show there, it begins further up, until it does. It is shown
before it is handed over: what is written has been run.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeopt.data.samples import Few
from edgeopt.errors import UsageError
from edgeopt.gate import repro_folder, repro_part, repro_program, repro_subject
from edgeopt.gate.repro_subject import Level, Subject
from edgeopt.gate.run_folder import RunFolder, read_run
from edgeopt.pipeline.verdict import CheckResult, GateResult
from edgeopt.runtimes import reproduce

SAMPLES = 8
"""Each gives as many values as the tensors have."""
LEVELS: dict[str, Level] = {"parity-conversion": "L0", "parity-lowering": "L2", "parity-quantization": "L1"}
CAN_BE_CUT = (".onnx", ".tflite", ".mlpackage")
"""Best first: a Core ML program is handed over whole."""


class NothingToShowError(UsageError):
    """Nothing failed that a part of the model could show."""


@dataclass(frozen=True)
class ReproJob:
    """What is to be shown.

    Args:
        out: the run's folder.
        result: what the gate said of it.
        folder: to write into; made if it is not there.
        recipe: where the recipe is now, if not where it was.
    """

    out: Path
    result: GateResult
    folder: Path
    recipe: Path | None = None


def write(job: ReproJob) -> str:
    """Write the folder. In a worker: what is cut out of a broken file may crash its runtime.

    Returns:
        What it shows, in words.

    Raises:
        NothingToShowError: no failed check names a layer, nothing that runs here can be cut, or no part shows it.
        UsageError: no run is there, or the folder cannot be written.
    """
    run = read_run(job.out, job.recipe)
    subject = _subject(job, run)
    with TemporaryDirectory(prefix="edgeopt-") as scratch:
        found = _smallest(subject, Path(scratch), str(job.out))
        try:
            shutil.copytree(scratch, job.folder, dirs_exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror or error}", where=str(job.folder)) from error
    return found.text


def _subject(job: ReproJob, run: RunFolder) -> Subject:
    """Of the first failed check of a level of parity that names a layer, and a target in which it can be shown."""
    where = str(job.out)
    failed = [check for check in job.result.checks if check.verdict == "fail"]
    naming = [check for check in failed if check.id in LEVELS and check.layer is not None]
    if not naming:
        raise NothingToShowError(
            "there is no layer to cut out" + (f": {job.result.headline}" if failed else ": nothing failed"),
            hint=f"A part of the model is shown where {', '.join(LEVELS)} fails and names a layer.",
        )
    samples = run.inputs.open("evaluation", run.signature) or run.inputs.open("calibration", run.signature)
    if samples is None:
        raise NothingToShowError("the recipe names no data to show the difference on", where=where)
    feeds = list(Few(samples, SAMPLES))
    suffixes = {name: run.runnable(name).suffix for name in run.artifacts}
    can_be_cut = sorted((n for n in suffixes if suffixes[n] in CAN_BE_CUT), key=lambda n: CAN_BE_CUT.index(suffixes[n]))
    for check in naming:
        if check.id == "parity-conversion":
            if (source := _source(run, check)) is not None:
                return repro_subject.of_import(run, check, source, feeds)
        elif target := next((name for name in can_be_cut if check.target in (None, name)), None):
            return repro_subject.of_artifact(run, target, LEVELS[check.id], check, feeds)
    if naming[0].id == "parity-conversion":
        raise NothingToShowError("the source is no ONNX model: no part of it can be cut out", where=where)
    raise NothingToShowError(
        f"a part of the target {naming[0].target or next(iter(run.artifacts))} cannot be run on this machine",
        where=where,
        hint="Convert to onnx or tflite besides: a fault of quantization is in both.",
    )


def _source(run: RunFolder, check: CheckResult) -> bytes | None:
    """The ONNX source; nothing where there is none, and none is needed to show what passes changed."""
    asked = run.recipe.model.onnx
    if asked is not None:
        try:
            return (run.root / asked).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror or error}", where=str(run.root / asked)) from error
    return b"" if check.figures.get("relative_error") is None else None


def _smallest(subject: Subject, folder: Path, where: str) -> reproduce.Found:
    """The shortest part that shows it, written into ``folder``."""
    end = _end(subject)
    last = [end] if end in subject.tensors else []
    cut_at = [name for name in subject.tensors if name != end]
    while True:
        used = repro_folder.write(subject, folder, [*cut_at, *last], end)
        found = reproduce.compare(folder)
        if found.differs:
            return found
        further = [name for name in cut_at if name not in used]
        if len(further) == len(cut_at) or not cut_at:
            raise NothingToShowError(
                f"no part of the model that ends in '{end}' shows a difference on {len(subject.feeds)} samples",
                where=where,
                hint="It needs the whole model, or samples that are not among these.",
            )
        cut_at = further


def _end(subject: Subject) -> str:
    """The first tensor, at or behind the blamed node, that both models can be cut at; else the first output."""
    if subject.package is not None:
        produced = set(repro_program.variables(subject.package, subject.tensors))
    else:
        produced = set(repro_part.cut(subject.data, subject.suffix, list(subject.tensors)).produced)
    behind: set[str] = set()
    for node in subject.graph.graph:
        reads = {value.name or "" for value in node.inputs if value is not None}
        if node.name == subject.check.layer or reads & behind:
            behind |= {value.name or "" for value in node.outputs}
            for value in node.outputs:
                if value.name in subject.tensors and value.name in produced:
                    return value.name or ""
    return subject.graph.graph.outputs[0].name or ""
