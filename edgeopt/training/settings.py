"""How a training pass trains: the parameters that all of them share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeopt.types import Frozen

Reference = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
"""``module:function``, looked up in the recipe's folder."""
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


class Augment(Frozen):
    """What is drawn anew for every image and epoch; computed on the batch, on whatever device trains.

    Args:
        flip: left–right, half of the images.
        shift: up to so many pixels in each direction, with zeros from outside.
        rotate: up to so many degrees.
        scale: up to so large a share larger or smaller.
        shear: up to so large a share.
        cutout: side in pixels of a square that is set to zero (DeVries and Taylor 2017, arXiv:1708.04552).
    """

    flip: bool = False
    shift: Annotated[int, Field(ge=0)] = 0
    rotate: NotNegative = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.0
    cutout: Annotated[int, Field(ge=0)] = 0


class Teacher(Frozen):
    """A model to learn from, if it is another than the recipe's own before any training pass.

    Args:
        factory: ``module:function`` that returns the module in eval mode.
        weights: its state dict, as for the recipe's model; relative to the recipe's folder.
    """

    factory: Reference
    weights: str | None = None


class Distillation(Frozen):
    """Learning from a teacher's outputs (Hinton et al. 2015, arXiv:1503.02531) and features.

    Args:
        teacher: None: the recipe's model as it came, before any training pass.
        temperature: softens both outputs where a loss compares class scores.
        mix: the teacher's share of the loss; labels have the rest. 1 needs no labels.
        outputs: output name → ``kl`` (class scores), ``mse`` (anything else) or ``none``; by default ``kl`` for
            outputs of shape (samples, classes), ``mse`` for all others.
        features: ``auto`` pairs modules of the same name and spatial size, or pairs of student and teacher modules
            are given; a 1×1 convolution or linear layer adapts the widths where they differ (FitNets, Romero et al.
            2015, arXiv:1412.6550).
        feature_weight: of the features' mean squared error, relative to the teacher's own power.
        attention: ``auto`` spreads the student's attention blocks over the teacher's, or pairs of modules are given;
            their maps are compared (MiniLM, Wang et al. 2020, arXiv:2002.10957).
        attention_weight: of the maps' Kullback–Leibler divergence.
    """

    teacher: Teacher | None = None
    temperature: Positive = 4.0
    mix: Share = 0.9
    outputs: dict[str, Literal["kl", "mse", "none"]] = Field(default_factory=dict)
    features: Literal["none", "auto"] | dict[str, str] = "none"
    feature_weight: NotNegative = 1.0
    attention: Literal["none", "auto"] | dict[str, str] = "none"
    attention_weight: NotNegative = 1.0


class Training(Frozen):
    """Parameters of the one training engine.

    Args:
        epochs: passes over the training data.
        batch: samples per step.
        lr: the largest learning rate.
        optimizer: ``adamw``, or ``sgd`` with Nesterov momentum.
        momentum: of ``sgd``.
        weight_decay: not applied to biases and normalisation.
        schedule: of the learning rate after the warm-up: ``cosine`` to zero, ``step`` (a tenth after each share of
            ``milestones``), or ``constant``.
        milestones: shares of the epochs.
        warmup_epochs: during which the rate rises from zero.
        layer_decay: factor on the rate per weighted layer, counted from the last one.
        trainable: ``all``, ``head`` (the last weighted layer), or the share of weighted layers, from the last, that
            are trained; the others keep weights and BatchNorm statistics.
        ema: decay of a moving average of the weights, which then is the result; 0: none.
        early_stopping: epochs without a better held-back loss after which it ends with the best weights; 0: never.
        held_back: share of the training data that is not trained on but judges every epoch.
        class_weights: ``balanced`` weighs classes by the inverse of their number, or one weight per class.
        label_smoothing: share of a label that is spread over all classes.
        mixup: strength of mixing pairs of samples (Zhang et al. 2018, arXiv:1710.09412); 0: none.
        augment: see there.
        clip_norm: largest norm of all gradients together; 0: no limit.
        precision: ``auto`` computes in bfloat16 on a GPU that has it, in float32 elsewhere.
        loss: ``module:function`` that is given outputs and batch (dictionaries of tensors; ``labels`` in the batch) and
            returns the loss, instead of cross-entropy.
        distill: learn from a teacher besides.
        tensorboard: folder, relative to the recipe's, for TensorBoard events of every epoch; needs the package.
        threads: of the CPU; results repeat exactly with the same number.
        processes: that share every batch, started by torch's own launcher; on the module only, not for ``qat``.
    """

    epochs: Annotated[int, Field(ge=0)] = 10
    batch: Count = 64
    lr: Positive = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[Share, ...] = (0.5, 0.75)
    warmup_epochs: NotNegative = 0.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    trainable: Literal["all", "head"] | Annotated[float, Field(gt=0, le=1)] = "all"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_stopping: Annotated[int, Field(ge=0)] = 0
    held_back: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] | tuple[Positive, ...] = "none"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: NotNegative = 0.0
    augment: Augment = Augment()
    clip_norm: NotNegative = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    loss: Reference | None = None
    distill: Distillation | None = None
    tensorboard: str | None = None
    threads: Count = 1
    processes: Count = 1

    @model_validator(mode="after")
    def _judged(self) -> Training:
        if self.batch % self.processes:
            raise ValueError(f"a batch of {self.batch} cannot be shared by {self.processes} processes")
        if self.early_stopping and not self.held_back:
            raise ValueError("'early_stopping' needs 'held_back', a share of the training data to judge by")
        return self
