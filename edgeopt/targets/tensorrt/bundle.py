"""What lies in a bundle beside the model: how to build it, how to check it, and what it was checked against."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes import tensorrt as engine
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.targets.tensorrt.verdict import FileVerdict
from edgeopt.targets.tensorrt.versions import Version
from edgeopt.types import Confidence

Array = npt.NDArray[Any]

MODEL, HALF_MODEL, DLA_MODEL = engine.MODEL, "model.fp16.onnx", engine.DLA_MODEL
BUILD, README, RULES, RUNNER, RAW = "build.sh", "README.md", "rules.json", "engine.py", "samples"
CONFIDENCE_FILE = "confidence.json"


def write_rules(folder: Path, verdicts: Mapping[str, FileVerdict]) -> None:
    """``rules.json``: every file of the bundle with the verdict of every rule."""
    files = {name: verdict.model_dump(mode="json") for name, verdict in verdicts.items()}
    text = json.dumps({"schema": "edgeopt.rules/1", "files": files}, indent=1)
    (folder / RULES).write_text(text + "\n", encoding="utf-8")


def write_confidence(folder: Path, confidence: Confidence | None) -> None:
    """``confidence.json``: as in the model's metadata, which an engine loses."""
    if confidence is not None:
        (folder / CONFIDENCE_FILE).write_text(confidence.model_dump_json(indent=1) + "\n", encoding="utf-8")


def write_build(folder: Path, version: Version, *, half: bool) -> None:
    """``build.sh``, and ``engine.py``, which does the same through the Python API and compares."""
    (folder / BUILD).write_text(build_script(version, half=half), encoding="utf-8")
    (folder / BUILD).chmod(0o755)
    (folder / RUNNER).write_bytes(Path(engine.__file__).read_bytes())


def build_script(version: Version, *, half: bool) -> str:
    """A script that runs ``trtexec`` of the release with the flags that it needs, and refuses another major version."""
    only_build = "--buildOnly" if version.release <= (8, 5) else "--skipInference"
    cases = [f'  int8) model={MODEL}; flags="{" ".join(version.flags)}" ;;']
    if half:
        flags = "--fp16" if version.major < 10 else " ".join(version.flags)
        cases.append(f'  fp16) model={HALF_MODEL}; flags="{flags}" ;;')
    if version.dla:
        flags = f"--int8 --fp16 --calib={engine.CALIBRATION} --useDLACore=0 --allowGPUFallback"
        cases.append(f'  dla) model={DLA_MODEL}; flags="{flags}" ;;')
    kinds = [case.strip().partition(")")[0] for case in cases]
    choices = "\n".join(cases)
    return f"""#!/usr/bin/env bash
# Builds an engine with trtexec of TensorRT {version.major}.x; this bundle is for {version.label}.
# An engine runs on the kind of GPU that it was built on, so run this there: ./build.sh [{"|".join(kinds)}]
set -euo pipefail
cd "$(dirname "$0")"
kind=${{1:-{"dla" if version.dla else "int8"}}}
trtexec=${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}
[ -x "$trtexec" ] || {{ echo "no trtexec at $trtexec: install TensorRT, or set TRTEXEC" >&2; exit 3; }}
# Its banner says v8502 for 8.5.2 and v100300 for 10.3.0.
found=$("$trtexec" --help 2>&1 | sed -n 's/.*TensorRT v\\([0-9]*\\).*/\\1/p' | head -n 1 || true)
case "$found" in
  "") ;;
  ?????*) major=${{found:0:2}} ;;
  *) major=${{found:0:1}} ;;
esac
if [ "${{major:-{version.major}}}" != {version.major} ]; then
  echo "this bundle is for TensorRT {version.major}.x, and $trtexec is of ${{major}}.x: convert again for it" >&2
  exit 1
fi
case "$kind" in
{choices}
  *) echo "'$kind' is none of: {", ".join(kinds)}" >&2; exit 2 ;;
esac
plan="${{model%.onnx}}.plan"
# shellcheck disable=SC2086 # flags are words
"$trtexec" --onnx="$model" --saveEngine="$plan" --timingCacheFile={engine.TIMING_CACHE} $flags \\
  --profilingVerbosity=detailed --exportLayerInfo=layers.json {only_build}
echo "built $plan; python3 {RUNNER} compares an engine with the saved outputs"
"""


