"""Adaptation: what is proposed after which drift, and what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.adaptive.adapt import Gathered, Outputs, adapt, worse
from onnxq.adaptive.baseline import Baseline
from onnxq.adaptive.bundle import Bundle, BundleFacts, Variant
from onnxq.adaptive.deployment import Deployment, Reference, Sampled, TensorQParams
from onnxq.adaptive.quantized import quantizers
from onnxq.adaptive.scores import output_scores
from onnxq.adaptive.twin import Twin
from onnxq.ir import Graph, load, save
from onnxq.observe.observer import RangeObserver
from onnxq.runtime import Session
from onnxq.verify.decisions import Decision
from onnxq.verify.facts import file_sha256
from tests.networks import chain, inputs
from tests.quantization import observed_bounds, quantized

DECISIONS = (Decision("y", "classes", 1, "as the test says"),)
FITTED, HELD = 24, 60


@dataclass(frozen=True)
class Drift:
    drifted: Sequence[str] = ()


def samples(count: int, seed: int) -> list[np.ndarray]:
    return list(inputs(chain(), count, seed)["x"][:, None])


def answers(path: Path, fed: Sequence[np.ndarray]) -> list[Outputs]:
    session = Session(path)
    return [tuple(session.run({"x": x}).values()) for x in fed]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Fast, with the weights of another model; int8; float. The usual ones are those of int8."""
    folder = tmp_path_factory.mktemp("bundle")
    seen = {"x": np.concatenate(samples(40, 1))}

    def int8(graph: Graph) -> Graph:
        return quantized(graph, observed_bounds(graph.copy(), seen))

    graphs = {"other": int8(chain(seed=7)), "int8": int8(chain()), "float": chain()}
    variants = []
    for name, graph in graphs.items():
        path = folder / f"{name}.onnx"
        save(graph, path)
        variants.append(Variant(name, path.name, file_sha256(path), 1.0, 30.0, 1.0))
    fed = samples(80, 2)
    pairs = zip(*(answers(folder / f"{n}.onnx", fed) for n in ("float", "int8")), strict=True)
    scores = [output_scores(DECISIONS, ["y"], *pair) for pair in pairs]
    bag = {kind: tuple(own[kind] for own in scores) for kind in scores[0]}
    tensors = tuple(dict.fromkeys(q.root for q in quantizers(graphs["int8"]).values()))
    facts = BundleFacts(
        tuple(variants), 1, DECISIONS, tensors, {}, "onnxruntime", "cpu", 1, "", ("y",)
    )
    return Bundle(folder, facts, Baseline(80, {}, bag))


@dataclass
class Stream:
    """Requests as a session would have them, answered by a variant as its file is."""

    bundle: Bundle
    change: Callable[[np.ndarray], np.ndarray]
    live: Deployment = field(default_factory=lambda: Deployment(1))

    def __post_init__(self) -> None:
        twin = Twin(self.bundle)
        self.fit = Gathered()
        for x in samples(FITTED, 3):
            self.fit.add(twin.run({"x": self.change(x)}))
        fed = [self.change(x) for x in samples(HELD, 4)]
        served = answers(self.bundle.model(self.live.variant), fed)
        self.held = [
            (Sampled(at, {"x": x}, served[at], self.live), twin.run({"x": x}))
            for at, x in enumerate(fed)
        ]


def louder(x: np.ndarray) -> np.ndarray:
    return x * np.float32(4)


def same(x: np.ndarray) -> np.ndarray:
    return x


def test_fresh_qparams_where_the_old_ones_clip(bundle: Bundle) -> None:
    stream = Stream(bundle, louder)
    found = adapt(bundle, stream.live, Drift(), stream.fit, stream.held)
    assert found.deployment is not None and found.deployment.variant == 1
    old = quantizers(load(bundle.model(1)))["x"].qparams
    assert found.deployment.qparams["x"].scale > 2 * old.scale
    assert found.tried == ("variant 'int8' with fresh qparams: taken",)
    assert "60 of 60 decisions as float's" in found.reason
    # The same again, bit for bit.
    assert adapt(bundle, stream.live, Drift(), stream.fit, stream.held) == found


def test_only_the_tensors_that_drifted_where_that_is_enough(bundle: Bundle) -> None:
    """Wrong qparams of one tensor are all that is wrong."""
    known = quantizers(load(bundle.model(1)))
    wrong = TensorQParams(known["x"].qparams.scale / 6, known["x"].qparams.zero_point)
    live = Deployment(1, {"x": wrong})
    stream = Stream(bundle, louder, Deployment(1))
    held = [(replace(s, deployment=Deployment(2)), r) for s, r in stream.held]
    found = adapt(bundle, live, Drift(("x",)), stream.fit, held)
    assert found.deployment is not None
    assert "with fresh qparams" in found.reason
    some = Drift(tuple(q.root for q in known.values() if q.root != "x"))
    tried = adapt(bundle, live, some, stream.fit, held).tried
    assert any("where tensors drifted: " in t and "as far from float" in t for t in tried)


def test_nothing_is_changed_where_answers_are_as_near_as_ever(bundle: Bundle) -> None:
    stream = Stream(bundle, same)
    found = adapt(bundle, stream.live, Drift(), stream.fit, stream.held)
    assert found.deployment is None and found.tried == ()
    assert found.reason == ("answers are as near to the float model's as ever: nothing to adapt")


