"""What every training pass keeps to, whichever it is."""

from __future__ import annotations

import pydantic
import pytest

from edgeopt.training.registry import TRAINED_GRAPH_PASSES, TRAINING_PASSES
from edgeopt.training.settings import Augment, Distillation, Teacher, Training

PASSES = [*TRAINING_PASSES, *TRAINED_GRAPH_PASSES]
every_pass = pytest.mark.parametrize("kind", PASSES, ids=lambda kind: kind.__name__)


@every_pass
def test_works_with_defaults_alone(kind):
    step = kind()
    assert isinstance(step, Training)
    assert kind.model_validate(step.model_dump()) == step


@every_pass
def test_is_frozen_and_takes_no_unknown_parameter(kind):
    with pytest.raises(pydantic.ValidationError):
        kind(epoch=3)
    with pytest.raises(pydantic.ValidationError):
        kind().epochs = 3


@pytest.mark.parametrize("kind", [*PASSES, Training, Augment, Distillation, Teacher], ids=lambda kind: kind.__name__)
def test_says_what_its_parameters_mean(kind):
    inherited = Training.model_fields if kind is not Training and issubclass(kind, Training) else {}
    own = {name for name in kind.model_fields if name != "use" and name not in inherited}
    missing = {name for name in own if name not in (kind.__doc__ or "")}
    assert not missing


def test_names_are_unique():
    names = [kind.model_fields["use"].default for kind in PASSES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": -1},
        {"lr": 0},
        {"trainable": "tail"},
        {"early_stopping": 3},
        {"distill": {"mix": 2}},
        {"augment": {"flips": True}},
        {"loss": "no reference"},
        {"batch": 6, "processes": 4},
    ],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(pydantic.ValidationError):
        Training(**settings)
