"""The proof of the gate: what counts, how its cases are ordered, what the table says. No case is run here."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.faults import cases, data_kinds, more_kinds, results, split
from benchmarks.faults.cases import Plan
from benchmarks.faults.count import Harm, counts
from benchmarks.faults.results import Outcome

CLEAN = [Harm(30 + number / 10, 99.0) for number in range(100)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Harm(29.9, 100.0), True),
        (Harm(35.0, 100.0), False),
        (Harm(40.0, 98.9), True),
        (Harm(-np.inf, 0.0), True),
    ],
)
def test_a_fault_counts_where_it_harms_more_than_99_of_100_clean_conversions(found, expected):
    assert counts(found, CLEAN) is expected


def test_without_classes_only_sqnr_counts():
    clean = [Harm(20.0, None), Harm(21.0, None)]
    assert counts(Harm(19.0, None), clean) and not counts(Harm(20.5, None), clean)


def test_any_beginning_of_the_cases_is_balanced():
    models = (*split.DEVELOPMENT_MODELS, *split.HELD_OUT_MODELS)
    plans = cases.plans(models, cases.ALL_KINDS, 4, 100)
    faults = [plan for plan in plans if plan.kind]
    assert len(set(map(str, plans))) == len(plans) == 4 * len(cases.ALL_KINDS) + 100
    assert set(Counter(plan.kind for plan in faults).values()) == {4}
    assert {plan.kind for plan in faults[: len(cases.ALL_KINDS)]} == set(cases.ALL_KINDS)
    for part in (len(plans) // 3, len(plans)):
        beginning = plans[:part]
        clean = sum(not plan.kind for plan in beginning)
        assert abs(clean / part - 100 / len(plans)) < 0.03
        for share, chosen in (
            (cases.SHARE, [plan for plan in beginning if plan.kind]),
            (cases.CLEAN_SHARE, [plan for plan in beginning if not plan.kind]),
        ):
            many = Counter(plan.model for plan in chosen)
            for model in models:
                assert abs(many[model] / len(chosen) - share[model] / sum(share.values())) < 0.08
    assert all(sum(plan.model == model and not plan.kind for plan in plans) >= 10 for model in models)


def test_held_out_kinds_are_kinds_and_most_kinds_are_not_held_out():
    assert set(cases.ALL_KINDS) > split.HELD_OUT_KINDS
    assert len(cases.ALL_KINDS) >= 25 and len(split.HELD_OUT_KINDS) >= 10
    assert not set(split.DEVELOPMENT_MODELS) & set(split.HELD_OUT_MODELS)


def _outcome(kind: str, number: int, verdict: str, decibel: float, headline: str = "", layer: str = "") -> Outcome:
    return Outcome(Plan("vww", kind, number, "onnx"), "abc", verdict, headline, layer, decibel, 100.0)


def test_the_table_says_what_was_missed_and_what_was_not_named():
    found = [_outcome("", number, "pass", 30.0 + number) for number in range(5)]
    found += [
        _outcome("bias_dropped", 0, "fail", 3.0, "onnx: parity-lowering: node conv1 is wrong", "conv1"),
        _outcome("bias_dropped", 1, "fail", 4.0, "onnx: parity-lowering: node conv10 is wrong", "conv1"),
        _outcome("bias_dropped", 2, "pass", 5.0, "13 checks passed", "conv1"),
        _outcome("zero_point_off", 0, "pass", 33.0),
        _outcome("labels_renumbered", 0, "pass", 33.0),
        _outcome("bgr_swapped", 0, "no place", 0.0),
        _outcome("bias_dropped", 3, "error", 3.0, "time limit", "conv1"),
    ]
    assert [str(one.plan) for one in results.counting(found)] == [
        "vww onnx bias_dropped 0", "vww onnx bias_dropped 1", "vww onnx bias_dropped 2", "vww onnx labels_renumbered 0",
    ]  # fmt: skip
    text = results.table(found)
    assert "| bias_dropped |  | 3 | 3 | 2 | 1 |  |" in text
    assert "| zero_point_off |  | 1 | 0 | 0 | 0 | 0 of 1 |" in text
    assert "| all | 5 | 4 | 2 (50.0%) | 1 (25.0%) | 0 of 5 |" in text
    assert "missed: vww onnx bias_dropped 2 at conv1 (5.0 dB" in text
    assert "failed: vww onnx bias_dropped 3: error: time limit" in text
    assert "caught, not named: vww onnx bias_dropped 1 at conv1" in text


def test_kinds_of_data_change_what_they_say():
    random = np.random.default_rng(0)
    images = random.random((60, 3, 8, 8), np.float32)
    labels = np.arange(60) % 3
    for kind, change in {**data_kinds.EVALUATION, **more_kinds.EVALUATION}.items():
        made = change(images, labels, random)
        changed = (made[0].shape == images.shape and np.array_equal(made[0], images), np.array_equal(made[1], labels))
        assert changed == ((True, False) if cases.always_counts(kind) else (False, True)), kind
    for change in {**data_kinds.CALIBRATION, **more_kinds.CALIBRATION}.values():
        made = change(images, random)
        assert made.shape == images.shape and not np.array_equal(made, images)
