"""Whether a fault counts: what a file answers on unseen images, beside the float source. Nothing here is edgeopt's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.scoring import TFLiteRunner, agreement, onnx_runner, outputs, sqnr_db


@dataclass(frozen=True)
class Harm:
    """SQNR in dB and top-1 agreement in percent, against float on right images."""

    sqnr_db: float
    agreement: float


def harm(source: Path, artifact: Path, images: np.ndarray, given: np.ndarray | None = None) -> Harm:
    """`given`: the images as the fault has them prepared; None: right. An artifact that does not run is all wrong."""
    right = outputs(onnx_runner(source), images)
    try:
        runner = onnx_runner(artifact) if artifact.suffix == ".onnx" else TFLiteRunner(artifact)
        made = outputs(runner, images if given is None else given)
    except Exception:
        return Harm(-np.inf, 0.0)
    if made.size != right.size or not np.isfinite(made).all():
        return Harm(-np.inf, 0.0)
    return Harm(sqnr_db(right, made.reshape(right.shape)), agreement(right, made.reshape(right.shape)))


def counts(found: Harm, clean: list[Harm]) -> bool:
    """More predictions changed, or more SQNR lost, than 99 % of the clean conversions of the same model and target."""
    least_db = np.quantile([one.sqnr_db for one in clean], 0.01)
    least_agreement = np.quantile([one.agreement for one in clean], 0.01)
    return bool(found.sqnr_db < least_db or found.agreement < least_agreement)
