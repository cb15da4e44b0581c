"""The MIL reference on packages that coremltools makes of the seven seeded nets: `python -m benchmarks.mil_reference`.

Packages are of coremltools' PyTorch route (`torch.export`, `run_decompositions({})`, `ct.convert`). Errors are the
Euclidean norm of the difference over that of the right answer, over four images. Two right float32 evaluations differ
by what the net makes of rounding, so PyTorch is also held against itself with other kernels (oneDNN off), and both
sides against each other with their sums in float64, where 1e-5 can be told on every net. Compressed forms are held
against coremltools' own expansion of the same file.
"""

import argparse
import copy
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import nets, place, tables

IMAGES = 4
LARGEST = 1e-5  # relative error of a float32 program
EXACT, ITSELF = "fp32 with float64 sums against float64", "PyTorch float32 against itself"


def relative(found: np.ndarray, right: np.ndarray) -> float:
    right = right.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right))


def evaluated(path: Path, images: np.ndarray, **options: Any) -> tuple[np.ndarray, float, int]:
    """Outputs, seconds per image, and how many values were not finite."""
    from edgeopt.runtimes.mil_reference import Session

    with Session(path, **options) as session:
        name = next(iter(session.inputs))
        session.run({name: images[:1]})
        began = time.perf_counter()
        rows = [next(iter(session.run({name: images[i : i + 1]}).values())) for i in range(len(images))]
        return np.concatenate(rows), (time.perf_counter() - began) / len(images), session.non_finite.total()


def compressors(opset: str) -> dict[str, Callable[[Any], Any]]:
    from coremltools.optimize import coreml as cto

    def linear(**options: Any) -> Callable[[Any], Any]:
        config = cto.OptimizationConfig(global_config=cto.OpLinearQuantizerConfig(mode="linear_symmetric", **options))
        return lambda model: cto.linear_quantize_weights(model, config)

    def palettes(**options: Any) -> Callable[[Any], Any]:
        config = cto.OptimizationConfig(global_config=cto.OpPalettizerConfig(mode="uniform", **options))
        return lambda model: cto.palettize_weights(model, config)

    if opset == "iOS16":
        return {"iOS16 int8": linear(), "iOS16 palette6": palettes(nbits=6)}
    return {
        "iOS18 int4 in blocks": linear(dtype="int4", granularity="per_block", block_size=8),
        "iOS18 palette4 in groups": palettes(nbits=4, granularity="per_grouped_channel", group_size=8),
    }


def measure(name: str, folder: Path) -> dict[str, Any]:
    import coremltools as ct
    import torch
    from coremltools.optimize.coreml import decompress_weights

    seeded = nets.load()
    net, size = seeded.build(name)
    images = seeded.smooth_images(IMAGES, size, 7)
    with torch.no_grad():
        single = torch.cat([net(images[i : i + 1]) for i in range(IMAGES)]).numpy()
        with torch.backends.mkldnn.flags(enabled=False):
            other = torch.cat([net(images[i : i + 1]) for i in range(IMAGES)]).numpy()
    exported = torch.export.export(net, (images[:1],)).run_decompositions({})
    double_net = copy.deepcopy(net).double()
    with torch.no_grad():
        double = torch.cat([double_net(images[i : i + 1].double()) for i in range(IMAGES)]).numpy()

    def package(opset: str, precision: str) -> Any:
        return ct.convert(
            exported,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, opset),
            compute_precision=getattr(ct.precision, precision),
            skip_model_load=True,
        )

    def saved(model: Any, label: str) -> Path:
        path = folder / f"{name} {label}.mlpackage"
        model.save(str(path))
        return path

    models = {opset: package(opset, "FLOAT32") for opset in ("iOS16", "iOS18")}
    plain = saved(models["iOS16"], "fp32")
    found, seconds, _ = evaluated(plain, images.numpy())
    with_numpy, numpy_seconds, _ = evaluated(plain, images.numpy()[:1], use_torch=False)  # many times slower
    wide, _, _ = evaluated(plain, images.numpy(), wide_sums=True)
    half = saved(package("iOS16", "FLOAT16"), "fp16")
    rounded, half_seconds, non_finite = evaluated(half, images.numpy())
    unrounded, _, _ = evaluated(half, images.numpy(), rounding=False)
    record: dict[str, Any] = {
        "net": name,
        "fp32": relative(found, single),
        "fp32 against float64": relative(found, double),
        "fp32 with numpy alone against float64": relative(with_numpy, double[:1]),
        EXACT: relative(wide, double),
        "PyTorch float32 against float64": relative(single, double),
        ITSELF: relative(other, single),
        "fp16": relative(rounded, double),
        "fp16 without rounding": relative(unrounded, double),
        "non_finite": non_finite,
        "seconds": {"fp32": seconds, "fp32 with numpy alone": numpy_seconds, "fp16": half_seconds},
        "compressed": {},
    }
    for opset, model in models.items():
        for label, compress in compressors(opset).items():
            small = compress(model)
            made, _, _ = evaluated(saved(small, label), images.numpy()[:1])
            right, _, _ = evaluated(saved(decompress_weights(small), f"{label} expanded"), images.numpy()[:1])
            record["compressed"][label] = relative(made, right)
    return record


