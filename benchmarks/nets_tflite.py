"""TFLite files of the seven seeded nets beside those of litert-torch + ai-edge-quantizer: `python -m benchmarks.nets_tflite`.

Random weights: dB compare ways of lowering, nothing else. Times are medians, one thread, all four files of a net interleaved
in one process.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import convert, peer_environment, place, scoring, tables

NETS = ["mobilenet_v2", "mobilenet_v3_small", "resnet18", "efficientnet_b0", "deit_tiny", "yolo", "unet"]


def peer_artifacts(names: list[str], *, make_environment: bool) -> Path:
    """The folder with the peers' files, made now where they are absent."""
    folder = place.work() / "litert"
    missing = [n for n in names if not (folder / f"{n}.json").exists()]
    if missing:
        environment = place.work() / "peer-environment"
        if not (environment / "complete").exists() and not make_environment:
            raise place.CannotRunError(
                f"no files of the LiteRT peers in {folder} for {', '.join(missing)}: make their environment first with "
                "`python -m benchmarks.peer_environment` (3 GB), or say --make-environment"
            )
        python = peer_environment.make(environment)
        script = Path(__file__).with_name("peer_litert.py")
        subprocess.run(
            [str(python), str(script), str(place.seeded_nets()), str(folder), *missing], stdout=sys.stderr, check=False
        )
    return folder


def properties(path: Path, images: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Size, partitions, transposes left and SQNR of one file."""
    runner = scoring.TFLiteRunner(path, reference.shape[1] if reference.ndim == 4 else None)
    operators = Counter(runner.operators())
    return {
        "bytes": path.stat().st_size,
        "partitions": runner.partitions(),
        "transposes": operators["TRANSPOSE"],
        "sqnr_db": scoring.sqnr_db(reference, scoring.outputs(runner, images)),
    }


def call(path: Path, image: np.ndarray) -> Any:
    """The interpreter alone, its input prepared and set before: what a file costs to run."""
    runner = scoring.TFLiteRunner(path)
    runner.invoke(runner.prepared(image))
    return runner.interpreter.invoke


def measure(name: str, peers: Path, rounds: int) -> dict[str, Any]:
    with np.load(peers / f"{name}_images.npz") as arrays:
        images = arrays["evaluation"]
    reference = np.load(peers / f"{name}_reference.npy")
    kept = json.loads((peers / f"{name}.json").read_text())
    files = {
        "peer float": peers / f"{name}_float.tflite",
        "peer int8": peers / f"{name}_int8.tflite",
        "peer int8 min-max": peers / f"{name}_int8_minmax.tflite",
    }
    record: dict[str, Any] = {"net": name, "peer_seconds": kept["seconds"], "peer_versions": kept["versions"]}
    record["ours"] = {}
    for label, scheme in (("ours float", "fp32"), ("ours int8", "int8")):
        out = place.work() / "edgeopt" / f"{name}-{scheme}"
        try:
            run = convert.convert(
                peers / f"{name}.onnx", out, targets="tflite", scheme=scheme, calibration=peers / f"{name}_images.npz"
            )
        except convert.ConvertError as error:
            record["ours"][label] = {"error": str(error)}
            continue
        record["ours"][label] = {"cost": run.cost, "target_seconds": run.target("tflite").get("seconds")}
        files[label] = run.path("tflite")
    record["files"] = {}
    for label, path in list(files.items()):
        try:
            record["files"][label] = properties(path, images, reference)
        except (RuntimeError, ValueError) as error:  # a file that LiteRT refuses
            record["files"][label] = {"error": str(error)[:200]}
            del files[label]
    # The minimum-maximum file has the graph of the other one.
    timed = {label: call(path, images[:1]) for label, path in files.items() if label != "peer int8 min-max"}
    spent = scoring.interleaved_ms(timed, rounds=rounds)
    for label, times in spent.items():
        record["files"][label]["ms"] = float(np.median(times))
    for key, a, b in (
        ("int8_to_peer", "ours int8", "peer int8"),
        ("float_to_peer", "ours float", "peer float"),
        ("int8_to_float", "ours int8", "ours float"),
    ):
        if a in spent and b in spent:
            record[key] = scoring.paired_ratio(spent[a], spent[b])
    return record
