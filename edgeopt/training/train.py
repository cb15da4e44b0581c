"""The passes ``train``, ``finetune`` and ``distill``: the engine, with the defaults that each is asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgeopt.training.base import TrainingPass, TrainingRecord, Work
from edgeopt.training.settings import Distillation, Training


class Train(TrainingPass):
    """Train the module from the weights that it has. Parameters: see ``Training``."""

    use: Literal["train"] = "train"

    def run(self, work: Work) -> TrainingRecord:
        return _trained(self, self.use, work)


class Finetune(TrainingPass):
    """Train gently: a smaller ``lr``. Parameters: see ``Training``."""

    use: Literal["finetune"] = "finetune"
    lr: Annotated[float, Field(gt=0)] = 2e-4

    def run(self, work: Work) -> TrainingRecord:
        return _trained(self, self.use, work)


class Distill(TrainingPass):
    """Train with a teacher; ``distill`` says how it is learnt from. Other parameters: see ``Training``."""

    use: Literal["distill"] = "distill"
    distill: Distillation = Distillation()

    def run(self, work: Work) -> TrainingRecord:
        return _trained(self, self.use, work)


def _trained(settings: Training, use: str, work: Work) -> TrainingRecord:
    before = work.cost()
    history = work.train(settings, use, "train")
    return TrainingRecord(use=use, before=before, after=work.cost(), epochs=tuple(history))
