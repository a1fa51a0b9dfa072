"""Gram matrices against numpy in float64, windows taken one by one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.data import Dataset, read
from onnxq.errors import InputError
from onnxq.ir import Graph, load, to_proto
from onnxq.needs import GramOf, Windows
from onnxq.observe import GramMatrix, observe
from onnxq.observe.gram import GramObserver
from onnxq.runtime import Session
from tests.observe.observing import shown

MODELS = Path(__file__).resolve().parents[2] / "models"


def gram(observer: GramObserver) -> GramMatrix:
    found = observer.result()
    assert found is not None
    return found


def taken_one_by_one(values: np.ndarray, windows: Windows) -> np.ndarray:
    """Windows as (groups, positions, columns), from the definition of Conv."""
    axes = len(windows.kernel_shape)
    strides, dilations = windows.strides or (1,) * axes, windows.dilations or (1,) * axes
    pads = windows.pads or (0,) * 2 * axes
    spatial = values.shape[2:]
    counts = [
        (spatial[a] + pads[a] + pads[axes + a] - (windows.kernel_shape[a] - 1) * dilations[a] - 1)
        // strides[a]
        + 1
        for a in range(axes)
    ]
    each = values.shape[1] // windows.group
    rows = []
    for sample, group in itertools.product(range(len(values)), range(windows.group)):
        for position in itertools.product(*map(range, counts)):
            row = []
            for channel in range(group * each, (group + 1) * each):
                for offset in itertools.product(*map(range, windows.kernel_shape)):
                    at = [
                        position[a] * strides[a] + offset[a] * dilations[a] - pads[a]
                        for a in range(axes)
                    ]
                    inside = all(0 <= i < n for i, n in zip(at, spatial, strict=True))
                    row.append(float(values[(sample, channel, *at)]) if inside else 0.0)
            rows.append((group, row))
    return np.array([[row for g, row in rows if g == group] for group in range(windows.group)])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(1, 6), st.data())
def test_rows_against_numpy_whatever_the_batches(
    counts: list[int], columns: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(len(counts))
    kept = (rng.standard_normal((sum(counts), columns)) * 10.0 ** rng.integers(-3, 4)).astype("f4")
    batches = np.split(kept, np.cumsum(counts)[:-1])
    found = gram(shown(GramObserver(), batches))
    wide = kept.astype(np.float64)
    bound = np.abs(wide).T @ np.abs(wide)
    assert (np.abs(found.matrix[0] - wide.T @ wide) <= 1e-13 * bound).all()
    assert found.rows == len(kept) and np.array_equal(found.matrix, found.matrix.mT)
    assert np.array_equal(found.matrix, gram(shown(GramObserver(), [kept])).matrix)
    cut = data.draw(st.integers(0, len(batches)))
    shards = [shown(GramObserver(), part).result() for part in (batches[:cut], batches[cut:])]
    if shards[0] is not None and shards[1] is not None:
        merged = shards[1].merge(shards[0])
        assert (np.abs(merged.matrix[0] - wide.T @ wide) <= 1e-13 * bound).all()
        assert merged.rows == len(kept)


def test_all_axes_but_the_last_are_rows() -> None:
    kept = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    found = gram(shown(GramObserver(), [kept]))
    rows = kept.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(found.matrix, (rows.T @ rows)[None], rtol=1e-13, atol=1e-13)
    assert found.rows == 30


@settings(max_examples=40, deadline=None)
@given(data=st.data(), axes=st.integers(1, 3), group=st.integers(1, 3))
def test_windows_against_the_definition(data: st.DataObject, axes: int, group: int) -> None:
    def drawn(low: int, high: int, count: int = axes) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(count))

    windows = Windows(drawn(1, 3), drawn(1, 3), drawn(0, 2, 2 * axes), drawn(1, 2), group)
    spatial = drawn(5, 6)
    shape = (2, group * data.draw(st.integers(1, 2)), *spatial)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = gram(shown(GramObserver(windows), [values]))
    rows = taken_one_by_one(values, windows)
    np.testing.assert_allclose(found.matrix, rows.swapaxes(1, 2) @ rows, rtol=1e-12, atol=1e-12)
    assert found.rows == rows.shape[1]


def test_a_large_image_is_cut_into_blocks_that_add_up() -> None:
    windows = Windows((3, 3), pads=(1, 1, 1, 1))
    image = np.random.default_rng(0).standard_normal((2, 2, 40, 33)).astype(np.float32)
    found = gram(shown(GramObserver(windows), [image]))
    rows = taken_one_by_one(image, windows)
    np.testing.assert_allclose(found.matrix, rows.mT @ rows, rtol=1e-11, atol=1e-11)
    apart = gram(shown(GramObserver(windows), [image[:1], image[1:]]))
    assert np.array_equal(apart.matrix, found.matrix)


def test_windows_are_in_the_order_of_the_weight() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 7, 7] x, float[6, 2, 3, 2] w) => (float[N, 6, A, B] y)
        { y = Conv<group = 2, strides = [2, 1], pads = [1, 0, 0, 1], dilations = [1, 2]>(x, w) }""")
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((3, 4, 7, 7)).astype("f4"),
        "w": rng.standard_normal((6, 2, 3, 2)).astype("f4"),
    }
    y = Session(to_proto(graph)).run(feeds)["y"].astype(np.float64)
    windows = Windows((3, 2), (2, 1), (1, 0, 0, 1), (1, 2), 2)
    found = gram(shown(GramObserver(windows), [feeds["x"]]))
    # The sum of a channel's squares is its weight's quadratic form in the Gram matrix.
    weights = feeds["w"].astype(np.float64).reshape(2, 3, -1)
    squares = np.einsum("gok,gkl,gol->go", weights, found.matrix, weights)
    wanted = (y**2).sum(axis=(0, 2, 3)).reshape(2, 3)
    np.testing.assert_allclose(squares, wanted, rtol=1e-5)


