"""Observing the union of needs, and the folder that keeps what was found."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import Batch, Dataset, read
from onnxq.data.dataset import Source
from onnxq.errors import InputError
from onnxq.ir import Graph, to_proto
from onnxq.needs import (
    ChannelsOf,
    CrossGramOf,
    GramOf,
    MovingRangeOf,
    Need,
    RangeOf,
    RowsOf,
    SamplesOf,
    Windows,
)
from onnxq.observe import GramMatrix, Observations, merge_observations, observe
from onnxq.runtime import Session
from tests.runtime.spreading import Spread

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2, 6] x, int64[N, 2] i) => (float[N, 2, 4] y)
<float[6, 4] w = {1, -2, 3, 4, 5, -6, 7, 8, 9, -10, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}>
{
    h = MatMul(x, w)
    y = Relu(h)
}"""
NEEDS: tuple[Need, ...] = (
    RangeOf("h", histogram=True),
    RangeOf("y"),
    MovingRangeOf("y", 0.5),
    ChannelsOf("h", -1),
    GramOf("x"),
    GramOf("x", Windows((3,), pads=(1, 1), group=2)),
    GramOf("y"),
    RowsOf("y", 7),
    SamplesOf("h", 5),
    SamplesOf("i", 5),
)
BY_ORDER = (MovingRangeOf, ChannelsOf)


def _graph() -> Graph:
    return Graph.from_text(TEXT)


def _arrays(count: int = 13) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    # Numbers whose products and sums float32 holds exactly, in whatever order they are summed.
    x = rng.integers(-50, 50, (count, 2, 6)).astype(np.float32)
    return {"x": x, "i": np.arange(2 * count).reshape(count, 2)}


def _data(graph: Graph, size: int | None = None, **arrays: np.ndarray) -> Dataset:
    return read(arrays or _arrays(), Session(to_proto(graph)).inputs, batch_size=size)


def _plain(result: object) -> object:
    """Everything in a result, to be compared."""
    if not dataclasses.is_dataclass(result):
        return result.tolist() if isinstance(result, np.ndarray) else result
    fields = ((f.name, getattr(result, f.name)) for f in dataclasses.fields(result))
    return [type(result), *((name, _plain(value)) for name, value in fields)]


def _everything(found: Observations) -> list[object]:
    facts = [found.samples, found.model_sha256, found.seed]
    return [*facts, {need: _plain(result) for need, result in found.results.items()}]


def test_all_needs_in_one_pass() -> None:
    graph, arrays = _graph(), _arrays()
    found = observe(graph, _data(graph, 4), NEEDS, model_sha256="ab", seed=3)
    assert set(found.results) == set(NEEDS)
    assert (found.samples, found.model_sha256, found.seed) == (13, "ab", 3)
    h = arrays["x"].astype(np.float64) @ graph.values["w"].numpy()
    y = np.maximum(h, 0)
    seen = found.get(NEEDS[0])
    assert (seen.min, seen.max, seen.histogram.total) == (h.min(), h.max(), h.size)
    assert np.array_equal(found.get(NEEDS[3]).sum, h.sum(axis=(0, 1)))
    x = arrays["x"].reshape(-1, 6).astype(np.float64)
    assert np.array_equal(found.get(NEEDS[4]).matrix[0], x.T @ x)
    assert found.get(NEEDS[5]).matrix.shape == (2, 3, 3)
    assert np.array_equal(found.get(NEEDS[6]).matrix[0], np.einsum("nrc,nrd->cd", y, y))
    assert {tuple(r) for r in found.get(NEEDS[7]).rows} <= {tuple(r) for r in y.reshape(-1, 4)}
    assert np.array_equal(np.concatenate([*found.get(NEEDS[8])]), h[:5])
    assert np.array_equal(np.concatenate([*found.get(NEEDS[9])]), arrays["i"][:5])
    assert found.get(NEEDS[9]).flat.dtype == np.int64
    statistics = found.statistics()
    assert set(statistics) == {"h", "y"} and statistics["h"].moving is None
    assert statistics["y"].moving == found.get(NEEDS[2]).moving()


class Noting(Source):
    """Notes the sizes of the batches that are read of another source."""

    def __init__(self, inner: Source) -> None:
        self.name, self.samples, self.stacked = inner.name, inner.samples, inner.stacked
        self.inner, self.sizes = inner, list[int]()

    def batches(self, units: np.ndarray) -> Iterator[Batch]:
        for batch in self.inner.batches(units):
            self.sizes.append(batch.size)
            yield batch


def test_nothing_is_fed_that_nothing_needs(tmp_path: Path) -> None:
    graph = _graph()
    source = Noting(_data(graph)._source)
    for folder in (None, tmp_path / "none"):
        found = observe(graph, Dataset(source), [], folder=folder, memory_limit=1)
        assert found == Observations() and not (tmp_path / "none").exists()
    assert not source.sizes


