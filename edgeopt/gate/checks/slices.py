"""Per class and per named group: the worst drop has its own limit, corrected for how many slices were looked at."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.data import images
from edgeopt.errors import DataError
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.statistics import holm, mcnemar
from edgeopt.pipeline.verdict import SliceRecord

ID = "slices"
REASON = "quantization hurts rare classes first, and a mean over all samples hides it"
Mask = npt.NDArray[np.bool_]


def run(evidence: Evidence, target: str) -> Said | None:
    if not evidence.is_classifier or evidence.labels is None:
        return None
    policy, labels = evidence.policy.slices, evidence.labels
    right = evidence.answers(None) == labels
    kept = evidence.answers(target) == labels
    found = []
    for group, name, mask in _slices(evidence, labels):
        if int(mask.sum()) < policy.min_samples:
            continue
        lost, won = int((right & ~kept & mask).sum()), int((kept & ~right & mask).sum())
        found.append((group, name, mask, mcnemar(lost, won)))
    if not found:
        return Said(
            "inconclusive",
            f"no slice has {policy.min_samples} samples",
            remedy="Give more labelled evaluation samples.",
        )
    records = [
        SliceRecord(
            group=group,
            name=name,
            samples=int(mask.sum()),
            float_=float(right[mask].mean()),
            target=float(kept[mask].mean()),
            drop=float(right[mask].mean() - kept[mask].mean()),
            p_adjusted=adjusted,
        )
        for (group, name, mask, _), adjusted in zip(found, holm([p for *_, p in found]), strict=True)
    ]
    records.sort(key=lambda record: -record.drop)
    worst, limit = records[0], policy.max_drop
    bad = [r for r in records if r.drop > limit and r.p_adjusted < evidence.policy.alpha]
    unsure = [r for r in records if r.drop > limit and r not in bad]
    seen: dict[str, Any] = {"slices": tuple(records)}
    figures: Figures = {
        "slices": len(records), "worst": f"{worst.group} {worst.name}", "worst_drop": worst.drop,
    }  # fmt: skip
    details = tuple(_text(record) for record in records[:5])
    if bad:
        return Said(
            "fail",
            f"{_text(bad[0])}; at most {limit * 100:g} points" + (f" ({len(bad)} slices)" if len(bad) > 1 else ""),
            remedy="Put samples of this slice into the calibration set; look at the last layers.",
            details=details,
            figures=figures,
            evidence=seen,
        )
    if unsure:
        return Said(
            "inconclusive",
            f"{_text(unsure[0])}: above {limit * 100:g} points, and too few samples to tell from chance",
            remedy="Give more evaluation samples of this slice.",
            details=details,
            figures=figures,
            evidence=seen,
        )
    return Said("pass", f"{len(records)} slices, the worst: {_text(worst)}", details=details, figures=figures,
                evidence=seen)  # fmt: skip


def _text(record: SliceRecord) -> str:
    return (
        f"{record.group} '{record.name}' {record.float_:.1%} → {record.target:.1%} on {record.samples} samples "
        f"(p = {record.p_adjusted:.2g} after Holm)"
    )


def _slices(evidence: Evidence, labels: npt.NDArray[np.int64]) -> Iterator[tuple[str, str, Mask]]:
    for index in np.unique(labels):
        yield "class", evidence.class_name(int(index)), labels == index
    policy = evidence.policy.slices
    if not policy.columns:
        return
    columns = _columns(evidence, policy.columns)
    for column, values in columns.items():
        for value in sorted(set(values)):
            yield column, value, np.array([one == value for one in values])


def _columns(evidence: Evidence, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    """Values of the named columns, in the order of the samples."""
    source = evidence.run.recipe.data.evaluation
    table = evidence.policy.slices.table or (source.labels if source is not None else None)
    if table is None:
        raise DataError(
            f"no table for the slices {', '.join(wanted)}",
            where="policy: slices",
            hint="Give `slices: {table: FILE.csv}`, or a labels file with these columns.",
        )
    head, rows = _read(table)
    if missing := [name for name in wanted if name not in head]:
        raise DataError(f"no column {', '.join(missing)}; it has {', '.join(head)}", where=str(table))
    numbers = getattr(evidence.samples, "numbers", range(len(evidence.samples)))
    if source is not None and source.images is not None:
        by_file = {row[head[0]]: row for row in rows}
        files = images.find_images(source.images, source.limit)
        chosen = [_row(by_file, files[number], source.images, table) for number in numbers]
    else:
        if len(rows) <= max(numbers, default=-1):
            raise DataError(f"{len(rows)} rows for {len(evidence.samples)} samples", where=str(table))
        chosen = [rows[number] for number in numbers]
    return {name: [row[name] for row in chosen] for name in wanted}


def _row(rows: dict[str, dict[str, str]], path: Path, folder: Path, table: Path) -> dict[str, str]:
    names = [path.relative_to(folder).as_posix()]
    if path.is_relative_to(table.parent):
        names.append(path.relative_to(table.parent).as_posix())
    for name in names:
        if name in rows:
            return rows[name]
    raise DataError(f"no line for {names[0]}", where=str(table))


def _read(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
            return list(reader.fieldnames or ()), rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", where=str(table), hint="A CSV file with a header.") from error
