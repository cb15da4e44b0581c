"""What every pass and every target keeps to, whichever it is."""

from __future__ import annotations

import io
import typing

import pydantic
import pytest
from ruamel.yaml import YAML

from edgeopt.graph.constraints import Constraints, unite
from edgeopt.passes.base import Pass
from edgeopt.passes.canonical import PASSES as CANONICAL
from edgeopt.passes.registry import PASSES as REGISTERED_PASSES
from edgeopt.recipe.schema import Recipe
from edgeopt.targets.base import Target
from edgeopt.targets.registry import TARGETS as REGISTERED_TARGETS
from tests.contracts.catalogue import PASSES, TARGETS

every = pytest.mark.parametrize("kind", [*PASSES, *TARGETS], ids=lambda kind: kind.__name__)
every_pass = pytest.mark.parametrize("kind", PASSES, ids=lambda kind: kind.__name__)
every_target = pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.__name__)


def required(kind: type[Pass | Target]) -> dict[str, object]:
    """What a recipe must say at least: nothing, for most."""
    return {name: ... for name, field in kind.model_fields.items() if field.is_required()}


def through_yaml(values: object) -> object:
    yaml = YAML(typ="safe", pure=True)
    text = io.StringIO()
    yaml.dump(values, text)
    return yaml.load(text.getvalue())


def test_something_was_found():
    assert PASSES
    assert TARGETS


@every
def test_says_what_it_is(kind: type[Pass | Target]):
    assert kind.__doc__, f"{kind.__module__}.{kind.__qualname__} has no docstring"
    own = {name for name in kind.model_fields if name != "use"}
    missing = {name for name in own if name not in kind.__doc__ and kind.model_fields[name].description is None}
    assert not missing, f"{kind.__qualname__}'s docstring does not mention its parameters {sorted(missing)}"


@every
def test_works_with_defaults_alone(kind: type[Pass | Target]):
    assert not required(kind)
    kind()


@every
def test_is_frozen_and_takes_no_unknown_parameter(kind: type[Pass | Target]):
    one = kind()
    for name in kind.model_fields:
        with pytest.raises(pydantic.ValidationError):
            setattr(one, name, getattr(one, name))
    with pytest.raises(pydantic.ValidationError):
        kind.model_validate({"no_such_parameter": 1})


@every
def test_parameters_have_a_json_schema_and_survive_yaml(kind: type[Pass | Target]):
    schema = kind.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema.get("properties", {})) == set(kind.model_fields)
    one = kind()
    assert kind.model_validate(through_yaml(one.model_dump(mode="json"))) == one


@every_pass
def test_a_pass_has_one_name_and_a_place(kind: type[Pass]):
    (name,) = typing.get_args(kind.model_fields["use"].annotation)
    assert kind.model_fields["use"].default == name
    names = [typing.get_args(other.model_fields["use"].annotation)[0] for other in PASSES]
    assert names.count(name) == 1, f"two passes are called {name}"
    assert kind in REGISTERED_PASSES or kind in {type(one) for one in CANONICAL}, (
        f"{kind.__qualname__} can neither be asked for in a recipe nor is it run on every graph"
    )


@every_target
def test_a_target_is_registered_under_its_name(kind: type[Target]):
    assert REGISTERED_TARGETS.get(kind.name) is kind


@every_target
def test_constraints_are_data_and_unite_with_all_others(kind: type[Target]):
    assert isinstance(kind.constraints, Constraints)
    united = unite(other.constraints for other in TARGETS)
    assert kind.constraints.equal_scales <= united.equal_scales
    for operator, output in kind.constraints.fixed_outputs.items():
        assert united.fixed_outputs[operator] == output


@every_target
def test_a_recipe_can_ask_for_a_target(kind: type[Target], tmp_path):
    model = tmp_path / "model.onnx"
    model.touch()
    recipe = Recipe.model_validate(
        {"edgeopt": 1, "model": {"onnx": str(model)}, "targets": {kind.name: {}}}, context={"root": tmp_path}
    )
    assert recipe.requested() == {kind.name: kind()}


@pytest.mark.parametrize("kind", REGISTERED_PASSES, ids=lambda kind: kind.__name__)
def test_a_recipe_can_ask_for_a_pass(kind: type[Pass], tmp_path):
    model = tmp_path / "model.onnx"
    model.touch()
    values = {
        "edgeopt": 1,
        "model": {"onnx": str(model)},
        "passes": [{"use": kind().use}],
        "targets": dict.fromkeys(REGISTERED_TARGETS),
    }
    assert Recipe.model_validate(values, context={"root": tmp_path}).passes == (kind(),)
