"""The two Keras models of MLPerf Tiny, read from their .h5, beside the int8 files that TensorFlow made of them:
`python -m benchmarks.keras_models`.

The reference is the float TFLite file that was published with each, so nothing of edgeopt's stands on that side. Both
int8 files take and give int8 (`io: int8`), both are calibrated on training images; ours is converted from the command
line with defaults. One thread, all files of a model interleaved.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import convert, data, place, scoring, tables

ROUNDS = 100


@dataclass(frozen=True)
class Published:
    """A Keras file and what was published with it; ``images`` loads (n, C, H, W) float32 and labels."""

    name: str
    title: str
    stem: str
    images: Any

    def path(self, suffix: str) -> Path:
        return place.data() / f"{self.stem}{suffix}"


def cifar10(calibration: bool) -> tuple[np.ndarray, np.ndarray]:
    """As ResNet8 takes them: pixels 0–255."""
    images, labels = data.cifar10(place.data() / "cifar10", calibration)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (data.IMAGENET_MEAN, data.IMAGENET_STD))
    return np.rint((images * std + mean) * 255).astype(np.float32), labels


def visual_wake_words(calibration: bool) -> tuple[np.ndarray, np.ndarray]:
    return data.visual_wake_words(place.data() / "visual_wake_words", calibration)


MODELS = (
    Published("resnet8", "ResNet8, CIFAR-10", "cifar10/resnet8", cifar10),
    Published("vww_keras", "MobileNetV1-0.25, VWW", "visual_wake_words/mobilenet_v1_025", visual_wake_words),
)


def ours(model: Published) -> convert.Conversion:
    images, _ = model.images(True)
    folder = place.work() / "keras" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "calibration.npz", input_1=images)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"edgeopt: 1\nmodel: {{keras: {model.path('.h5')}}}\ndata: {{calibration: {{arrays: calibration.npz}}}}\n"
        "passes: [{use: quantize}]\ntargets: {tflite: {io: int8}, onnx: {}}\n"
    )
    return convert.convert(folder, place.work() / "edgeopt" / model.name)


def measure(model: Published) -> list[dict[str, Any]]:
    images, labels = model.images(False)
    run = ours(model)
    files = {
        "TensorFlow, float TFLite": model.path("_float.tflite"),
        "TensorFlow, int8 TFLite": model.path("_int8.tflite"),
        "**edgeopt**, int8 TFLite": run.path("tflite"),
        "**edgeopt**, int8 ONNX": run.path("onnx"),
    }
    runners = {
        who: scoring.TFLiteRunner(path) if path.suffix == ".tflite" else scoring.onnx_runner(path, precise=False)
        for who, path in files.items()
    }
    found = {who: scoring.outputs(runner, images) for who, runner in runners.items()}
    spent = scoring.interleaved_ms({w: (lambda r=r: r(images[:1])) for w, r in runners.items()}, rounds=ROUNDS)
    right = found["TensorFlow, float TFLite"]
    return [
        {
            "who": who,
            "bytes": files[who].stat().st_size,
            "top1": scoring.top1(found[who], labels),
            "images": len(images),
            "ms": float(np.median(spent[who])),
            **(
                {"sqnr_db": scoring.sqnr_db(right, found[who]), "agreement": scoring.agreement(right, found[who])}
                if found[who] is not right
                else {}
            ),
        }
        for who in files
    ]


def markdown(results: dict[str, list[dict[str, Any]]]) -> str:
    parts = [
        tables.conditions("python -m benchmarks.keras_models", ("keras", "torch", "ai-edge-litert", "onnxruntime"))
    ]
    for model in MODELS:
        rows = results[model.name]
        parts.append(f"#### {model.title} ({rows[0]['images']} evaluation images)")
        body = [
            [
                row["who"],
                tables.number(row.get("sqnr_db"), 2),
                tables.number(row.get("agreement"), 2),
                tables.number(row["top1"], 2),
                tables.thousands(row["bytes"]),
                tables.number(row["ms"], 3),
            ]
            for row in rows
        ]
        header = ["", "SQNR dB (probabilities)", "top-1 agreement %", "top-1 %", "bytes", "ms"]
        parts.append(tables.table(header, body))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    arguments = parser.parse_args()
    for model in MODELS:
        for suffix in (".h5", "_float.tflite", "_int8.tflite"):
            if not model.path(suffix).is_file():
                raise place.CannotRunError(f"no file at {model.path(suffix)}")
    results = {model.name: measure(model) for model in MODELS}
    tables.publish("keras_models", markdown(results), results, write=arguments.write)


if __name__ == "__main__":
    place.run(main)
