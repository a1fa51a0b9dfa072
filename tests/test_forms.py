"""Choosing the form of a float model. What forms take is made up: nothing is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from onnxq import apply_plan, optimize
from onnxq.cost import Bench
from onnxq.errors import InputError
from onnxq.forms import FloatForm, Trial, fastest_form, form_passes
from onnxq.ir import Graph, Node, save
from onnxq.plan import Plan
from onnxq.plan.apply import float_graph
from onnxq.planning import find_costs, make_plan
from onnxq.runtime import NodeTime
from onnxq.targets import Target, load_target
from tests.networks import computed

__all__ = ["computed"]

Price = Callable[[Node], float]


@dataclass(frozen=True)
class Priced(Bench):
    """A bench that makes up what operators take, and remembers how many models had which size."""

    price: Price = lambda node: 1.0
    whole: Price | None = None
    sizes: list[int] = field(default_factory=list)

    def times(self, models, feeds, *, seconds):  # type: ignore[no-untyped-def]
        self.sizes.extend(len(graph) for graph in models.values())
        price = self.whole or self.price
        return {name: sum(map(price, graph.all_nodes())) for name, graph in models.items()}

    def profiles(self, models, feeds):  # type: ignore[no-untyped-def]
        return {
            name: [NodeTime(n.name, n.op_type, self.price(n)) for n in graph.all_nodes()]
            for name, graph in models.items()
        }


def of_operators(prices: Mapping[str, float]) -> Price:
    return lambda node: prices.get(node.op_type, 1.0)


def swishes(opset: int = 13, more: str = "y = Identity(b)") -> Graph:
    """Two hard swishes in their parts, of 4 and of 2 numbers a row, and what follows."""
    return Graph.from_text(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N, 4] x) => (float[N, 2] y)
        <float three = {{3}}, float low = {{0}}, float high = {{6}}, float[2] s = {{1, 2}},
         float two = {{2}}, float eps = {{1e-5}}, float[4, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}>
        {{ p = Add(x, three) q = Clip(p, low, high) r = Mul(x, q) a = Div(r, high)
           m = MatMul(a, w)
           t = Add(m, three) u = Clip(t, low, high) v = Mul(m, u) b = Div(v, high) {more} }}"""
    )


NORMALIZED = (
    "e = ReduceMean<axes = [-1]>(b) d = Sub(b, e) f = Pow(d, two) h = ReduceMean<axes = [-1]>(f) "
    "i = Add(h, eps) j = Sqrt(i) k = Div(d, j) y = Mul(k, s)"
)
FEEDS = {"x": np.ones((1, 4), np.float32)}


def target(*forms: str) -> Target:
    return replace(load_target("cpu-x64"), forms=forms)


def chosen(
    graph: Graph, bench: Bench, *forms: str, opset_is_free: bool = True
) -> tuple[FloatForm, Sequence[str]]:
    trial = Trial(target(*forms), lambda: FEEDS, bench, opset_is_free=opset_is_free)
    return fastest_form(graph, FloatForm("default", graph.opset), trial)


def made(graph: Graph, form: FloatForm) -> list[str]:
    result, _ = float_graph(graph, form.passes, target(), form.opset)
    return [node.op_type for node in result.nodes()]


def test_a_higher_opset_is_taken_where_it_gains() -> None:
    form, notes = chosen(swishes(), Priced(price=of_operators({})))
    assert form == FloatForm("default", 14)
    assert made(swishes(), form) == ["HardSwish", "MatMul", "HardSwish"]
    (note,) = notes
    assert note == "Measured here: opset 14 makes the model 1.67 times as fast."


def test_the_lowest_opset_stays_where_nothing_is_gained_or_it_is_given() -> None:
    slow = Priced(price=of_operators({"HardSwish": 5.0}))
    assert chosen(swishes(), slow) == (FloatForm("default", 13), ())
    assert chosen(swishes(), Priced(), opset_is_free=False) == (FloatForm("default", 13), ())


