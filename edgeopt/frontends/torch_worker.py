"""The process that loads PyTorch: ``python -m edgeopt.frontends.torch_worker``, started by ``frontends.torch``.

The main process never imports torch, and what a user's module does (crash, print, hang, change global state) stays
here. Messages on stdin and stdout are frames: eight bytes of length (little-endian), then JSON or an npz; whatever
the user's code prints goes to stderr.

::

    request   {"do": "export" | "run", "factory", "root", "weights" | "exported", "inputs", "out", "threads"}
    answer    {"error": {...}}   or, for export, {"ok": {...}}
    then      for run: an npz of inputs, answered by an npz of outputs, until stdin ends
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeopt.errors import EdgeoptError, MissingPackage, ModelError, UnsupportedOperator
from edgeopt.graph.model import OPSET

_SHOWN = 5
"""How many names of a long list stand in a message."""


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


def read_frame(stream: IO[bytes]) -> bytes | None:
    header = stream.read(8)
    if len(header) < 8:
        return None
    length = int.from_bytes(header, "little")
    data = stream.read(length)
    return data if len(data) == length else None


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def pack(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{f"a/{name}": array for name, array in arrays.items()})
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return {name.removeprefix("a/"): stored[name] for name in stored.files}


def _say_error(stream: IO[bytes], error: EdgeoptError) -> None:
    text = {"kind": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}
    write_frame(stream, json.dumps({"error": text}).encode())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more


class _Loaded:
    """The module (or exported program), its inputs in calling order, and how its outputs are called."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch

        self.program: Any = None
        self.inputs: dict[str, tuple[int, ...]]
        if request.get("exported"):
            self.program = _load_exported(request, torch)
            self.where = request["exported"]
            self.module = self.program.module()
            self.by_name = False
            self.inputs, self.dtypes = _program_inputs(self.program, request, torch)
        else:
            self.where = request["factory"]
            self.module = _build(request, torch)
            self.inputs, self.by_name = _module_inputs(self.module, request)
            self.dtypes = dict.fromkeys(self.inputs, torch.float32)
        feed = {name: torch.zeros(sizes, dtype=self.dtypes[name]) for name, sizes in self.inputs.items()}
        self.outputs, self.arrays = self._first_run(feed)

    def call(self, feed: dict[str, Any]) -> Any:
        import torch

        args, kwargs = self.arguments(feed)
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def arguments(self, feed: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ordered = {name: feed[name] for name in self.inputs}
        return ((), ordered) if self.by_name else (tuple(ordered.values()), {})

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        from torch.utils import _pytree as pytree

        leaves = pytree.tree_leaves(self.call(feed))
        return dict(zip(self.outputs, (leaf.detach().cpu().numpy() for leaf in leaves), strict=True))

    def _first_run(self, feed: dict[str, Any]) -> tuple[list[str], list[Any]]:
        import torch
        from torch.utils import _pytree as pytree

        try:
            result = self.call(feed)
        except Exception as error:  # the user's forward raises what it likes
            raise ModelError(
                f"the model fails on inputs of these shapes: {_first_line(error)}",
                where=_raised_at(error) or self.where,
                hint=f"It was called with {_shapes(self.inputs)} (float32, zeros). Are these the shapes it was made for?",
            ) from error
        names, arrays = [], []
        for path, leaf in pytree.tree_flatten_with_path(result)[0]:
            if not isinstance(leaf, torch.Tensor):
                raise ModelError(
                    f"the model returns a {type(leaf).__name__} among its outputs",
                    where=self.where,
                    hint="Return tensors only: one, a tuple or a dictionary of them. A wrapper module can choose.",
                )
            if leaf.dtype.is_complex:
                raise ModelError("an output of the model is complex", where=self.where, hint="Return its real parts.")
            names.append("_".join(["output", *map(_key, path)]) if not _named(path) else "_".join(map(_key, path)))
            arrays.append(leaf)
        if not names:
            raise ModelError("the model returns nothing", where=self.where, hint="Return at least one tensor.")
        return _apart(names, set(self.inputs)), arrays


def _apart(names: list[str], taken: set[str]) -> list[str]:
    result = []
    for name in names:
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        result.append(unique)
    return result


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return re.sub(r"\W+", "_", str(getattr(entry, attribute)))
    return "value"


def _named(path: Any) -> bool:
    """A dictionary's keys and a named tuple's fields are names; a tuple's places are not."""
    return bool(path) and not hasattr(path[0], "idx")


def _shapes(inputs: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(sizes)}" for name, sizes in inputs.items())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"


def _raised_at(error: BaseException) -> str | None:
    """``file:line`` of the innermost frame of the user's own code."""
    import traceback

    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename
        and not frame.filename.startswith("<")
        and Path(frame.filename) != Path(__file__)
    ]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _build(request: dict[str, Any], torch: Any) -> Any:
    factory = _find_factory(request["factory"], request["root"])
    try:
        module = factory()
    except Exception as error:  # the user's code raises what it likes
        raise ModelError(
            f"the factory fails: {_first_line(error)}",
            where=_raised_at(error) or request["factory"],
            hint="It is called without arguments and must return the module.",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"the factory returns a {type(module).__name__}, not a torch.nn.Module",
            where=request["factory"],
            hint="Return the module itself, in eval mode.",
        )
    if request.get("weights"):
        _load_weights(module, Path(request["weights"]), torch)
    _refuse_state(module, request["factory"], torch)
    return module


