"""Any ONNX file against the rules of one TensorRT release."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from edgeopt.formats.onnx import load
from edgeopt.targets.tensorrt.checks import CHECKS, STANDARD
from edgeopt.targets.tensorrt.reading import QdqFile
from edgeopt.targets.tensorrt.rules import OPERATORS, RULES, Kind
from edgeopt.targets.tensorrt.versions import Version
from edgeopt.types import Frozen


class RuleVerdict(Frozen):
    """One rule on one file.

    Args:
        verdict: ``note`` is said of advice, and of layers that leave the DLA for the GPU: neither breaks anything.
        nodes: nodes (or tensors) that break it, each with what is wrong there.
        versions: releases that the rule holds for.
    """

    id: str
    kind: Kind
    text: str
    verdict: Literal["ok", "broken", "note"]
    nodes: tuple[str, ...] = ()
    repair: str | None = None
    source: str
    versions: str


class Coverage(Frozen):
    """Operators of the file in the release's table: type → how many nodes.

    Args:
        unsure: read as far as is known; the table that lists them is a later release's.
    """

    read: dict[str, int]
    unsure: dict[str, int]
    missing: dict[str, int]
    source: str


class FileVerdict(Frozen):
    """What a release says of a file. ``accepted``: no acceptance rule is broken."""

    target: str
    version: str
    opset: int
    accepted: bool
    broken: tuple[str, ...]
    rules: tuple[RuleVerdict, ...]
    coverage: Coverage


def check_file(source: Path | bytes, version: Version) -> FileVerdict:
    """Every rule that holds for the release, on a file or its bytes.

    Raises:
        ModelError: it is no ONNX model.
    """
    file = QdqFile(load(source))
    verdicts = []
    for rule in RULES:
        if not rule.holds_for(version):
            continue
        nodes = tuple(CHECKS[rule.id](file, version))
        wrong: Literal["broken", "note"] = "note" if rule.kind in ("advice", "dla") else "broken"
        verdicts.append(
            RuleVerdict(
                id=rule.id,
                kind=rule.kind,
                text=rule.text,
                verdict=wrong if nodes else "ok",
                nodes=nodes,
                repair=rule.repair if nodes else None,
                source=version.opset_source if rule.id == "opset-range" else rule.source,
                versions=rule.versions,
            )
        )
    broken = tuple(one.id for one in verdicts if one.verdict == "broken")
    accepted = not any(one.kind == "acceptance" and one.verdict == "broken" for one in verdicts)
    return FileVerdict(
        target=version.label,
        version=version.text,
        opset=file.opset,
        accepted=accepted,
        broken=broken,
        rules=tuple(verdicts),
        coverage=_coverage(file, version),
    )


def _coverage(file: QdqFile, version: Version) -> Coverage:
    counts: dict[str, Counter[str]] = {"read": Counter(), "unsure": Counter(), "missing": Counter()}
    for node in file.all_nodes:
        standard = node.domain in STANDARD
        name = node.op_type if standard else f"{node.domain}.{node.op_type}"
        state = "missing" if not (standard and version.reads(node.op_type)) else "read"
        counts["unsure" if state == "read" and version.unsure(node.op_type) else state][name] += 1
    return Coverage(**{state: dict(sorted(found.items())) for state, found in counts.items()}, source=OPERATORS)
