"""Shows a difference: runs a part of a model beside what it should give. Copied into the folder as ``repro.py``.

Needs numpy and the artifact's own runtime: onnxruntime, ai-edge-litert, or for a Core ML program coremltools. Ends with
1 while they differ, with 0 once they no longer do, so that it can be bisected with.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SETTINGS, INPUTS, EXPECTED, REFERENCE = "repro.json", "inputs.npz", "expected.npz", "expected.onnx"
OF_ARTIFACT, OF_REFERENCE = "artifact/", "expected/"
"""What inputs belong to, in the names of ``inputs.npz``."""


@dataclass(frozen=True)
class Found:
    """What came out: ``sqnr_db`` of the artifact's part against what it should give, and in words."""

    differs: bool
    sqnr_db: float
    text: str


def compare(folder: Path) -> Found:
    """Run the artifact's part on the stored inputs. ValueError where its runtime refuses it."""
    told = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    with np.load(folder / INPUTS) as stored:
        inputs = dict(stored)
    with np.load(folder / EXPECTED) as stored:
        expected = stored["expected"].astype(np.float64)
    made = np.stack([_real(found, told) for found in _run(folder / told["artifact"], inputs, OF_ARTIFACT, told)])
    made = made.reshape(expected.shape)
    noise, signal = float(np.square(made - expected).sum()), float(np.square(expected).sum())
    decibel = 200.0 if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise)) if np.isfinite(noise) else -200
    lines = [
        f"{told['finding']}",
        f"{told['level']}: {told['artifact']} computes '{told['tensor']}' (node {told['node']}) on {len(made)} samples",
        f"  against {told['against']}: {decibel:.1f} dB, largest difference {np.abs(made - expected).max():.6g}",
    ]
    if told["steps"] is not None:
        apart = np.abs(made - expected) / told["scale"]
        share = float((apart < 1.5).mean())
        differs = not share >= told["steps"]
        lines.append(f"  {share:.3%} of the values within one step of the grid, at least {told['steps']:.1%} should be")
    else:
        differs = not decibel >= told["least_db"]
        lines.append(f"  at least {told['least_db']:.1f} dB should be: {told['why']}")
    worst = np.unravel_index(int(np.nan_to_num(np.abs(made - expected), nan=np.inf).argmax()), made.shape)
    place = ", ".join(str(int(index)) for index in worst)
    lines.append(f"  worst at [{place}]: {made[worst]:.6g} instead of {expected[worst]:.6g}")
    again = _again(folder, inputs, expected, told)
    lines += [again, "DIFFERS" if differs else "no difference"]
    return Found(differs, decibel, "\n".join(lines) + "\n")


def _again(folder: Path, inputs: dict[str, Array], expected: Array, told: dict[str, Any]) -> str:
    """Whether the stored expectation is what its model gives here, in words."""
    try:
        outputs = _run(folder / REFERENCE, inputs, OF_REFERENCE, {"output": told["expected_output"], "optimize": False})
    except ImportError:
        return f"  ({REFERENCE} was not run: onnxruntime is not installed)"
    found = np.stack(outputs).reshape(expected.shape).astype(np.float64)
    if told["expected_scale"] is not None:
        found = (found - told["expected_zero_point"]) * told["expected_scale"]
    apart = float(np.abs(found - expected).max())
    return f"  {REFERENCE} run here differs from {EXPECTED} by {apart:.3g} at most"


def _run(model: Path, inputs: dict[str, Array], prefix: str, told: dict[str, Any]) -> list[Array]:
    """One output of every sample."""
    feeds = {name[len(prefix) :]: array for name, array in inputs.items() if name.startswith(prefix)}
    count = len(next(iter(feeds.values())))
    if model.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(model), num_threads=1)
        runner = interpreter.get_signature_runner()
        return [
            np.array(runner(**{name: array[index] for name, array in feeds.items()})[told["output"]])
            for index in range(count)
        ]
    if model.suffix == ".mlpackage":
        if "edgeopt" not in sys.modules:  # what runs it lies beside it, under the name that it has there
            sys.path.insert(0, str(model.parent))
        from edgeopt.runtimes.mil_reference import Session

        with Session(model) as session:
            return [
                session.run({name: array[index] for name, array in feeds.items()}, [told["output"]])[told["output"]]
                for index in range(count)
            ]
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if not told["optimize"]:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return [
        session.run([told["output"]], {name: array[index] for name, array in feeds.items()})[0]
        for index in range(count)
    ]


def _real(array: Array, told: dict[str, Any]) -> Array:
    """The artifact's output as real numbers, in the layout of the graph."""
    values = array.astype(np.float64)
    if array.dtype.kind in "iu" and told["scale"] is not None:
        values = (values - told["zero_point"]) * told["scale"]
    if told["perm"] is not None:
        stored = [told["view"][axis] for axis in told["perm"]]
        values = values.reshape(stored).transpose(np.argsort(told["perm"]))
    return values


def main() -> int:
    found = compare(Path(__file__).resolve().parent)
    sys.stdout.write(found.text)
    return int(found.differs)


if __name__ == "__main__":
    sys.exit(main())
