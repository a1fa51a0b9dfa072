"""Rows drawn and samples kept: the same whatever the order, the batches and the shards."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.observe import SampledRows, SampledValues
from onnxq.observe.observer import Observer
from onnxq.observe.sampling import SamplesObserver


def _values(samples: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(samples).standard_normal((samples, *shape)).astype(np.float32)


def _same(left: SampledRows, right: SampledRows) -> bool:
    return np.array_equal(left.hashes, right.hashes) and np.array_equal(left.rows, right.rows)


@settings(max_examples=40)
@given(st.integers(2, 20), st.integers(1, 5), st.integers(1, 30), st.integers(), st.data())
def test_order_and_shards_change_no_row(
    samples: int, rows: int, wanted: int, seed: int, data: st.DataObject
) -> None:
    values = _values(samples, rows, 3)
    whole = SampledRows.of(values, np.arange(samples), wanted, seed)
    order = np.array(data.draw(st.permutations(range(samples))))
    cut = data.draw(st.integers(1, samples - 1))
    first, second = (SampledRows.of(values[o], o, wanted, seed) for o in np.split(order, [cut]))
    assert _same(first.merge(second), whole) and _same(second.merge(first), whole)
    assert len(whole.rows) == min(wanted, samples * rows)
    # Without replacement, and a larger sample begins with the smaller one.
    assert len({row.tobytes() for row in whole.rows}) == len(whole.rows)
    more = SampledRows.of(values, np.arange(samples), wanted + 5, seed)
    assert np.array_equal(more.rows[: len(whole.rows)], whole.rows)
    # Samples whose axis was run together with another one.
    flat = SampledRows.of(values.reshape(-1, 3), np.arange(samples), wanted, seed)
    assert _same(flat, whole)


def test_the_same_rows_are_drawn_of_all_tensors() -> None:
    values = _values(50, 7, 3)
    of_values = SampledRows.of(values, np.arange(50), 20, 1)
    of_sums = SampledRows.of(values.sum(axis=-1, keepdims=True), np.arange(50), 20, 1)
    assert np.array_equal(of_values.rows.sum(axis=-1, keepdims=True), of_sums.rows)


def test_rows_are_drawn_evenly() -> None:
    samples, rows, wanted, seeds = 20, 10, 40, 200
    values = np.arange(samples * rows, dtype=np.float32).reshape(samples, rows, 1)
    drawn = np.zeros(samples * rows)
    for seed in range(seeds):
        found = SampledRows.of(values, np.arange(samples), wanted, seed).rows
        drawn[found.astype(int).reshape(-1)] += 1
    expected = seeds * wanted / (samples * rows)
    # Of each row alone, of samples and of places: within five standard deviations.
    deviation = np.sqrt(expected * (1 - wanted / (samples * rows)))
    assert np.abs(drawn - expected).max() < 5 * deviation
    table = drawn.reshape(samples, rows)
    assert np.abs(table.sum(axis=1) - rows * expected).max() < 5 * deviation * np.sqrt(rows)
    assert np.abs(table.sum(axis=0) - samples * expected).max() < 5 * deviation * np.sqrt(samples)
    other = SampledRows.of(values, np.arange(samples), wanted, 0).rows
    assert not np.array_equal(other, SampledRows.of(values, np.arange(samples), wanted, 1).rows)


def test_rows_that_cannot_be_drawn_or_merged() -> None:
    with pytest.raises(ValueError, match="by rows: it is a scalar"):
        SampledRows.of(np.float32(1) * np.ones(()), np.arange(1), 2, 0)
    found = SampledRows.of(_values(2, 3), np.arange(2), 2, 0)
    for other in (SampledRows.of(_values(2, 4), np.arange(2), 2, 0), SampledRows(3, *_of(found))):
        with pytest.raises(ValueError, match="differ in length, or in the number"):
            found.merge(other)


def _of(found: SampledRows) -> tuple[np.ndarray, np.ndarray]:
    return found.hashes, found.rows


def _kept(wanted: int, parts: list[tuple[np.ndarray, np.ndarray]]) -> SampledValues:
    with TemporaryDirectory() as folder:
        observer: Observer = SamplesObserver(wanted, Path(folder, "samples"))
        for values, samples in parts:
            observer.add(values, samples)
        found = observer.result()
    assert isinstance(found, SampledValues)
    return found


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 12), st.data())
def test_the_first_samples_are_kept(samples: int, wanted: int, data: st.DataObject) -> None:
    values, cut = _values(samples, 2, 3), data.draw(st.integers(0, samples))
    parts = [p for p in np.split(np.arange(samples), [cut]) if len(p)]
    found = _kept(wanted, [(values[p], p) for p in parts])
    assert len(found) == min(wanted, samples)
    for i, value in enumerate(found):
        assert np.array_equal(value, values[i : i + 1])
    # Shards, each with every other sample.
    odd, even = np.arange(1, samples, 2), np.arange(0, samples, 2)
    if len(odd):
        shards = [_kept(wanted, [(values[p], p)]) for p in (odd, even)]
        merged = shards[0].merge(shards[1])
        for name in ("samples", "shapes", "flat"):
            assert np.array_equal(getattr(merged, name), getattr(found, name))


def test_samples_may_have_different_shapes() -> None:
    lengths = (3, 0, 5)
    values = [_values(1, n, 2) for n in lengths]
    found = _kept(3, [(v, np.array([i])) for i, v in enumerate(values)])
    assert [v.shape for v in found] == [(1, n, 2) for n in lengths]
    assert all(np.array_equal(a, b) for a, b in zip(found, values, strict=True))
    assert np.array_equal(found[-1], values[-1])
    with pytest.raises(IndexError):
        found[3]


@pytest.mark.parametrize(
    ("given", "kept"), [("i8", "i8"), ("?", "?"), ("f2", "f4"), ("f8", "f4"), ("u1", "u1")]
)
def test_types_of_samples(given: str, kept: str) -> None:
    values = np.array([[1, 0], [1, 1]], given)
    found = _kept(2, [(values, np.arange(2))])
    assert found.flat.dtype == kept and np.array_equal(found[1], values[1:])


def test_a_single_sample_need_not_have_an_axis_of_its_own() -> None:
    values = _values(4, 2)
    assert np.array_equal(_kept(1, [(values, np.array([0]))])[0], values)
    assert np.array_equal(_kept(1, [(np.float32(7) * np.ones(()), np.array([0]))])[0], 7)


def test_empty_samples() -> None:
    assert _kept(1, [(np.zeros((1, 0), np.float32), np.array([0]))])[0].shape == (1, 0)
    assert SamplesObserver(1, Path("none")).result() is None


def test_samples_that_cannot_be_kept_or_merged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"by sample: its shape is .* 2 samples; give .* of one"):
        _kept(2, [(_values(3, 2), np.arange(2))])
    observer = SamplesObserver(2, tmp_path / "samples")
    observer.add(np.ones((1, 2), np.float32), np.array([0]))
    with pytest.raises(ValueError, match="by sample: it is int64, and was float32 before"):
        observer.add(np.ones((1, 2), np.int64), np.array([1]))
    found = _kept(2, [(_values(1, 2), np.array([0]))])
    for other in (
        _kept(3, [(_values(1, 2), np.array([1]))]),
        _kept(2, [(np.ones((1, 2), np.int64), np.array([1]))]),
        _kept(2, [(_values(1, 2, 2), np.array([1]))]),
    ):
        with pytest.raises(ValueError, match="of different kinds"):
            found.merge(other)
