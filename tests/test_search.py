"""The search for the fastest mixture of precisions that keeps a promise.

Nothing is timed: costs are computed, and the smaller a candidate's file, the faster it counts as.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq import study
from onnxq.cost import flops_costs
from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types, load, save, to_proto
from onnxq.optimization import Optimized, optimize
from onnxq.plan import Plan
from onnxq.plan.apply import float_graph
from onnxq.planning import apply_plan, make_plan
from onnxq.prepare import Prepared, prepare
from onnxq.runtime import Backend, OutputError, Session
from onnxq.search import Candidate, Search, preferred
from onnxq.targets import load_target
from onnxq.verify import Gate, Report
from onnxq.verify.metrics.accuracy import Accuracy
from onnxq.verify.precision import describe
from onnxq.verify.result import MetricFacts
from tests.networks import branches, chain, computed, inputs, quick_interleaved, shared
from tests.verify.reports import a_report

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")
FAST = {"min_speedup": 0.0}


def sought(graph: Graph, **options: object) -> Optimized:
    data = inputs(graph, 32)
    return optimize(to_proto(graph), data, **FAST | options)  # type: ignore[arg-type]


def precisions(found: Optimized) -> dict[str, str]:
    return {layer.node: layer.precision for layer in found.report.layers}


def test_everything_is_quantized_where_the_promise_allows(tmp_path: Path) -> None:
    found = sought(chain(), min_sqnr=20, output=tmp_path / "q.onnx")
    assert found.passed and found.written == tmp_path / "q.onnx"
    assert all(found_as == "int8" for node, found_as in precisions(found).items() if "conv" in node)
    report = found.report
    assert report.candidates and report.candidates[0].speedup >= report.candidates[-1].speedup
    assert any(c.label == "float, rewritten" and c.speedup < 1.1 for c in report.candidates)
    verified = [c for c in report.candidates if c.sqnr_db is not None]
    assert any(c.sqnr_db == pytest.approx(report.sqnr_db) for c in verified)
    assert Report.from_json(report.to_json()) == report
    layer = next(layer for layer in report.layers if layer.node == "conv1")
    assert layer.sensitivity is not None and layer.sensitivity > 0
    assert "in float" in layer.reason or "spares" in layer.reason


def test_a_tighter_promise_is_kept_by_a_mixture() -> None:
    graph = chain(6)
    loose = sought(graph, min_sqnr=15)
    tight = sought(graph, min_sqnr=loose.report.sqnr_db + 4)
    assert tight.passed and tight.report.sqnr_db >= loose.report.sqnr_db + 4
    kinds = set(precisions(tight).values())
    assert {"int8", "float32"} <= kinds, "neither all nor nothing"
    failed = [c for c in tight.report.candidates if c.sqnr_db and c.sqnr_db < tight.report.sqnr_db]
    assert failed, "faster ones were tried, and are reported"


def test_nothing_lost_is_allowed_to_be_float(tmp_path: Path) -> None:
    graph = chain()
    data = inputs(graph, 32)
    labels = Session(to_proto(graph)).run(data)["y"].argmax(axis=1)
    out, plan = tmp_path / "q.onnx", tmp_path / "p.toml"
    promises = {"max_drop": 0.0, "min_sqnr": 130.0, **FAST}
    save(graph, tmp_path / "m.onnx")
    found = optimize(
        tmp_path / "m.onnx", {**data, "labels": labels}, output=out, plan_output=plan, **promises
    )
    assert found.passed and out.exists()
    assert set(precisions(found).values()) == {"float32"}
    assert apply_plan(tmp_path / "m.onnx", plan, output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


def test_an_impossible_promise_reports_the_best_and_writes_nothing(tmp_path: Path) -> None:
    out, plan = tmp_path / "q.onnx", tmp_path / "p.toml"
    found = sought(chain(), min_speedup=50, output=out, plan_output=plan)
    assert not found.passed and found.written is None
    assert list(tmp_path.iterdir()) == []
    (gate,) = (g for g in found.report.gates if g.expr == "speedup>=50")
    assert not gate.passed and gate.value is not None
    assert found.report.candidates


def test_the_plan_makes_the_same_bytes_again(tmp_path: Path) -> None:
    save(chain(5), tmp_path / "m.onnx")
    data = inputs(chain(5), 32)
    for number in range(2):
        found = optimize(
            tmp_path / "m.onnx",
            data,
            output=tmp_path / f"{number}.onnx",
            plan_output=tmp_path / f"{number}.toml",
            min_sqnr=32,
            **FAST,
        )
        assert found.passed and found.plan is not None and found.plan.nodes
    first, second = ((tmp_path / f"{n}.onnx").read_bytes() for n in range(2))
    assert first == second, "the same costs, the same plan"
    assert (tmp_path / "0.toml").read_text() == (tmp_path / "1.toml").read_text()
    apply_plan(tmp_path / "m.onnx", tmp_path / "0.toml", output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == first
    plan = Plan.load(tmp_path / "0.toml")
    assert plan.measured["sqnr_db"] == pytest.approx(found.report.sqnr_db, rel=1e-5)
    assert plan.promise == ("sqnr>=32", "speedup>=0")


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000), st.integers(0, 2), st.integers(0, 7))
def test_a_planted_layer_is_kept_out_of_int8(seed: int, planted: int, channel: int) -> None:
    graph = chain(seed=seed, planted=planted, channel=channel)
    plain = sought(graph, recipe="int8", min_sqnr=25)
    assert not plain.passed, "plain int8 breaks the promise"
    found = sought(graph, min_sqnr=25)
    assert found.passed
    kept = {name for name, kind in precisions(found).items() if kind != "int8"}
    assert {f"conv{planted}", f"conv{planted + 1}"} & kept


def test_nodes_of_one_weight_get_one_precision() -> None:
    found = sought(shared(), min_sqnr=20)
    kinds = precisions(found)
    assert kinds["one"] == kinds["other"]
    stored = [v for v in found.graph.initializers() if v.data and v.data.size == 64]
    assert len(stored) == 1, "and the weight is stored once"


def test_pins_are_respected_and_marked() -> None:
    found = sought(chain(), min_sqnr=10, pins=["conv1=float32", "head=int8-dynamic"])
    layers = {layer.node: layer for layer in found.report.layers}
    assert (layers["conv1"].precision, layers["head"].precision) == ("float32", "int8-dynamic")
    assert layers["conv1"].reason == layers["head"].reason == "pinned by hand"
    assert layers["conv3"].precision == "int8"
    assert found.plan is not None and found.plan.by_hand() == ["conv1", "head"]


def test_a_pin_to_integers_rules_the_float_model_out() -> None:
    found = sought(chain(), min_sqnr=200, pins=["conv1=int8"])
    assert not found.passed
    assert precisions(found)["conv1"] == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pins": ["conv9=float32"]}, "pin 'conv9' matches no node that can be quantized; a plan"),
        ({"pins": ["conv1=int7"]}, "asks for 'int7'"),
        ({"pins": ["conv1"]}, "PATTERN=PRECISION"),
        ({"pins": ["conv1=int8-dynamic"]}, "'conv1' cannot have the precision 'int8-dynamic'"),
        ({"pins": ["residual=int8", "conv3=float32"]}, "all the precisions that are pinned"),
        ({"plan_output": "no/such/p.toml"}, "the folder .* does not exist"),
    ],
)
def test_what_cannot_be_done(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as found:
        sought(chain(), **options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("opset", [13, 21])
def test_float_passes_leave_the_source_as_it_is(opset: int) -> None:
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N, 4] x) => (float[N, 4] y) {{ a = Identity(x) y = Relu(a) }}""")
    before = str(graph)
    made, _ = float_graph(graph, "default", load_target("cpu-x64"), 13)
    assert [node.op_type for node in made.nodes()] == ["Relu"]
    assert str(graph) == before


