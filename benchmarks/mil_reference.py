"""The MIL reference on packages that coremltools makes of the seven seeded nets: `python -m benchmarks.mil_reference`.

Packages are of coremltools' PyTorch route (`torch.export`, `run_decompositions({})`, `ct.convert`). Errors are
relative, over four images. PyTorch's own float32 is held against its float64 too: where a net amplifies rounding, two
right evaluations differ by as much. Compressed forms are held against coremltools' own expansion of the same file.
"""

import argparse
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

from benchmarks import place, tables

NETS = ["mobilenet_v2", "mobilenet_v3_small", "resnet18", "efficientnet_b0", "deit_tiny", "yolo", "unet"]
IMAGES = 4
LARGEST = 1e-5  # relative error of a float32 program


def seeded_nets() -> Any:
    spec = importlib.util.spec_from_file_location("nets", place.seeded_nets())
    if spec is None or spec.loader is None or importlib.util.find_spec("coremltools") is None:
        raise place.CannotRunError("this needs the extras torch and coreml, and timm")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def measure(name: str, nets: Any, folder: Path) -> dict[str, Any]:
    import coremltools as ct
    import torch
    from coremltools.optimize.coreml import decompress_weights

    net, size = nets.build(name)
    images = nets.smooth_images(IMAGES, size, 7)
    with torch.no_grad():
        single = torch.cat([net(images[i : i + 1]) for i in range(IMAGES)]).numpy()
    exported = torch.export.export(net, (images[:1],)).run_decompositions({})
    with torch.no_grad():
        double = torch.cat([net.double()(images[i : i + 1].double()) for i in range(IMAGES)]).numpy()

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
    with_numpy, numpy_seconds, _ = evaluated(plain, images.numpy(), use_torch=False)
    wide, _, _ = evaluated(plain, images.numpy(), wide_sums=True)
    half = saved(package("iOS16", "FLOAT16"), "fp16")
    rounded, half_seconds, non_finite = evaluated(half, images.numpy())
    unrounded, _, _ = evaluated(half, images.numpy(), rounding=False)
    record: dict[str, Any] = {
        "net": name,
        "fp32": relative(found, single),
        "fp32 against float64": relative(found, double),
        "fp32 with numpy alone against float64": relative(with_numpy, double),
        "fp32 with float64 sums against float64": relative(wide, double),
        "PyTorch float32 against float64": relative(single, double),
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


def report(records: list[dict[str, Any]]) -> str:
    header = ["net", "fp32 against PyTorch", "float64 sums against its float64", "PyTorch's own float32", "fp16",
              "of it rounding of weights", "not finite", "compressed, at most",
              "s per image fp32 / numpy alone / fp16"]  # fmt: skip
    rows = [
        [
            one["net"], f"{one['fp32']:.1e}", f"{one['fp32 with float64 sums against float64']:.1e}",
            f"{one['PyTorch float32 against float64']:.1e}", f"{one['fp16']:.1e}",
            f"{one['fp16 without rounding']:.1e}",
            one["non_finite"], f"{max(one['compressed'].values()):.1e}",
            " / ".join(f"{value:.2f}" for value in one["seconds"].values()),
        ]
        for one in records
    ]  # fmt: skip
    return tables.table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="*", help=f"which of {', '.join(NETS)}; by default all")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        nets = seeded_nets()
    except place.CannotRunError as error:
        print(error, file=sys.stderr)
        sys.exit(place.SKIPPED)
    records = []
    for name in arguments.net or NETS:
        with tempfile.TemporaryDirectory() as folder:
            records.append(measure(name, nets, Path(folder)))
        print(json.dumps(records[-1]), file=sys.stderr, flush=True)
    print(report(records))
    print(tables.conditions("python -m benchmarks.mil_reference", ("coremltools", "torch", "numpy", "timm")))
    wrong = [
        one["net"]
        for one in records
        # Where PyTorch's own float32 is further from float64 than that, it cannot tell who is right: float64 can.
        if min(one["fp32"], one["fp32 with float64 sums against float64"]) > LARGEST
        or max(one["compressed"].values()) > LARGEST
    ]
    if wrong:
        print(f"failed: {', '.join(wrong)}: relative error above {LARGEST:g}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
