"""The record of one run: everything that a report says, typed. ``edgeopt.report/1``."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from edgeopt.bench.results import BenchResult
from edgeopt.data.check import DataStats
from edgeopt.parity.compare import LevelReport
from edgeopt.training.base import TrainingRecord
from edgeopt.types import Confidence, Effort, Engine, Frozen, Kept, Preprocess, Realised, SchemeName, Signature, Status


class SourceRecord(Frozen):
    """The model that was converted. ``name``: file or factory as the recipe has it, without folders."""

    name: str
    kind: Literal["onnx", "torch", "exported", "keras"]
    digest: str
    signature: Signature


class DataRecord(Frozen):
    """One data source: what it is, and what a look at its samples showed (of evaluation data, at the first few)."""

    name: str
    digest: str
    labelled: bool
    stats: DataStats


class Metric(Frozen):
    """Task metric on labelled evaluation samples. ``top1``: share of right answers of the first output."""

    top1: float
    samples: int


class Metrics(Frozen):
    """The metric of the float graph and of the artifact, on the same samples."""

    float_: Metric = Field(alias="float")
    target: Metric
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Latency(Frozen):
    """The artifact beside the float model in the same format, measured in one process.

    ``slower_than_float``: median over float's median, where quantization made it slower beyond the noise.
    """

    kind: Literal["measured"] = "measured"
    target: BenchResult
    float_: BenchResult | None = Field(default=None, alias="float")
    slower_than_float: float | None = None
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class TargetRecord(Frozen):
    """One target: what was built, and what was found on it.

    Args:
        path: of the artifact, relative to the output folder; None if there is none.
        why: why the status is not ``ok``, in words.
        parity: ``L1`` (the same for all targets that read one table) and ``L2``.
        identical_integers_with: targets that carry the same weight integers and the same activation grids.
        identical_weights_with: further ones, with the same weight integers and other grids.
        own_grids: why its grids are its own, and what that costs.
        engine: what the device's own runtime built, where it is here.
        seconds: wall-clock seconds of writing and checking it, when that was done; targets run side by side.
    """

    status: Status
    why: str | None = None
    path: str | None = None
    digest: str | None = None
    size_bytes: int | None = None
    scheme: SchemeName | Literal["mixed"]
    signature: Signature | None = None
    layouts: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    preprocess: Preprocess | None = None
    confidence: Confidence | None = None
    parity: dict[Literal["L1", "L2"], LevelReport] = Field(default_factory=dict)
    metrics: Metrics | None = None
    latency_ms: Latency | None = None
    realised: Realised | None = None
    identical_integers_with: tuple[str, ...] = ()
    identical_weights_with: tuple[str, ...] = ()
    own_grids: str | None = None
    engine: Engine | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


class QuantizationRecord(Frozen):
    """What the quantize pass tried, what it brought, what stayed; how ranges were found (estimator → tensors)."""

    kept: tuple[Kept, ...] = ()
    ranges: dict[str, int] = Field(default_factory=dict)
    schemes: dict[str, int] = Field(default_factory=dict)


class StepRecord(Frozen):
    """One step: its key, whether it was found finished, and its wall-clock seconds in this run."""

    name: str
    key: str
    cached: bool
    seconds: float


class Report(Frozen):
    """``report.json``. See the fields' own types; every number says how it came to be."""

    schema_: Literal["edgeopt.report/1"] = Field(default="edgeopt.report/1", alias="schema")
    edgeopt: str
    source: SourceRecord
    scheme: SchemeName | Literal["mixed"]
    effort: Effort
    seconds: float
    exit_code: Literal[0, 1, 2, 3, 4]
    data: dict[Literal["calibration", "evaluation"], DataRecord] = Field(default_factory=dict)
    training: tuple[TrainingRecord, ...] = ()
    parity: dict[Literal["L0"], LevelReport] = Field(default_factory=dict)
    quantization: QuantizationRecord = QuantizationRecord()
    targets: dict[str, TargetRecord]
    steps: tuple[StepRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Manifest(Frozen):
    """``manifest.json``: where the artifacts come from. Digests are SHA-256.

    Dates and times stand only here and in the report.
    """

    schema_: Literal["edgeopt.manifest/1"] = Field(default="edgeopt.manifest/1", alias="schema")
    model_digest: str
    data_digests: dict[str, str]
    recipe_digest: str
    artifacts: dict[str, str]
    versions: dict[str, str]
    code_digest: str
    machine: str
    git_commit: str | None
    seed: int
    started: str
    finished: str
    seconds: dict[str, float]
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
