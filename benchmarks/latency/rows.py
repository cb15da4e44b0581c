"""The published measurements, read into rows that a fit can use."""

from __future__ import annotations

import csv
import fnmatch
import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from benchmarks.latency.definitions import define
from edgeopt.graph.cost import Operation

HERE = Path(__file__).resolve().parent
SAME_AS = {"pdcls:mobilenetv1_ssld": "mobilenet_v1_1.0", "pdcls:mobilenetv2_ssld": "mobilenet_v2_1.0"}
"""Same network, trained otherwise."""


@dataclass(frozen=True)
class Row:
    """One published latency.

    Args:
        engine: the measurements' runtime, unit and precision: ``ncnn/cpu/fp16``.
        campaign: who measured with which version: rows of one campaign share its conditions.
    """

    id: str
    device: str
    engine: str
    threads: str
    campaign: str
    model: str
    family: str
    ms: float
    role: str
    source: str

    @property
    def configuration(self) -> tuple[str, str, str, str]:
        return self.device, self.engine, self.threads, self.campaign


def family(model: str) -> str:
    for name, patterns in _families():
        if any(fnmatch.fnmatchcase(model, pattern) for pattern in patterns):
            return name
    raise ValueError(f"families.json has no family for {model}")


@lru_cache(maxsize=1)
def _families() -> list[tuple[str, list[str]]]:
    listed: list[tuple[str, list[str]]] = json.loads((HERE / "families.json").read_text())["families"]
    return listed


def precision(label: str) -> str:
    """w8a8 with some layers in 16 bits counts as w8a16, which is what most of its layers cost."""
    if label.startswith("w8a8"):
        return "int8" if label == "w8a8" else "w8a16"
    return "w8a16" if label.startswith("w8a16") else label


def _campaign(row: dict[str, str]) -> str:
    notes = dict(part.split("=", 1) for part in row["notes"].split(";") if "=" in part)
    if row["source_repo"].startswith("mlcommons/cm4"):
        return " · ".join((row["source_date"], notes.get("system", ""), row["runtime_version"]))
    if row["runtime"] == "ncnn":
        return " · ".join((row["runtime_version"], notes.get("powersave", ""), notes.get("section", "")))
    if row["source_repo"] == "qualcomm/ai-hub-models":
        return "AI Hub"
    return row["source_repo"]


def read(folder: Path) -> list[Row]:
    """All rows whose model has an operator list; `folder` is the data folder's `latency`."""
    rows = []
    with (folder / "measurements.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            model = f"{row['model']}@{row['input']}"
            if operators(folder, model) is None:
                continue
            source = f"{row['source_repo']}@{row['source_commit'][:12]}:{row['source_path']}"
            engine = f"{row['runtime']}/{row['compute_unit']}/{precision(row['precision'])}"
            rows.append(
                Row(row["id"], row["device"], engine, row["threads"], _campaign(row), model, family(row["model"]),
                    float(row["latency_ms"]), row["role"], source)
            )  # fmt: skip
    return rows


@cache
def operators(folder: Path, model: str) -> tuple[Operation, ...] | None:
    """The operator list of `name@size` as operations in a row; None where there is none."""
    name, _, size = model.partition("@")
    path = folder / "ops" / f"{SAME_AS.get(name, name).replace(':', '__')}@{size}.json"
    if path.is_file():
        listed: list[dict[str, Any]] | None = json.loads(path.read_text())
    else:
        listed = define(name, int(size.split("x")[1])) if "x" in size else None
    if listed is None:
        return None
    found = []
    for index, op in enumerate(listed):
        kind = "other" if op["kind"].startswith("other") else op["kind"]
        found.append(
            Operation(
                f"{kind}_{index}", op["kind"], kind, op["macs"], op["w"], op["i"], op["o"], op.get("k", 1),
                op.get("g", 1), op.get("cin", 0), op.get("cout", 0), op.get("hw", 0), op.get("stride", 1), index > 0,
            )
        )  # fmt: skip
    return tuple(found)
