"""Static integers of few bits: what is stored, how it is clipped, and which layers have 8 bits."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq import optimize
from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, save, to_proto
from onnxq.precision import parse_precision, searchable
from onnxq.runtime import optimized_operators
from onnxq.verify.precision import describe
from tests.helpers import random_feeds
from tests.networks import chain, computed

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

PROMISE = {"min_sqnr": -100, "min_speedup": 0, "output": None, "target": "cpu-x64"}


def _made(tmp_path, recipe: str, **options: object) -> Graph:  # type: ignore[no-untyped-def]
    graph = chain()
    save(graph, tmp_path / "m.onnx")
    feeds = random_feeds(graph, other_dims=16)
    return optimize(tmp_path / "m.onnx", feeds, recipe=recipe, **PROMISE, **options).graph  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weight", "held", "values"),
    [
        ("int4", DataType.INT4, range(-8, 8)),
        ("int3", DataType.INT4, range(-4, 4)),
        ("int2", DataType.INT2, range(-2, 2)),
        ("ternary", DataType.INT2, range(-1, 2)),
        ("binary", DataType.INT2, (-1, 1)),
        ("int6", DataType.INT8, range(-32, 32)),
    ],
)
def test_weights_are_stored_in_few_bits_but_those_of_the_ends(  # type: ignore[no-untyped-def]
    weight: str, held: DataType, values: range, tmp_path
) -> None:
    made = _made(tmp_path, f"static-bits{{weight={weight}}}", methods="none")
    stored = [v for v in made.initializers() if v.shape and len(v.shape) == 4]
    # The first convolution reads two channels, and has 8 bits.
    assert [v.dtype for v in stored if v.shape and v.shape[1] == 2] == [DataType.INT8]
    others = [v for v in stored if v.shape and v.shape[1] != 2]
    assert [v.dtype for v in others] == [held] * 3
    found = np.unique(np.concatenate([v.numpy().astype(int).ravel() for v in others]))
    assert set(found) <= set(values)
    assert len(found) > len(values) // 2
    run = optimized_operators(to_proto(made))
    assert run["com.microsoft:QLinearConv"] == 4
    assert run["com.microsoft:QGemm"] == 1
    assert not run["Cast"]
    layers = [x.precision for x in describe(made) if x.op_type == "Conv"]
    assert layers == ["int8"] * 4


def test_activations_are_clipped_and_those_of_the_ends_are_not(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = _made(tmp_path, "static-bits{weight=int8, activation=4}")
    clips = [node for node in made.nodes() if node.is_op("Clip")]
    assert clips
    for node in clips:
        assert [int(v.numpy()) for v in node.inputs[1:] if v] == [0, 15]
    ends = [n for n in made.nodes() if n.is_op("Conv", "Gemm")]
    for node in (ends[0], ends[-1]):
        pair = node.inputs[0].producer  # type: ignore[union-attr]
        assert pair.inputs[0].producer.is_op("QuantizeLinear", "Flatten")  # type: ignore[union-attr]


def test_sums_have_8_bits_and_products_read_few(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = _made(tmp_path, "static-bits{weight=int8, activation=2}", calibrator="mse")
    nodes = {node.name: node for node in made.nodes()}
    steps = {}
    for name in ("conv3", "residual"):
        for slot in (0, 1) if name == "residual" else (0,):
            pair = nodes[name].inputs[slot].producer  # type: ignore[union-attr]
            clipped = pair.inputs[0].producer.is_op("Clip")  # type: ignore[union-attr]
            assert clipped == (name == "conv3")
            steps[name, slot] = float(pair.inputs[1].numpy())  # type: ignore[union-attr]
    # The convolution and the sum read one value, each in a range of its own.
    assert 3 * steps["conv3", 0] < 0.9 * 255 * steps["residual", 1]


def test_all_layers_alike(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = _made(tmp_path, "static-bits{outer=''}", methods="none")
    stored = [v for v in made.initializers() if v.shape and len(v.shape) == 4]
    assert {v.dtype for v in stored} == {DataType.INT4}


@pytest.mark.parametrize("option", ["weight=int9", "activation=0", "activation=9"])
def test_other_bits_are_refused(option: str) -> None:
    with pytest.raises(InputError, match="precision static-bits has no"):
        parse_precision(f"static-bits{{{option}}}")


def test_a_search_can_choose_it() -> None:
    assert "static-bits" in searchable()