def _find_factory(text: str, root: str) -> Any:
    name, _, function = text.partition(":")
    sys.path.insert(0, root)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0]:
            raise ModelError(
                f"there is no module {name!r} in {root}",
                where=text,
                hint="The factory is 'module:function'; the module is looked up in the recipe's folder.",
            ) from error
        raise ModelError(
            f"the module {name!r} imports {error.name!r}, which is not installed",
            where=_raised_at(error) or text,
            hint=f"Install {error.name!r} in the environment that runs edgeopt.",
        ) from error
    except Exception as error:
        raise ModelError(
            f"the module {name!r} cannot be imported: {_first_line(error)}", where=_raised_at(error) or text
        ) from error
    factory = getattr(module, function, None)
    if not callable(factory):
        import difflib

        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(function, names, 1)
        raise ModelError(
            f"the module {name!r} has no function {function!r}",
            where=text,
            hint=f"Did you mean {close[0]!r}?" if close else f"It has {_listed(names)}.",
        )
    return factory


def _load_weights(module: Any, path: Path, torch: Any) -> None:
    state = _read_state(path, torch)
    own = module.state_dict()
    if state and all(key.startswith("module.") for key in state) and not any(key.startswith("module.") for key in own):
        state = {key.removeprefix("module."): value for key, value in state.items()}  # DataParallel's prefix
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or wrong:
        parts = [f"missing {_listed(missing)}"] if missing else []
        parts += [f"unexpected {_listed(unexpected)}"] if unexpected else []
        parts += (
            [
                "of another shape "
                + _listed(
                    [
                        f"{key}: {list(state[key].shape)} in the file, {list(own[key].shape)} in the model"
                        for key in wrong
                    ]
                )
            ]
            if wrong
            else []
        )
        raise ModelError(
            f"the weights do not fit the model: {'; '.join(parts)}",
            where=str(path),
            hint="Is it the checkpoint of this architecture? The factory must build the module that was trained.",
        )
    module.load_state_dict(state, strict=False)


