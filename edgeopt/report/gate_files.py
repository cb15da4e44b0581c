"""Everything that the gate leaves in the run's folder."""

from __future__ import annotations

from pathlib import Path

from edgeopt.pipeline.record import Manifest, Report
from edgeopt.pipeline.store import open_store
from edgeopt.pipeline.verdict import GateResult

GATE_FILE = "gate.json"


def as_json(result: GateResult) -> str:
    """The text of ``gate.json``: one JSON document, ended by a newline."""
    return result.model_dump_json(by_alias=True, indent=2) + "\n"


def write_reports(result: GateResult, run: Path) -> None:
    """gate.json, report.md, report.html, model_card.md and model_card.json.

    Raises:
        UsageError: the folder cannot be written.
    """
    from edgeopt.report.gate_markdown import as_markdown
    from edgeopt.report.html import as_html
    from edgeopt.report.model_card import card_json, card_markdown

    report = Report.model_validate_json((run / "report.json").read_text(encoding="utf-8"))
    manifest = Manifest.model_validate_json((run / "manifest.json").read_text(encoding="utf-8"))
    texts = {
        GATE_FILE: as_json(result),
        "report.md": as_markdown(report, result),
        "report.html": as_html(report, manifest, result),
        "model_card.md": card_markdown(report, manifest, result),
        "model_card.json": card_json(report, manifest, result),
    }
    with open_store(run) as store:
        for name, text in texts.items():
            store.write(name, text)
