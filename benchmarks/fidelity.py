"""INT8 fidelity on trained models beside ONNX Runtime's and NNCF's quantizers: `python -m benchmarks.fidelity`.

Every tool has the same calibration images and no setting per model; edgeopt runs from its command line with its
defaults. SQNR over all outputs of the disjoint evaluation images, and top-1 agreement, against the float model in ONNX
Runtime. Where ONNX Runtime's default session saturates (x86 without VNNI), files are scored in one that computes what
they say, which is kinder to the peers, and the default one stands in a column of its own.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import convert, data, detection, peers, place, scoring, tables

# What each model must reach, both files (dB, top-1 agreement in percent); the detector: the best peer and 1 dB more.
MUST = {"resnet20": (30.0, 98.4), "mobilenet_v1": (25.5, 97.5), "vww": (29.0, 98.5)}
AIM = {"resnet20": 32.0, "mobilenet_v1": 27.5, "vww": 30.0}
DETECTOR_MARGIN_DB, DETECTOR_MAP_DROP = 1.0, 1.0

Score = dict[str, Any]


def scorer(model: data.TrainedModel) -> Callable[[str, Path], Score]:
    """A function that scores one file of `model` against its float outputs, which are computed here once."""
    images, labels = model.evaluation()
    reference = scoring.outputs(scoring.onnx_runner(model.onnx), images)
    float_map, float_matches = detection.map50(reference, labels) if model.detector else (None, None)

    def score(who: str, path: Path) -> Score:
        runner: scoring.Runner = (
            scoring.TFLiteRunner(path, reference.shape[1] if reference.ndim == 4 else None)
            if path.suffix == ".tflite"
            else scoring.onnx_runner(path)
        )
        found = reference if path == model.onnx else scoring.outputs(runner, images)
        result: Score = {"who": who, "bytes": path.stat().st_size, "images": len(images)}
        if path != model.onnx:
            result["sqnr_db"] = scoring.sqnr_db(reference, found)
            if path.suffix == ".onnx" and scoring.saturates():
                default = scoring.outputs(scoring.onnx_runner(path, precise=False), images)
                result["default_db"] = scoring.sqnr_db(reference, default)
        if model.detector:
            result["map50"], matches = detection.map50(found, labels)
            result["map50_drop"] = float_map - result["map50"]
            if path != model.onnx:
                result["map50_drop_interval"] = detection.drop_interval(float_matches, matches)
        elif model.labelled:
            result["agreement"] = scoring.agreement(reference, found)
            result["top1"] = scoring.top1(found, labels)
        return result

    return score


def measure(model: data.TrainedModel, chosen_peers: list[str], *, ours: bool) -> list[Score]:
    score = scorer(model)
    rows = [score("float", model.onnx)]
    for peer in chosen_peers:
        made = peers.result(model, peer)
        failed = {"who": peers.PEERS[peer], "error": made.get("error")}
        rows.append(failed if "error" in made else score(peers.PEERS[peer], made["path"]))
    if not ours:
        return rows
    try:
        run = convert.convert_trained(model, fresh=True)
    except convert.ConvertError as error:
        return [*rows, {"who": "**edgeopt**", "error": str(error)}]
    for target in ("onnx", "tflite"):
        row = score(f"**edgeopt, {target}**", run.path(target))
        rows.append({**row, "cost": run.cost, "exit_code": run.exit_code})
    return rows


def verdict(model: data.TrainedModel, rows: list[Score]) -> str:
    ours = [r for r in rows if r["who"].startswith("**")]
    theirs = [r for r in rows[1:] if not r["who"].startswith("**") and "sqnr_db" in r]
    if not ours:
        return "edgeopt was not run."
    if any("error" in r for r in ours):
        return f"**Not met**: edgeopt made no file ({ours[0]['error']})."
    best = max((r["sqnr_db"] for r in theirs), default=None)
    lowest = min(r["sqnr_db"] for r in ours)
    lead = "" if best is None else f" ({lowest - best:+.2f} dB against the best peer)"
    if model.detector:
        drop = max(r["map50_drop"] for r in ours)
        met = best is not None and lowest >= best + DETECTOR_MARGIN_DB and drop <= DETECTOR_MAP_DROP
        bar = f"best peer + {DETECTOR_MARGIN_DB:.0f} dB, mAP50 drop at most {DETECTOR_MAP_DROP} point"
        return f"{'Met' if met else '**Not met**'}: {lowest:.2f} dB{lead}, mAP50 drop {drop:.2f}; asked for {bar}."
    if model.name not in MUST:
        return f"{lowest:.2f} dB{lead}. Nothing was asked for and nothing was chosen on this model."
    db, agree = MUST[model.name]
    least = min(r["agreement"] for r in ours)
    met = lowest >= db and least >= agree
    return (
        f"{'Met' if met else '**Not met**'}: {lowest:.2f} dB{lead}, {least:.1f} % agreement; "
        f"asked for {db:.1f} dB and {agree} %, aimed at {AIM[model.name]:.1f} dB."
    )


def markdown(models: dict[str, data.TrainedModel], results: dict[str, list[Score]], command: str) -> str:
    parts = [tables.conditions(command, ["onnxruntime", "nncf", "ai-edge-litert", "onnx", "numpy"])]
    for name, rows in results.items():
        model = models[name]
        last = ["mAP50", "drop, 95 % interval"] if model.detector else ["top-1 agreement %", "top-1 %"]
        last = last if model.labelled else []
        default = ["SQNR dB in a default session"] if any("default_db" in row for row in rows) else []
        body = []
        for row in rows:
            if "error" in row:
                empty = "–" * (len(default + last) + 1)
                body.append([row["who"], f"failed: {row['error']}".replace("|", "/")[:160], *empty])
                continue
            if model.detector:
                low, high = row.get("map50_drop_interval", (None, None))
                drop = "–" if low is None else f"{row['map50_drop']:.2f} ({low:.2f} to {high:.2f})"
                scores = [tables.number(row["map50"], 2), drop]
            elif not model.labelled:
                scores = []
            else:
                same = None if row["who"] == "float" else row["agreement"]
                scores = [tables.number(same, 2), tables.number(row["top1"], 2)]
            noise = [tables.number(row.get(key), 2) for key in ("sqnr_db", *["default_db"][: len(default)])]
            body.append([row["who"], *noise, *scores, tables.thousands(row["bytes"])])
        parts.append(f"#### {model.title} ({rows[0]['images']} evaluation images)")
        parts.append(tables.table(["", "SQNR dB", *default, *last, "bytes"], body))
        parts.append(verdict(model, rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="by default all")
    parser.add_argument("--peer", action="append", choices=peers.PEERS, help="by default all")
    parser.add_argument("--only-peers", action="store_true", help="leave edgeopt out")
    parser.add_argument(
        "--write", action="store_true", help="write the result to README.md (all models and peers only)"
    )
    arguments = parser.parse_args()
    models = data.trained_models()
    results = {}
    names = arguments.model or list(models)
    for name in names:
        print(f"fidelity: {models[name].title}", file=sys.stderr, flush=True)
        results[name] = measure(models[name], arguments.peer or list(peers.PEERS), ours=not arguments.only_peers)
        for row in results[name]:
            print("   ", {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, file=sys.stderr)
        body = markdown(models, results, "python -m benchmarks.fidelity")
        # After every model, so that what was measured stands even if a later one takes too long.
        tables.publish("fidelity", body, results, write=arguments.write, show=name == names[-1])


if __name__ == "__main__":
    place.run(main)
