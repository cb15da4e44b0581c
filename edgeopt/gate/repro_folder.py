"""The folder of a reproduction: both parts, their inputs, what should come out, and a script that compares them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import edgeopt
from edgeopt.gate import repro_part, repro_program
from edgeopt.gate.repro_part import Arrays
from edgeopt.gate.repro_program import ProgramPart
from edgeopt.gate.repro_subject import Subject, real
from edgeopt.graph.model import serialise
from edgeopt.graph.qdq import INTEGERS_SUFFIX
from edgeopt.parity.localize import JUMP_DB
from edgeopt.parity.tolerances import FLOAT_REL, FP16_REL, WITHIN_ONE_STEP
from edgeopt.runtimes import reproduce

Array = npt.NDArray[Any]

ARTIFACT = "artifact"
RUNTIMES = {".onnx": "onnxruntime", ".tflite": "ai-edge-litert", ".mlpackage": "coremltools onnxruntime"}
"""What runs the part, by its suffix, and, for a Core ML program, what was expected: the rest lies in the folder."""


def write(subject: Subject, folder: Path, names: list[str], end: str) -> set[str]:
    """Write the part that ends in ``end`` and is cut at ``names``. Returns the tensors at which it begins."""
    part = _program(subject, folder, names, end) if subject.package is not None else _cut(subject, folder, names, end)
    arrays: Arrays = {}
    for label, (dtype, shape) in part.inputs.items():
        if (name := part.begins.get(label)) is not None:
            arrays[label] = [subject.as_file_has_it(name, values, dtype, shape) for values in subject.values]
        else:
            name = next(name for name, port in subject.inputs.items() if port.file_name == label)
            arrays[label] = [subject.inputs[name].to_file(feed[name]) for feed in subject.feeds]
    starts = list(part.begins.values())
    made_by = _by_float if subject.level == "L1" else _by_reference
    expected, their_arrays, settings = made_by(subject, folder, starts, end)
    stored = {reproduce.OF_ARTIFACT + label: np.stack(found) for label, found in arrays.items()}
    stored |= {reproduce.OF_REFERENCE + label: np.stack(found) for label, found in their_arrays.items()}
    np.savez_compressed(folder / reproduce.INPUTS, **stored)  # type: ignore[arg-type]  # numpy's stub
    np.savez_compressed(folder / reproduce.EXPECTED, expected=expected)
    settings |= _output(subject, end, part.output[1]) | {
        "level": subject.level, "artifact": f"{ARTIFACT}{subject.suffix}", "tensor": end, "node": subject.check.layer,
        "output": part.output[0],
        "optimize": subject.optimize, "target": subject.target, "edgeopt": edgeopt.__version__,
        "finding": subject.check.summary,
    }  # fmt: skip
    (folder / reproduce.SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (folder / "repro.py").write_bytes(Path(reproduce.__file__).read_bytes())
    (folder / "README.md").write_text(_readme(settings), encoding="utf-8")
    return set(starts)


def _cut(subject: Subject, folder: Path, names: list[str], end: str) -> ProgramPart:
    cut = repro_part.cut(subject.data, subject.suffix, names)
    part = repro_part.part_of(cut.data, subject.suffix, cut.produced.get(end) or subject.outputs[end].file_name)
    (folder / f"{ARTIFACT}{subject.suffix}").write_bytes(part.data)
    begins = {label: name for name, label in cut.consumed.items()}
    dtype = repro_part.types(part.data, subject.suffix, outputs=True)[part.output][0]
    inputs = repro_part.types(part.data, subject.suffix)
    return ProgramPart(inputs, (part.output, dtype), {name: begins[name] for name in part.inputs if name in begins})


def _program(subject: Subject, folder: Path, names: list[str], end: str) -> ProgramPart:
    assert subject.package is not None
    repro_program.hand_over(subject.package, folder)
    output = repro_program.variables(subject.package, [end]).get(end) or subject.outputs[end].file_name
    return repro_program.part_of(subject.package, names, output)


def _output(subject: Subject, end: str, dtype: str) -> dict[str, Any]:
    """How the output of the artifact's part becomes real numbers in the graph's layout."""
    layout = subject.layout(end)
    params = subject.table.activations.get(end)
    scale, zero_point = None, None
    if params is not None:
        scale, zero_point = float(params.scale), int(params.zero_point) + (128 if dtype == "uint8" else 0)
    return {
        "scale": scale,
        "zero_point": zero_point,
        "view": list(layout.view) if layout is not None else None,
        "perm": list(layout.perm) if layout is not None else None,
    }


def _by_reference(subject: Subject, folder: Path, starts: list[str], end: str) -> tuple[Array, Arrays, dict[str, Any]]:
    """Real outputs [n, …], inputs of the part that made them, and how both are compared: with the reference's part."""
    cut = repro_part.cut(subject.reference, ".onnx", [*starts, *([end] if end in subject.tensors else [])])
    part = repro_part.part_of(cut.data, ".onnx", cut.produced.get(end, end))
    (folder / reproduce.REFERENCE).write_bytes(part.data)
    begins = {label: name for name, label in cut.consumed.items()}
    inputs = {
        label: [subject.value(values, begins[label]) for values in subject.values]
        if label in begins
        else [feed[label] for feed in subject.feeds]
        for label in part.inputs
    }
    made = repro_part.outputs_of(part, inputs)
    params = subject.table.activations.get(end) if end in subject.tensors else None
    against = "the integer reference, on the same integers"
    if subject.level == "L0":
        against = "the model before, on its own values"
    elif not subject.table.activations:
        against = "the float graph, on its values"
    limit, why = _tolerance(subject)
    return made if params is None else params.dequantize(made), inputs, {
        "against": against,
        "expected_output": part.output,
        "expected_scale": None if params is None else float(params.scale),
        "expected_zero_point": None if params is None else int(params.zero_point),
        "steps": None if params is None else WITHIN_ONE_STEP.value,
        "least_db": -20 * math.log10(limit),
        "why": WITHIN_ONE_STEP.reason if params is not None else why,
    }  # fmt: skip


