"""``L2``: the artifact on its own runtime, segment by segment on the reference's integers, and end to end."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.errors import EdgeoptError, ModelError
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.differing_layer import computed_by
from edgeopt.gate.evidence import Evidence
from edgeopt.parity.compare import LevelReport
from edgeopt.parity.levels import check_artifact, check_quantization
from edgeopt.pipeline.jobs import PARITY_SAMPLES

ID = "parity-lowering"
REASON = "the file is what ships: it must compute what the table says, on its own runtime"
TIES_DB = 60.0
"""On equal integers right kernels differ at ties only: where the whole is too far off, a segment below is named."""


def run(evidence: Evidence, target: str) -> Said:
    run, limits = evidence.run, evidence.run.recipe.parity
    # Segments are looked at on the first few: in an order of chance, as data is often sorted by class or brightness.
    few = list(evidence.few(PARITY_SAMPLES))
    few = [few[index] for index in np.random.default_rng(evidence.policy.seed).permutation(len(few))]
    graph = run.own_graph(target)
    try:
        report = check_artifact(
            graph,
            run.artifacts[target],
            run.runnable(target),
            few,
            reference=check_quantization(graph, few),
            tolerance=limits.tolerance,
            min_sqnr_db=limits.min_sqnr_db,
            min_top1_agreement=limits.min_top1_agreement,
            localize=evidence.localize,
        )
    except ModelError as problem:
        return Said(
            "inconclusive",
            f"this artifact cannot be run on this machine: {problem.what}",
            remedy="Run the gate where its runtime is.",
        )
    except (EdgeoptError, ValueError, KeyError) as problem:
        return Said(
            "fail",
            f"the artifact does not run as the graph does: {' '.join(str(problem).split())[:300]}",
            remedy="Inputs, outputs or operators of the file are not those of the model: convert again.",
        )
    figures: Figures = {"sqnr_db": round(report.sqnr_db, 2)}
    details = [f"tolerances: one step on equal integers for 99.9 % of the values; {report.label}"]
    if report.reference_sqnr_db is not None:
        figures["reference_sqnr_db"] = round(report.reference_sqnr_db, 2)
        details.append(f"the integer reference itself is {report.reference_sqnr_db:.1f} dB from float")
    if report.within_one_step is not None:
        figures["within_one_step"] = round(report.within_one_step, 6)
    if not report.failures:
        shown = f"L2 {report.sqnr_db:.1f} dB"
        if report.within_one_step is not None:
            shown += f", {report.within_one_step:.2%} of segment values within one step"
        if evidence.localize and report.located is not None:
            details.append(f"the layer that loses most: {report.located.text}")
        return Said("pass", shown, details=tuple(details), figures=figures)
    layer, text = _cause(run.graph.model, report)
    return Said(
        "fail",
        text,
        remedy="The file does not hold what the table says. Convert again; if it stays, it is a defect of the target.",
        details=(*details, *report.failures),
        layer=layer,
        figures=figures,
    )


def _cause(model: ir.Model, report: LevelReport) -> tuple[str | None, str]:
    if report.located is not None:
        node = report.located.node
        return node, report.located.text.replace(node, computed_by(model, node), 1)
    judged = [segment for segment in report.segments if segment.kind == "int8"]
    worst = min(judged, key=lambda segment: segment.parity.sqnr_db, default=None)
    if worst is not None and worst.parity.sqnr_db < TIES_DB:
        return worst.node, (
            f"node {computed_by(model, worst.node)}: its segment is {worst.parity.sqnr_db:.1f} dB from the reference "
            f"on the same integers, "
            f"the lowest of all; {report.failures[0]}"
        )
    return None, report.failures[0]
