"""Predictions from the packs that come with edgeopt, on models made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.cli import run
from edgeopt.devices import catalogue, packs
from edgeopt.devices.basis import find_basis
from edgeopt.devices.evidence import evidence
from edgeopt.devices.fit import Probe, fit, read_results, save
from edgeopt.devices.kernels import QUANTITIES
from edgeopt.devices.predict import predict
from edgeopt.errors import DeviceUnreachable, SetupError, UsageError
from edgeopt.graph.cost import operations
from tests.unit.test_cost import canonical


def convolutional(path: Path, *, width: int, size: int, depth: int = 4) -> ir.Model:
    """3×3 convolutions with Relu, then a classifier."""
    random = np.random.default_rng(0)
    weights, lines, channels = {}, [], 3
    for layer in range(depth):
        weights[f"w{layer}"] = (random.normal(size=(width, channels, 3, 3)) / 10).astype(np.float32)
        source = f"a{layer - 1}" if layer else "x"
        lines += [f"c{layer} = Conv <pads = [1,1,1,1]> ({source}, w{layer})", f"a{layer} = Relu (c{layer})"]
        channels = width
    weights["head"] = random.normal(size=(width, 10)).astype(np.float32)
    lines += [f"p = GlobalAveragePool (a{depth - 1})", "f = Flatten (p)", "y = MatMul (f, head)"]
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        net (float[1,3,{size},{size}] x) => (float[1,10] y) {{ {" ".join(lines)} }}"""
    initializers = [ir.tensor(array, name=name) for name, array in weights.items()]
    ir.save(ir.from_onnx_text(text, initializers=initializers), path)
    return canonical(path)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return convolutional(tmp_path_factory.mktemp("net") / "net.onnx", width=32, size=64)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return convolutional(tmp_path_factory.mktemp("net") / "net.onnx", width=64, size=96)


@pytest.mark.parametrize("profile", catalogue.profiles(), ids=lambda profile: profile.id)
def test_every_device_has_an_answer(profile: Any, net: ir.Model) -> None:
    found = predict(net, device=profile)
    assert found
    for one in found:
        assert one.kind == "predicted" and one.device == profile.id
        assert 0 < one.low_ms < one.median_ms < one.high_ms
        assert one.coverage == 1
        assert one.memory_mb > 0
        assert (one.rests_on.held_out == "families") <= (one.basis == "fitted")
        assert len(one.kernels) <= 10
        assert ("--fit" in (one.narrower or "")) == (one.high_ms > 4 * one.low_ms)
        assert [k.ms for k in one.kernels] == sorted((k.ms for k in one.kernels), reverse=True)


def test_kernels_make_up_the_median(net: ir.Model) -> None:
    (one,) = predict(net, device=catalogue.find("raspberry-pi-5").profile, runtime="ncnn", precision="fp16", unit="cpu")
    assert one.basis == "fitted" and one.rests_on.rows > 0
    assert sum(kernel.ms for kernel in one.kernels) == pytest.approx(one.median_ms)  # the net has fewer than ten
    assert sum(kernel.share for kernel in one.kernels) == pytest.approx(1)
    assert one.overhead_ms < one.median_ms
    assert {kernel.fused for kernel in one.kernels} >= {("Conv", "Relu"), ("Gemm",)}


def test_more_work_takes_longer_on_every_device(net: ir.Model, larger: ir.Model) -> None:
    for profile in catalogue.profiles():
        for small, large in zip(predict(net, device=profile), predict(larger, device=profile), strict=True):
            assert large.median_ms > small.median_ms, (profile.id, small.runtime, small.precision)


def test_threads_are_those_asked_for(net: ir.Model) -> None:
    device = catalogue.find("rpi4b").profile
    one, four = (predict(net, device=device, runtime="ncnn", precision="fp32", threads=n)[0] for n in (1, 4))
    assert (one.threads, four.threads) == (1, 4)
    assert one.median_ms > four.median_ms
    two = predict(net, device=device, runtime="ncnn", precision="fp32", threads=2)[0]
    assert two.basis == "transferred"  # nobody measured it with two
    assert four.median_ms * 0.9 < two.median_ms < one.median_ms * 1.1


