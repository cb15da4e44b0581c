"""The gate's statistics against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control
from sklearn.metrics import confusion_matrix, f1_score

from edgeopt.gate import statistics
from edgeopt.gate.task import CocoScore, mean_iou
from edgeopt.pipeline import confidence
from edgeopt.pipeline.verdict import Interval


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    expected = binomtest(lost, lost + won, 0.5, alternative="greater").pvalue if lost + won else 1.0
    assert statistics.mcnemar(lost, won) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_lies_between_single_tests_and_bonferroni(p_values):
    adjusted = statistics.holm(p_values)
    for one, raw in zip(adjusted, p_values, strict=True):
        assert raw <= one <= min(1.0, len(p_values) * raw) + 1e-12
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))
    # Holm rejects no more than Benjamini and Hochberg, which bound a weaker error.
    assert all(a >= b - 1e-12 for a, b in zip(adjusted, false_discovery_control(p_values), strict=True))


def test_the_paired_interval_covers_the_true_drop_as_often_as_it_says():
    random, hits, runs = np.random.default_rng(0), 0, 300
    for run in range(runs):
        kind = random.choice(3, 200, p=[0.06, 0.02, 0.92])  # lost, won, equal: the true drop is 0.04
        float_, target = kind != 1, kind != 0
        drop = statistics.paired_drop(float_, target, level=0.95, seed=run)
        hits += drop.low <= 0.04 <= drop.high
    assert hits / runs >= 0.92  # 95 %, less three standard errors of 300 runs


def test_no_difference_still_leaves_room_for_one():
    same = np.ones(100, bool)
    drop = statistics.paired_drop(same, same, level=0.95, seed=0)
    assert drop.low < 0 < drop.high < 0.06


def test_samples_to_settle():
    drop = Interval(value=0.02, low=-0.01, high=0.05)
    assert statistics.samples_to_settle(drop, 0.01, 100) == 900  # three times too wide: nine times the samples
    assert statistics.samples_to_settle(drop, 0.02, 100) is None


@given(st.integers(0, 10_000))
def test_f1_and_confusion_are_those_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    labels, answers = random.integers(0, 4, 50), random.integers(0, 4, 50)
    there = np.unique(labels)
    expected = f1_score(labels, answers, labels=there, average="macro", zero_division=0)
    assert statistics.macro_f1(answers, labels) == pytest.approx(expected)
    assert np.array_equal(statistics.confusion(answers, labels, 4), confusion_matrix(labels, answers, labels=range(4)))


def test_a_temperature_repairs_what_it_can():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5))
    labels = np.array([random.choice(5, p=p) for p in confidence.softmax(logits)])
    assert confidence.fit_temperature(logits * 3, labels) == pytest.approx(3, rel=0.1)
    overconfident = statistics.reliability(confidence.softmax(logits * 3), labels).ece
    right = statistics.reliability(confidence.softmax(logits), labels).ece
    assert right < 0.03 < overconfident


def test_the_threshold_keeps_its_error():
    chances = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 0])
    assert confidence.threshold_for(chances, labels, 0.0) == (0.8, 0.5, 0.0)
    assert confidence.threshold_for(chances, 1 - labels * 0, 0.0) is None


def test_softmax_is_stable():
    assert np.allclose(confidence.softmax(np.array([[1e4, 1e4]])), 0.5)
    assert confidence.looks_like_probabilities(confidence.softmax(np.random.default_rng(0).normal(size=(8, 10))))
    assert not confidence.looks_like_probabilities(np.random.default_rng(0).normal(size=(8, 10)))


def test_mean_iou_by_hand():
    assert mean_iou(np.array([[3, 1], [2, 4]])) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert mean_iou(np.array([[5, 0, 0], [0, 0, 0], [0, 0, 5]])) == 1.0  # a class that is nowhere does not count


def test_normal_quantile():
    assert statistics.normal_quantile(0.975) == pytest.approx(1.959964, abs=1e-5)
    assert math.isclose(statistics.share_interval(np.array([True] * 9 + [False]), level=0.95).low, 0.5958, abs_tol=1e-3)


def test_map_is_cocos():
    boxes = [[10, 10, 30, 40], [60, 20, 20, 20], [5, 50, 40, 40]]
    truth = {
        "images": [{"id": index} for index in (1, 2, 3)],
        "categories": [{"id": 0}],
        "annotations": [{"image_id": i, "category_id": 0, "bbox": box} for i, box in enumerate(boxes, 1)],
    }

    def made(shift: float) -> list[dict[str, object]]:
        return [
            {"image_id": i, "category_id": 0, "bbox": [x + shift, y, w, h], "score": 0.9}
            for i, (x, y, w, h) in enumerate(boxes, 1)
        ]

    everything = np.arange(3)
    assert CocoScore(truth, made(0), [1, 2, 3]).map(everything) == pytest.approx(1.0)
    shifted = CocoScore(truth, made(4), [1, 2, 3])
    assert shifted.figures()["mAP50"] == pytest.approx(1.0)  # boxes overlap by two thirds and more
    assert 0.3 < shifted.map(everything) < 0.95
    missing = CocoScore(truth, made(0)[:2], [1, 2, 3])
    assert missing.map(np.array([0, 1, 1])) == pytest.approx(1.0)  # the image that is missed is not among them
    assert missing.map(everything) < 0.8
    assert CocoScore(truth, [], [1, 2, 3]).map(everything) == 0.0
