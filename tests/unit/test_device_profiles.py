"""Every profile that comes with edgeopt, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt.devices import catalogue
from edgeopt.devices.profile import DeviceProfile
from edgeopt.errors import UsageError

ASKED = [
    "raspberry-pi-zero-2-w", "raspberry-pi-3b-plus", "raspberry-pi-4b", "raspberry-pi-5", "jetson-nano",
    "jetson-tx2", "jetson-xavier-nx", "jetson-agx-xavier", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin",
    "jetson-agx-thor", "pixel-4", "pixel-6", "pixel-8", "galaxy-s24", "galaxy-s25", "snapdragon-8-gen-2",
    "snapdragon-8-gen-3", "snapdragon-8-elite", "iphone-12", "iphone-13", "iphone-14", "iphone-15",
    "coral-dev-board", "coral-usb", "rk3588",
]  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_the_devices_people_ask_for_are_there(name: str) -> None:
    assert catalogue.find(name).profile.id == name


@pytest.mark.parametrize("profile", catalogue.profiles(), ids=lambda profile: profile.id)
def test_a_profile_is_what_its_file_is_called(profile: DeviceProfile) -> None:
    assert (catalogue.folder() / f"{profile.id}.yaml").is_file()


def test_no_name_means_two_devices() -> None:
    owner: dict[str, str] = {}
    for profile in catalogue.profiles():
        for name in (profile.id, *profile.aliases, *profile.measured_as):
            assert owner.setdefault(name, profile.id) == profile.id, f"{name}: {owner[name]} and {profile.id}"


@pytest.mark.parametrize("word", catalogue.GENERAL)
def test_a_general_word_says_what_it_stands_for(word: str) -> None:
    found = catalogue.find(word)
    assert found.said is not None and found.profile.id in found.said


def test_ids_of_the_measurements_are_aliases() -> None:
    assert catalogue.find("rpi5").profile.id == "raspberry-pi-5"
    assert catalogue.find("jetson_agx_orin").profile.id == "jetson-agx-orin"


def test_an_unknown_device_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'raspberry-pi-5'") as caught:
        catalogue.find("rasberry-pi-5")
    assert caught.value.exit_code == 2


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = (catalogue.folder() / "raspberry-pi-5.yaml").read_text()
    assert old in text
    path = tmp_path / "own.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_profile_of_ones_own_is_read(tmp_path: Path) -> None:
    assert catalogue.find(str(changed(tmp_path, "Raspberry Pi 5", "My Pi"))).profile.name == "My Pi"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("memory_gb: {value: 16", "memory_gb: {value: -16", "memory_gb.value"),
        ("memory_gb:", "memory_gigabytes:", "memory_g"),
        ("confidence: high", "confidence: certain", "confidence"),
        ("unit: gpu, precisions", "unit: tpu, precisions", "tpu"),
        ("runtime: ncnn", "runtime: nccn", "runtimes.2.runtime"),
        ("profile: 1", "profile: 2", "profile"),
        ("id: raspberry-pi-5", "id: [", "no YAML"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(UsageError, match=named) as caught:
        catalogue.load(path)
    assert caught.value.where == str(path)


def test_a_number_without_its_source_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, "{value: 17, source:", "{value: 17, sauce:")
    with pytest.raises(UsageError, match="memory_bandwidth_gb_s"):
        catalogue.load(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        catalogue.find(str(tmp_path / "absent.yaml"))
