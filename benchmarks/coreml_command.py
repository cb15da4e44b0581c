"""Every model in every precision of Core ML through `edgeopt convert`: `python -m benchmarks.coreml_command`.

The seven seeded nets (as PyTorch exports them to ONNX), the quickstart and the trained models, each as a user converts
it, in a process of its own: fp32, fp16, int8-weights, int8 by flags, and int8 once more by a recipe whose float parts
stay in fp32, which alone carries the table's scales unrounded. Real images calibrate and evaluate. What stands in the
table is what the run's own report.json says: exit code, status, end-to-end parity, and for int8 every segment on
identical integer inputs.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, nets, place, tables

SCHEMES = ("fp32", "fp16", "int8-weights", "int8", "int8 in fp32")
"""The last: integers carried by float32 scales. fp16, the default of what is not int8, rounds the scales themselves."""
SEEDED = {"calibration": 16, "evaluation": 16}  # enough for ranges: what is checked is the file
TRAINED = {"calibration": 64, "evaluation": 32}
LEAST_EQUAL = 0.9999
MOST_STEPS = 1.001  # grids are float32: one step is not always the same float64
QUICKSTART = place.REPOSITORY / "recipes" / "quickstart"

RECIPE = """\
edgeopt: 1
effort: fast
model: {{onnx: {model}, inputs: {{{input}: {shape}}}}}
data:
  calibration: {{arrays: {calibration}}}
  evaluation: {{arrays: {evaluation}}}
passes:
  - {{use: quantize, scheme: int8}}
targets:
  coreml: {{precision: fp32}}
"""


@dataclass(frozen=True)
class Model:
    """What to convert: title, and a function that makes file, input name, calibration and evaluation images."""

    title: str
    prepare: Callable[[], tuple[Path, str, np.ndarray, np.ndarray]]


def models() -> dict[str, Model]:
    """By name. The quickstart is not among them: it is a recipe already."""
    found = {name: Model(name, lambda name=name: _seeded(name)) for name in nets.NAMES}
    return found | {
        name: Model(one.title, lambda one=one: _trained(one)) for name, one in data.trained_models().items()
    }


def _seeded(name: str) -> tuple[Path, str, np.ndarray, np.ndarray]:
    source = nets.load()
    size = source.SIZES.get(name, 224)
    images = [nets.photos(part, count, size) for part, count in SEEDED.items()]
    return nets.onnx_file(source, name), nets.INPUT, images[0], images[1]


def _trained(model: data.TrainedModel) -> tuple[Path, str, np.ndarray, np.ndarray]:
    def spread(images: np.ndarray, count: int) -> np.ndarray:
        return images[[k * len(images) // count for k in range(min(count, len(images)))]]

    calibration, (evaluation, _) = model.calibration(), model.evaluation()
    return (
        model.onnx,
        model.input_name,
        spread(calibration, TRAINED["calibration"]),
        spread(evaluation, TRAINED["evaluation"]),
    )


def arguments_for(name: str, scheme: str) -> list[str]:
    """What follows `edgeopt convert`, without --out."""
    if name == "quickstart":
        return [str(QUICKSTART), "--target", "coreml", "--scheme", scheme.partition(" ")[0]]
    folder = place.work() / "coreml_command"
    folder.mkdir(parents=True, exist_ok=True)
    files = {part: folder / f"{name}-{part}.npz" for part in ("calibration", "evaluation")}
    kept = folder / f"{name}.json"
    if not kept.exists():
        source, entry, *images = models()[name].prepare()
        for path, some in zip(files.values(), images, strict=True):
            np.savez(path, **{entry: some})
        kept.write_text(json.dumps([str(source), entry, [1, *images[0].shape[1:]]]))
    source, entry, shape = json.loads(kept.read_text())
    if scheme == "int8 in fp32":
        recipe = folder / f"{name}.yaml"
        told = {key: json.dumps(str(path)) for key, path in files.items()}
        recipe.write_text(RECIPE.format(model=json.dumps(source), input=json.dumps(entry), shape=shape, **told))
        return [str(recipe)]
    return [
        *(source, "--target", "coreml", "--scheme", scheme, "--effort", "fast"),
        *("--calibration", str(files["calibration"]), "--evaluation", str(files["evaluation"])),
        *("--input", f"{entry}={','.join(map(str, shape))}"),
    ]


def schemes_of(name: str) -> tuple[str, ...]:
    """The quickstart's recipe has its float parts in fp32: there is no int8 beside that."""
    return tuple(scheme for scheme in SCHEMES if name != "quickstart" or scheme != "int8")


