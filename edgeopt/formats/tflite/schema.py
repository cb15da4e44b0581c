"""Numbers and names of LiteRT's own schema (``ai_edge_litert.schema_py_generated``); no TensorFlow is needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
ALIGNMENT = 16
"""Of every constant, in bytes: the schema's own demand, so that kernels can read it where it is mapped."""


@cache
def operator_names() -> Mapping[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


@cache
def operator_codes() -> Mapping[str, int]:
    return {name: code for code, name in operator_names().items()}


@cache
def dtype_names() -> Mapping[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