def write_samples(folder: Path, samples: Iterable[Mapping[str, Array]]) -> int:
    """``samples.npz``: inputs, and what the model makes of them in ONNX Runtime without optimisations; how many.

    The first sample is also there in raw bytes, as ``trtexec --loadInputs`` reads it.
    """
    given: dict[str, list[Array]] = {}
    made: dict[str, list[Array]] = {}
    with Session(folder / MODEL, optimize=False) as session:
        for feed in samples:
            one = {name: np.ascontiguousarray(feed[name]) for name in session.inputs}
            for name, array in one.items():
                given.setdefault(name, []).append(array)
            for name, array in session.run(one).items():
                made.setdefault(name, []).append(np.asarray(array))
    stored = {f"{engine.INPUT_KEY}{name}": np.stack(arrays) for name, arrays in given.items()}
    stored |= {f"{engine.OUTPUT_KEY}{name}": np.stack(arrays) for name, arrays in made.items()}
    np.savez(folder / engine.SAMPLES, allow_pickle=False, **stored)
    (folder / RAW).mkdir(exist_ok=True)
    for name, arrays in given.items():
        (folder / RAW / f"{_file_name(name)}.dat").write_bytes(arrays[0].tobytes())
    return len(next(iter(given.values()), []))


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)


def calibration_cache(scales: Mapping[str, float]) -> str:
    """Scales in the text form of TensorRT's calibration caches: float32 in hexadecimal, largest byte first."""
    lines = [f"{name}: {np.float32(scale).view(np.uint32):08x}" for name, scale in scales.items()]
    return "\n".join(["TRT-8502-EntropyCalibration2", *lines]) + "\n"


def write_readme(folder: Path, version: Version, verdict: FileVerdict, *, half: bool, inputs: Iterable[str]) -> None:
    """``README.md``, for the person who builds and runs the engine."""
    load = ",".join(f"{name}:{RAW}/{_file_name(name)}.dat" for name in inputs)
    files = [
        (MODEL, f"the model, opset {verdict.opset}: int8 as Q/DQ pairs with zero point 0"),
        *([(HALF_MODEL, "the same model in float16 throughout, to compare with")] if half else []),
        *(
            [
                (DLA_MODEL, "the model in float, for the DLA, which takes no Q/DQ pairs"),
                (engine.CALIBRATION, f"its activation scales; TensorRT chooses those of {DLA_MODEL}'s weights itself"),
            ]
            if version.dla
            else []
        ),
        (BUILD, f"builds the engine with trtexec of TensorRT {version.major}.x"),
        (RUNNER, "builds it with the Python API, counts its int8 layers, compares it with the saved outputs"),
        (engine.SAMPLES, "real inputs (`input/NAME`) and expected outputs (`output/NAME`), first axis samples"),
        (RAW, "the first input in raw bytes, for `trtexec --loadInputs`"),
        (RULES, "every rule of acceptance and speed, and what was found on the files here"),
        *(
            [(CONFIDENCE_FILE, "temperature of its logits, and a threshold")]
            if (folder / CONFIDENCE_FILE).exists()
            else []
        ),
    ]
    rows = "\n".join(f"| `{name}` | {what} |" for name, what in files)
    state = "kept" if verdict.accepted else "BROKEN"
    broken = f" Broken: {', '.join(verdict.broken)}." if verdict.broken else ""
    dla = " dla" if version.dla else ""
    plan = DLA_MODEL.replace(".onnx", ".plan") if version.dla else engine.PLAN
    text = f"""# Bundle for {version.label}

An engine runs on the kind of GPU and the TensorRT that built it, so it is built where it will run. Unless a
`{engine.PLAN}` lies here, it is **not built and not measured**. Rules of acceptance: {state}.{broken}

```sh
./{BUILD}{dla}                # trtexec → {plan} (TRTEXEC=/path/to/trtexec if it is not found)
trtexec --loadEngine={plan} --loadInputs={load}   # latency
python3 {RUNNER}{dla}         # or: {engine.PLAN} by the Python API, int8 layers counted, compared with saved outputs
```

`{RUNNER}` needs Python with `tensorrt` and numpy. It prints the SQNR against the saved outputs, which ONNX Runtime made
with optimisations off. TensorRT sums in another order: expect tens of dB, not equality.

| file | what |
|---|---|
{rows}
"""
    (folder / README).write_text(text, encoding="utf-8")
