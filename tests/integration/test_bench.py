"""``edgeopt bench`` here: every kind of model, several in turns, what is said of them, and bad input."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from edgeopt.bench import agent
from edgeopt.bench.latency import Plan, measure_here, subject_of, with_version
from edgeopt.bench.results import BenchDocument, BenchResult, Conditions, LatencyMs, Ratio
from edgeopt.cli import run
from edgeopt.errors import ModelError
from edgeopt.report.latency import as_text, failures_of, ratio_in_words
from edgeopt.report.latency_plot import distribution_svg, page
from tests import tiny

QUICK = ["--seconds", "0.02", "--runs", "10", "--warm-up", "0.05"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx`` and the TFLite file made of it."""
    folder = tmp_path_factory.mktemp("bench")
    tiny.save_model(folder / "model.onnx")
    tiny.save_samples(folder / "samples.npz")
    data = ["--calibration", str(folder / "samples.npz"), "--effort", "fast", "--target", "tflite"]
    assert run(["convert", str(folder / "model.onnx"), *data, "--out", str(folder / "out")]) == 0
    return folder


def bench(capsys, *arguments: object, code: int = 0) -> dict:
    capsys.readouterr()
    assert run(["bench", *map(str, arguments), *QUICK, "--json"]) == code
    found: dict = json.loads(capsys.readouterr().out)
    return found


def test_with_and_without_xnnpack_and_onnx_runtime_in_turns(folder, capsys):
    tflite, onnx = folder / "out/tflite/model.tflite", folder / "model.onnx"
    found = bench(capsys, tflite, onnx, "--xnnpack", "both", "--threads", "2")
    assert BenchDocument.model_validate(found).schema_ == "edgeopt.bench/1"
    with_delegate, without, other = found["results"]
    assert with_delegate["conditions"]["delegate"] == "XNNPACK"
    assert with_delegate["coverage"] == 1.0
    assert without["conditions"]["delegate"] is None
    assert [result["runtime"] for result in found["results"]] == ["tflite", "tflite", "onnxruntime"]
    assert [result["precision"] for result in found["results"]] == ["int8", "int8", "fp32"]
    assert other["threads"] == 2
    for result in found["results"]:
        ms, conditions = result["latency_ms"], result["conditions"]
        assert 0 < ms["low"] <= ms["p50"] <= ms["high"]
        assert ms["p50"] <= ms["p90"] <= ms["p95"] <= ms["p99"] <= result["quantiles_ms"][-1]
        assert result["throughput_per_s"] == pytest.approx(1e3 / ms["mean"], rel=1e-3)
        assert min(result["load_ms"], result["first_ms"], result["memory_mb"]) > 0
        assert conditions["runs"] >= 10
        assert len(conditions["interleaved_with"]) == 2
        assert result["stable"] is not bool(result["unstable_because"])
    for ratio, result in zip(found["ratios"], (without, other), strict=True):
        assert ratio["model"] == result["model"]
        assert ratio["to"] == with_delegate["model"]
        assert ratio["low"] <= ratio["ratio"] <= ratio["high"]


def measured(model: Path, **changes) -> BenchResult:
    """In this process: starting a worker costs more than all of it."""
    plan = Plan(seconds=0.01, runs=10, warm_up_s=0.02, **changes)
    return measure_here((subject_of(model),), plan, tell=print).results[0]


def test_an_open_batch_is_bound(tmp_path):
    model = tiny.save_model(tmp_path / "model.onnx", shape="N,3,12,12")
    one, eight = measured(model), measured(model, batch=8)
    assert (one.batch, eight.batch) == (1, 8)
    assert eight.latency_ms.mean is not None
    assert eight.throughput_per_s == pytest.approx(8e3 / eight.latency_ms.mean, rel=1e-3)


def test_open_sizes_are_asked_for(tmp_path):
    model = tiny.save_model(tmp_path / "model.onnx", shape="1,3,H,W")
    with pytest.raises(ModelError, match=r"input 'image' is \[1, 3, \?, \?\]") as caught:
        measured(model)
    assert "--input image=1,3,224,224" in str(caught.value.hint)
    assert measured(model, inputs={"image": (1, 3, 20, 20)}).latency_ms.p50 > 0


def test_a_fixed_batch_is_not_changed(folder):
    for model in (folder / "model.onnx", folder / "out/tflite/model.tflite"):
        with pytest.raises(ModelError, match="does not run with that batch"):
            measured(model, batch=3)


def test_onnx_runtimes_profile_names_nodes(folder):
    found = measured(folder / "model.onnx", profile=True).profile
    assert found is not None
    assert {"Conv", "GlobalAveragePool"} <= {operator.op for operator in found.operators}


def test_pytorch_source_and_its_operators(quickstart, capsys):
    (result,) = bench(capsys, quickstart, "--profile")["results"]
    assert result["runtime"] == "pytorch"
    assert result["profile"]["kind"] == "measured"
    shares = [operator["share"] for operator in result["profile"]["operators"]]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)


