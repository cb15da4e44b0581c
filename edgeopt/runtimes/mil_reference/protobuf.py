"""The protobuf messages of Core ML's model format, taken from coremltools without importing coremltools.

``import coremltools`` takes seconds (it looks for torch, tensorflow and scikit-learn); its generated message modules
need nothing but ``google.protobuf``, so they are loaded alone, under a name of our own. Protobuf registers a message
type once per process: a coremltools that is imported later gets the same classes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

ALONE = "_coremltools_proto_alone"


def message_module(name: str) -> Any:
    """One of coremltools' generated modules, such as ``Model_pb2``.

    Raises:
        ImportError: coremltools is not installed; the message says how to get it.
    """
    loaded = sys.modules.get(f"coremltools.proto.{name}")
    if loaded is not None:
        return loaded
    if ALONE not in sys.modules:
        spec = importlib.util.find_spec("coremltools")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(
                "reading an .mlpackage needs the package 'coremltools', which is not installed:"
                " pip install 'edgeopt[coreml]'",
                name="coremltools",
            )
        package = types.ModuleType(ALONE)
        package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "proto")]
        sys.modules[ALONE] = package
    return importlib.import_module(f"{ALONE}.{name}")
