"""The feeds of a decoder's two latencies, and that they compute what the whole prompt does."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data import read
from onnxq.errors import InputError
from onnxq.ir import Graph, to_proto
from onnxq.runtime import Session
from onnxq.verify.decoder import decoder_feeds
from onnxq.verify.workload import find_workload
from tests.helpers import run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
TABLE = ", ".join(str(float((7 * n) % 11 - 5)) for n in range(16))
WEIGHTS = f"float[8, 2] table = {{{TABLE}}}, float[2, 8] w = {{{TABLE}}}"
AXES = "int64 one = {1}, int64 two = {2}, int64[1] ones = {1}, int64[1] twos = {2}"


def plain(mixing: str = "m = CumSum(h, one)", tokens: str = "T") -> Graph:
    """A decoder without a cache: what a token gives is of the sum of those up to it."""
    return Graph.from_text(f"""{HEAD}
        g (int64[N, {tokens}] ids, int64[N, {tokens}] mask) => (float[N, {tokens}, 8] logits)
        <{WEIGHTS}, {AXES}> {{
          h = Gather(table, ids) {mixing}
          f = Cast<to = 1>(mask) u = Unsqueeze(f, twos) s = Mul(m, u) logits = MatMul(s, w) }}""")


def cached() -> Graph:
    """The same with a cache of what it summed up."""
    more = "int64[1] limit = {100}, int64[1] ends = {3}"
    return Graph.from_text(f"""{HEAD}
        g (int64[N, T] ids, int64[N, M] mask, float[N, 1, P, 2] past_key_values_0)
          => (float[N, T, 8] logits, float[N, 1, M, 2] present_0)
        <{WEIGHTS}, {AXES}, {more}> {{
          h = Gather(table, ids) k = Unsqueeze(h, ones)
          present_0 = Concat<axis = 2>(past_key_values_0, k)
          f = Cast<to = 1>(mask) e = Unsqueeze(f, ones) u = Unsqueeze(e, ends)
          seen = Mul(present_0, u) all = CumSum(seen, two)
          shape = Shape(past_key_values_0) before = Gather<axis = 0>(shape, twos)
          last = Slice(all, before, limit, twos) q = Squeeze(last, ones)
          logits = MatMul(q, w) }}""")


IDS = np.array([[3, 1, 4, 1, 5]])


def test_a_token_without_a_cache_is_a_window_of_one() -> None:
    session = Session(to_proto(plain()))
    feeds = decoder_feeds(session, {"ids": IDS, "mask": np.ones_like(IDS)})
    assert {name: a.tolist() for name, a in feeds["token"].items()} == {"ids": [[5]], "mask": [[1]]}
    assert feeds["prompt"]["ids"] is IDS


def test_tokens_may_be_bytes() -> None:
    graph = Graph.from_text(f"""{HEAD}
        g (uint8[N, T] ids) => (float[N, T, 8] logits) <{WEIGHTS}, {AXES}> {{
          i = Cast<to = 7>(ids) h = Gather(table, i) m = CumSum(h, one) logits = MatMul(m, w) }}""")
    feeds = decoder_feeds(Session(to_proto(graph)), {"ids": IDS.astype(np.uint8)})
    assert feeds["token"]["ids"].tolist() == [[5]]


@pytest.mark.parametrize("held", [0, 3])
def test_a_token_with_a_cache_gives_what_the_whole_prompt_gives(held: int) -> None:
    graph = cached()
    past = np.random.default_rng(0).standard_normal((1, 1, held, 2)).astype(np.float32)
    mask = np.ones((1, held + IDS.shape[1]), np.int64)
    mask[0, 1] = 0
    prompt = {"ids": IDS, "mask": mask, "past_key_values_0": past}
    feeds = decoder_feeds(Session(to_proto(graph)), prompt)
    token = feeds["token"]
    assert token["ids"].tolist() == [[5]]
    assert token["past_key_values_0"].shape == (1, 1, held + 4, 2), "a full cache"
    whole, alone = run(graph, feeds["prompt"])["logits"], run(graph, token)["logits"]
    np.testing.assert_allclose(alone[:, 0], whole[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "ids"),
    [
        (plain("a = ReduceSum(h, ones) m = Add(h, a)"), IDS),
        (plain(tokens="5"), IDS),
        (plain(), IDS[:, :1]),
    ],
    ids=["both ways", "fixed window", "one token"],
)
def test_other_models_have_one_latency(graph: Graph, ids: np.ndarray) -> None:
    feeds = {"ids": ids, "mask": np.ones_like(ids)}
    session = Session(to_proto(graph))
    assert decoder_feeds(session, feeds) == {}
    data = read([feeds], session.inputs)
    assert (find_workload(session, data).of, find_workload(session, data).others) == ("", {})
    with pytest.raises(InputError, match="only a decoder that takes any number of tokens"):
        find_workload(session, data, latency_of="token")


def test_the_latency_that_counts_comes_first() -> None:
    session = Session(to_proto(plain()))
    data = read({"ids": np.tile(IDS, (4, 1)), "mask": np.ones((4, 5), np.int64)}, session.inputs)
    for of, other, tokens in (("prompt", "token", 5), ("token", "prompt", 1)):
        found = find_workload(session, data, batch_size=3, latency_of=of, throughput=(1, 6))
        assert (found.of, [*found.others]) == (of, [other])
        assert found.one.feeds["ids"].shape == (3, tokens)
        assert found.others[other].feeds["ids"].shape == (3, 6 - tokens)
        assert [len(batch.feeds["ids"]) for batch in found.throughput] == [1, 6]
    assert find_workload(session, data).of == "prompt"


def test_a_fixed_batch_has_no_throughput_over_others() -> None:
    graph = Graph.from_text(f"{HEAD} g (float[2, 3] x) => (float[2, 3] y) {{ y = Abs(x) }}")
    session = Session(to_proto(graph))
    data = read({"x": np.ones((4, 3), np.float32)}, session.inputs)
    assert find_workload(session, data, batch_size=8).one.size == 2
    with pytest.raises(InputError, match="has batches of 2 only; leave --throughput out"):
        find_workload(session, data, throughput=(1, 8))


def test_a_model_too_large_for_memory_is_not_run_to_find_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(to_proto(plain()))
    data = read({"ids": np.tile(IDS, (4, 1)), "mask": np.ones((4, 5), np.int64)}, session.inputs)
    monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("it was run"))
    found = find_workload(session, data, may_run=False)
    assert (found.of, found.others, found.one.feeds["ids"].shape) == ("", {}, (1, 5))
    with pytest.raises(InputError, match="too large for the memory there is; raise --memory-limit"):
        find_workload(session, data, latency_of="token", may_run=False)
