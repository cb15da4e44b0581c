"""A part of a Core ML program: the program stays whole, is fed where the part begins and asked for where it ends.

The MIL reference evaluates only what lies between; it imports nothing of edgeopt and is handed over beside the program.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import edgeopt
from edgeopt.parity.cuts import TENSORS
from edgeopt.runtimes import mil_reference
from edgeopt.runtimes.mil_reference.program import Operation, Reference

Kind = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class ProgramPart:
    """Where a program begins and ends.

    Args:
        inputs: variables that are fed → dtype and shape.
        output: the variable that is asked for, and its dtype.
        begins: those of ``inputs`` that are tensors of the table → the tensor.
    """

    inputs: dict[str, Kind]
    output: tuple[str, str]
    begins: dict[str, str]


def variables(package: Path, names: Iterable[str]) -> dict[str, str]:
    """Tensor of the table → the program's variable of its integers, of those that it computes."""
    with mil_reference.Session(package) as session:
        told = json.loads(session.package.metadata.user_defined.get(TENSORS, "{}"))
        made = frozenset(session.variables())
        return {name: told[name][0] for name in names if name in told and told[name][0] in made}


def part_of(package: Path, names: Iterable[str], output: str) -> ProgramPart:
    """What makes ``output``, of the tensors ``names`` and the program's inputs."""
    cut = {variable: name for name, variable in variables(package, names).items()}
    with mil_reference.Session(package) as session:
        makers = {v.name: operation for operation in session.package.main.block.operations for v in operation.outputs}
        read: set[str] = set()
        seen, open_names = set[int](), [output]
        while open_names:
            maker = makers.get(open_names.pop())
            if maker is None or id(maker) in seen:
                continue
            seen.add(id(maker))
            for name in _reads(maker):
                if name in cut or name in session.inputs:
                    read.add(name)
                else:
                    open_names.append(name)
        kinds = {name: session.info(name) for name in (*sorted(read), output)}
    inputs = {name: (kinds[name].dtype, kinds[name].shape) for name in sorted(read)}
    return ProgramPart(inputs, (output, kinds[output].dtype), {name: cut[name] for name in inputs if name in cut})


def _reads(operation: Operation) -> list[str]:
    arguments = [argument for many in operation.inputs.values() for argument in many]
    return [argument.name for argument in arguments if isinstance(argument, Reference)]


def hand_over(package: Path, folder: Path) -> None:
    """The program, and what runs it: a folder that Python imports as the same package."""
    shutil.copytree(package, folder / "artifact.mlpackage", dirs_exist_ok=True)
    source = Path(mil_reference.__file__).parent
    made = folder / "edgeopt" / "runtimes"
    shutil.copytree(source, made / source.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "edgeopt" / "__init__.py").write_text(f'__version__ = "{edgeopt.__version__}"\n', encoding="utf-8")
    (made / "__init__.py").write_text("", encoding="utf-8")