def measure(name: str, scheme: str) -> dict[str, Any]:
    """Runs the command; all schemes of a model share a folder, so that import and quantization are done once."""
    out = place.work() / "coreml_command" / "out" / name
    command = [
        str(Path(sys.executable).with_name("edgeopt")),
        "convert",
        *arguments_for(name, scheme),
        "--out",
        str(out),
    ]
    print("$ edgeopt " + " ".join(command[1:]), file=sys.stderr, flush=True)
    (out / "report.json").unlink(missing_ok=True)
    began = time.perf_counter()
    done = subprocess.run(command, cwd=place.REPOSITORY, capture_output=True, text=True, check=False)
    row: dict[str, Any] = {
        "model": name,
        "scheme": scheme,
        "exit": done.returncode,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if not (out / "report.json").is_file():
        return row | {"status": "no report", "said": done.stderr.strip()[-600:]}
    target = json.loads((out / "report.json").read_text())["targets"]["coreml"]
    row |= {"status": target["status"], "why": target["why"], "bytes": target["size_bytes"]}
    if "L2" not in target["parity"]:
        return row | {"said": done.stderr.strip()[-600:]}
    l2 = target["parity"]["L2"]
    integers = [one["parity"] for one in l2["segments"] if one["parity"]["equal"] is not None]
    return row | {
        "l1_db": target["parity"]["L1"]["sqnr_db"],
        "l2_db": l2["sqnr_db"],
        "rel": l2["rel"],
        "agreement": l2["top1_agreement"],
        "label": l2["label"],
        "failures": l2["failures"],
        "segments": len(integers),
        "equal_worst": min((one["equal"] for one in integers), default=None),
        "equal_all": l2["equal"],
        "steps": l2["lsb_max"],
        "int8_ops": sum(target["realised"]["int8_ops"].values()),
        "float_ops": sum(target["realised"]["float_ops"].values()),
    }


def right(row: dict[str, Any]) -> bool:
    """Exit code 0 and status ok; and for the form that carries the integers exactly, the integers."""
    if row["exit"] != 0 or row["status"] != "ok":
        return False
    if row["scheme"] != "int8 in fp32":
        return True
    return bool(row["segments"] and row["equal_all"] >= LEAST_EQUAL and row["steps"] <= MOST_STEPS)


def met(fulfilled: bool) -> str:
    return "Met" if fulfilled else "**Not met**"


def markdown(rows: list[dict[str, Any]], titles: dict[str, str]) -> str:
    header = [
        *("model", "scheme", "exit", "status", "bytes", "L1 dB", "L2 dB", "L2 rel", "int8 / float ops", "segments"),
        *("equal, all", "equal, worst segment", "steps, most"),
    ]
    body = []
    for row in rows:
        if "l2_db" not in row:
            said = (row.get("why") or row.get("said") or "")[:160].replace("|", "/").replace("\n", " ")
            body.append([titles[row["model"]], row["scheme"], row["exit"], f"{row['status']}: {said}", *["–"] * 9])
            continue
        integers = row["segments"] and row["equal_worst"] is not None
        body.append(
            [
                titles[row["model"]],
                row["scheme"],
                row["exit"],
                row["status"],
                tables.thousands(row["bytes"]),
                "exact" if row["l1_db"] >= 300 else tables.number(row["l1_db"]),
                tables.number(row["l2_db"]),
                f"{row['rel']:.1e}",
                f"{row['int8_ops']} / {row['float_ops']}",
                row["segments"] if integers else "–",
                f"{100 * row['equal_all']:.4f} %" if integers else "–",
                f"{100 * row['equal_worst']:.4f} %" if integers else "–",
                tables.number(row["steps"], 0) if integers else "–",
            ]
        )
    labels = sorted({row["label"] for row in rows if "label" in row})
    exact = [row for row in rows if row["scheme"] == "int8 in fp32"]
    kept = [row for row in exact if right(row)]
    wrong = [f"{titles[row['model']]} {row['scheme']}" for row in rows if not right(row)]
    run = {(row["model"], row["scheme"]) for row in rows}
    left = {scheme: [titles[one] for one in titles if (one, scheme) not in run] for scheme in SCHEMES}
    left["int8"] = [title for title in left["int8"] if title != "quickstart"]
    absent = [f"{scheme}: {', '.join(names)}" for scheme, names in left.items() if names]
    notes = [
        f"- {met(len(kept) == len(exact))}: {len(kept)} of {len(exact)} models carry the integers exactly in the "
        f"fp32 form (asked: at least {100 * LEAST_EQUAL} % of the segments' values equal, none over one step off).",
        f"- {met(not wrong)}: {len(rows) - len(wrong)} of {len(rows)} commands end with exit code 0 and status ok"
        f"{'' if not wrong else ', not: ' + ', '.join(wrong)}.",
        *([f"- Not run yet: {'; '.join(absent)}."] if absent else []),
        *(f"- L2 is labelled “{label}”." for label in labels),
    ]
    return "\n\n".join(
        [
            tables.conditions("python -m benchmarks.coreml_command", ["coremltools", "numpy", "onnx", "onnxruntime"]),
            "Seeded nets (the first seven; random weights, whose dB say nothing of what a trained net loses): "
            f"{SEEDED['calibration']} photos calibrate and {SEEDED['evaluation']} others evaluate. Trained models: "
            f"{TRAINED['calibration']} and {TRAINED['evaluation']}, or as many as there are. Effort `fast`. The "
            "quickstart is as its recipe says, its float parts in fp32.",
            tables.table(header, body),
            "\n".join(notes),
        ]
    )


def main() -> None:
    titles = {name: name for name in nets.NAMES} | {"quickstart": "quickstart"}
    titles |= {name: model.title for name, model in data.trained_models().items()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted(titles), help="by default all")
    parser.add_argument("--scheme", action="append", choices=SCHEMES, help="by default all")
    parser.add_argument(
        "--missing", action="store_true", help="only what no earlier run left in the work folder as right"
    )
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    arguments = parser.parse_args()
    path = place.work() / "results" / "coreml_command.json"
    # What earlier runs with fewer models left stands until it is measured again.
    found = {(row["model"], row["scheme"]): row for row in json.loads(path.read_text())} if path.exists() else {}

    def publish(show: bool) -> None:
        rows = [found[key] for name in titles for scheme in SCHEMES if (key := (name, scheme)) in found]
        tables.publish("coreml_command", markdown(rows, titles), rows, write=arguments.write, show=show)

    for name in arguments.model or titles:
        for scheme in [one for one in schemes_of(name) if one in (arguments.scheme or SCHEMES)]:
            if arguments.missing and (name, scheme) in found and right(found[name, scheme]):
                continue
            found[name, scheme] = measure(name, scheme)
            print("   ", found[name, scheme], file=sys.stderr, flush=True)
            publish(show=False)
    publish(show=True)


if __name__ == "__main__":
    place.run(main)
