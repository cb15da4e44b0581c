"""The recipe. Passes and targets come from their registries: a new one needs nothing here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, create_model, model_validator
from pydantic_core import PydanticCustomError

from edgeopt.passes.base import Pass
from edgeopt.passes.registry import PASSES
from edgeopt.targets.base import Target
from edgeopt.targets.registry import TARGETS
from edgeopt.training.base import TrainingPass
from edgeopt.training.qat import Qat
from edgeopt.training.registry import TRAINED_GRAPH_PASSES, TRAINING_PASSES
from edgeopt.types import Effort, Frozen, Preprocess

VERSION = 1
"""Of the recipe format; written as ``edgeopt: 1``."""


def _resolve(path: Path, info: ValidationInfo) -> Path:
    """Relative to the recipe's folder, and there."""
    root = (info.context or {}).get("root", Path())
    found: Path = root / path.expanduser()
    if not found.exists():
        raise PydanticCustomError("missing_file", "no such file or folder: {found}", {"found": str(found)})
    return found


def _resolve_file(path: Path, info: ValidationInfo) -> Path:
    found = _resolve(path, info)
    if not found.is_file():
        raise PydanticCustomError("not_a_file", "is a folder, not a file: {found}", {"found": str(found)})
    return found


def _resolve_folder(path: Path, info: ValidationInfo) -> Path:
    found = _resolve(path, info)
    if not found.is_dir():
        raise PydanticCustomError("not_a_folder", "is a file, not a folder: {found}", {"found": str(found)})
    return found


InputFile = Annotated[Path, AfterValidator(_resolve_file)]
InputFolder = Annotated[Path, AfterValidator(_resolve_folder)]
Reference = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
"""``module:function``."""
Size = Annotated[int, Field(gt=0)]


