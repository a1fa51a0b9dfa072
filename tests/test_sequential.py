"""Sequential tuning: layers see what the quantized layers before them give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types, save
from onnxq.job import open_job
from onnxq.needs import ChannelsOf, CrossGramOf, Need
from onnxq.observe import Observations
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.planning import apply_plan
from onnxq.prepare import observed, prepare
from onnxq.runtime.executor import IN_PROCESS
from onnxq.sequential import _Passes, tune_in_order
from onnxq.study import plan_of, uniform_plan
from onnxq.tune import Layer, Tuner
from onnxq.tune.method import parse_method
from onnxq.tune.mse import Mse
from tests.helpers import run
from tests.networks import branches, chain, inputs
from tests.runtime.spreading import Spread, one_thread

RNG = np.random.default_rng(5)
WIDTH = 32


@dataclass(frozen=True)
class Stretched(Tuner):
    """Scales too large, and beside them what was seen of what the node reads."""

    name: ClassVar[str] = "stretched"
    description: ClassVar[str] = "scales that are too large"
    is_sequential: ClassVar[bool] = True

    def refusal(self, layer: Layer) -> str:
        return Mse().refusal(layer)

    def needs(self, layer: Layer) -> Sequence[Need]:
        read = layer.node.inputs[0].name  # type: ignore[union-attr]
        return ChannelsOf(read, 1), CrossGramOf(read)

    def tune(self, layer: Layer, observations: Observations) -> Mapping[str, np.ndarray]:
        tensors = dict(Mse().tune(layer, observations))
        squares, cross = (observations.get(need) for need in self.needs(layer))
        seen = {"seen": squares.square.astype(np.float64), "cross": cross.matrix[0]}
        return {"scale": tensors["scale"] * 9, "zero_point": tensors["zero_point"], **seen}


@pytest.fixture(autouse=True)
def stretched(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("onnxq.tuning", "onnxq.transforming", "onnxq.tune.method"):
        monkeypatch.setattr(f"{place}.parse_method", lambda text: {"stretched": Stretched}[text]())


def attention() -> Graph:
    """Two blocks in which three products read one tensor; a mask is read by both; batch open."""

    def product(x: object, name: str) -> object:
        weight = RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        return graph.add("MatMul", [x, graph.constant(weight, f"{name}_w")], name=name).output

    graph = Graph("attention", model=ModelInfo(13, {"": 25}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 6, WIDTH)))
    mask = graph.add_input("mask", TensorType(DataType.FLOAT, ("N", 6, 6)))
    shift = graph.add("Mul", [mask, graph.constant(np.float32(4), "four")]).output
    value = x
    for block in ("a", "b"):
        q, k, v = (product(value, f"{block}_{part}") for part in "qkv")
        turned = graph.add("Transpose", [k], {"perm": [0, 2, 1]}).output
        scores = graph.add("Add", [graph.add("MatMul", [q, turned]).output, shift]).output
        read = graph.add("MatMul", [graph.add("Softmax", [scores]).output, v]).output
        value = graph.add("Add", [value, product(read, f"{block}_o")]).output
    graph.add_output(value)
    graph.add_output(shift)
    infer_types(graph)
    return graph


def attention_feeds(count: int = 21) -> dict[str, np.ndarray]:
    mask = RNG.standard_normal((count, 6, 6)).astype(np.float32)
    return {"x": RNG.standard_normal((count, 6, WIDTH)).astype(np.float32), "mask": mask}


def planned(
    model: Path, data: dict[str, np.ndarray], recipe: str, **options: object
) -> tuple[Plan, dict[str, np.ndarray], Graph]:
    """A plan, what it was calibrated on, and the float graph."""
    chosen = Options(recipe=recipe, methods=("stretched",), **options)  # type: ignore[arg-type]
    with open_job(model, data, chosen) as job:
        prepared = observed(prepare(job))
        plan = uniform_plan(prepared, recipe)
        again = plan_of(prepared, plan.nodes)
        assert again.tuned == plan.tuned, "the second plan takes what was computed"
        batches = [batch.feeds for batch in job.samples.batches()]
        feeds = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        return plan, feeds, prepared.graph


@pytest.mark.parametrize("memory_limit", [None, 1 << 20])
@pytest.mark.parametrize("case", ["attention", "convolutions"])
def test_layers_see_what_quantized_layers_give(
    case: str, memory_limit: int | None, tmp_path: Path
) -> None:
    graph = attention() if case == "attention" else chain()
    data = attention_feeds() if case == "attention" else inputs(graph, 21)
    save(graph, tmp_path / "m.onnx")
    plan, feeds, floats = planned(
        tmp_path / "m.onnx", data, "int8-weight", memory_limit=memory_limit
    )
    assert {n.method for n in plan.nodes if n.precision == "int8-weight"} == {"stretched"}
    quantized = apply_plan(tmp_path / "m.onnx", plan)
    for made in (quantized, floats):
        for name in (node.inputs[0].name for node in floats.nodes() if node.name in plan.tuned):
            if name in made.values and not made.values[name].is_output:
                made.add_output(made.values[name])
    ours, exact = run(quantized, feeds), run(floats, feeds)
    shifted = 0
    for node in floats.nodes():
        if node.name in plan.tuned:
            read = node.inputs[0].name
            found = plan.tuned[node.name]["seen"]
            axes = tuple(axis for axis in range(exact[read].ndim) if axis != 1)
            wanted, before = (np.square(of[read]).sum(axis=axes) for of in (ours, exact))
            np.testing.assert_allclose(found, wanted, rtol=1e-4)
            rows = [
                of[read].reshape(-1, of[read].shape[-1]).astype(np.float64) for of in (ours, exact)
            ]
            cross = rows[0].T @ rows[1]
            np.testing.assert_allclose(
                plan.tuned[node.name]["cross"], cross, rtol=1e-4, atol=1e-4 * np.abs(cross).max()
            )
            shifted += bool(np.abs(before / wanted - 1).max() > 0.01)
    assert shifted >= len(plan.tuned) - 3, "all but the first differ from the float model"


def test_the_same_plan_has_the_same_tensors_however_the_data_is_batched(tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", attention_feeds(24)
    save(attention(), model)
    one, _, _ = planned(model, data, "int4-weight")
    other, _, _ = planned(model, data, "int4-weight", batch_size=24)
    assert one.tuned_sha256 == other.tuned_sha256
    assert apply_plan(model, one).to_text() == apply_plan(model, other).to_text()
    assert one.tuned_sha256 != planned(model, attention_feeds(24), "int4-weight")[0].tuned_sha256


@pytest.mark.parametrize("method", ["learned-rounding", "mse"])
def test_several_processes_find_the_same_tensors_in_any_order(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("onnxq.tuning", "onnxq.transforming", "onnxq.tune.method"):
        monkeypatch.setattr(f"{place}.parse_method", parse_method)
    monkeypatch.setattr("onnxq.data.dataset.SHARD_SAMPLES", 8)
    one_thread(monkeypatch)
    save(attention(), tmp_path / "m.onnx")
    recipe = "int4-weight"
    options = Options(recipe, methods=method)
    with open_job(tmp_path / "m.onnx", attention_feeds(48), options) as job:
        spread = Spread(tmp_path / "spread", seed=2)
        plans = [
            uniform_plan(observed(prepare(replace(job, executor=executor))), recipe)
            for executor in (IN_PROCESS, spread)
        ]
    here, there = (replace(plan, tuned={}).to_dict() for plan in plans)
    assert plans[0].tuned and here == there
    assert plans[0].tuned_sha256 == plans[1].tuned_sha256 and spread.done > 2


def test_without_time_no_further_segment_is_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(attention(), tmp_path / "m.onnx")
    tuned: list[str] = []
    stepped: list[tuple[str, ...]] = []
    through = _Passes.through

    def counted(*args: Any) -> Any:
        stepped.append((*tuned,))
        return through(*args)

    monkeypatch.setattr(_Passes, "through", counted)
    with open_job(tmp_path / "m.onnx", attention_feeds(), Options(methods=("stretched",))) as job:
        prepared = observed(prepare(job))
        names = ("a_q", "a_o", "b_q")
        wanted = [(name, Stretched()) for name in names]
        precisions = dict.fromkeys(names, "int4-weight")
        ended = tune_in_order(
            *(prepared, precisions, wanted, {}, job.samples),
            is_over=lambda: len(tuned) == 2,
        )
        for name, _, _ in ended:
            tuned.append(name)
    assert tuned == ["a_q", "a_o"] and stepped == [("a_q",)]


def test_another_plan_is_tuned_anew(tmp_path: Path) -> None:
    """What is before a layer decides what it sees: a layer in float before it changes that."""
    model, data = tmp_path / "m.onnx", attention_feeds()
    save(attention(), model)
    with open_job(model, data, Options(recipe="int4-weight", methods=("stretched",))) as job:
        prepared = observed(prepare(job))
        plan = uniform_plan(prepared, "int4-weight")
        kept = [replace(n, precision="float32") if n.name == "a_o" else n for n in plan.nodes]
        other = plan_of(prepared, kept)
    assert set(plan.tuned) - set(other.tuned) == {"a_o"}
    seen = {n: [p.tuned[n]["seen"] for p in (plan, other)] for n in other.tuned}
    assert [n for n, (one, two) in seen.items() if not np.array_equal(one, two)] == [
        n for n in other.tuned if n.startswith("b_")
    ]


def test_nodes_of_bodies_are_left_out(tmp_path: Path) -> None:
    graph = branches()
    save(graph, tmp_path / "m.onnx")
    data = [{"x": inputs(graph, 2, seed=n)["x"], "wide": np.array(n % 2 == 0)} for n in range(4)]
    options = Options(recipe="int8-weight", methods=("stretched",))
    with open_job(tmp_path / "m.onnx", data, options) as job:
        prepared = observed(prepare(job))
        assert prepared.choices and all(n.graph.outer for n in prepared.nodes().values())
        with pytest.raises(InputError, match="none of the methods stretched is for a node"):
            uniform_plan(prepared, "int8-weight")
