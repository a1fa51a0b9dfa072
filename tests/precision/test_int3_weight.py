"""Three bits, held in four."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.ir import DataType, Graph, save
from onnxq.plan import Plan
from onnxq.planning import apply_plan, make_plan
from onnxq.verify.precision import describe
from tests.helpers import run
from tests.networks import inputs, products

NETWORK = products()
DATA = inputs(NETWORK, 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int3") / "model.onnx"
    save(NETWORK, path)
    return path


def _weights(graph: Graph, node: str) -> tuple[np.ndarray, DataType]:
    """Stored values of a product's weight, a row for each output, and their type."""
    (product,) = (n for n in graph.nodes() if n.name == node)
    restored = product.input(1)
    assert restored is not None and restored.producer is not None
    stored = restored.producer.input(0)
    assert stored is not None and stored.dtype is not None
    return stored.numpy().astype(np.int64), stored.dtype


def test_three_bits_are_eight_levels_held_in_four_bits(model: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text('precision = "int3-weight"\n')
    by_file = make_plan(model, DATA, recipe=str(table))
    assert set(by_file.precisions().values()) == {"int3-weight"}
    pinned = make_plan(model, DATA, recipe="int8-weight", pins=["gemm=int3-weight"])
    by_file.save(tmp_path / "p.toml")
    for plan in (Plan.load(tmp_path / "p.toml"), pinned):
        graph = apply_plan(model, plan)
        assert {n.node: n.precision for n in describe(graph)}["gemm"] == "int4-weight"
        values, stored = _weights(graph, "gemm")
        assert stored is DataType.INT4
        assert 6 <= len(np.unique(values)) <= 8 and np.abs(values).max() <= 4
        (restored,) = (n for n in graph.nodes() if n.op_type == "Gemm")
        maker = restored.inputs[1].producer  # type: ignore[union-attr]
        assert maker is not None and maker.get("block_size") == 32


def test_three_bits_lose_more_than_four_and_less_than_two(model: Path) -> None:
    exact = run(NETWORK, DATA)["y"]
    noise = []
    for bits in (2, 3, 4):
        plan = make_plan(model, DATA, recipe=f"int{bits}-weight")
        noise.append(np.square(run(apply_plan(model, plan), DATA)["y"] - exact).sum())
    assert noise[0] > noise[1] > noise[2] > 0
