"""Executes Core ML's ML programs on any machine: reference semantics, nothing of any device's arithmetic.

``package`` reads an ``.mlpackage``; nothing here imports coremltools itself.
"""
