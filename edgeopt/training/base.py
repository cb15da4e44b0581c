"""What a training pass is, and what it works with."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from edgeopt import events
from edgeopt.data.callables import load_function
from edgeopt.errors import DataError, MissingPackage, SetupError, UsageError
from edgeopt.frontends import torch_structure
from edgeopt.frontends.torch_loading import Loaded
from edgeopt.frontends.torch_structure import MASKS
from edgeopt.training import checkpoint, engine
from edgeopt.training.attention import AttentionMaps
from edgeopt.training.cost import Cost, cost
from edgeopt.training.data import TrainingSet, check_labels, hold_back
from edgeopt.training.layout import channels_last
from edgeopt.training.objective import Features, Objective
from edgeopt.training.ranks import is_first, rank_and_world
from edgeopt.training.settings import Distillation, Training
from edgeopt.training.trainee import Feed, ModuleTrainee, Trainee
from edgeopt.types import Frozen


class LayerChange(Frozen):
    """One weighted layer before and after: channels, and multiply–accumulates per sample."""

    layer: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    macs: tuple[int, int]


class TrainingRecord(Frozen):
    """What one training pass did.

    Args:
        use: name of the pass.
        before, after: cost of the module.
        layers: where the cost changed.
        epochs: one mapping per epoch: ``epoch``, ``lr``, ``loss``, ``top1``, ``held_loss``, ``held_top1``, ``seconds``.
        sparsity: share of zero weights per layer, where a mask holds them.
        notes: what the person should know.
    """

    use: str
    before: Cost
    after: Cost
    layers: tuple[LayerChange, ...] = ()
    epochs: tuple[dict[str, float], ...] = ()
    sparsity: dict[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class TrainingPass(Training, ABC):
    """One step on the ``nn.Module``; its fields are its parameters, those of ``Training`` among them."""

    def needs_data(self) -> bool:
        """Whether training data must be given."""
        return self.epochs > 0

    @abstractmethod
    def run(self, work: Work) -> TrainingRecord: ...


@dataclass(eq=False)
class Work:
    """A module under work, and what a training pass may use besides.

    Args:
        loaded: the module as the frontend loads it.
        request: what it was loaded with; without structure and trained weights it is the default teacher.
        structure: how it differs from the factory's module already.
        masks: weights that stay zero.
        data: reads the training data, or None if the recipe names none.
        folder: of checkpoints; what is there is gone on with.
        identity: of all that the result depends on.
        seed: of every draw.
    """

    loaded: Loaded
    request: Mapping[str, Any]
    structure: torch_structure.Structure
    masks: Mapping[str, Any]
    data: Callable[[], TrainingSet] | None
    folder: Path
    identity: str
    seed: int
    model: ModuleTrainee = field(init=False)
    example: Feed = field(init=False)
    _numbers: torch_structure.Structure = field(init=False)
    _data: TrainingSet | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.model = trainee_of(self.loaded, self.masks)
        self.example = example_of(self.loaded, self.seed)
        self._numbers = torch_structure.numbers(self.loaded.module)

    def cost(self) -> Cost:
        return cost(self.model, self.example)

    def train(self, settings: Training, text: str, name: str) -> list[dict[str, Any]]:
        """Train the module; ``name`` is that of the checkpoint's folder."""
        data = self.training_data()
        return train(
            self.model,
            settings,
            data,
            self.example,
            teacher=self.teacher(settings.distill) if settings.distill is not None else None,
            root=Path(self.request["root"]),
            folder=self.folder / name,
            identity=f"{self.identity}/{name}",
            seed=self.seed,
            text=text,
        )

    def teacher(self, distill: Distillation) -> ModuleTrainee:
        """The model to learn from: another one, or the recipe's own before any training pass."""
        return load_teacher(distill, self.request)

    def training_data(self) -> TrainingSet:
        """Read once.

        Raises:
            DataError: the recipe names none.
        """
        if self._data is None:
            if self.data is None:
                raise no_data()
            self._data = self.data()
        return self._data

    def collect_gradients(self, settings: Training, batches: int) -> None:
        """Leave the gradient of the loss over some batches in the parameters."""
        data = self.training_data()
        objective = _objective(self.model, settings, data, self.example, None, Path(self.request["root"]))
        self.model.train(False)
        for parameter in self.model.module.parameters():
            parameter.grad = None
        count = min(batches, max(1, len(data) // settings.batch))
        step = len(data) / (count * settings.batch)
        for index in range(count):
            at = [int((index * settings.batch + k) * step) % len(data) for k in range(min(settings.batch, len(data)))]
            feed, labels = data.batch(at)
            objective(self.model, feed, labels, None, training=False).total.backward()

    # --- stages

    def keep(self, name: str) -> None:
        """The module as it is, as a stage that need not be done again."""
        if not is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_module(self.folder / f"{name}.safetensors", self.model, self.changes(), self.identity)

    def restore(self, name: str) -> bool:
        """Bring the module to a stage that is finished; False if it is not."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return False
        state, structure, masks, identity = read_module(path)
        checkpoint.refuse_another(identity, self.identity, path)
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        torch_structure.apply(self.loaded.module, structure, shapes, str(path))
        self.model.load(state)
        self.model.masks = dict(masks)
        return True

    def changes(self) -> torch_structure.Structure:
        """How the module differs from the factory's now."""
        now = torch_structure.changed(self._numbers, torch_structure.numbers(self.loaded.module))
        return {name: {**self.structure.get(name, {}), **now.get(name, {})} for name in {**self.structure, **now}}


def train(
    model: Trainee,
    settings: Training,
    data: TrainingSet,
    example: Feed,
    *,
    teacher: Trainee | None,
    root: Path,
    folder: Path,
    identity: str,
    seed: int,
    text: str,
) -> list[dict[str, Any]]:
    """Train anything that can be trained, as settings say; see ``engine.fit``.

    Args:
        model: the trainee.
        settings: how.
        data: to train on; a part is held back if the settings say so.
        example: inputs of one sample.
        teacher: what ``settings.distill`` learns from.
        root: folder of the recipe, where a loss of the user is looked up.
        folder, identity, seed, text: see ``engine.fit``.
    """
    import torch

    events = None if settings.tensorboard is None else root / settings.tensorboard / folder.name
    if events is not None and importlib.util.find_spec("tensorboard") is None:
        raise SetupError(
            "TensorBoard events need the package 'tensorboard', which is not installed",
            where="tensorboard",
            hint="pip install tensorboard, or leave the key out: the report has curves too.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)  # adapters between features
    objective = _objective(model, settings, data, example, teacher, root)
    _warn_of_empty_classes(objective, data, text)
    part, held = hold_back(data, settings.held_back, seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    alone = device == "cpu" and rank_and_world()[1] == 1  # processes exchange tensors that lie as one expects
    with channels_last([model] if teacher is None else [model, teacher], example) if alone else nullcontext():
        return engine.fit(
            model,
            objective,
            part,
            held,
            settings,
            folder=folder,
            seed=seed,
            identity=identity,
            text=text,
            device=device,
            tensorboard=events,
        )


def _objective(
    model: Trainee, settings: Training, data: TrainingSet, example: Feed, teacher: Trainee | None, root: Path
) -> Objective:
    import torch

    model.train(False)
    with torch.no_grad():
        outputs = {name: tuple(value.shape) for name, value in model(example).items()}
    classified = next((name for name, shape in outputs.items() if len(shape) == 2), None)
    counts = None
    if classified is not None and settings.loss is None:
        counts = check_labels(data, outputs[classified][1], classified)
    elif data.labels is not None:
        counts = check_labels(data, int(data.labels.max()) + 1, "labels")
    features = attention = None
    distill = settings.distill
    for what in ("features", "attention") if distill is not None else ():
        if (pairs := getattr(distill, what)) == "none":
            continue
        if not (isinstance(model, ModuleTrainee) and isinstance(teacher, ModuleTrainee)):
            raise UsageError(
                f"{what} are compared between modules only"
                if what == "features"
                else "attention is compared between modules only",
                where=f"distill.{what}",
                hint=f"Learn from outputs here: {what}: none.",
            )
        if what == "features":
            features = Features(model, teacher, pairs, example)
        else:
            attention = AttentionMaps(model, teacher, pairs, example)
    custom: Any = load_function(settings.loss, root) if settings.loss is not None else None
    return Objective(settings, outputs, counts, teacher, custom, features, attention)


def _warn_of_empty_classes(objective: Objective, data: TrainingSet, text: str) -> None:
    counts, settings = objective.class_counts, objective.settings
    if counts is None or settings.loss is not None or (settings.distill is not None and settings.distill.mix == 1):
        return  # labels are not learnt from, or only the user knows what they are
    if (empty := [str(index) for index, count in enumerate(counts) if count == 0]) and is_first():
        listed = f"class{'es' if len(empty) > 1 else ''} {', '.join(empty[:10])}"
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        events.warn(f"{text}: {listed}{more} of {len(counts)} in no sample of {data.where}: the model may forget them")


def need_torch() -> None:
    """MissingPackage where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingPackage("torch", "torch", "training")


def no_data() -> DataError:
    return DataError(
        "training needs training data, and none is given",
        hint="Name it under data.training: images, arrays, or a callable that returns a Dataset.",
    )


def trainee_of(loaded: Loaded, masks: Mapping[str, Any]) -> ModuleTrainee:
    return ModuleTrainee(
        loaded.module, list(loaded.inputs), list(loaded.outputs), by_name=loaded.by_name, masks=dict(masks)
    )


def example_of(loaded: Loaded, seed: int) -> Feed:
    """Noise of the inputs' shapes: what a module is traced with."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(sizes, generator=generator) for name, sizes in loaded.inputs.items()}


def load_teacher(distill: Distillation, request: Mapping[str, Any]) -> ModuleTrainee:
    """A teacher in eval mode.

    Args:
        distill: names it, or not.
        request: of the recipe's own model, which is the default.
    """
    asked = {key: value for key, value in request.items() if key not in ("structure", "trained")}
    if distill.teacher is not None:
        weights = distill.teacher.weights
        path = None if weights is None else Path(request["root"]) / weights
        if path is not None and not path.is_file():
            raise UsageError("no such file", where=f"distill.teacher.weights: {path}")
        asked |= {"factory": distill.teacher.factory, "weights": None if path is None else str(path)}
    loaded = Loaded(asked)
    for parameter in loaded.module.parameters():
        parameter.requires_grad_(False)
    return trainee_of(loaded, {})


def write_module(path: Path, model: ModuleTrainee, structure: torch_structure.Structure, identity: str = "") -> None:
    """Weights, structure and masks of a module, in one file."""
    tensors = {**model.state(), **{f"{MASKS}{name}": mask for name, mask in model.masks.items()}}
    checkpoint.save(path, tensors, {"structure": structure, "identity": identity})


def read_module(path: Path) -> tuple[dict[str, Any], torch_structure.Structure, dict[str, Any], str]:
    """State dict, structure, masks and identity that ``write_module`` left."""
    tensors, text = checkpoint.load(path)
    masks = {key.removeprefix(MASKS): value for key, value in tensors.items() if key.startswith(MASKS)}
    state = {key: value for key, value in tensors.items() if not key.startswith(MASKS)}
    return state, text["structure"], masks, text["identity"]
