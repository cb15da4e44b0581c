"""Our int8 ONNX files beside ONNX Runtime's own fully fused uint8 files and float: `python -m benchmarks.file_latency`.

One thread, one process, all files of a model interleaved round by round in default sessions; medians, and the ratio's
95 % bootstrap interval. On x86 without VNNI, such a session saturates ONNX Runtime's file: then the same file in a
session that computes it exactly (`session.x64quantprecision`) stands beside it.
It also counts what ONNX Runtime made of each file (the optimised model that it saves), and compares outputs with graph
optimisations off and on.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import convert, data, peers, place, scoring, tables

MOST = 1.03  # our latency over ONNX Runtime's own file, at most
INTEGER = ("QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger")
FLOAT = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
COMPARED_IMAGES = 64


def optimised_operators(path: Path) -> Counter[str]:
    """Operator types of the model that ONNX Runtime runs, after all its graph optimisations."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def counts(path: Path) -> dict[str, str]:
    found = optimised_operators(path)
    return {
        kind: ", ".join(f"{found[o]} {o}" for o in names if found[o]) or "none"
        for kind, names in (("integer", INTEGER), ("float", FLOAT))
    }


def off_and_on(path: Path, images: np.ndarray, *, precise: bool = True) -> dict[str, float]:
    """How far graph optimisations move the outputs: SQNR of one against the other, and differences in steps.

    A step is 1/255 of the outputs' range, about what one quantization step of an int8 output is: the difference that
    99.9 % of the values stay below, and the largest.
    """
    off = scoring.outputs(scoring.onnx_runner(path, optimize=False), images)
    on = scoring.outputs(scoring.onnx_runner(path, precise=precise), images)
    steps = np.abs(off - on) / max((float(off.max()) - float(off.min())) / 255, 1e-30)
    return {
        "off_on_db": scoring.sqnr_db(off, on),
        "off_on_steps": float(np.quantile(steps, 0.999)),
        "off_on_most_steps": float(steps.max()),
    }


def measure(model: data.TrainedModel, rounds: int) -> dict[str, Any]:
    images = model.evaluation()[0][:COMPARED_IMAGES]
    files = {"float": model.onnx}
    made = peers.result(model, "ort_minmax")
    if "error" not in made:
        files["ort"] = made["path"]
    record: dict[str, Any] = {"model": model.name}
    try:
        run = convert.convert_trained(model, fresh=False)
        files["ours"] = run.path("onnx")
    except convert.ConvertError as error:
        record["error"] = str(error)
    runners = {name: scoring.onnx_runner(path, precise=False) for name, path in files.items()}
    if "ort" in files and scoring.saturates():
        files["ort_exact"] = files["ort"]
        runners["ort_exact"] = scoring.onnx_runner(files["ort"], precise=True)
    image = images[:1]
    spent = scoring.interleaved_ms({n: (lambda r=r: r(image)) for n, r in runners.items()}, rounds=rounds)
    record["files"] = {
        n: {"ms": float(np.median(spent[n])), "low_ms": float(np.min(spent[n])), **counts(path)}
        for n, path in files.items()
    }
    for name in files.keys() - {"float"}:
        record["files"][name] |= off_and_on(files[name], images, precise=name == "ort_exact")
    if "ours" in files:
        record["to_float"] = scoring.paired_ratio(spent["ours"], spent["float"])
        if "ort" in files:
            record["to_ort"] = scoring.paired_ratio(spent["ours"], spent["ort"])
        if "ort_exact" in files:
            record["to_ort_exact"] = scoring.paired_ratio(spent["ours"], spent["ort_exact"])
    return record


def moved(file: dict[str, Any]) -> str:
    if "off_on_db" not in file:
        return ""
    return f"{file['off_on_db']:.1f} dB, {file['off_on_steps']:.1f}, {file['off_on_most_steps']:.1f}"


def interval(ratio: tuple[float, float, float] | None) -> str:
    return "–" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f})"


def markdown(models: dict[str, data.TrainedModel], records: list[dict[str, Any]], command: str) -> str:
    who = {
        "float": "float",
        "ort": "ONNX Runtime, min-max, uint8" + (": saturates on this processor" if scoring.saturates() else ""),
        "ort_exact": "the same in a session that computes it exactly",
        "ours": "**edgeopt**",
    }
    rows, notes = [], []
    for record in records:
        title = models[record["model"]].title
        for name, file in record["files"].items():
            ours = name == "ours"
            rows.append(
                [
                    title if name == "float" else "",
                    who[name],
                    tables.number(file["ms"], 3),
                    tables.number(file["low_ms"], 3),
                    interval(record.get("to_ort")) if ours else "",
                    interval(record.get("to_float")) if ours else "",
                    file["integer"],
                    file["float"],
                    moved(file),
                ]
            )
        ratio = record.get("to_ort")
        if "error" in record:
            notes.append(f"- **Not met**, {title}: no file ({record['error']})")
        elif ratio:
            word = "Met" if ratio[0] <= MOST else "**Not met**"
            notes.append(f"- {word}, {title}: {ratio[0]:.2f}× ONNX Runtime's own file; asked for at most {MOST}×.")
            if "to_ort_exact" in record:
                notes.append(
                    f"- {title}: {interval(record['to_ort_exact'])}× that file in a session that computes it exactly."
                )
            if record["to_float"][0] >= 1:
                notes.append(
                    f"- {title}: INT8 is slower than float here, by {100 * (record['to_float'][0] - 1):.0f} %."
                )
    header = [
        "",
        "file",
        "median ms",
        "lowest ms",
        "to ORT's",
        "to float",
        "int8 ops",
        "float ops",
        "off/on: SQNR, steps 99.9 %, most",
    ]
    parts = [tables.conditions(command, ["onnxruntime", "onnx", "numpy"]), tables.table(header, rows), "\n".join(notes)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="by default all")
    parser.add_argument("--rounds", type=int, default=150, help="timed turns of each file (default 150)")
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    arguments = parser.parse_args()
    models = data.trained_models()
    records = []
    for name in arguments.model or models:
        print(f"latency: {models[name].title}", file=sys.stderr, flush=True)
        records.append(measure(models[name], arguments.rounds))
        print("   ", records[-1], file=sys.stderr)
    tables.publish(
        "file_latency", markdown(models, records, "python -m benchmarks.file_latency"), records, write=arguments.write
    )


if __name__ == "__main__":
    place.run(main)