def test_a_smaller_file_is_promised() -> None:
    found = sought(chain(), max_size_ratio=0.9, min_sqnr=10, methods="none")
    assert found.passed
    assert found.report.size.candidate_bytes <= 0.9 * found.report.size.float_bytes
    (gate,) = (g for g in found.report.gates if g.expr.startswith("size_ratio"))
    assert gate.passed
    assert not sought(chain(), max_size_ratio=0.001, min_sqnr=10, methods="none").passed


def test_the_work_folder_spares_the_next_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"min_sqnr": 20, "work_folder": tmp_path / "work"}
    first = sought(chain(), **options)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("found before")

    monkeypatch.setattr("onnxq.prepare.calibrate", never)
    monkeypatch.setattr("onnxq.study.analyse", never)
    second = sought(chain(), **options)
    assert to_proto(second.graph) == to_proto(first.graph)
    for other in ({"seed": 1}, {"calibrator": "percentile"}, {"samples": 9}):
        with pytest.raises(AssertionError, match="found before"):
            sought(chain(), **options, **other)
    with pytest.raises(AssertionError, match="found before"):
        sought(chain(seed=5), **options)


def test_an_interrupted_run_leaves_what_it_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"min_sqnr": 20, "work_folder": tmp_path / "work", "output": tmp_path / "q.onnx"}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onnxq.study.measure_costs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sought(chain(), **options)
    assert [p.name for p in tmp_path.iterdir()] == ["work"]
    names = sorted(p.name.split("-")[0] for p in (tmp_path / "work").iterdir())
    assert set(names) >= {"ranges", "sensitivity"}
    monkeypatch.setattr("onnxq.prepare.calibrate", interrupted)
    monkeypatch.setattr("onnxq.study.analyse", interrupted)
    assert sought(chain(), **options).written


