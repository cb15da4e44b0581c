"""A minimal reproduction: the part of float graph and artifact in which a difference arises, with real inputs.

The part ends in the first tensor of the table at or behind the layer that a check named, and begins at the tensors
before it; if the difference does not show there, it begins further up, until it does. It is shown before it is
handed over: what is written has been run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

import edgeopt
from edgeopt.data.samples import Few
from edgeopt.errors import UsageError
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import tflite as tflite_format
from edgeopt.gate.differing_layer import exposed
from edgeopt.gate.run_folder import RunFolder, read_run
from edgeopt.graph.qdq import INTEGERS_SUFFIX, to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantParams
from edgeopt.parity.levels import check_quantization
from edgeopt.parity.localize import JUMP_DB
from edgeopt.parity.runners import open_file
from edgeopt.parity.tolerances import FLOAT_REL, FP16_REL, WITHIN_ONE_STEP
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.pipeline.verdict import CheckResult, GateResult
from edgeopt.runtimes import reproduce
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.registry import all_constraints

Array = npt.NDArray[Any]
Level = Literal["L1", "L2"]

SAMPLES = 8
"""Each gives as many values as the tensors have."""
LEVELS: dict[str, Level] = {"parity-lowering": "L2", "parity-quantization": "L1"}
SCALED = 0.07
"""Five per cent, in powers of two: rounding alone scales no channel by as much, equalisation mostly by far more."""
CAN_BE_CUT = (".onnx", ".tflite")


class NothingToShowError(UsageError):
    """Nothing failed that a part of the model could show."""


@dataclass(frozen=True)
class ReproJob:
    """What is to be shown.

    Args:
        out: the run's folder.
        result: what the gate said of it.
        folder: to write into; made if it is not there.
        recipe: where the recipe is now, if not where it was.
    """

    out: Path
    result: GateResult
    folder: Path
    recipe: Path | None = None


@dataclass(frozen=True)
class _Part:
    """A part of a model as a file: its data, its inputs' names, its output's name."""

    data: bytes
    inputs: tuple[str, ...]
    output: str


def write(job: ReproJob) -> str:
    """Write the folder. In a worker: what is cut out of a broken file may crash its runtime.

    Returns:
        What it shows, in words.

    Raises:
        NothingToShowError: no failed check names a layer, nothing that runs here can be cut, or no part shows it.
        UsageError: no run is there, or the folder cannot be written.
    """
    run = read_run(job.out, job.recipe)
    check, target = _blamed(job.result, run)
    level = LEVELS[check.id]
    samples = run.inputs.open("evaluation", run.signature) or run.inputs.open("calibration", run.signature)
    if samples is None:
        raise NothingToShowError("the recipe names no data to show the difference on", where=str(job.out))
    case = _Case(run, target, level, check, list(Few(samples, SAMPLES)))
    with TemporaryDirectory(prefix="edgeopt-") as scratch:
        found = case.smallest(Path(scratch))
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            for file in Path(scratch).iterdir():
                (job.folder / file.name).write_bytes(file.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror or error}", where=str(job.folder)) from error
    return found.text


def _blamed(result: GateResult, run: RunFolder) -> tuple[CheckResult, str]:
    """The first failed check of a level of parity that names a layer, and a target in which it can be shown."""
    failed = [check for check in result.checks if check.verdict == "fail"]
    naming = [check for check in failed if check.id in LEVELS and check.layer is not None]
    if not naming:
        raise NothingToShowError(
            "there is no layer to cut out" + (f": {result.headline}" if failed else ": nothing failed"),
            hint="A part of the model is shown where parity-lowering or parity-quantization fails and names a layer.",
        )
    can_be_cut = [name for name in run.artifacts if run.runnable(name).suffix in CAN_BE_CUT]
    for check in naming:
        if target := next((name for name in can_be_cut if check.target in (None, name)), None):
            return check, target
    raise NothingToShowError(
        f"a part of the target {naming[0].target or next(iter(run.artifacts))} cannot be run with numpy and a runtime "
        "alone",
        where=str(run.out),
        hint="Convert to onnx or tflite besides: a fault of quantization is in both.",
    )


class _Case:
    """One difference: the two models, the tensors at which both can be cut, and their values on the samples."""

    def __init__(
        self, run: RunFolder, target: str, level: Level, check: CheckResult, feeds: list[dict[str, Array]]
    ) -> None:
        self._run, self._target, self._level, self._check, self._feeds = run, target, level, check, feeds
        self._graph = run.own_graph(target)
        self._table = self._graph.quantization or Quantization()
        self._file = run.runnable(target)
        reference = to_qdq(self._graph, fold_weights=True, expose_integers=True)
        self._reference = _bytes(reference)
        names = [value.name or "" for value in reference.graph.outputs]
        self._tensors = [name.removesuffix(INTEGERS_SUFFIX) for name in names if name.endswith(INTEGERS_SUFFIX)]
        if not self._tensors and self._file.suffix == ".onnx":
            self._tensors = self._floats_of_both(reference)
            self._reference = exposed(reference, self._tensors)
        # Of the integer reference: integers of the table's tensors, ``NAME__q``, other tensors and outputs as they are.
        with Session(self._reference, optimize=False) as session:
            self._values = [session.run(feed) for feed in feeds]
        if level == "L1":
            scaled = self._on_other_scales()
            self._tensors = [name for name in self._tensors if name not in scaled]

    def _floats_of_both(self, reference: ir.Model) -> list[str]:
        """Tensors that an ONNX file without integers has under the names of the graph."""
        graph = onnx_format.load(self._file).graph
        known = {value.name for node in graph for value in node.outputs}
        ours = [value for node in reference.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        return [value.name or "" for value in ours if value.name in known]

    def _value(self, values: dict[str, Array], name: str) -> Array:
        """Its integers, or, of a tensor without a grid, its real values."""
        return values[name + INTEGERS_SUFFIX] if name in self._table.activations else values[name]

    def _on_other_scales(self) -> set[str]:
        """Tensors whose channels equalisation left on other scales than the float graph's: no place to compare.

        Told by most channels fitting best when scaled. A fault that scales all channels looks like it, too: then the
        part ends further behind.
        """
        made = {value.name or "" for node in self._graph.model.graph for value in node.outputs}
        names = [name for name in self._tensors if name in made]
        products: dict[str, Array] = {}
        with Session(exposed(self._graph.model, names)) as session:
            for feed, values in zip(self._feeds, self._values, strict=True):
                for name, right in session.run(feed, names).items():
                    rounded = _real(values[name + INTEGERS_SUFFIX], self._table.activations[name]).reshape(right.shape)
                    a, b = (np.moveaxis(x, min(1, x.ndim - 1), 0).astype(np.float64) for x in (right, rounded))
                    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
                    products[name] = products.get(name, 0) + np.stack([(a * a).sum(1), (a * b).sum(1)])
        found = set()
        for name, (own, both) in products.items():
            alive = (own > 0) & (both > 0)
            if alive.any() and float(np.median(np.abs(np.log2(both[alive] / own[alive])))) > SCALED:
                found.add(name)
        return found

    # --- which part

    def smallest(self, folder: Path) -> reproduce.Found:
        """The shortest part that shows it, written into ``folder``."""
        end = self._end()
        cut_at = [name for name in self._tensors if name != end]
        while True:
            used = self._write(folder, [*cut_at, *([end] if end in self._tensors else [])], end)
            found = reproduce.compare(folder)
            if found.differs:
                return found
            further = [name for name in cut_at if name not in used]
            if len(further) == len(cut_at) or not cut_at:
                raise NothingToShowError(
                    f"no part of the artifact that ends in '{end}' shows a difference on {len(self._feeds)} samples",
                    where=str(self._run.out),
                    hint="It needs the whole model, or samples that are not among these.",
                )
            cut_at = further

    def _end(self) -> str:
        """The first tensor, at or behind the blamed node, that both sides can be cut at; else the first output."""
        model = self._graph.model
        produced = set(self._cut(self._file, self._tensors)[0])
        behind: set[str] = set()
        for node in model.graph:
            reads = {value.name or "" for value in node.inputs if value is not None}
            if node.name == self._check.layer or reads & behind:
                behind |= {value.name or "" for value in node.outputs}
                for value in node.outputs:
                    if value.name in self._tensors and value.name in produced:
                        return value.name or ""
        return model.graph.outputs[0].name or ""

    # --- cutting

    def _cut(self, file: Path, names: Sequence[str]) -> tuple[dict[str, str], dict[str, str], bytes]:
        """Tensor → output, tensor → input, and the file."""
        cut: onnx_format.Cut | tflite_format.Cut
        if file.suffix == ".onnx":
            cut = onnx_format.cut(file, names)
        else:
            cut = tflite_format.cut(tflite_format.read(file), names)
        return dict(cut.produced), dict(cut.consumed), cut.data

    def _write(self, folder: Path, names: list[str], end: str) -> set[str]:
        """Both parts, their inputs and what is expected. Returns the tensors at which the artifact's part begins."""
        produced, consumed, data = self._cut(self._file, names)
        with open_file(self._file, self._run.artifacts[self._target]) as runner:
            ports = (runner.input_ports, runner.output_ports)
        output = produced.get(end) or ports[1][end].file_name
        part = onnx_part(data, output) if self._file.suffix == ".onnx" else _tflite_part(data, output)
        begins = {label: name for name, label in consumed.items()}
        starts = [begins[label] for label in part.inputs if label in begins]
        arrays = {}
        for label, (dtype, shape) in _types(part.data, self._file.suffix).items():
            if (name := begins.get(label)) is not None:
                arrays[label] = [self._as_file_has_it(name, values, dtype, shape) for values in self._values]
            else:
                name = next(name for name, port in ports[0].items() if port.file_name == label)
                arrays[label] = [ports[0][name].to_file(feed[name]) for feed in self._feeds]
        expected, their_arrays, settings = self._expected(folder, starts, end)
        name = f"artifact{self._file.suffix}"
        (folder / name).write_bytes(part.data)
        stored = {reproduce.OF_ARTIFACT + label: np.stack(found) for label, found in arrays.items()}
        stored |= {reproduce.OF_REFERENCE + label: np.stack(found) for label, found in their_arrays.items()}
        np.savez_compressed(folder / reproduce.INPUTS, **stored)  # type: ignore[arg-type]  # numpy's stub
        np.savez_compressed(folder / reproduce.EXPECTED, expected=expected)
        settings |= self._output(end, part) | {
            "level": self._level, "artifact": name, "tensor": end, "node": self._check.layer, "output": part.output,
            "optimize": self._run.artifacts[self._target].emulation is None, "target": self._target,
            "edgeopt": edgeopt.__version__, "finding": self._check.summary,
        }  # fmt: skip
        (folder / reproduce.SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (folder / "repro.py").write_bytes(Path(reproduce.__file__).read_bytes())
        (folder / "README.md").write_text(_readme(settings), encoding="utf-8")
        return set(starts)

    def _as_file_has_it(self, name: str, values: dict[str, Array], dtype: str, shape: tuple[int, ...]) -> Array:
        array = self._value(values, name)
        if name not in self._table.activations:
            array = array.astype(dtype)
        elif dtype == "float32":
            array = self._table.activations[name].dequantize(array).astype(np.float32)
        elif dtype == "uint8":
            array = (array.astype(np.int16) + 128).astype(np.uint8)
        layout = self._layout(name)
        return layout.to_file(array, shape) if layout is not None else array.reshape(shape)

    def _layout(self, name: str) -> tflite_format.Layout | None:
        if self._file.suffix != ".tflite":
            return None
        model = tflite_format.read(self._file)
        index = tflite_format.integers_of(model, name)
        label = name if index is None else model.tensors[index].name
        return tflite_format.layouts(model).get(label)

    def _output(self, end: str, part: _Part) -> dict[str, Any]:
        """How the output of the artifact's part becomes real numbers in the graph's layout."""
        layout = self._layout(end)
        dtype = _types(part.data, self._file.suffix, outputs=True)[part.output][0]
        params = self._table.activations.get(end)
        scale, zero_point = None, None
        if params is not None:
            scale, zero_point = float(params.scale), int(params.zero_point) + (128 if dtype == "uint8" else 0)
        return {
            "scale": scale,
            "zero_point": zero_point,
            "view": list(layout.view) if layout is not None else None,
            "perm": list(layout.perm) if layout is not None else None,
        }

    # --- what is expected

    def _expected(
        self, folder: Path, starts: list[str], end: str
    ) -> tuple[Array, dict[str, list[Array]], dict[str, Any]]:
        """Real outputs [n, …], inputs of the part that made them, and how both are compared."""
        return self._by_reference(folder, starts, end) if self._level == "L2" else self._by_float(folder, starts, end)

    def _by_reference(
        self, folder: Path, starts: list[str], end: str
    ) -> tuple[Array, dict[str, list[Array]], dict[str, Any]]:
        cut = onnx_format.cut(self._reference, [*starts, *([end] if end in self._tensors else [])])
        part = onnx_part(cut.data, cut.produced.get(end, end))
        (folder / reproduce.REFERENCE).write_bytes(part.data)
        begins = {label: name for name, label in cut.consumed.items()}
        inputs = {
            label: [self._value(values, begins[label]) for values in self._values]
            if label in begins
            else [feed[label] for feed in self._feeds]
            for label in part.inputs
        }
        made = _outputs(part, inputs)
        on_grid = bool(self._table.activations)
        params = self._table.activations.get(end) if end in self._tensors else None
        real = made if params is None else params.dequantize(made)
        half = self._run.artifacts[self._target].float_dtype == "float16" or "fp16" in self._table.schemes.values()
        rel = FP16_REL if half else FLOAT_REL
        return real, inputs, {
            "against": "the integer reference, on the same integers" if on_grid else "the float graph, on its values",
            "expected_output": part.output,
            "expected_scale": None if params is None else float(params.scale),
            "expected_zero_point": None if params is None else int(params.zero_point),
            "steps": None if params is None else WITHIN_ONE_STEP.value,
            "least_db": -20 * float(np.log10(rel.value)),
            "why": WITHIN_ONE_STEP.reason if params is not None else rel.reason,
        }  # fmt: skip

    def _by_float(
        self, folder: Path, starts: list[str], end: str
    ) -> tuple[Array, dict[str, list[Array]], dict[str, Any]]:
        model = self._graph.model
        made = {value.name for node in model.graph for value in node.outputs}
        cut = onnx_format.cut(_bytes(model), [name for name in starts if name in made] + ([end] if end in made else []))
        part = onnx_part(cut.data, cut.produced.get(end, end))
        (folder / reproduce.REFERENCE).write_bytes(part.data)
        begins = {label: name for name, label in cut.consumed.items()}
        inputs: dict[str, list[Array]] = {}
        for label in part.inputs:
            name = begins.get(label, label)
            on_grid = name in starts
            inputs[label] = [
                _real(values[name + INTEGERS_SUFFIX], self._table.activations[name]) if on_grid else feed[name]
                for values, feed in zip(self._values, self._feeds, strict=True)
            ]
        reach = _plainly_quantized_db(part, inputs)
        return _outputs(part, inputs), inputs, {
            "against": "the float graph, on inputs that lie on the artifact's own grids",
            "expected_output": part.output, "expected_scale": None, "expected_zero_point": None, "steps": None,
            "least_db": reach - JUMP_DB,
            "why": f"quantized by itself with min-max ranges of these very samples, this part has {reach:.1f} dB; less "
            f"than {JUMP_DB:g} dB below that is no fault",
        }  # fmt: skip


def _plainly_quantized_db(part: _Part, inputs: dict[str, list[Array]]) -> float:
    """What int8 must lose in this part: SQNR of its own min–max quantization."""
    model = ir.serde.deserialize_model(_proto(part.data))
    count = len(next(iter(inputs.values())))
    feeds = _Feeds([{name: found[index] for name, found in inputs.items()} for index in range(count)])
    plain = Quantize(
        use="quantize", scheme="int8", ranges="minmax", equalize="none", rounding="nearest", bias_correction=False,
        input_lattice=False, engine="edgeopt",
    )  # fmt: skip
    with TemporaryDirectory(prefix="edgeopt-") as scratch:
        context = Context(
            scratch=Path(scratch), calibration=feeds, constraints=all_constraints(), effort="fast", threads=1, seed=0
        )
        made = plain.run(QuantizedGraph(model), context)
    return check_quantization(made, feeds).sqnr_db


class _Feeds:
    """Samples that are in memory, for a pass."""

    labels = None
    where = "inputs of the part"

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._feeds = feeds

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Any:
        return iter(self._feeds)


def onnx_part(data: bytes, output: str) -> _Part:
    """What of an ONNX model makes one output."""
    model = ir.serde.deserialize_model(_proto(data))
    graph = model.graph
    kept = next(value for value in graph.outputs if value.name == output)
    graph.outputs.clear()
    graph.outputs.append(kept)
    RemoveUnusedNodesPass()(model)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    return _Part(_bytes(model), tuple(value.name or "" for value in graph.inputs), output)


def _tflite_part(data: bytes, output: str) -> _Part:
    """The same of a TFLite model."""
    model = tflite_format.read(data)
    index = model.signature_outputs[output]
    model.outputs, model.signature_outputs = [index], {output: index}
    needed, read = {index}, set[int]()
    for operator in reversed(model.operators):
        if needed.intersection(operator.outputs):
            needed.update(operator.inputs)
            read.update(operator.inputs)
    model.signature_inputs = {name: at for name, at in model.signature_inputs.items() if at in read}
    model.inputs = [at for at in model.inputs if at in model.signature_inputs.values()]
    tflite_format.drop_unused(model)
    return _Part(tflite_format.write(model), tuple(model.signature_inputs), output)


def _types(data: bytes, suffix: str, *, outputs: bool = False) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → dtype and shape of a part's inputs or outputs."""
    if suffix == ".tflite":
        model = tflite_format.read(data)
        signature = model.signature_outputs if outputs else model.signature_inputs
        return {name: (model.tensors[at].dtype, tuple(model.tensors[at].shape)) for name, at in signature.items()}
    graph = onnx_format.load(data).graph
    specs = map(onnx_format.spec, graph.outputs if outputs else graph.inputs)
    return {one.name: (one.dtype, one.shape) for one in specs}


def _outputs(part: _Part, inputs: dict[str, list[Array]]) -> Array:
    """[n, …]"""
    count = len(next(iter(inputs.values())))
    with Session(part.data, optimize=False) as session:
        return np.stack(
            [session.run({name: found[index] for name, found in inputs.items()})[part.output] for index in range(count)]
        )


def _real(integers: Array, params: QuantParams) -> Array:
    return params.dequantize(integers).astype(np.float32)


def _bytes(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def _proto(data: bytes) -> Any:
    import onnx

    return onnx.load_from_string(data)


def _readme(told: dict[str, Any]) -> str:
    runtime = "ai-edge-litert" if told["artifact"].endswith(".tflite") else "onnxruntime"
    return f"""# {told["level"]}: node {told["node"]}, tensor `{told["tensor"]}`

{told["finding"]}.

```sh
pip install numpy {runtime}
python repro.py     # ends with 1 while {told["artifact"]} differs from what is expected
```

| file | what |
|---|---|
| `{told["artifact"]}` | the part, cut out of the artifact of target {told["target"]} |
| `{reproduce.REFERENCE}` | the same part of {told["against"].partition(",")[0]} (onnxruntime runs it) |
| `{reproduce.INPUTS}` | real inputs of both, first axis samples, as the files take them |
| `{reproduce.EXPECTED}` | what should come out, as real numbers in the graph's layout |
| `{reproduce.SETTINGS}` | names, grids and the limit: {told["why"]} |

Written by edgeopt {told["edgeopt"]}.
"""