def test_the_page_needs_nothing_from_elsewhere(folder, tmp_path, capsys):
    assert run(["bench", str(folder / "model.onnx"), *QUICK, "--html", str(tmp_path / "page.html")]) == 0
    shown = capsys.readouterr().out
    text = (tmp_path / "page.html").read_text()
    assert "src=" not in text
    assert "href=" not in text
    assert "url(" not in text
    assert "http" not in text
    svg = text[text.index("<svg") : text.index("</svg>") + len("</svg>")]
    assert ET.fromstring(svg).tag.endswith("svg")
    assert "polyline" in svg
    assert shown.splitlines()[0].split(":")[0] in text


def result(name: str = "m", p50: float = 1.0, **more) -> BenchResult:
    quantiles = tuple(float(value) for value in p50 * np.linspace(0.9, 1.5, 101))
    conditions = Conditions(machine="a", runtime="r 1", threads=1, runs=50, load=0.0)
    return BenchResult(
        model=name,
        runtime="tflite",
        threads=1,
        latency_ms=LatencyMs(p50=p50, p90=p50, p95=p50, p99=p50, mean=p50, low=p50 * 0.99, high=p50 * 1.01),
        conditions=conditions,
        quantiles_ms=quantiles,
        **more,
    )


def test_what_is_unstable_is_no_result(capsys):
    shaky = result(stable=False, unstable_because=("the median moved while it was measured: 1 → 2 → 1 → 2 ms",))
    lines = "\n".join(as_text(BenchDocument(edgeopt="0", results=(shaky,))))
    assert "UNSTABLE, no result: the median moved" in lines
    assert "unstable" in distribution_svg([shaky])
    (failure,) = failures_of([shaky], 5.0)
    assert failure.startswith("m on host: 1 ms (unstable")
    assert failures_of([shaky, result()], 5.0) == ()
    ratio = ratio_in_words(Ratio(model="b", to="a", ratio=2, low=1.9, high=2.1, stable=False))
    assert ratio.endswith("of UNSTABLE times")


def test_the_forerunner_of_litert_is_called_by_its_name():
    assert with_version("ai-edge-litert", "2.14.0 (tflite-runtime)") == "tflite-runtime 2.14.0"
    assert with_version("ai-edge-litert", "2.3.0") == "ai-edge-litert 2.3.0"


def test_names_of_files_are_no_markup():
    named = result("<script>&.tflite")
    assert "<script>" not in page([named], as_text(BenchDocument(edgeopt="0", results=(named,))))
    assert distribution_svg([]) == ""


def test_a_ratio_within_the_noise_is_said():
    document = BenchDocument(
        edgeopt="0",
        results=(result("a"), result("b")),
        ratios=(Ratio(model="b", to="a", ratio=1.01, low=0.98, high=1.04),),
    )
    assert any("no difference beyond the noise" in line for line in as_text(document))


def test_a_budget(folder, capsys):
    (failure,) = bench(capsys, folder / "model.onnx", "--fps", "1e9", code=1)["failures"]
    assert "at most 1e-06 ms was asked" in failure
    assert failures_of([result("a", 2.0), result("a", 4.0)], 3.0) == ()
    assert failures_of([result("a", 2.0)], 1.9) == ("a on host: 2 ms (median), at most 1.9 ms was asked",)
    assert bench(capsys, "model.onnx", "--fps", "1", "--budget-ms", "1", code=2)["hint"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent.onnx"], 2, "there is no such file"),
        (["."], 2, "neither a recipe's folder nor a TensorRT bundle"),
        (["{folder}/samples.npz"], 2, "of a kind that is not measured"),
        (["{folder}/model.onnx", "--html", "absent/page.html"], 2, "its folder does not exist"),
        (["{folder}/model.onnx", "--on", "nowhere"], 2, "is no address of a device"),
        (["{folder}/model.onnx", "--on", "ssh://a:b@c"], 2, "a password does not belong"),
        (["{folder}/model.onnx", "--runtime", "tensorrt"], 2, "does not run on this machine"),
        (["{folder}/model.onnx", "--input", "picture=1,3,12,12"], 2, "no input named 'picture'"),
        (["{folder}/model.onnx", "--on", "ssh://x", "--compare"], 2, "predicts for all devices"),
    ],
)
def test_bad_input(folder, tmp_path, monkeypatch, capsys, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *(word.format(folder=folder) for word in arguments), *QUICK]) == code
    assert said in capsys.readouterr().err


def test_a_file_that_its_runtime_refuses(tmp_path):
    (tmp_path / "broken.tflite").write_bytes(b"TFL3" + bytes(64))
    with pytest.raises(ModelError, match=r"broken\.tflite: cannot be run"):
        measured(tmp_path / "broken.tflite")


def test_turns_give_each_model_its_runs_and_seconds():
    class Session:
        def __init__(self) -> None:
            self.runs = 0

        def run(self, feed: object) -> None:
            self.runs += 1

    def opened(name: str) -> agent.Measured:
        one = agent.Measured.__new__(agent.Measured)
        one.name, one.session, one.feed, one.turns, one.per_turn = name, Session(), {}, [], 5
        return one

    both = [opened("a"), opened("b")]
    agent.take_turns(both, 0.0, 23, seed=0)
    assert [one.session.runs for one in both] == [25, 25]
    assert [len(one.turns) for one in both] == [5, 5]
