"""What the same quantization reaches when it may look at evaluation samples: a limit that the model itself sets.

The yardstick is no model to ship: it calibrates on every second evaluation sample and is judged on the others, so
that a run which calibrated on other, too few or wrong samples, or whose table was spoilt, falls short of it. Where a
run falls short by so little that it may be chance, a second yardstick is made with the halves exchanged: how far the
two differ is what calibration data and samples make of the same quantization.
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
from edgeopt.parity.localize import quantization_errors
from edgeopt.passes.base import Context
from edgeopt.passes.quantize.quantize import FALLBACK, Quantize
from edgeopt.pipeline.store import HOME
from edgeopt.targets.registry import all_constraints
from edgeopt.types import Frozen

MOST_SAMPLES = 200
"""Half of them calibrate: more changes an SQNR by tenths of a decibel."""
LEAST_SAMPLES = 8
TENSOR_SAMPLES = 32
"""Of those that judge: tensor by tensor two right quantizations differ by up to 8 dB on 4 samples, by 1.5 on 32."""
LEAST_MARGIN_DB = 1.0
"""What seeds, calibration samples and schemes make: of 60 right conversions of five models, the one that fell shortest
of its yardstick was 0.8 dB below it."""
MOST_CHANCE_DB = 1.0
"""Of what samples make by chance: a fault that strikes a few of them makes that large by itself."""
SHORT_DB = LEAST_MARGIN_DB + MOST_CHANCE_DB + 2.0
"""A run that is further below the first yardstick falls short whatever a second one says."""


@dataclass(frozen=True)
class Yardstick:
    """One or two yardsticks beside the run.

    Args:
        sqnr_db: of the yardstick, on samples that it did not see; of two the mean.
        ours_db: of the run, on the same.
        chance_db: standard error of their difference: of the samples that judged, or, if that is more, of the two
            differences.
        how: in words how it was made.
        tensors_db: SQNR of each of the first one's tensors.
        ours_tensors_db: of the run's, on the same samples.
    """

    sqnr_db: float
    ours_db: float
    chance_db: float
    how: str
    tensors_db: Mapping[str, float]
    ours_tensors_db: Mapping[str, float]

    def margin_db(self, asked: float | None) -> float:
        """How far below is allowed: what is asked for, or what right conversions differ by and twice the chance."""
        return LEAST_MARGIN_DB + min(2 * self.chance_db, MOST_CHANCE_DB) if asked is None else asked


class _Half:
    """Every second sample, from ``first`` on."""

    def __init__(self, samples: LabelledSamples, first: int) -> None:
        self._samples, self._first = samples, first
        self.labels = None if samples.labels is None else samples.labels[first::2]
        self.where = samples.where

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
    step = _plain(asked, minimal=kind == "minmax")
    how = f"{'min–max ranges' if kind == 'minmax' else 'the recipe’s quantization'} calibrated on evaluation samples"
    first = _beside(evidence, step, few, calibrated=0)
    if first is None:
        return None
    ours, theirs = first
    chance = noise_ratio_error_db(ours.sample_noise, theirs.sample_noise)
    own = quantization_errors(run.graph, Few(_Half(few, 1), TENSOR_SAMPLES)).sqnr_db()
    made = Yardstick(theirs.sqnr_db, ours.sqnr_db, chance, how, theirs.tensors_db, own)
    short = theirs.sqnr_db - ours.sqnr_db
    if not LEAST_MARGIN_DB < short < SHORT_DB or (second := _beside(evidence, step, few, calibrated=1)) is None:
        return made
    again, other = second
    shorts = (short, other.sqnr_db - again.sqnr_db)
    pooled = noise_ratio_error_db(
        (*ours.sample_noise, *again.sample_noise), (*theirs.sample_noise, *other.sample_noise)
    )
    return Yardstick(
        (theirs.sqnr_db + other.sqnr_db) / 2,
        (ours.sqnr_db + again.sqnr_db) / 2,
        max(pooled, abs(shorts[0] - shorts[1]) / 2),
        how,
        theirs.tensors_db,
        own,
    )


def _beside(evidence: Evidence, step: Quantize, few: Few, *, calibrated: int) -> tuple[LevelReport, _Stored] | None:
    """The run and the yardstick that calibrates on one half (0: even places), both on the other."""
    run, judged = evidence.run, _Half(few, 1 - calibrated)
    ours = check_quantization(run.graph, judged)
    ids = [evidence.sample_ids[number] for number in few.numbers]
    values = [digest.of_bytes(serialise(run.source)), step.model_dump(mode="json"), ids, calibrated, TENSOR_SAMPLES]
    kept = run.out / HOME / f"yardstick-{digest.of_json(values)}.json"
    if (known := _read(kept)) is not None:
        return ours, known
    with TemporaryDirectory(dir=evidence.scratch) as scratch:
        context = Context(
            scratch=Path(scratch),
            calibration=_Half(few, calibrated),
            constraints=all_constraints(),
            effort="fast",
            threads=1,
            seed=run.recipe.seed + calibrated,
        )
        try:
            made = step.run(QuantizedGraph(run.source.clone()), context)
        except EdgeoptError:
            return None
    found = check_quantization(made, judged)
    errors = quantization_errors(made, Few(judged, TENSOR_SAMPLES)).sqnr_db()
    stored = _Stored(sqnr_db=found.sqnr_db, sample_noise=found.sample_noise, tensors_db=errors)
    kept.write_text(stored.model_dump_json() + "\n", encoding="utf-8")
    return ours, stored


class _Stored(Frozen):
    sqnr_db: float
    sample_noise: tuple[float, ...]
    tensors_db: dict[str, float]


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
