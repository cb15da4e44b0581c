"""The pass ``sparsify``: weights of small magnitude become zero and stay so through all training."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.training.base import TrainingPass, TrainingRecord, Work

WHAT_IT_BRINGS = (
    "onnx: zeros make no file smaller and no kernel faster: ONNX Runtime's CPU provider has no sparse kernels; "
    "the file compresses better",
    "tflite: XNNPACK has kernels for sparse 1×1 convolutions in float32, where the file stores them sparse; edgeopt "
    "writes them dense, so here: neither smaller nor faster",
    "tensorrt: 2:4 zeros run faster on GPUs from Ampere on, in layers whose input channels are a multiple of 32, when "
    "the engine is built with --sparsity=enable; other patterns bring nothing",
    "quantize and qat keep the zeros: every grid of weights holds 0 exactly",
    "coreml: sparse weights are stored smaller from iOS 16 on; edgeopt writes them dense",
)
"""Per target. Sources: the runtimes' own documentation."""


class Sparsify(TrainingPass):
    """Unstructured or N:M sparsity by magnitude, with masks that later training keeps.

    Args:
        pattern: ``unstructured``, or ``n:m``: of each ``m`` weights in a row of input channels, ``n`` stay (``2:4``).
        sparsity: share of zeros, for ``unstructured``.
        scope: ``global`` compares weights of all layers, ``layer`` takes the same share of each; ``unstructured`` only.
        leave: patterns of layer names that stay dense; the first and the last weighted layer always do.
        epochs: of training with the masks; 0: none, and then no training data is needed.

    The rest: see ``Training``.
    """

    use: Literal["sparsify"] = "sparsify"
    pattern: Annotated[str, Field(pattern=r"^(unstructured|[1-9]\d?:[1-9]\d?)$")] = "unstructured"
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    scope: Literal["global", "layer"] = "layer"
    leave: tuple[str, ...] = ()
    epochs: Annotated[int, Field(ge=0)] = 0

    def run(self, work: Work) -> TrainingRecord:
        before = work.cost()
        if not work.restore("masked"):
            work.model.masks = self._masks(work)
            work.model.after_step(0.0)
            work.keep("masked")
        history = work.train(self, "sparsify: train", "train") if self.epochs else []
        parameters = work.model.named_parameters()
        return TrainingRecord(
            use=self.use,
            before=before,
            after=work.cost(),
            epochs=tuple(history),
            sparsity={
                name.removesuffix(".weight"): round(float((parameters[name] == 0).float().mean()), 4)
                for name in work.model.masks
            },
            notes=WHAT_IT_BRINGS,
        )

    def _masks(self, work: Work) -> dict[str, Any]:
        weights = self._weights(work)
        if self.pattern != "unstructured":
            kept, of = (int(part) for part in self.pattern.split(":"))
            if kept >= of:
                raise UsageError(f"'{self.pattern}' leaves nothing out", where="passes.sparsify.pattern")
            masks = {name: _n_of_m(weight, kept, of) for name, weight in weights.items()}
            fits = {name: mask for name, mask in masks.items() if mask is not None}
            if not fits:
                raise UsageError(f"no layer has input channels in multiples of {of}", where="passes.sparsify.pattern")
            return fits
        return _unstructured(weights, self.sparsity, pooled=self.scope == "global")

    def _weights(self, work: Work) -> dict[str, Any]:
        layers = list(work.model.weighted_layers())
        for pattern in self.leave:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise UsageError(f"the pattern '{pattern}' matches no layer", where="passes.sparsify.leave")
        inner = [name for name in layers[1:-1] if not any(fnmatchcase(name, pattern) for pattern in self.leave)]
        parameters = work.model.named_parameters()
        found = {f"{name}.weight": parameters[f"{name}.weight"].detach() for name in inner}
        if not found:
            raise UsageError("no layer is left to make sparse", where="passes.sparsify.leave")
        return found


def _unstructured(weights: dict[str, Any], sparsity: float, *, pooled: bool) -> dict[str, Any]:
    import torch

    if pooled:
        magnitude = torch.cat([weight.abs().flatten() for weight in weights.values()])
        threshold = magnitude.kthvalue(max(1, int(len(magnitude) * sparsity))).values
        return {name: weight.abs() > threshold for name, weight in weights.items()}
    masks = {}
    for name, weight in weights.items():
        flat = weight.abs().flatten()
        mask = torch.ones(len(flat), dtype=torch.bool)
        mask[flat.argsort(stable=True)[: int(len(flat) * sparsity)]] = False
        masks[name] = mask.reshape(weight.shape)
    return masks


def _n_of_m(weight: Any, kept: int, of: int) -> Any:
    """True at the largest ``kept`` of every ``of`` weights along the input channels; None if they do not divide."""
    import torch

    channels = weight.shape[1]
    if channels % of:
        return None
    rows = weight.movedim(1, -1).reshape(-1, of)
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    mask.scatter_(1, rows.abs().topk(kept, 1).indices, True)
    return mask.reshape(weight.movedim(1, -1).shape).movedim(-1, 1).contiguous()
