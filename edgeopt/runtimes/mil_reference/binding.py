"""Binds a program's operators to the functions that evaluate them, and finds which are needed for what."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference.program import Block, Constant, Operation, Reference, ValueType, Variable

Array = npt.NDArray[Any]

TUPLES = frozenset({"values", "ref_tensors", "begins", "ends", "end_masks"})
"""Inputs that are tuples whatever their length."""
DATA = frozenset({"x", "y", "a", "b", "cond", "data", "indices", "updates", "values", "input"})
"""Inputs whose scalars stay arrays; those of other inputs are parameters and become Python values."""
CLASSIFY = "classify"


@dataclass(frozen=True, eq=False)
class Step:
    """One operator, bound: parameters are values, data are names."""

    operation: Operation
    function: Callable[..., Any]
    parameters: Mapping[str, Any]
    reads: Mapping[str, tuple[str | Array, ...]]

    def names(self) -> Iterator[str]:
        for arguments in self.reads.values():
            yield from (argument for argument in arguments if isinstance(argument, str))


def where(path: Path, operation: Operation) -> str:
    """For messages."""
    return f"{path}: {operation.type} '{operation.name}'"


class Binding:
    """All steps of a block, its constants evaluated.

    Args:
        path: for messages.
        inputs: of the function.
        block: of the function.
        functions: operator → what evaluates it.
        evaluate: a step that reads nothing → its results, as they are declared.

    Raises:
        ValueError: an operator, or an input of one, is not known; the message names it.
    """

    def __init__(
        self,
        path: Path,
        inputs: tuple[Variable, ...],
        block: Block,
        functions: Mapping[str, Callable[..., Any]],
        evaluate: Callable[[Step], dict[str, Any]],
    ) -> None:
        self._path = path
        self._block = block
        self._functions = functions
        self._evaluate = evaluate
        self.types: dict[str, ValueType] = {variable.name: variable.type for variable in inputs}
        self.constants: dict[str, Any] = {}
        self.steps: dict[str, Step] = {}
        """Variable → the step that makes it."""
        self._order: dict[int, int] = {}
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], tuple[Step, ...]] = {}
        self._load()

    def clear(self) -> None:
        """Let go of all arrays."""
        self.constants.clear()
        self.steps.clear()
        self._plans.clear()

    def _load(self) -> None:
        """Bind every operator, evaluate constants."""
        unknown: dict[str, str] = {}
        for index, operation in enumerate(self._block.operations):
            for variable in operation.outputs:
                self.types[variable.name] = variable.type
            if operation.type == "const":
                self.constants[operation.outputs[0].name] = operation.attributes["val"]
            elif operation.type != CLASSIFY and (operation.type not in self._functions or operation.blocks):
                unknown.setdefault(operation.type, operation.name)
            elif not unknown:
                self._bind(index, operation)
        if unknown:
            names = ", ".join(f"{kind} ('{name}')" for kind, name in unknown.items())
            raise ValueError(f"{self._path}: operators that the MIL reference does not know: {names}")

    def _bind(self, index: int, operation: Operation) -> None:
        function = _classify if operation.type == CLASSIFY else self._functions[operation.type]
        parameters: dict[str, Any] = {}
        reads: dict[str, tuple[str | Array, ...]] = {}
        arguments = {**operation.inputs, **{key: (value,) for key, value in operation.attributes.items()}}
        known = inspect.signature(function).parameters
        for key, values in arguments.items():
            if key not in known:
                raise ValueError(f"{where(self._path, operation)}: input '{key}' is not known")
            if all(self.is_constant(value) for value in values):
                found = tuple(self.parameter(key, value) for value in values)
                parameters[key] = found if key in TUPLES else found[0]
            else:
                reads[key] = tuple(
                    value.name
                    if isinstance(value, Reference) and value.name not in self.constants
                    else self.parameter(key, value)
                    for value in values
                )
        missing = [key for key, one in known.items() if one.default is inspect.Parameter.empty and key not in arguments]
        if missing:
            raise ValueError(f"{where(self._path, operation)}: input '{missing[0]}' is missing")
        step = Step(operation, function, parameters, reads)
        if operation.type.startswith("constexpr_"):
            with np.errstate(all="ignore"):
                self.constants.update(self._evaluate(step))
            return
        self._order[id(step)] = index
        for variable in operation.outputs:
            self.steps[variable.name] = step

    def is_constant(self, argument: Reference | Constant) -> bool:
        return isinstance(argument, Constant) or argument.name in self.constants

    def parameter(self, key: str, argument: Reference | Constant) -> Any:
        """A constant as an operator takes it: floats in float32, scalars of parameters as Python values."""
        value = self.constants[argument.name] if isinstance(argument, Reference) else argument
        if isinstance(value, Constant):
            if isinstance(value.value, tuple):
                return value.python()
            if not isinstance(value.value, np.ndarray):
                return value.value
            array = value.value
            if array.dtype.kind == "f":
                array = array.astype(np.float32)  # a copy that torch may take: what was read is read-only
            if isinstance(argument, Reference):
                self.constants[argument.name] = array
            value = array
        if isinstance(value, np.ndarray) and value.ndim == 0 and key not in DATA:
            return value[()] if value.dtype.kind == "f" else value.item()
        return value

    def plan(self, given: frozenset[str], wanted: tuple[str, ...]) -> tuple[Step, ...]:
        """Steps that make what is wanted of what is given, in program order."""
        plan = self._plans.get((given, wanted))
        if plan is not None:
            return plan
        needed: dict[int, Step] = {}
        open_names = list(wanted)
        missing = []
        while open_names:
            name = open_names.pop()
            step = self.steps.get(name)
            if step is None:
                if name not in self.types:
                    raise ValueError(f"{self._path}: no variable named '{name}'")
                if name not in given and name not in self.constants:
                    missing.append(name)
            elif id(step) not in needed:
                needed[id(step)] = step
                open_names.extend(read for read in step.names() if read not in given)
        if missing:
            raise ValueError(
                f"no array for input {', '.join(dict.fromkeys(missing))}; given: {', '.join(sorted(given))}"
            )
        plan = tuple(needed[key] for key in sorted(needed, key=self._order.__getitem__))
        self._plans[given, wanted] = plan
        return plan


def _classify(probabilities: Array, classes: Sequence[Any]) -> tuple[Array, Array]:
    """The most probable label, and the probabilities in the labels' order."""
    if probabilities.size != len(classes):
        raise ValueError(f"{probabilities.size} probabilities for {len(classes)} labels")
    return np.array([classes[int(np.argmax(probabilities))]], object), probabilities