def markdown(records: list[dict[str, Any]]) -> str:
    plain = [
        [
            one["net"],
            *(f"{one[key]:.1e}" for key in (
                "fp32", ITSELF, EXACT, "fp32 against float64",
                "fp32 with numpy alone against float64", "PyTorch float32 against float64",
            )),
            f"{one['fp16']:.1e}",
            f"{one['fp16 without rounding']:.1e}",
            one["non_finite"],
            " / ".join(f"{value:.2f}" for value in one["seconds"].values()),
        ]
        for one in records
    ]  # fmt: skip
    forms = [label for opset in ("iOS16", "iOS18") for label in compressors(opset)]
    compressed = [[one["net"], *(f"{one['compressed'][label]:.1e}" for label in forms)] for one in records]
    apart = [one for one in records if one["fp32"] > LARGEST]
    above = [one["net"] for one in records if one[EXACT] > LARGEST]
    wrong = [one["net"] for one in records if max(one["compressed"].values()) > LARGEST]
    notes = [
        f"- {'Met' if not above else '**Not met**'}: both sides with their sums in float64, at most {LARGEST:g}, on "
        f"{len(records) - len(above)} of {len(records)} nets{'' if not above else ': not on ' + ', '.join(above)}.",
        f"- {'Met' if not apart else '**Not met**'}: both sides in float32, at most {LARGEST:g}, on "
        f"{len(records) - len(apart)} of {len(records)} nets"
        + "".join(
            f"; {one['fp32']:.1e} on {one['net']}, where PyTorch's float32 is {one[ITSELF]:.1e} from itself with other"
            " kernels"
            for one in apart
        )
        + ".",
        f"- {'Met' if not wrong else '**Not met**'}: compressed forms against coremltools' own expansion"
        f"{'' if not wrong else ': not on ' + ', '.join(wrong)}.",
    ]
    if absent := [name for name in nets.NAMES if name not in {one["net"] for one in records}]:
        notes.append(f"- Not measured yet: {', '.join(absent)}.")
    return "\n\n".join(
        [
            tables.conditions("python -m benchmarks.mil_reference", ("coremltools", "torch", "numpy", "timm")),
            "Packages of coremltools' PyTorch route. ‖difference‖₂ / ‖right‖₂ over the first output of four images "
            "(numpy alone: of one).",
            tables.table(
                [
                    *("net", "fp32 against PyTorch", "PyTorch against itself, oneDNN off", "both with float64 sums"),
                    *("fp32 against float64", "with numpy alone", "PyTorch's float32 against float64"),
                    *("fp16 against float64", "of it rounding of weights", "not finite"),
                    "s per image: fp32 / numpy alone / fp16",
                ],
                plain,
            ),
            tables.table(["net, compressed", *forms], compressed),
            "\n".join(notes),
        ]
    )


def before() -> dict[str, Any]:
    """What earlier runs with fewer nets left in the work folder: it stands until it is measured again."""
    path = place.work() / "results" / "mil_reference.json"
    return {one["net"]: one for one in json.loads(path.read_text())} if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", choices=nets.NAMES, help="by default all")
    parser.add_argument("--write", action="store_true", help="write the result to README.md")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    if importlib.util.find_spec("coremltools") is None:
        raise place.CannotRunError("this needs the extra coreml")
    for name in arguments.net or nets.NAMES:
        print(f"mil_reference: {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found = before() | {name: measure(name, Path(folder))}
        print("   ", found[name], file=sys.stderr, flush=True)
        records = [found[one] for one in nets.NAMES if one in found]
        # At once, so that what was measured stands even if a later net takes too long.
        tables.publish("mil_reference", markdown(records), records, write=arguments.write, show=False)
    print(markdown(records))
    sys.exit(any(max(one[EXACT], *one["compressed"].values()) > LARGEST for one in records))


if __name__ == "__main__":
    place.run(main)