def test_what_is_not_finite_shows() -> None:
    values = np.array([[1.0, np.nan], [np.inf, 2.0]], np.float32)
    assert not np.isfinite(gram(shown(GramObserver(), [values])).matrix).any()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_without_values_there_is_no_matrix(shape: tuple[int, ...]) -> None:
    assert shown(GramObserver(), [np.zeros(shape, np.float32)]).result() is None


def test_rows_have_to_agree() -> None:
    observer = shown(GramObserver(), [np.zeros((2, 3), np.float32)])
    with pytest.raises(ValueError, match="they have 4 columns, and had 3 before"):
        shown(observer, [np.zeros((2, 4), np.float32)])
    other = gram(shown(GramObserver(), [np.zeros((2, 4), np.float32)]))
    with pytest.raises(ValueError, match="different lengths"):
        gram(observer).merge(other)


@pytest.mark.parametrize(
    ("need", "said"),
    [
        (GramOf("s"), "'s' cannot be observed by rows: it is a scalar"),
        (GramOf("x", Windows((3, 3))), r"by windows of 2 axes in 1 groups: its shape is \(2, 3\)"),
        (GramOf("x", Windows((), group=2)), r"in 2 groups: its shape is \(2, 3\)"),
    ],
)
def test_what_has_no_rows_or_windows(need: GramOf, said: str) -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3] x) => (float s) { s = ReduceSum<keepdims = 0>(x) }""")
    with pytest.raises(InputError, match=said):
        observe(graph, _data(graph, x=np.ones((2, 3), np.float32)), [need])


def _data(graph: Graph, batch_size: int | None = None, **arrays: np.ndarray) -> Dataset:
    return read(arrays, Session(to_proto(graph)).inputs, batch_size=batch_size)


def test_a_real_model_against_its_values() -> None:
    graph = load(MODELS / "digits_vit.onnx")
    with np.load(MODELS / "digits.npz") as file:
        images = file["image"][:12]
    names = [
        node.inputs[0].name
        for node in graph.nodes()
        if node.is_op("MatMul") and node.inputs[0] and node.inputs[1] and node.inputs[1].data
    ][:4]
    assert names
    needs = [GramOf(name) for name in names]
    found = observe(graph, _data(graph, 5, image=images), needs)
    whole = graph.copy()
    for name in names:
        whole.add_output(whole.values[name])
    values = Session(to_proto(whole)).run({"image": images}, names)
    for need in needs:
        rows = values[need.tensor].reshape(-1, values[need.tensor].shape[-1]).astype(np.float64)
        wanted = rows.T @ rows
        np.testing.assert_allclose(
            found.get(need).matrix[0], wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max()
        )
        assert found.get(need).rows == len(rows)
    # One tensor at a time, in parts of batches: not a bit differs.
    sizes = [found.get(need).matrix.nbytes for need in needs]
    limit = (3 << 20) + 4 * max(sizes)
    limited = observe(graph, _data(graph, 5, image=images), needs, memory_limit=limit)
    for need in needs:
        assert np.array_equal(limited.get(need).matrix, found.get(need).matrix)
