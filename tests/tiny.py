"""Small models and samples made in code, for tests that need a whole conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image

SIZE = 12
CLASSES = 4


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "w1": (random.normal(size=(8, 3, 3, 3)) / 4).astype(np.float32),
        "b1": random.normal(size=8).astype(np.float32),
        "w2": (random.normal(size=(8, 1, 3, 3)) / 2).astype(np.float32),
        "b2": random.normal(size=8).astype(np.float32),
        "w3": random.normal(size=(8, CLASSES)).astype(np.float32),
    }


def save_model(
    path: Path,
    *,
    arrays: dict[str, np.ndarray] | None = None,
    shape: str = f"1,3,{SIZE},{SIZE}",
    before: str = "x = Identity (image)",
) -> Path:
    """Conv, Relu, depthwise Conv, Relu, pool, MatMul: ``image`` → ``logits`` [1, 4]. ``before``: makes x of image."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[{shape}] image) => (float[1,{CLASSES}] logits) {{
            {before}
            c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
            a1 = Relu (c1)
            c2 = Conv <pads = [1,1,1,1], group = 8> (a1, w2, b2)
            a2 = Relu (c2)
            p = GlobalAveragePool (a2)
            f = Flatten (p)
            logits = MatMul (f, w3)
        }}
        """
    initializers = [ir.tensor(array, name=name) for name, array in (arrays or weights()).items()]
    ir.save(ir.from_onnx_text(text, initializers=initializers), path)
    return path


def samples(count: int = 12, seed: int = 1) -> np.ndarray:
    """float32 [count, 3, SIZE, SIZE] in 0–1."""
    return np.random.default_rng(seed).random((count, 3, SIZE, SIZE), np.float32)


def save_samples(path: Path, images: np.ndarray | None = None, **more: np.ndarray) -> Path:
    np.savez(path, image=samples() if images is None else images, **more)
    return path


def save_images(folder: Path, count: int = 6, *, size: int = SIZE, mode: str = "RGB") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(2)
    for index in range(count):
        pixels = random.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{index:03d}.png")
    return folder
