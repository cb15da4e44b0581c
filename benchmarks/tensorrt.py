"""TensorRT bundles, where there is no TensorRT: rules and symmetric activations. `python -m benchmarks.tensorrt`.

Nothing here is built or timed by TensorRT. Trained models: edgeopt's bundle beside ONNX Runtime's `quantize_static`
with symmetric int8 activations on the same calibration images, both files in ONNX Runtime with optimisations off on the
same evaluation images; what zero point 0 costs against edgeopt's own asymmetric grids; accuracy against float with the
95 % interval of the paired difference. The trained models and the seven seeded nets: every rule of five releases.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import convert, data, detection, nets, peers, place, scoring, tables

MODELS = ("resnet20", "mobilenet_v1", "fastestdet")
MARGIN_DB = 2.0
NET_IMAGES = 8  # enough for ranges; what is checked is the file
RELEASES = ("8.5", "8.6", "10.3", "10.15", "11.0")
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}

Score = dict[str, Any]


def peer_file(model: data.TrainedModel) -> Path:
    """quantize_static with symmetric int8 activations, made once: MODEL/ort_symmetric.onnx among the peers' files."""
    out = peers.folder() / model.name / "ort_symmetric.onnx"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        print(f"{model.title}: ONNX Runtime, min-max, symmetric ...", file=sys.stderr, flush=True)
        images = model.calibration()
        source = peers.modern(model.onnx, out)
        draft = out.with_suffix(".draft.onnx")
        peers.onnxruntime_quantize(
            source, model.input_name, images, draft, method="MinMax", activation="QInt8", **SYMMETRIC
        )
        draft.rename(out)
    return out


def asymmetric_file(run: convert.Conversion) -> Path:
    """The shared table as Q/DQ: edgeopt's integer reference, before TensorRT's zero-point rule."""
    import onnx_ir as ir

    from edgeopt.graph.qdq import to_qdq

    path = run.out / "asymmetric.onnx"
    ir.save(to_qdq(graph_of(run)), path)
    return path


def graph_of(run: convert.Conversion) -> Any:
    from edgeopt.pipeline.jobs import load_graph

    return load_graph(next((run.out / ".edgeopt" / "steps").glob("passes-*")))


