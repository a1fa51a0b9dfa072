"""The main job end to end, on a network made here."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.comparison import compare
from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, load, to_proto
from onnxq.job import open_job, told_of_seen
from onnxq.options import Options
from onnxq.runtime import (
    Session,
    integer_operators,
    optimized_operators,
)
from onnxq.verify.workload import single_feed
from tests.networks import chain, computed, inputs
from tests.optimizing import (
    FAST,
    data,
    kept,
    listed,
    model,
    network,
    optimize,
    samples,
    short_timing,
)
from tests.quantization import run_reference

__all__ = ["computed", "data", "model", "short_timing"]

pytestmark = pytest.mark.usefixtures("computed")


@pytest.fixture(scope="module")
def result(
    model: Path, data: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnxq.Optimized, Path]:
    output = tmp_path_factory.mktemp("out") / "q.onnx"
    return optimize(model, data, output=output, max_drop=0.2, **FAST), output


def test_the_file_is_valid_smaller_and_runs_on_integers(
    result: tuple[onnxq.Optimized, Path], model: Path
) -> None:
    optimized, output = result
    assert optimized.written == output and optimized.passed
    onnx.checker.check_model(str(output), full_check=True)
    assert integer_operators(output) == {
        "com.microsoft:QLinearConv": 2,
        "com.microsoft:QLinearAdd": 1,
        "com.microsoft:QLinearGlobalAveragePool": 1,
        "com.microsoft:QGemm": 1,
    }
    assert optimized_operators(output)["QuantizeLinear"] == 1
    assert output.stat().st_size < model.stat().st_size * 0.6
    assert to_proto(load(output)) == to_proto(optimized.graph)
    assert [p.name for p in output.parent.iterdir()] == ["q.onnx"]


def test_the_report_tells_of_the_files_and_the_passes(
    result: tuple[onnxq.Optimized, Path], model: Path
) -> None:
    optimized, output = result
    report = optimized.report
    assert (report.model.path, report.output.path) == (str(model), str(output))
    for facts, path in ((report.model, model), (report.output, output)):
        assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert facts.bytes == path.stat().st_size
    rewrites = {p.name: p.rewrites for p in report.passes}
    assert rewrites["insert-qdq"] == 7 and rewrites["fuse-batch-norm"] == 1
    assert [g.expr for g in report.gates] == ["drop<=0.2", "speedup>=0"]
    assert report.metric is not None
    assert report.metric.samples == 24 and report.metric.float == 1.0
    assert {layer.precision for layer in report.layers} == {"int8"}
    assert onnxq.Report.from_json(report.to_json()) == report


def test_outputs_agree_with_float_and_between_runtimes(
    result: tuple[onnxq.Optimized, Path], model: Path, data: dict[str, np.ndarray]
) -> None:
    optimized, output = result
    feeds = {"x": data["x"][data["split"] == 1]}
    wanted, found = (Session(path).run(feeds)["y"] for path in (model, output))
    noise = np.square(wanted.astype(np.float64) - found).sum()
    sqnr = 10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise)
    assert sqnr > 25
    assert optimized.report.sqnr_db == pytest.approx(sqnr, abs=0.1)
    step = np.ptp(found) / 255
    assert np.abs(found - run_reference(load(output), feeds)["y"]).max() <= step


def test_calibration_sees_only_its_part_of_the_data(
    model: Path, data: dict[str, np.ndarray], result: tuple[onnxq.Optimized, Path]
) -> None:
    other = {k: v.copy() for k, v in data.items()}
    other["x"][other["split"] == 1] *= 100
    found = optimize(model, other, max_drop=2, **FAST)
    assert to_proto(found.graph) == to_proto(result[0].graph)
    other["x"][other["split"] == 0] *= 100
    found = optimize(model, other, max_drop=2, **FAST)
    assert to_proto(found.graph) != to_proto(result[0].graph)


def _as_bytes(path: Path, data: dict[str, np.ndarray]) -> tuple[object, object]:
    return path.read_bytes(), data


def _as_proto(path: Path, data: dict[str, np.ndarray]) -> tuple[object, object]:
    return onnx.load(path), data


def _as_text(path: Path, data: dict[str, np.ndarray]) -> tuple[object, object]:
    return str(path), data


@pytest.mark.parametrize("form", [_as_bytes, _as_proto, _as_text])
def test_forms_of_the_model(
    form: Callable[[Path, dict[str, np.ndarray]], tuple[object, object]],
    model: Path,
    data: dict[str, np.ndarray],
    result: tuple[onnxq.Optimized, Path],
) -> None:
    found = optimize(*form(model, data), max_drop=0.2, **FAST)  # type: ignore[arg-type]
    assert to_proto(found.graph) == to_proto(result[0].graph)
    assert found.written is None and found.report.output.path == ""
    in_memory = form is not _as_text
    assert found.report.model.path == ("the model in memory" if in_memory else str(model))


def test_forms_of_the_data(model: Path, data: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **data)
    x = data["x"]

    def generated() -> Iterator[dict[str, np.ndarray]]:
        for at in range(0, 48, 8):
            yield {"x": x[at : at + 8]}

    class Reader:
        def __init__(self) -> None:
            self._feeds = generated()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    graphs = []
    for form in (generated(), Reader(), list(generated())):
        found = optimize(model, form, **FAST)
        assert found.report.metric is not None and found.report.metric.name == "agreement"
        assert found.report.sqnr_db > 20
        graphs.append(to_proto(found.graph))
    assert graphs[0] == graphs[1] == graphs[2]
    found = optimize(model, tmp_path / "data.npz", max_drop=0.2, **FAST)
    assert found.report.metric is not None


def test_evaluation_data_of_its_own(
    model: Path, data: dict[str, np.ndarray], result: tuple[onnxq.Optimized, Path]
) -> None:
    without_split = {"x": data["x"][:6], "labels": data["labels"][:6]}
    found = optimize(model, data, eval_data=without_split, max_drop=1, **FAST)
    assert found.report.metric is not None and found.report.metric.samples == 6
    # Data with a split of its own gives its part for the purpose, on both sides.
    assert to_proto(found.graph) == to_proto(result[0].graph)
    found = optimize(model, without_split, eval_data=data, max_drop=1, **FAST)
    assert found.report.metric is not None and found.report.metric.samples == 24


def test_samples_that_the_model_was_made_with_prove_little(
    model: Path, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    plain, split = tmp_path / "plain.npz", tmp_path / "split.npz"
    np.savez(plain, x=data["x"])
    np.savez(split, **data)
    for one, other, told in ((plain, plain, 1), (plain, split, 0), (split, split, 0)):
        with open_job(model, str(one), Options(recipe="int8"), eval_data=other) as job:
            notes = told_of_seen(str(one), other, job.training)
            assert len([note for note in notes if "may be too good" in note]) == told


@pytest.mark.parametrize(
    ("recipe", "methods", "told"), [("int8", "none", 1), ("int8-dynamic", "none", 0)]
)
def test_where_nothing_is_learned_samples_may_be_verified_on(
    recipe: str, methods: str, told: int, model: Path, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = tmp_path / "plain.npz"
    np.savez(file, x=data["x"])
    options = {"recipe": recipe, "methods": methods, "eval_data": file, **FAST}
    found = optimize(model, file, **options)
    assert len([note for note in found.report.notes if "may be too good" in note]) == told


def test_the_number_of_calibration_samples(model: Path) -> None:
    x = samples(600)

    class Recorder:
        totals: dict[str, int | None]

        def __init__(self) -> None:
            self.totals = {}

        def expect(self, names: list[str]) -> None:
            self.expected = list(names)

        def stage(self, name: str, total: int | None = None) -> None:
            self.totals[name] = total

        def advance(self, done: int) -> None:
            pass

        def finish(self) -> None:
            pass

    for options, wanted in (
        ({}, (300, 300)),
        ({"samples": 10}, (10, 590)),
        ({"eval_data": {"x": x[:5]}}, (512, 5)),
        ({"eval_data": {"x": x[:5]}, "samples": 7}, (7, 5)),
    ):
        recorder = Recorder()
        optimize(model, {"x": x}, progress=recorder, **FAST, **options)  # type: ignore[arg-type]
        assert (recorder.totals["calibrating"], recorder.totals["verifying"]) == wanted
    assert list(recorder.totals)[:4] == ["rewriting", "calibrating", "quantizing", "verifying"]
    # All of it was foreseen, in this order.
    foreseen = iter(recorder.expected)
    assert all(stage in foreseen for stage in recorder.totals)


def test_a_fixed_batch_is_fed_as_it_is() -> None:
    found = optimize(to_proto(network(batch=5)), {"x": samples(24)}, **FAST)
    assert found.report.sqnr_db > 20
    assert found.graph.inputs[0].shape == (5, 3, 8, 8)


SCRIPT = """
import sys
import numpy as np
from dataclasses import replace
from functools import partial
from onnxq import optimize
from onnxq.runtime.backend import Backend, interleaved
Backend.time = staticmethod(partial(interleaved, rounds=1))
rng = np.random.default_rng(1)
x = rng.standard_normal((48, 3, 8, 8)).astype(np.float32)
promises = {"min_speedup": 0.0, "min_sqnr": 0.0}
optimize(sys.argv[1], {"x": x}, output=sys.argv[2], recipe="int8", **promises)
"""


def test_runs_give_the_same_bytes_in_every_process(model: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{n}.onnx" for n in range(3)]
    for seed, output in enumerate(outputs[:2]):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(model), str(output)], env=environment, check=True
        )
    optimize(model, {"x": samples()}, output=outputs[2], min_sqnr=0, **FAST)
    assert len({output.read_bytes() for output in outputs}) == 1
    optimize(model, {"x": samples()}, output=outputs[2], seed=1, min_sqnr=0, **FAST)
    assert outputs[2].read_bytes() != outputs[0].read_bytes(), "another split, other ranges"


def test_a_broken_promise_writes_nothing_unless_told_to(
    model: Path, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    output = tmp_path / "q.onnx"
    found = optimize(model, data, output=output, min_speedup=1e9)
    assert not found.passed and found.written is None
    assert [g.passed for g in found.report.gates][-1] is False
    assert list(tmp_path.iterdir()) == []
    found = optimize(model, data, output=output, min_speedup=1e9, keep_failed=True)
    assert not found.passed and found.written == output
    onnx.checker.check_model(str(output), full_check=True)


def test_promises_of_the_user(model: Path, data: dict[str, np.ndarray]) -> None:
    found = optimize(model, data, max_drop=0.5, min_sqnr=200, min_speedup=0)
    outcomes = {g.expr: g.passed for g in found.report.gates}
    assert outcomes == {"drop<=0.5": True, "sqnr>=200": False, "speedup>=0": True}


def test_latency_is_of_one_sample_where_that_can_be() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] x, float[M] m) => (float[N, 2] y) { s = ReduceSum(m) y = Mul(x, s) }""")
    specs = Session(to_proto(graph)).inputs
    x, m = np.ones((4, 2), np.float32), np.ones(3, np.float32)
    from onnxq.data import read

    one = single_feed(read([{"x": x, "m": m, "labels": np.zeros(4, np.int64)}], specs), specs)
    assert {n: len(a) for n, a in one.feeds.items()} == {"x": 4, "m": 3}
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] x) => (float[N, 2] y) { y = Exp(x) }""")
    specs = Session(to_proto(graph)).inputs
    one = single_feed(read({"x": x}, specs), specs)
    assert (one.valid, one.size, one.feeds["x"].shape) == (1, 1, (1, 2))


def test_weights_that_are_all_inputs_are_constants_unless_they_are_to_be_kept() -> None:
    arguments = listed(
        "float[2, 1] w = {1, 2}, float[1, 1] v = {4}, int64[1] j = {0}) => (float[N, 1] y)"
    )
    found = optimize(**arguments, **FAST)  # type: ignore[arg-type]
    assert [v.name for v in found.graph.inputs] == ["x"]
    assert found.report.output.integer_operators
    assert "3 of them are constants now" in found.report.notes[0]
    with pytest.raises(InputError, match="which callers may override"):
        optimize(**arguments, keep_overridable=True, **FAST)  # type: ignore[arg-type]


def test_nodes_are_kept_in_float_by_the_recipe(model: Path, data: dict[str, np.ndarray]) -> None:
    found = optimize(model, data, recipe=kept("inner"), max_drop=1, **FAST)
    layers = {layer.node: layer for layer in found.report.layers}
    assert layers["inner"].precision == "float32"
    assert layers["inner"].reason == "kept in float by request"
    assert layers["head"].precision == "int8"


def test_what_is_kept_in_float_between_integers_runs_in_float() -> None:
    graph = chain(planted=2)
    found = optimize(
        to_proto(graph),
        inputs(graph),
        recipe=kept("conv1"),
        **FAST,
    )
    assert found.report.output.integer_operators["com.microsoft:QLinearConv"] == 3


def test_a_higher_opset_on_request(model: Path, data: dict[str, np.ndarray]) -> None:
    found = optimize(model, data, opset=21, max_drop=1, **FAST)
    assert found.graph.opset == found.report.output.opset == 21


def test_another_target(model: Path, data: dict[str, np.ndarray]) -> None:
    found = optimize(model, data, target="generic", max_drop=1, **FAST)
    stored = {n.input(2).dtype for n in found.graph.nodes() if n.op_type == "QuantizeLinear"}
    assert stored == {DataType.INT8}


def test_compare_takes_the_held_out_part(
    result: tuple[onnxq.Optimized, Path], model: Path, data: dict[str, np.ndarray]
) -> None:
    optimized, output = result
    report = compare(model, output, data, gates=["sqnr>=10", onnxq.Gate("drop", "<=", 1)])
    assert report.metric == optimized.report.metric and report.passed
    assert report.outputs == optimized.report.outputs
    assert (report.model.path, report.output.path) == (str(model), str(output))
    given = {"x": data["x"]}
    whole = compare(model, onnx.load(output), given, metric="sqnr", samples=10, layers=False)
    assert (
        whole.metric is None
        and whole.agreement is None
        and whole.output.path == "the model in memory"
    )
    assert all(layer.sqnr_db is None for layer in whole.layers)


@pytest.mark.parametrize(
    ("candidate", "gates", "message"),
    [
        ("none.onnx", (), "'none.onnx' does not exist"),
        (b"no model", (), "the serialized model is not an ONNX model"),
        (None, ("drop<1",), None),
        (None, ("beauty<1",), "speaks of 'beauty'"),
    ],
)
def test_compare_refuses_bad_input(
    candidate: object,
    gates: tuple[str, ...],
    message: str | None,
    model: Path,
    data: dict[str, np.ndarray],
) -> None:
    if message is None:
        report = compare(model, model, {"x": data["x"]}, metric="sqnr", gates=gates)
        assert not report.passed and report.gates[0].value is None
        return
    with pytest.raises(InputError, match=message):
        compare(model, candidate or model, data, gates=gates)  # type: ignore[arg-type]
