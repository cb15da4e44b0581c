"""The pass ``qat``: quantization-aware training of the graph that targets lower, on the table that they read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.frontends import torch_structure
from edgeopt.frontends.torch_loading import Loaded
from edgeopt.graph.model import shape
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantizedTensor, QuantParams
from edgeopt.passes.base import Context, Pass
from edgeopt.training import write_back
from edgeopt.training.base import load_teacher, need_torch, no_data, train
from edgeopt.training.data import TrainingSet
from edgeopt.training.graph_module import GraphModule, Trained
from edgeopt.training.program import read_program
from edgeopt.training.settings import Distillation, Training
from edgeopt.training.trainee import Trainee
from edgeopt.types import Kept

FEW = 8
"""Samples that a module which is written back is compared on."""


@dataclass(frozen=True)
class TrainingContext(Context):
    """What a pass on the graph needs to train it.

    Args:
        training: reads the training data; None if the recipe names none.
        request: of ``frontends.torch.module_request``, for the module before all training; None if there is none.
        module: of ``frontends.torch.module_request``, for the module that the graph was exported from; None: none.
        module_folder: where that module is left with the trained weights.
        root: folder of the recipe.
        checkpoints: folder of checkpoints; what is there is gone on with.
        identity: of all that the result depends on.
    """

    training: Callable[[], TrainingSet] | None = None
    request: Mapping[str, Any] | None = None
    module: Mapping[str, Any] | None = None
    module_folder: Path | None = None
    root: Path = Path()
    checkpoints: Path | None = None
    identity: str = ""


class Qat(Pass, Training):
    """Quantization-aware training, behind ``quantize``: its placement, ranges and integers are where it starts.

    Args:
        learn_ranges: share of the training during which scales are learnt; frozen after it. 0: they stay.
        precision: float32, for a grid cannot be met in less.
        processes: one.
        distill: as in ``Training``; the default teacher is the recipe's model before all training.

    The rest: see ``Training``; by default ``lr`` is small and ``epochs`` few, as the start is good.
    """

    use: Literal["qat"] = "qat"
    epochs: Annotated[int, Field(gt=0)] = 3
    lr: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    learn_ranges: Annotated[float, Field(ge=0, le=1)] = 0.7
    precision: Literal["float32"] = "float32"
    processes: Literal[1] = 1

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        table = graph.quantization
        if table is None or not table.weights:
            raise UsageError(
                "there is nothing quantized to train", where="passes.qat", hint="Put {use: quantize} in front of it."
            )
        if not isinstance(context, TrainingContext) or context.training is None:
            raise no_data()
        need_torch()
        program = read_program(graph.model, table, context.constraints.equal_scales)
        module = GraphModule(program, self.learn_ranges)
        data = context.training()
        example = _example(graph.model)
        history = train(
            module,
            self,
            data,
            example,
            teacher=None if self.distill is None else self._teacher(self.distill, graph.model, context),
            root=context.root,
            folder=(context.checkpoints or context.scratch) / "qat",
            identity=context.identity,
            seed=context.seed,
            text="qat: train",
        )
        trained = with_trained(graph, module.trained())
        last = history[-1]
        line = Kept(
            what=f"quantization-aware training, {len(history)} epochs",
            brought_db=None,
            kept=True,
            why=f"asked for; loss {history[0]['loss']:.4g} in the first epoch, {last['loss']:.4g} in the last",
            details={"epochs": history},
        )
        record = [*graph.record, line]
        if context.module is not None and context.module_folder is not None:
            record.append(keep_module(trained.model, context.module, context.module_folder, data))
        return replace(trained, record=tuple(record))

    def _teacher(self, distill: Distillation, model: ir.Model, context: TrainingContext) -> Trainee:
        if context.request is not None or distill.teacher is not None:
            return load_teacher(distill, context.request or {"root": str(context.root), "inputs": _shapes(model)})
        teacher = GraphModule(read_program(model.clone(), None))
        for parameter in teacher.named_parameters().values():
            parameter.requires_grad_(False)
        return teacher


def with_trained(graph: QuantizedGraph, trained: Trained) -> QuantizedGraph:
    """The graph, changed in place, with the weights that were trained, and the table with what was learnt."""
    assert graph.quantization is not None
    for name, array in trained.constants.items():
        graph.model.graph.initializers[name].const_value = ir.tensor(np.array(array, order="C"), name=name)
    return replace(graph, quantization=_table(graph.quantization, trained))


def keep_module(model: ir.Model, request: Mapping[str, Any], folder: Path, data: TrainingSet) -> Kept:
    """Write a trained graph's weights back into the module that it was exported from.

    Args:
        model: canonical float graph, trained.
        request: of ``frontends.torch.module_request``.
        folder: where the module's state dict is left; nothing is there if a layer cannot be mapped.
        data: some of it shows whether module and graph agree.
    """
    what = "trained weights written back into the PyTorch module"
    shutil.rmtree(folder, ignore_errors=True)  # of a pass before this one
    loaded = Loaded(dict(request))
    rows = max((sizes[0] for sizes in loaded.inputs.values()), default=1)
    starts = range(0, min(len(data), FEW * rows) - rows + 1, rows)
    feeds = [{name: value.cpu() for name, value in data.batch(range(at, at + rows))[0].items()} for at in starts]
    if not feeds:
        return Kept(what=what, brought_db=None, kept=False, why=f"fewer training samples than one batch of {rows}")
    try:
        apart = write_back.write_back(loaded, read_program(model, None), feeds)
    except write_back.NotMapped as reason:
        return Kept(what=what, brought_db=None, kept=False, why=f"not possible: {reason}")
    structure = torch_structure.read(Path(request["trained"]))[1] if request.get("trained") else {}
    write_back.save(folder, loaded.module.state_dict(), structure)
    why = f"{folder.name}/{write_back.STATE}; its outputs are within {apart:.1e} of the trained float graph's"
    return Kept(what=what, brought_db=None, kept=True, why=why, details={"apart": apart})


def _table(table: Quantization, trained: Trained) -> Quantization:
    """The table with what was learnt in it."""
    scales = [*trained.scales.values(), *(scale for _, scale in trained.weights.values())]
    if not all(np.isfinite(scale).all() and (scale > 0).all() for scale in scales):
        raise EdgeoptError("a scale diverged", where="passes.qat", hint="Lower lr, or set learn_ranges: 0.")
    activations = {
        name: QuantParams(trained.scales[name], params.zero_point) for name, params in table.activations.items()
    }
    moved = [name for name, params in activations.items() if params != table.activations[name]]
    weights = {}
    for name, (integers, scale) in trained.weights.items():
        params = QuantParams(scale, np.zeros(scale.shape, np.int32), table.weights[name].params.axis)
        weights[name] = QuantizedTensor(integers, params)
    return replace(
        table,
        activations=activations,
        weights={**table.weights, **weights},
        biases={**table.biases, **trained.biases},
        ranges={**table.ranges, **{name: activations[name].range for name in moved}},
        labels={**table.labels, **dict.fromkeys(moved, "learned")},
    )


def _shapes(model: ir.Model) -> dict[str, list[int]]:
    return {value.name or "": list(shape(value)) for value in model.graph.inputs}


def _example(model: ir.Model) -> dict[str, Any]:
    import torch

    return {name: torch.zeros(sizes) for name, sizes in _shapes(model).items()}