def test_an_input_alone_needs_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = _graph(), _data(_graph())

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr("onnxq.observe.feeding.Session", refused)
    for limit in (None, 1 << 22):
        found = observe(graph, data, [GramOf("x")], memory_limit=limit)
        assert found.get(GramOf("x")).rows == 26
    with pytest.raises(InputError, match=r"observing 'x' takes .* raise the limit"):
        observe(graph, data, [GramOf("x")], memory_limit=1000)


def test_no_more_is_fed_than_the_first_samples_need() -> None:
    graph = _graph()
    source = Noting(_data(graph, 2)._source)
    data, fed = Dataset(source), source.sizes
    found = observe(graph, data, [SamplesOf("x", 3)])
    assert sum(fed) <= 6 and found.samples == 4 and len(found.get(SamplesOf("x", 3))) == 3
    observe(graph, data, [SamplesOf("x", 3), RangeOf("x")])
    assert sum(fed) >= 13


def test_several_processes_find_the_same_bits_in_any_order(tmp_path: Path) -> None:
    graph, rng = _graph(), np.random.default_rng(0)
    arrays = _arrays(75) | {"x": rng.standard_normal((75, 2, 6)).astype(np.float32)}
    np.savez(tmp_path / "data.npz", **arrays)
    given = read(tmp_path / "data.npz", Session(to_proto(graph)).inputs, batch_size=8)
    for data in (_data(graph, 8, **arrays), given):
        for limit in (None, (4 << 20) + (1 << 16)):
            here = observe(graph, data, NEEDS, memory_limit=limit, threads=1)
            spread = Spread(tmp_path / "spread", seed=3)
            found = observe(graph, data, NEEDS, memory_limit=limit, threads=1, executor=spread)
            assert _everything(found) == _everything(here)
            assert spread.done == 3


def test_what_another_need_covers_is_found_once() -> None:
    graph = _graph()
    needs = [
        *(RangeOf("h"), RangeOf("h", True), RowsOf("h", 2), RowsOf("h", 9), SamplesOf("h", 1)),
        *(SamplesOf("h", 3), SamplesOf("y", 1), RowsOf("y", 1), RangeOf("y")),
    ]
    found = observe(graph, _data(graph), needs)
    kept = {RangeOf("h", True), RowsOf("h", 9), SamplesOf("h", 3)}
    assert set(found.results) == {*kept, *needs[-3:]}
    assert found.get(needs[0]) is found.get(needs[1])
    assert found.get(RowsOf("h", 10)) is None and found.get(GramOf("h")) is None
    assert not RangeOf("h", True).covers(SamplesOf("h", 0))


def test_what_fills_up_a_batch_is_not_observed() -> None:
    free, fixed = _graph(), Graph.from_text(TEXT.replace("[N", "[5"))
    wanted = observe(free, _data(free, 5), NEEDS)
    assert _everything(observe(fixed, _data(fixed), NEEDS)) == _everything(wanted)


@pytest.mark.parametrize("size", [1, 3, 13])
def test_a_memory_limit_changes_no_bit(size: int, tmp_path: Path) -> None:
    graph = _graph()
    wanted = observe(graph, _data(graph, size), NEEDS)
    # Both Gram matrices of the input fit, but no further tensor.
    limit = (4 << 20) + (1 << 16)
    for folder in (None, tmp_path):
        found = observe(graph, _data(graph, size), NEEDS, memory_limit=limit, folder=folder)
        assert _everything(found) == _everything(wanted)


def test_batches_change_no_bit_but_of_the_moving_average() -> None:
    graph = _graph()
    needs = [need for need in NEEDS if not isinstance(need, MovingRangeOf)]
    wanted = _everything(observe(graph, _data(graph), needs))
    for size in (1, 2, 5):
        assert _everything(observe(graph, _data(graph, size), needs)) == wanted


@pytest.mark.parametrize("in_folder", [False, True])
def test_shards_are_the_whole(in_folder: bool, tmp_path: Path) -> None:
    graph, arrays = _graph(), _arrays()
    needs = [need for need in NEEDS if not isinstance(need, MovingRangeOf)]
    wanted = observe(graph, _data(graph), needs, seed=5)
    shards = []
    for places in ([0, 3, 4, 12], [1, 2, 10], [5, 6, 7, 8, 9, 11]):
        data = _data(graph, 2, **{name: array[places] for name, array in arrays.items()})
        shards.append(observe(graph, data, needs, positions=places, seed=5))
    folder = tmp_path / "new" / "folder" if in_folder else None
    for order in (shards, shards[::-1]):
        # Sums are exact here, for they are of whole numbers.
        assert _everything(merge_observations(order, folder)) == _everything(wanted)