def test_back_to_what_the_bundle_has_where_requests_are_again_as_they_were(
    bundle: Bundle,
) -> None:
    before = Stream(bundle, louder)
    adapted = adapt(bundle, before.live, Drift(), before.fit, before.held).deployment
    assert adapted is not None
    wide = Deployment(1, {t: replace(q, scale=q.scale * 8) for t, q in adapted.qparams.items()})
    stream = Stream(bundle, same)
    # Nobody was answered by what is live: it is run.
    found = adapt(bundle, wide, Drift(), stream.fit, stream.held)
    assert found.deployment == Deployment(1)
    assert found.reason.startswith("variant 'int8' as it was made: ")


def test_up_the_ladder_where_ranges_do_not_help(bundle: Bundle) -> None:
    live = Deployment(0)
    stream = Stream(bundle, same, live)
    found = adapt(bundle, live, Drift(), stream.fit, stream.held)
    assert found.deployment == Deployment(1)
    assert [t.partition(": ")[0] for t in found.tried][-1] == "variant 'int8' as it was made"


def test_down_the_ladder_where_the_cheaper_variant_is_as_near_as_ever(bundle: Bundle) -> None:
    live = Deployment(2)
    stream = Stream(bundle, same, live)
    assert adapt(bundle, live, Drift(), stream.fit, stream.held).deployment == Deployment(1)
    loud = Stream(bundle, louder, live)
    found = adapt(bundle, live, Drift(), loud.fit, loud.held).deployment
    assert found is not None and found.variant == 1 and found.qparams


def test_nothing_is_changed_where_the_float_model_itself_suffers(bundle: Bundle) -> None:
    unsure = tuple(entropy / 2 for entropy in bundle.baseline.bag["entropy"])
    bag = {**bundle.baseline.bag, "entropy": unsure}
    suffering = replace(bundle, baseline=replace(bundle.baseline, bag=bag))
    for change, said in ((same, "as near to it as ever"), (louder, "worth little")):
        stream = Stream(bundle, change)
        found = adapt(suffering, stream.live, Drift(), stream.fit, stream.held)
        if change is louder:
            # What is louder is surer, too, unless nearly nothing is usual.
            tiny = {**bag, "entropy": tuple(e / 100 for e in unsure)}
            suffering = replace(bundle, baseline=replace(bundle.baseline, bag=tiny))
            found = adapt(suffering, stream.live, Drift(), stream.fit, stream.held)
        assert found.deployment is None
        assert "the float model itself is less sure of its decisions" in found.reason
        assert said in found.reason


def test_answers_that_were_said_to_be_right_are_kept(bundle: Bundle) -> None:
    stream = Stream(bundle, same, Deployment(0))
    right = [(replace(sampled, correct=True), r) for sampled, r in stream.held]
    found = adapt(bundle, stream.live, Drift(), stream.fit, right)
    changed = sum(
        sampled.served[0].argmax() != reference.outputs[0].argmax()
        for sampled, reference in stream.held
    )
    assert changed >= 7
    assert found.deployment is None
    assert "of which the answers were right" in found.reason
    wrong = [(replace(sampled, correct=False), r) for sampled, r in stream.held]
    assert adapt(bundle, stream.live, Drift(), stream.fit, wrong).deployment is not None


def test_a_damaged_variant_is_passed_over(bundle: Bundle, tmp_path: Path) -> None:
    for variant in bundle.variants:
        (tmp_path / variant.file).write_bytes((bundle.folder / variant.file).read_bytes())
    damaged = replace(bundle, folder=tmp_path)
    stream = Stream(bundle, same, Deployment(0))
    (tmp_path / "int8.onnx").write_bytes(b"no model")
    found = adapt(damaged, stream.live, Drift(), stream.fit, stream.held)
    assert found.deployment == Deployment(2)
    assert any("is not what the bundle was made with" in tried for tried in found.tried)
    (tmp_path / "float.onnx").unlink()
    found = adapt(damaged, stream.live, Drift(), stream.fit, stream.held)
    assert found.deployment is None and "does not exist" in found.tried[-1]


def test_a_float_model_that_was_replaced_is_not_in_the_way(bundle: Bundle, tmp_path: Path) -> None:
    """What it says of requests is known already."""
    for variant in bundle.variants:
        (tmp_path / variant.file).write_bytes((bundle.folder / variant.file).read_bytes())
    replaced = replace(bundle, folder=tmp_path)
    stream = Stream(bundle, louder)
    (tmp_path / "float.onnx").write_bytes(b"another model")
    found = adapt(replaced, stream.live, Drift(), stream.fit, stream.held)
    assert found.tried == ("variant 'int8' with fresh qparams: taken",)
    fed = samples(60, 5)
    other, int8, floats = (answers(bundle.model(place), fed) for place in range(3))
    assert worse(replaced, int8, other, floats).startswith("what answers now is further")


def test_what_is_worse_beyond_noise(bundle: Bundle) -> None:
    fed = samples(60, 5)
    other, int8, floats = (answers(bundle.model(place), fed) for place in range(3))
    assert worse(bundle, int8, other, floats).startswith("what answers now is further")
    assert worse(bundle, other, int8, floats) == ""
    assert worse(bundle, int8, int8, floats) == ""
    # Too few to tell.
    assert worse(bundle, int8[:5], other[:5], floats[:5]) == ""


def test_gathered_is_what_observing_all_at_once_finds() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal((2, 5)).astype(np.float32) for _ in range(4)]
    parts[1][0, 0] = np.inf
    gathered, observer = Gathered(), RangeObserver(histogram=True)
    for part in parts:
        gathered.add(Reference((), {"t": part, "empty": part[:0]}))
        observer.add(part, np.arange(2))
    assert gathered.requests == 4
    assert gathered.seen == {"t": observer.result()}
