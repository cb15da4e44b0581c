"""All passes that a recipe can name. A new pass is one file and one line here."""

from __future__ import annotations

from edgeopt.passes.base import Pass
from edgeopt.passes.quantize.quantize import Quantize

PASSES: tuple[type[Pass], ...] = (Quantize,)
