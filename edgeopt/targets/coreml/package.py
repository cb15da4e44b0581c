"""Writes an ``.mlpackage``, the same bytes for the same program.

coremltools puts random identifiers into the manifest and the day into the metadata. Here identifiers follow from the
content, and metadata says where the model comes from instead of when.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

MODEL_FILE = "model.mlmodel"
AUTHOR = "com.apple.CoreML"
NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562's for object identifiers


def write(path: Path, spec: Any, weights: bytes) -> None:
    """Write model, weights and manifest into the new folder ``path``.

    Args:
        path: of the package, ``….mlpackage``.
        spec: ``Model`` message of coremltools' protobuf definitions.
        weights: of ``weights/weight.bin``; empty where the program holds all constants itself.
    """
    data = path / "Data" / AUTHOR
    (data / "weights").mkdir(parents=True)
    (data / MODEL_FILE).write_bytes(spec.SerializeToString(deterministic=True))
    model, folder = (_identifier(name) for name in (MODEL_FILE, "weights"))
    entries = {
        model: _entry(MODEL_FILE, "CoreML Model Specification", f"{AUTHOR}/{MODEL_FILE}"),
    }
    if weights:
        (data / "weights" / "weight.bin").write_bytes(weights)
        entries[folder] = _entry("weights", "CoreML Model Weights", f"{AUTHOR}/weights")
    else:
        (data / "weights").rmdir()
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": model}
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _identifier(name: str) -> str:
    """Of an item: one package has one of each, so its name is enough."""
    return str(uuid.uuid5(NAMESPACE, f"edgeopt/{name}")).upper()


def _entry(name: str, description: str, path: str) -> dict[str, str]:
    return {"author": AUTHOR, "description": description, "name": name, "path": path}
