"""The profiles that come with edgeopt: found by id, by alias, or refused with what was probably meant."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from edgeopt.devices.profile import DeviceProfile
from edgeopt.errors import SetupError, UsageError

GENERAL = {
    "jetson": "jetson-orin-nano",
    "raspberry-pi": "raspberry-pi-5",
    "iphone": "iphone-15",
    "android-phone": "pixel-8",
}
"""A word for a kind of device → the profile that stands for it. Whoever uses one is told which it was."""


@dataclass(frozen=True)
class Found:
    profile: DeviceProfile
    said: str | None
    """What to tell the person where the name was an alias: ``'jetson' stands for jetson-orin-nano (NVIDIA …)``."""


def folder() -> Path:
    """``hardware_profiles``: beside the package in a checkout, inside it once installed from a wheel.

    Raises:
        SetupError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for place in (package / "hardware_profiles", package.parent / "hardware_profiles"):
        if place.is_dir():
            return place
    raise SetupError("the hardware profiles are missing from this installation", hint="Install edgeopt again.")


def load(path: Path) -> DeviceProfile:
    """Read one profile.

    Raises:
        UsageError: no file, no YAML, or a field that is wrong; the message names it.
    """
    try:
        content: Any = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"is no YAML: {str(error).splitlines()[0]}", where=str(path)) from error
    try:
        return DeviceProfile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the profile"
        raise UsageError(
            f"{field}: {first['msg'].removeprefix('Value error, ')}",
            where=str(path),
            hint="Every number is {value, source, confidence}; what is not known is null. "
            "edgeopt/devices/profile.py says which fields there are.",
        ) from error


@lru_cache(maxsize=1)
def profiles() -> tuple[DeviceProfile, ...]:
    """All that come with edgeopt, by id."""
    return tuple(sorted((load(path) for path in folder().glob("*.yaml")), key=lambda profile: profile.id))


def find(name: str) -> Found:
    """The profile of an id, an alias, an id of the published measurements, or a path to a profile of one's own.

    Raises:
        UsageError: there is none; says which is closest.
    """
    if name.endswith((".yaml", ".yml")):
        return Found(load(Path(name)), None)
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    if wanted in GENERAL:
        profile = next(profile for profile in profiles() if profile.id == GENERAL[wanted])
        return Found(profile, f"'{name}' stands for {profile.id} ({profile.name})")
    names: dict[str, DeviceProfile] = {}
    for profile in profiles():
        for known in (profile.id, *profile.aliases, *profile.measured_as):
            names.setdefault(known.lower().replace("_", "-"), profile)
    if wanted in names:
        profile = names[wanted]
        return Found(profile, None if wanted == profile.id else f"'{name}' is {profile.id} ({profile.name})")
    near = get_close_matches(wanted, [*names, *GENERAL], n=1)
    raise UsageError(
        f"there is no hardware profile '{name}'",
        hint=(f"Did you mean '{near[0]}'? " if near else "")
        + "'edgeopt devices' lists them; a file ending in .yaml is "
        "read as a profile of your own.",
    )
