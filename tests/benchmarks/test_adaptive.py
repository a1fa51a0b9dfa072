"""What streams of photographs hold, and what is counted of what comes of them."""

from __future__ import annotations

import numpy as np
import pytest
from adaptive import ALLOWED, JUDGED, SLOW, USUAL, Row, Stream, streams, verdict
from disturbances import NONE, Photographs, contrast, gain, only


@pytest.fixture(scope="module")
def digits() -> Photographs:
    return Photographs.of("digits_vit")


def test_a_sudden_change_happens_at_once(digits: Photographs) -> None:
    dark, bright = gain(0.5), gain(2.0)
    data = digits.stream([(500, dark, dark), (50, bright, bright)])
    assert data["image"].shape == (550, 1, 32, 32) and data["labels"].shape == (550,)
    assert data["image"][:500].max() == 0.5 and data["image"][500:].max() == 2.0
    # All held-out ones first, then some of them again, each with its label.
    held_out = {
        (2 * image).tobytes(): label
        for image, label in zip(data["image"][:450], data["labels"], strict=False)
    }
    assert len(held_out) == 450
    for image, label in zip(data["image"][450:500], data["labels"][450:500], strict=True):
        assert held_out[(2 * image).tobytes()] == label


def test_a_slow_change_is_even(digits: Photographs) -> None:
    data = digits.stream([(101, NONE, gain(3.0))])
    plain = digits.stream([(101, NONE, NONE)])
    assert np.array_equal(data["labels"], plain["labels"])
    for at, factor in ((0, 1.0), (50, 2.0), (100, 3.0)):
        np.testing.assert_allclose(data["image"][at], factor * plain["image"][at], rtol=1e-6)


def test_classes_and_contrast(digits: Photographs) -> None:
    assert set(digits.stream([(40, only(3, 5), only(3, 5))])["labels"]) == {3, 5}
    assert set(digits.usual(only(3))["labels"]) == {3}
    flat, plain = (digits.usual(change)["image"] for change in (contrast(0.5), NONE))
    np.testing.assert_allclose(flat.mean((1, 2, 3)), plain.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(flat.std((1, 2, 3)), plain.std((1, 2, 3)) / 2, rtol=1e-5)


def test_streams_are_told_apart_and_fit_into_twentieths() -> None:
    found = streams()
    assert len({stream.name for stream in found}) == len(found)
    for stream in found:
        total = sum(count for count, _, _ in stream.parts())
        assert total == USUAL + ALLOWED + JUDGED + SLOW * stream.is_slow
        assert JUDGED % (total // 20) == 0 == total % 20


def test_only_what_static_models_do_not_bear_counts() -> None:
    def row(before: float, floating: float, static: float, adaptive: float) -> Row:
        return Row(before, floating, static, adaptive, None, (), 0.0)

    rows = {
        Stream("met", NONE, gain(2)): row(0.8, 0.8, 0.7, 0.8),
        Stream("missed", NONE, gain(2)): row(0.8, 0.8, 0.7, 0.79),
        Stream("borne", NONE, gain(2)): row(0.8, 0.8, 0.79, 0.7),
        Stream("suffers", NONE, gain(2)): row(0.8, 0.7, 0.5, 0.5),
    }
    text = verdict(rows)
    assert "in 2 streams" in text and "in 1 of them, not in streams/missed/" in text
