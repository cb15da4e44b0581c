"""Whether a fault counts: what a file answers on unseen images, beside the float source. Nothing here is edgeopt's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.scoring import TFLiteRunner, agreement, onnx_runner, outputs, sqnr_db


@dataclass(frozen=True)
class Harm:
    """SQNR in dB over all outputs and top-1 agreement in percent, against float on right images.

    `agreement` is None where the model does not classify.
    """

    sqnr_db: float
    agreement: float | None


def harm(right: np.ndarray, artifact: Path, images: np.ndarray, *, classifier: bool) -> Harm:
    """`right`: what the source answers on right images. An artifact that does not run on `images` is all wrong."""
    lost = Harm(-np.inf, 0.0 if classifier else None)
    try:
        channels = right.shape[1] if right.ndim == 4 else None
        runner = onnx_runner(artifact) if artifact.suffix == ".onnx" else TFLiteRunner(artifact, channels)
        made = outputs(runner, images)
    except Exception:
        return lost
    if made.size != right.size or not np.isfinite(made).all():
        return lost
    made = made.reshape(right.shape)
    return Harm(sqnr_db(right, made), agreement(right, made) if classifier else None)


def counts(found: Harm, clean: list[Harm]) -> bool:
    """More predictions changed, or more SQNR lost, than 99 % of the clean conversions of the same model and target."""
    if found.sqnr_db < np.quantile([one.sqnr_db for one in clean], 0.01):
        return True
    if found.agreement is None:
        return False
    return bool(found.agreement < np.quantile([one.agreement for one in clean], 0.01))
