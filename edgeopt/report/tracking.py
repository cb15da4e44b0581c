"""A judged run in MLflow: parameters, metrics, training curves, and everything that lies in its folder for people."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from edgeopt.errors import MissingPackage, SetupError
from edgeopt.pipeline.record import Manifest, Report
from edgeopt.pipeline.verdict import GateResult

EXPERIMENT = "edgeopt"
FILES = (
    "report.html", "report.md", "gate.json", "report.json", "manifest.json", "model_card.md", "model_card.json",
)  # fmt: skip
LONGEST = 500
"""Characters of a parameter that every version of MLflow takes."""


def log_to_mlflow(result: GateResult, run: Path, uri: str) -> str:
    """Make an MLflow run of a judged run; its reports must have been written.

    Args:
        result: what the gate said.
        run: the run's folder.
        uri: of the tracking server, or a folder (``file:``): MLflow's own file store.

    Returns:
        The MLflow run's id.

    Raises:
        MissingPackage: MLflow is not installed.
        SetupError: the server or the folder cannot be written to.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    local = urlsplit(uri).scheme in ("", "file")
    if local:  # MLflow asks for this consent since 3.16; naming a folder is it
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = uri if uri.startswith("file:") else Path(uri).absolute().as_uri()
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise MissingPackage("mlflow-skinny", "mlflow", "logging to MLflow") from error
    report = Report.model_validate_json((run / "report.json").read_text(encoding="utf-8"))
    manifest = Manifest.model_validate_json((run / "manifest.json").read_text(encoding="utf-8"))
    now = int(time.time() * 1000)
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found is not None else client.create_experiment(EXPERIMENT)
        made = client.create_run(experiment, run_name=report.source.name).info.run_id
        client.log_batch(
            made,
            metrics=[Metric(name, value, now, step) for name, value, step in _metrics(report, result)],
            params=[Param(name, value[:LONGEST]) for name, value in _params(report, manifest)],
            tags=[RunTag(name, value) for name, value in _tags(result, manifest)],
        )
        for name in FILES:
            if (run / name).is_file():
                client.log_artifact(made, str(run / name))
        for target in report.targets.values():
            if target.path is None:
                continue
            place = PurePosixPath(target.path)
            if (run / place).is_dir():
                client.log_artifacts(made, str(run / place), str(place))
            else:
                client.log_artifact(made, str(run / place), str(place.parent))
        client.set_terminated(made, "FAILED" if result.exit_code else "FINISHED")
    except (MlflowException, OSError) as error:
        said = " ".join(str(error).split())[:LONGEST]
        hint = "Is the server up, is the URI right?"
        raise SetupError(f"MLflow cannot log the run: {said}", where=uri, hint=hint) from error
    return str(made)


def _params(report: Report, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "model", report.source.name
    yield "model_digest", report.source.digest
    yield "scheme", report.scheme
    yield "effort", report.effort
    yield "seed", str(manifest.seed)
    yield "recipe_digest", manifest.recipe_digest
    yield "targets", ",".join(report.targets)
    for name, data in report.data.items():
        yield f"{name}_data", f"{data.name} ({data.digest})"
    for number, record in enumerate(report.training, 1):
        yield f"training_{number}", record.use


def _metrics(report: Report, result: GateResult) -> Iterator[tuple[str, float, int]]:
    """Name, value, step."""
    yield "failed_checks", sum(check.verdict == "fail" for check in result.checks), 0
    for name, target in report.targets.items():
        evidence = result.evidence.get(name)
        found: dict[str, Any] = {"size_bytes": target.size_bytes}
        if (l2 := target.parity.get("L2")) is not None:
            found["sqnr_db"] = l2.sqnr_db
        if target.latency_ms is not None:
            found["latency_p50_ms"] = target.latency_ms.target.latency_ms.p50
        if evidence is not None and evidence.metric is not None:
            metric, kind = evidence.metric, "".join(c if c.isalnum() else "_" for c in evidence.metric.name)
            found |= {
                kind: metric.target.value,
                f"{kind}_float": metric.float_.value,
                f"{kind}_drop": metric.drop.value,
            }
            found |= {f"{kind}_drop_low": metric.drop.low, f"{kind}_drop_high": metric.drop.high}
        if evidence is not None and evidence.confidence is not None:
            found |= {"ece": evidence.confidence.target.ece, "ece_float": evidence.confidence.float_.ece}
        yield from ((f"{name}/{key}", float(value), 0) for key, value in found.items() if value is not None)
    for number, record in enumerate(report.training, 1):
        for values in record.epochs:
            for key, value in values.items():
                if key != "epoch":
                    yield f"training_{number}/{key}", float(value), int(values["epoch"])


def _tags(result: GateResult, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "edgeopt", result.edgeopt
    yield "verdict", result.verdict
    yield "headline", result.headline
    yield "machine", manifest.machine
    if manifest.git_commit is not None:
        yield "mlflow.source.git.commit", manifest.git_commit
