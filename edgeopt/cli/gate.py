"""``edgeopt gate``: no bad model ships, and everyone sees why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.errors import UsageError

if TYPE_CHECKING:
    from edgeopt.gate.judge import Judged
    from edgeopt.gate.policy import Policy
    from edgeopt.pipeline.verdict import GateResult

EXAMPLES = """\b
Examples:
  edgeopt gate out/quickstart
  edgeopt gate out/model --policy policy.yaml --baseline baseline.json --junit gate.xml --sarif gate.sarif --github
  edgeopt gate out/model --write-baseline baseline.json
  edgeopt gate out/model --policy policy.yaml --keep-failures

\b
Exit codes: 0 nothing failed (what cannot be told is said); 1 a check failed; 2 run, policy or data cannot be used.
"""
LIMIT_S = 4 * 3600
JSON_FILE = "gate.json"


@click.command("gate", epilog=EXAMPLES)
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--policy", type=click.Path(path_type=Path), help="Limits, YAML.  [default: the recipe's, else built in]")
@click.option("--baseline", type=click.Path(path_type=Path), help="What may not get worse, JSON.")
@click.option("--write-baseline", type=click.Path(path_type=Path), help="Write a baseline of this run, JSON.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Where the recipe is now, if it moved.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML.")
@click.option("--sarif", type=click.Path(path_type=Path), help="Write SARIF 2.1.0.")
@click.option("--github", is_flag=True, help="Annotate the pull request, and fill the step summary.")
@click.option("--keep-failures", is_flag=True, help="Add samples that flipped to the policy's regression file.")
@click.option("--localize", is_flag=True, help="Say which layers lose most, also if all is well.")
@click.option("--bisect", "bisect_wanted", is_flag=True, help="If it fails: the smallest set of layers to keep float.")
@click.option("--repro", type=click.Path(path_type=Path), help="If it fails: a folder with the part that differs.")
@click.option("--mlflow", metavar="URI", help="Log run, metrics and artifacts to this MLflow server or folder.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the result as one JSON document.")
def command(run: Path, json_wanted: bool, github: bool, bisect_wanted: bool, **options: Any) -> int:
    """Judge a finished run by running its artifacts again.

    RUN is the output folder of `edgeopt convert`. Writes gate.json, report.md, report.html and the model card into it.
    Ends with 1 if a check failed.
    """
    policy, baseline = _asked(run, options)
    judged = judge_in_worker(
        run,
        policy,
        baseline=baseline,
        write_baseline=options["write_baseline"] is not None,
        recipe=options["recipe"],
        keep_failures=options["keep_failures"],
        localize=options["localize"],
    )
    if judged.baseline is not None:
        _write(options["write_baseline"], judged.baseline)
        click.echo(f"baseline: {options['write_baseline']}", err=True)
    if judged.regression is not None:
        assert policy.regression.file is not None
        _write(policy.regression.file, judged.regression)
        click.echo(f"regression set: {policy.regression.file}", err=True)
    files = {"junit": options["junit"], "sarif": options["sarif"]}
    code = show(judged.result, run, json_wanted=json_wanted, github=github, **files)
    if options["mlflow"] is not None:
        from edgeopt.report.tracking import log_to_mlflow

        click.echo(f"mlflow: run {log_to_mlflow(judged.result, run, options['mlflow'])}", err=True)
    if bisect_wanted and code:
        _bisect(run, judged.result, policy, baseline, options["recipe"], err=json_wanted)
    if options["repro"] is not None:
        _reproduce(run, judged.result, options["repro"], options["recipe"], err=json_wanted)
    return code


def _reproduce(run: Path, result: GateResult, folder: Path, recipe: Path | None, *, err: bool) -> None:
    """Cut out what differs, print what it shows. The exit code stays: there may be nothing that can be cut out."""
    from edgeopt.cli.isolated import in_worker
    from edgeopt.gate.repro import NothingToShowError, ReproJob

    job = ReproJob(run.absolute(), result, folder.absolute(), recipe)
    try:
        text: str = in_worker("repro", "edgeopt.gate.repro:write", job, limit_s=LIMIT_S)
    except NothingToShowError as error:
        click.echo(f"repro: {error}", err=err)
        return
    click.echo(text, nl=False, err=err)
    click.echo(f"repro: python {folder / 'repro.py'}", err=err)


def _bisect(
    run: Path, result: GateResult, policy: Policy, baseline: Path | None, recipe: Path | None, *, err: bool
) -> None:
    """Search, print what was found. The exit code stays: the run that was judged has failed."""
    import tempfile

    from edgeopt.cli.progress import showing
    from edgeopt.gate.bisect import bisect
    from edgeopt.gate.judge import GateJob
    from edgeopt.gate.run_folder import read_run
    from edgeopt.pipeline.worker import Call, Workers

    with (
        tempfile.TemporaryDirectory(prefix="edgeopt-") as work,
        Workers(Path(work) / "logs", preload="edgeopt.gate.judge") as workers,  # imported once for all that follows
        showing(),
    ):

        def judged(out: Path) -> GateResult:
            job = GateJob(out, policy, baseline=baseline)
            found: Judged = workers.run_one("gate", Call("edgeopt.gate.judge:judge", job, LIMIT_S))
            return found.result

        found = bisect(read_run(run, recipe), result, judged, Path(work), workers=workers)
    if found.kept is None:
        click.echo(f"bisect: no set of layers passes, so quantization is not the cause: {found.headline}", err=err)
    elif not found.kept:
        click.echo(f"bisect: {found.headline}", err=err)
    else:
        click.echo(
            f"bisect: with {len(found.kept)} layers in float it passes ({found.runs} conversions judged):", err=err
        )
        click.echo(found.patch, nl=False, err=err)
        for text in found.costs:
            click.echo(f"cost: {text}", err=err)


def judge_in_worker(run: Path, policy: Policy, **asked: Any) -> Judged:
    """Judge in a process of its own. Raises as ``edgeopt.gate.judge.judge`` does."""
    from edgeopt.cli.isolated import in_worker
    from edgeopt.gate.judge import GateJob

    job = GateJob(run, policy, **asked)
    found: Judged = in_worker("gate", "edgeopt.gate.judge:judge", job, limit_s=LIMIT_S)
    return found


def show(
    result: GateResult,
    run: Path,
    *,
    json_wanted: bool,
    github: bool,
    junit: Path | None,
    sarif: Path | None,
    quiet: bool = False,
) -> int:
    """Write the reports, print the result, return the exit code."""
    from edgeopt.report import gate_console
    from edgeopt.report.gate_files import as_json, write_reports

    write_reports(result, run)
    if junit is not None:
        from edgeopt.report.junit import as_junit

        _write(junit, as_junit(result))
    if sarif is not None:
        from edgeopt.report.sarif import as_sarif

        _write(sarif, as_sarif(result, run))
    if json_wanted:
        click.echo(as_json(result), nl=False)
    elif not quiet:
        gate_console.print_gate(result, run)
    if github:
        from edgeopt.report.github import annotation_lines, write_summary

        write_summary(run)
        for line in annotation_lines(result):
            click.echo(line, err=json_wanted)
    return result.exit_code


def _asked(run: Path, options: dict[str, Any]) -> tuple[Policy, Path | None]:
    """Policy and baseline: from the options, else from the recipe of the run.

    Where a new baseline is made, the recipe's is not held against the run: it is what is to be replaced.
    """
    from edgeopt.gate.policy import Policy, load_policy

    policy_file, baseline = options["policy"], options["baseline"]
    if (policy_file is None or baseline is None) and run.is_dir():
        files = _of_recipe(run, options["recipe"])
        policy_file = policy_file or files[0]
        baseline = baseline or (files[1] if options["write_baseline"] is None else None)
    policy = load_policy(policy_file) if policy_file is not None else Policy()
    if options["keep_failures"] and policy.regression.file is None:
        raise UsageError(
            "--keep-failures needs a file", hint="Name it in the policy: `regression: {file: regression.json}`."
        )
    if baseline is not None and not baseline.exists():
        hint = f"Make it with --write-baseline {baseline}."
        raise UsageError("there is no such baseline", where=str(baseline), hint=hint)
    return policy, baseline


def _of_recipe(run: Path, recipe: Path | None) -> tuple[Path | None, Path | None]:
    from edgeopt.pipeline.request import REQUEST, read_request
    from edgeopt.recipe.load import load_recipe

    if recipe is not None:
        asked = load_recipe(recipe)
    elif (run / REQUEST).is_file():
        asked, _ = read_request(run)
    else:
        return None, None
    return (asked.gate.policy, asked.gate.baseline) if asked.gate is not None else (None, None)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", where=str(path)) from error
