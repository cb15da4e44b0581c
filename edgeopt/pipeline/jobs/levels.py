"""What a job adds to the report of a parity level."""

from __future__ import annotations

from edgeopt.parity.compare import LevelReport
from edgeopt.parity.localize import TensorErrors


def labelled(report: LevelReport, samples: str) -> LevelReport:
    """The report says on which samples it rests."""
    return report.model_copy(update={"label": f"{samples}: {report.label}"})


def located(report: LevelReport, errors: TensorErrors, best_db: float) -> LevelReport:
    found = {"located": errors.locate(report.level, best_db), "tensors_db": errors.sqnr_db()}
    return report.model_copy(update=found)
