"""A user's module or exported program, loaded and looked over; used in the worker process only, for it loads torch."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from edgeopt.errors import ModelError
from edgeopt.frontends import torch_structure
from edgeopt.frontends.source_lines import raised_at
from edgeopt.frontends.torch_weights import load_weights, refuse_state
from edgeopt.frontends.wording import first_line, listed


class Loaded:
    """The module (or exported program, or Keras model), its inputs in calling order, and how its outputs are called."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch

        self.program: Any = None
        self.weight_names: dict[str, str] = {}
        self.inputs: dict[str, tuple[int, ...]]
        if request.get("exported"):
            self.program = _load_exported(request, torch)
            self.where = request["exported"]
            self.module = self.program.module()
            self.by_name = False
            self.inputs, self.dtypes = _program_inputs(self.program, request, torch)
        elif request.get("keras"):
            from edgeopt.frontends.keras_loading import build

            self.where = request["keras"]
            shapes = {name: tuple(sizes) for name, sizes in request["inputs"].items()}
            self.module, self.inputs, self.dtypes = build(Path(request["keras"]), shapes)
            self.weight_names = self.module.weight_names
            refuse_state(self.module, self.where, torch)
            self.by_name = False
        else:
            self.where = request["factory"]
            self.module = _build(request, torch)
            self.inputs, self.by_name = _module_inputs(self.module, request)
            self.dtypes = dict.fromkeys(self.inputs, torch.float32)
        if self.program is not None and not self.program.range_constraints:
            self.outputs = self._named(_declared_results(self.program))
        else:
            feed = {name: torch.zeros(sizes, dtype=self.dtypes[name]) for name, sizes in self.inputs.items()}
            self.outputs = self._named(self._first_run(feed))

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

    def _first_run(self, feed: dict[str, Any]) -> Any:
        try:
            return self.call(feed)
        except Exception as error:  # the user's forward raises what it likes
            raise ModelError(
                f"the model fails on inputs of these shapes: {first_line(error)}",
                where=raised_at(error) or self.where,
                hint=f"It was called with zeros, {described(self.inputs)}. Are these the shapes it was made for?",
            ) from error

    def _named(self, result: Any) -> list[str]:
        """How the outputs are called: after their places in what the model returns."""
        import torch
        from torch.utils import _pytree as pytree

        names = []
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
        if not names:
            raise ModelError("the model returns nothing", where=self.where, hint="Return at least one tensor.")
        return _apart(names, set(self.inputs))


def _declared_results(program: Any) -> Any:
    """What an exported program of fixed sizes returns, as it declares it: tensors without data, nothing is run."""
    from torch.utils import _pytree as pytree

    made = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    leaves = [made.get(name, name) if isinstance(name, str) else name for name in program.graph_signature.user_outputs]
    return pytree.tree_unflatten(leaves, program.call_spec.out_spec)


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


def described(inputs: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(sizes)}" for name, sizes in inputs.items())


def _build(request: dict[str, Any], torch: Any) -> Any:
    factory = _find_factory(request["factory"], request["root"])
    try:
        module = factory()
    except Exception as error:  # the user's code raises what it likes
        raise ModelError(
            f"the factory fails: {first_line(error)}",
            where=raised_at(error) or request["factory"],
            hint="It is called without arguments and must return the module.",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"the factory returns a {type(module).__name__}, not a torch.nn.Module",
            where=request["factory"],
            hint="Return the module itself, in eval mode.",
        )
    if request.get("trained"):
        state, structure = torch_structure.read(Path(request["trained"]))
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        torch_structure.apply(module, structure, shapes, request["factory"])
        module.load_state_dict(state)
    elif request.get("weights"):
        load_weights(module, Path(request["weights"]), torch)
    refuse_state(module, request["factory"], torch)
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
            where=raised_at(error) or text,
            hint=f"Install {error.name!r} in the environment that runs edgeopt.",
        ) from error
    except Exception as error:
        raise ModelError(
            f"the module {name!r} cannot be imported: {first_line(error)}", where=raised_at(error) or text
        ) from error
    factory = getattr(module, function, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(function, names, 1)
        raise ModelError(
            f"the module {name!r} has no function {function!r}",
            where=text,
            hint=f"Did you mean {close[0]!r}?" if close else f"It has {listed(names)}.",
        )
    return factory


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
            f"forward has no parameter {unknown[0]!r}; it has {listed(positional)}",
            where=request["factory"],
            hint="Name every input after its parameter, or give all of them names of your own, in forward's order.",
        )
    missing = [name for name in required if name not in inputs] if by_name else required[len(inputs) :]
    if missing or not inputs:
        raise ModelError(
            f"no shape is given for {listed(missing or positional)}: sizes are left open",
            where=request["factory"],
            hint="Say them: model.inputs in the recipe, for example {"
            + (missing or positional or ["x"])[0]
            + ": [1, 3, 224, 224]}.",
        )
    if not by_name and len(inputs) > len(positional) and not takes_any:
        raise ModelError(
            f"{len(inputs)} inputs are given, and forward takes {len(positional)}: {listed(positional)}",
            where=request["factory"],
        )
    ordered = [name for name in positional if name in inputs] if by_name else list(inputs)
    return {name: inputs[name] for name in ordered}, by_name


def _load_exported(request: dict[str, Any], torch: Any) -> Any:
    try:
        program = torch.export.load(request["exported"])
    except Exception as error:  # torch.export raises what its parts raise
        raise ModelError(
            f"this is no exported program that PyTorch {torch.__version__} can read: {first_line(error)}",
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
            close = difflib.get_close_matches(name, names, 1)
            raise ModelError(
                f"the program has no input {name!r}; it has {listed(names)}",
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