def test_the_written_model_says_why(tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    found = sought(chain(), min_sqnr=20, output=out)
    assert found.plan is not None
    planned = found.plan.reasons()
    described = {layer.node: layer.reason for layer in describe(load(out))}
    assert {name: described[name] for name in planned} == planned
    assert np.all([planned[name] for name in planned])


def test_a_promise_is_no_reason_where_borders_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders that count three times leave the small product in float, whatever is promised."""
    monkeypatch.setattr("onnxq.search.BORDER_FACTORS", (3.0,))
    monkeypatch.setattr(
        "onnxq.study.measure_costs",
        lambda graph, nodes, placed, variants, feeds, **_: replace(
            flops_costs(nodes, placed, list(variants)), kind="latency"
        ),
    )
    graph, generator = Graph("g", model=ModelInfo(8, {"": 17})), np.random.default_rng(0)
    image = TensorType(DataType.FLOAT, ("N", 32, 4, 4))
    value = graph.add_input("x", image)
    for number, side in enumerate((3, 1, 3)):
        weights = generator.normal(size=(32, 32, side, side)).astype(np.float32)
        pads = {"pads": [side // 2] * 4}
        read = graph.constant(weights, f"w{number}")
        value = graph.add("Conv", [value, read], pads, name=f"conv{number}").output
        value = graph.add("Erf", [value], name=f"erf{number}").output
    value.type = image
    graph.add_output(value)
    graph.rename(value, "y")
    infer_types(graph)
    made: list[tuple[str, Plan]] = []
    make = Search._make

    def noted(search: Search, label: str, plan: Plan, basis: study.Study) -> None:
        made.append((label, plan))
        make(search, label, plan, basis)

    monkeypatch.setattr(Search, "_make", noted)
    sought(graph, min_sqnr=10)
    (plan,) = (plan for label, plan in made if label == "plan with borders x3")
    (reason,) = (node.reason for node in plan.nodes if node.name == "conv1")
    assert reason == "integers would not be faster here, their borders counted"


def test_rare_outliers_are_clipped_where_that_is_nearer_to_float(tmp_path: Path) -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, 128, 128] x) => (float[N, 2, 128, 128] y)
        <float[2, 1, 1, 1] w = {1, -2}> { y = Conv(x, w) }""")
    generator = np.random.default_rng(0)
    seen, held_out = (
        generator.normal(size=(count, 1, 128, 128)).astype(np.float32) for count in (96, 8)
    )
    seen[5, 0, 7, 9] = 80
    save(graph, tmp_path / "m.onnx")

    def found(**options: object) -> Optimized:
        return optimize(
            tmp_path / "m.onnx",
            {"x": seen},
            eval_data={"x": held_out},
            **FAST | {"min_sqnr": 15, "pins": ["*=int8"], **options},  # type: ignore[arg-type]
        )

    plain, clipped = found(calibrator="minmax"), found(output=tmp_path / "q.onnx")
    assert clipped.report.sqnr_db > plain.report.sqnr_db + 10
    assert clipped.plan.calibrator == "mse" and plain.plan.calibrator == "minmax"
    assert any(c.label.endswith(", ranges by mse") for c in clipped.report.candidates)
    clipped.plan.save(tmp_path / "p.toml")
    apply_plan(tmp_path / "m.onnx", tmp_path / "p.toml", output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()


def test_of_equally_fast_candidates_the_one_that_loses_least_comes_first() -> None:
    def candidate(label: str, speedup: float, loss: float) -> Candidate:
        plan, basis = Plan("", "cpu-x64", loss=loss), SimpleNamespace()
        return Candidate(label, Graph("g"), Path(label), plan, study=basis, speedup=speedup)  # type: ignore[arg-type]

    found = preferred(
        [
            candidate("float", 1.0, 0.0),
            candidate("fastest", 2.0, 3e-3),
            candidate("as fast", 1.99, 1e-3),
            candidate("nearly", 1.93, 1e-9),
        ]
    )
    assert [c.label for c in found] == ["as fast", "fastest", "nearly", "float"]


def taking(wide: bool) -> list[dict[str, np.ndarray]]:
    samples = inputs(branches(), 12)["x"]
    return [{"x": x[None], "wide": np.array(wide)} for x in samples]


def test_branches_are_searched_where_samples_take_them() -> None:
    model, data = to_proto(branches()), taking(True)
    # Scaled tensors have no counterpart in the float model.
    found = optimize(model, data, min_sqnr=20, min_speedup=0.0, methods="none")
    layers = {layer.node: layer for layer in found.report.layers}
    assert layers["then_conv1"].precision == "int8" and layers["then_conv1"].sensitivity
    assert layers["then_conv1"].sqnr_db is not None and 20 < layers["then_conv1"].sqnr_db < 80
    assert any("QLinearConv" in name for name in found.report.output.integer_operators)
    assert layers["else_conv1"].precision == "float32"
    assert "no range" in layers["else_conv1"].reason
    again = apply_plan(model, Plan.from_toml(found.plan.to_toml()))
    assert to_proto(again) == to_proto(found.graph)
    data += taking(False)
    both = optimize(model, data, min_sqnr=20, min_speedup=0.0).report.layers
    assert {layer.precision for layer in both if layer.op_type == "Conv"} == {"int8"}


def test_what_no_sample_runs_is_not_chosen_by_a_search() -> None:
    model, data = to_proto(branches()), taking(True)
    found = optimize(model, data, precisions=["int8-dynamic"], min_sqnr=10, min_speedup=0.0)
    layers = {layer.node: layer for layer in found.report.layers}
    assert layers["then_gemm"].precision == "int8-dynamic"
    assert layers["else_gemm"].precision == "float32"
    whole = optimize(model, data, recipe="int8-dynamic", min_sqnr=10, min_speedup=0.0)
    gemms = {n.name: n.precision for n in whole.plan.nodes if n.name.endswith("gemm")}
    assert set(gemms.values()) == {"int8-dynamic"} and len(gemms) == 2


def test_the_batch_of_the_deployment_is_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []

    def measured(sessions, feeds, **_):  # type: ignore[no-untyped-def]
        fed.append(len(feeds["x"]))
        return quick_interleaved(sessions, feeds)

    monkeypatch.setattr(Backend, "time", staticmethod(measured))
    costs = study.measure_costs

    def of_costs(graph, nodes, placed, variants, feeds, **options):  # type: ignore[no-untyped-def]
        fed.append(len(feeds["x"]))
        return costs(graph, nodes, placed, variants, feeds, **options)

    monkeypatch.setattr(study, "measure_costs", of_costs)
    found = sought(chain(), batch_size=5, throughput=(2, 7), min_sqnr=5)
    assert set(fed) == {5, 2, 7}
    assert found.report.latency is not None and found.report.latency.batch == 5
    assert [facts.batch for facts in found.report.throughput] == [2, 7]
    assert found.report.throughput[1].float_per_second == 7000


def test_nodes_of_bodies_are_pinned_and_checked() -> None:
    model, data = to_proto(branches()), taking(True)
    pinned = optimize(model, data, pins=["then_*=float32"], min_sqnr=5, min_speedup=0.0)
    assert set(precisions(pinned).values()) <= {"float32"}
    forced = optimize(model, data, pins=["then_conv0=int8"], min_sqnr=5, min_speedup=0.0)
    assert precisions(forced)["then_conv0"] == "int8"
    with pytest.raises(InputError, match="'then_pool' cannot have the precision 'int8-dynamic'"):
        optimize(model, data, pins=["then_pool=int8-dynamic"], min_sqnr=5, min_speedup=0.0)


def test_model_local_functions_are_inlined_and_quantized() -> None:
    weight = ", ".join(str(n % 7 - 3) for n in range(64))
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N, 8] x) => (float[N, 8] y) <float[8, 8] w = {{{weight}}}>
        {{ y = own.twice(x, w) }}
        <domain: "own", opset_import: ["": 17]> twice (a, b) => (c) {{
          h = MatMul(a, b) c = MatMul(h, b) }}""")
    found = optimize(to_proto(graph), inputs(graph, 16), recipe="int8", min_sqnr=5, min_speedup=0.0)
    assert [layer.op_type for layer in found.report.layers].count("MatMul") == 2
    assert not found.graph.model.functions
    assert found.report.output.integer_operators


SAMPLES = 400
RIGHT = np.arange(SAMPLES) >= 40


def judged(
    path: str, wrong: list[int], sqnr: float, same: float, kl: float | None
) -> tuple[Candidate, Accuracy]:
    """A candidate that has some samples wrong beside those that the float model has."""
    metric, right = Accuracy(), RIGHT.copy()
    right[wrong] = ~right[wrong]
    metric.add({"y": np.eye(2)[right.astype(int)]}, np.ones(SAMPLES, np.int64), SAMPLES)
    drop = float(RIGHT.mean() - right.mean())
    agreement = a_report().agreement
    assert agreement is not None
    report = a_report(
        metric=MetricFacts("accuracy", 0.9, 0.9 - drop, drop, SAMPLES, None),
        outputs=(OutputError("y", sqnr, 0.99, 0.1),),
        agreement=replace(agreement, value=same, kl=kl),
    )
    plan = Plan("", "cpu-x64")
    return Candidate(path, Graph("g"), Path(path), plan, speedup=2.0, report=report), metric


@pytest.mark.parametrize(
    ("own", "sqnr", "same", "kl", "is_taken"),
    [
        ([100, 101, 102], 17.0, 0.95, None, False),
        ([100, 101, 102], 20.5, 0.95, None, True),
        ([100, 101, 102], 17.0, 0.99, None, True),
        ([], 17.0, 0.95, None, True),
        (list(range(60, 63)), 17.0, 0.95, None, False),
        ([100, 101, 102], 20.5, 0.95, 0.02, False),
        ([100, 101, 102], 17.0, 0.95, 0.011, True),
    ],
    ids=[
        "by luck",
        "as near",
        "agrees more",
        "is shown to lose less",
        "wrong elsewhere",
        "diverges more",
        "diverges as little",
    ],
)
def test_a_promise_that_is_kept_by_luck_is_not_kept(
    own: list[int], sqnr: float, same: float, kl: float | None, is_taken: bool
) -> None:
    """0.75 points against 1.5 of another one with 21 dB cannot be told apart on 400 samples."""
    lucky, mine = judged("lucky", own, sqnr, same, kl)
    other, theirs = judged("other", list(range(100, 106)), 21.0, 0.97, kl and 0.01)
    scored = {lucky.path: mine, other.path: theirs}
    job = SimpleNamespace(reference=SimpleNamespace(scored=scored))
    basis = SimpleNamespace(prepared=SimpleNamespace(job=job))
    search = Search(basis, [Gate("drop", "<=", 0.01)])  # type: ignore[arg-type]
    search.candidates = [lucky, other]
    notes = search.notes()
    assert (not notes) == is_taken
    if notes:
        assert notes[0].startswith("'lucky' was not taken: that it loses less than 'other'")


# Plans that others made


def test_a_plan_that_was_given_is_tried_as_it_is(tmp_path: Path) -> None:
    graph = chain()
    data = inputs(graph, 32)
    plan = make_plan(to_proto(graph), data, recipe="int4-weight", methods="gptq")
    plan.save(tmp_path / "trained.toml")
    name = f"plan {tmp_path / 'trained.toml'}"
    options = {"candidates": [tmp_path / "trained.toml"], "precisions": ("int8-weight",)}
    found = sought(graph, min_sqnr=10, **options)
    assert to_proto(found.graph) == to_proto(apply_plan(to_proto(graph), plan))
    assert found.plan.precisions() == plan.precisions() and found.plan.tuned
    (own,) = (c for c in found.report.candidates if c.label == name)
    assert own.sqnr_db == pytest.approx(found.report.sqnr_db)
    assert {facts.method for facts in found.report.methods} == {"gptq"}
    strict = sought(graph, min_sqnr=found.report.sqnr_db + 3, **options)
    assert strict.passed and strict.plan.precisions() != plan.precisions()
    assert name in {c.label for c in strict.report.candidates}


def beside_tensorrt(folder: Path) -> str:
    """A target that has another table tried beside its own."""
    table = folder / "mine.toml"
    table.write_text('extends = "cpu-x64"\nalternatives = ["tensorrt"]\n')
    return str(table)


def tell_tables_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared has a note on whose it is."""
    for module, note in (("optimization", "of its own"), ("search", "of tensorrt")):
        monkeypatch.setattr(
            f"onnxq.{module}.prepare",
            lambda job, note=note: replace(prepare(job), notes=(note,)),
        )


