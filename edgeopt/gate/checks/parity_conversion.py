"""``L0``: the source model against the float graph, within what float arithmetic itself leaves open."""

from __future__ import annotations

import numpy as np

from edgeopt.errors import EdgeoptError
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.noise_floor import noise_floor
from edgeopt.graph.model import serialise
from edgeopt.graph.quantization import Quantization
from edgeopt.parity.levels import check_source
from edgeopt.parity.localize import LOCALIZE_SAMPLES, ROUNDING_DB, source_errors
from edgeopt.pipeline.jobs import CONVERSION_SAMPLES
from edgeopt.runtimes.onnxruntime import Session

ID = "parity-conversion"
REASON = "a wrong import makes a wrong model on every target, and no quantization repairs it"

FACTOR = 100.0
"""Times the noise floor: other kernels (PyTorch's, for one) sum in other orders than any variant that is tried here."""
LEAST, MOST = 1e-5, 1e-3
"""float32 sums of a deep network differ by up to 1e-5 whatever the floor; beyond 1e-3 it is no rounding."""
PASSES_REL = 1e-3
"""Equalisation moves powers of any size between layers: more roundings than an import, no other function."""


def run(evidence: Evidence, target: None) -> Said:
    run, asked = evidence.run, evidence.policy.parity.max_conversion_error
    few = evidence.few(CONVERSION_SAMPLES)
    floor = noise_floor(run.source, few)
    limit = min(max(FACTOR * floor.relative, LEAST), MOST) if asked is None else asked
    derivation: tuple[str, ...] = (
        f"noise floor {floor.relative:.1e} ({floor.variants}); tolerance {limit:.1e}"
        + (f" = {FACTOR:g} × that, within {LEAST:g} to {MOST:g}" if asked is None else " as the policy asks"),
    )
    figures: Figures = {"noise_floor": floor.relative, "tolerance": limit}
    error, where = (0.0, "") if evidence.graph_was_trained else _graphs_differ(evidence)
    figures["passes_error"] = None if evidence.graph_was_trained else error
    if evidence.graph_was_trained:
        derivation += ("weights were trained after the import: the graph is not held against the imported one",)
    if not error <= PASSES_REL:
        return Said(
            "fail",
            f"the passes changed the function: node {where} and what follows differ from the imported graph by "
            f"{error:.1e} (at most {PASSES_REL:g})",
            remedy="A graph pass is wrong for this model: report it, and leave equalization out (`equalize: none`).",
            details=derivation,
            layer=where,
            figures=figures,
        )
    try:
        parity = check_source(run.open_source(), run.source, few, tolerance=limit)
    except (EdgeoptError, ImportError) as problem:
        recorded = run.report.parity["L0"]
        figures["relative_error"] = recorded.rel
        verdict, text = ("pass", "as recorded") if recorded.rel <= limit else ("fail", "as recorded, and too far")
        return Said(
            "inconclusive" if verdict == "pass" else "fail",
            f"L0 {recorded.rel:.1e}, {text}: the source cannot be run here ({type(problem).__name__})",
            remedy="Install what the source needs (edgeopt[torch]).",
            details=(*derivation, str(problem)),
            figures=figures,
        )
    figures["relative_error"] = parity.rel
    if not parity.failures:
        return Said("pass", f"L0 relative error {parity.rel:.1e}, tolerance {limit:.1e}", details=derivation,
                    figures=figures)  # fmt: skip
    layer, text = None, "the import differs from the source"
    if run.recipe.model.onnx is not None:
        errors = source_errors(run.recipe.model.onnx, run.source, evidence.few(LOCALIZE_SAMPLES))
        if (located := errors.locate("L0", ROUNDING_DB)) is not None:
            layer, text = located.node, f"import: {located.text}"
    return Said(
        "fail",
        f"{text}: relative error {parity.rel:.1e}, at most {limit:.1e}",
        remedy="The float graph is not the model: convert again, and report it if it stays.",
        details=(*derivation, *parity.failures),
        layer=layer,
        figures=figures,
    )


def _graphs_differ(evidence: Evidence) -> tuple[float, str]:
    """Relative error of the graph after all passes against the imported one, and the first node where it is."""
    run = evidence.run
    table = run.graph.quantization or Quantization()
    few = evidence.few(LOCALIZE_SAMPLES)
    signal = noise = 0.0
    with Session(serialise(run.source)) as before, Session(serialise(run.graph.model)) as after:
        for feed in few:
            made = after.run(feed)
            for name, right in before.run(feed).items():
                signal += float(np.square(right.astype(np.float64)).sum())
                noise += float(np.square(made[name].astype(np.float64) - right).sum())
    error = float(np.sqrt(noise / signal)) if signal else float(noise > 0)
    error = error if np.isfinite(error) else float("inf")
    if error <= PASSES_REL:
        return error, ""
    from edgeopt.gate.differing_layer import first_differing_layer

    return error, first_differing_layer(run.source, run.graph.model, few) or next(iter(table.schemes), "unknown")
