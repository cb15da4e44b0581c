"""Executes Core ML's ML programs on any machine: reference semantics, nothing of any device's arithmetic.

``package`` reads an ``.mlpackage``, ``Session`` runs it; coremltools itself is never imported.
"""

from edgeopt.runtimes.mil_reference.session import Session, TensorInfo, version

__all__ = ["Session", "TensorInfo", "version"]
