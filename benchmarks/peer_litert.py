"""Convert the seven seeded nets with litert-torch and ai-edge-quantizer. Run with the peer environment's python:

    PEER_PYTHON peer_litert.py NETS.py OUT [NAME ...]

Per net NAME it leaves in OUT: NAME.onnx and NAME_images.npz (what edgeopt is given: the same weights, 32 calibration
and 64 evaluation images), NAME_reference.npy (PyTorch's outputs on the evaluation images), NAME_float.tflite,
NAME_int8.tflite (static int8, the quantizer's own calibration: a moving average), NAME_int8_minmax.tflite (true minimum
and maximum over the calibration images) and NAME.json (seconds of each step, versions). A net whose JSON is there is
skipped.

It imports nothing of edgeopt and none of the other benchmark modules: it lives in another environment.
"""

import importlib.util
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CALIBRATION_IMAGES = 32
EVALUATION_IMAGES = 64
PACKAGES = ("torch", "litert-torch", "litert-converter", "ai-edge-quantizer", "ai-edge-litert", "timm", "numpy")


def load_nets(path):
    spec = importlib.util.spec_from_file_location("nets", path)
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    return nets


def minimum_maximum(quantizer, key, samples, threads):
    """Minimum and maximum of every tensor over all samples: the quantizer's own result is a moving average."""
    import numpy as np

    merged = {}
    for sample in samples:
        for name, found in quantizer.calibrate({key: [sample]}, num_threads=threads).items():
            if name not in merged or not merged[name] or "min" not in found:
                merged[name] = dict(found)
            else:
                merged[name]["min"] = np.minimum(merged[name]["min"], found["min"])
                merged[name]["max"] = np.maximum(merged[name]["max"], found["max"])
    return merged


def convert(nets, name, out):
    import litert_torch
    import numpy as np
    import torch
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.utils import tfl_interpreter_utils

    torch.set_num_threads(1)
    model, size = nets.build(name)
    calibration = nets.smooth_images(2 * CALIBRATION_IMAGES, size, seed=7)[:CALIBRATION_IMAGES]
    evaluation = nets.smooth_images(EVALUATION_IMAGES, size, seed=11)
    np.savez(out / f"{name}_images.npz", calibration=calibration.numpy(), evaluation=evaluation.numpy())
    with torch.no_grad():
        reference = np.concatenate([model(x[None]).numpy() for x in evaluation])
    np.save(out / f"{name}_reference.npy", reference)
    spatial = reference.ndim == 4

    began = time.perf_counter()
    program = torch.onnx.export(model, (calibration[:1],), dynamo=True, opset_version=20, verbose=False)
    program.save(str(out / f"{name}.onnx"))
    seconds = {"onnx_export": time.perf_counter() - began}

    # Channels last outside, as a mobile application has its images: litert-torch's own way to spare the transposes.
    began = time.perf_counter()
    outer = litert_torch.to_channel_last_io(model, args=[0], outputs=[0] if spatial else []).eval()
    sample = calibration[:1].permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(outer, (sample,)).export(str(out / f"{name}_float.tflite"))
    seconds["convert"] = time.perf_counter() - began

    path = str(out / f"{name}_float.tflite")
    interpreter = tfl_interpreter_utils.create_tfl_interpreter(path)
    key = next(iter(interpreter.get_signature_list()))
    argument = interpreter.get_signature_list()[key]["inputs"][0]
    samples = [{argument: x[None]} for x in calibration.permute(0, 2, 3, 1).contiguous().numpy()]
    ways = {
        "int8": lambda q: q.calibrate({key: samples}, num_threads=1),
        "int8_minmax": lambda q: minimum_maximum(q, key, samples, 1),
    }
    for label, calibrate in ways.items():
        began = time.perf_counter()
        q = quantizer.Quantizer(path)
        q.load_quantization_recipe(recipe.static_wi8_ai8())
        q.quantize(calibrate(q), enable_progress_report=False).export_model(
            str(out / f"{name}_{label}.tflite"), overwrite=True
        )
        seconds[f"quantize_{label}"] = time.perf_counter() - began
    record = {"net": name, "seconds": {k: round(v, 2) for k, v in seconds.items()}}
    record["versions"] = {p: metadata.version(p) for p in PACKAGES}
    # Last: a JSON that is there says that all the other files are whole.
    (out / f"{name}.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record), file=sys.stderr, flush=True)


def main():
    nets_path, out, *names = sys.argv[1:]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    nets = load_nets(nets_path)
    failed = []
    for name in names or nets.NAMES:
        if (out / f"{name}.json").exists():
            continue
        print(f"{name}: litert-torch and ai-edge-quantizer ...", file=sys.stderr, flush=True)
        try:
            convert(nets, name, out)
        except Exception as error:  # one net that a peer cannot convert must not hide the others
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
