"""The process that loads PyTorch: ``python -m edgeopt.frontends.torch_worker``, started by ``frontends.torch``.

The main process never imports torch, and what a user's module does (crash, print, hang, change global state) stays
here. Messages on stdin and stdout are frames: eight bytes of length (little-endian), then JSON or an npz; whatever
the user's code prints goes to stderr.

::

    request   {"do": "export" | "run", "factory", "root", "weights" | "exported" | "keras", "inputs", "out", "threads"}
    answer    {"error": {...}}   or, for export, {"ok": {...}}
    then      for run: an npz of inputs, answered by an npz of outputs, until stdin ends
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import IO, Any

from edgeopt.errors import EdgeoptError, MissingPackage, ModelError, UnsupportedOperator
from edgeopt.frontends.frames import pack, read_frame, unpack, write_frame
from edgeopt.frontends.source_lines import raised_at, user_line
from edgeopt.frontends.torch_loading import Loaded, described
from edgeopt.frontends.wording import first_line
from edgeopt.graph.model import OPSET


def main() -> int:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of the user's code must not mix with the answers
    requests = sys.stdin.buffer
    first = read_frame(requests)
    if first is None:
        return 0
    request = json.loads(first)
    try:
        warnings.simplefilter("ignore")
        work = _export if request["do"] == "export" else _run
        work(request, requests, answers)
    except EdgeoptError as error:
        _say_error(answers, error)
    return 0


def _say_error(stream: IO[bytes], error: EdgeoptError) -> None:
    text = {"kind": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}
    write_frame(stream, json.dumps({"error": text}).encode())


def _export(request: dict[str, Any], requests: IO[bytes], answers: IO[bytes]) -> None:
    _need_onnxscript()
    before = set(sys.modules)
    loaded = Loaded(request)
    export(loaded, Path(request["out"]))
    files = {
        str(Path(file).resolve())
        for name, module in list(sys.modules.items())
        if name not in before and (file := getattr(module, "__file__", None)) and _is_users(file, request.get("root"))
    }
    answer = {"inputs": {name: list(sizes) for name, sizes in loaded.inputs.items()}, "files": sorted(files)}
    write_frame(answers, json.dumps({"ok": answer}).encode())


def export(loaded: Loaded, out: Path) -> None:
    """Write the module, as it is now, as ONNX.

    Raises:
        ModelError, UnsupportedOperator: it cannot be traced, or has no ONNX form.
    """
    _write_onnx(loaded, trace(loaded), out)


def trace(loaded: Loaded) -> Any:
    """The module, as it is now, as torch.export's program.

    Raises:
        ModelError: it cannot be traced.
    """
    import torch

    feed = {name: torch.zeros(sizes, dtype=loaded.dtypes[name]) for name, sizes in loaded.inputs.items()}
    args, kwargs = loaded.arguments(feed)
    program = loaded.program
    if program is not None and not program.range_constraints:
        return program
    try:
        return torch.export.export(loaded.module, args, kwargs, strict=False)
    except Exception as error:  # torch.export raises what its parts raise
        raise ModelError(
            f"torch.export cannot trace the model: {first_line(error)}",
            where=user_line(str(error)) or raised_at(error) or loaded.where,
            hint="Its forward must not decide by values of its tensors (if, while, .item()). "
            "Take such steps out of the module, or write them with torch.where.",
        ) from error


def _is_users(file: str, root: str | None) -> bool:
    path = Path(file).resolve()
    return root is not None and path.is_relative_to(Path(root).resolve()) and "site-packages" not in path.parts


def _need_onnxscript() -> None:
    if importlib.util.find_spec("onnxscript") is None:
        raise MissingPackage("onnxscript", "torch", "importing a PyTorch model")


def _write_onnx(loaded: Loaded, program: Any, out: Path) -> None:
    import torch

    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(loaded.inputs),
            output_names=loaded.outputs,
            external_data=False,
            verbose=False,
            optimize=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _unsupported(error, program, loaded.where) from error
    assert exported is not None
    _fold(exported.model)
    _name_after_modules(exported.model)
    if loaded.weight_names:
        _name_after_weights(exported.model, loaded.weight_names)
    exported.save(str(out), external_data=False)


def _fold(model: Any) -> None:
    """What of the exporter's own optimizer the importer does not do: most of its time goes into rewriting patterns.

    Those are the canonical passes' work, whatever a model came from. Sequences (of a split) are folded here, and a
    ScatterND that writes all of a tensor, as an assignment to a slice of it becomes.
    """
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules.common import no_op_static_scatter_nd_rule

    optimizer.inline(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    if any(node.op_type == "ScatterND" for node in model.graph):
        rewriter.rewrite(model, [no_op_static_scatter_nd_rule])
    optimizer.remove_unused_nodes(model)


def _unsupported(error: BaseException, program: Any, where: str) -> EdgeoptError:
    """Which operator has no ONNX form, and at which line of the user's module it stands."""
    texts: list[str] = []
    link: BaseException | None = error.__cause__ or error
    while link is not None:
        texts.append(str(link))
        link = link.__cause__
    text = "\n".join(texts)
    name = re.search(r"translating node %(\w+)", text)
    operator = re.search(r"op='([\w.]+)'", text)
    line = None
    if name is not None:
        for graph in (program.graph, program.run_decompositions().graph):
            for node in graph.nodes:
                if node.name == name.group(1) and line is None:
                    line = user_line(node.stack_trace or "")
    if operator is None:
        return ModelError(f"the PyTorch exporter fails: {first_line(error.__cause__ or error)}", where=line or where)
    return UnsupportedOperator(
        f"{operator.group(1)} has no form in ONNX",
        where=f"node {name.group(1) if name else '?'!r} ({operator.group(1)})"
        + (f", {line}" if line else f", {where}"),
        hint="Write it with other operators, or end the model before it and do this step in the application.",
    )


