"""``edgeopt bench``: latency here, on a device of one's own, or predicted for one that is not at hand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.data_options import shape_from
from edgeopt.errors import UsageError

if TYPE_CHECKING:
    from edgeopt.bench.latency import Measurement, Plan
    from edgeopt.bench.results import BenchDocument
    from edgeopt.devices.profile import DeviceProfile

EXAMPLES = """\b
Examples:
  edgeopt bench out/tflite/model.tflite out/onnx/model.onnx
  edgeopt bench out/tflite/model.tflite --xnnpack both --threads 4 --html latency.html
  edgeopt bench out/tflite/model.tflite --on ssh://pi@raspberrypi.local
  edgeopt bench model.onnx --device raspberry-pi-5
  edgeopt bench model.onnx --compare --precision int8 --fps 30
"""
HERE = ("host", "here", "this")
RUNTIMES = ("onnxruntime", "tflite", "tensorrt", "coreml", "qnn", "ncnn", "pytorch")
UNITS = ("cpu", "gpu", "npu", "ane", "dla", "tpu")
PRECISIONS = ("fp32", "fp16", "int8")
LIMIT_S = 900.0


@dataclass(frozen=True)
class Request:
    """The options that more than one way of answering needs."""

    models: tuple[Path, ...]
    plan: Plan
    delegate: str
    runtime: str | None
    trust: bool
    timeout: float


@click.command("bench", epilog=EXAMPLES)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", metavar="NAME", help="Predict for this device (see edgeopt devices); with --on its label.")
@click.option("--on", metavar="URL", help="Measure there: ssh://user@host[:port][/scratch-folder] or adb://SERIAL.")
@click.option("--compare", is_flag=True, help="Predict for all devices.")
@click.option("--fit", metavar="NAME", help="MODEL... are results.json of one's own board: adapt this profile to them.")
@click.option("--source", "sources", multiple=True, metavar="FILE=MODEL", help="For --fit: what FILE was made from.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the runtime.  [default: 1, predicted: the fast cores]")
@click.option("--batch", type=click.IntRange(min=1), help="First size of every input, where the file leaves it open.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=1,3,224,224", help="Shape of an input with open sizes.")
@click.option("--seconds", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Measured, at least.")
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Per model, at least.")
@click.option("--warm-up", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds, at most.")
@click.option("--xnnpack", type=click.Choice(["on", "off", "both"]), default="on", show_default=True, help="TFLite.")
@click.option("--runtime", type=click.Choice(RUNTIMES), help="Only this one; tensorrt builds an engine of an .onnx.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of a prediction.  [default: all]")
@click.option("--unit", type=click.Choice(UNITS), help="Compute unit of a prediction.  [default: all]")
@click.option("--profile", is_flag=True, help="Also time per operator.")
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="Fail (exit 1) above it.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="A budget of 1000/FPS ms.")
@click.option("--python", metavar="PATH", help="Python on the device.  [default: ~/.edgeopt/bin/python, then python3]")
@click.option("--ssh-config", type=click.Path(exists=True, path_type=Path), help="In place of one's own.")
@click.option("--runner", type=click.Path(exists=True, path_type=Path), help="benchmark_model for Android, for adb://.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=900.0, show_default=True, help="Seconds for all of it."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write the distribution as a page of its own.")
@click.option("--trust", is_flag=True, help="Load .pt2 archives that hold pickled code. It can do anything you can.")
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
def command(models: tuple[Path, ...], html: Path | None, json_wanted: bool, **options: Any) -> int:
    """Latency of models: measured here, measured on a device of one's own, or predicted.

    MODELs are .onnx, .tflite, .pt2, TensorRT bundles, or recipes (their source model). Several are measured in turns
    and compared. Low and high are the 95 % interval of a measured median, the 90 % interval of a prediction.
    """
    if options["fit"] is not None:
        return _fit(models, options, json_wanted=json_wanted)
    budget_ms = _budget_ms(options["budget_ms"], options["fps"])
    if html is not None and not html.absolute().parent.is_dir():
        raise UsageError("its folder does not exist", where=str(html))  # said before minutes are spent on measuring
    document = _answer(models, options).model_copy(update={"budget_ms": budget_ms})
    from edgeopt.report.latency import as_text, failures_of

    if budget_ms is not None:
        document = document.model_copy(update={"failures": failures_of(document.results, budget_ms)})
    lines = as_text(document)
    if html is not None:
        from edgeopt.report.latency_plot import page

        try:
            html.write_text(page(document.results, lines), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(html)) from error
    if json_wanted:
        click.echo(document.model_dump_json(by_alias=True, indent=2))
    else:
        for line in lines:
            click.echo(line)
    too_slow = {failure.rpartition(": ")[0] for failure in document.failures}
    asked = {f"{result.model} on {result.device}" for result in document.results}
    # of a fleet it is enough that one device keeps to the budget
    return int(bool(too_slow) and (not options["compare"] or too_slow == asked))


def _answer(models: tuple[Path, ...], options: dict[str, Any]) -> BenchDocument:
    from edgeopt import __version__
    from edgeopt.bench.latency import Plan
    from edgeopt.bench.results import BenchDocument

    plan = Plan(
        threads=options["threads"] or 1,
        batch=options["batch"],
        inputs={name: tuple(shape) for name, shape in map(shape_from, options["inputs"])},
        seconds=options["seconds"],
        runs=options["runs"],
        warm_up_s=options["warm_up"],
        profile=options["profile"],
    )
    request = Request(
        models, plan, options["xnnpack"], options["runtime"], trust=options["trust"], timeout=options["timeout"]
    )
    if options["compare"]:
        if options["on"] or options["device"]:
            raise UsageError("--compare predicts for all devices", hint="Leave --on and --device out.")
        from edgeopt.devices.catalogue import profiles

        return _predicted(request, profiles(), options)
    profile = _profile(options["device"])
    if options["on"] is not None:
        found = _on(request, options, profile.id if profile else None)
    elif profile is None or _is_here(profile):
        found = _here(request, profile.id if profile else None)
    else:
        return _predicted(request, (profile,), options)
    return BenchDocument(edgeopt=__version__, results=found.results, ratios=found.ratios)


def _profile(name: str | None) -> DeviceProfile | None:
    """None for this machine. An alias is told."""
    if name is None or name.lower() in HERE:
        return None
    from edgeopt.devices.catalogue import find

    found = find(name)
    if found.said is not None:
        click.echo(f"note: {found.said}", err=True)
    return found.profile


def _is_here(profile: DeviceProfile) -> bool:
    """Whether this machine is that device, as its device tree says: no other profile names the board more closely."""
    from edgeopt.bench.conditions import machine
    from edgeopt.devices.catalogue import profiles

    board = _words(machine()["board"] or "")
    mine = _words(profile.name)
    return mine <= board and not any(mine < _words(other.name) <= board for other in profiles())


def _words(name: str) -> set[str]:
    """Of a board's or a profile's name, without what only one of them says: vendor, memory, remarks."""
    plain = re.sub(r"\(.*?\)|\b\d+GB\b", "", name).lower().replace(" plus", "+")
    return set(plain.split()) - {"nvidia", "google", "rockchip"}


def _here(request: Request, device: str | None) -> Measurement:
    from edgeopt.cli.isolated import in_worker
    from edgeopt.pipeline.benchmark import MeasureJob

    if request.runtime not in (None, "onnxruntime", "tflite", "pytorch"):
        raise UsageError(
            f"{request.runtime} does not run on this machine",
            where="--runtime",
            hint="Measure on a device that has it: --on ssh://user@host, or predict: --device NAME.",
        )
    job = MeasureJob(request.models, request.delegate, request.trust, request.plan)  # type: ignore[arg-type]
    found: Measurement = in_worker("bench", "edgeopt.pipeline.benchmark:measure", job, limit_s=request.timeout)
    if device is None:
        return found
    return replace(found, results=tuple(one.model_copy(update={"device": device}) for one in found.results))


def _on(request: Request, options: dict[str, Any], device: str | None) -> Measurement:
    from edgeopt.bench import adb, remote
    from edgeopt.bench.address import parse
    from edgeopt.bench.ssh import Connection
    from edgeopt.cli.isolated import in_worker
    from edgeopt.cli.progress import showing
    from edgeopt.pipeline.benchmark import SharesJob, subjects_of

    address = parse(options["on"])
    subjects = subjects_of(
        request.models,
        delegate=request.delegate,  # type: ignore[arg-type]
        runtime=request.runtime,
        trust=request.trust,
        shapes=request.plan.inputs,
    )
    with showing():
        if address.kind == "adb":
            return adb.measure_on(
                address, subjects, request.plan, runner=options["runner"], device=device, limit_s=request.timeout
            )
        connection = Connection(address, options["ssh_config"], options["python"])
        found = remote.measure_on(connection, subjects, request.plan, device=device, limit_s=request.timeout)
    if not request.plan.profile or all(one.runtime != "litert" for one in subjects):
        return found
    job = SharesJob(found, request.plan.inputs, request.trust)
    shares = job if device is None else replace(job, device=device)
    with_shares: Measurement = in_worker("profile", "edgeopt.pipeline.benchmark:with_shares", shares, limit_s=LIMIT_S)
    return with_shares


def _predicted(request: Request, profiles: tuple[DeviceProfile, ...], options: dict[str, Any]) -> BenchDocument:
    from edgeopt import __version__
    from edgeopt.bench.results import BenchDocument
    from edgeopt.cli.isolated import in_worker
    from edgeopt.pipeline.benchmark import Predicted, PredictJob

    if request.plan.batch is not None:
        raise UsageError("--batch is for measuring", where="--batch", hint="Bind it with --input NAME=8,3,224,224.")
    job = PredictJob(
        request.models,
        profiles,
        request.runtime,
        options["precision"],
        options["unit"],
        options["threads"],
        request.plan.inputs,
        request.trust,
    )
    found: Predicted = in_worker("predict", "edgeopt.pipeline.benchmark:predict_all", job, limit_s=LIMIT_S)
    results = sorted(found.results, key=lambda result: (result.model, result.latency_ms.p50))
    refusals = tuple(dict.fromkeys(f"{refusal.where}: {refusal.what}" for refusal in found.refusals))
    return BenchDocument(edgeopt=__version__, results=tuple(results), refusals=refusals)


def _fit(results: tuple[Path, ...], options: dict[str, Any], *, json_wanted: bool) -> int:
    """Adapt a profile, write it beside the user, and say what changed."""
    from edgeopt.cli.isolated import in_worker
    from edgeopt.devices.catalogue import find
    from edgeopt.devices.fit import save
    from edgeopt.pipeline.benchmark import FitJob

    if options["on"] or options["device"] or options["compare"]:
        raise UsageError("--fit takes results that were measured before", hint="Leave --on, --device, --compare out.")
    sources = {}
    for text in options["sources"]:
        file, found, model = text.partition("=")
        if not found or not model:
            raise UsageError(f"{text!r} is not FILE=MODEL", where="--source")
        sources[file] = Path(model)
    found = find(options["fit"])
    inputs = {name: tuple(shape) for name, shape in map(shape_from, options["inputs"])}
    job = FitJob(found.profile, results, sources, inputs, options["trust"])
    adapted, changes = in_worker("fit", "edgeopt.pipeline.benchmark:fit_profile", job, limit_s=LIMIT_S)
    out = Path(f"{adapted.id}-own.yaml")
    save(adapted, out)
    if json_wanted:
        document = {"schema": "edgeopt.fit/1", "device": adapted.id, "profile": str(out)}
        click.echo(
            json.dumps({**document, "changes": [change.model_dump(mode="json") for change in changes]}, indent=2)
        )
        return 0
    for change in changes:
        threads = f" ×{change.threads}" if change.threads else ""
        click.echo(
            f"{change.model} {change.runtime}/{change.compute_unit}{threads} {change.precision}: measured "
            f"{change.measured_ms:.3g} ms, predicted {change.before_ms:.3g} before, {change.after_ms:.3g} now"
        )
    click.echo(f"{out}: predict with it: edgeopt bench MODEL --device {out}")
    return 0


def _budget_ms(budget_ms: float | None, fps: float | None) -> float | None:
    if budget_ms is not None and fps is not None:
        raise UsageError("--budget-ms and --fps say the same thing", hint="Give one of them.")
    return 1e3 / fps if fps is not None else budget_ms
