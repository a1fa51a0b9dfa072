"""How numbers and names are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.report import words
from onnxq.verify.gates import Gate
from onnxq.verify.result import GateFacts, MetricFacts

ACCURACY = MetricFacts("accuracy", 0.99, 0.98, 0.01, 10, (-0.00001, 0.02))
BITS = MetricFacts("bits-per-byte", 2.0, 2.1, 0.1, 10, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1310000, "1.31 MB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (8 * 10**9, "8 GB"),
        (2 * 10**12, "2 TB"),
        (123456 * 10**12, "123,456 TB"),
    ],
)
def test_size(value: int, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (3.871, "3.87x smaller"),
        (1.0, "1.00x smaller"),
        (0.25, "4.00x larger"),
        (0.0, "0.00x smaller"),
    ],
)
def test_change_of_size(ratio: float, text: str) -> None:
    assert words.change(ratio) == text


@given(st.floats(1e-3, 1e5), st.floats(1e-3, 1e5), st.floats(0.1, 10.0))
def test_a_ratio_far_from_that_of_the_times_is_unsteady(
    before: float, after: float, factor: float
) -> None:
    wanted = not 1 / 1.2 <= factor <= 1.2
    if abs(abs(math.log(factor)) - math.log(1.2)) > 1e-6:
        assert words.is_unsteady(before, after, before / after * factor) == wanted


@pytest.mark.parametrize("numbers", [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)])
def test_times_of_zero_tell_nothing(numbers: tuple[float, float, float]) -> None:
    assert not words.is_unsteady(*numbers)


@given(st.integers(0, 10**18))
def test_sizes_are_right_to_three_digits(value: int) -> None:
    number, unit = words.size(value).split()
    scale = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert float(number.replace(",", "")) * scale == pytest.approx(value, rel=0.00501)
    assert "e" not in number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.1234, "0.123"),
        (0.99949, "0.999"),
        (0.9996, "1.00"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1234567.8, "1,234,568"),
        (-12.34, "-12.3"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert words.significant(value) == text


@given(st.floats(1.0, 1e15))
def test_three_digits_are_right(value: float) -> None:
    text = words.significant(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.00501)
    assert "e" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0032, "3.20 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (8.1, "8.10 s"),
        (99.9, "99.9 s"),
        (99.96, "1 min 40 s"),
        (125.2, "2 min 5 s"),
        (3599.9, "60 min 0 s"),
    ],
)
def test_duration(value: float, text: str) -> None:
    assert words.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(31.24, "31.2 dB"), (math.inf, "exact"), (-math.inf, "-inf dB"), (-0.01, "0.0 dB")],
)
def test_decibels(value: float, text: str) -> None:
    assert words.decibels(value) == text


def test_metrics() -> None:
    assert words.metric_value(ACCURACY, 0.98765) == "98.77 %"
    assert words.metric_drop(ACCURACY, -0.000001) == "0.00 points"
    assert words.drop_interval(ACCURACY) == "0.00 to 2.00 points"
    assert words.metric_value(BITS, 2.123456) == "2.123"
    assert words.metric_drop(BITS, -0.0) == "0"
    assert words.drop_interval(BITS) == ""
    assert words.drop_interval(MetricFacts("m", 1, 1, 0, 1, (-0.5, 1.5))) == "-0.5 to 1.5"


def test_counts() -> None:
    assert words.count(1, "sample") == "1 sample"
    assert words.count(0, "sample") == "0 samples"
    assert words.count(12345, "sample") == "12,345 samples"
    assert words.listed({}) == "none"
    assert words.listed({"b": 1, "a": 1, "c": 5}) == "c 5, a 1, b 1"
    assert words.listed({"b": 1, "a": 1, "c": 5}, 1) == "c 5, 2 more"
    assert words.listed({"a\n": 1}) == "a\\n 1"
    assert words.ratio(2.087) == "2.09"
    assert words.milliseconds(1234.0) == "1,234 ms"


@given(st.text(st.characters(codec=None)))
def test_printable_text_is_printable_and_else_unchanged(text: str) -> None:
    shown = words.printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
    shown.encode()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_said_as_it_is(value: float) -> None:
    assert words.duration(value) == f"{value} s"
    assert not words.is_unsteady(1.0, value, 1.0)
    assert words.loss("noise", value) == f"{-value} dB".replace("-nan", "nan")


@pytest.mark.parametrize(
    ("expr", "value", "text"),
    [
        ("speedup>=1", 0.99996, "0.99996"),
        ("speedup>=1", 0.9, "0.9"),
        ("sqnr>30", 30.0, "30"),
        ("drop<=0", 1e-12, "1e-12"),
        ("sqnr<30.000001", 30.0000005, "30"),
        ("sqnr>30.000001", 30.000002, "30.000002"),
        ("sqnr>=1", -math.inf, "-inf"),
        ("drop!=0", math.nan, "nan"),
        ("drop<=0", None, "not measured"),
    ],
)
def test_what_is_measured_shows_the_verdict(expr: str, value: float | None, text: str) -> None:
    held = value is not None and Gate.parse(expr).holds(value)
    assert words.gate_value(GateFacts(expr, value, held)) == text
