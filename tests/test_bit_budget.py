"""A promised size: precisions chosen node by node so that the file fits, methods counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.ir import Context, Graph, PassRecord, save, to_proto
from onnxq.job import open_job
from onnxq.optimization import Optimized, optimize
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.plan.apply import apply_precisions
from onnxq.precision import Given
from onnxq.prepare import Prepared, observed, prepare
from onnxq.proposals import Proposals
from onnxq.study import Study, apply_to, find_losses, study
from onnxq.targets import load_target
from onnxq.tuning import gains
from onnxq.verify import Gate
from tests.networks import computed, residual_products

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

NETWORK = residual_products()
FEW = ("int8-weight", "int4-weight", "int3-weight", "int2-weight")
RATIO = 5.0


def samples(count: int = 64) -> dict[str, np.ndarray]:
    """Rows whose columns go together, so that roundings can make up for each other."""
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((count, 8)) @ rng.standard_normal((8, 64))
    return {"x": (mixed + 0.1 * rng.standard_normal((count, 64))).astype(np.float32)}


DATA = samples()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("budget") / "model.onnx"
    save(NETWORK, path)
    return path


@pytest.fixture(scope="module")
def studied(model: Path) -> Study:
    options = Options(precisions=FEW, target="cpu-x64", cost="size", max_size_ratio=1 / RATIO)
    with open_job(model, DATA, options) as job:
        yield study(observed(prepare(job)))


def sought(model: Path, ratio: float, **options: object) -> Optimized:
    given = {"target": "cpu-x64", "min_speedup": 0.0, "max_size_ratio": 1 / ratio}
    return optimize(model, DATA, **given | options)  # type: ignore[arg-type]


def test_losses_are_those_with_methods(studied: Study) -> None:
    plain = {n.node: n for n in find_losses(studied.prepared).nodes}
    gained, untried = gains(studied.prepared)
    assert not untried
    for node in studied.sensitivity.nodes:
        for precision in node.precisions:
            gain = gained[precision].get(node.node, 0.0)
            assert node.loss(precision) == pytest.approx(
                plain[node.node].loss(precision) * 10 ** (-gain / 10)
            )
    assert not gained["int8-weight"]
    assert all(gain > 1 for gain in gained["int2-weight"].values())


def test_one_of_equal_blocks_is_tuned_for_all(studied: Study) -> None:
    found, _ = gains(studied.prepared)
    own = found["int4-weight"]
    assert own.keys() == {"head", *(f"product{number}" for number in range(4))}
    # The first block begins with what is given, so it is another one.
    assert own["product1"] == own["product2"] == own["product3"]
    assert len({own["head"], own["product0"], own["product1"]}) == 3


def test_a_precision_that_another_one_beats_is_left_out(studied: Study) -> None:
    worse = replace(
        studied.sizes,
        nodes={
            name: {**own, "int3-weight": own["int4-weight"]}
            for name, own in studied.sizes.nodes.items()
        },
    )
    found = replace(studied, sizes=worse)
    assert found.dominated == {"int3-weight": "int4-weight"}
    assert found.notes == (
        "int3-weight was left out: int4-weight takes no more bytes and loses less.",
    )
    offered = {c.precision for item in found.problem().items for c in item.choices}
    assert offered == {"float32", "int8-weight", "int4-weight", "int2-weight"}
    assert not replace(studied, sizes=None).dominated


def test_all_nodes_in_a_precision_take_what_the_file_takes(studied: Study) -> None:
    prepared, problem = studied.prepared, studied.problem()
    before = to_proto(prepared.graph).ByteSize()
    floats = problem.bytes(dict.fromkeys(prepared.choices, "float32"))
    for precision in FEW:
        every = dict.fromkeys(prepared.choices, precision)
        made = prepared.graph.copy()
        apply_precisions(made, every, Given(prepared.target))
        grown = to_proto(made).ByteSize() - before
        assert studied.problem().bytes(every) - floats == pytest.approx(grown)


def test_what_methods_add_to_a_file_is_left_room_for(
    studied: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def padded(prepared: Prepared, plan: Plan, ctx: Context) -> tuple[Graph, list[PassRecord]]:
        graph, records = apply_to(prepared, plan, ctx)
        graph.model.doc_string = 2000 * "more "
        return graph, records

    monkeypatch.setattr("onnxq.proposals.apply_to", padded)
    proposals = Proposals(studied, [Gate("size_ratio", ">=", 3.0)])
    problem = studied.problem()
    rounded, plan = proposals.fitting(problem, objective="loss"), proposals.smallest_loss()
    assert rounded is not None and plan is not None
    graph, _ = padded(studied.prepared, plan, studied.prepared.job.context)
    assert to_proto(graph).ByteSize() <= studied.prepared.job.path.stat().st_size / 3.0
    assert plan.loss > rounded.loss


@pytest.mark.parametrize("ratio", [2.0, 4.0, 5.0, 6.0])
def test_the_file_is_as_small_as_promised_and_hardly_smaller(studied: Study, ratio: float) -> None:
    proposals = Proposals(studied, [Gate("size_ratio", ">=", ratio)])
    problem = studied.problem()
    chosen = proposals.fitting(problem, objective="loss")
    assert chosen is not None
    made = studied.prepared.graph.copy()
    apply_precisions(made, chosen.precisions, Given(studied.prepared.target))
    share = to_proto(made).ByteSize() * ratio / studied.prepared.job.path.stat().st_size
    assert 0.85 < share <= 1
    # Any node in a precision of less loss takes too much.
    spare = studied.problem().bytes(chosen.precisions) * (1 / share - 1)
    for item in problem.items:
        now = next(c for c in item.choices if c.precision == chosen.precisions[item.name])
        better = [c for c in item.choices if c.loss < now.loss * 0.99]
        assert all(c.bytes - now.bytes > spare for c in better)


def test_nothing_is_as_small(studied: Study) -> None:
    proposals = Proposals(studied, [Gate("size_ratio", ">=", 1000.0)])
    assert proposals.fitting(studied.problem()) is None


def test_the_search_mixes_bits_within_the_promise(model: Path) -> None:
    # Nothing keeps this SQNR, so it is the nearest of those that are small.
    found = sought(model, RATIO, precisions=FEW, min_sqnr=60)
    size, sqnr = found.report.size.ratio, found.report.sqnr_db
    assert size >= RATIO and not found.passed
    assert len(set(found.plan.precisions().values()) & {*FEW}) > 1
    others = [c.sqnr_db for c in found.report.candidates if c.label.startswith("all ")]
    assert others and sqnr > max(db for db in others if db is not None)


def test_the_target_says_what_is_small(model: Path) -> None:
    target = load_target("cpu-x64")
    for ratio, more in ((None, ()), (0.2, target.small)):
        with open_job(model, DATA, Options(target="cpu-x64", max_size_ratio=ratio)) as job:
            assert job.precisions == (*target.precisions, *more)


def test_a_size_that_cannot_be_kept_is_come_close_to(model: Path) -> None:
    found = sought(model, 100.0, precisions=FEW, min_sqnr=0)
    assert not found.passed
    assert {p for n, p in found.plan.precisions().items() if "product" in n} == {"int2-weight"}
