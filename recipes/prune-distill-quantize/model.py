"""The quickstart's network, which this recipe starts from."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def build() -> Any:
    """In eval mode, weights not yet loaded."""
    path = Path(__file__).resolve().parent.parent / "quickstart" / "model.py"
    spec = spec_from_file_location("quickstart_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build()