def test_a_delegate_can_be_asked_for_by_name(net: ir.Model) -> None:
    found = predict(net, device=catalogue.find("raspberry-pi-4b").profile, runtime="armnn")
    assert {(one.runtime, one.delegate) for one in found} == {("tflite", "armnn")}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"runtime": "coreml"}, "does not run coreml"),
        ({"unit": "npu"}, "does not run a runtime on npu"),
        ({"runtime": "ncnn", "unit": "cpu", "precision": "fp32"}, "does not run fp32 with ncnn"),
    ],
)
def test_what_a_device_lacks_is_refused(net: ir.Model, asked: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        predict(net, device=catalogue.find("raspberry-pi-5").profile, **asked)
    assert "fp16" in (caught.value.hint or "") or "ncnn" in (caught.value.hint or "")


def strange(share: int) -> ir.Model:
    """A convolution, and ``share`` operators that nobody knows."""
    text = f"""<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
        net (float[1,16,64,64] x) => (float[1,16,64,64] y) {{
            s0 = Conv <pads = [1,1,1,1]> (x, w, b)
            {" ".join(f"s{i + 1} = own.Strange (s{i})" for i in range(share))}
            y = Relu (s{share})
        }}"""
    weights = {"w": np.ones((16, 16, 3, 3), np.float32), "b": np.zeros(16, np.float32)}
    model = ir.from_onnx_text(text, initializers=[ir.tensor(a, name=n) for n, a in weights.items()])
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].type = ir.Shape((1, 16, 64, 64)), ir.TensorType(ir.DataType.FLOAT)
    for name, value in model.graph.initializers.items():
        value.shape = ir.Shape(weights[name].shape)
    return model


def test_an_unknown_operator_costs_and_lowers_the_coverage() -> None:
    device = catalogue.find("raspberry-pi-4b").profile
    without, with_one = (predict(strange(n), device=device, runtime="ncnn", precision="fp32")[0] for n in (0, 1))
    assert without.coverage == 1
    assert 0.8 <= with_one.coverage < 1
    assert with_one.median_ms > without.median_ms
    assert [kernel.known for kernel in with_one.kernels].count(False) == 1


def test_below_the_coverage_there_is_no_answer() -> None:
    with pytest.raises(DeviceUnreachable, match="Strange") as caught:
        predict(strange(40), device=catalogue.find("raspberry-pi-4b").profile, runtime="ncnn", precision="fp32")
    assert caught.value.exit_code == 3


def probes(models: dict[str, ir.Model], factor: float) -> list[Probe]:
    """Measurements of a board that is ``factor`` slower than the profile says."""
    device = catalogue.find("raspberry-pi-5").profile
    return [
        Probe(name, model, "ncnn", "cpu", "fp16", 4,
              factor * predict(model, device=device, runtime="ncnn", precision="fp16", unit="cpu")[0].median_ms)
        for name, model in models.items()
    ]  # fmt: skip


def test_a_profile_follows_measurements_of_ones_own_board(net: ir.Model, larger: ir.Model, tmp_path: Path) -> None:
    device = catalogue.find("raspberry-pi-5").profile
    deeper = convolutional(tmp_path / "deeper.onnx", width=48, size=80, depth=8)
    adapted, changes = fit(device, probes({"net": net, "larger": larger, "deeper": deeper}, 1.5))
    for change in changes:
        assert change.before_ms == pytest.approx(change.measured_ms / 1.5)
        assert change.after_ms == pytest.approx(change.measured_ms, rel=0.1)
    save(adapted, tmp_path / "my-pi.yaml")
    again = catalogue.find(str(tmp_path / "my-pi.yaml")).profile
    assert again == adapted
    unseen = convolutional(tmp_path / "unseen.onnx", width=40, size=72, depth=6)
    before, after = (
        predict(unseen, device=which, runtime="ncnn", precision="fp16", unit="cpu")[0] for which in (device, again)
    )
    assert after.median_ms / before.median_ms == pytest.approx(1.5, rel=0.1)
    assert after.basis == "fitted" and after.rests_on.rows == 3
    assert predict(unseen, device=again, runtime="ncnn", precision="int8")[0].rests_on.rows != 3  # others stay


