"""What the repository says of itself is so: versions, dependencies, documents, public names."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

import edgeopt
from edgeopt import errors
from edgeopt.bench.results import BenchDocument
from edgeopt.cli import COMMANDS
from edgeopt.passes.registry import PASSES
from edgeopt.pipeline.record import Manifest, Report
from edgeopt.recipe.load import load_recipe
from edgeopt.recipe.schema import Budget, Data, DataSource, ModelSource, ParityLimits, Recipe
from edgeopt.targets.registry import TARGETS
from edgeopt.training.registry import TRAINED_GRAPH_PASSES, TRAINING_PASSES
from edgeopt.training.settings import Augment, Distillation, Teacher
from edgeopt.types import Preprocess
from tests.conftest import ROOT

TRAINED = (*TRAINING_PASSES, *TRAINED_GRAPH_PASSES, Augment, Distillation, Teacher)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PINNED = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1].strip()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/bench.md",
    "docs/recipe.md",
    "docs/report.md",
    "docs/training.md",
    "recipes/prune-distill-quantize/README.md",
    "recipes/quickstart/README.md",
)
IMPORTED_AS = {"pydantic_core": {"pydantic"}}
"""Pydantic's own other half comes with it, always in the one version that fits."""
LIBRARY = frozenset(sys.stdlib_module_names) | {"edgeopt"}
FROM_THE_DEVICE = frozenset({"tensorrt"})
"""Comes with JetPack or from NVIDIA, in the device's own version: never a dependency of ours."""


def declared(*groups: list[str]) -> list[Requirement]:
    requirements = [Requirement(text) for group in groups for text in group]
    return [one for one in requirements if one.name != "edgeopt"]


def commands() -> dict[str, click.Command]:
    """All commands of the CLI by name."""
    return {name: importlib.import_module(f"edgeopt.cli.{name}").command for name in COMMANDS}


def tracked_files() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:  # an unpacked archive has no history
        return [str(path.relative_to(ROOT)) for path in (ROOT / "edgeopt").rglob("*.py")]
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize(
    "requirement",
    declared(
        PYPROJECT["build-system"]["requires"], PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()
    ),
    ids=str,
)
def test_constraints_pin_every_dependency(requirement):
    pinned = PINNED[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned), f"constraints.txt has {pinned}"


def test_this_environment_has_the_pinned_versions():
    # Once setuptools is imported, the packages inside it look as if they were installed.
    own = (one for one in distributions() if "_vendor" not in Path(str(one.locate_file(""))).parts)
    installed = {canonicalize_name(one.name): one.version.partition("+")[0] for one in reversed(list(own))}
    different = {
        name: f"{installed[name]}, pinned {pinned}"
        for name, pinned in PINNED.items()
        if installed.get(name, pinned) != pinned
    }
    assert not different


def test_every_import_is_declared():
    owners = packages_distributions()
    core = {canonicalize_name(one.name) for one in declared(PROJECT["dependencies"])}
    extras = {
        canonicalize_name(one.name)
        for one in declared(
            *(
                PROJECT["optional-dependencies"][e]
                for e in ("torch", "keras", "tensorflow", "coreml", "nncf", "detection", "mlflow")
            )
        )
    }
    optional_imports = {
        "torch", "tensorflow", "coremltools", "nncf", "onnxscript", "torch_pruning", "pycocotools", "mlflow", "keras",
    }  # fmt: skip
    undeclared = set()
    for module in pkgutil.walk_packages(edgeopt.__path__, "edgeopt."):
        path = ROOT / (module.name.replace(".", "/") + ("/__init__.py" if module.ispkg else ".py"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - LIBRARY - FROM_THE_DEVICE:
                found = {canonicalize_name(owner) for owner in owners.get(top, [top])}
                found |= IMPORTED_AS.get(top, set())
                if not found & (core | (extras if top in optional_imports else set())):
                    undeclared.add(f"{module.name} imports {top}")
    assert not undeclared


def test_no_file_chooses_a_registry():
    wrong = [
        name
        for name in tracked_files()
        if name.endswith((".txt", ".toml", ".md", ".yaml", "Makefile", "run"))
        and re.search(
            r"(?m)^\s*(--(extra-)?index-url|-i|--find-links|-f)\s|--(extra-)?index-url|/simple\b",
            (ROOT / name).read_text(),
        )
    ]
    assert not wrong


def test_versions_agree():
    assert PROJECT["version"] == edgeopt.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{edgeopt.__version__}]" in changelog or "## [Unreleased]" in changelog


def test_public_names():
    public = {name for name in vars(edgeopt) if not name.startswith("_")}
    modules = {module.name for module in pkgutil.iter_modules(edgeopt.__path__)}
    assert public - modules <= {"annotations"}


def test_the_tree_of_errors_is_the_one_drawn():
    kinds = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.EdgeoptError)
    }
    assert kinds == {
        "EdgeoptError": 4,
        "UsageError": 2,
        "RecipeError": 2,
        "ModelError": 2,
        "UnsupportedOperator": 2,
        "DataError": 2,
        "SetupError": 3,
        "MissingPackage": 3,
        "DeviceUnreachable": 3,
        "TargetError": 4,
    }
    assert all(name in (errors.__doc__ or "") for name in kinds)


