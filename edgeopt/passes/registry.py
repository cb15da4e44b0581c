"""All passes that a recipe can name. A new pass is one file and one line here."""

from __future__ import annotations

from edgeopt.passes.base import Pass

PASSES: tuple[type[Pass], ...] = ()