def test_a_device_without_rows_follows_those_it_is_like(net: ir.Model, larger: ir.Model, tmp_path: Path) -> None:
    """A Pi 5 with TFLite that takes half the time of a Pi 4: three probes say so, and predictions keep to it."""
    four, five = (catalogue.find(name).profile for name in ("raspberry-pi-4b", "raspberry-pi-5"))
    asked = {"runtime": "tflite", "precision": "int8", "threads": 4}

    def half(model: ir.Model) -> float:
        bare = next(one for one in predict(model, device=four, **asked) if one.delegate is None)
        return bare.median_ms / 2

    deeper = convolutional(tmp_path / "deeper.onnx", width=48, size=80, depth=8)
    measured = [Probe(str(i), m, "tflite", "cpu", "int8", 4, half(m)) for i, m in enumerate((net, larger, deeper))]
    adapted, _ = fit(five, measured)
    save(adapted, tmp_path / "own.yaml")
    again = catalogue.find(str(tmp_path / "own.yaml")).profile
    assert again == adapted
    (rates_,) = again.adapted
    assert sum(like.share for like in rates_.like) == pytest.approx(1)
    unseen = convolutional(tmp_path / "unseen.onnx", width=40, size=72, depth=6)
    (before,), (after,) = (predict(unseen, device=which, **asked) for which in (five, again))
    assert after.median_ms == pytest.approx(half(unseen), rel=0.15)
    assert after.basis == "fitted" and before.basis == "transferred"
    assert after.high_ms / after.low_ms < before.high_ms / before.low_ms


def test_several_measurements_of_one_model_are_one_probe(net: ir.Model) -> None:
    device = catalogue.find("raspberry-pi-5").profile
    times = [Probe(str(i), net, "tflite", "cpu", "int8", 4, ms) for i, ms in enumerate((4.0, 9.0, 6.0))]
    adapted, changes = fit(device, times)
    once, _ = fit(device, [Probe("0", net, "tflite", "cpu", "int8", 4, 6.0)])
    np.testing.assert_allclose(adapted.adapted[0].theta, once.adapted[0].theta)
    assert adapted.adapted[0].probes == ("0",) and len(changes) == 3
    (one,) = (e for e in evidence(adapted) if (e.runtime, e.precision, e.delegate) == ("tflite", "int8", None))
    assert (one.basis, one.probes) == ("fitted", 1)


def test_a_disturbed_campaign_does_not_stand_for_its_device(net: ir.Model) -> None:
    """The published TFLite rows of a Pi 3B spend milliseconds per kernel, whatever its size."""
    device = catalogue.find("raspberry-pi-3b").profile
    (tflite,) = predict(net, device=device, runtime="tflite", precision="int8")
    assert tflite.basis == "transferred"
    assert any("waited for each other" in text for text in tflite.warnings)
    (ncnn,) = predict(net, device=device, runtime="ncnn", precision="int8")
    assert tflite.median_ms < 5 * ncnn.median_ms


def test_no_run_is_faster_than_the_peak(larger: ir.Model) -> None:
    for profile in catalogue.profiles():
        for one in predict(larger, device=profile):
            peak = profile.peak_gops(one.compute_unit, one.precision, one.threads)
            if peak is not None:
                macs = 96 * 96 * 9 * 64 * (3 + 3 * 64) / 4
                assert one.low_ms >= min(2 * macs / peak / 1e6, one.median_ms) * 0.999


def results(tmp_path: Path, **changes: Any) -> Path:
    one = {"model": "a.onnx", "device": "pi", "runtime": "tflite", "compute_unit": "cpu", "precision": "int8",
           "threads": 4, "kind": "measured", "latency_ms": {"p50": 3.2, "p90": 3.4}}  # fmt: skip
    document = {"schema": "edgeopt.bench/1", "results": [one | changes.pop("result", {})]} | changes
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    return path


def test_results_are_read(tmp_path: Path) -> None:
    (one,) = read_results(results(tmp_path))
    assert (one.model, one.latency_ms.p50, one.threads) == ("a.onnx", 3.2, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "edgeopt.bench/2"}, "edgeopt.bench/2, not edgeopt.bench/1"),
        ({"schema": None}, "no result of edgeopt bench"),
        ({"result": {"kind": "predicted"}}, "nothing measured|no measured result"),
        ({"result": {"precision": "int4"}}, "precision"),
        ({"result": {"latency_ms": {}}}, "p50"),
        ({"result": {"latency_ms": {"p50": 0}}}, "p50"),
    ],
)
def test_results_of_another_kind_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_results(results(tmp_path, **changes))


