"""A finished run, read back: report, recipe, graphs, table and artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.frontends import Source
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.parity.runners import runnable
from edgeopt.pipeline import jobs
from edgeopt.pipeline.record import Manifest, Report
from edgeopt.pipeline.request import read_request
from edgeopt.pipeline.run import MANIFEST, REPORT
from edgeopt.pipeline.store import HOME
from edgeopt.recipe.load import load_recipe
from edgeopt.recipe.schema import Recipe
from edgeopt.types import Artifact, Signature


@dataclass(frozen=True)
class RunFolder:
    """What ``edgeopt convert`` left in ``out``.

    Args:
        recipe, root: what was asked, and the folder of its modules.
        source: the float graph as imported (canonical, before any pass changed it).
        graph: the float graph after all passes, and the table.
        artifacts: by target, those that were built.
        trained: what the last training pass left of the recipe's module; None without training passes.
    """

    out: Path
    report: Report
    manifest: Manifest
    recipe: Recipe
    root: Path
    signature: Signature
    source: ir.Model
    graph: QuantizedGraph
    artifacts: dict[str, Artifact]
    trained: Path | None = None

    @property
    def inputs(self) -> jobs.Inputs:
        data = self.recipe.data
        return jobs.Inputs(data.training, data.calibration, data.evaluation, self.recipe.preprocess, self.root)

    def open_source(self) -> Source:
        """The model as the user has it, or as training passes left it, to be run. Raises as ``jobs.open_source``."""
        return jobs.open_source(self.recipe.model, self.root, trust=False, trained=self.trained)

    def path(self, target: str) -> Path:
        """Of the artifact that a user would ship."""
        return self.out / (self.report.targets[target].path or "")

    def runnable(self, target: str) -> Path:
        """What runs on this machine in the artifact's place: the artifact itself, or the file that stands for it."""
        return runnable(self.out / target, self.artifacts[target])

    def own_graph(self, target: str) -> QuantizedGraph:
        """The graph with the grids that this target was written from."""
        return self.recipe.requested()[target].own_graph(self.graph)


def read_run(out: Path, recipe: Path | None = None) -> RunFolder:
    """Read a run.

    Args:
        out: the output folder.
        recipe: where the recipe is now, if not where it was.

    Raises:
        UsageError: no run is there, or parts of it are missing.
    """
    if not (out / REPORT).is_file():
        raise UsageError(
            "no run is there: it holds no report.json",
            where=str(out),
            hint="Give the output folder of `edgeopt convert`.",
        )
    try:
        report = Report.model_validate_json((out / REPORT).read_text(encoding="utf-8"))
        manifest = Manifest.model_validate_json((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"the run cannot be read: {str(error).splitlines()[0]}",
            where=str(out),
            hint="It is damaged or of another version of edgeopt: convert again.",
        ) from error
    keys = {step.name: step.key for step in report.steps}
    steps = {name: out / HOME / "steps" / f"{name}-{key}" for name, key in keys.items()}
    if missing := [name for name in ("import", "passes") if not (steps.get(name, out / name) / jobs.RESULT).is_file()]:
        raise UsageError(
            f"finished steps are missing: {', '.join(missing)}",
            where=str(out / HOME),
            hint="Copy the whole folder, hidden files too (actions/upload-artifact: include-hidden-files: true).",
        )
    if recipe is not None:
        asked, root = load_recipe(recipe), recipe if recipe.is_dir() else recipe.parent
    else:
        asked, root = read_request(out)
    before_import = list(keys)[: list(keys).index("import")]  # training passes, in order
    artifacts = {}
    for name, record in report.targets.items():
        if record.path is not None and name in steps:
            artifacts[name] = jobs.read_result(steps[name], jobs.TargetResult).artifact
            if not (out / record.path).exists():
                raise UsageError(
                    f"the artifact of '{name}' is missing",
                    where=str(out / record.path),
                    hint="Convert again, or put it back.",
                )
    return RunFolder(
        out=out,
        report=report,
        manifest=manifest,
        recipe=asked,
        root=root,
        signature=jobs.read_result(steps["import"], jobs.ImportResult).signature,
        source=ir.load(steps["import"] / jobs.GRAPH),
        graph=jobs.load_graph(steps["passes"]),
        artifacts=artifacts,
        trained=steps[before_import[-1]] / jobs.MODULE if before_import else None,
    )