def test_what_another_table_makes_is_tried_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def its_own_are_slow(search: Search, candidates: list[Candidate], seconds: float) -> None:
        for candidate in candidates:
            candidate.speedup = 2.0 + candidate.is_given

    monkeypatch.setattr(Search, "_time", its_own_are_slow)
    tell_tables_apart(monkeypatch)
    target, graph, pins = beside_tensorrt(tmp_path), chain(), ["head=float32"]
    found = sought(graph, target=target, pins=pins, min_sqnr=10)
    assert "of tensorrt" in found.report.notes and "of its own" not in found.report.notes
    (chosen,) = (c for c in found.report.candidates if c.chosen)
    assert chosen.label == "all int8 as on tensorrt"
    whole = {"recipe": "int8", "target": "tensorrt", "pins": pins}
    plan = make_plan(to_proto(graph), inputs(graph, 32), **whole)  # type: ignore[arg-type]
    for same in (plan, found.plan):
        assert to_proto(found.graph) == to_proto(apply_plan(to_proto(graph), same))
    assert found.plan.target == "tensorrt"
    own = sought(graph, target=target, pins=["pool=float32"], min_sqnr=10)
    note = "'all int8 as on tensorrt' was not tried: the pin 'pool' matches no node"
    assert own.passed and any(n.startswith(note) for n in own.report.notes)
    without = sought(graph, target=target, precisions=("int8-dynamic",), min_sqnr=10)
    assert not any("tensorrt" in c.label for c in without.report.candidates)


