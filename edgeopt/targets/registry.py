"""All targets, in the order of reports. A new target is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from edgeopt.graph.constraints import Constraints, unite
from edgeopt.targets.base import Target
from edgeopt.targets.coreml.target import CoremlTarget
from edgeopt.targets.onnx import Onnx
from edgeopt.targets.tensorrt.target import TensorrtTarget
from edgeopt.targets.tflite.target import TfliteTarget

TARGETS: Mapping[str, type[Target]] = {
    target.name: target for target in (Onnx, TfliteTarget, CoremlTarget, TensorrtTarget)
}
"""Name in recipes → class."""


def all_constraints() -> Constraints:
    """What all targets together demand of the table, asked for or not: so adding one never changes another's."""
    return unite(target.constraints for target in TARGETS.values())
