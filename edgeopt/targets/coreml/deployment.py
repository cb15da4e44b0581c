"""Deployment targets of Core ML, and the lowest that has what a program needs.

Source: the availability that coremltools' MIL operator sets state (``converters/mil/mil/ops/defs/iOS15`` … ``iOS18``).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from edgeopt.errors import UsageError
from edgeopt.types import SchemeName

OLDEST = "iOS15"
"""Before it there are no ML programs: coremltools would silently write the old neural-network format."""
SAME_AS = {
    **{f"macOS{macos}": f"iOS{ios}" for macos, ios in ((12, 15), (13, 16), (14, 17), (15, 18))},
    **{f"tvOS{number}": f"iOS{number}" for number in (15, 16, 17, 18)},
    **{f"watchOS{watch}": f"iOS{ios}" for watch, ios in ((8, 15), (9, 16), (10, 17), (11, 18))},
}
"""Other platforms' releases that read what an iOS release reads; from version 26 on all carry one number."""
SCHEME_NEEDS: dict[SchemeName, tuple[str, str]] = {
    "int8-weights": ("iOS16", "compressed weights (constexpr_affine_dequantize)"),
    "palette4-weights": ("iOS16", "palettized weights (constexpr_lut_to_dense)"),
    "palette6-weights": ("iOS16", "palettized weights (constexpr_lut_to_dense)"),
    "palette8-weights": ("iOS16", "palettized weights (constexpr_lut_to_dense)"),
    "int8": ("iOS17", "int8 activations (the operators quantize and dequantize)"),
    "int4-weights": ("iOS18", "4-bit weights with one scale per block (constexpr_blockwise_shift_scale)"),
}
"""Scheme → the lowest deployment target that can hold it, and what it needs there."""


def _known(text: str) -> str:
    """The iOS release that stands for a deployment target of any platform."""
    match = re.fullmatch(r"(iOS|macOS|tvOS|watchOS|visionOS)(\d+)", text)
    if match is None:
        raise ValueError(f"'{text}' is no deployment target; they are written like iOS17 or macOS14")
    release = text if match[1] == "iOS" else SAME_AS.get(text, f"iOS{match[2]}" if int(match[2]) >= 26 else text)
    number = int(re.sub(r"\D", "", release))
    if not release.startswith("iOS") or number < int(OLDEST[3:]):
        raise ValueError(f"'{text}' has no ML programs, only the old neural-network format; the lowest is {OLDEST}")
    return release


Minimum = Annotated[str, AfterValidator(_known)]
"""A deployment target from iOS15 (macOS12, tvOS15, watchOS8) on, as the iOS release that it equals."""


def number(minimum: str) -> int:
    """For comparison: 17 for iOS17."""
    return int(minimum.removeprefix("iOS"))


def lowest_for(schemes: Iterable[SchemeName]) -> str:
    """The lowest deployment target that holds all of these schemes."""
    return max((SCHEME_NEEDS[scheme][0] for scheme in schemes if scheme in SCHEME_NEEDS), key=number, default=OLDEST)


def refuse_missing(minimum: str, schemes: Iterable[SchemeName]) -> None:
    """Refuse a deployment target that cannot hold a scheme.

    Raises:
        UsageError: with the lowest deployment target that can.
    """
    for scheme in schemes:
        needed, what = SCHEME_NEEDS.get(scheme, (OLDEST, ""))
        if number(needed) > number(minimum):
            raise UsageError(
                f"{scheme} needs {what}, which {minimum} does not have; the lowest that has it is {needed}",
                where="targets.coreml.minimum",
                hint=f"Ask for {needed} or later, leave 'minimum' out, or choose another scheme.",
            )


def refuse_unknown(minimum: str) -> None:
    """Refuse a deployment target that the coremltools which is installed does not know, without importing it.

    Raises:
        UsageError: with the newest that it knows.
    """
    spec = importlib.util.find_spec("coremltools")
    if spec is None or spec.origin is None:
        return  # that it is missing is said where it is needed
    text = Path(spec.origin).read_text(encoding="utf-8")
    known = sorted({int(release) for release in re.findall(r"_SPECIFICATION_VERSION_IOS_(\d+)\b", text)})
    if known and number(minimum) not in known:
        raise UsageError(
            f"the coremltools that is installed does not know {minimum}; its newest is iOS{known[-1]}",
            where="targets.coreml.minimum",
            hint=f"Ask for one of {', '.join(f'iOS{release}' for release in known if release >= number(OLDEST))}.",
        )


def target_of(minimum: str) -> object:
    """coremltools' deployment target; one that it does not know was refused before (``refuse_unknown``)."""
    import coremltools

    found: object = getattr(coremltools.target, minimum)
    return found
