"""What a training minimises: labels, a teacher's outputs and features, or a function of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import DataError, UsageError
from edgeopt.training.attention import AttentionMaps
from edgeopt.training.augment import mix
from edgeopt.training.trainee import Feed, ModuleTrainee, Trainee

if TYPE_CHECKING:
    from edgeopt.training.settings import Distillation, Training

MOST_PAIRS = 4
"""Feature pairs that ``auto`` takes: the last of each spatial size says what the ones before it led to."""


@dataclass(frozen=True, eq=False)
class Loss:
    """One batch's loss (a tensor), its parts by name, and how many of its samples were right (None: no labels)."""

    total: Any
    parts: Mapping[str, Any]
    right: Any = None


@dataclass(eq=False)
class Objective:
    """See the module.

    Args:
        settings: of the training.
        outputs: output name → shape for one sample batch, of the student.
        class_counts: samples per class, or None without labels.
        teacher: what ``settings.distill`` learns from.
        custom: the function that ``settings.loss`` names.
        features: pairs of modules and their adapters.
        attention: pairs of attention blocks.
    """

    settings: Training
    outputs: Mapping[str, tuple[int, ...]]
    class_counts: npt.NDArray[np.int64] | None
    teacher: Trainee | None = None
    custom: Callable[[Feed, Feed], Any] | None = None
    features: Features | None = None
    attention: AttentionMaps | None = None
    _weights: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        distill = self.settings.distill
        if self.class_counts is None and self.custom is None and (distill is None or distill.mix < 1):
            raise DataError(
                "the training data has no labels",
                hint="Give labels, learn from a teacher alone (distill: {mix: 1}), or name a loss of your own.",
            )
        self.classified = next((name for name, shape in self.outputs.items() if len(shape) == 2), None)
        uses_labels = self.class_counts is not None and self.custom is None and (distill is None or distill.mix < 1)
        if uses_labels and self.classified is None:
            raise UsageError(
                f"no output holds class scores (samples, classes): {_shapes(self.outputs)}",
                hint="Name a loss of your own: loss: 'module:function'.",
            )
        if self.settings.class_weights != "none" and self.class_counts is not None:
            self._weights = _class_weights(self.settings.class_weights, self.class_counts)
        if self.teacher is not None and distill is not None:
            self._ways = _ways(distill, self.outputs)

    def named_parameters(self) -> dict[str, Any]:
        return {} if self.features is None else self.features.named_parameters()

    def to(self, device: Any) -> None:
        if self._weights is not None:
            self._weights = self._weights.to(device)
        if self.teacher is not None:
            self.teacher.to(device)
            self.teacher.train(False)
        if self.features is not None:
            self.features.to(device)

    def __call__(self, trainee: Trainee, feed: Feed, labels: Any, generator: Any, *, training: bool) -> Loss:
        """Loss of one batch; mixing is drawn from ``generator`` while training."""
        others, share = None, 1.0
        if training and self.settings.mixup:
            feed, others, share = mix(feed, labels, self.settings.mixup, generator)
        outputs = {name: value.float() for name, value in trainee(feed).items()}
        parts: dict[str, Any] = {}
        distill = self.settings.distill if self.teacher is not None else None
        of_labels = 1.0 if distill is None else 1.0 - distill.mix
        if self.custom is not None:
            if of_labels:
                parts["loss"] = of_labels * self.custom(outputs, {**feed, "labels": labels})
        elif labels is not None and self.classified is not None and of_labels:
            scores = outputs[self.classified]
            hard = self._cross_entropy(scores, labels)
            if others is not None:
                hard = share * hard + (1 - share) * self._cross_entropy(scores, others)
            parts["labels"] = of_labels * hard
        if distill is not None:
            parts |= self._distilled(distill, feed, outputs)
        right = None
        if labels is not None and self.classified is not None:
            right = (outputs[self.classified].detach().argmax(1) == labels).sum()
        return Loss(sum(parts.values()), {name: value.detach() for name, value in parts.items()}, right)

    def _cross_entropy(self, scores: Any, labels: Any) -> Any:
        from torch.nn import functional

        return functional.cross_entropy(
            scores, labels, weight=self._weights, label_smoothing=self.settings.label_smoothing
        )

    def _distilled(self, distill: Distillation, feed: Feed, outputs: Feed) -> dict[str, Any]:
        import torch
        from torch.nn import functional

        assert self.teacher is not None
        with torch.no_grad():
            taught = {name: value.float() for name, value in self.teacher(feed).items()}
        if not self._fits(taught, outputs):
            theirs, ours = ({k: tuple(v.shape) for k, v in one.items()} for one in (taught, outputs))
            raise UsageError(
                f"the teacher's outputs do not fit the student's: {_shapes(theirs)} against {_shapes(ours)}",
                where="distill.teacher",
                hint="Teacher and student must answer the same question: same outputs, same classes.",
            )
        parts: dict[str, Any] = {}
        for name, way in self._ways.items():
            student, teacher = outputs[name], taught[name]
            if way == "kl":
                t = distill.temperature
                soft = functional.kl_div(
                    functional.log_softmax(student / t, 1),
                    functional.log_softmax(teacher / t, 1),
                    reduction="batchmean",
                    log_target=True,
                )
                parts[f"teacher {name}"] = distill.mix * t * t * soft
            elif way == "mse":
                parts[f"teacher {name}"] = distill.mix * relative_error(student, teacher)
        if self.features is not None and distill.feature_weight:
            parts["features"] = distill.feature_weight * self.features.loss()
        if self.attention is not None and distill.attention_weight:
            parts["attention"] = distill.attention_weight * self.attention.loss()
        return parts

    @staticmethod
    def _fits(taught: Feed, outputs: Feed) -> bool:
        return list(taught) == list(outputs) and all(taught[name].shape == outputs[name].shape for name in taught)


