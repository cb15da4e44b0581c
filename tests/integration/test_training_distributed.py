"""Two processes under torch's own launcher reach what one reaches."""

from __future__ import annotations

import json

import pytest

from edgeopt.errors import EdgeoptError
from edgeopt.training.distributed import launch
from edgeopt.training.settings import Training

torch = pytest.importorskip("torch", reason="torch is not installed")

from .distributed_work import train, train_all  # noqa: E402

SETTINGS = {"epochs": 3, "batch": 16, "lr": 1e-2, "optimizer": "sgd", "processes": 2}


def test_two_processes_train_what_one_does_and_raise_what_goes_wrong(tmp_path):
    diverging = {**SETTINGS, "lr": 1e12, "epochs": 20}
    asked = [
        (str(tmp_path / name), one, str(tmp_path / f"{name}.pt"))
        for name, one in (("two", SETTINGS), ("diverged", diverging))
    ]
    with pytest.raises(EdgeoptError, match="the training diverged"):
        launch(train_all, asked, 2, tmp_path / "launch")
    assert not (tmp_path / "diverged.pt").exists()
    train((str(tmp_path / "one"), SETTINGS, str(tmp_path / "one.pt")))
    two, one = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("two", "one"))
    # Means of two halves are added in another order than one mean.
    assert all(torch.allclose(two[name], one[name], atol=1e-5) for name in one)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "work" / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    ]
    assert [line["loss"] for line in lines[0]] == pytest.approx([line["loss"] for line in lines[1]], rel=1e-3)


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ValueError, match="a batch of 15 cannot be shared by 2 processes"):
        Training(batch=15, processes=2)