def _tolerance(subject: Subject) -> tuple[float, str]:
    """Largest relative error of a float output, and the reason."""
    asked = subject.check.figures.get("tolerance")
    if subject.level == "L0" and isinstance(asked, (int, float)) and asked > 0:
        return float(asked), "what the gate derived from the noise floor of the float model"
    limit = FP16_REL if subject.half else FLOAT_REL
    return limit.value, limit.reason


def _by_float(subject: Subject, folder: Path, starts: list[str], end: str) -> tuple[Array, Arrays, dict[str, Any]]:
    """The same of the float graph, on values that lie on the artifact's grids."""
    made = {value.name for node in subject.graph.graph for value in node.outputs}
    names = [name for name in starts if name in made] + ([end] if end in made else [])
    cut = repro_part.cut(serialise(subject.graph), ".onnx", names)
    part = repro_part.part_of(cut.data, ".onnx", cut.produced.get(end, end))
    (folder / reproduce.REFERENCE).write_bytes(part.data)
    begins = {label: name for name, label in cut.consumed.items()}
    inputs: Arrays = {}
    for label in part.inputs:
        name = begins.get(label, label)
        on_grid = name in starts
        inputs[label] = [
            real(values[name + INTEGERS_SUFFIX], subject.table.activations[name]) if on_grid else feed[name]
            for values, feed in zip(subject.values, subject.feeds, strict=True)
        ]
    reach = repro_part.plainly_quantized_db(part, inputs)
    return repro_part.outputs_of(part, inputs), inputs, {
        "against": "the float graph, on inputs that lie on the artifact's own grids",
        "expected_output": part.output, "expected_scale": None, "expected_zero_point": None, "steps": None,
        "least_db": reach - JUMP_DB,
        "why": f"quantized by itself with min-max ranges of these very samples, this part has {reach:.1f} dB; less "
        f"than {JUMP_DB:g} dB below that is no fault",
    }  # fmt: skip


def _readme(told: dict[str, Any]) -> str:
    runtime = RUNTIMES[Path(told["artifact"]).suffix]
    what = "the imported graph" if told["level"] == "L0" else f"the artifact of target {told['target']}"
    how = f"cut out of {what}"
    if told["artifact"].endswith(".mlpackage"):
        how = f"in {what}: fed where the part begins, asked for `{told['output']}`; `edgeopt/` is what runs it"
    return f"""# {told["level"]}: node {told["node"]}, tensor `{told["tensor"]}`

{told["finding"]}.

```sh
pip install numpy {runtime}
python repro.py     # ends with 1 while {told["artifact"]} differs from what is expected
```

| file | what |
|---|---|
| `{told["artifact"]}` | the part, {how} |
| `{reproduce.REFERENCE}` | the same part of {told["against"].partition(",")[0]} (onnxruntime runs it) |
| `{reproduce.INPUTS}` | real inputs of both, first axis samples, as the files take them |
| `{reproduce.EXPECTED}` | what should come out, as real numbers in the graph's layout |
| `{reproduce.SETTINGS}` | names, grids and the limit: {told["why"]} |

Written by edgeopt {told["edgeopt"]}.
"""
