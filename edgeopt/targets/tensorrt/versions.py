"""TensorRT releases and JetPacks, and what differs between them, as data with its sources."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgeopt.targets.tensorrt.operators import Release, is_read, is_unsure

OPERATORS_MD = "onnx-tensorrt, docs/operators.md"

KNOWN: tuple[Release, ...] = (
    (8, 5), (8, 6), *((10, minor) for minor in range(17)), *((11, minor) for minor in range(5)),
)  # fmt: skip
"""Releases that edgeopt has data for."""

OPSETS: Mapping[Release, tuple[int, int, str]] = {
    (8, 5): (9, 17, f"{OPERATORS_MD} of 8.5: up to 17"),
    (8, 6): (9, 17, f"{OPERATORS_MD} of 8.6: up to 17"),
    (10, 0): (9, 20, f"{OPERATORS_MD} of 10.0: 9 to 20"),
    (10, 15): (9, 24, f"{OPERATORS_MD} of 10.15: 9 to 24"),
    (11, 0): (9, 25, "TensorRT 11 documentation, ONNX Opset Guide: 9 to 25"),
}
"""Release from which an opset range is known → lowest, highest, source. In between the earlier one holds."""

JETPACKS: Mapping[tuple[int, int], Release] = {
    (5, 1): (8, 5),
    (6, 0): (8, 6),
    (6, 1): (10, 3),
    (6, 2): (10, 3),
    (7, 0): (10, 13),
    (7, 1): (10, 13),
}
"""JetPack → its TensorRT. Source: JetPack release notes."""

LAST_DLA: Release = (10, 7)
DLA_SOURCE = "TensorRT 11.4 documentation, Working with DLA: 10.7 is the last release with DLA on Jetson"
DLA_JETPACK = (6, 2)
"""The Jetsons of JetPack 7 (Thor) have no DLA."""

DEFAULT = (10, 3)
"""TensorRT of JetPack 6.1 and 6.2, which most Jetsons in use have."""


class UnknownVersionError(ValueError):
    """No such release or JetPack, or none that edgeopt has data for; the message says which is near."""


@dataclass(frozen=True)
class Version:
    """One TensorRT release and what it asks for.

    Args:
        release: major and minor.
        jetpack: the JetPack that it was asked by, as text; None if by its own version.
        dla: the engine is for the Deep Learning Accelerator.
    """

    release: Release
    jetpack: str | None = None
    dla: bool = False

    @property
    def major(self) -> int:
        return self.release[0]

    @property
    def text(self) -> str:
        return f"{self.release[0]}.{self.release[1]}"

    @property
    def label(self) -> str:
        """For people: ``TensorRT 10.3 (JetPack 6.2)``."""
        where = f" (JetPack {self.jetpack})" if self.jetpack else ""
        return f"TensorRT {self.text}{where}{', DLA' if self.dla else ''}"

    @property
    def opsets(self) -> tuple[int, int]:
        return self._opsets()[:2]

    @property
    def opset_source(self) -> str:
        return self._opsets()[2]

    def _opsets(self) -> tuple[int, int, str]:
        return OPSETS[max(start for start in OPSETS if start <= self.release)]

    @property
    def integer_weights(self) -> bool:
        """Weights may be int8 constants behind a DequantizeLinear; 8.x reads float weights with both nodes."""
        return self.major >= 10

    @property
    def strongly_typed(self) -> bool:
        """Types in the file decide precision. 8.x: builder flags."""
        return self.major >= 10

    @property
    def flags(self) -> tuple[str, ...]:
        """What ``trtexec`` of this release needs for a file with int8 in it."""
        return {8: ("--int8", "--fp16"), 10: ("--stronglyTyped",)}.get(self.major, ())

    def reads(self, operator: str) -> bool:
        return is_read(operator, self.release)

    def unsure(self, operator: str) -> bool:
        return is_unsure(operator, self.release)


def tensorrt(text: str, *, dla: bool = False) -> Version:
    """The release that ``10.3``, ``10.3.0`` or ``10.3.0.26`` names.

    Raises:
        UnknownVersionError: none that is known.
    """
    known = {f"{major}.{minor}": (major, minor) for major, minor in KNOWN}
    return _with_dla(Version(_find(text, known, "TensorRT version")), dla)


def jetpack(text: str, *, dla: bool = False) -> Version:
    """The TensorRT of the JetPack that ``6.2`` or ``6.2.1`` names.

    Raises:
        UnknownVersionError: none that is known.
    """
    known = {f"{major}.{minor}": (major, minor) for major, minor in JETPACKS}
    found = _find(text, known, "JetPack")
    return _with_dla(Version(JETPACKS[found], text), dla)


def named(text: str) -> Version:
    """What follows ``--for``: ``tensorrt@10.3`` or ``jetpack-6.2``, each with ``+dla`` for the DLA.

    Raises:
        UnknownVersionError: it names neither, or an unknown version.
    """
    match = re.fullmatch(r"(tensorrt|jetpack)[@-]([^+]+)(\+dla)?", text.strip().lower())
    if match is None:
        raise UnknownVersionError(
            f"'{text}' is neither tensorrt@VERSION nor jetpack-VERSION; for example tensorrt@10.3 or jetpack-6.2, "
            "with +dla for the DLA"
        )
    make = tensorrt if match[1] == "tensorrt" else jetpack
    return make(match[2], dla=match[3] is not None)


def _find(text: str, known: Mapping[str, Release], what: str) -> Release:
    short = ".".join(text.strip().split(".")[:2])
    if re.fullmatch(r"\d+(\.\d+){1,3}", text.strip()) and short in known:
        return known[short]
    near = _nearest(short, known)
    said = f"Did you mean '{near}'?" if near else f"Known here: {', '.join(known)}."
    raise UnknownVersionError(f"unknown {what} '{text}'. {said}")


def _nearest(text: str, known: Iterable[str]) -> str | None:
    """The closest known version: by spelling, else the newest of the same major version."""
    names = list(known)
    same = [name for name in names if name.partition(".")[0] == text.partition(".")[0]]
    near = difflib.get_close_matches(text, same or names, n=1, cutoff=0.6)
    return near[0] if near else (same[-1] if same else None)


def _with_dla(version: Version, dla: bool) -> Version:
    if not dla:
        return version
    if version.release > LAST_DLA:
        raise UnknownVersionError(
            f"{version.label} has no DLA. Leave 'dla' out, or ask for 10.7 or before. {DLA_SOURCE}."
        )
    return Version(version.release, version.jetpack, dla=True)
