"""What a ``.pt2`` archive could make PyTorch run, found without PyTorch and without unpickling.

A ``.pt2`` is a zip file. ``torch.export.load`` unpickles what lies in it as a pickle, evaluates symbolic sizes as
Python expressions (``sympy.sympify``) and looks up operators by name: each of these can run code. A program that
``torch.export.save`` wrote of an ordinary model needs none but one harmless pickle of example tensors.
"""

from __future__ import annotations

import ast
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from edgeopt.errors import ModelError

_TENSOR_GLOBALS = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch (Size|device|\w+Storage|float32|float16|bfloat16|int8|uint8|int16|int32|int64|bool)"
    r"|torch\.storage (UntypedStorage|TypedStorage)"
    r"|torch\.serialization _get_layout"
)
"""What a pickle of plain tensors names, and nothing more."""

_SYMBOL = re.compile(r"(zuf|[suz])\d+")
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Abs|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing"
    r"|(Floor|Ceil|Trunc|Round)ToInt|ToFloat|(Int|Float)TrueDiv|floor|ceiling|Where|Piecewise|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge"
    r"|Equality|Unequality|Strict(Less|Greater)Than|(Less|Greater)Than"
)
"""What sympy and PyTorch call when a size is an expression of other sizes."""

_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|prim|_c10d_functional|higher_order|quantized_decomposed|torchvision)\.\w+(\.\w+)?"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|pos|getitem)"
    r"|math\.(ceil|floor|trunc)"
    r"|torch\.sym_(int|float|max|min|not|sum|ite)"
    r"|torch\._sym_\w+"
)


def refuse_what_runs_code(path: Path) -> None:
    """Raise if loading the archive could run code that its author chose.

    Raises:
        ModelError: not a zip file, not an exported program, or something in it would run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            findings = list(_findings(archive))
            is_program = any(_within(name).startswith("models/") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise ModelError(
            f"this is no .pt2 archive, or only a part of one: {error}",
            where=str(path),
            hint="Save it again with torch.export.save.",
        ) from error
    if findings:
        raise ModelError(
            f"loading this archive could run code that it brings: {findings[0]}",
            where=str(path),
            hint="If you know who made it: --trust. Safer: the module's source, and its weights as .safetensors.",
        )
    if not is_program:
        raise ModelError(
            "there is no exported program in this archive", where=str(path), hint="Save it with torch.export.save."
        )


def _within(name: str) -> str:
    """A member's name below the archive's root folder, whose name is free."""
    return name.partition("/")[2]


def _findings(archive: zipfile.ZipFile) -> Iterator[str]:
    """Members that would run something, in words."""
    for info in archive.infolist():
        name = _within(info.filename)
        if not name or info.is_dir():
            if not info.is_dir() and info.filename.endswith((".pt", ".pkl", ".json")):
                yield f"{info.filename!r} is of an older format, which is pickled"
            continue
        data = archive.read(info)
        if name.startswith("data/sample_inputs/"):
            for asked in _pickle_names(data):
                if _TENSOR_GLOBALS.fullmatch(asked) is None:
                    yield f"the pickle {info.filename!r} names {asked.replace(' ', '.')!r}"
        elif name.startswith("data/") and name.endswith((".pt", ".pth", ".pkl")):
            yield f"{info.filename!r} is a pickle"
        elif Path(name).name.startswith(("custom_obj_", "opaque_obj_")):
            yield f"{info.filename!r} is a pickled object"
        elif name.startswith("data/aotinductor") or name.endswith((".so", ".dll", ".dylib")):
            yield f"{info.filename!r} is compiled code"
        elif name.endswith("_config.json"):
            for weight, payload in _json(data, info.filename).get("config", {}).items():
                if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
                    yield f"{weight!r} in {info.filename!r} is stored as a pickle"
        elif name.startswith("models/"):
            yield from _program_findings(_json(data, info.filename))


def _json(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ModelError(f"{name!r} in the archive is no JSON", hint="Save it again with torch.export.save.") from error
    return value if isinstance(value, dict) else {}


def _program_findings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr_str" and not (isinstance(inner, str) and _is_arithmetic(inner)):
                yield f"the size {str(inner)[:60]!r} is no arithmetic of sizes"
            elif key == "target" and isinstance(inner, str) and _TARGET.fullmatch(inner) is None and "." in inner:
                yield f"the operator {inner[:60]!r} is none of PyTorch's"
            elif key == "range_constraints" and isinstance(inner, dict):
                for symbol in inner:
                    if not _is_arithmetic(symbol):
                        yield f"the symbol {symbol[:60]!r} is no symbol of a size"
            else:
                yield from _program_findings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _program_findings(inner)


def _is_arithmetic(text: str) -> bool:
    """Whether an expression is arithmetic of sizes. It will be evaluated as Python, so nothing else may be in it."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return _FUNCTIONS.fullmatch(name) is not None
        case ast.Name(id=name):
            return any(known.fullmatch(name) for known in (_FUNCTIONS, _SYMBOL)) or name in {"true", "false"}
        case ast.Constant(value=value):
            return isinstance(value, int | float) or (isinstance(value, str) and _SYMBOL.fullmatch(value) is not None)
        case ast.keyword(arg=name):
            return name in {"positive", "nonnegative", "integer", "real", "evaluate"}
    harmless = (
        ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Tuple, ast.Load, ast.operator, ast.unaryop,
        ast.boolop, ast.cmpop,
    )  # fmt: skip
    return isinstance(node, harmless)


def _pickle_names(data: bytes) -> Iterator[str]:
    """``module name`` of everything that a torch.save file's pickle refers to; its operations are read, not run."""
    if not data:
        return
    try:
        with zipfile.ZipFile(BytesIO(data)) as inner:
            pickles = [inner.read(name) for name in inner.namelist() if name.endswith(".pkl")]
    except zipfile.BadZipFile:
        pickles = [data]  # torch.save's format before 1.6: a row of plain pickles
    for stored in pickles:
        strings: list[str] = []
        try:
            for operation, argument, _ in pickletools.genops(stored):
                if operation.name in {"GLOBAL", "INST"}:
                    yield str(argument)
                elif operation.name == "STACK_GLOBAL":
                    yield " ".join(strings[-2:]) if len(strings) > 1 else "something unknown"
                elif operation.name in {"EXT1", "EXT2", "EXT4"}:
                    yield "an extension"
                elif isinstance(argument, str):
                    strings.append(argument)
                elif operation.name in {"BINGET", "GET", "LONG_BINGET"}:
                    strings.append("a remembered name")
        except ValueError as error:
            raise ModelError(f"a pickle in the archive is broken: {error}") from error
