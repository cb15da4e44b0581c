"""The artifacts, the data and the model are those that the run recorded."""

from __future__ import annotations

from edgeopt import digest
from edgeopt.data import arrays, images
from edgeopt.gate.check import Said
from edgeopt.gate.evidence import Evidence
from edgeopt.recipe.schema import DataSource

ID = "integrity"
REASON = "a file that changed after it was checked is another file, and labels that changed make another metric"


def run(evidence: Evidence, target: None) -> Said:
    run = evidence.run
    changed = []
    for name, record in run.report.targets.items():
        if record.path is None or not run.path(name).is_file():
            continue  # folders are compared by what runs in them
        if digest.of_file(run.path(name)) != run.manifest.artifacts.get(record.path):
            changed.append(f"{name}: the artifact {record.path} is not the one that was built")
    for which in ("calibration", "evaluation"):
        source: DataSource | None = getattr(run.recipe.data, which)
        known = run.manifest.data_digests.get(which)
        if source is None or known is None:
            continue
        if source.arrays is not None:
            now = arrays.digest(source.arrays)
        elif source.images is not None:
            now = images.digest(source.images, source.labels, source.limit)
        else:
            continue  # what a function yields is known by calling it; the other checks do
        if now != known:
            changed.append(f"the {which} data changed since the run was made")
    if changed:
        return Said(
            "fail",
            changed[0],
            remedy="Convert again, so that what is judged is what was built.",
            details=tuple(changed),
        )
    return Said("pass", f"{len(run.manifest.artifacts)} artifacts and the data are as recorded")
