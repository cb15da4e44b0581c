"""The engine on a tiny net: repeatable, resumable to the bit, and plain about what goes wrong."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeopt import events
from edgeopt.errors import DataError, EdgeoptError, SetupError, UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")

from edgeopt.training import base, engine  # noqa: E402
from edgeopt.training.data import ArraySet, DatasetSet  # noqa: E402
from edgeopt.training.settings import Augment, Distillation, Training  # noqa: E402
from edgeopt.training.trainee import ModuleTrainee  # noqa: E402


def net(width: int = 8, classes: int = 4) -> torch.nn.Module:
    torch.manual_seed(width)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, width, 3, padding=1),
        torch.nn.BatchNorm2d(width),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Conv2d(width, width, 3, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(width, classes),
    ).eval()


def trainee(module: torch.nn.Module | None = None) -> ModuleTrainee:
    return ModuleTrainee(module if module is not None else net(), ["x"], ["output"])


def quadrants(count: int = 64) -> ArraySet:
    """Which quadrant of the image is bright."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, count)
    images = rng.normal(0, 0.3, (count, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1 + label
    return ArraySet({"x": images}, labels.astype(np.int64), "quadrants")


def fit(model: ModuleTrainee, folder: Path, data=None, *, teacher=None, identity="one", **settings):
    return base.train(
        model,
        Training(**{"epochs": 3, "batch": 16, "lr": 3e-3, **settings}),
        data if data is not None else quadrants(),
        {"x": torch.zeros(1, 1, 8, 8)},
        teacher=teacher,
        root=folder,
        folder=folder / "work",
        identity=identity,
        seed=5,
        text="test",
    )


def equal(a: ModuleTrainee, b: ModuleTrainee) -> bool:
    return all(torch.equal(value, b.state()[name]) for name, value in a.state().items())


FULL = {
    "ema": 0.9, "mixup": 0.2, "label_smoothing": 0.1, "held_back": 0.2, "clip_norm": 1.0, "class_weights": "balanced",
    "augment": Augment(flip=True, shift=1, rotate=5, cutout=2), "warmup_epochs": 0.5, "layer_decay": 0.8,
}  # fmt: skip


class Interrupted:
    """A data set that raises when its so-many-th batch is asked for: what a kill leaves is the last checkpoint."""

    def __init__(self, inner: ArraySet, at: int) -> None:
        self._inner, self._left = inner, at
        self.labels, self.where = inner.labels, inner.where

    def __len__(self) -> int:
        return len(self._inner)

    def to(self, device) -> None:
        self._inner.to(device)

    def batch(self, indices):
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return self._inner.batch(indices)


@pytest.mark.parametrize("settings", [{}, FULL, {"optimizer": "sgd", "schedule": "step"}], ids=["plain", "full", "sgd"])
@pytest.mark.parametrize("every_s", [1e9, 0.0], ids=["after an epoch", "within an epoch"])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch, settings, every_s):
    monkeypatch.setattr(engine, "CHECKPOINT_S", every_s)
    whole, broken, resumed = trainee(), trainee(), trainee()
    history = fit(whole, tmp_path / "a", **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, tmp_path / "b", Interrupted(quadrants(), 8), **settings)
    again = fit(resumed, tmp_path / "b", **settings)
    assert equal(whole, resumed)
    assert not equal(whole, broken)
    timeless = [[{k: v for k, v in one.items() if k != "seconds"} for one in lines] for lines in (history, again)]
    assert timeless[0] == timeless[1]
    assert len((tmp_path / "b" / "work" / "metrics.jsonl").read_text().splitlines()) == 3


def test_it_learns_and_writes_a_line_per_epoch(tmp_path):
    history = fit(trainee(), tmp_path, epochs=24, lr=1e-2, held_back=0.25)
    assert history[-1]["held_top1"] > 0.9
    lines = [json.loads(line) for line in (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()]
    assert lines == history
    assert [line["epoch"] for line in lines] == list(range(1, 25))


def test_early_stopping_returns_the_best_weights(tmp_path):
    model = trainee()
    history = fit(model, tmp_path, epochs=40, lr=0.05, held_back=0.3, early_stopping=2, schedule="constant")
    assert len(history) < 40
    best = min(history, key=lambda line: line["held_loss"])
    assert best["epoch"] == history[-1]["epoch"] - 2


@pytest.mark.parametrize(("trainable", "layers"), [("head", ["7"]), (0.6, ["4", "7"])])
def test_what_is_frozen_does_not_move(tmp_path, trainable, layers):
    model = trainee()
    before = {name: value.clone() for name, value in model.state().items()}
    fit(model, tmp_path, trainable=trainable)
    moved = {name.partition(".")[0] for name, value in model.state().items() if not torch.equal(value, before[name])}
    assert moved == set(layers)


def test_a_teacher_alone_teaches(tmp_path):
    teacher = trainee()
    fit(teacher, tmp_path / "teacher", epochs=12, lr=1e-2)
    data = quadrants()
    unlabelled = ArraySet({"x": data.batch(range(64))[0]["x"].numpy()}, None, "unlabelled")
    student = trainee(net(6))
    distill = Distillation(mix=1.0, features={"4": "4"})
    history = fit(student, tmp_path, unlabelled, teacher=teacher, epochs=20, lr=1e-2, distill=distill)
    assert history[-1]["loss of features"] < history[0]["loss of features"]
    feed, labels = data.batch(range(64))
    with torch.no_grad():
        assert float((student(feed)["output"].argmax(1) == labels).float().mean()) > 0.8


def test_a_dataset_of_the_users_own(tmp_path):
    feed, labels = quadrants().batch(range(64))
    pairs = [(feed["x"][index], int(labels[index])) for index in range(64)]
    one, other = trainee(), trainee()
    fit(one, tmp_path / "a", DatasetSet(pairs, ["x"], "pairs"))
    fit(other, tmp_path / "b")
    assert equal(one, other)


def test_a_loss_of_the_users_own(tmp_path):
    (tmp_path / "my_loss_of_training.py").write_text(
        "def loss(outputs, batch):\n    return (outputs['output'][:, 0] - batch['x'].mean((1, 2, 3))).square().mean()\n"
    )
    history = fit(trainee(), tmp_path, epochs=6, lr=1e-2, loss="my_loss_of_training:loss")
    assert history[-1]["loss"] < history[0]["loss"]


# --- what goes wrong


def test_a_rate_that_diverges_names_step_and_layer(tmp_path):
    with pytest.raises(engine.Diverged, match=r"epoch \d+, step \d+.*diverged") as caught:
        fit(trainee(), tmp_path, lr=1e12, optimizer="sgd", epochs=10)
    assert "Lower lr" in str(caught.value)
    assert "layer '" in str(caught.value)


def test_the_layer_that_breaks_is_named(tmp_path):
    model = trainee()
    with torch.no_grad():
        model.module[4].weight.fill_(float("nan"))
    with pytest.raises(engine.Diverged, match="layer '4'"):
        fit(model, tmp_path)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    fit(trainee(), tmp_path)
    with pytest.raises(UsageError, match="of another training"):
        fit(trainee(), tmp_path, identity="two")


def test_a_damaged_checkpoint_is_named(tmp_path):
    fit(trainee(), tmp_path)
    path = tmp_path / "work" / engine.CHECKPOINT
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EdgeoptError, match="damaged"):
        fit(trainee(), tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    fit(trainee(), tmp_path, epochs=1)
    path = tmp_path / "work" / engine.CHECKPOINT
    kept = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fit(trainee(), tmp_path, epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == kept
    assert not list((tmp_path / "work").glob("*.part"))


def test_a_label_out_of_range(tmp_path):
    feed, labels = quadrants().batch(range(64))
    labels[3] = 4
    with pytest.raises(DataError, match=r"label of sample 3 is 4.*0 to 3"):
        fit(trainee(), tmp_path, ArraySet({"x": feed["x"].numpy()}, labels.numpy(), "wrong"))


def test_an_empty_class_cannot_be_weighted(tmp_path):
    feed, labels = quadrants().batch(range(64))
    data = ArraySet({"x": feed["x"].numpy()}, labels.numpy().clip(0, 2), "three")
    with pytest.raises(DataError, match="class 3 has no training sample"):
        fit(trainee(), tmp_path, data, class_weights="balanced")


@pytest.mark.parametrize(
    ("settings", "warned"),
    [({}, True), ({"distill": Distillation(mix=0.5)}, True), ({"distill": Distillation(mix=1.0)}, False)],
    ids=["labels", "teacher and labels", "teacher alone"],
)
def test_an_empty_class_is_told_where_labels_are_learnt(tmp_path, settings, warned):
    feed, labels = quadrants().batch(range(64))
    data = ArraySet({"x": feed["x"].numpy()}, labels.numpy().clip(0, 1), "two")
    said: list[str] = []
    with events.listening(lambda event: said.append(event.text) if event.kind == "warning" else None):
        fit(trainee(), tmp_path, data, epochs=1, teacher=trainee() if settings else None, **settings)
    assert said == (["test: classes 2, 3 of 4 in no sample of two: the model may forget them"] if warned else [])


def test_a_teacher_that_does_not_fit(tmp_path):
    with pytest.raises(UsageError, match=r"teacher's outputs do not fit.*\[16, 5\].*\[16, 4\]"):
        fit(trainee(), tmp_path, teacher=trainee(net(8, 5)), distill=Distillation())


def test_no_labels_and_no_teacher(tmp_path):
    data = ArraySet({"x": np.zeros((8, 1, 8, 8), np.float32)}, None, "nothing")
    with pytest.raises(DataError, match="no labels"):
        fit(trainee(), tmp_path, data)


MEMORY = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
from tests.integration.test_training_engine import *
limit = int(next(line for line in open("/proc/self/statm")).split()[0]) * 4096 + (1 << 28)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
images = np.zeros((512, 1, 64, 64), np.float32)
data = ArraySet({{"x": images}}, np.zeros(512, np.int64), "large")
try:
    fit(trainee(), Path({folder!r}), data, batch=512)
except EdgeoptError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_too_large_a_batch_is_answered_by_one_that_fits(tmp_path):
    code = MEMORY.format(path=sys.path, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert "a batch of 512 does not fit into memory" in done.stdout, done.stderr
    assert " fits: batch: " in done.stdout


def test_tensorboard_events_or_what_to_install(tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(SetupError, match="pip install tensorboard"):
            fit(trainee(), tmp_path, tensorboard="events")
    else:
        fit(trainee(), tmp_path, tensorboard="events", epochs=1)
        assert list((tmp_path / "events" / "work").glob("events.out.tfevents.*"))


class Flat(torch.nn.Module):
    """Reads memory as it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(256, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x)).view(len(x), -1))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="these kernels have no layout of their own")
@pytest.mark.parametrize("build", [net, Flat], ids=["turned", "as it lies"])
def test_channels_last_where_the_module_bears_it(tmp_path, build):
    module, seen = build().eval(), []
    before = [value.clone() for value in module.state_dict().values()]
    fit(trainee(module), tmp_path, Watched(quadrants(), lambda: seen.append(is_turned(module))), epochs=1)
    assert seen == [build is net] * 4
    assert not is_turned(module)
    assert not any(torch.equal(*pair) for pair in zip(before, module.state_dict().values(), strict=True))


def is_turned(module) -> bool:
    return any(not parameter.is_contiguous() for parameter in module.parameters())


class Watched:
    """A data set that looks at something whenever a batch is asked for."""

    def __init__(self, inner: ArraySet, look) -> None:
        self._inner, self._look = inner, look
        self.labels, self.where, self.to = inner.labels, inner.where, inner.to

    def __len__(self) -> int:
        return len(self._inner)

    def batch(self, indices):
        self._look()
        return self._inner.batch(indices)
