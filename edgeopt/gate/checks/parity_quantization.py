"""``L1``: the float graph against the integer reference, within what the same quantization can reach."""

from __future__ import annotations

import numpy as np

from edgeopt.gate import evidence as gate
from edgeopt.gate import yardstick
from edgeopt.gate.check import Figures, Said
from edgeopt.gate.differing_layer import computed_by, fused_into
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.metric_noise import least_sqnr_db
from edgeopt.gate.table_biases import wrong_biases
from edgeopt.gate.table_grids import wrong_grids
from edgeopt.gate.table_weights import wrong_weights
from edgeopt.graph.model import exposed
from edgeopt.parity import compare as parity
from edgeopt.parity.compare import EXACT_DB
from edgeopt.parity.levels import check_quantization
from edgeopt.parity.localize import BEST_INT8_DB, JUMP_DB, LOCALIZE_SAMPLES
from edgeopt.pipeline.jobs import PARITY_SAMPLES
from edgeopt.pipeline.verdict import Histogram, LayerError
from edgeopt.runtimes.onnxruntime import Session

ID = "parity-quantization"
REASON = "quantization loses something on every model; more than it must lose is a fault in scales, weights or data"

REMEDY = (
    "Check calibration data and preprocessing; else keep the named layer in float (`edgeopt gate RUN --bisect` finds "
    "the smallest set)."
)
SHOWN, BINS = 4, 48


def run(evidence: Evidence, target: None) -> Said | None:
    run, policy = evidence.run, evidence.policy.parity
    if run.graph.quantization is None or not any(
        scheme.startswith("int8") for scheme in run.graph.quantization.schemes.values()
    ):
        return None
    details: list[str] = []
    limit, why = policy.min_sqnr_db, "the policy asks for it"
    measured = yardstick.measure(evidence) if limit is None else None
    # The yardstick has judged the run on more samples already.
    ours = check_quantization(run.graph, evidence.few(PARITY_SAMPLES)).sqnr_db if measured is None else measured.ours_db
    figures: Figures = {"sqnr_db": round(ours, 2)}
    if limit is None and measured is not None:
        margin = measured.margin_db(policy.yardstick_margin_db)
        limit = measured.sqnr_db - margin
        why = f"{measured.how} reaches {measured.sqnr_db:.1f} dB"
        figures |= {"yardstick_db": round(measured.sqnr_db, 2), "beside_yardstick_db": round(ours, 2)}
        details.append(
            f"tolerance {limit:.1f} dB: {measured.how} reaches {measured.sqnr_db:.1f} dB on samples it did not "
            f"see; less {margin:.1f} dB, which right conversions differ by and chance makes; this run reaches "
            f"{ours:.1f} dB on the same"
        )
    if (task := least_sqnr_db(evidence)) is not None:
        figures["task_db"] = round(task, 2)
        details.append(
            f"below {task:.1f} dB, noise of that power on the float outputs loses more than "
            f"{evidence.policy.metric.max_drop:.1%} of the answers"
        )
        if limit is None:
            limit, why = task, "less loses more answers than the policy allows"
    faults = _in_graph_order(evidence, [*wrong_grids(evidence), *wrong_biases(evidence), *wrong_weights(evidence)])
    located = _jump(evidence, measured)
    more = {"layers": _layers(evidence), "histograms": _histograms(evidence)}
    if certain := [fault for fault in faults if fault.certain]:
        named = _explaining(evidence, faults, certain[0])
        others = list(dict.fromkeys(fault.layer for fault in certain if fault.layer != named.layer))
        also = f"; wrong too: {', '.join(others[:SHOWN])}" if others else ""
        expected = f", expected at least {limit:.1f} ({why})" if limit is not None and not ours >= limit else ""
        return Said(
            "fail",
            f"{named.text}{also}; L1 {ours:.1f} dB{expected}",
            remedy="The table of scales is not what calibration made: convert again; if it stays, a pass is defective.",
            details=(*details, *[fault.text for fault in faults if fault != named][:SHOWN]),
            layer=named.layer,
            figures=figures,
            evidence=more,
        )
    if limit is None:
        return Said("inconclusive", f"L1 {ours:.1f} dB, and nothing to hold it against",
                    remedy="Give evaluation data (8 samples or more) or `parity: {min_sqnr_db: …}`.",
                    details=tuple(details), figures=figures, evidence=more)  # fmt: skip
    figures["tolerance_db"] = round(limit, 2)
    wrong = _agreeing(evidence, faults, located) if measured is not None else None
    if np.isfinite(ours) and ours >= limit and wrong is not None and located is not None:
        details += [located.text, *(fault.text for fault in faults[:4] if fault != wrong)]
        return Said(
            "fail",
            f"{wrong.text}; its error is there from {located.before_db:.1f} to {located.after_db:.1f} dB, L1 as a "
            f"whole {ours:.1f} dB",
            remedy=REMEDY,
            details=tuple(details),
            layer=wrong.layer,
            figures=figures,
            evidence=more,
        )
    if np.isfinite(ours) and ours >= limit:
        details += [f"seen besides: {fault.text}" for fault in faults[:3]]
        if evidence.localize and located is not None:
            details.append(f"the layer that loses most: {located.text}")
        shown = "exact" if ours >= EXACT_DB else f"{ours:.1f} dB"
        return Said("pass", f"L1 {shown}, at least {limit:.1f}", details=tuple(details), figures=figures, evidence=more)
    layer, cause = _cause(evidence, faults, located)
    details += [fault.text for fault in faults[:4] if fault.text != cause]
    if located is not None and located.text != cause:
        details.append(located.text)
    return Said(
        "fail",
        f"{cause}; L1 {ours:.1f} dB, expected at least {limit:.1f} ({why})",
        remedy=REMEDY,
        details=tuple(details),
        layer=layer,
        figures=figures,
        evidence=more,
    )