def test_what_another_table_makes_of_some_nodes_is_tried_where_it_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = {"mine.toml": 1.0, "tensorrt": 1.0}

    def by_table(search: Search, candidates: list[Candidate], seconds: float) -> None:
        for candidate in candidates:
            quantized = [p for p in candidate.plan.precisions().values() if p != "float32"]
            candidate.speedup = 1 + fast[Path(candidate.plan.target).name] * len(quantized)

    studied = []
    monkeypatch.setattr(Search, "_time", by_table)
    monkeypatch.setattr("onnxq.search.study", lambda p: studied.append(p) or study.study(p))
    tell_tables_apart(monkeypatch)
    target, graph = beside_tensorrt(tmp_path), chain(6)
    save(graph, tmp_path / "m.onnx")

    def found(**options: object) -> Optimized:
        given = {"target": target, "precisions": ("int8",), **FAST, **options}
        return optimize(tmp_path / "m.onnx", inputs(graph, 32), **given)  # type: ignore[arg-type]

    whole = {c.label: c.sqnr_db for c in found(min_sqnr=10).report.candidates}
    least = whole["all int8 as on tensorrt"] + 3
    assert not studied, "its own are as fast, or what is faster there keeps the promise"
    fast["tensorrt"] = 3.0
    out, plan = tmp_path / "q.onnx", tmp_path / "p.toml"
    mixed = found(min_sqnr=least, output=out, plan_output=plan)
    (chosen,) = (c for c in mixed.report.candidates if c.chosen)
    assert chosen.label.startswith("plan as on tensorrt with borders x")
    assert mixed.passed and 0.3 < chosen.predicted_loss / mixed.plan.loss < 3
    assert {"int8", "float32"} <= set(mixed.plan.precisions().values())
    assert len(studied) == 1 and mixed.plan.target == "tensorrt" and mixed.plan.loss > 0
    assert any(layer.sensitivity for layer in mixed.report.layers)
    assert "of tensorrt" in mixed.report.notes and "of its own" not in mixed.report.notes
    again = tmp_path / "again.onnx"
    apply_plan(tmp_path / "m.onnx", plan, output=again)
    assert again.read_bytes() == out.read_bytes()


