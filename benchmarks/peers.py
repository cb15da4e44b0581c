"""ONNX Runtime's and NNCF's quantizers on the benchmarks' models, each in a process of its own, results kept.

    python -m benchmarks.peers [--model NAME] [--peer NAME]

Each result is MODEL/PEER.onnx and MODEL/PEER.json (seconds and memory of the whole process and of the quantizing call
alone) under the work folder's `peers`. A result that is there is not made again; remove the folder to make it anew.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, place

PEERS = {
    "ort_minmax": "ONNX Runtime, min-max",
    "ort_percentile": "ONNX Runtime, percentile",
    "nncf": "NNCF, defaults",
    "nncf_full_bias": "NNCF, full bias correction",
}


class Reader:
    """Calibration images as ONNX Runtime's quantizer wants them: one at a time, and in ranges to bound its memory."""

    def __init__(self, name: str, images: np.ndarray):
        self.name, self.images = name, images
        self.set_range(0, len(images))

    def set_range(self, start_index: int, end_index: int) -> None:
        self.at, self.end = start_index, end_index

    def __len__(self) -> int:
        return len(self.images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self.at >= self.end:
            return None
        self.at += 1
        return {self.name: self.images[self.at - 1 : self.at]}

    def rewind(self) -> None:
        self.set_range(0, len(self.images))


def modern(source: Path, out: Path) -> Path:
    """`source`, or a copy in opset 17 whose initializers are no inputs, if it is older than 13.

    Per-channel Q/DQ is not valid before opset 13, and no tool folds BatchNorm into a weight that a caller may replace.
    """
    import onnx
    from onnx import version_converter

    model = onnx.load(str(source))
    if next(o.version for o in model.opset_import if not o.domain) >= 13:
        return source
    model = version_converter.convert_version(model, 17)
    model.ir_version = 8  # the one that came with opset 17
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    path = out.with_suffix(".opset17.onnx")
    onnx.save(model, str(path))
    return path


def onnxruntime_quantize(
    source: Path, name: str, images: np.ndarray, out: Path, *, method: str, activation: str = "QUInt8", **options: Any
) -> None:
    """As its documentation recommends for x86: pre-processed, Q/DQ, uint8 activations, per-channel int8 weights."""
    from onnxruntime import quantization as ortq
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=False)

    class Calibration(Reader, ortq.CalibrationDataReader):
        pass

    # In pieces of eight or ten images: all activations of 200 images at once would take 7 GB.
    stride = next(k for k in (10, 8, 5, 4, 2, 1) if len(images) % k == 0)
    ortq.quantize_static(
        str(prepared),
        str(out),
        Calibration(name, images),
        quant_format=ortq.QuantFormat.QDQ,
        activation_type=getattr(ortq.QuantType, activation),
        weight_type=ortq.QuantType.QInt8,
        per_channel=True,
        calibrate_method=getattr(ortq.CalibrationMethod, method),
        calibration_providers=["CPUExecutionProvider"],
        extra_options={"CalibStridedMinMax": stride, **options},
    )
    prepared.unlink()


def nncf_quantize(source: Path, name: str, images: np.ndarray, out: Path, *, full_bias_correction: bool) -> None:
    import nncf
    import onnx

    model = onnx.load(str(source))
    dataset = nncf.Dataset([images[k : k + 1] for k in range(len(images))], lambda x: {name: x})
    options = {"fast_bias_correction": False} if full_bias_correction else {}
    onnx.save(nncf.quantize(model, dataset, **options), str(out))


def quantize(peer: str, source: Path, name: str, images: np.ndarray, out: Path) -> None:
    match peer:
        case "ort_minmax":
            onnxruntime_quantize(source, name, images, out, method="MinMax")
        case "ort_percentile":
            onnxruntime_quantize(source, name, images, out, method="Percentile")
        case "nncf":
            nncf_quantize(source, name, images, out, full_bias_correction=False)
        case "nncf_full_bias":
            nncf_quantize(source, name, images, out, full_bias_correction=True)


def versions() -> dict[str, str]:
    return {p: metadata.version(p) for p in ("onnxruntime", "nncf", "onnx", "numpy")}


def folder() -> Path:
    return place.work() / "peers"


def result(model: data.TrainedModel, peer: str) -> dict[str, Any]:
    """What `peer` made of `model`, made now unless it is there: `path`, costs, or `error` in the peer's words."""
    out = folder() / model.name / f"{peer}.onnx"
    record = out.with_suffix(".json")
    if record.exists():
        kept = json.loads(record.read_text())
        if kept.get("versions") == versions():
            return {**kept, "path": out}
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{model.title}: {PEERS[peer]} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.measure", sys.executable, "-m", "benchmarks.peers"]
    done = subprocess.run(
        [*command, "--inside", peer, "--model", model.name, "--out", str(out)],
        cwd=place.REPOSITORY, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    cost = json.loads(done.stdout)
    inside = json.loads(record.read_text()) if record.exists() else {"error": f"exit code {cost['exit_code']}"}
    if "error" in inside:
        out.unlink(missing_ok=True)
    kept = {**inside, "process": cost, "versions": versions()}
    record.write_text(json.dumps(kept, indent=1))
    return {**kept, "path": out}


def peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run_inside(peer: str, model: data.TrainedModel, out: Path) -> None:
    images, source = model.calibration(), modern(model.onnx, out)
    before, began = os.times(), time.perf_counter()
    record: dict[str, Any] = {"peer": peer, "model": model.name, "calibration_images": len(images)}
    try:
        quantize(peer, source, model.input_name, images, out)
    except Exception as error:  # whatever a peer raises is its result on this model
        record["error"] = f"{type(error).__name__}: {error}"[:300]
    after = os.times()
    record["call"] = {
        "wall_s": round(time.perf_counter() - began, 3),
        "cpu_s": round(sum(after[:4]) - sum(before[:4]), 3),
        "max_rss_mb": round(peak_rss_mb(), 1),
    }
    if out.exists():
        record["bytes"] = out.stat().st_size
    out.with_suffix(".json").write_text(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="by default all")
    parser.add_argument("--peer", action="append", choices=PEERS, help="by default all")
    parser.add_argument("--inside", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    models = data.trained_models()
    if arguments.inside:
        run_inside(arguments.inside, models[arguments.model[0]], arguments.out)
        return
    for name in arguments.model or models:
        for peer in arguments.peer or PEERS:
            print(json.dumps({k: v for k, v in result(models[name], peer).items() if k != "path"}))


if __name__ == "__main__":
    main()
