"""Recipes: the built-in ones, what they make, files, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxq.errors import InputError
from onnxq.ir import default_passes, raise_opset, to_proto
from onnxq.optimization import optimize
from onnxq.plan.apply import float_passes
from onnxq.recipe import Recipe, built_in_recipes, load_recipe
from onnxq.runtime import Backend, Session, integer_operators, interleaved
from tests.helpers import RUNTIME
from tests.networks import computed

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")


@pytest.mark.parametrize("name", built_in_recipes())
def test_a_built_in_recipe_can_be_carried_out(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert float_passes(recipe.passes)


def test_the_default_recipe() -> None:
    assert "int8" in built_in_recipes()
    recipe = load_recipe("int8")
    assert float_passes(recipe.passes) == default_passes()
    assert (recipe.calibrator, recipe.keep_float) == ("minmax", ())


CHANNELS = 64


def _network() -> onnx.ModelProto:
    """Conv, Relu, average, Gemm, Relu, MatMul; every product has inputs for two blocks of 32."""
    rng = np.random.default_rng(5)

    def normal(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape) / np.sqrt(CHANNELS)
        return onnx.numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"], "conv", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["g"], "gemm", transB=1),
        helper.make_node("Relu", ["g"], ["h"], "relu2"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], "matmul"),
    ]
    weights = [
        normal("w0", CHANNELS, CHANNELS, 1, 1),
        normal("b0", CHANNELS),
        normal("w1", CHANNELS, CHANNELS),
        normal("b1", CHANNELS),
        normal("w2", CHANNELS, 32),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", 1, ["N", CHANNELS, 4, 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 32])],
        weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _samples(count: int) -> np.ndarray:
    rng = np.random.default_rng(6)
    return rng.standard_normal((count, CHANNELS, 4, 4)).astype(np.float32)


LEAST_SQNR = {"int2-weight": 0.0, "ternary": 0.0, "binary": 0.0, "int3-weight": 6.0}
LEAST_SQNR |= dict.fromkeys(("int4-weight", "llm-4bit", "q4_0", "static-bits"), 12.0)

# Of products that read stored weights, onnxruntime 1.24 fuses those of 4 bits only.
FUSED_BY_1_24 = (
    *("int3-weight", "int4-weight", "llm-4bit", "q4_0", "int8", "int8-dynamic", "static-bits"),
    *("fast", "cnn-int8", "transformer-int8"),
)

RUNNABLE = [name for name in built_in_recipes() if name != "bfloat16"]


@pytest.mark.parametrize("name", RUNNABLE)
def test_what_a_built_in_recipe_makes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def hurried(sessions, feeds, *, seconds):  # type: ignore[no-untyped-def]
        return interleaved(sessions, feeds, rounds=5)

    monkeypatch.setattr(Backend, "time", staticmethod(hurried))
    model, x = _network(), _samples(16)
    made = optimize(model, {"x": x}, recipe=name, min_speedup=0, min_sqnr=-100)
    report = made.report
    assert made.passed
    assert report.sqnr_db >= LEAST_SQNR.get(name, 25.0)
    proto = to_proto(made.graph)
    onnx.checker.check_model(proto, full_check=True)
    assert report.output.integer_operators == dict(integer_operators(proto))
    if name in ("float16", "int16-act"):
        # From 1.32 on onnxruntime computes a product by int8 weights in MatMulNBits wherever its
        # activations come from, before that only if they are floats.
        fused = name == "int16-act" and RUNTIME >= (1, 32)
        expected = {"com.microsoft:MatMulNBits": 1} if fused else {}
        assert report.output.integer_operators == expected
    elif not load_recipe(name).is_search:
        fused = RUNTIME >= (1, 25) or name in FUSED_BY_1_24
        assert bool(report.output.integer_operators) == fused
        assert report.size.ratio > (1.7 if name == "int8-dynamic" else 2)
    # By default onnxruntime quantizes the activations of products with weights in few bits.
    exact = Session(proto, config={"session.qdq_matmulnbits_accuracy_level": "0"})
    fast = exact.run({"x": x})["y"]
    reference = ReferenceEvaluator(to_proto(raise_opset(made.graph, 21)))
    slow = reference.run(["y"], {"x": x})[0]
    step = np.abs(slow).max() / 127
    np.testing.assert_allclose(fast, slow, atol=1.01 * step, rtol=0)


def test_what_onnxruntime_cannot_run_is_said_to_be_the_recipe_s_model() -> None:
    with pytest.raises(InputError, match=r"cannot load the model that the recipe makes: .*Gemm"):
        optimize(_network(), {"x": _samples(4)}, recipe="bfloat16", min_speedup=0)


def test_dynamic_integers_have_seven_bits_where_the_target_wants_that() -> None:
    largest = {}
    for target in ("cpu-x64", "cpu-x64-avx2"):
        made = optimize(
            _network(), {"x": _samples(4)}, recipe="int8-dynamic", target=target, min_speedup=0
        )
        weights = [v.numpy() for v in made.graph.initializers() if v.numpy().dtype == np.int8]
        largest[target] = max(int(w.max()) for w in weights)
    assert largest == {"cpu-x64": 127, "cpu-x64-avx2": 63}


def _file(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def test_a_file(tmp_path: Path) -> None:
    text = """description = "mine"
        passes = "fold-constants,eliminate-dead"
        keep_float = ["conv1", "fc"]"""
    recipe = load_recipe(_file(tmp_path, text))
    assert recipe == Recipe(
        "mine", passes="fold-constants,eliminate-dead", keep_float=("conv1", "fc")
    )
    assert [p.name for p in float_passes(recipe.passes)] == ["fold-constants", "eliminate-dead"]
    assert load_recipe(_file(tmp_path, "")) == Recipe()


def test_passes_beside_the_default_ones() -> None:
    standing = [p.name for p in default_passes()]
    more = "flatten-matmul-add"
    assert [p.name for p in float_passes("default", more)] == [*standing, more]
    given = float_passes("default,fuse-attention,fuse-gelu{without=('y',)}", more)
    assert [p.name for p in given] == [*standing, "fuse-attention", more]
    assert str(given[standing.index("fuse-gelu")]) == "fuse-gelu{without=('y',)}"
    own = float_passes("flatten-matmul-add{without=('y',)},fold-constants", more)
    assert [str(p) for p in own] == ["flatten-matmul-add{without=('y',)}", "fold-constants"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes =", "mine.toml' is not valid TOML"),
        ("pases = 'x'", "unknown entry 'pases'; known there: description, passes, precision, "),
        ("passes = 3", "entry 'passes' of the recipe .* takes a text, not 3"),
        ("keep_float = 'conv1'", "'keep_float' of the recipe .* takes a list, not 'conv1'"),
        ("keep_float = [1]", r"'keep_float\[0\]' of the recipe .* takes a text, not 1"),
        ("precisions = 'int8'", "'precisions' of the recipe .* takes a list"),
        (
            "quantization = 'insert-qdq'",
            "unknown entry 'quantization'; known there: .*precision, ",
        ),
        ("precision = 'int7'", "mine.toml' names a precision, but there is no precision 'int7'"),
        ("precision = 'int8{bits=4}'", "a precision, but the precision int8 has no option 'bits'"),
        ("precision = 'int4-weight{block_size=x}'", "option 'block_size' .* takes int, not 'x'"),
        ("precision = 'int4-weight{block_size=-1}'", "block_size -1; give 1 or more"),
        ("precision = 8", "entry 'precision' of the recipe .* takes a text, not 8"),
        ("precisions = ['int8', 'float16']", "names precisions, but a search cannot .*'float16'"),
        ("calibrator = 'median'", "there is no calibrator 'median'; available: minmax"),
    ],
)
def test_what_is_wrong_with_a_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(_file(tmp_path, text))


def test_a_pass_that_is_not_there(tmp_path: Path) -> None:
    recipe = load_recipe(_file(tmp_path, "passes = 'make-better'"))
    with pytest.raises(InputError, match="no pass 'make-better'"):
        float_passes(recipe.passes)


def test_a_recipe_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe 'int7'; built in: .*int8.*; or name a .toml"):
        load_recipe("int7")
    with pytest.raises(InputError, match=r"cannot read the recipe '.*none.toml': No such file"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.toml': it is no text"):
        load_recipe(str(tmp_path / "binary.toml"))
