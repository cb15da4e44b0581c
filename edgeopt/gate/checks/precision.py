"""Realised precision, read back from the file, against what the recipe asked."""

from __future__ import annotations

from edgeopt.gate.check import Figures, Said
from edgeopt.gate.evidence import Evidence

ID = "precision"
REASON = "an 'int8' file whose layers stayed float is slow and large, and nothing else says so"


def run(evidence: Evidence, target: str) -> Said | None:
    run, policy = evidence.run, evidence.policy.precision
    asked = run.recipe.requested().get(target)
    if asked is None:
        return None
    try:
        realised = asked.realised(run.path(target), run.graph)
    except (ValueError, KeyError, IndexError) as problem:
        return Said("fail", f"the file cannot be read back: {problem}", remedy="Convert again.")
    figures: Figures = {
        "int8_ops": sum(realised.int8_ops.values()),
        "float_ops": sum(realised.float_ops.values()),
        "leftovers": len(realised.leftovers),
        "partitions": realised.partitions,
    }
    details = tuple(f"left over: {text}" for text in realised.leftovers)
    unasked = realised.unasked_float
    if len(unasked) > policy.max_float_ops:
        return Said(
            "fail",
            f"node {unasked[0]} is float where int8 was asked ({len(unasked)} such nodes)",
            remedy="Take the node out of the request with keep_float, or find why its target cannot write it in int8.",
            details=(*details, f"float: {', '.join(unasked)}"),
            layer=unasked[0],
            figures=figures,
        )
    if policy.max_leftovers is not None and len(realised.leftovers) > policy.max_leftovers:
        return Said(
            "fail",
            f"{len(realised.leftovers)} leftovers, at most {policy.max_leftovers}: {realised.leftovers[0]}",
            remedy="Every one costs a passage through memory: see `edgeopt inspect`.",
            details=details,
            figures=figures,
        )
    if policy.max_partitions is not None and (realised.partitions or 0) > policy.max_partitions:
        return Said(
            "fail",
            f"{realised.partitions} delegate partitions, at most {policy.max_partitions}",
            remedy="Something between them runs on the built-in kernels: see `edgeopt inspect`.",
            details=details,
            figures=figures,
        )
    text = f"{figures['int8_ops']} operators in int8, {figures['float_ops']} in float"
    if realised.partitions is not None:
        text += f", {realised.partitions} delegate partition{'s' * (realised.partitions != 1)}"
    return Said("pass", text, details=details, figures=figures)
