"""Agreement of detected boxes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.verify.metrics import choose_metric, paired_drop
from onnxq.verify.metrics.boxes import overlaps
from onnxq.verify.metrics.detection import Detection

SQUARE = [0.0, 0.0, 2.0, 2.0]
BESIDE = [1.0, 0.0, 3.0, 2.0]
FAR = [10.0, 10.0, 12.0, 12.0]


def outputs(boxes: list[list[float]], scores: list[float] | list[list[float]]) -> dict[str, object]:
    return {"b": np.array([boxes], np.float32), "s": np.array([scores], np.float32)}


def value(theirs: dict[str, object], ours: dict[str, object], **options: object) -> float:
    metric = Detection("b", "s", **options)  # type: ignore[arg-type]
    metric.add(theirs, None, 1, ours)
    return metric.result().value


def test_the_overlap_is_that_of_areas_on_a_grid() -> None:
    boxes = np.random.default_rng(0).integers(0, 6, (12, 2, 2))
    boxes = np.concatenate([boxes.min(1), boxes.max(1)], axis=1)
    y, x = np.mgrid[:6, :6]
    inside = [(x >= a) & (x < c) & (y >= b) & (y < d) for a, b, c, d in boxes]
    found = overlaps(*(boxes.astype(np.float64),) * 2)
    for i, one in enumerate(inside):
        for j, other in enumerate(inside):
            union = (one | other).sum()
            is_same = (boxes[i] == boxes[j]).all()
            wanted = (one & other).sum() / union if union else float(is_same)
            assert found[i, j] == pytest.approx(wanted)


def test_boxes_match_by_overlap_class_and_score() -> None:
    ours = outputs([SQUARE, FAR, FAR], [0.9, 0.8, 0.1])
    assert value(ours, ours) == 1.0
    # The squares share a third; the box far off is not sure enough for the candidate.
    theirs = outputs([BESIDE, FAR, FAR], [0.9, 0.4, 0.1])
    assert value(theirs, ours) == 0.0
    assert value(theirs, ours, iou=0.3) == pytest.approx(2 * 1 / (2 + 1))
    assert value(theirs, ours, iou=0.3, threshold=0.3) == 1.0
    classes = outputs([SQUARE, FAR], [[0, 0.9, 0], [0.7, 0, 0.6]])
    others = outputs([SQUARE, FAR], [[0, 0, 0.9], [0.7, 0, 0.6]])
    assert value(others, classes) == 0.5
    assert value(others, classes, background=0) == 0.5
    assert value(others, classes, background=0, threshold=0.65) == 0.0


def test_a_box_is_taken_once() -> None:
    ours = outputs([SQUARE, FAR], [0.9, 0.9])
    twice = outputs([SQUARE, SQUARE], [0.9, 0.8])
    assert value(twice, ours) == 0.5
    assert value(twice, ours, nms=0.5) == pytest.approx(2 / 3)


def test_centres_and_one_sample_without_its_axis() -> None:
    ours = outputs([SQUARE], [0.9])
    centred = {"b": np.array([[1.0, 1.0, 2.0, 2.0]]), "s": np.array([0.9])}
    metric = choose_metric("detection{boxes=b, scores=s, centers=true}", False, None)
    assert isinstance(metric, Detection)
    corners = Detection("b", "s").detected(ours, 1)[0]
    assert metric.detected(centred, 1)[0][0].tolist() == corners[0].tolist()


def test_a_drop_has_an_interval() -> None:
    ours, worse = outputs([SQUARE, FAR], [0.9, 0.9]), outputs([SQUARE, FAR], [0.9, 0.2])
    metrics = Detection("b", "s"), Detection("b", "s")
    for number in range(20):
        for metric, theirs in zip(metrics, (ours, ours if number % 4 else worse), strict=True):
            metric.add(theirs, None, 1, ours)
    drop = paired_drop(*metrics)
    assert (drop.float, drop.drop) == pytest.approx((1.0, 1 - 70 / 75))
    assert drop.confidence is not None
    assert 0 < drop.confidence[0] < drop.drop < drop.confidence[1] < 0.2


def test_no_box_anywhere_is_no_agreement() -> None:
    ours = outputs([SQUARE], [0.9])
    with pytest.raises(InputError, match=r"detection\{.*threshold=50.*no box is detected in any"):
        value(outputs([FAR], [np.nan]), ours, threshold=50)
    empty = {"b": np.zeros((1, 0, 4)), "s": np.zeros((1, 0))}
    with pytest.raises(InputError, match="no box is detected in any sample"):
        value(empty, empty)
    assert value(empty, ours) == 0.0


@pytest.mark.parametrize("option", ["threshold=nan", "iou=-2", "iou=0", "iou=nan", "nms=1.5"])
def test_options_that_match_anything(option: str) -> None:
    with pytest.raises(InputError, match=f"option '{option.partition('=')[0]}' of metric"):
        choose_metric(f"detection{{boxes=b, scores=s, {option}}}", False, None)


def test_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="needs option 'boxes'"):
        choose_metric("detection", False, None)
    ours = outputs([SQUARE], [0.9])
    with pytest.raises(InputError, match="no output 'c'; it has: b, s"):
        Detection("b", "c").add(ours, None, 1, ours)
    with pytest.raises(InputError, match=r"'s' is \[1, 1\] and 'b' \[1, 1, 4\]"):
        Detection("s", "b").add(ours, None, 1, ours)
    twice = {name: np.repeat(value, 2, axis=0) for name, value in ours.items()}
    with pytest.raises(InputError, match="'b' holds 1 samples of one model and 2 of the other"):
        Detection("b", "s").add(ours, None, 2, twice)
    with pytest.raises(InputError, match="does not run here"):
        Detection("b", "s").add(ours, None, 1)
    with pytest.raises(InputError, match="'background' of metric detection is 4"):
        Detection("b", "s", background=4).add(ours, None, 1, ours)
