"""Which line of the user's module a node comes from, or an error was raised at."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from edgeopt.graph.model import SOURCE_LINE, name_uniquely

_STACK_TRACE = "pkg.torch.onnx.stack_trace"
_LIBRARY = re.compile(r"(site|dist)-packages[/\\]|^<")
_TORCH = re.compile(r"(site|dist)-packages[/\\]torch[/\\]|^<")


def source_lines(model: ir.Model) -> dict[str, str]:
    """Node name → ``file:line: code`` of the user's module, from what the PyTorch exporter noted at each node.

    Nameless nodes get their names by it.
    """
    name_uniquely(model.graph)
    lines: dict[str, str] = {}
    for node in model.graph:
        if node.name and (line := user_line(node.metadata_props.get(_STACK_TRACE, ""))):
            lines[node.name] = line
    return lines


def note_lines(model: ir.Model, where: Mapping[str, str]) -> None:
    """Write each node's source line beside it, where passes and targets find it for their messages."""
    for node in model.graph:
        if line := where.get(node.name or ""):
            node.metadata_props[SOURCE_LINE] = line


def user_line(trace: str) -> str | None:
    """The innermost frame of a Python stack trace that is the user's: ``file:line: code``."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', trace)
    index = _users([file for file, _, _ in frames])
    if index is None:
        return None
    file, line, code = frames[index]
    return f"{file}:{line}: {code.strip()}"


def raised_at(error: BaseException) -> str | None:
    """``file:line`` of the innermost frame of the user's own code that an error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    index = _users([frame.filename for frame in frames])
    return f"{frames[index].filename}:{frames[index].lineno}" if index is not None else None


def _users(files: Sequence[str]) -> int | None:
    """The last file that is no library's; failing that, of a library of models, but never PyTorch's or ours."""
    for foreign in (_LIBRARY, _TORCH):
        for index in reversed(range(len(files))):
            if foreign.search(files[index]) is None and Path(files[index]).parent != Path(__file__).parent:
                return index
    return None
