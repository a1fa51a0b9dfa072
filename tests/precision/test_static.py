"""Static integers: what becomes of tables that are gathered from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq import apply_plan, make_plan, optimize
from onnxq.ir import DataType, Graph, save
from onnxq.verify.precision import describe
from tests.helpers import run
from tests.networks import computed, inputs, products
from tests.passes.weights.stored import normal, sqnr, stored_bytes, with_constants

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

ROWS, COLUMNS, OUTPUTS = 60, 32, 24
FEEDS = {"i": np.random.default_rng(0).integers(0, ROWS, (40, 8))}


def _model(gather: str) -> Graph:
    return with_constants(
        f"(int64[N, 8] i) => (float[N, 8, {OUTPUTS}] y)",
        {"t": normal(ROWS, COLUMNS), "w": normal(COLUMNS, OUTPUTS, seed=1)},
        f"e = {gather} y = MatMul(e, w)",
    )


@pytest.mark.parametrize("target", ["cpu-x64", "qnn", "generic"])
@pytest.mark.parametrize("recipe", ["int8", "int16-act"])
def test_tables_are_stored_in_8_bits(recipe: str, target: str, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    save(_model("Gather(t, i)"), model)
    made = optimize(
        model, FEEDS, recipe=recipe, target=target, min_sqnr=20, min_speedup=0, output=None
    )
    tables = {v.shape: v.dtype for v in made.graph.initializers() if v.shape and len(v.shape) == 2}
    assert tables[ROWS, COLUMNS] is DataType.INT8
    assert stored_bytes(made.graph) < 1.4 * (ROWS * COLUMNS + COLUMNS * OUTPUTS)
    found = [layer.precision for layer in describe(made.graph) if layer.op_type == "Gather"]
    assert "int8-weight" in found
    wanted = run(_model("Gather(t, i)"), FEEDS)["y"]
    assert sqnr(wanted, run(made.graph, FEEDS)["y"]) > 30


def test_weights_are_tuned_where_the_target_has_few_bits_for_them(tmp_path: Path) -> None:
    graph = products()
    save(graph, tmp_path / "m.onnx")
    (tmp_path / "few.toml").write_text(
        'extends = "cpu-x64"\ndescription = "4 bits"\n'
        '[weight]\nformat = "int4"\nscheme = "absmax"\nper_channel = true\n'
    )
    feeds, losses = inputs(graph, 64), []
    for target, methods in (("cpu-x64", "auto"), ("few.toml", "auto"), ("few.toml", "none")):
        path = tmp_path / target if target.endswith("toml") else target
        options = {"recipe": "int8", "target": str(path), "methods": methods}
        plan = make_plan(tmp_path / "m.onnx", feeds, **options)  # type: ignore[arg-type]
        used = {name for node in plan.nodes for name in node.method.split(",")}
        assert ("gptq" in used) == (target == "few.toml" and methods == "auto")
        made = run(apply_plan(tmp_path / "m.onnx", plan), feeds)["y"]
        losses.append(np.square(made - run(graph, feeds)["y"]).mean())
    assert losses[0] < losses[1] < 0.8 * losses[2]


@pytest.mark.parametrize(
    "head", ["w = Transpose(t) y = MatMul(e, w)", "y = Gemm<transB = 1>(e, t)"]
)
def test_a_tied_table_is_stored_once(head: str, tmp_path: Path) -> None:
    graph = with_constants(
        f"(int64[N] i) => (float[N, {ROWS}] y)",
        {"t": normal(ROWS, 512)},
        f"e = Gather(t, i) {head}",
    )
    save(graph, tmp_path / "m.onnx")
    feeds = {"i": np.arange(ROWS)}
    promise = {"min_sqnr": 20, "min_speedup": 0, "output": None}
    made = optimize(tmp_path / "m.onnx", feeds, recipe="int8", target="cpu-x64", **promise)  # type: ignore[arg-type]
    assert stored_bytes(made.graph) < 1.1 * ROWS * 512
    assert {layer.precision for layer in describe(made.graph)} >= {"int8", "int8-weight"}


def test_what_is_not_gathered_by_rows_stays_with_its_reason(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    graph = with_constants(
        f"(int64[{COLUMNS}] i, float[N, {ROWS}] x) => (float[N, {COLUMNS}] y)",
        {"t": normal(ROWS, COLUMNS), "v": normal(COLUMNS, COLUMNS)},
        "e = Gather<axis = 1>(t, i) u = MatMul(x, e) y = MatMul(u, v)",
    )
    save(graph, model)
    feeds = {"i": np.arange(COLUMNS), "x": normal(COLUMNS, ROWS)}
    made = optimize(model, feeds, recipe="int8", min_sqnr=20, min_speedup=0)
    reasons = {layer.node: layer.reason for layer in describe(made.graph)}
    assert reasons["e"] == "it does not gather rows"


def test_in_a_search_a_table_goes_with_the_product_that_reads_it(tmp_path: Path) -> None:
    graph = with_constants(
        f"(int64[N, 8] i) => (float[N, 8, {ROWS}] y)",
        {"t": normal(ROWS, 512)},
        "e = Gather(t, i) w = Transpose(t) y = MatMul(e, w)",
    )
    save(graph, tmp_path / "m.onnx")
    promise = {"min_sqnr": 20, "min_speedup": 0, "max_size_ratio": 0.4}
    promise["precisions"] = ("int8", "int8-dynamic")
    made = optimize(tmp_path / "m.onnx", FEEDS, target="cpu-x64", **promise)  # type: ignore[arg-type]
    assert set(made.plan.precisions().values()) <= {"int8", "int8-dynamic"}
    assert stored_bytes(made.graph) < 1.2 * ROWS * 512
