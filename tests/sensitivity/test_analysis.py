"""The default analysis against quantizing one node at a time, and a layer planted to be found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from onnxq.data import Batch, read
from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, ModelInfo, TensorType, infer_types, load
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.plan.apply import float_graph
from onnxq.precision import Part
from onnxq.runtime import Session
from onnxq.sensitivity import Sensitivity, analyse, analysis, asking, running
from onnxq.sensitivity.analysis import CERTAIN
from onnxq.sensitivity.running import Key, Outputs, Runner, Sessions
from onnxq.targets import load_target
from tests.helpers import run
from tests.networks import chain, choices, dataset, inputs, scene, whole
from tests.runtime.spreading import Spread

MODELS = Path(__file__).parents[2] / "models"


def analysed(graph: Graph, *precisions: str, **options: object) -> Sensitivity:
    data = dataset(graph, inputs(graph))
    found = scene(graph, data)
    own = choices(found, *(precisions or ("int8",)))
    return analyse(graph, data, found, own, whole(graph, found, own), **options)  # type: ignore[arg-type]


def losses(found: Sensitivity, precision: str = "int8") -> dict[str, float]:
    return dict(found.ranking(precision))


def test_agrees_with_one_node_at_a_time_on_a_trained_network() -> None:
    path = MODELS / "digits_resnet.onnx"
    target = load_target("cpu-x64")
    graph, _ = float_graph(load(path), "default", target, target.opset)
    data = read(MODELS / "digits.npz", Session(path).inputs).split(0)[0].take(24)
    found = scene(graph, data)
    own = choices(found, "int8")
    quick = analyse(graph, data, found, own, whole(graph, found, own))
    slow = analyse(graph, data, found, own, whole(graph, found, own), method="exhaustive")
    ours, theirs = losses(quick), losses(slow)
    assert set(ours) == set(theirs) and len(ours) > 15
    assert quick.samples < slow.samples == 24
    names = list(ours)
    agreement = spearmanr([ours[n] for n in names], [theirs[n] for n in names]).statistic
    assert agreement >= 0.9
    worst = [set(sorted(names, key=lambda n: -each[n])[:10]) for each in (ours, theirs)]
    assert len(worst[0] & worst[1]) >= 8


@pytest.mark.parametrize("is_large", [False, True])
def test_several_processes_find_the_same_in_any_order(
    is_large: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if is_large:
        request.getfixturevalue("through")
    graph = chain(8)
    here = analysed(graph)
    spread = Spread(tmp_path, seed=1)
    assert analysed(graph, executor=spread).to_json() == here.to_json()
    assert spread.done > 10


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> set[Key]:
    """All models count as large, with three stations; gives what runs through to the end."""
    found: set[Key] = set()
    run_through = Runner.run
    for module in (analysis, running):
        monkeypatch.setattr(module, "STATIONS", 3)
    for name, amount in {"EXACT_BYTES": 0, "FEWEST_EXACT": 2, "MAX_SEGMENTS": 9}.items():
        monkeypatch.setattr(analysis, name, amount)
    monkeypatch.setattr(analysis, "SEGMENT_BYTES", 1)

    def noted(self: Runner, key: Key, parts: Sequence[Part]) -> Iterator[dict[str, np.ndarray]]:
        found.add(key)
        return run_through(self, key, parts)

    monkeypatch.setattr(Runner, "run", noted)
    return found


def test_losses_in_a_large_model_are_estimated_at_the_next_station(
    through: set[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = chain(10)
    found = analysed(graph, max_samples=4)
    assert len(through) == 2 * 3
    known = {(node.name, part) for node, part in through}
    monkeypatch.setattr(analysis, "EXACT_BYTES", 1 << 40)
    exact = analysed(graph, max_samples=4)
    for ours, wanted in zip(found.nodes, exact.nodes, strict=True):
        for part in wanted.losses:
            ratio = ours.losses[part] / wanted.losses[part]
            is_known = (ours.node, part) in known
            assert ratio == pytest.approx(1.0) if is_known else 0.1 < ratio < 10


@pytest.mark.usefixtures("through")
@pytest.mark.parametrize("planted", [0, 3, 6])
def test_a_planted_layer_is_found_in_a_large_model(planted: int) -> None:
    ranking = analysed(chain(8, planted=planted)).ranking("int8")
    assert ranking[0][0] in {f"conv{planted}", f"conv{planted + 1}"}


def test_exhaustive_is_what_the_pass_does_to_one_node() -> None:
    graph = chain()
    feeds = inputs(graph)
    found = losses(analysed(graph, method="exhaustive"))
    bounds = scene(graph, dataset(graph, feeds)).bounds
    exact = run(graph, feeds)["y"].astype(np.float64)
    for name in ("conv0", "conv2", "head"):
        real = graph.copy()
        InsertQdq(bounds, "cpu-x64", only=(name,)).run(real, Context())
        errors = np.square(run(real, feeds)["y"] - exact).sum(axis=1)
        wanted = np.mean(errors / np.square(exact).sum(axis=1))
        assert found[name] == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("proxy", ["noise", "mse", "kl"])
def test_a_proxy_is_what_it_says(proxy: str) -> None:
    graph = chain()
    feeds = inputs(graph)
    found = losses(analysed(graph, method="exhaustive", proxy=proxy))["head"]
    real = graph.copy()
    bounds = scene(graph, dataset(graph, feeds)).bounds
    InsertQdq(bounds, "cpu-x64", only=("head",)).run(real, Context())
    exact, ours = (run(g, feeds)["y"].astype(np.float64) for g in (graph, real))
    p, q = (np.exp(y) / np.exp(y).sum(axis=1, keepdims=True) for y in (exact, ours))
    wanted = {
        "noise": np.mean(np.square(ours - exact).sum(axis=1) / np.square(exact).sum(axis=1)),
        "mse": np.square(ours - exact).mean(),
        "kl": (p * np.log(p / q)).sum(axis=1).mean(),
    }[proxy]
    assert found == pytest.approx(wanted, rel=0.02)


def test_the_default_gives_weights_and_activations_apart() -> None:
    found = analysed(chain(), "int8", "int8-dynamic", "int8-weight")
    (head,) = (n for n in found.nodes if n.node == "head")
    stored = "weights:int8-weight"
    parts = {"weights:int8", "activations:int8", "activations:dynamic"}
    assert set(head.losses) == parts | {stored}
    assert head.loss("int8") == head.losses["weights:int8"] + head.losses["activations:int8"]
    assert head.loss("int8-weight") == head.losses[stored]
    assert head.loss("int4-weight") is None and head.loss("float32") == 0.0
    assert head.part("int8-dynamic", "activations") == head.losses["activations:dynamic"]
    assert head.part("int8-weight", "activations") is None


def test_sums_of_parts_are_close_to_both_at_once() -> None:
    graph = chain(6)
    apart = losses(analysed(graph, max_samples=24))
    both = losses(analysed(graph, method="exhaustive"))
    assert set(apart) == set(both)
    for name in both:
        assert 0.4 < apart[name] / both[name] < 2.5, name


def saturated(gain: float) -> Graph:
    """A chain whose scores are so far apart that Softmax hides most of the noise."""
    graph = chain(6)
    scores = graph.outputs[0]
    large = graph.add("Mul", [scores, graph.constant(np.float32(gain), "gain")], name="large")
    graph.set_outputs([graph.add("Softmax", [large.output], outputs=["p"]).output])
    infer_types(graph)
    return graph


@pytest.mark.parametrize("method", ["suffix", "exhaustive"])
@pytest.mark.parametrize("graph", [chain(6), saturated(0.3)], ids=["scores", "probabilities"])
def test_scaled_losses_add_up_to_what_the_whole_model_loses(graph: Graph, method: str) -> None:
    feeds = inputs(graph)
    found = analysed(graph, method=method)
    name = graph.outputs[0].name
    bounds = scene(graph, dataset(graph, feeds)).bounds
    real = graph.copy()
    InsertQdq(bounds, "cpu-x64").run(real, Context())
    exact, ours = (run(g, feeds)[name].astype(np.float64) for g in (graph, real))
    measured = np.square(ours - exact).sum() / np.square(exact).sum()
    predicted = sum(own["int8"] for own in found.losses().values())
    assert abs(10 * np.log10(predicted / measured)) < 1
    raw = {node.node: node.loss("int8") for node in found.nodes}
    scale = found.scales["int8"]
    assert all(found.losses()[n]["int8"] == pytest.approx(raw[n] * scale) for n in raw)


def test_noise_that_cancels_out_is_scaled_away() -> None:
    """Two equal products take each other away, with the noise that each alone would add."""
    rng = np.random.default_rng(0)
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 32)))
    large = (rng.normal(size=(32, 8)) * 100).astype(np.float32)
    some = rng.normal(size=(32, 8)).astype(np.float32)
    a, b, c = (
        graph.add("MatMul", [x, graph.constant(w, f"w{at}")], name=f"m{at}").output
        for at, w in enumerate((large, large.copy(), some))
    )
    d = graph.add("Sub", [a, b], name="d").output
    graph.set_outputs([graph.add("Add", [d, c], outputs=["y"], name="s").output])
    infer_types(graph)
    found = analysed(graph, "int8-dynamic")
    predicted = sum(own["int8-dynamic"] for own in found.losses().values())
    raw = sum(node.loss("int8-dynamic") or 0.0 for node in found.nodes)
    assert raw > 0.1 and predicted < 0.01


@settings(max_examples=12)
@given(st.integers(0, 1000), st.integers(0, 2), st.integers(0, 7))
def test_a_planted_layer_is_found(seed: int, planted: int, channel: int) -> None:
    graph, other = (chain(seed=seed, planted=at, channel=channel) for at in (planted, 0))
    feeds = inputs(graph)
    # Wherever the channel is planted, in float the network is the same.
    assert np.allclose(run(graph, feeds)["y"], run(other, feeds)["y"], rtol=1e-4, atol=1e-4)
    ranking = analysed(graph).ranking("int8")
    # The layer with the large channel gives it, the next one reads it.
    assert ranking[0][0] in {f"conv{planted}", f"conv{planted + 1}"}
    others = [
        loss for name, loss in ranking if name not in {f"conv{planted}", f"conv{planted + 1}"}
    ]
    assert ranking[0][1] > 10 * max(others)


def test_samples_are_drawn_until_the_ranking_is_certain() -> None:
    graph = chain(6)
    assert analysed(graph, max_samples=2).samples == 2
    found = analysed(graph)
    assert 4 <= found.samples <= 24
    assert found.reliability >= CERTAIN or found.samples == 24


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1)), min_size=3, max_size=30))
@settings(max_examples=50, deadline=None)
def test_rankings_agree_as_scipy_says(pairs: list[tuple[int, float]]) -> None:
    first, second = np.array(pairs).T
    if np.ptp(first) and np.ptp(second):
        expected = spearmanr(first, second).statistic
        assert analysis._rank_correlation(first, second) == pytest.approx(expected, abs=1e-9)
        assert np.isnan(analysis._rank_correlation(np.append(first, np.nan), np.append(second, 0)))


def test_a_fixed_batch_is_not_cut() -> None:
    graph = chain()
    x = graph.inputs[0]
    x.type = TensorType(DataType.FLOAT, (6, *(x.shape or ())[1:]))
    infer_types(graph)
    assert analysed(graph, max_samples=12).samples == 12
    assert set(losses(analysed(graph))) == set(losses(analysed(chain())))


def test_models_that_are_not_kept_are_loaded_once_for_some_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built, ran = Counter[str](), Counter[str]()
    load_session, run_float = Sessions._session, Runner._through

    def session(self: Sessions, graph: Graph, config: Mapping[str, str]) -> Session:
        built["part" if config else "whole"] += 1
        return load_session(self, graph, config)

    def through(self: Runner, batch: Batch) -> Outputs:
        ran["float"] += 1
        return run_float(self, batch)

    monkeypatch.setattr(Sessions, "_session", session)
    monkeypatch.setattr(Runner, "_through", through)
    precisions = ("int8", "int8-weight")
    wanted = analysed(chain(), *precisions, method="exhaustive").to_json()
    monkeypatch.setattr(running, "KEPT_BYTES", 0)
    for held, times in ((asking.HELD_BYTES, 2), (0, 3)):
        monkeypatch.setattr(asking, "HELD_BYTES", held)
        built.clear()
        ran.clear()
        assert analysed(chain(), *precisions, method="exhaustive").to_json() == wanted
        # 24 samples are 12 batches: two rounds of 8 and 4.
        assert built["whole"] == len(precisions) * 2
        # Once for perturbations, and once for both precisions or for each.
        assert ran["float"] == 12 * times


def test_the_same_analysis_gives_the_same_text() -> None:
    assert analysed(chain()).to_json() == analysed(chain()).to_json()


def test_names_that_do_not_exist() -> None:
    graph = chain()
    data = dataset(graph, inputs(graph))
    found = scene(graph, data)
    for name in ("int7", "float16"):
        with pytest.raises(InputError, match=f"a search cannot choose '{name}'"):
            analyse(graph, data, found, {"head": ("int8", name)}, whole(graph, found, {}))
    with pytest.raises(InputError, match="no proxy 'beauty'"):
        analysed(graph, proxy="beauty")
