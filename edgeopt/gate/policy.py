"""What a team asks of a model before it ships. Every limit has its reason beside it, and can be changed in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgeopt.recipe.load import load_values
from edgeopt.types import Frozen

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class ParityPolicy(Frozen):
    """Tolerances of the three levels. What is None is derived, and the derivation is shown.

    Args:
        max_conversion_error: relative error of ``L0``. Derived: from how much numerically equivalent variants of
            the float graph differ.
        min_sqnr_db: of ``L1``, the integer reference against float. Derived: from what the same quantization
            reaches when it may calibrate on evaluation samples (``yardstick``).
        yardstick_margin_db: how far below the yardstick is allowed. Derived: 1 dB, which right conversions differ by,
            and up to 1 dB for what the samples, or two yardsticks of other calibration samples, leave to chance.
        yardstick: ``recipe`` quantizes again with the recipe's own passes (effort ``fast``), ``minmax`` with plain
            min–max ranges and nearest rounding, ``none`` not at all.
    """

    max_conversion_error: Positive | None = None
    min_sqnr_db: float | None = None
    yardstick: Literal["recipe", "minmax", "none"] = "recipe"
    yardstick_margin_db: Positive | None = None


class MetricPolicy(Frozen):
    """The task metric.

    Args:
        name: ``top1``, ``map`` (needs ``decode`` and ``truth``), ``miou`` (needs ``truth``), or ``module:function``,
            called with outputs by name (arrays, first axis samples) and the samples' numbers; higher is better.
            ``auto``: top-1 where labels are class indices.
        max_drop: float minus artifact. One point: what users of the field accept.
        decode: ``module:function``: outputs of one sample by name → rows of x1, y1, x2, y2, score, class.
        truth: for ``map`` COCO JSON, its images by id in the order of the samples; for ``miou`` an npz with
            ``masks`` [n, H, W].
        ignore: class index that ``miou`` leaves out.
    """

    name: Annotated[str, Field(pattern=r"^(auto|top1|map|miou|[\w.]+:\w+)$")] = "auto"
    max_drop: Share = 0.01
    decode: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    truth: Path | None = None
    ignore: int = 255


class SlicePolicy(Frozen):
    """Slices: classes, and named groups.

    Args:
        max_drop: of the worst slice. Five points: small slices are noisy, and a class that is lost loses far more.
        columns: of ``table``, each value one slice.
        table: CSV with a header. For images its first column is the file; for arrays its rows are in sample order.
        min_samples: slices with fewer are not judged.
    """

    max_drop: Share = 0.05
    columns: tuple[str, ...] = ()
    table: Path | None = None
    min_samples: Count = 5


class ConfidencePolicy(Frozen):
    """``max_ece_increase``: five points make a threshold wrong that was tuned on the float model. ``max_error``: share
    of wrong answers that the recommended threshold is chosen for."""

    max_ece_increase: Share = 0.05
    max_error: Share = 0.01


class RegressionPolicy(Frozen):
    """``file``: samples that must not flip; ``edgeopt gate --keep-failures`` adds to it. ``max_flips``: of them."""

    file: Path | None = None
    max_flips: Annotated[int, Field(ge=0)] = 0


class PrecisionPolicy(Frozen):
    """``max_float_ops``: weighted operators in float where int8 was asked. ``max_leftovers``: operators that should
    not be there. ``max_partitions``: of the delegate; None: not judged, as a node kept in float makes two."""

    max_float_ops: Annotated[int, Field(ge=0)] = 0
    max_leftovers: Annotated[int, Field(ge=0)] | None = None
    max_partitions: Count | None = None


class LatencyPolicy(Frozen):
    """Latency budgets.

    Args:
        p50_ms: device (``here``: the machine of the run) → milliseconds.
        results: a file of ``edgeopt bench --json`` with figures of other devices.
        allow_predicted: a prediction counts, by its ``high``.
        slower_than_float: what an int8 file that is slower than float is.
    """

    p50_ms: dict[str, Positive] = Field(default_factory=dict)
    results: Path | None = None
    allow_predicted: bool = False
    slower_than_float: Literal["fail", "inconclusive"] = "inconclusive"


class BudgetPolicy(Frozen):
    """``size_mb``: 10⁶ bytes. ``memory_mb``: peak of one run, from ``latency.results``."""

    size_mb: Positive | None = None
    memory_mb: Positive | None = None


class RobustnessPolicy(Frozen):
    """``samples``: 0 leaves it out. ``max_drop``: artifact below float on perturbed images, beyond the drop on clean
    ones."""

    samples: Annotated[int, Field(ge=0)] = 64
    max_drop: Share = 0.05


class DoctorPolicy(Frozen):
    """Calibration data. ``min_samples``: below it ranges hang on single images; ``max_duplicates``: share."""

    min_samples: Count = 16
    max_duplicates: Share = 0.5


class Policy(Frozen):
    """Everything that is asked. All keys may be left out.

    Args:
        inconclusive: whether a check that cannot tell lets the gate pass.
        skip: ids of checks that are not run; each is named in the result.
        samples: evaluation samples at most.
        confidence_level: of intervals and tests.
        seed: of bootstraps and perturbations.
    """

    inconclusive: Literal["pass", "fail"] = "pass"
    skip: tuple[str, ...] = ()
    samples: Count | None = None
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: int = 0
    parity: ParityPolicy = ParityPolicy()
    metric: MetricPolicy = MetricPolicy()
    slices: SlicePolicy = SlicePolicy()
    confidence: ConfidencePolicy = ConfidencePolicy()
    regression: RegressionPolicy = RegressionPolicy()
    precision: PrecisionPolicy = PrecisionPolicy()
    latency: LatencyPolicy = LatencyPolicy()
    budget: BudgetPolicy = BudgetPolicy()
    robustness: RobustnessPolicy = RobustnessPolicy()
    calibration: DoctorPolicy = DoctorPolicy()

    @property
    def alpha(self) -> float:
        return 1 - self.confidence_level


def load_policy(path: Path) -> Policy:
    """Read a policy file; relative paths in it start at its folder.

    Raises:
        RecipeError: with ``file:line:column``.
    """
    policy = load_values(path, Policy, what="policy")
    root = path.parent

    def placed(file: Path | None) -> Path | None:
        return None if file is None else root / file

    return policy.model_copy(
        update={
            "metric": policy.metric.model_copy(update={"truth": placed(policy.metric.truth)}),
            "slices": policy.slices.model_copy(update={"table": placed(policy.slices.table)}),
            "regression": policy.regression.model_copy(update={"file": placed(policy.regression.file)}),
            "latency": policy.latency.model_copy(update={"results": placed(policy.latency.results)}),
        }
    )
