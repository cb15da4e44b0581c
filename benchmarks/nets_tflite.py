"""TFLite files of the seven seeded nets beside litert-torch + ai-edge-quantizer's: `python -m benchmarks.nets_tflite`.

Random weights: dB compare ways of lowering, nothing else. Times are medians, one thread, all four files of a net
interleaved in one process. SQNR over 64 images against PyTorch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import convert, peer_environment, place, scoring, tables

FASTER = 20.0  # conversion, times
MOST_BYTES, MOST_MS = 1.02, 1.05  # over the peers' file
MOST_TO_FLOAT = {"mobilenet_v3_small": 0.65, "deit_tiny": 0.5}  # our int8 over our float; below 1 for every other net
ONE_PARTITION = ("mobilenet_v3_small", "deit_tiny")
LEAST_DB = {"deit_tiny": 20.0}
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


def conversion_seconds(source: Path, run: convert.Conversion) -> dict[str, float]:
    """Seconds from the ONNX file to the canonical graph, and from graph and table to the written file; best of three.

    In this process, which has imported everything: so are the peers' seconds. The graph and table are those of `run`.
    """
    from edgeopt.frontends.onnx import load_onnx
    from edgeopt.graph.quantization import QuantizedGraph
    from edgeopt.passes.base import Context
    from edgeopt.passes.canonical import canonicalise
    from edgeopt.pipeline.jobs import load_graph
    from edgeopt.targets.tflite.target import TfliteTarget

    graph = load_graph(next((run.out / ".edgeopt" / "steps").glob("passes-*")))
    spent: dict[str, list[float]] = {"import": [], "write": []}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            canonicalise(QuantizedGraph(load_onnx(source, {}).model), Context(scratch=Path(folder), threads=1))
            spent["import"].append(time.perf_counter() - began)
            began = time.perf_counter()
            TfliteTarget().lower(graph, Path(folder))
            spent["write"].append(time.perf_counter() - began)
    return {step: min(times) for step, times in spent.items()}


def call(path: Path, image: np.ndarray) -> Any:
    """The interpreter alone, its input prepared and set before: what a file costs to run."""
    runner = scoring.TFLiteRunner(path)
    runner(image)
    return runner.interpreter.invoke


def measure(name: str, peers: Path, rounds: int) -> dict[str, Any]:
    with np.load(peers / f"{name}_images.npz") as arrays:
        images, calibration_images = arrays["evaluation"], arrays["calibration"]
    reference = np.load(peers / f"{name}_reference.npy")
    kept = json.loads((peers / f"{name}.json").read_text())
    files = {
        "peer float": peers / f"{name}_float.tflite",
        "peer int8": peers / f"{name}_int8.tflite",
        "peer int8 min-max": peers / f"{name}_int8_minmax.tflite",
    }
    record: dict[str, Any] = {
        "net": name,
        "peer_seconds": kept["seconds"],
        "peer_versions": kept["versions"],
        "ours": {},
    }
    source = peers / f"{name}.onnx"
    calibration = convert.calibration_file(name, convert.input_name(source), calibration_images)
    for label, scheme in (("ours float", "fp32"), ("ours int8", "int8")):
        out = place.work() / "edgeopt" / f"{name}-{scheme}"
        options = ["--target", "tflite", "--scheme", scheme, "--calibration", str(calibration)]
        try:
            run = convert.convert(source, out, *options)
        except convert.ConvertError as error:
            record["ours"][label] = {"error": str(error)}
            continue
        record["ours"][label] = {**run.cost, "seconds": conversion_seconds(source, run)}
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


def peer_seconds(record: dict[str, Any], label: str) -> float:
    spent = record["peer_seconds"]
    return spent["convert"] + (spent["quantize_int8"] if label == "ours int8" else 0)


def failures(record: dict[str, Any]) -> list[str]:
    """What falls short of what was asked, in words; empty where nothing does."""
    name, files, said = record["net"], record["files"], []
    for label in ("ours float", "ours int8"):
        problem = record["ours"][label].get("error") or files.get(label, {}).get("error")
        if problem:
            said.append(f"{label}: no file that runs ({problem})")
    if said:
        return said
    ours, theirs = files["ours int8"], files["peer int8"]
    for label in ("ours float", "ours int8"):
        times = peer_seconds(record, label) / sum(record["ours"][label]["seconds"].values())
        if times < FASTER:
            said.append(f"conversion to {label.split()[1]} {times:.0f}× faster, asked for {FASTER:.0f}×")
    for label, peer in (("ours float", "peer float"), ("ours int8", "peer int8")):
        ratio = files[label]["bytes"] / files[peer]["bytes"]
        if ratio > MOST_BYTES:
            said.append(f"{label} file {ratio:.3f}× the peers' size")
    for key, label in (("int8_to_peer", "int8"), ("float_to_peer", "float")):
        if record[key][0] > MOST_MS:
            said.append(f"{label} {record[key][0]:.2f}× the peers' latency")
    most, ratio = MOST_TO_FLOAT.get(name, 1.0), record["int8_to_float"][0]
    if ratio > most or ratio >= 1:
        said.append(f"int8 {ratio:.2f}× our float's latency, asked for {'below' if most == 1 else 'at most'} {most}×")
    if name in ONE_PARTITION and ours["partitions"] != 1:
        said.append(f"{ours['partitions']} partitions instead of one")
    if ours["sqnr_db"] < LEAST_DB.get(name, -np.inf):
        said.append(f"{ours['sqnr_db']:.1f} dB, asked for {LEAST_DB[name]:.0f}")
    if theirs.get("sqnr_db") is not None and ours["sqnr_db"] < theirs["sqnr_db"]:
        said.append(f"{ours['sqnr_db']:.1f} dB below the peers' {theirs['sqnr_db']:.1f}")
    return said


def markdown(records: list[dict[str, Any]], command: str) -> str:
    seconds, sizes, speeds, qualities = [], [], [], []

    def cell(record: dict[str, Any], label: str, key: str, digits: int | None = None) -> str:
        value = record["files"].get(label, {}).get(key)
        if value is None:
            return "–"
        return f"{value:,}" if digits is None else f"{value:.{digits}f}"

    def ratio(record: dict[str, Any], key: str) -> str:
        found = record.get(key)
        return "–" if found is None else f"{found[0]:.2f} ({found[1]:.2f}–{found[2]:.2f})"

    for record in records:
        name, spent = record["net"], record["peer_seconds"]
        row = [name, f"{spent['convert']:.1f}", f"{spent['quantize_int8']:.1f}"]
        for label in ("ours float", "ours int8"):
            ours = record["ours"][label].get("seconds")
            row.append("–" if ours is None else f"{ours['import']:.2f} + {ours['write']:.2f}")
            row.append("–" if ours is None else f"{peer_seconds(record, label) / sum(ours.values()):.0f}")
        row += [tables.number(record["ours"][label].get("wall_s"), 1) for label in ("ours float", "ours int8")]
        seconds.append([*row, tables.number(spent["onnx_export"], 1)])
        sizes.append(
            [name, *(cell(record, f"{who} {kind}", "bytes") for kind in ("float", "int8") for who in ("peer", "ours"))]
        )
        speeds.append(
            [name]
            + [cell(record, f"{who} {kind}", "ms", 2) for kind in ("float", "int8") for who in ("peer", "ours")]
            + [ratio(record, key) for key in ("float_to_peer", "int8_to_peer", "int8_to_float")]
        )
        qualities.append(
            [name]
            + [cell(record, label, "sqnr_db", 1) for label in ("peer int8", "peer int8 min-max", "ours int8")]
            + [cell(record, f"{who} int8", key) for key in ("partitions", "transposes") for who in ("peer", "ours")]
            + [cell(record, f"{who} float", "transposes") for who in ("peer", "ours")]
        )
    versions = {k: v for k, v in records[0]["peer_versions"].items() if k not in ("numpy", "ai-edge-litert")}
    short = [f"- **{record['net']}**: {'; '.join(failures(record))}." for record in records if failures(record)]
    missed = "Everything that was asked for is met." if not short else "Not met:\n\n" + "\n".join(short)
    return "\n\n".join(
        [
            tables.conditions(command, ["ai-edge-litert", "onnx", "numpy"], versions),
            "Seconds, in running processes that have imported everything. Peers: `litert_torch.convert`, then "
            "ai-edge-quantizer, calibration included. Ours: from the ONNX file to the canonical graph, and from graph "
            "and table to the written file; choosing the scales is not in it. All of it is `whole convert`: start, "
            "import, calibration on 32 images, quantization, writing, parity, latency. PyTorch's export to ONNX comes "
            "before ours and is in the last column.",
            tables.table(
                [
                    *("net", "peers: convert", "peers: quantize", "ours, float: import + write", "× faster"),
                    *("ours, int8: import + write", "× faster", "whole convert, float", "whole convert, int8"),
                    "ONNX export",
                ],
                seconds,
            ),
            "Bytes.",
            tables.table(["net", "float, peers", "float, ours", "int8, peers", "int8, ours"], sizes),
            "Median milliseconds, one thread, and ratios with 95 % interval.",
            tables.table(
                [
                    "net",
                    "float, peers",
                    "float, ours",
                    "int8, peers",
                    "int8, ours",
                    "float: ours/peers",
                    "int8: ours/peers",
                    "ours: int8/float",
                ],
                speeds,
            ),
            "SQNR in dB (seeded weights: it compares ways of lowering, nothing else), delegate partitions, TRANSPOSE "
            "operators left.",
            tables.table(
                [
                    "net",
                    "dB, peers",
                    "dB, peers, true min-max",
                    "dB, ours",
                    "partitions int8, peers",
                    "ours",
                    "TRANSPOSE int8, peers",
                    "ours",
                    "TRANSPOSE float, peers",
                    "ours",
                ],
                qualities,
            ),
            missed,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", choices=NETS, help="by default all seven")
    parser.add_argument("--rounds", type=int, default=30, help="timed turns of each file (default 30)")
    parser.add_argument(
        "--make-environment", action="store_true", help="make the peers' environment where absent (3 GB)"
    )
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    arguments = parser.parse_args()
    names = arguments.net or NETS
    folder = peer_artifacts(names, make_environment=arguments.make_environment)
    records = []
    for name in names:
        if not (folder / f"{name}.json").exists():
            print(f"nets_tflite: {name} left out, the peers made no file of it", file=sys.stderr)
            continue
        print(f"nets_tflite: {name}", file=sys.stderr, flush=True)
        records.append(measure(name, folder, arguments.rounds))
        print("   ", records[-1], file=sys.stderr)
        body = markdown(records, "python -m benchmarks.nets_tflite")
        # After every net, so that what was measured stands even if a later one takes too long.
        tables.publish("nets_tflite", body, records, write=arguments.write, show=name == names[-1])
    if not records:
        raise place.CannotRunError("the LiteRT peers made no file of any net")


if __name__ == "__main__":
    place.run(main)