def _explaining(evidence: Evidence, faults: list[gate.Located], certain: gate.Located) -> gate.Located:
    """The first fault from which ``certain`` may follow: a channel that one layer scales and the next does not undo
    makes the biases between them look wrong."""
    order = {node.name: place for place, node in enumerate(evidence.run.graph.model.graph)}
    place = order.get(certain.layer, -1)
    return next((f for f in faults if order.get(f.layer, -1) <= place <= order.get(f.until, -1)), certain)


def _in_graph_order(evidence: Evidence, faults: list[gate.Located]) -> list[gate.Located]:
    """Of several at one layer, what is certain first."""
    order = {node.name: place for place, node in enumerate(evidence.run.graph.model.graph)}
    return sorted(faults, key=lambda fault: (order.get(fault.layer, -1), not fault.certain))


def _jump(evidence: Evidence, measured: yardstick.Yardstick | None) -> parity.Located | None:
    """Where the error jumps: of the run by itself, or, better, beside what the yardstick has at the same tensor.

    Every quantized model has layers that lose much and do no harm; the yardstick has the same ones.
    """
    errors = evidence.layer_errors
    if errors is None:
        return None
    if measured is None:
        return errors.locate("L1", BEST_INT8_DB)
    ours = measured.ours_tensors_db
    more = {name: measured.tensors_db[name] - ours[name] for name in ours if name in measured.tensors_db}
    largest = max(more.values(), default=0.0)
    if largest < JUMP_DB:
        return errors.locate("L1", BEST_INT8_DB) if evidence.localize else None
    name = next(name for name, lost in more.items() if lost >= max(JUMP_DB, largest / 2))
    makers = {value.name: node.name for node in evidence.run.graph.model.graph for value in node.outputs}
    node = makers.get(name) or name
    before, after = measured.tensors_db[name], ours[name]
    text = f"node {node}, which makes '{name}', is the first to lose more than it must: {before:.1f} → {after:.1f} dB"
    return parity.Located(level="L1", node=node, tensor=name, before_db=before, after_db=after, text=text)


def _cause(evidence: Evidence, faults: list[gate.Located], jump: parity.Located | None) -> tuple[str | None, str]:
    """The layer and what is wrong there: what the table shows, where the error jumps at the same place.

    Channels that contribute nothing may hold anything, so what looks wrong in a table alone need not be the cause.
    """
    if jump is None:
        return (faults[0].layer, faults[0].text) if faults else (None, "quantization loses more than it must")
    if (nearest := _agreeing(evidence, faults, jump)) is not None:
        return nearest.layer, nearest.text
    named = computed_by(evidence.run.graph.model, jump.node)
    return jump.node, jump.text.replace(jump.node, named, 1)


def _agreeing(evidence: Evidence, faults: list[gate.Located], jump: parity.Located | None) -> gate.Located | None:
    """What looks wrong in the table where the error jumps too: both together are a fault, however small its harm.

    An error per channel shows where channels are summed: at the layers behind, up to the last that could undo it.
    """
    if jump is None:
        return None
    order = {node.name: place for place, node in enumerate(evidence.run.graph.model.graph)}
    # Where an activation is fused, the error shows behind it, and the layer is before it.
    places = {order.get(name, -1) for name in (jump.node, fused_into(evidence.run.graph.model, jump.node))}
    agreeing = [
        fault
        for fault in faults
        if any(order.get(fault.layer, 1 << 30) <= place <= order.get(fault.until, -1) for place in places)
    ]
    return max(agreeing, key=lambda fault: order[fault.layer]) if agreeing else None


def _layers(evidence: Evidence) -> tuple[LayerError, ...]:
    if evidence.layer_errors is None:
        return ()
    makers = {value.name: node.name or "" for node in evidence.run.graph.model.graph for value in node.outputs}
    found = evidence.layer_errors.sqnr_db()
    return tuple(
        LayerError(tensor=name, node=makers.get(name, "input"), sqnr_db=round(decibel, 2))
        for name, decibel in found.items()
        if decibel > JUMP_DB - EXACT_DB
    )


def _histograms(evidence: Evidence) -> tuple[Histogram, ...]:
    """Of the tensors that are furthest from float: values, and what their grids make of them."""
    table, errors = evidence.run.graph.quantization, evidence.layer_errors
    if table is None or errors is None:
        return ()
    made = {value.name for node in evidence.run.graph.model.graph for value in node.outputs}
    worst = sorted((d, name) for name, d in errors.sqnr_db().items() if name in made)[:SHOWN]
    names = [name for _, name in worst]
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with Session(exposed(evidence.run.graph.model, names)) as session:
        for feed in evidence.few(LOCALIZE_SAMPLES):
            for name, array in session.run(feed, names).items():
                seen[name].append(array.ravel())
    found = []
    for name, parts in seen.items():
        values, params = np.concatenate(parts), table.activations[name]
        low, high = float(values.min()), float(values.max())
        if not high > low:
            continue
        rounded = params.dequantize(params.quantize(values))
        counts = [np.histogram(array, BINS, (low, high))[0] for array in (values, rounded)]
        float_, quantized = (tuple(int(count) for count in one) for one in counts)
        found.append(Histogram(tensor=name, low=low, high=high, float_=float_, quantized=quantized))
    return tuple(found)
