"""``edgeopt devices``: the hardware profiles, and what predictions for each rest on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeopt.devices.evidence import Evidence
    from edgeopt.devices.profile import DeviceProfile, Figure, Peaks

EXAMPLES = """\b
Examples:
  edgeopt devices
  edgeopt devices raspberry-pi-5
  edgeopt devices jetson --json
"""


@click.command("devices", epilog=EXAMPLES)
@click.argument("name", required=False)
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
def command(name: str | None, json_wanted: bool) -> int:
    """List the hardware profiles, or show one: its figures with their sources, and what its predictions rest on.

    NAME is an id, an alias (jetson, raspberry-pi, iphone, android-phone), or a profile of your own, FILE.yaml.
    """
    from edgeopt.devices import catalogue

    if name is None:
        profiles = catalogue.profiles()
        if json_wanted:
            click.echo(json.dumps({"schema": "edgeopt.devices/1", "devices": [_brief(p) for p in profiles]}, indent=2))
            return 0
        _list(profiles)
        return 0
    found = catalogue.find(name)
    if found.said:
        click.echo(found.said, err=True)
    from edgeopt.devices.evidence import evidence

    rests_on = evidence(found.profile)
    if json_wanted:
        shown = {
            **_brief(found.profile),
            "profile": found.profile.model_dump(mode="json"),
            "predictions": [item.model_dump(mode="json") for item in rests_on],
        }
        click.echo(json.dumps({"schema": "edgeopt.devices/1", "devices": [shown]}, indent=2))
        return 0
    _show(found.profile, rests_on)
    return 0


def _brief(profile: DeviceProfile) -> dict[str, Any]:
    from edgeopt.devices.catalogue import GENERAL

    general = [word for word, device in GENERAL.items() if device == profile.id]
    return {
        "id": profile.id,
        "aliases": [*general, *profile.aliases, *profile.measured_as],
        "name": profile.name,
        "soc": profile.soc,
        "runtimes": sorted({support.runtime for support in profile.runtimes}),
    }


def _list(profiles: tuple[DeviceProfile, ...]) -> None:
    from edgeopt.devices.catalogue import GENERAL

    width = max(len(profile.id) for profile in profiles)
    for profile in profiles:
        runtimes = ", ".join(dict.fromkeys(f"{s.runtime}/{s.unit}" for s in profile.runtimes))
        click.echo(f"{profile.id:<{width}}  {profile.name} · {profile.soc} · {runtimes}")
    click.echo(f"\nshort: {', '.join(f'{word} = {device}' for word, device in GENERAL.items())}")


def _show(profile: DeviceProfile, rests_on: tuple[Evidence, ...]) -> None:
    click.echo(click.style(profile.name, bold=True) + f" ({profile.id}), {profile.soc}")
    if profile.aliases or profile.measured_as:
        click.echo(f"  also: {', '.join((*profile.aliases, *profile.measured_as))}")
    for cluster in profile.cpu:
        click.echo(f"  CPU {int(cluster.count.value)} × {cluster.core}, {_figure(cluster.ghz, 'GHz')}")
    _peaks("CPU", profile.cpu_peaks)
    click.echo(f"  memory {_figure(profile.memory_gb, 'GB')}")
    click.echo(f"  memory bandwidth {_figure(profile.memory_bandwidth_gb_s, 'GB/s')}")
    for accelerator in profile.accelerators:
        click.echo(f"  {accelerator.unit.upper()} {accelerator.name}")
        _peaks(accelerator.unit.upper(), accelerator.peaks)
    for mode in profile.power_modes:
        click.echo(f"  power mode {mode.name}: {_figure(mode.watts, 'W')}")
    if profile.notes:
        click.echo(f"  {profile.notes}")
    click.echo("  predictions rest on:")
    for item in rests_on:
        name = f"{item.runtime}/{item.compute_unit} {item.precision}" + (f" ({item.delegate})" if item.delegate else "")
        error = "" if item.held_out_error_pct is None else f", held-out error {item.held_out_error_pct:.1f} %"
        if item.probes:
            click.echo(f"    {name}: {item.probes} models measured on such a board{error} (devices held out)")
        elif item.basis == "fitted":
            threads = f", threads {', '.join(item.threads)}" if item.threads else ""
            click.echo(f"    {name}: {item.rows} published rows{threads}{error} (families held out)")
        elif item.basis == "transferred":
            if item.rows:
                said = f"transferred from its {item.rows} rows with other threads{error} (threads held out)"
            else:
                source = "transferred from relatives" if item.related else "nothing like it, the mean of all devices"
                said = f"no rows of its own, {source}{error} (devices held out)"
            click.echo(f"    {name}: {said}")
        else:
            click.echo(f"    {name}: nothing measured on any device, no prediction")


def _peaks(unit: str, peaks: Peaks) -> None:
    for precision, figure in (("fp32", peaks.fp32_gops), ("fp16", peaks.fp16_gops), ("int8", peaks.int8_gops)):
        if figure is not None:
            click.echo(f"  {unit} peak {precision} {_figure(figure, 'Gop/s')}")


def _figure(figure: Figure | None, unit: str) -> str:
    if figure is None:
        return "not known"
    return f"{figure.value:g} {unit} [{figure.confidence}: {figure.source}]"
