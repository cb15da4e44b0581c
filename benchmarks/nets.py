"""The seven seeded nets: as modules, and as ONNX files with images to convert them with."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from benchmarks import data, place

NAMES = ("mobilenet_v2", "mobilenet_v3_small", "resnet18", "efficientnet_b0", "deit_tiny", "yolo", "unet")
INPUT = "image"


@functools.cache  # it registers operators with PyTorch, which can be done once
def load() -> ModuleType:
    """nets.py, which lies beside the data folder.

    Raises:
        CannotRunError: it is not there, or a package that it needs is not.
    """
    if missing := [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]:
        raise place.CannotRunError(f"the seeded nets need {' and '.join(missing)}")
    spec = importlib.util.spec_from_file_location("nets", place.seeded_nets())
    assert spec is not None and spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    return nets


def onnx_file(nets: ModuleType, name: str) -> Path:
    """The net as PyTorch exports it, input ``image`` (1, 3, size, size); made once."""
    import torch

    path = place.work() / "nets" / f"{name}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model, size = nets.build(name)
        draft = path.with_suffix(".draft.onnx")
        example = (torch.zeros(1, 3, size, size),)
        torch.onnx.export(model, example, draft, dynamo=True, input_names=[INPUT], verbose=False, external_data=False)
        draft.rename(path)
    return path


def photos(part: str, count: int, size: int) -> np.ndarray:
    """`count` ImageNet photos of ``calibration`` or ``evaluation``, evenly spread, (n, 3, size, size) float32."""
    folder = place.data() / "imagenet"
    rows = data.imagenet_rows(folder, part)
    chosen = [rows[k * len(rows) // count] for k in range(count)]
    pixels = []
    for row in chosen:
        crop = Image.fromarray(data.centre_crop(Image.open(folder / row["file"]), 224).transpose(1, 2, 0))
        pixels.append(np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255)
    mean, std = np.float32(data.IMAGENET_MEAN), np.float32(data.IMAGENET_STD)
    return np.ascontiguousarray(((np.stack(pixels) - mean) / std).transpose(0, 3, 1, 2))