def test_a_folder_reads_back(tmp_path: Path) -> None:
    graph = _graph()
    wanted = observe(graph, _data(graph), NEEDS, model_sha256="ab", seed=7)
    wanted.save(tmp_path / "a" / "b")
    found = Observations.load(tmp_path / "a" / "b")
    assert _everything(found) == _everything(wanted)
    matrix = found.get(GramOf("x")).matrix
    assert not matrix.flags.owndata and not matrix.flags.writeable
    # Into the folder that it is read from.
    found.save(tmp_path / "a" / "b")
    assert _everything(found) == _everything(Observations.load(tmp_path / "a" / "b"))
    observe(graph, _data(graph), NEEDS, model_sha256="ab", seed=7, folder=tmp_path / "c")
    for name in ("observations.json", "arrays.bin"):
        once, again = ((tmp_path / way / name).read_bytes() for way in ("a/b", "c"))
        assert once == again
    Observations(4).save(tmp_path / "d")
    assert Observations.load(tmp_path / "d") == Observations(4)


def test_what_is_no_folder_of_observations(tmp_path: Path) -> None:
    graph = _graph()
    with pytest.raises(InputError, match="cannot read the observations"):
        Observations.load(tmp_path)
    observe(graph, _data(graph), NEEDS, folder=tmp_path)
    facts, arrays = tmp_path / "observations.json", tmp_path / "arrays.bin"
    text, stored = facts.read_text(), arrays.read_bytes()
    arrays.write_bytes(stored[:-64])
    with pytest.raises(InputError, match=r"holds no observations .*; observe again"):
        Observations.load(tmp_path)
    arrays.unlink()
    with pytest.raises(InputError, match="holds no observations"):
        Observations.load(tmp_path)
    arrays.write_bytes(stored)
    body = json.loads(text)
    entry = body["results"][0]
    for wrong in (
        [],
        {},
        {**body, "results": [{**entry, "need": {**entry["need"], "kind": "LossOf"}}]},
        {**body, "results": [{**entry, "need": {**entry["need"], "colour": 1}}]},
        {**body, "results": [{"need": entry["need"]}]},
    ):
        facts.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="holds no observations"):
            Observations.load(tmp_path)
    facts.write_text(json.dumps({**body, "schema": "onnxq/observations/9"}))
    with pytest.raises(InputError, match=r"'schema' .* takes .*/1', not 'onnxq/observations/9'"):
        Observations.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"folder '.*inside' cannot be made"):
        Observations().save(tmp_path / "file" / "inside")


def test_what_cannot_be_merged() -> None:
    graph = _graph()
    with pytest.raises(InputError, match="no observations to merge"):
        merge_observations([])
    first = observe(graph, _data(graph), [SamplesOf("x", 2), RangeOf("h")])
    for other in (Observations(model_sha256="ab"), Observations(seed=1)):
        with pytest.raises(InputError, match="different models or seeds"):
            merge_observations([first, other])
    seen = dataclasses.replace(first.get(SamplesOf("x", 2)), wanted=3)
    other = dataclasses.replace(first, results={SamplesOf("x", 2): seen})
    with pytest.raises(InputError, match=r"observations of 'x' cannot be merged: .* kinds"):
        merge_observations([first, other])
    # A tensor may have no value in a shard.
    assert merge_observations([first, Observations(2)]).samples == 15


def test_an_unknown_tensor() -> None:
    graph = _graph()
    with pytest.raises(InputError, match="no tensor 'z' to observe"):
        observe(graph, _data(graph), [RangeOf("h"), GramOf("z")])


def test_a_need_of_no_known_kind() -> None:
    graph = _graph()
    with pytest.raises(TypeError, match="no observer for Need"):
        observe(graph, _data(graph), [Need("x")])


def test_memory_stays_below_the_limit(tmp_path: Path) -> None:
    columns, count = 256, 6
    lines = [f"v{k + 1} = Add(v{k}, one)" for k in range(count)]
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, {columns}] v0) => (float[N, {columns}] v{count}) <float one = {{1}}>
        {{ {" ".join(lines)} }}""")
    data = _data(graph, 8, v0=np.ones((64, columns), np.float32))
    needs = [GramOf(f"v{k}") for k in range(count + 1)]
    matrix = 8 * columns**2
    limit = 2 * (4 * matrix + 100_000)

    def peak(**options: object) -> int:
        tracemalloc.start()
        try:
            observe(graph, data, needs, folder=tmp_path, **options)  # type: ignore[arg-type]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak()
    assert peak(memory_limit=limit) <= limit + 200_000 < peak()


def test_what_takes_two_models_stays_unanswered_by_one(tmp_path: Path) -> None:
    graph, need = _graph(), CrossGramOf("x")
    assert observe(graph, _data(graph), [need]).samples == 0
    assert observe(graph, _data(graph), [need, GramOf("x")]).get(need) is None
    found = Observations(1, {need: GramMatrix(np.arange(4.0).reshape(1, 2, 2), 3)})
    found.save(tmp_path)
    again = Observations.load(tmp_path).get(need)
    assert again.rows == 3 and np.array_equal(again.matrix, found.get(need).matrix)
