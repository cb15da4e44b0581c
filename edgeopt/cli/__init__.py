"""The command line: the only code that prints. Results on stdout, progress and messages on stderr.

Commands are imported when they are called, so that ``edgeopt --help`` loads nothing heavy.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any

import click

from edgeopt import __version__
from edgeopt.errors import EdgeoptError

COMMANDS = {
    "convert": "Turn a trained model into verified artifacts for edge devices.",
    "parity": "Compare any two models: source, ONNX, TFLite.",
    "gate": "Judge a finished run: no bad model ships, and everyone sees why.",
    "bench": "Measure latency here or on a device, or predict it.",
    "inspect": "Look into an ONNX or TFLite file: operators by precision, every scale.",
    "init": "Write a first recipe.",
    "devices": "List the hardware profiles and what their predictions rest on.",
    "doctor": "Say what is installed here or on a device and whether it works.",
}
"""Name → what ``edgeopt --help`` says. Each is ``edgeopt/cli/NAME.py`` with a function ``command``."""

EXAMPLES = """\b
Examples:
  edgeopt convert model.onnx --calibration images/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  edgeopt convert recipe.yaml --out out/
  edgeopt parity model.onnx out/tflite/model.tflite --data evaluation.npz
  edgeopt gate out/ --baseline baseline.json
  edgeopt inspect out/tflite/model.tflite

\b
Exit codes: 0 good; 1 parity, budget or precision failed; 2 usage, recipe, model or data not acceptable;
3 something is missing here; 4 the work failed; 130 interrupted.
"""
INTERRUPTED = 130


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"edgeopt.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"no such command '{args[0]}'\n  {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Lazy, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="edgeopt")
def group() -> None:
    """Takes a trained vision model to edge devices and proves that it still works there."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``edgeopt``; never returns."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is cancelled ends as Ctrl-C does
    code = run(sys.argv[1:] if arguments is None else arguments)
    if code == INTERRUPTED:
        # An interrupt that came inside exec(), as imports of dataclasses do, makes Python end by the signal otherwise.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line. Returns its exit code; every error that edgeopt raises is printed here, in one form."""
    try:
        code = group.main(args=arguments, prog_name="edgeopt", standalone_mode=False)
    except EdgeoptError as error:
        return _fail(error, arguments)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        what, _, hint = error.format_message().partition("\n")
        usage = f"Try '{error.ctx.command_path} --help'." if error.ctx else "Try 'edgeopt --help'."
        return _fail(_usage(what.rstrip("."), hint.strip() or usage), arguments)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: finished steps are kept, the same command goes on from there", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; nothing is left to say
        return 0
    return code if isinstance(code, int) else 0


def _usage(what: str, hint: str) -> EdgeoptError:
    from edgeopt.errors import UsageError

    return UsageError(what[0].lower() + what[1:] if what else what, hint=hint)


def _fail(error: EdgeoptError, arguments: list[str]) -> int:
    if "--json" in arguments:
        content: dict[str, Any] = {"what": error.what, "where": error.where, "hint": error.hint}
        click.echo(json.dumps({"schema": "edgeopt.error/1", "exit_code": error.exit_code, **content}, indent=2))
    click.echo(click.style("error", fg="red", bold=True) + f": {error}", err=True)
    return error.exit_code