class ModelSource(Frozen):
    """Where the float model is: exactly one of ``onnx``, ``exported`` (``.pt2``), ``keras`` or ``factory``.

    Args:
        factory: ``module:function`` that returns an ``nn.Module`` in eval mode; the module may lie beside the recipe.
        weights: state dict for the factory's module, ``.safetensors``, or ``.pth`` read with ``weights_only``.
        inputs: shapes by input name; binds open sizes.
    """

    onnx: InputFile | None = None
    exported: InputFile | None = None
    keras: InputFile | None = None
    factory: Reference | None = None
    weights: InputFile | None = None
    inputs: dict[str, tuple[Size, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        given = [name for name in ("onnx", "exported", "keras", "factory") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of 'onnx', 'exported', 'keras' and 'factory', not {given or 'none'}")
        if self.weights is not None and self.factory is None:
            raise ValueError("'weights' belong to a 'factory'")
        if self.factory is not None and not self.inputs:
            raise ValueError("a 'factory' needs 'inputs', for example {image: [1, 3, 224, 224]}")
        return self

    @property
    def file(self) -> Path | None:
        """The one file that the model is; None for a factory."""
        return self.onnx or self.exported or self.keras


MODEL_FILES = {".onnx": "onnx", ".pt2": "exported", ".keras": "keras", ".h5": "keras", ".hdf5": "keras"}
"""Suffix → the field of ``ModelSource`` that such a file is given as."""


class DataSource(Frozen):
    """Real samples: exactly one of ``images``, ``arrays`` and ``callable``.

    Args:
        images: a folder; ``labels`` or one folder per class say what is on them.
        arrays: ``.npz`` of arrays by input name, ready for the model, first axis samples; ``labels`` if known.
        callable: ``module:function`` that yields dicts of arrays by input name.
        labels: CSV of ``file,class_index`` for ``images``.
        limit: at most so many samples, evenly spread.
    """

    images: InputFolder | None = None
    arrays: InputFile | None = None
    callable: Reference | None = None
    labels: InputFile | None = None
    limit: Size | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        given = [name for name in ("images", "arrays", "callable") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of 'images', 'arrays' and 'callable', not {given or 'none'}")
        if self.labels is not None and self.images is None:
            raise ValueError("'labels' is for 'images'; arrays and callables bring their own")
        return self


class Data(Frozen):
    """``calibration`` chooses scales, ``evaluation`` judges, ``training`` is what training passes train on."""

    training: DataSource | None = None
    calibration: DataSource | None = None
    evaluation: DataSource | None = None


class ParityLimits(Frozen):
    """What makes a conversion fail (exit code 1), besides the limits that always hold.

    Args:
        min_sqnr_db: every artifact's SQNR against the float graph, end to end.
        min_top1_agreement: share of samples on which artifact and float graph have the same largest output.
        tolerance: largest relative error of ``L0`` and of artifacts that are not quantized; None: by scheme.
    """

    min_sqnr_db: float | None = None
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    tolerance: Annotated[float, Field(gt=0)] | None = None


class Budget(Frozen):
    """``size_mb``: no artifact may be larger, in 10⁶ bytes."""

    size_mb: Annotated[float, Field(gt=0)] | None = None


class GateFiles(Frozen):
    """``policy``: limits of the gate, YAML; without it, defaults. ``baseline``: what may not get worse."""

    policy: InputFile | None = None
    baseline: InputFile | None = None


Words = Annotated[str, Field(min_length=1)]


class CardText(Frozen):
    """What only the model's makers know, for its model card; what is left out is called unknown there.

    Args:
        intended_use: what the model is for, and by whom.
        out_of_scope: what it is not to be used for.
        training_data: what it was trained on.
        limits: known weaknesses, one each.
        license: of the model.
        contact: whom to ask.
    """

    intended_use: Words | None = None
    out_of_scope: Words | None = None
    training_data: Words | None = None
    limits: tuple[Words, ...] = ()
    license: Words | None = None
    contact: Words | None = None


if TYPE_CHECKING:
    AnyPass = Pass | TrainingPass
    Targets = BaseModel
else:
    _union = Union[(*TRAINING_PASSES, *PASSES, *TRAINED_GRAPH_PASSES)]
    AnyPass = Annotated[_union, Field(discriminator="use")]
    Targets = create_model(
        "Targets",
        __config__=ConfigDict(frozen=True, extra="forbid"),
        **{name: (target | None, None) for name, target in TARGETS.items()},
    )


class Recipe(Frozen):
    """Everything that one conversion is asked for.

    Args:
        edgeopt: version of the recipe format.
        keep_float: patterns of node names (as in ``fnmatch``) that stay float whatever the scheme.
        labels: class names, one per line in a file, or listed.
        gate: judge the run when it is done; absent: not.
        model_card: for the model card that the gate writes.
        effort: how much the passes try.
        seed: for whatever draws.
    """

    edgeopt: Literal[1]
    model: ModelSource
    preprocess: Preprocess | None = None
    data: Data = Data()
    passes: tuple[AnyPass, ...] = ()
    targets: Targets
    keep_float: tuple[str, ...] = ()
    labels: InputFile | tuple[str, ...] = ()
    parity: ParityLimits = ParityLimits()
    budget: Budget = Budget()
    gate: GateFiles | None = None
    model_card: CardText = CardText()
    effort: Effort = "default"
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _empty_options(cls, values: Any) -> Any:
        """``onnx:`` with nothing behind it means all defaults, as ``onnx: {}`` does."""
        if isinstance(values, dict) and isinstance(values.get("targets"), dict):
            targets = {name: {} if options is None else options for name, options in values["targets"].items()}
            values = {**values, "targets": targets}
        return values

    @model_validator(mode="after")
    def _some_target(self) -> Recipe:
        if not self.requested():
            raise ValueError(f"'targets' names none; there are {', '.join(TARGETS)}")
        return self

    @model_validator(mode="after")
    def _training_first(self) -> Recipe:
        graph_passes = 0
        for step in self.passes:
            if isinstance(step, Qat) and not graph_passes:
                raise ValueError("'qat' starts from what 'quantize' found: put {use: quantize} in front of it")
            if isinstance(step, Qat) and self.data.training is None:
                raise ValueError("'qat' needs training data: name it under data.training")
            if not isinstance(step, TrainingPass):
                graph_passes += 1
                continue
            use = getattr(step, "use", "")
            if graph_passes:
                raise ValueError(f"'{use}' trains the module and must stand before the passes on the graph")
            if self.model.factory is None:
                raise ValueError(f"'{use}' trains a module, and needs model.factory (and weights)")
            if step.needs_data() and self.data.training is None:
                raise ValueError(f"'{use}' needs training data: name it under data.training")
        return self

    def training_passes(self) -> tuple[TrainingPass, ...]:
        """Those on the module, in order."""
        return tuple(step for step in self.passes if isinstance(step, TrainingPass))

    def graph_passes(self) -> tuple[Pass, ...]:
        """Those on the graph, in order."""
        return tuple(step for step in self.passes if isinstance(step, Pass))

    def requested(self) -> dict[str, Target]:
        """Target name → target with its options, in the registry's order."""
        return {name: target for name in TARGETS if (target := getattr(self.targets, name)) is not None}

    def class_names(self) -> tuple[str, ...]:
        if isinstance(self.labels, Path):
            return tuple(line.strip() for line in self.labels.read_text(encoding="utf-8").splitlines() if line.strip())
        return self.labels


class CommandValues(Frozen):
    """What commands other than ``convert`` share with a recipe."""

    data: Data = Data()
    preprocess: Preprocess | None = None
    parity: ParityLimits = ParityLimits()
