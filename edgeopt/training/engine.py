"""The training loop: seeded, resumable to the bit, and plain about what goes wrong.

Nothing random is carried from step to step: every step draws from a generator that is seeded with (seed, epoch, step).
So a training that is killed goes on from its last checkpoint to the very weights that it would have reached (on a CPU,
with the same number of threads).
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import events
from edgeopt.errors import EdgeoptError
from edgeopt.training import checkpoint
from edgeopt.training.augment import augment
from edgeopt.training.data import Feed, TrainingSet
from edgeopt.training.objective import Loss, Objective
from edgeopt.training.optimizer import make_optimizer, parameter_groups
from edgeopt.training.ranks import average_gradients, rank_and_world, summed
from edgeopt.training.trainee import LARGEST, Trainee

if TYPE_CHECKING:
    from edgeopt.training.settings import Training

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
CHECKPOINT_S = 60.0
"""Between checkpoints within an epoch; one is written after every epoch besides."""
LOOK_EVERY = 20
"""Steps between looks at the loss on a GPU, where each look waits for the device; on a CPU every step is looked at."""
DIVERGED = 100.0
"""A loss so many times the first one does not come back."""
OUT_OF_HAND = 1e6
"""What no layer of a working network puts out."""
_LARGE = 2**31 - 1


class Diverged(EdgeoptError):
    """The loss or a weight is no number any more, or far above where it began."""


@dataclass
class _State:
    """Where a training is."""

    epoch: int = 0
    step: int = 0
    first_loss: float | None = None
    best_loss: float = math.inf
    best_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False


def fit(
    trainee: Trainee,
    objective: Objective,
    data: TrainingSet,
    held: TrainingSet | None,
    settings: Training,
    *,
    folder: Path | None,
    seed: int,
    identity: str,
    text: str,
    device: str = "cpu",
    tensorboard: Path | None = None,
) -> list[dict[str, Any]]:
    """Train; the trainee holds the result, in eval mode, on the CPU.

    Args:
        trainee, objective: see there.
        data: to train on.
        held: to judge every epoch by, or None.
        settings: of the training.
        folder: of the checkpoint and ``metrics.jsonl``; what is there is gone on with. None: neither.
        seed: of every draw.
        identity: of all that the result depends on; a checkpoint of another training is refused.
        text: what is shown while it runs.
        device: of torch.
        tensorboard: folder for events of every epoch.

    Returns:
        One dictionary per epoch: ``epoch``, ``lr``, ``loss``, ``top1``, ``held_loss``, ``held_top1``, ``seconds``.

    Raises:
        Diverged: with epoch, step and layer.
        UsageError: the checkpoint is of another training; nothing is left to train.
        OSError: the disk is full; the checkpoint before stays.
    """
    return _Engine(trainee, objective, data, held, settings, folder, seed, identity, text, device, tensorboard).run()


class _Engine:
    def __init__(
        self,
        trainee: Trainee,
        objective: Objective,
        data: TrainingSet,
        held: TrainingSet | None,
        settings: Training,
        folder: Path | None,
        seed: int,
        identity: str,
        text: str,
        device: str,
        tensorboard: Path | None,
    ) -> None:
        import torch

        self._trainee, self._objective, self._settings = trainee, objective, settings
        self._data, self._held, self._folder = data, held, folder
        self._seed, self._identity, self._text, self._tensorboard = seed, identity, text, tensorboard
        self._device = torch.device(device)
        self._rank, self._world = rank_and_world()
        torch.set_num_threads(settings.threads)
        if settings.precision == "float32":
            torch.backends.cudnn.allow_tf32 = False
        trainee.to(self._device)
        objective.to(self._device)
        for part in (data, held):
            if part is not None:
                part.to(self._device)
        self._steps = max(1, len(data) // settings.batch)
        self._groups = parameter_groups(trainee, objective, settings)
        self._names = [name for group in self._groups for name in group["names"]]
        self._optimizer = make_optimizer(self._groups, settings, fused=self._device.type == "cuda")
        self._ema = _copies(trainee.state()) if settings.ema else {}
        self._best: dict[str, Any] = {}
        self._state = _State()
        self._half = self._device.type == "cuda" and (
            settings.precision == "bfloat16" or (settings.precision == "auto" and torch.cuda.is_bf16_supported())
        )

    def run(self) -> list[dict[str, Any]]:
        settings, state = self._settings, self._state
        self._resume()
        total = settings.epochs * self._steps
        self._trainee.after_step((state.epoch * self._steps + state.step) / max(total, 1))
        events.emit(events.Event("step", self._text, total=total))
        saved = time.monotonic()
        while state.epoch < settings.epochs and not state.stopped:
            began = time.monotonic()
            order = np.random.default_rng([self._seed, state.epoch]).permutation(len(self._data))
            self._trainee.train(True)
            for step in range(state.step, self._steps):
                self._step(order, step)
                state.step = step + 1
                done = state.epoch * self._steps + state.step
                events.emit(events.Event("progress", self._text, done, total))
                if time.monotonic() - saved > CHECKPOINT_S and state.step < self._steps:
                    self._save()
                    saved = time.monotonic()
            self._end_epoch(time.monotonic() - began)
            self._save()
            saved = time.monotonic()
        if settings.epochs:
            self._finish()
        events.emit(events.Event("done", self._text))
        return state.history

    # --- one step

    def _step(self, order: Any, step: int) -> None:
        state, settings = self._state, self._settings
        generator = _seed_all([self._seed, state.epoch, step, self._rank], self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.lr * group["factor"] * self._rate(state.epoch + step / self._steps)
        mine = order[step * settings.batch : (step + 1) * settings.batch][self._rank :: self._world]
        feed, labels = self._data.batch(mine)
        feed = {
            name: augment(value, settings.augment, generator) if value.ndim == 4 else value
            for name, value in feed.items()
        }
        with self._memory(feed, labels):
            loss = self._gradients(feed, labels, generator)
        parameters = [value for group in self._optimizer.param_groups for value in group["params"]]
        average_gradients(parameters, self._world)
        if settings.clip_norm:
            import torch

            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        if self._device.type == "cpu" or step % LOOK_EVERY == 0 or step + 1 == self._steps:
            self._check(float(loss.total.detach()), feed, step)
        self._optimizer.step()
        self._trainee.after_step((state.epoch * self._steps + step + 1) / (settings.epochs * self._steps))
        self._average_weights(state.epoch * self._steps + step)
        self._count(loss, len(mine))

    def _gradients(self, feed: Feed, labels: Any, generator: Any) -> Loss:
        """The loss of a batch; its gradients are left in the parameters."""
        with self._precision():
            loss = self._objective(self._trainee, feed, labels, generator, training=True)
        self._optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        return loss

    def _count(self, loss: Any, samples: int) -> None:
        """Sums stay on the device until the epoch ends."""
        sums = self._state.sums
        found = {"loss": loss.total.detach() * samples, "samples": samples}
        found |= {f"loss of {name}": value * samples for name, value in loss.parts.items()}
        if loss.right is not None:
            found["right"] = loss.right
        for name, value in found.items():
            sums[name] = sums.get(name, 0) + value

    def _rate(self, epoch: float) -> float:
        """Share of the largest rate at a time, in epochs."""
        settings = self._settings
        if epoch < settings.warmup_epochs:
            return (epoch + 1 / self._steps) / (settings.warmup_epochs + 1 / self._steps)
        done = (epoch - settings.warmup_epochs) / max(settings.epochs - settings.warmup_epochs, 1e-9)
        if settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if settings.schedule == "step":
            return float(0.1 ** sum(done >= milestone for milestone in settings.milestones))
        return 1.0

    def _precision(self) -> Any:
        import torch

        if not self._half:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _average_weights(self, step: int) -> None:
        import torch

        if not self._ema:
            return
        decay = min(self._settings.ema, (1 + step) / (10 + step))
        state = self._trainee.state()
        with torch.no_grad():
            floats = [name for name, value in self._ema.items() if value.is_floating_point()]
            torch._foreach_lerp_([self._ema[n] for n in floats], [state[n].detach() for n in floats], 1 - decay)
            for name, value in self._ema.items():
                if not value.is_floating_point():
                    value.copy_(state[name])

    def _check(self, loss: float, feed: Feed, step: int) -> None:
        state = self._state
        state.first_loss = loss if state.first_loss is None else state.first_loss
        if math.isfinite(loss) and loss <= DIVERGED * max(state.first_loss, 1.0):
            return
        layer = self._trainee.first_bad_layer(feed, OUT_OF_HAND if math.isfinite(loss) else LARGEST)
        where = f"epoch {state.epoch + 1}, step {step + 1}" + (f", layer '{layer}'" if layer else "")
        what = f"the loss is {loss:g}" if math.isfinite(loss) else "the loss is not a number any more"
        raise Diverged(
            f"the training diverged: {what}",
            where=where,
            hint=f"Lower lr (it is {self._settings.lr:g}), add warmup_epochs, or set clip_norm.",
        )

    @contextlib.contextmanager
    def _memory(self, feed: Feed, labels: Any) -> Iterator[None]:
        """A batch that does not fit is answered by one that does."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what was computed, and so the memory
        else:
            return
        size = len(next(iter(feed.values())))
        fits = size // 2
        while fits and not self._fits(feed, labels, fits):
            fits //= 2
        hint = f"A batch of {fits} fits: batch: {fits}." if fits else "Not even one sample fits."
        raise EdgeoptError(f"a batch of {size} does not fit into memory", where=str(self._device), hint=hint)

    def _fits(self, feed: Feed, labels: Any, size: int) -> bool:
        self._optimizer.zero_grad(set_to_none=True)
        few = {name: value[:size] for name, value in feed.items()}
        try:
            self._gradients(few, None if labels is None else labels[:size], _seed_all([0], self._device))
        except (RuntimeError, MemoryError) as error:
            if _is_out_of_memory(error):
                return False
            raise
        finally:
            self._optimizer.zero_grad(set_to_none=True)
        return True

    # --- the end of an epoch

    def _end_epoch(self, seconds: float) -> None:
        state = self._state
        self._share_buffers()
        sums = summed({name: float(value) for name, value in state.sums.items()}, self._world)
        samples = sums.pop("samples")
        line: dict[str, Any] = {"epoch": state.epoch + 1, "lr": self._optimizer.param_groups[0]["lr"]}
        if (right := sums.pop("right", None)) is not None:
            line["top1"] = right / samples
        line |= {name: value / samples for name, value in sums.items()}
        if not math.isfinite(line["loss"]):
            self._check(math.nan, self._data.batch([0])[0], self._steps - 1)
        if self._held is not None:
            line |= self._judge(self._held)
            if line["held_loss"] < state.best_loss:
                state.best_loss, state.best_epoch = line["held_loss"], state.epoch + 1
                if self._settings.early_stopping:
                    self._best = _copies(self._result())
            patience = self._settings.early_stopping
            state.stopped = bool(patience) and state.epoch + 1 - state.best_epoch >= patience
        line["seconds"] = round(seconds, 3)
        state.history.append(line)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        if self._rank == 0 and self._tensorboard is not None:
            _write_events(self._tensorboard, line)
        if self._rank == 0 and self._folder is not None:
            lines = "".join(json.dumps(one) + "\n" for one in state.history)
            draft = self._folder / (METRICS + ".part")
            draft.write_text(lines, encoding="utf-8")
            draft.replace(self._folder / METRICS)

    def _share_buffers(self) -> None:
        """BatchNorm's statistics are of each process's own share: all go on with the first one's."""
        if self._world == 1:
            return
        import torch.distributed as dist

        parameters = self._trainee.named_parameters()
        for store in (self._trainee.state(), self._ema):
            for name, value in store.items():
                if name not in parameters:
                    dist.broadcast(value, 0)

    def _result(self) -> Mapping[str, Any]:
        return self._ema or self._trainee.state()

    def _judge(self, data: TrainingSet) -> dict[str, float]:
        """Loss and accuracy on data that is not trained on, with the weights that would be the result."""
        import torch

        kept = _copies(self._trainee.state()) if self._ema else {}
        if self._ema:
            self._trainee.load(self._ema)
        self._trainee.train(False)
        total, right, seen = 0.0, None, 0
        with torch.no_grad():
            for start in range(0, len(data), self._settings.batch):
                feed, labels = data.batch(range(start, min(start + self._settings.batch, len(data))))
                loss = self._objective(self._trainee, feed, labels, None, training=False)
                size = len(next(iter(feed.values())))
                total, seen = total + float(loss.total) * size, seen + size
                if loss.right is not None:
                    right = (right or 0) + int(loss.right)
        if kept:
            self._trainee.load(kept)
        found = {"held_loss": total / seen}
        return found if right is None else {**found, "held_top1": right / seen}

    def _finish(self) -> None:
        self._trainee.load(_copies(self._best or self._result()))
        self._trainee.train(False)
        self._trainee.to("cpu")

    # --- checkpoints

    def _save(self) -> None:
        if self._rank or self._folder is None:
            return
        state = self._state
        tensors = {f"model/{name}": value for name, value in self._trainee.state().items()}
        tensors |= {f"objective/{name}": value for name, value in self._objective.named_parameters().items()}
        tensors |= {f"ema/{name}": value for name, value in self._ema.items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        moments, numbers = checkpoint.optimizer_state(self._optimizer, self._names)
        tensors |= {f"optimizer/{name}": value for name, value in moments.items()}
        text = {
            "identity": self._identity,
            "optimizer": numbers,
            "state": {**vars(state), "sums": {name: float(value) for name, value in state.sums.items()}},
        }
        checkpoint.save(self._folder / CHECKPOINT, tensors, text)

    def _resume(self) -> None:
        import torch

        path = None if self._folder is None else self._folder / CHECKPOINT
        if path is None or not path.is_file():
            return
        tensors, text = checkpoint.load(path)
        checkpoint.refuse_another(text["identity"], self._identity, path)
        parts: dict[str, dict[str, Any]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = value.to(self._device)
        self._trainee.load(parts["model"])
        with torch.no_grad():
            for name, value in self._objective.named_parameters().items():
                value.copy_(parts["objective"][name])
        self._ema, self._best = parts.get("ema", {}), parts.get("best", {})
        checkpoint.restore_optimizer(self._optimizer, self._names, parts.get("optimizer", {}), text["optimizer"])
        vars(self._state).update(text["state"])


def _write_events(folder: Path, line: Mapping[str, Any]) -> None:
    """One epoch as TensorBoard events; opened anew each time, so that nothing is lost with a kill."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=line["epoch"]) as writer:
        for name, value in line.items():
            if name != "epoch":
                writer.add_scalar(name.replace(" ", "_"), value, line["epoch"])


def _copies(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in state.items()}


def _seed_all(parts: Sequence[int], device: Any) -> Any:
    """A generator for this step; torch's own (dropout, a user's Dataset) and numpy's are seeded with it."""
    import random

    import torch

    drawn = int(np.random.default_rng(list(parts)).integers(_LARGE))
    torch.manual_seed(drawn)
    np.random.seed(drawn)
    random.seed(drawn)
    return torch.Generator(device=device).manual_seed(drawn)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower().strip()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return True
    return text == "could not create a primitive"  # oneDNN, where there is no room for its scratch memory
