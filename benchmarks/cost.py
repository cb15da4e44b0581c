"""What a whole `edgeopt convert` costs beside `nncf.quantize` alone: `python -m benchmarks.cost`.

MobileNetV1-0.75 with its 200 calibration images as PNG files, and with 2,000 (the 200 repeated). edgeopt: a process
that reads images, imports, calibrates, quantizes, writes ONNX and TFLite and proves parity. NNCF: the call of
`nncf.quantize` with its defaults, its images decoded before. CPU seconds are of all threads and child processes; every
process is measured alone.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import convert, data, place, tables

MODEL = "mobilenet_v1"
MOST_CPU = {"fast": 4.0, "default": 10.0}  # times nncf.quantize alone, 200 images
MOST_RSS_MB = 650.0
MOST_GROWTH = 1.10  # peak memory with 2,000 images over that with 200
IMAGES = (200, 2000)

RECIPE = """\
edgeopt: 1
effort: {effort}
model: {{onnx: {model}, inputs: {{x: [1, 3, 224, 224]}}}}
preprocess: {{crop: 224, color: rgb, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
data:
  calibration: {{images: {images}, limit: {count}}}
passes:
  - {{use: quantize, scheme: int8}}
targets:
  onnx: {{}}
  tflite: {{}}
"""


def image_folder(source: Path, count: int) -> Path:
    """`count` files: the calibration images, repeated under other names where there are too few."""
    folder = place.work() / "images" / f"imagenet-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    originals = sorted(source.glob("*.png"))
    for k in range(count):
        link = folder / f"{k:05d}.png"
        if not link.exists():
            link.symlink_to(originals[k % len(originals)])
    return folder


def recipe(model: data.TrainedModel, count: int, effort: str) -> Path:
    folder = place.work() / "recipes" / f"cost-{effort}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    images = image_folder(model.onnx.parent / "calibration", count)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model.onnx, images=images, count=count, effort=effort))
    return path


def nncf_alone(model: data.TrainedModel) -> dict[str, Any]:
    out = place.work() / "cost" / "nncf.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    print("cost: nncf.quantize, defaults ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.measure", sys.executable, "-m", "benchmarks.peers"]
    command += ["--inside", "nncf", "--model", model.name, "--out", str(out)]
    done = subprocess.run(command, cwd=place.REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    inside = json.loads(out.with_suffix(".json").read_text())
    if "error" in inside:
        raise place.CannotRunError(f"nncf.quantize failed: {inside['error']}")
    return {"call": inside["call"], "process": json.loads(done.stdout)}


def measure(efforts: list[str]) -> dict[str, Any]:
    model = data.trained_models()[MODEL]
    record: dict[str, Any] = {"nncf": nncf_alone(model), "ours": {}}
    for effort in efforts:
        for count in IMAGES:
            label = f"{effort}, {count:,} images"
            print(f"cost: edgeopt convert, {label} ...", file=sys.stderr, flush=True)
            out = place.work() / "edgeopt" / f"cost-{effort}-{count}"
            try:
                run = convert.convert(recipe(model, count, effort), out)
            except convert.ConvertError as error:
                record["ours"][label] = {"error": str(error)}
                continue
            record["ours"][label] = {**run.cost, "effort": effort, "images": count}
            print("   ", record["ours"][label], file=sys.stderr)
    return record


def markdown(record: dict[str, Any], command: str) -> str:
    call, process = record["nncf"]["call"], record["nncf"]["process"]
    rows: list[list[str]] = [
        [
            "`nncf.quantize`, defaults, the call alone, 200 images",
            f"{call['cpu_s']:.1f}",
            "1.0",
            f"{call['wall_s']:.1f}",
        ],
        ["the same, its whole process", f"{process['cpu_s']:.1f}", f"{process['cpu_s'] / call['cpu_s']:.1f}"],
    ]
    rows[0] += [f"{call['max_rss_mb']:.0f}", "–"]
    rows[1] += [f"{process['wall_s']:.1f}", f"{process['max_rss_mb']:.0f}", f"{process['tree_pss_mb']:.0f}"]
    notes = []
    by = {}
    for label, run in record["ours"].items():
        title = f"**`edgeopt convert`, effort {label}**"
        if "error" in run:
            rows.append([title, f"failed: {run['error'][:120]}".replace("|", "/"), "–", "–", "–", "–"])
            notes.append(f"- **Not met**: effort {label}, no result")
            continue
        ratio = run["cpu_s"] / call["cpu_s"]
        by[run["effort"], run["images"]] = (ratio, max(run["max_rss_mb"], run["tree_pss_mb"]))
        rows.append(
            [
                title,
                f"{run['cpu_s']:.1f}",
                f"{ratio:.1f}",
                f"{run['wall_s']:.1f}",
                f"{run['max_rss_mb']:.0f}",
                f"{run['tree_pss_mb']:.0f}",
            ]
        )
    for (effort, count), (ratio, memory) in by.items():
        if count != IMAGES[0]:
            continue
        word = "Met" if ratio <= MOST_CPU[effort] else "**Not met**"
        notes.append(
            f"- {word}: CPU seconds, effort {effort}, {ratio:.1f}×; asked for at most {MOST_CPU[effort]:.0f}×."
        )
        word = "Met" if memory <= MOST_RSS_MB else "**Not met**"
        notes.append(
            f"- {word}: peak memory, effort {effort}, {memory:.0f} MB; asked for at most {MOST_RSS_MB:.0f} MB."
        )
        many = by.get((effort, IMAGES[1]))
        if many:
            word = "Met" if many[1] <= MOST_GROWTH * memory else "**Not met**"
            notes.append(
                f"- {word}: peak memory with {IMAGES[1]:,} images, effort {effort}, {many[1] / memory:.2f}× of that "
                f"with {IMAGES[0]}; asked for at most {MOST_GROWTH:.2f}×."
            )
    header = ["", "CPU s", "× of the call", "wall s", "peak RSS MB, one process", "peak PSS MB, all"]
    line = tables.conditions(command, ["nncf", "onnxruntime", "ai-edge-litert", "numpy"])
    return "\n\n".join(
        [
            f"{line}, threads as each tool sets them ({os.cpu_count()} CPUs)",
            tables.table(header, rows),
            "\n".join(notes),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", action="append", choices=MOST_CPU, help="by default fast and default")
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    arguments = parser.parse_args()
    record = measure(arguments.effort or list(MOST_CPU))
    tables.publish("cost", markdown(record, "python -m benchmarks.cost"), record, write=arguments.write)


if __name__ == "__main__":
    place.run(main)
