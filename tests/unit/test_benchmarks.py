"""The benchmarks' own scoring: it judges the project, so it is held to figures worked out by hand."""

import numpy as np
import pytest

from benchmarks import data, detection, place, scoring, tables


def detections(*rows: tuple[int, float, tuple[float, float, float, float]]) -> detection.Detections:
    classes, scores, boxes = zip(*rows, strict=True)
    return detection.Detections(np.array(classes), np.array(scores), np.array(boxes))


LEFT, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)
TRUTH = data.Boxes(np.array([3, 3]), np.array([LEFT, RIGHT]))


def test_overlap_of_boxes() -> None:
    found = detection.overlaps(np.array([LEFT]), np.array([LEFT, RIGHT, (0.2, 0.0, 0.6, 0.4)]))
    np.testing.assert_allclose(found, [[1, 0, 1 / 3]])


def test_average_precision_of_all_some_and_none() -> None:
    both = detection.match(detections((3, 0.9, LEFT), (3, 0.8, RIGHT)), TRUTH)
    assert detection.mean_average_precision([both]) == pytest.approx(100)
    one = detection.match(detections((3, 0.9, LEFT)), TRUTH)
    assert detection.mean_average_precision([one]) == pytest.approx(100 * 51 / 101)  # the recalls 0, 0.01 … 0.5
    wrong_class = detection.match(detections((4, 0.9, LEFT)), TRUTH)
    assert detection.mean_average_precision([wrong_class]) == 0


def test_a_true_box_is_found_once() -> None:
    matches = detection.match(detections((3, 0.9, LEFT), (3, 0.8, LEFT)), TRUTH)
    assert matches.hits.tolist() == [True, False]


def test_no_drop_against_itself() -> None:
    images = [detection.match(detections((3, 0.9, LEFT)), TRUTH)] * 4
    assert detection.drop_interval(images, images, draws=20) == (0, 0)


def test_a_cell_is_decoded() -> None:
    output = np.zeros((85, 22, 22), np.float32)
    output[0, 5, 7], output[5 + 2, 5, 7] = 0.9, 0.5  # objectness, class 2; t = 0: the cell's corner, half the image
    found = detection.decode(output)
    assert found.classes.tolist() == [2]
    np.testing.assert_allclose(found.scores, [0.45])
    np.testing.assert_allclose(found.boxes[0], [7 / 22 - 0.25, 5 / 22 - 0.25, 7 / 22 + 0.25, 5 / 22 + 0.25])


def test_bilinear_resize() -> None:
    ramp = np.arange(8, dtype=np.float32).reshape(1, 8, 1).repeat(4, 0) * 4
    np.testing.assert_array_equal(data.resize_bilinear(ramp, 4, 8), ramp)
    np.testing.assert_array_equal(data.resize_bilinear(ramp, 2, 4)[:, :, 0], [[2, 10, 18, 26]] * 2)


def test_sqnr_and_ratio() -> None:
    assert scoring.sqnr_db(np.full(10, 10.0), np.full(10, 9.0)) == pytest.approx(20)
    ratio, low, high = scoring.paired_ratio([2.0] * 9, [1.0] * 9)
    assert (ratio, low, high) == (2, 2, 2)


def test_intervals_of_accuracy() -> None:
    assert scoring.share_interval([True] * 81 + [False] * 182) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe
    right = [True] * 80 + [False] * 20
    assert scoring.paired_points(right, right) == (0, 0, 0)
    points, low, high = scoring.paired_points(right, [True] * 60 + [False] * 40)
    assert points == pytest.approx(20)
    assert (low, high) == pytest.approx((20 - 7.84, 20 + 7.84), abs=1.1)  # 1.96 · sqrt(0.2 · 0.8 / 100)


def test_only_the_marked_section_changes() -> None:
    begin, end = tables.marks("x")
    text = tables.replace_section(f"before\n{begin}\nold\n{end}\nafter\n", "x", "new")
    assert text == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(ValueError, match="no section"):
        tables.replace_section("nothing", "x", "new")


def test_absent_data_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("EDGEOPT_BENCH_DATA", f"{tmp_path}/absent")
    with pytest.raises(place.CannotRunError, match="EDGEOPT_BENCH_DATA"):
        data.trained_models()
