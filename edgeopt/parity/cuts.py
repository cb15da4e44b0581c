"""A written file cut between the table's tensors, on its own runtime, in the source's names and layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import MissingPackage, ModelError, TargetError
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import tflite as tflite_format
from edgeopt.formats.cut import Cut
from edgeopt.graph.quantization import Quantization
from edgeopt.parity.runners import Feed, FileRunner, bind_ports
from edgeopt.types import Artifact

Array = npt.NDArray[Any]

TENSORS = "edgeopt.tensors"
"""Metadata of an ML program: tensor of the table → variables of its integers and of what they stand for."""


@dataclass(frozen=True)
class CutFile:
    """The cut file.

    Args:
        runner: its inputs and outputs that the source has too.
        session: the runtime's session, of the cut file.
        produced: tensor of the table → output of the cut file.
        consumed: tensor of the table → input of the cut file.
        layouts: tensor of the table → how the file lays it out, where it does so otherwise than the source.
    """

    runner: FileRunner
    session: Any
    produced: Mapping[str, str]
    consumed: Mapping[str, str]
    layouts: Mapping[str, tflite_format.Layout]

    def run(self, feed: Feed, integers: Mapping[str, Array], table: Quantization) -> dict[str, Array]:
        """Every segment once.

        Args:
            feed: the sample, by source input.
            integers: int8 integers of every tensor of the table, in the source's layout: what segments read.
            table: the table.

        Returns:
            What segments made, in the source's layout: int8 integers of the table's grid, or float32 where the file
            has the tensor in float; and the model's outputs that the table does not hold, as real numbers.
        """
        given = {port.file_name: port.to_file(feed[name]) for name, port in self.runner.input_ports.items()}
        for name, label in self.consumed.items():
            dtype, shape = _type(self.session.inputs[label])
            array = integers[name] if dtype != "float32" else table.activations[name].dequantize(integers[name])
            if dtype == "uint8":
                array = (array.astype(np.int16) + 128).astype(np.uint8)
            layout = self.layouts.get(name)
            given[label] = layout.to_file(array, shape) if layout is not None else array.reshape(shape)
        found = self.session.run(given)
        made = {name: port.to_source(found[port.file_name]) for name, port in self.runner.output_ports.items()}
        for name, label in self.produced.items():
            array = found[label]
            layout = self.layouts.get(name)
            array = layout.to_graph(array) if layout is not None else array.reshape(integers[name].shape)
            if array.dtype == np.uint8:
                array = (array.astype(np.int16) - 128).astype(np.int8)
            made[name] = array
        return made

    def output_step(self, name: str) -> float | None:
        """Size of one step of an output that the file gives as integers; None for float outputs."""
        port = self.runner.output_ports.get(name)
        return port.scale if port is not None else None


@dataclass(frozen=True)
class ProgramCut:
    """Where an ML program is cut: its session computes what is asked for also where it is fed, so nothing is rewritten.

    Args:
        produced: tensor of the table → the variable of its integers.
        consumed: the same.
    """

    produced: Mapping[str, str]
    consumed: Mapping[str, str]


@contextmanager
def open_cut(
    path: Path, artifact: Artifact, names: Sequence[str], *, threads: int = 1, accelerated: bool = True
) -> Iterator[CutFile]:
    """Cut the file at the tensors ``names`` of the table, and load the result on the file's own runtime.

    Raises:
        ModelError: no ONNX file, TFLite file or ML program.
        MissingPackage: coremltools, which reading an ``.mlpackage`` needs.
        TargetError: the runtime refuses the cut file.
    """
    layouts: dict[str, tflite_format.Layout] = {}
    cut: Cut | ProgramCut
    session: Any
    try:
        if path.suffix == ".onnx":
            from edgeopt.runtimes import onnxruntime

            cut = onnx_format.cut(path, names)
            optimize = accelerated and artifact.emulation is None
            session = onnxruntime.Session(cut.data, threads=threads, optimize=optimize)
        elif path.suffix == ".tflite":
            from edgeopt.runtimes import litert

            model = tflite_format.read(path)
            cut = tflite_format.cut(model, names)
            layouts = _layouts(model, names)
            session = litert.Session(cut.data, threads=threads, delegate=accelerated)
        elif path.suffix == ".mlpackage":
            from edgeopt.runtimes import mil_reference

            session = mil_reference.Session(path, threads=threads)
            cut = _cut_program(session, names)
        else:
            raise ModelError(f"cannot cut '{path.suffix or path.name}' files", where=str(path))
    except ValueError as error:
        raise TargetError(
            f"the runtime refuses the file when it is cut into segments: {error}", where=str(path)
        ) from error
    except ImportError as error:
        if error.name != "coremltools":
            raise
        raise MissingPackage("coremltools", "coreml", "running an .mlpackage") from error
    inputs, outputs = bind_ports(path, session, artifact)
    consumed, produced = set(cut.consumed.values()), set(cut.produced.values())
    runner = FileRunner(
        session,
        path.name,
        {name: port for name, port in inputs.items() if port.file_name not in consumed},
        {name: port for name, port in outputs.items() if port.file_name not in produced},
    )
    with session:
        yield CutFile(runner, session, cut.produced, cut.consumed, layouts)


def _cut_program(session: Any, names: Sequence[str]) -> ProgramCut:
    """The session's program, cut at the variables that the package's metadata gives for the table's tensors."""
    told = json.loads(session.package.metadata.user_defined.get(TENSORS, "{}"))
    made = frozenset(session.variables())
    variables = {name: told[name][0] for name in names if name in told and told[name][0] in made}
    session.expose(variables.values(), as_inputs=True)
    return ProgramCut(variables, variables)


def _layouts(model: tflite_format.Model, names: Sequence[str]) -> dict[str, tflite_format.Layout]:
    by_tensor = tflite_format.layouts(model)
    index_of = model.names()
    found = {}
    for name in names:
        index = tflite_format.integers_of(model, name, index_of)
        layout = by_tensor.get(model.tensors[index].name) if index is not None else None
        if layout is not None:
            found[name] = layout
    return found


def _type(info: Any) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of an input, of either runtime's session."""
    dtype, shape = info if isinstance(info, tuple) else (info.dtype, info.shape)
    return dtype, tuple(shape)
