"""All training passes that a recipe can name. A new one is one file and one line here."""

from __future__ import annotations

from edgeopt.passes.base import Pass
from edgeopt.training.base import TrainingPass
from edgeopt.training.prune import Prune
from edgeopt.training.qat import Qat
from edgeopt.training.sparsify import Sparsify
from edgeopt.training.train import Distill, Finetune, Train

TRAINING_PASSES: tuple[type[TrainingPass], ...] = (Prune, Sparsify, Distill, Train, Finetune)
"""In front of all graph passes: they act on the ``nn.Module``."""
TRAINED_GRAPH_PASSES: tuple[type[Pass], ...] = (Qat,)
"""Passes on the graph that train it: behind ``quantize``."""
