"""Core ML packages of the seven seeded nets beside coremltools' own PyTorch route: `python -m benchmarks.coreml`.

Both start from one exported PyTorch program and write fp16 packages. Both packages run on the MIL reference, so the
comparison is of what was written, not of any device's arithmetic. Random weights: dB compare ways of lowering only.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import place, scoring, tables

NETS = ["mobilenet_v2", "mobilenet_v3_small", "resnet18", "efficientnet_b0", "deit_tiny", "yolo", "unet"]
IMAGES = 8
INPUT = "image"


def seeded() -> Any:
    """nets.py as a module."""
    spec = importlib.util.spec_from_file_location("nets", place.seeded_nets())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(exported: Path, folder: Path, precision: str) -> tuple[Path, dict[str, float]]:
    """edgeopt's package, and the seconds of its steps: import (PyTorch's export to ONNX in it), and writing."""
    from edgeopt.frontends.torch import load_exported
    from edgeopt.graph.quantization import QuantizedGraph
    from edgeopt.passes.base import Context
    from edgeopt.passes.canonical import canonicalise
    from edgeopt.targets.coreml import CoremlTarget

    began = time.perf_counter()
    model = load_exported(exported, trust=True).model
    graph = canonicalise(QuantizedGraph(model), Context(scratch=folder, threads=1))
    imported = time.perf_counter() - began
    began = time.perf_counter()
    artifact = CoremlTarget(precision=precision).lower(graph, folder)
    return folder / artifact.path, {"import": imported, "write": time.perf_counter() - began}


def theirs(exported: Path, folder: Path) -> tuple[Path, dict[str, float]]:
    """coremltools' package, with its defaults but for the deployment target, which is ours."""
    import coremltools as ct
    import torch

    program = torch.export.load(exported)
    began = time.perf_counter()
    model = ct.convert(program.run_decompositions({}), minimum_deployment_target=ct.target.iOS15, skip_model_load=True)
    path = folder / "peer.mlpackage"
    model.save(str(path))
    return path, {"write": time.perf_counter() - began}


def outputs(path: Path, images: np.ndarray, *, rounding: bool = True) -> tuple[np.ndarray, int]:
    """The first output for every image, and how many values were not finite."""
    from edgeopt.runtimes import mil_reference

    with mil_reference.Session(path, rounding=rounding) as session:
        name, first = next(iter(session.inputs)), next(iter(session.outputs))
        made = np.concatenate([session.run({name: image[None]})[first] for image in images])
        return made.astype(np.float32), sum(session.non_finite.values())


def measure(nets: Any, name: str) -> dict[str, Any]:
    import torch

    from edgeopt import digest

    model, size = nets.build(name)
    images = nets.smooth_images(IMAGES, size, seed=7)
    with torch.no_grad():
        reference = np.concatenate([model(image[None]).numpy() for image in images])
    record: dict[str, Any] = {"net": name}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exported = folder / "net.pt2"
        torch.export.save(torch.export.export(model, (torch.zeros(1, 3, size, size),)), exported)
        for label, make in (
            ("ours", lambda out: ours(exported, out, "fp16")),
            ("ours fp32", lambda out: ours(exported, out, "fp32")),
            ("peer", lambda out: theirs(exported, out)),
        ):
            (folder / label).mkdir()
            path, seconds = make(folder / label)
            made, broken = outputs(path, images.numpy())
            record[label] = {
                "seconds": seconds,
                "bytes": digest.size_bytes(path),
                "sqnr_db": scoring.sqnr_db(reference, made.reshape(reference.shape)),
                "non_finite": broken,
            }
    return record


def markdown(records: list[dict[str, Any]], command: str) -> str:
    rows = []
    for record in records:
        own, peer = record["ours"], record["peer"]
        rows.append(
            [
                record["net"],
                f"{own['seconds']['import']:.1f} + {own['seconds']['write']:.1f}",
                f"{peer['seconds']['write']:.1f}",
                f"{own['bytes']:,}",
                f"{peer['bytes']:,}",
                f"{own['sqnr_db']:.1f}",
                f"{peer['sqnr_db']:.1f}",
                f"{record['ours fp32']['sqnr_db']:.1f}",
                f"{own['non_finite']}, {peer['non_finite']}",
            ]
        )
    return "\n\n".join(
        [
            tables.conditions(command, ["coremltools", "torch", "onnx", "numpy"]),
            f"Seconds from the exported program to the package. SQNR of {IMAGES} images against PyTorch, emulated: MIL "
            "reference semantics.",
            tables.table(
                [
                    *("net", "s, ours: import + write", "s, coremltools", "bytes, ours", "bytes, coremltools"),
                    *("dB fp16, ours", "dB fp16, coremltools", "dB fp32, ours", "non-finite: ours, coremltools"),
                ],
                rows,
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", choices=NETS, help="by default all seven")
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    nets, names, records = seeded(), arguments.net or NETS, []
    for name in names:
        print(f"coreml: {name}", file=sys.stderr, flush=True)
        records.append(measure(nets, name))
        body = markdown(records, "python -m benchmarks.coreml")
        # After every net, so that what was measured stands even if a later one takes too long.
        tables.publish("coreml", body, records, write=arguments.write, show=name == names[-1])


if __name__ == "__main__":
    try:
        main()
    except (place.CannotRunError, ImportError) as reason:
        print(f"skipped: {reason}")
        sys.exit(place.SKIPPED)