def test_every_command_is_documented():
    readme = (ROOT / "README.md").read_text()
    missing = [name for name in commands() if f"edgeopt {name}" not in readme]
    assert not missing
    no_help = [name for name, command in commands().items() if not command.help]
    assert not no_help


def test_documents_name_no_command_or_option_that_is_not_there():
    there = commands()
    for document in DOCUMENTS:
        for name, rest in re.findall(r"(?m)(?:bin/|`|^)edgeopt ([a-z]+)([^`\n]*)", (ROOT / document).read_text()):
            assert name in there, f"{document}: edgeopt {name}"
            options = {option for parameter in there[name].params for option in parameter.opts}
            unknown = set(re.findall(r"--[a-z][a-z-]*", rest)) - options - {"--help"}
            assert not unknown, f"{document}: edgeopt {name} has no {unknown}"


@pytest.mark.parametrize(
    "kind",
    [Recipe, ModelSource, Data, DataSource, Preprocess, ParityLimits, Budget, *PASSES, *TARGETS.values(), *TRAINED],
)
def test_every_key_of_a_recipe_is_documented(kind):
    text = (ROOT / "docs" / "recipe.md").read_text()
    missing = [
        name for name in kind.model_fields if not re.search(rf"`{name}`|`{name}:|^{name}:|## {name}", text, re.M)
    ]
    assert not missing


@pytest.mark.parametrize("document", ["README.md", "docs/recipe.md"])
def test_a_recipe_in_a_document_is_one(document, tmp_path):
    (text,) = re.findall(r"```yaml\n(edgeopt: .*?)```", (ROOT / document).read_text(), re.S)
    for name in re.findall(r"(?:images|labels|weights): ([\w./]+)", text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path).requested().keys() == TARGETS.keys()


def fields(kind: type[BaseModel]) -> set[str]:
    """Keys of a document, however deep."""
    schema = kind.model_json_schema(by_alias=True)
    return {name for one in [schema, *schema.get("$defs", {}).values()] for name in one.get("properties", {})}


@pytest.mark.parametrize("kind", [Report, Manifest, BenchDocument])
def test_every_key_of_a_report_is_documented(kind):
    text = "".join((ROOT / "docs" / name).read_text() for name in ("report.md", "recipe.md", "bench.md"))
    missing = sorted(name for name in fields(kind) if not re.search(rf"[`.]{name}[`.\[]", text))
    assert not missing


def test_every_package_and_module_says_what_it_is():
    silent = []
    for module in pkgutil.walk_packages(edgeopt.__path__, "edgeopt."):
        path = ROOT / (module.name.replace(".", "/") + ("/__init__.py" if module.ispkg else ".py"))
        if not ast.get_docstring(ast.parse(path.read_text())):
            silent.append(module.name)
    assert not silent


def test_a_link_in_a_document_leads_somewhere():
    for name in tracked_files():
        if name.endswith(".md"):
            folder = (ROOT / name).parent
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text()):
                if not target.startswith(("http:", "https:", "mailto:")):
                    assert (folder / target).exists(), f"{name} links to {target}"