def relative_error(student: Any, teacher: Any) -> Any:
    """Mean squared error relative to the teacher's mean square."""
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12)


class Features:
    """Pairs of modules whose outputs are compared, recorded while both models run.

    Args:
        student, teacher: both modules of torch.
        pairs: student's module name → teacher's; ``auto`` chooses.
        example: inputs to see the shapes with.

    Raises:
        UsageError: a name that is not there, or two outputs that no adapter can bring together.
    """

    def __init__(self, student: ModuleTrainee, teacher: ModuleTrainee, pairs: str | Mapping[str, str], example: Feed):
        import torch

        self._seen: dict[str, dict[str, Any]] = {"student": {}, "teacher": {}}
        shapes = {who: _shapes_of(model, example) for who, model in (("student", student), ("teacher", teacher))}
        if isinstance(pairs, str):
            pairs = _auto_pairs(shapes["student"], shapes["teacher"])
        for who, names in (("student", pairs.keys()), ("teacher", pairs.values())):
            for name in names:
                if name not in shapes[who]:
                    raise UsageError(
                        f"the {who} has no module '{name}' that returns one tensor",
                        where="distill.features",
                        hint=f"It has {', '.join(list(shapes[who])[:8])}, …",
                    )
        self.pairs = dict(pairs)
        self._adapters = torch.nn.ModuleList()
        for mine, theirs in self.pairs.items():
            self._adapters.append(_adapter(mine, shapes["student"][mine], theirs, shapes["teacher"][theirs]))
        for who, model, names in (
            ("student", student, self.pairs.keys()),
            ("teacher", teacher, self.pairs.values()),
        ):
            modules = dict(model.module.named_modules())
            for name in names:
                modules[name].register_forward_hook(self._remember(who, name))

    def _remember(self, who: str, name: str) -> Any:
        def hook(module: Any, given: Any, result: Any) -> None:
            self._seen[who][name] = result

        return hook

    def loss(self) -> Any:
        parts = [
            relative_error(adapter(self._seen["student"][mine].float()), self._seen["teacher"][theirs].float())
            for adapter, (mine, theirs) in zip(self._adapters, self.pairs.items(), strict=True)
        ]
        return sum(parts) / len(parts)

    def named_parameters(self) -> dict[str, Any]:
        return {f"adapter.{name}": value for name, value in self._adapters.named_parameters()}

    def to(self, device: Any) -> None:
        self._adapters.to(device)


def _shapes_of(model: ModuleTrainee, example: Feed) -> dict[str, tuple[int, ...]]:
    """Output shape of every named module that returns one tensor, in the order in which they run."""
    import torch

    found: dict[str, tuple[int, ...]] = {}

    def look(name: str, module: Any, given: Any, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            found[name] = tuple(result.shape)

    model.watch(example, look)
    return found


def _auto_pairs(student: Mapping[str, tuple[int, ...]], teacher: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The last module of each spatial size (each depth, for sequences) that both models call the same."""
    last: dict[tuple[int, ...], str] = {}
    for name, shape in student.items():
        other = teacher.get(name)
        if other is None or len(shape) != len(other) or len(shape) < 3:
            continue
        inner = slice(2, None) if len(shape) == 4 else slice(1, -1)
        if shape[inner] == other[inner]:
            last[shape[inner]] = name
    names = list(last.values())[-MOST_PAIRS:]
    if not names:
        raise UsageError(
            "student and teacher have no modules of one name and spatial size",
            where="distill.features",
            hint="Name the pairs: features: {student_module: teacher_module}.",
        )
    return {name: name for name in names}


def _adapter(mine: str, student: tuple[int, ...], theirs: str, teacher: tuple[int, ...]) -> Any:
    import torch

    rank = len(student)
    inner = slice(2, None) if rank == 4 else slice(1, -1)
    if rank != len(teacher) or rank < 2 or student[inner] != teacher[inner]:
        raise UsageError(
            f"'{mine}' {list(student)} cannot be compared with '{theirs}' {list(teacher)}",
            where="distill.features",
            hint="Choose modules of one spatial size.",
        )
    channel = 1 if rank == 4 else -1
    if student[channel] == teacher[channel]:
        return torch.nn.Identity()
    if rank == 4:
        return torch.nn.Conv2d(student[1], teacher[1], 1, bias=False)
    return torch.nn.Linear(student[-1], teacher[-1], bias=False)


def _ways(distill: Distillation, outputs: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    for name in distill.outputs:
        if name not in outputs:
            raise UsageError(
                f"the model has no output '{name}'", where="distill.outputs", hint=f"It has {', '.join(outputs)}."
            )
    return {
        name: distill.outputs.get(name, "kl" if len(shape) == 2 and shape[1] > 1 else "mse")
        for name, shape in outputs.items()
    }


def _class_weights(asked: Any, counts: npt.NDArray[np.int64]) -> Any:
    import torch

    if isinstance(asked, str):
        if (empty := np.flatnonzero(counts == 0)).size:
            raise DataError(
                f"class {empty[0]} has no training sample, so it cannot be weighted",
                where="class_weights: balanced",
                hint="Add samples, or give class_weights as numbers.",
            )
        weights = counts.sum() / (len(counts) * counts)
    else:
        if len(asked) != len(counts):
            raise UsageError(
                f"{len(asked)} class weights are given, and the model has {len(counts)} classes", where="class_weights"
            )
        weights = np.asarray(asked)
    return torch.tensor(np.asarray(weights, np.float32))


def _shapes(outputs: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in outputs.items())
