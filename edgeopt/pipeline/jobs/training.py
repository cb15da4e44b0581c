"""A training pass on the factory's module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeopt.frontends.torch import module_request
from edgeopt.frontends.torch_worker import trace
from edgeopt.pipeline.jobs.folder import MODULE, stage, write_result
from edgeopt.pipeline.jobs.inputs import Inputs
from edgeopt.recipe.schema import ModelSource
from edgeopt.training.base import TrainingPass, TrainingRecord, write_module
from edgeopt.training.data import TrainingSet
from edgeopt.training.distributed import launch
from edgeopt.training.ranks import is_first
from edgeopt.training.read_data import from_callable, in_memory
from edgeopt.training.work import open_work
from edgeopt.types import Frozen, Signature, TensorSpec

MANY_EPOCHS = 5
"""From so many on, a model that cannot be traced is refused before it is trained: tracing takes seconds, which a short
training would notice."""


@dataclass(frozen=True)
class TrainingJob:
    """One training pass on the factory's module, as the pass before it left it.

    Args:
        before: folder of the step before, or None.
        unfinished: where its checkpoints are; what is there is gone on with.
        key: of the step.
    """

    model: ModelSource
    before: Path | None
    step: TrainingPass
    inputs: Inputs
    seed: int
    unfinished: Path
    key: str
    out: Path


class TrainingResult(Frozen):
    record: TrainingRecord


def train_module(job: TrainingJob) -> None:
    """The pass; leaves the module's weights and structure."""
    if job.step.processes > 1:
        launch(train_here, job, job.step.processes, job.unfinished / "processes")
    else:
        train_here(job)


def train_here(job: TrainingJob) -> None:
    """The pass in this process, which may be one of several."""
    model = job.model
    assert model.factory is not None
    before = None if job.before is None else job.before / MODULE
    request = module_request(model.factory, model.weights, model.inputs, root=job.inputs.root, trained=before)
    data = None if job.inputs.training is None else lambda: training_data(job.inputs, model)
    with stage(f"{getattr(job.step, 'use', 'train')}: load the module"):
        work = open_work(request, data, folder=job.unfinished, identity=job.key, seed=job.seed)
    if job.step.epochs >= MANY_EPOCHS:
        with stage(f"{getattr(job.step, 'use', 'train')}: see whether it can be traced"):
            trace(work.loaded)
    record = job.step.run(work)
    if not is_first():
        return
    write_module(job.out / MODULE, work.model, work.changes())
    write_result(job.out, TrainingResult(record=record))


def training_data(inputs: Inputs, model: ModelSource) -> TrainingSet:
    """Read, or opened, as the model takes it."""
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=(1, *sizes[1:])) for name, sizes in model.inputs.items())
    return graph_training_data(inputs, Signature(inputs=specs, outputs=()))


def graph_training_data(inputs: Inputs, signature: Signature) -> TrainingSet:
    """Training data for a graph's inputs."""
    source = inputs.training
    assert source is not None
    if source.callable is not None:
        return from_callable(source.callable, inputs.root, [spec.name for spec in signature.inputs], source.limit)
    samples = inputs.open("training", signature)
    assert samples is not None
    with stage("read training data"):
        return in_memory(samples)
