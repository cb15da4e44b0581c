"""Labels and data that do not fit: what the gate tells from answers and activations alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.gate import statistics
from edgeopt.gate.checks.calibration_data import _apart
from edgeopt.gate.checks.preprocessing import DOUBTFUL, WRONG, _doubtful, _renamed
from edgeopt.pipeline.confidence import softmax

CLASSES, COUNT = 5, 200
NAMED = SimpleNamespace(class_name=lambda index: "abcde"[index])


@pytest.fixture(scope="module")
def answered() -> tuple[np.ndarray, np.ndarray]:
    """Scores [n, classes] of a model that is right in nine of ten cases and less sure where it is wrong; labels."""
    random = np.random.default_rng(0)
    labels = np.arange(COUNT) % CLASSES
    scores = random.normal(size=(COUNT, CLASSES))
    scores[np.arange(COUNT), labels] += 3
    assert 0.8 < (scores.argmax(1) == labels).mean() < 0.99
    return scores, labels


def test_right_labels_are_left_alone(answered):
    scores, labels = answered
    assert _renamed(NAMED, scores.argmax(1), labels) is None
    assert _doubtful(scores, labels)[0] < DOUBTFUL


def test_two_classes_under_each_others_number(answered):
    scores, labels = answered
    swapped = np.where(labels == 1, 3, np.where(labels == 3, 1, labels))
    assert "samples of 'b' are answered as 'd' (2 classes" in _renamed(NAMED, scores.argmax(1), swapped)


def test_classes_in_another_order(answered):
    scores, labels = answered
    assert "(5 classes change places)" in _renamed(NAMED, scores.argmax(1), np.array([4, 2, 3, 0, 1])[labels])


def test_a_model_that_takes_one_class_for_another_is_weak_and_its_labels_are_right(answered):
    scores, labels = answered
    answers = scores.argmax(1)
    answers[labels == 2] = 0
    assert _renamed(NAMED, answers, labels) is None


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_labels_that_lost_their_order(answered, share):
    scores, labels = answered
    wrong, random = labels.copy(), np.random.default_rng(1)
    chosen = random.choice(COUNT, int(share * COUNT), replace=False)
    wrong[chosen] = (wrong[chosen] + 1 + random.integers(CLASSES - 1, size=len(chosen))) % CLASSES
    found, text = _doubtful(scores, wrong)
    assert found >= WRONG and abs(found - share) < 0.15 and "labels do not fit" in text
    logits = np.exp(scores - scores.max(1, keepdims=True))
    assert _doubtful(logits / logits.sum(1, keepdims=True), wrong)[0] == pytest.approx(found)


def test_two_draws_of_one_set_are_not_apart_and_shifted_ones_are():
    random = np.random.default_rng(2)
    rows = random.normal(size=(200, 16)) * random.random(16)
    assert _apart(rows, 100) < 0.06
    rows[100:] += 0.5 * rows.std(0)
    assert 0.1 < _apart(rows, 100) < 0.6
    assert _apart(np.ones((10, 3)), 5) == 0


def test_the_expected_calibration_error_is_that_of_its_bins(answered):
    chances = softmax(answered[0])
    found = statistics.expected_calibration_error(*statistics.confidences(chances, answered[1]))
    by_hand = 0.0
    confidence, right = chances.max(1), chances.argmax(1) == answered[1]
    for low in np.arange(statistics.BINS) / statistics.BINS:
        inside = (confidence >= low) & (confidence < low + 1 / statistics.BINS)
        if inside.any():
            by_hand += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert found == pytest.approx(by_hand)
    assert statistics.reliability(chances, answered[1]).ece == pytest.approx(found)
