"""Executes an ML program: reference semantics, on any machine with numpy.

Everything is computed in float32; the output of each operator is rounded to the dtype that it declares, and that is all
that fp16 does here. Nothing is said of the arithmetic of any device, least of all of the Neural Engine's.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference import package as mlpackage
from edgeopt.runtimes.mil_reference.binding import CLASSIFY, TUPLES, Binding, Step, where
from edgeopt.runtimes.mil_reference.operators import OPERATORS, WITH_TORCH, convolution
from edgeopt.runtimes.mil_reference.program import (
    Feature,
    Operation,
    OtherType,
    Reference,
    TensorType,
    Variable,
)
from edgeopt.runtimes.mil_reference.weights import NUMPY_DTYPES

Array = npt.NDArray[Any]

FLOATS = frozenset({"float16", "float32", "float64"})


@dataclass(frozen=True)
class TensorInfo:
    """What one input, output or inner variable is.

    Args:
        dtype: numpy dtype name, as the program declares it.
        shape: with the default sizes where they are open.
        scale: None: what grid integers lie on is not declared for a variable.
        zero_point: 0.
        color: of an image input, else None. Its array holds pixels, 0–255, of any number type: an app gives whole
            numbers, and so does data that comes from images.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0
    color: str | None = None


class Session:
    """One loaded program; a context manager so that its memory has an end.

    Args:
        path: an ``.mlpackage`` folder.
        threads: of torch's convolutions; numpy's matrix products follow the environment.
        rounding: round each operator's output to its declared dtype. Without it everything but the stored weights is
            float32: the difference is fp16's share.
        function: of a package with several; None: its default.
        use_torch: for what it does faster; None: if it is installed.
        wide_sums: add up convolutions in float64 before their output is rounded: slower, and free of the order in
            which float32 is summed, which deep networks can amplify to 1e-5 and more.

    Raises:
        ValueError: the package is damaged, or an operator is not known; the message names it.
        ImportError: coremltools is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        rounding: bool = True,
        function: str | None = None,
        use_torch: bool | None = None,
        wide_sums: bool = False,
    ) -> None:
        self.package = mlpackage.read(path)
        if function is not None and function not in self.package.functions:
            raise ValueError(f"{path}: no function '{function}'; it has {', '.join(self.package.functions)}")
        self._function = self.package.functions[function or self.package.default_function]
        self._path = path
        self._threads = threads
        self._rounding = rounding
        self.non_finite: Counter[str] = Counter()
        """Operator name → NaNs and infinities in its outputs, over all runs so far."""
        torch_there = importlib.util.find_spec("torch") is not None if use_torch is None else use_torch
        functions = {**OPERATORS, **(WITH_TORCH if torch_there else {})}
        if wide_sums:
            functions |= convolution.operators(convolution.TORCH if torch_there else convolution.NUMPY, wide=True)
        self._bound = Binding(
            path,
            self._function.inputs,
            self._function.block,
            functions,
            lambda step: self._evaluated(step, {}, {}),
        )
        self._uses_torch = torch_there and any(step.operation.type in WITH_TORCH for step in self._bound.steps.values())
        features = {feature.name: feature for feature in (*self._function.features_in, *self._function.features_out)}
        self._features: Mapping[str, Feature] = features
        self.inputs = {variable.name: self.info(variable.name) for variable in self._function.inputs}
        self.outputs = {name: self.info(name) for name in self._function.block.outputs if self._is_array(name)}
        """Without a classifier's label. Its probabilities go by the dictionary's name, in the order of ``labels``."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class labels of a classifier, in the order of its probabilities."""
        for operation in self._function.block.operations:
            if operation.type == CLASSIFY:
                return tuple(str(label) for label in self._bound.parameter("classes", operation.inputs["classes"][0]))
        return ()

    def info(self, name: str) -> TensorInfo:
        """What a variable is, an inner one too.

        Raises:
            ValueError: there is none of this name.
        """
        declared = self._bound.types.get(name)
        if declared is None:
            raise ValueError(f"{self._path}: no variable named '{name}'")
        feature = self._features.get(name)
        if isinstance(declared, OtherType):
            step = self._bound.steps.get(name)
            if step is None or step.operation.type != CLASSIFY:
                raise ValueError(f"{self._path}: '{name}' is a {declared.kind}, no tensor")
            return self.info(next(step.names()))
        default = feature.shape if feature is not None and feature.kind == "array" else ()
        if feature is not None and feature.kind == "image" and declared.shape is not None:
            default = (*(size or 1 for size in declared.shape[:-2]), *feature.shape)
        shape = declared.shape if declared.shape is not None else default
        sizes = tuple(
            size if size is not None else default[axis] if axis < len(default) else 1 for axis, size in enumerate(shape)
        )
        color = feature.color if feature is not None and feature.kind == "image" else None
        return TensorInfo(declared.dtype, sizes, color=color)

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Evaluate variables by name: outputs (all by default), or any inner ones.

        A variable that is fed is not computed for those that read it; one that is asked for is always computed, also
        where it is fed. So a program is evaluated in segments by feeding the variables at their ends and asking for
        the same ones: each is made from what was fed to its own segment.

        Args:
            feed: arrays by name: inputs, and inner variables. Floats of any width for float variables.
            outputs: names; None: ``self.outputs``.

        Returns:
            Arrays of the declared dtype; without rounding float16 is given as float32. A classifier's label is an
            array of one string.

        Raises:
            ValueError: a name, dtype or shape does not fit, an input is missing, or an operator fails; the message
                names it.
        """
        given = {name: self._fed(name, array) for name, array in feed.items()}
        wanted = tuple(self.outputs if outputs is None else outputs)
        steps = self._bound.plan(frozenset(given), wanted)
        last_reader = {name: index for index, step in enumerate(steps) for name in step.names()}
        made: dict[str, Any] = {}
        with np.errstate(all="ignore"), self._torch_threads():
            for index, step in enumerate(steps):
                made.update(self._evaluated(step, given, made))
                for name in step.names():
                    if last_reader[name] == index and name not in wanted:
                        made.pop(name, None)
        return {name: self._given_out(name, made, given) for name in wanted}

    def expose(self, names: Iterable[str], *, as_inputs: bool = False) -> None:
        """Make inner variables outputs, and inputs too: those may be fed, and are computed where they are not."""
        found = {name: self.info(name) for name in names}
        self.outputs = {**self.outputs, **found}
        if as_inputs:
            self.inputs = {**self.inputs, **found}

    def variables(self) -> tuple[str, ...]:
        """Every tensor that an operator makes, in program order; without constants and labels."""
        return tuple(
            output.name
            for operation in self._function.block.operations
            for output in operation.outputs
            if output.name in self._bound.steps and self._is_array(output.name)
        )

    def pixel_scaling(self, name: str) -> tuple[Array, Array] | None:
        """``scale`` and ``bias`` per channel, (1, C, 1, 1), that the program applies to an image input's pixels.

        As ``coremltools.ImageType(scale=…, bias=…)`` writes them; None if the input is no image.
        """
        if self.inputs[name].color is None:
            return None
        scale: Any = np.float32(1)
        bias: Any = np.float32(0)
        for operation in self._function.block.operations:
            if operation.type == "mul" and operation.outputs[0].name.startswith(f"{name}__scaled__"):
                scale = self._other_operand(operation)
            elif operation.type == "add" and operation.outputs[0].name.startswith(f"{name}__biased__"):
                bias = self._other_operand(operation)
        channels = self.inputs[name].shape[1]
        both = [
            np.broadcast_to(np.asarray(value, np.float32).reshape(1, -1, 1, 1), (1, channels, 1, 1))
            for value in (scale, bias)
        ]
        return both[0], both[1]

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bound.clear()

    def _where(self, operation: Operation) -> str:
        return where(self._path, operation)

    def _is_array(self, name: str) -> bool:
        declared = self._bound.types[name]
        if isinstance(declared, TensorType):
            return declared.dtype != "string" and not (
                name in self._bound.steps and self._bound.steps[name].operation.type == CLASSIFY
            )
        return name in self._bound.steps and self._bound.steps[name].operation.type == CLASSIFY

    def _other_operand(self, operation: Operation) -> Any:
        for key in ("x", "y"):
            if self._bound.is_constant(operation.inputs[key][0]):
                return self._bound.parameter(key, operation.inputs[key][0])
        raise ValueError(f"{self._where(operation)}: should scale or shift an image by a constant")

    def _evaluated(self, step: Step, given: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
        operation = step.operation

        def value(argument: str | Array) -> Any:
            if not isinstance(argument, str):
                return argument
            return given[argument] if argument in given else made[argument]

        arguments = dict(step.parameters)
        for key, names in step.reads.items():
            values = tuple(value(name) for name in names)
            arguments[key] = values if key in TUPLES else values[0]
        try:
            results = step.function(**arguments)
            results = results if isinstance(results, tuple) else (results,)
            if len(results) < len(operation.outputs):
                raise ValueError(f"makes {len(results)} results; {len(operation.outputs)} are declared")
            return {
                variable.name: self._declared(result, variable, operation)
                for variable, result in zip(operation.outputs, results, strict=False)
            }
        except (ValueError, TypeError, IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{self._where(operation)}: {error}") from error

    def _declared(self, result: Any, variable: Variable, operation: Operation) -> Any:
        """A result in its declared dtype, its non-finite values counted."""
        declared = variable.type
        if not isinstance(declared, TensorType) or declared.dtype == "string":
            return result
        array = self._in_dtype(np.asarray(result), declared.dtype)
        if declared.shape is not None and not _fits(array.shape, declared.shape):
            if [size for size in array.shape if size != 1] != [size for size in declared.shape if size != 1]:
                raise ValueError(f"makes {list(array.shape)}; '{variable.name}' declares {list(declared.shape)}")
            array = array.reshape([1 if size is None else size for size in declared.shape])
        if array.dtype.kind == "f" and not operation.type.startswith("constexpr_"):
            count = array.size - int(np.count_nonzero(np.isfinite(array)))
            if count:
                self.non_finite[operation.name] += count
        return array

    def _in_dtype(self, array: Array, dtype: str) -> Array:
        if dtype in FLOATS:
            real = array.astype(np.float32, copy=False)
            return real.astype(np.float16).astype(np.float32) if dtype == "float16" and self._rounding else real
        return array.astype(NUMPY_DTYPES[dtype], copy=False)

    def _fed(self, name: str, array: Array) -> Array:
        declared = self._bound.types.get(name)
        if declared is None:
            raise ValueError(f"no input named '{name}'; the program has {', '.join(self.inputs)}")
        if not isinstance(declared, TensorType) or declared.dtype == "string":
            raise ValueError(f"'{name}' is no tensor of numbers and cannot be fed")
        given = np.asarray(array)
        if declared.shape is not None and not _fits(given.shape, declared.shape):
            open_shape = ["?" if size is None else size for size in declared.shape]
            raise ValueError(f"'{name}' is {list(given.shape)} and should be {open_shape}")
        if declared.dtype not in FLOATS and given.dtype.kind not in "iub":
            raise ValueError(f"'{name}' is {given.dtype} and should be {declared.dtype}")
        if given.dtype.kind not in "iubf":
            raise ValueError(f"'{name}' is {given.dtype}, no array of numbers")
        feature = self._features.get(name)
        if feature is not None and feature.kind == "array":
            _check_sizes(name, given.shape, feature)
        if declared.dtype not in FLOATS and declared.dtype != "bool" and given.size:
            limits = np.iinfo(NUMPY_DTYPES[declared.dtype])
            if int(given.min()) < limits.min or int(given.max()) > limits.max:
                raise ValueError(f"'{name}' holds values outside of {declared.dtype}")
        with np.errstate(all="ignore"):
            return self._in_dtype(given, declared.dtype)

    def _given_out(self, name: str, made: Mapping[str, Any], given: Mapping[str, Any]) -> Array:
        if name in made:
            value = made[name]
        elif name in given:
            value = given[name]
        else:
            value = self._bound.parameter("x", Reference(name))
        declared = self._bound.types[name]
        dtype = declared.dtype if isinstance(declared, TensorType) else None
        if dtype == "float16" and self._rounding:
            value = np.asarray(value).astype(np.float16)
        return np.asarray(value)

    @contextmanager
    def _torch_threads(self) -> Iterator[None]:
        if not self._uses_torch:
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def version() -> str:
    """What computes: numpy, and torch where it is installed and used."""
    found = f"numpy {np.__version__}"
    if importlib.util.find_spec("torch") is not None:
        from importlib.metadata import version as installed

        found += f" and torch {installed('torch')}"
    return found


def _fits(shape: Sequence[int], declared: Sequence[int | None]) -> bool:
    return len(shape) == len(declared) and all(
        want is None or size == want for size, want in zip(shape, declared, strict=True)
    )


def _check_sizes(name: str, shape: tuple[int, ...], feature: Feature) -> None:
    """Open sizes must be among those that the description allows."""
    if feature.enumerated and shape not in feature.enumerated:
        allowed = ", ".join(str(list(one)) for one in feature.enumerated)
        raise ValueError(f"'{name}' is {list(shape)}; allowed are {allowed}")
    for axis, (low, high) in enumerate(feature.ranges):
        if axis < len(shape) and (shape[axis] < low or (high >= 0 and shape[axis] > high)):
            most = "any" if high < 0 else high
            raise ValueError(f"'{name}' is {list(shape)}; axis {axis} may be {low} to {most}")
