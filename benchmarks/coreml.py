"""Core ML packages of the seven seeded nets beside coremltools' own PyTorch route: `python -m benchmarks.coreml`.

Both start from one exported PyTorch program (.pt2) and write an fp16 package, each in a fresh process of its own that
imports what it needs, loads the program, converts and writes; nothing is compared in it. Seconds are of the whole
process and all that it starts: processor time, which other work on the machine changes little, and wall clock. Both
packages then run on the MIL reference, so the comparison is of what was written, not of any device's arithmetic. Random
weights: dB compare ways of lowering only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import nets, place, scoring, tables

IMAGES = 8
SIDES = ("ours", "coremltools")
RUNS = 1
"""Of each side, by turns; the lower counts, as what else runs on the machine only ever adds."""


def ours(exported: Path, folder: Path) -> dict[str, float]:
    """edgeopt's package, and the processor seconds of what is its own: canonical graph and writing."""
    from edgeopt.frontends.torch import load_exported
    from edgeopt.graph.quantization import QuantizedGraph
    from edgeopt.passes.base import Context
    from edgeopt.passes.canonical import canonicalise
    from edgeopt.targets.coreml import CoremlTarget

    model = load_exported(exported, trust=True).model
    began = time.process_time()
    graph = canonicalise(QuantizedGraph(model), Context(scratch=folder, threads=1))
    CoremlTarget(precision="fp16").lower(graph, folder)
    return {"own": time.process_time() - began}


def theirs(exported: Path, folder: Path) -> dict[str, float]:
    """coremltools' package, with its defaults but for the deployment target, which is ours."""
    import coremltools as ct
    import torch

    program = torch.export.load(exported).run_decompositions({})
    began = time.process_time()
    model = ct.convert(program, minimum_deployment_target=ct.target.iOS15, skip_model_load=True)
    model.save(str(folder / "model.mlpackage"))
    return {"own": time.process_time() - began}


def converted(side: str, exported: Path, folder: Path) -> dict[str, float]:
    """Runs one side in a process of its own; leaves ``model.mlpackage`` in the new folder."""
    folder.mkdir()
    inside = [sys.executable, "-m", "benchmarks.coreml", "--inside", side, "--from", str(exported), "--to", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", *inside],
        cwd=place.REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    cost = json.loads(done.stdout)
    if cost["exit_code"]:
        raise RuntimeError(f"{side} fails on {exported.name}: {done.stderr[-600:]}")
    return {**cost, **json.loads((folder / "steps.json").read_text())}


def outputs(path: Path, images: np.ndarray) -> tuple[np.ndarray, int]:
    """The first output for every image, and how many values were not finite."""
    from edgeopt.runtimes import mil_reference

    with mil_reference.Session(path) as session:
        name, first = next(iter(session.inputs)), next(iter(session.outputs))
        made = np.concatenate([session.run({name: image[None]})[first] for image in images])
        return made.astype(np.float32), sum(session.non_finite.values())


def measure(name: str) -> dict[str, Any]:
    import torch

    from edgeopt import digest

    seeded = nets.load()
    model, size = seeded.build(name)
    images = seeded.smooth_images(IMAGES, size, seed=7)
    with torch.no_grad():
        reference = np.concatenate([model(image[None]).numpy() for image in images])
    record: dict[str, Any] = {"net": name}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exported = folder / "net.pt2"
        torch.export.save(torch.export.export(model, (torch.zeros(1, 3, size, size),)), exported)
        costs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for run in range(RUNS):
            for side in SIDES:
                costs[side].append(converted(side, exported, folder / f"{side}-{run}"))
        for side in SIDES:
            path = folder / f"{side}-0" / "model.mlpackage"
            made, broken = outputs(path, images.numpy())
            record[side] = {
                **{key: min(cost[key] for cost in costs[side]) for key in ("cpu_s", "wall_s", "own", "max_rss_mb")},
                "bytes": digest.size_bytes(path),
                "sqnr_db": scoring.sqnr_db(reference, made.reshape(reference.shape)),
                "non_finite": broken,
            }
    return record


def markdown(records: list[dict[str, Any]], command: str) -> str:
    rows = []
    for record in records:
        own, peer = (record[side] for side in SIDES)
        rows.append(
            [
                record["net"],
                f"{own['cpu_s']:.1f}, {peer['cpu_s']:.1f}",
                f"{own['cpu_s'] / peer['cpu_s']:.2f}",
                f"{own['own']:.1f}, {peer['own']:.1f}",
                f"{own['wall_s']:.1f}, {peer['wall_s']:.1f}",
                f"{own['bytes']:,}",
                f"{peer['bytes']:,}",
                f"{own['sqnr_db']:.1f}, {peer['sqnr_db']:.1f}",
                f"{own['non_finite']}, {peer['non_finite']}",
            ]
        )
    slower = [record["net"] for record in records if record["ours"]["cpu_s"] > record["coremltools"]["cpu_s"]]
    larger = [record["net"] for record in records if record["ours"]["bytes"] > record["coremltools"]["bytes"]]
    return "\n\n".join(
        [
            tables.conditions(command, ["coremltools", "torch", "onnx", "numpy"]),
            f"From the .pt2 to the package, imports and loading included, in fresh processes; the lowest of {RUNS} "
            "each. “Own”: what each does beyond loading and decomposing the program (ours: canonical graph and "
            "writing; coremltools: convert and save). "
            f"SQNR of {IMAGES} images against PyTorch, emulated: MIL reference semantics.",
            tables.table(
                [
                    *("net", "CPU s: ours, coremltools", "ratio", "own CPU s: ours, coremltools"),
                    *("wall s: ours, coremltools", "bytes, ours", "bytes, coremltools"),
                    *("dB fp16: ours, coremltools", "non-finite: ours, coremltools"),
                ],
                rows,
            ),
            f"- {'Met' if not slower else '**Not met**'}: no slower than coremltools' own route, in processor time"
            f"{'' if not slower else ': slower on ' + ', '.join(slower)}.\n"
            f"- {'Met' if not larger else '**Not met**'}: no larger"
            f"{'' if not larger else ': larger on ' + ', '.join(larger)}.",
        ]
    )


def before() -> dict[str, Any]:
    """What earlier runs with fewer nets left in the work folder: it stands until it is measured again."""
    path = place.work() / "results" / "coreml.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    return {one["net"]: one for one in kept if all(side in one for side in SIDES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", choices=nets.NAMES, help="by default all seven")
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    parser.add_argument("--inside", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="exported", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.inside:
        steps = (ours if arguments.inside == "ours" else theirs)(arguments.exported, arguments.to)
        (arguments.to / "steps.json").write_text(json.dumps(steps))
        return
    names = arguments.net or nets.NAMES
    for name in names:
        print(f"coreml: {name}", file=sys.stderr, flush=True)
        found = before() | {name: measure(name)}
        print("   ", found[name], file=sys.stderr, flush=True)
        records = [found[one] for one in nets.NAMES if one in found]
        # After every net, so that what was measured stands even if a later one takes too long.
        body = markdown(records, "python -m benchmarks.coreml")
        tables.publish("coreml", body, records, write=arguments.write, show=name == names[-1])


if __name__ == "__main__":
    try:
        main()
    except (place.CannotRunError, ImportError) as reason:
        print(f"skipped: {reason}")
        sys.exit(place.SKIPPED)