def _read_state(path: Path, torch: Any) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path, device="cpu"))
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"this is no safetensors file, or only a part of one: {_first_line(error)}",
                where=str(path),
                hint="Save or download the weights again.",
            ) from error
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class|Unsupported operand) ([\w.]+)", str(error))
        raise ModelError(
            "this file holds more than weights"
            + (f" (it asks for {named.group(1)!r})" if named else "")
            + "; loading it would run code that it names, so nothing was loaded",
            where=str(path),
            hint="Save the weights alone: torch.save(model.state_dict(), 'weights.pth'), or safetensors.",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"the weights cannot be read: {_first_line(error)}",
            where=str(path),
            hint="The file is damaged or no PyTorch checkpoint. Save or download it again.",
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(
            "the file holds no state dictionary of tensors",
            where=str(path),
            hint="Save the weights alone: torch.save(model.state_dict(), 'weights.pth'), or safetensors.",
        )
    return state


def _refuse_state(module: Any, where: str, torch: Any) -> None:
    training = [name or type(module).__name__ for name, inner in module.named_modules() if inner.training]
    if training:
        raise ModelError(
            f"the model is in train mode: {_listed(training)}",
            where=where,
            hint="Dropout and BatchNorm behave differently there. Let the factory return model.eval().",
        )
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.dtype in (torch.float64, torch.complex64, torch.complex128):
            raise ModelError(
                f"the weight {name!r} is {str(value.dtype).removeprefix('torch.')}",
                where=where,
                hint="edgeopt takes float32 models. Let the factory return model.float().",
            )
        if (
            value.is_floating_point()
            and not bool(torch.isfinite(value).all())
            and isinstance(value, torch.nn.Parameter)
        ):
            kind = "NaN" if bool(torch.isnan(value).any()) else "Inf"
            count = int((~torch.isfinite(value)).sum())
            raise ModelError(
                f"the weight {name!r} holds {kind}: {count} of {value.numel()} values",
                where=where,
                hint="A training that diverged leaves such weights. Take an earlier checkpoint.",
            )


def _module_inputs(module: Any, request: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Inputs in calling order, and whether they are given by name: they are, if all are parameters of ``forward``."""
    inputs = {name: tuple(sizes) for name, sizes in request["inputs"].items()}
    parameters = inspect.signature(module.forward).parameters
    positional = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    required = [name for name in positional if parameters[name].default is inspect.Parameter.empty]
    known = [name for name in inputs if name in positional]
    takes_any = any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters.values())
    by_name = bool(known) and len(known) == len(inputs)
    if not by_name and known:
        unknown = [name for name in inputs if name not in positional]
        raise ModelError(
            f"forward has no parameter {unknown[0]!r}; it has {_listed(positional)}",
            where=request["factory"],
            hint="Name every input after its parameter, or give all of them names of your own, in forward's order.",
        )
    missing = [name for name in required if name not in inputs] if by_name else required[len(inputs) :]
    if missing or not inputs:
        raise ModelError(
            f"no shape is given for {_listed(missing or positional)}: sizes are left open",
            where=request["factory"],
            hint="Say them: model.inputs in the recipe, for example {"
            + (missing or positional or ["x"])[0]
            + ": [1, 3, 224, 224]}.",
        )
    if not by_name and len(inputs) > len(positional) and not takes_any:
        raise ModelError(
            f"{len(inputs)} inputs are given, and forward takes {len(positional)}: {_listed(positional)}",
            where=request["factory"],
        )
    ordered = [name for name in positional if name in inputs] if by_name else list(inputs)
    return {name: inputs[name] for name in ordered}, by_name


def _load_exported(request: dict[str, Any], torch: Any) -> Any:
    try:
        program = torch.export.load(request["exported"])
    except Exception as error:  # torch.export raises what its parts raise
        raise ModelError(
            f"this is no exported program that PyTorch {torch.__version__} can read: {_first_line(error)}",
            where=request["exported"],
            hint="Save it again with torch.export.save and this version of PyTorch.",
        ) from error
    for node in program.graph.nodes:
        target = str(node.target)
        is_training = (target.startswith("aten.batch_norm") and len(node.args) > 5 and node.args[5] is True) or (
            target.startswith("aten.dropout") and len(node.args) > 2 and node.args[2] is True
        )
        if is_training:
            stack = node.meta.get("nn_module_stack") or {}
            name = next((path for path, _ in reversed(list(stack.values()))), node.name) or node.name
            raise ModelError(
                f"the program was exported in train mode: {name!r} ({target})",
                where=request["exported"],
                hint="Call model.eval() before torch.export.export.",
            )
    return program


def _program_inputs(
    program: Any, request: dict[str, Any], torch: Any
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    names = list(program.graph_signature.user_inputs)
    wanted = {name: tuple(sizes) for name, sizes in request["inputs"].items()}
    for name in wanted:
        if name not in names:
            import difflib

            close = difflib.get_close_matches(name, names, 1)
            raise ModelError(
                f"the program has no input {name!r}; it has {_listed(names)}",
                where=request["exported"],
                hint=f"Did you mean {close[0]!r}?" if close else "Use one of these names.",
            )
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes, dtypes = {}, {}
    for name in names:
        value = placeholders[name].meta["val"]
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"the input {name!r} is no tensor", where=request["exported"], hint="Export without it.")
        if value.dtype in (torch.float64, torch.float16, torch.bfloat16) or value.dtype.is_complex:
            raise ModelError(
                f"the input {name!r} is {str(value.dtype).removeprefix('torch.')}",
                where=request["exported"],
                hint="edgeopt takes float32 models. Export model.float().",
            )
        sizes = [size if isinstance(size, int) else str(size) for size in value.shape]
        if name in wanted:
            fits = len(sizes) == len(wanted[name]) and all(
                isinstance(a, str) or a == b for a, b in zip(sizes, wanted[name], strict=True)
            )
            if not fits:
                raise ModelError(
                    f"the input {name!r} is {sizes} in the program; it cannot be {list(wanted[name])}",
                    where=request["exported"],
                    hint="Sizes that are numbers in the program are fixed.",
                )
            shapes[name] = wanted[name]
        elif sizes and isinstance(sizes[0], str) and all(isinstance(size, int) for size in sizes[1:]):
            shapes[name] = (1, *(int(size) for size in sizes[1:]))  # a batch that alone is open
        elif any(isinstance(size, str) for size in sizes):
            raise ModelError(
                f"the input {name!r} is {sizes}: sizes are left open",
                where=request["exported"],
                hint=f"Bind them: --input {name}=1,3,224,224, or model.inputs in the recipe.",
            )
        else:
            shapes[name] = tuple(int(size) for size in sizes)
        dtypes[name] = value.dtype
    return shapes, dtypes


def _export(request: dict[str, Any], requests: IO[bytes], answers: IO[bytes]) -> None:
    import torch

    _need_onnxscript()
    before = set(sys.modules)
    loaded = _Loaded(request)
    feed = {name: torch.zeros(sizes, dtype=loaded.dtypes[name]) for name, sizes in loaded.inputs.items()}
    args, kwargs = loaded.arguments(feed)
    program = loaded.program
    if program is None or program.range_constraints:
        try:
            program = torch.export.export(loaded.module, args, kwargs, strict=False)
        except Exception as error:  # torch.export raises what its parts raise
            raise ModelError(
                f"torch.export cannot trace the model: {_first_line(error)}",
                where=_line_in(str(error)) or _raised_at(error) or loaded.where,
                hint="Its forward must not decide by values of its tensors (if, while, .item()). "
                "Take such steps out of the module, or write them with torch.where.",
            ) from error
    _write_onnx(loaded, program, Path(request["out"]))
    files = [
        str(Path(module.__file__).resolve())
        for name, module in list(sys.modules.items())
        if name not in before and getattr(module, "__file__", None) and _is_users(module.__file__, request.get("root"))
    ]
    answer = {"inputs": {name: list(sizes) for name, sizes in loaded.inputs.items()}, "files": sorted(files)}
    write_frame(answers, json.dumps({"ok": answer}).encode())


def _is_users(file: Any, root: str | None) -> bool:
    path = Path(file).resolve()
    return root is not None and path.is_relative_to(Path(root).resolve()) and "site-packages" not in path.parts


def _need_onnxscript() -> None:
    if importlib.util.find_spec("onnxscript") is None:
        raise MissingPackage("onnxscript", "torch", "importing a PyTorch model")


def _write_onnx(loaded: _Loaded, program: Any, out: Path) -> None:
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
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _unsupported(error, program, loaded.where) from error
    assert exported is not None
    _name_after_modules(exported.model)
    exported.save(str(out), external_data=False)


def _unsupported(error: BaseException, program: Any, where: str) -> EdgeoptError:
    """Which operator has no ONNX form, and at which line of the user's module it stands."""
    texts, link = [], error.__cause__ or error
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
                    line = _line_in(node.stack_trace or "")
    if operator is None:
        return ModelError(f"the PyTorch exporter fails: {_first_line(error.__cause__ or error)}", where=line or where)
    return UnsupportedOperator(
        f"{operator.group(1)} has no form in ONNX",
        where=f"node {name.group(1) if name else '?'!r} ({operator.group(1)})"
        + (f", {line}" if line else f", {where}"),
        hint="Write it with other operators, or end the model before it and do this step in the application.",
    )


def _line_in(trace: str) -> str | None:
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', trace)
    own = [frame for frame in frames if "site-packages" not in frame[0]]
    return f"{own[-1][0]}:{own[-1][1]}: {own[-1][2].strip()}" if own else None


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


def _run(request: dict[str, Any], requests: IO[bytes], answers: IO[bytes]) -> None:
    import torch

    torch.set_num_threads(int(request.get("threads", 1)))
    loaded = _Loaded(request)
    write_frame(answers, json.dumps({"ok": {}}).encode())
    while (data := read_frame(requests)) is not None:
        feed = {name: torch.from_numpy(array.copy()) for name, array in unpack(data).items()}
        try:
            outputs = loaded.run(feed)
        except Exception as error:  # the user's forward raises what it likes
            raise ModelError(
                f"the original model fails on a sample: {_first_line(error)}",
                where=_raised_at(error) or loaded.where,
                hint=f"It was given {_shapes({name: tuple(value.shape) for name, value in feed.items()})}.",
            ) from error
        write_frame(answers, pack(outputs))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
