"""Cutting a TFLite model into segments that lie side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from edgeopt.errors import ModelError
from edgeopt.formats.cut import Cut
from edgeopt.formats.tflite.model import Model, Tensor, integers_of
from edgeopt.formats.tflite.writing import write

CONSUMED_SUFFIX = "__in"


def cut(model: Model, names: Iterable[str]) -> Cut:
    """Cut a model at tensors: each becomes a graph output, as produced, and a fresh graph input, as consumed.

    So one run computes every segment on inputs of the caller's choice, and no error of one reaches another. Inputs
    and outputs of the model itself stay. A name may be the tensor's or, if that one is float, its integers' (the
    name with ``__q`` behind it).

    Raises:
        ModelError: the model has control flow.
    """
    if model.subgraphs != 1:
        raise ModelError("has control flow (several subgraphs) and cannot be cut")
    index_of = model.names()
    tensors = list(model.tensors)
    producers, consumers = model.producers(), model.consumers()
    replaced: dict[int, int] = {}
    inputs = _labels(model.signature_inputs, model.inputs, tensors)
    outputs = _labels(model.signature_outputs, model.outputs, tensors)
    produced: dict[str, str] = {}
    consumed: dict[str, str] = {}
    missing: list[str] = []
    for name in dict.fromkeys(names):
        index = integers_of(model, name, index_of)
        if index is None or tensors[index].data is not None:
            missing.append(name)
            continue
        if index in model.inputs:
            consumed[name] = next(label for label, at in inputs.items() if at == index)
            continue
        if index not in producers:
            missing.append(name)
            continue
        label = next((label for label, at in outputs.items() if at == index), None)
        if label is None:
            label = _free(name, outputs)
            outputs[label] = index
        produced[name] = label
        if index not in consumers:
            continue
        if index not in replaced:
            replaced[index] = len(tensors)
            tensors.append(replace(tensors[index], name=tensors[index].name + CONSUMED_SUFFIX))
            inputs[_free(name + CONSUMED_SUFFIX, inputs)] = replaced[index]
        consumed[name] = next(label for label, at in inputs.items() if at == replaced[index])
    operators = [
        replace(operator, inputs=tuple(replaced.get(index, index) for index in operator.inputs))
        for operator in model.operators
    ]
    result = replace(
        model,
        tensors=tensors,
        operators=operators,
        inputs=list(dict.fromkeys(inputs.values())),
        outputs=list(dict.fromkeys(outputs.values())),
        signature_inputs=inputs,
        signature_outputs=outputs,
    )
    return Cut(write(result), produced, consumed, tuple(missing))


def _labels(signature: Mapping[str, int], indices: Iterable[int], tensors: list[Tensor]) -> dict[str, int]:
    return dict(signature) if signature else {tensors[index].name: index for index in indices}


def _free(name: str, taken: Mapping[str, int]) -> str:
    while name in taken:
        name += "_"
    return name
