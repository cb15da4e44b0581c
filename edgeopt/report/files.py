"""``report.json`` and ``report.md``."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from edgeopt.pipeline.record import Report
from edgeopt.report.table import ABOUT, COLUMNS, conversion, integers, rows
from edgeopt.report.training import sections

SCHEMA_FILE = "report.schema.json"
"""JSON Schema of ``report.json``, shipped beside this module; a test holds it equal to ``json_schema()``."""


def as_json(report: Report) -> str:
    """The text of ``report.json``: one JSON document, ended by a newline."""
    return report.model_dump_json(by_alias=True, indent=2) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema of reports, made from the types; what the keys mean stands in docs/report.md."""
    schema = _without_docstrings(Report.model_json_schema(by_alias=True, mode="serialization"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_docstrings(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: _without_docstrings(value)
            for key, value in schema.items()
            if key != "description" or not isinstance(value, str)
        }
    return [_without_docstrings(item) for item in schema] if isinstance(schema, list) else schema


def write_schema() -> None:
    """After a change of the types: ``python -c "from edgeopt.report.files import write_schema; write_schema()"``."""
    file = Path(__file__).with_name(SCHEMA_FILE)
    file.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")


def shipped_schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(resources.files(__package__).joinpath(SCHEMA_FILE).read_text(encoding="utf-8"))
    return loaded


def as_markdown(report: Report) -> str:
    """The text of ``report.md``: what a person wants to know, in the order in which they ask."""
    lines = [
        f"# {report.source.name}",
        "",
        f"edgeopt {report.edgeopt}, scheme {report.scheme}, effort {report.effort}.",
        "",
    ]
    lines += _table(COLUMNS, [row.cells for row in rows(report)])
    lines += ["", *(f"- **{column}**: {text}." for column, text in ABOUT.items()), ""]
    lines += [f"**L0** (source → float graph): {conversion(report)}", ""]
    for name, target in report.targets.items():
        lines += _section(name, [f"{target.status}: {target.why}"] if target.why else [])
        said = [*target.warnings]
        if target.realised is not None:
            said += [f"in int8: {_counts(target.realised.int8_ops)}", f"in float: {_counts(target.realised.float_ops)}"]
            said += [f"left over: {text}" for text in target.realised.leftovers]
            if target.realised.partitions is not None:
                said.append(f"delegate partitions: {target.realised.partitions}")
        said += integers(target)
        if (engine := target.engine) is not None:
            said.append(
                f"engine by {engine.runtime} in {engine.seconds:.0f} s: {engine.sqnr_db:.2f} dB against the outputs of "
                f"{engine.samples} saved samples, median {engine.median_ms:.4g} ms on this GPU (measured)"
            )
        for level, parity in target.parity.items():
            said.append(f"{level}: {parity.sqnr_db:.2f} dB, cosine {parity.cosine:.6f} ({parity.label})")
            if parity.located is not None:
                said.append(parity.located.text)
        lines += [*(f"- {text}" for text in said), ""]
    lines += sections(report)
    if report.quantization.kept:
        lines += ["## Quantization", ""]
        lines += _table(
            ("tried", "brought", "kept", "why"),
            [
                (k.what, "" if k.brought_db is None else f"{k.brought_db:+.2f} dB", "yes" if k.kept else "no", k.why)
                for k in report.quantization.kept
            ],
        )
        lines.append("")
    if report.data:
        lines += ["## Data", ""]
        for which, data in report.data.items():
            labelled = "labelled" if data.labelled else "no labels"
            lines.append(f"- {which}: {data.name}, {data.stats.samples} samples looked at, {labelled}")
        lines.append("")
    if report.warnings:
        lines += ["## Warnings", "", *(f"- {text}" for text in report.warnings), ""]
    return "\n".join(lines)


def _section(name: str, said: list[str]) -> list[str]:
    return [f"## {name}", "", *(f"{text}\n" for text in said)]


def _counts(ops: dict[str, int]) -> str:
    return ", ".join(f"{count} {op}" for op, count in ops.items()) or "none"


def _table(head: tuple[str, ...], body: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in body
    ]