def paired_interval(reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """95 % interval of candidate's top-1 less the reference's, in points, over the same images drawn again."""
    right = [(y.reshape(len(y), -1).argmax(1) == labels).astype(float) for y in (reference, candidate)]
    difference = 100 * (right[1] - right[0])
    chosen = np.random.default_rng(0).integers(0, len(labels), (2000, len(labels)))
    low, high = np.percentile(difference[chosen].mean(1), [2.5, 97.5])
    return float(low), float(high)


def measure(model: data.TrainedModel) -> tuple[list[Score], convert.Conversion]:
    images, labels = model.evaluation()
    run = convert.convert(
        model.onnx,
        place.work() / "edgeopt" / f"{model.name}-tensorrt",
        *("--target", "tensorrt", "--calibration", str(_calibration(model))),
        *("--input", f"{model.input_name}=1,{','.join(str(d) for d in images.shape[1:])}"),
        fresh=False,
    )
    files = {
        "edgeopt, shared asymmetric grids": asymmetric_file(run),
        "ONNX Runtime quantize_static, symmetric": peer_file(model),
        "**edgeopt, tensorrt**": run.path("tensorrt") / "model.onnx",
    }
    reference = scoring.outputs(scoring.onnx_runner(model.onnx), images)
    float_map, float_matches = detection.map50(reference, labels) if model.detector else (None, None)
    rows: list[Score] = []
    for who, path in files.items():
        found = scoring.outputs(scoring.onnx_runner(path, optimize=False), images)
        row: Score = {"who": who, "sqnr_db": scoring.sqnr_db(reference, found), "images": len(images)}
        if model.detector:
            score, matches = detection.map50(found, labels)
            row |= {"float": float_map, "score": score}
            low, high = detection.drop_interval(float_matches, matches)
            row["interval"] = (-high, -low)
        else:
            row |= {"float": scoring.top1(reference, labels), "score": scoring.top1(found, labels)}
            row["interval"] = paired_interval(reference, found, labels)
        rows.append(row)
    return rows, run


def _calibration(model: data.TrainedModel) -> Path:
    return convert.calibration_file(model.name, model.input_name, model.calibration())


def verdict(rows: list[Score]) -> str:
    shared, peer, ours = (row["sqnr_db"] for row in rows)
    low, high = rows[-1]["interval"]
    met = ours >= peer + MARGIN_DB and low <= 0 <= high
    return (
        f"{'Met' if met else '**Not met**'}: {ours - peer:+.2f} dB against quantize_static (asked: {MARGIN_DB:+.0f}); "
        f"zero point 0 costs {shared - ours:.2f} dB against the shared grids; accuracy differs from float's by "
        f"{rows[-1]['score'] - rows[-1]['float']:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}."
    )


# --- rules


def convert_net(name: str) -> convert.Conversion:
    """One seeded net, through ONNX: what is checked is what is written, not how good random weights are."""
    seeded = nets.load()
    images = seeded.smooth_images(NET_IMAGES, seeded.SIZES.get(name, 224), seed=7).numpy()
    calibration = convert.calibration_file(f"{name}-tensorrt", nets.INPUT, images)
    options = ("--target", "tensorrt", "--effort", "fast", "--calibration", str(calibration))
    out = place.work() / "edgeopt" / f"{name}-tensorrt"
    return convert.convert(nets.onnx_file(seeded, name), out, *options, fresh=False)


def rules(name: str, run: convert.Conversion) -> Score:
    """Every release's verdict on what edgeopt writes for it: rules of acceptance and speed that are broken."""
    from edgeopt.errors import EdgeoptError
    from edgeopt.targets.tensorrt.target import TensorrtTarget

    graph = graph_of(run)
    found: Score = {"net": name, "parity": run.target("tensorrt")["parity"]["L2"]["within_one_step"]}
    for release in RELEASES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                artifact = TensorrtTarget(version=release).lower(graph, Path(folder))
            except EdgeoptError as error:
                found[release] = f"refused: {error.what}"[:120]
                continue
            file = json.loads((Path(folder) / "rules.json").read_text())["files"]["model.onnx"]
            held = sum(rule["kind"] == "acceptance" for rule in file["rules"])
            broken = f"; broken: {', '.join(file['broken'])}" if file["broken"] else ""
            found[release] = f"{held} kept, opset {file['opset']}{broken}"
            assert artifact.realised is not None
            found["int8"] = sum(artifact.realised.int8_ops.values())
            found["float"] = sum(artifact.realised.float_ops.values())
    return found


def markdown(record: dict[str, Any], titles: dict[str, str]) -> str:
    parts = [tables.conditions("python -m benchmarks.tensorrt", ["onnxruntime", "onnx", "numpy"])]
    parts.append("Not built and not timed by TensorRT; figures are ONNX Runtime's, optimisations off (emulated).")
    for name in [one for one in MODELS if one in record["models"]]:
        rows = record["models"][name]
        parts.append(f"#### {titles[name]} ({rows[0]['images']} evaluation images)")
        score = "mAP50" if name == "fastestdet" else "top-1 %"
        body = [
            [
                row["who"],
                tables.number(row["sqnr_db"], 2),
                tables.number(row["score"], 2),
                f"{row['score'] - row['float']:+.2f} ({row['interval'][0]:+.2f} to {row['interval'][1]:+.2f})",
            ]
            for row in rows
        ]
        parts.append(tables.table(["", "SQNR dB", score, "against float, 95 % interval"], body))
        parts.append(verdict(rows))
    if record["rules"]:
        header = ["", "int8 / float operators", "≤ 1 step", *(f"TensorRT {release}" for release in RELEASES)]
        body = [
            [
                row["net"],
                f"{row.get('int8', '–')} / {row.get('float', '–')}",
                "–" if row["parity"] is None else f"{row['parity']:.2%}",
                *(row[release] for release in RELEASES),
            ]
            for name in (*MODELS, *nets.NAMES)
            if (row := record["rules"].get(name)) is not None
        ]
        parts.append("#### Rules of acceptance that hold, opset, and what is broken")
        parts.append(tables.table(header, body))
    return "\n\n".join(parts)


def before() -> dict[str, Any]:
    """What earlier runs with fewer models or nets left in the work folder: it stands until it is measured again."""
    path = place.work() / "results" / "tensorrt.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {"models": kept.get("models", {}), "rules": kept.get("rules", {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=(*MODELS, "none"), help="by default all")
    parser.add_argument("--net", action="append", choices=(*nets.NAMES, "none"), help="by default all")
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    arguments = parser.parse_args()
    models = data.trained_models()
    titles = {name: models[name].title for name in MODELS}

    def publish(key: str, name: str, result: Any) -> None:
        """At once, so that what was measured stands even if a later one takes too long."""
        record = before()
        record[key][name] = result
        print("   ", verdict(result) if key == "models" else result, file=sys.stderr, flush=True)
        tables.publish("tensorrt", markdown(record, titles), record, write=arguments.write, show=False)

    for name in [one for one in arguments.model or MODELS if one != "none"]:
        print(f"tensorrt: {titles[name]}", file=sys.stderr, flush=True)
        rows, run = measure(models[name])
        publish("models", name, rows)
        publish("rules", name, rules(titles[name], run))
    for name in [one for one in arguments.net or nets.NAMES if one != "none"]:
        print(f"tensorrt: {name}", file=sys.stderr, flush=True)
        publish("rules", name, rules(name, convert_net(name)))
    record = before()
    tables.publish("tensorrt", markdown(record, titles), record, write=arguments.write)


if __name__ == "__main__":
    place.run(main)