def test_a_pack_of_another_version_is_refused(tmp_path: Path) -> None:
    text = next((catalogue.folder() / "packs").glob("*.json")).read_text()
    (tmp_path / "a.json").write_text(text.replace("edgeopt.rates/2", "edgeopt.rates/9"))
    with pytest.raises(SetupError, match="another version"):
        packs.read(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(text.replace(QUANTITIES[0], "other"))
    with pytest.raises(SetupError, match="other quantities"):
        packs.read(tmp_path / "b.json")


def test_packs_carry_their_rows_and_errors() -> None:
    folder = catalogue.folder() / "packs"
    rows = len((folder / "rows.csv").read_text().splitlines()) - 1
    found = packs.groups()
    assert sum(c.rows for group in found.values() for c in group.pack.configurations) == rows
    for group in found.values():
        assert set(group.pack.held_out) == set(get_args(packs.Regime))


def test_what_a_profile_rests_on() -> None:
    found = {(e.runtime, e.compute_unit, e.precision): e for e in evidence(catalogue.find("raspberry-pi-5").profile)}
    ncnn = found["ncnn", "cpu", "fp16"]
    assert ncnn.basis == "fitted" and ncnn.rows >= 22 and ncnn.held_out_error_pct is not None
    assert found["tflite", "cpu", "fp32"].basis == "transferred"


def test_a_devices_own_rows_come_before_its_relatives() -> None:
    profile = catalogue.find("snapdragon-8-gen-2").profile
    support = next(s for s in profile.runtimes if s.runtime == "qnn")
    basis = find_basis(profile, support, "fp16")
    assert basis.configuration is not None and basis.configuration.device == "qcs8550_proxy"


def test_a_gpu_that_nothing_is_like_has_the_interval_of_the_mean_of_all() -> None:
    profile = catalogue.find("raspberry-pi-5").profile
    support = next(s for s in profile.runtimes if s.unit == "gpu")
    unmeasured = profile.model_copy(update={"measured_as": ()})
    basis = find_basis(unmeasured, support, "fp16")
    assert (basis.regime, basis.related) == ("devices_mean", False)
    assert any("no relative" in text for text in basis.warnings)
    cpu = next(s for s in profile.runtimes if s.unit == "cpu" and s.runtime == "ncnn")
    assert find_basis(unmeasured, cpu, "fp16").regime == "devices_0"  # its CPU has relatives
    held = basis.group.pack.held_out
    assert held["devices_mean"].spread > held["devices_0"].spread


def test_a_campaign_in_which_larger_models_are_faster_stands_for_no_device() -> None:
    group = packs.groups()["gpu/mobile"]
    odd = [c for c in group.pack.configurations if not c.grows]
    assert odd and not any(c.stands for c in odd)
    profile = catalogue.find("rk3588").profile
    support = next(s for s in profile.runtimes if s.unit == "gpu")
    only = profile.model_copy(update={"measured_as": tuple(c.device for c in odd)})
    basis = find_basis(only, support, "fp16")
    assert basis.configuration is None
    assert any("larger models took less time" in text for text in basis.warnings)


def test_the_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices"]) == 0
    assert "raspberry-pi-5" in capsys.readouterr().out
    assert run(["devices", "jetson"]) == 0
    shown = capsys.readouterr()
    assert "jetson-orin-nano" in shown.err and "published rows" in shown.out and "[high:" in shown.out
    assert run(["devices", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "edgeopt.devices/1"
    assert {"id", "aliases", "name"} <= set(document["devices"][0])
    assert run(["devices", "rpi5", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["devices"]
    assert one["id"] == "raspberry-pi-5" and "raspberry-pi" in one["aliases"] and one["predictions"]
    assert run(["devices", "rasberry-pi-5"]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(("name", "listed"), [("imagenet/mobilenet_v1_075.onnx", "mobilenet_v1_0.75@3x224x224")])
def test_a_graph_costs_what_its_operator_list_says(bench_data: Path, name: str, listed: str) -> None:
    """The fit saw operator lists, a prediction sees graphs: both must come to the same quantities."""
    from benchmarks.latency.rows import operators
    from edgeopt.devices.kernels import FUSION, fuse, matrix

    graph = operations(canonical(bench_data / name))
    reference = operators(bench_data / "latency", listed)
    assert reference is not None
    for rules in FUSION.values():
        np.testing.assert_allclose(matrix(fuse(graph, rules)).sum(0), matrix(fuse(reference, rules)).sum(0))


def test_written_down_detectors_have_their_published_size(bench_data: Path) -> None:
    import csv

    from benchmarks.latency.definitions import define

    with (bench_data / "latency" / "models.csv").open() as file:
        for row in csv.DictReader(file):
            if row["model"].removeprefix("np:").startswith("yolo") and row["input"] == "3x640x640":
                found = define(row["model"], 640)
                assert found is not None
                assert sum(op["w"] for op in found) / 1e6 == pytest.approx(float(row["params_m"]), rel=0.02)
                assert sum(op["macs"] for op in found) / 1e9 == pytest.approx(float(row["macs_g"]), rel=0.04)