def test_of_opsets_that_are_as_fast_the_lowest() -> None:
    graph = swishes(more=NORMALIZED)
    without, _ = chosen(graph, Priced(price=of_operators({"LayerNormalization": 8.0})))
    assert without.opset == 14
    with_norm, _ = chosen(graph, Priced())
    assert with_norm.opset == 17 and "LayerNormalization" in made(graph, with_norm)


def test_an_opset_that_the_runtime_does_not_know_is_passed_over() -> None:
    class Old(Priced):
        def times(self, models, feeds, *, seconds):  # type: ignore[no-untyped-def]
            if any(graph.opset > 16 for graph in models.values()):
                raise InputError("opset 17 is not supported")
            return super().times(models, feeds, seconds=seconds)

    form, _ = chosen(swishes(more=NORMALIZED), Old())
    assert form.opset == 14


def test_nothing_is_tried_where_there_is_no_other_form() -> None:
    bench = Priced()
    graph = swishes(17)
    form, notes = chosen(graph, bench)
    assert (form.opset, notes, bench.sizes) == (17, (), [])


def of_rows(prices: Mapping[int, float]) -> Price:
    """What HardSwish takes, by the numbers in a row; all else takes 1."""

    def price(node: Node) -> float:
        columns = (node.output.shape or (0,))[-1]
        return prices[int(columns or 0)] if node.op_type == "HardSwish" else 1.0

    return price


def test_a_form_is_left_out_of_the_regions_that_lose_by_it() -> None:
    graph = swishes(17)
    form, notes = chosen(graph, Priced(price=of_rows({4: 0.5, 2: 9.0})), "fuse-hard-swish")
    assert form.passes == "default,fuse-hard-swish{without=('y',)}"
    assert made(graph, form) == ["HardSwish", "MatMul", "Add", "Clip", "Mul", "Div"]
    assert "fuse-hard-swish in 1 of 2 regions" in notes[0]