def _name_after_modules(model: Any) -> None:
    """Name nodes after the user's modules, so that patterns in a recipe say what the user sees: ``features.3.conv``.

    A weighted node takes the name before ``.weight``; others the path of the innermost module and their operator.
    """
    taken: set[str] = set()
    for node in model.graph:
        weight = node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] is not None else None
        if weight and weight.endswith(".weight") and node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            base = weight.removesuffix(".weight")
        else:
            scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
            path = scopes[-2] if len(scopes) > 1 else ""
            base = f"{path}/{node.op_type}" if path else (node.name or node.op_type)
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}__{count}"
        taken.add(name)
        node.name = name


def _name_after_weights(model: Any, names: dict[str, str]) -> None:
    """Name weighted nodes after the Keras layers that their weights are of."""
    from edgeopt.frontends.keras_loading import weight_key

    taken = {node.name for node in model.graph}
    for node in model.graph:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"} and weight is not None and weight.const_value:
            name = names.get(weight_key(weight.const_value.numpy()))
            if name is not None and name not in taken:
                node.name = name
                taken.add(name)


def _run(request: dict[str, Any], requests: IO[bytes], answers: IO[bytes]) -> None:
    import torch

    torch.set_num_threads(int(request.get("threads", 1)))
    loaded = Loaded(request)
    write_frame(answers, json.dumps({"ok": {}}).encode())
    while (data := read_frame(requests)) is not None:
        feed = {name: torch.from_numpy(array.copy()) for name, array in unpack(data).items()}
        try:
            outputs = loaded.run(feed)
        except Exception as error:  # the user's forward raises what it likes
            raise ModelError(
                f"the original model fails on a sample: {first_line(error)}",
                where=raised_at(error) or loaded.where,
                hint=f"It was given {described({name: tuple(value.shape) for name, value in feed.items()})}.",
            ) from error
        write_frame(answers, pack(outputs))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
