"""The recipe's data, opened as a model takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeopt.data import arrays, callables, images
from edgeopt.data.noise import NoiseSamples
from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.recipe.schema import DataSource
from edgeopt.types import Preprocess, Signature


@dataclass(frozen=True)
class Inputs:
    """Where samples come from, for any job.

    Args:
        training, calibration, evaluation: as in the recipe.
        preprocess: as in the recipe; completed when the model's input is known.
        root: folder of the recipe, for callables.
    """

    training: DataSource | None
    calibration: DataSource | None
    evaluation: DataSource | None
    preprocess: Preprocess | None
    root: Path

    def open(self, which: str, signature: Signature) -> LabelledSamples | None:
        """``training``, ``calibration`` or ``evaluation`` samples of a model; None if the recipe names none."""
        source: DataSource | None = getattr(self, which)
        if source is None:
            return None
        specs = signature.inputs
        if source.arrays is not None:
            return arrays.ArraySamples(source.arrays, specs, limit=source.limit)
        if source.callable is not None:
            return callables.CallableSamples(source.callable, self.root, specs, limit=source.limit)
        assert source.images is not None
        spec = images.image_input(specs, str(source.images))
        preprocess, _ = images.complete_preprocess(self.preprocess, spec)
        return images.ImageSamples(source.images, spec, preprocess, labels=source.labels, limit=source.limit)

    def for_parity(self, signature: Signature, limit: int, seed: int) -> tuple[LabelledSamples, str]:
        """Samples to compare on, at most ``limit``, and which they are: evaluation, else calibration, else noise."""
        for which in ("evaluation", "calibration"):
            if (samples := self.open(which, signature)) is not None:
                return Few(samples, limit), which
        return NoiseSamples(signature, seed), "noise"

    def contract(self, signature: Signature) -> tuple[Preprocess | None, tuple[str, ...]]:
        """The preprocessing that travels with artifacts, and what of it was assumed."""
        if any(source is not None and source.images is not None for source in (self.calibration, self.evaluation)):
            return images.complete_preprocess(self.preprocess, images.image_input(signature.inputs, "images"))
        return self.preprocess, ()
