"""What the same quantization reaches when it may look at evaluation samples: a limit that the model itself sets.

The yardstick is no model to ship: it calibrates on every second evaluation sample and is judged on the others, so
that a run which calibrated on other, too few or wrong samples, or whose table was spoilt, falls short of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from edgeopt import digest
from edgeopt.data.samples import Few, LabelledSamples
from edgeopt.errors import EdgeoptError
from edgeopt.gate.evidence import Evidence
from edgeopt.graph.model import serialise
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.compare import LevelReport, noise_ratio_error_db
from edgeopt.parity.levels import check_quantization
from edgeopt.parity.localize import LOCALIZE_SAMPLES, quantization_errors
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import FALLBACK, Quantize
from edgeopt.pipeline.store import HOME
from edgeopt.targets.registry import all_constraints
from edgeopt.types import Frozen

MOST_SAMPLES = 200
"""Half of them calibrate: more changes an SQNR by tenths of a decibel."""
LEAST_SAMPLES = 8


@dataclass(frozen=True)
class Yardstick:
    """Its SQNR in dB on the samples that judged it, the run's own on the same, the standard error of their difference,
    in words how it was made, and the SQNR of each of its tensors."""

    sqnr_db: float
    ours_db: float
    chance_db: float
    how: str
    tensors_db: Mapping[str, float]


class _Half:
    """Every second sample, from ``first`` on."""

    def __init__(self, samples: LabelledSamples, first: int) -> None:
        self._samples, self._first = samples, first

    def __len__(self) -> int:
        return len(range(self._first, len(self._samples), 2))

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (feed for index, feed in enumerate(self._samples) if index % 2 == self._first)


def measure(evidence: Evidence) -> Yardstick | None:
    """None where nothing was quantized with static scales, there are too few samples, the policy wants none, or the
    weights were trained for the integers, which brings answers and not decibels."""
    kind, run = evidence.policy.parity.yardstick, evidence.run
    asked = next((step for step in run.recipe.passes if isinstance(step, Quantize)), None)
    few = Few(evidence.samples, MOST_SAMPLES)
    if (
        kind == "none"
        or asked is None
        or not evidence.asked_int8()
        or len(few) < LEAST_SAMPLES
        or evidence.graph_was_trained
    ):
        return None
    judged = _Half(few, 1)
    ours = check_quantization(run.graph, judged)
    step = _plain(asked, minimal=kind == "minmax")
    ids = [evidence.sample_ids[number] for number in few.numbers]
    key = digest.of_json([digest.of_bytes(serialise(run.source)), step.model_dump(mode="json"), ids])
    kept = run.out / HOME / f"yardstick-{key}.json"
    how = f"{'min–max ranges' if kind == 'minmax' else 'the recipe’s quantization'} calibrated on evaluation samples"
    if (known := _read(kept)) is not None:
        return _beside(ours, known, how)
    with TemporaryDirectory(dir=evidence.scratch) as scratch:
        context = Context(
            scratch=Path(scratch),
            calibration=_Half(few, 0),
            constraints=all_constraints(),
            effort="fast",
            threads=1,
            seed=run.recipe.seed,
        )
        try:
            made = step.run(QuantizedGraph(run.source.clone()), context)
        except EdgeoptError:
            return None
    found = check_quantization(made, judged)
    errors = quantization_errors(made, Few(evidence.samples, LOCALIZE_SAMPLES)).sqnr_db()
    stored = _Stored(sqnr_db=found.sqnr_db, sample_noise=found.sample_noise, tensors_db=errors)
    kept.write_text(stored.model_dump_json() + "\n", encoding="utf-8")
    return _beside(ours, stored, how)


class _Stored(Frozen):
    sqnr_db: float
    sample_noise: tuple[float, ...]
    tensors_db: dict[str, float]


def _beside(ours: LevelReport, theirs: _Stored, how: str) -> Yardstick:
    chance = noise_ratio_error_db(ours.sample_noise, theirs.sample_noise)
    return Yardstick(theirs.sqnr_db, ours.sqnr_db, chance, how, theirs.tensors_db)


def _plain(asked: Quantize, *, minimal: bool) -> Quantize:
    """The pass with everything settled that it would try out."""
    settled: dict[str, object] = {"input_lattice": False, "engine": "edgeopt"}
    if minimal:
        settled |= {"ranges": "minmax", "equalize": "none", "rounding": "nearest", "bias_correction": False}
    else:
        settled["equalize"] = FALLBACK.equalize if asked.equalize == "auto" else asked.equalize
        settled["rounding"] = FALLBACK.rounding if asked.rounding == "auto" else asked.rounding
        settled["bias_correction"] = True if asked.bias_correction == "auto" else asked.bias_correction
    return asked.model_copy(update=settled)


def _read(path: Path) -> _Stored | None:
    try:
        return _Stored.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def required_db(yardstick: Yardstick, margin_db: float) -> float:
    """The least SQNR: the margin below the yardstick, and twice the standard error of the difference, but never more
    than half the margin: a fault that strikes a few samples makes that error large by itself."""
    return yardstick.sqnr_db - margin_db - min(2 * yardstick.chance_db, margin_db / 2)
