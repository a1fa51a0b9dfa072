"""What the comparison of bit budgets says."""

from __future__ import annotations

from bit_budget import Row, table


def _row(asked: float, label: str, smaller: float, db: float) -> Row:
    return Row(asked, label, smaller, "bits-per-byte", db / 1000, db)


def test_the_best_of_one_precision_that_fits_stands_beside_the_mixture() -> None:
    uniform = [_row(0, "a", 4.0, 30.0), _row(0, "b", 6.0, 20.0), _row(0, "c", 8.0, 10.0)]
    mixed = [_row(6.0, "1 a, 1 c", 6.01, 25.0), _row(4.5, "2 a", 4.6, 28.0), _row(9, "d", 9, 1.0)]
    lines = list(table("m", uniform, mixed))
    assert (
        lines[4]
        == "| 1/4.50 | b | 1/6.00 | +0.0200 bits, 20.0 dB | 2 a | 1/4.60 | +0.0280 bits, 28.0 dB |"
    )
    assert lines[5].startswith("| 1/6.00 | b | 1/6.00 |")
    assert lines[6].startswith("| 1/9.00 | none |  |  | d |")


def test_labels() -> None:
    assert Row(0, "a", 4.0, "accuracy", 0.01, 20.0).lost == "+1.00 points, 20.0 dB"
    assert Row(0, "a", 4.0, "", 0.0, 20.0).lost == "20.0 dB"