def its_whole_is_fast(search: Search, candidates: list[Candidate], seconds: float) -> None:
    for candidate in candidates:
        quantized = [p for p in candidate.plan.precisions().values() if p != "float32"]
        candidate.speedup = 1 + (1 + 2 * (candidate.plan.target == "tensorrt")) * len(quantized)


@pytest.mark.parametrize("own", [1.0, 1e6], ids=["as measured", "its own lose more"])
def test_losses_of_one_study_alone_are_compared(
    own: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divergence is no noise, and what other tables predict says nothing of this one."""

    def scaled(prepared: Prepared) -> study.Study:
        found = study.study(prepared)
        scales = {p: own * scale for p, scale in found.sensitivity.scales.items()}
        return replace(found, sensitivity=replace(found.sensitivity, scales=scales))

    monkeypatch.setattr("onnxq.optimization.study", scaled)
    monkeypatch.setattr(Search, "_time", its_whole_is_fast)
    options = {"target": beside_tensorrt(tmp_path), "precisions": ("int8",), "proxy": "kl"}
    found = sought(chain(4), min_sqnr=45, **options)
    by_label = {c.label: c for c in found.report.candidates}
    whole = by_label["all int8 as on tensorrt"]
    limits = [float(c.split("at most ")[1]) for c in by_label if c.startswith("plan as on")]
    assert limits and all(limit < whole.predicted_loss for limit in limits)
    assert found.passed and found.plan.target == "tensorrt" and found.plan.proxy == "kl"


@pytest.mark.parametrize(
    ("broken", "note"),
    [
        ("study", "No mixed plans as on tensorrt were tried: it does not run."),
        ("uniform_plan", "'all int8 as on tensorrt' was not tried: it does not run."),
        ("Search._enter", "'all int8 as on tensorrt' was not tried: it does not run."),
    ],
    ids=["analysed", "planned", "run"],
)
def test_another_table_that_cannot_be_tried_ends_no_search(
    broken: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InputError("it does not run")

    monkeypatch.setattr(f"onnxq.search.{broken}", fail)
    monkeypatch.setattr(Search, "_time", its_whole_is_fast)
    found = sought(chain(), target=beside_tensorrt(tmp_path), precisions=("int8",), min_sqnr=50)
    assert found.passed and note in found.report.notes


def test_there_is_no_time_for_what_another_table_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tightened = Search._tightened

    def slow(search: Search, *given: object) -> Candidate | None:
        monkeypatch.setattr(type(search.job.time), "is_over", lambda _: True)
        return tightened(search, *given)  # type: ignore[arg-type]

    def its_own_are_slow(search: Search, candidates: list[Candidate], seconds: float) -> None:
        for candidate in candidates:
            candidate.speedup = 2.0 + candidate.is_given

    monkeypatch.setattr(Search, "_tightened", slow)
    monkeypatch.setattr(Search, "_time", its_own_are_slow)
    found = sought(chain(), target=beside_tensorrt(tmp_path), min_sqnr=50)
    assert "mixed plans as on tensorrt" in {u.what for u in found.report.untried}


def test_a_plan_that_cannot_be_tried_is_refused(tmp_path: Path) -> None:
    graph = chain()
    data = inputs(graph, 32)
    own = make_plan(to_proto(graph), data, recipe="int8", target="cpu-x64")
    for options, text in (
        ({"candidates": [replace(own, model_sha256="0" * 64)]}, "plan 1 is for another model"),
        ({"candidates": [replace(own, target="qnn")]}, "plan 1 is for the target 'qnn'"),
        ({"candidates": [own], "keep_overridable": True}, "without --keep-overridable"),
        ({"candidates": [own], "pins": ["head=float32"]}, "plan 1 gives the node 'head' .*'int8'"),
        ({"candidates": [own], "recipe": "int8"}, "leave --candidate out"),
        ({"candidates": [own], "adaptive": tmp_path / "bundle"}, "leave --candidate or --adaptive"),
        ({"candidates": [tmp_path / "none.toml"]}, "none.toml"),
    ):
        with pytest.raises(InputError, match=text):
            sought(graph, target="cpu-x64", **options)
