"""What the checks look at: outputs of the float model and of every artifact on the same evaluation samples, run once.

Everything is computed when it is first asked for, and kept. Outputs of classifiers are small; larger ones lie in
files of a scratch folder, which the caller removes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgeopt import digest, events
from edgeopt.data.samples import Feed, Few, LabelledSamples
from edgeopt.errors import DataError
from edgeopt.gate.policy import Policy
from edgeopt.gate.run_folder import RunFolder
from edgeopt.graph.model import serialise
from edgeopt.graph.quantization import Quantization
from edgeopt.parity.localize import LOCALIZE_SAMPLES, TensorErrors, quantization_errors
from edgeopt.parity.runners import FileRunner, open_file
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.training.registry import TRAINED_GRAPH_PASSES

Array = npt.NDArray[Any]
Value = TypeVar("Value")
Outputs = Mapping[str, Array]
"""Output name → array whose first axis are samples (a batch axis of 1 is dropped)."""


@dataclass(frozen=True)
class Located:
    """What looks wrong in a table: the layer, what it is in words, and the last layer that can make up for it.

    ``certain``: a right table cannot hold it, whatever the model; else it explains a loss and is none by itself.
    """

    layer: str
    text: str
    until: str
    certain: bool = False


class Evidence:
    """See the module.

    Args:
        run: the run that is judged.
        policy: what is asked.
        scratch: an existing folder for large arrays.
        baseline: contents of the baseline file, or None.
        localize: look for layers also where nothing failed.
    """

    def __init__(
        self, run: RunFolder, policy: Policy, scratch: Path, *, baseline: Any = None, localize: bool = False
    ) -> None:
        self.run, self.policy, self.scratch = run, policy, scratch
        self.baseline, self.localize = baseline, localize
        self._artifact_outputs: dict[str, Outputs] = {}
        self._known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, find: Callable[[], Value]) -> Value:
        """What ``find`` returned when ``key`` was first asked for: what checks of several targets need alike."""
        if key not in self._known:
            self._known[key] = find()
        found: Value = self._known[key]
        return found

    # --- data

    @cached_property
    def evaluation(self) -> LabelledSamples | None:
        samples = self.run.inputs.open("evaluation", self.run.signature)
        if samples is not None and self.policy.samples is not None:
            return Few(samples, self.policy.samples)
        return samples

    @cached_property
    def calibration(self) -> LabelledSamples | None:
        return self.run.inputs.open("calibration", self.run.signature)

    @cached_property
    def samples(self) -> LabelledSamples:
        """Evaluation samples, or, where there are none, calibration samples.

        Raises:
            DataError: the recipe has neither.
        """
        found = self.evaluation if self.evaluation is not None else self.calibration
        if found is None:
            raise DataError("the recipe names no data to judge on", hint="Name real samples under data.evaluation.")
        return found

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class indices [n] of ``samples``; None if they are not evaluation samples or have none."""
        return self.samples.labels if self.evaluation is not None else None

    @cached_property
    def sample_ids(self) -> tuple[str, ...]:
        """Digest of every sample's arrays: the same image has the same id in any set and order."""
        return tuple(
            digest.of_json([(name, digest.of_array(array)) for name, array in sorted(feed.items())])
            for feed in self.samples
        )

    # --- outputs

    @cached_property
    def float_outputs(self) -> Outputs:
        """Of the float graph as imported."""
        with self.float_session() as session, _step("gate: float model"):
            return self._collect("float", map(session.run, self.samples))

    def float_session(self) -> Session:
        return Session(serialise(self.run.source))

    def outputs(self, target: str) -> Outputs:
        """Of an artifact on its own runtime, by source names, in the source's layout, as real numbers."""
        if target not in self._artifact_outputs:
            with self.runner(target) as runner, _step(f"gate: {target}"):
                self._artifact_outputs[target] = self._collect(target, runner.run(self.samples))
        return self._artifact_outputs[target]

    def runner(self, target: str) -> Any:
        """Context manager of the artifact's ``FileRunner``."""
        return open_file(self.run.runnable(target), self.run.artifacts[target])

    def _collect(self, name: str, outputs: Iterable[Mapping[str, Array]]) -> Outputs:
        arrays: dict[str, Array] = {}
        count = len(self.samples)
        for index, made in enumerate(outputs):
            for output, array in made.items():
                value = np.asarray(array)
                value = value[0] if value.ndim > 1 and value.shape[0] == 1 else value
                if output not in arrays:
                    shape = (count, *value.shape)
                    if value.nbytes * count > LARGE_BYTES:
                        file = self.scratch / f"{name}-{len(arrays)}.npy"
                        arrays[output] = np.lib.format.open_memmap(file, "w+", value.dtype, shape)
                    else:
                        arrays[output] = np.empty(shape, value.dtype)
                arrays[output][index] = value
        return arrays

    # --- classification

    @property
    def first_output(self) -> str:
        return self.run.signature.outputs[0].name

    @cached_property
    def is_classifier(self) -> bool:
        """Labels are class indices, and the first output has one score per class."""
        shape = self.run.signature.outputs[0].shape
        wide = [size for size in shape[1:] if size != 1]
        return self.labels is not None and len(wide) == 1

    def scores(self, target: str | None) -> Array:
        """The first output as [n, classes]; ``None``: of the float model."""
        outputs = self.float_outputs if target is None else self.outputs(target)
        array = outputs[self.first_output]
        return array.reshape(len(array), -1)

    def answers(self, target: str | None) -> Array:
        found: Array = self.scores(target).argmax(1)
        return found

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.run.recipe.class_names()

    def class_name(self, index: int) -> str:
        names = self.class_names
        return names[index] if index < len(names) else str(index)

    # --- errors of layers

    @cached_property
    def layer_errors(self) -> TensorErrors | None:
        """Of the integer reference against float, tensor by tensor; None where no activation has a grid."""
        table = self.run.graph.quantization or Quantization()
        if not table.activations:
            return None
        return quantization_errors(self.run.graph, Few(self.samples, LOCALIZE_SAMPLES))

    def few(self, limit: int) -> Few:
        return Few(self.samples, limit)

    @property
    def graph_was_trained(self) -> bool:
        """Whether a pass trained the graph's weights after the import, for the integers: it is then no longer the
        imported function, and nearness to float no longer what it was made for."""
        return any(isinstance(step, TRAINED_GRAPH_PASSES) for step in self.run.recipe.passes)

    def asked_int8(self) -> bool:
        """Whether weighted operators were to be integers with static scales."""
        table = self.run.graph.quantization
        return table is not None and "int8" in table.schemes.values()


LARGE_BYTES = 64 << 20


def called(runner: FileRunner, feeds: Iterable[Feed], output: str) -> Iterator[Array]:
    """One output of every feed, flat."""
    for feed in feeds:
        yield np.asarray(runner.call(feed)[output]).ravel()


class _step:
    """Progress: begins and ends on the terminal."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> None:
        events.emit(events.Event("step", self._text))

    def __exit__(self, *exception: object) -> None:
        events.emit(events.Event("done", self._text))