def test_regions_in_bodies_are_measured_too() -> None:
    graph = Graph.from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[N, 4] x) => (float[N, 4] y)
        <float three = {3}, float low = {0}, float high = {6},
         float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2, 4] v = {1, 2, 3, 4, 5, 6, 7, 8}>
        { y = If(c) <
            then_branch = then () => (float[N, 4] a)
              { p = Add(x, three) q = Clip(p, low, high) r = Mul(x, q) a = Div(r, high) },
            else_branch = else () => (float[N, 4] e)
              { m = MatMul(x, w) t = Add(m, three) u = Clip(t, low, high) n = Mul(m, u)
                b = Div(n, high) e = MatMul(b, v) }
          > }"""
    )
    trial = Trial(
        target("fuse-hard-swish"),
        lambda: {"c": np.array(True), **FEEDS},
        Priced(price=of_rows({4: 0.5, 2: 9.0})),
    )
    form, notes = fastest_form(graph, FloatForm("default", 17), trial)
    assert form.passes == "default,fuse-hard-swish{without=('b',)}"
    assert "fuse-hard-swish in 1 of 2 regions" in notes[0]


def test_what_gains_nothing_as_a_whole_is_dropped() -> None:
    """The parts of one HardSwish take less than it by the profile, and more as a whole."""
    bench = Priced(price=of_rows({4: 0.5, 2: 9.0}), whole=of_operators({}))
    form = chosen(swishes(17), bench, "fuse-hard-swish")
    assert form == (FloatForm("default", 17), ())
    assert len(bench.sizes) > 1, "it was tried"


ATTENTION = """<ir_version: 10, opset_import: ["": 21]>
g (float[1, 2, 3, 4] x) => (float[1, 2, 3, 4] y)
{ k = Transpose<perm = [0, 1, 3, 2]>(x) s = MatMul(x, k) p = Softmax<axis = -1>(s)
  y = MatMul(p, x) }"""


def test_a_form_that_does_not_stand_by_default_is_put_in_with_the_opset_it_needs() -> None:
    graph = Graph.from_text(ATTENTION)
    feeds = {"x": np.ones((1, 2, 3, 4), np.float32)}
    trial = Trial(target("fuse-attention"), lambda: feeds, Priced())
    form, notes = fastest_form(graph, FloatForm("default", 21), trial)
    assert form == FloatForm("default,fuse-attention", 23)
    assert made(graph, form) == ["Attention"] and len(notes) == 1
    slow = Priced(price=of_operators({"Attention": 9.0}))
    trial = Trial(target("fuse-attention"), lambda: feeds, slow)
    assert fastest_form(graph, FloatForm("default", 21), trial) == (FloatForm("default", 21), ())


def test_a_part_stands_for_repeated_blocks() -> None:
    blocks = " ".join(
        f"p{n} = Add(x{n}, three) q{n} = Clip(p{n}, low, high) r{n} = Mul(x{n}, q{n}) "
        f"s{n} = Div(r{n}, high) x{n + 1} = MatMul(s{n}, w)"
        for n in range(6)
    )
    graph = Graph.from_text(
        f"""<ir_version: 8, opset_import: ["": 13]> g (float[N, 2] x0) => (float[N, 2] y)
        <float three = {{3}}, float low = {{0}}, float high = {{6}}, float[2, 2] w = {{1, 2, 3, 4}}>
        {{ {blocks} y = Neg(x6) }}"""
    )
    bench = Priced(price=of_rows({2: 9.0}))
    feeds = {"x0": np.ones((1, 2), np.float32)}
    trial = Trial(target("fuse-hard-swish"), lambda: feeds, bench)
    form, _ = fastest_form(graph, FloatForm("default", 17), trial)
    assert form.passes == f"default,fuse-hard-swish{{without={tuple(f's{n}' for n in range(6))}}}"
    assert max(bench.sizes) <= 15 < len(graph) == 31


def test_targets_name_passes_that_write_forms() -> None:
    names = [step.name for step in form_passes(load_target("cpu-x64"))]
    assert "fuse-attention" in names and "residual-as-sum" in names
    with pytest.raises(InputError, match="'fold-constants' writes no form"):
        form_passes(target("fold-constants"))


@pytest.mark.usefixtures("computed")
def test_the_plan_records_the_form_and_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swish, others = of_rows({4: 0.1, 2: 3.0}), {"HardSigmoid": 3.0}
    others |= dict.fromkeys(("Add", "Clip", "Div"), 0.1)

    def price(node: Node) -> float:
        return others.get(node.op_type, swish(node))

    monkeypatch.setattr("onnxq.prepare.Bench", lambda *_: Priced(price=price))
    model, data = tmp_path / "m.onnx", {"x": np.random.default_rng(0).normal(size=(32, 4))}
    data["x"] = data["x"].astype(np.float32)
    save(swishes(13), model)
    out, plan = tmp_path / "q.onnx", tmp_path / "p.toml"
    found = optimize(model, data, output=out, plan_output=plan, min_speedup=0.0, min_sqnr=5.0)
    assert found.plan.passes == "default,fuse-hard-swish{without=('y',)}"
    assert found.plan.opset == 14
    assert any("in 1 of 2 regions" in note for note in found.report.notes)
    apply_plan(model, plan, output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    assert Plan.load(plan).passes == found.plan.passes
    assert make_plan(model, data, opset=13).opset == 13


@pytest.mark.usefixtures("computed")
def test_a_table_of_costs_says_for_which_form_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.prepare.Bench", lambda *_: Priced())
    model, data = tmp_path / "m.onnx", {"x": np.ones((8, 4), np.float32)}
    save(swishes(13), model)
    table = find_costs(model, data)
    assert (table.passes, table.opset) == ("default", 14)
    monkeypatch.setattr("onnxq.prepare.fastest_form", None)
    assert make_plan(model, data, cost_table=table).opset == 14
