"""Weights of a user's module: read as data alone, and looked over; used in the worker process only."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

from edgeopt.errors import ModelError
from edgeopt.frontends.wording import first_line, listed


def load_weights(module: Any, path: Path, torch: Any) -> None:
    """Load a state dictionary into the module.

    Args:
        module: of the user's factory.
        path: ``.safetensors``, or a checkpoint that is read with ``weights_only``; nothing in it is run.
        torch: the package.

    Raises:
        ModelError: a file that is damaged or holds more than weights, or weights of another module.
    """
    state = _read_state(path, torch)
    own = module.state_dict()
    if state and all(key.startswith("module.") for key in state) and not any(key.startswith("module.") for key in own):
        state = {key.removeprefix("module."): value for key, value in state.items()}  # DataParallel's prefix
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or wrong:
        parts = [f"missing {listed(missing)}"] if missing else []
        parts += [f"unexpected {listed(unexpected)}"] if unexpected else []
        parts += (
            [
                "of another shape "
                + listed(
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
                f"this is no safetensors file, or only a part of one: {first_line(error)}",
                where=str(path),
                hint="Save or download the weights again.",
            ) from error

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ModelError(
            "this file holds more than weights"
            + (f" (it asks for {named.group(1)!r})" if named else "")
            + "; loading it would run code that it names, so nothing was loaded",
            where=str(path),
            hint="Save the weights alone: torch.save(model.state_dict(), 'weights.pth'), or safetensors.",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        if "TorchScript" in str(error):
            raise ModelError(
                "this is a TorchScript archive, a program and no weights",
                where=str(path),
                hint="Save the weights of the module: torch.save(model.state_dict(), 'weights.pth'), or safetensors.",
            ) from error
        raise ModelError(
            f"the weights cannot be read: {first_line(error)}",
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


def refuse_state(module: Any, where: str, torch: Any) -> None:
    """Look a loaded module over.

    Raises:
        ModelError: train mode, weights that are not float32, NaN or Inf among them; ``where`` says of what.
    """
    training = [name or type(module).__name__ for name, inner in module.named_modules() if inner.training]
    if training:
        raise ModelError(
            f"the model is in train mode: {listed(training)}",
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
