"""What the default float pipeline must leave as it is, whatever else it rewrites."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxq.ir import (
    DataType,
    Graph,
    Pipeline,
    Tensor,
    available_passes,
    default_passes,
    load,
    save,
    to_proto,
)
from tests.helpers import OPSET_26, assert_equivalent, assert_same_outputs, random_feeds, run
from tests.ir.loading import full_model

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.acme": 1]>'

NUMBERS = [d for d in DataType if d not in (DataType.UNDEFINED, DataType.STRING)]


def rewritten(graph: Graph) -> Graph:
    after = graph.copy()
    Pipeline(default_passes()).run(after)
    after.check()
    return after


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph.all_nodes())


def test_all_that_a_file_says_beside_its_graph(tmp_path: Path) -> None:
    save(rewritten(load(full_model())), tmp_path / "after.onnx")
    found, wanted = onnx.load(tmp_path / "after.onnx"), to_proto(load(full_model()))
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version",
                 "doc_string", "metadata_props", "functions", "training_info", "configuration",
                 "opset_import"):  # fmt: skip
        assert getattr(found, name) == getattr(wanted, name), name
    for name in ("name", "doc_string", "metadata_props", "input", "output"):
        assert getattr(found.graph, name) == getattr(wanted.graph, name), name
    assert "o" in {t.name for t in found.graph.initializer}
    assert [t.values.name for t in found.graph.sparse_initializer] == ["sparse"] * bool(
        found.graph.sparse_initializer
    )


def test_functions_stay_functions() -> None:
    before = load(full_model())
    after = rewritten(before)
    calls = [node for node in after.all_nodes() if node.domain == "local"]
    assert [(n.name, n.op_type) for n in calls] == [("call", "double")]
    assert after.model.functions == before.model.functions


def test_overridable_initializers_are_no_constants() -> None:
    before = Graph.from_text(
        HEAD + "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { a = Neg(w)  y = Add(x, a) }"
    )
    after = rewritten(before)
    assert operators(after) == {"Neg": 1, "Add": 1}
    feeds = {"x": np.ones(2, np.float32), "w": np.array([5, 6], np.float32)}
    assert run(after, feeds)["y"].tolist() == [-4, -5]
    assert run(after, {"x": feeds["x"]})["y"].tolist() == [0, -1]


def test_sparse_initializers_stay_sparse() -> None:
    proto = onnx.parser.parse_model(
        HEAD + "g (float[4] x) => (float[4] y) { a = Add(x, w)  y = Identity(a) }"
    )
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.array([1, 2], np.float32), "w"),
            numpy_helper.from_array(np.array([0, 2])),
            [4],
        )
    )
    after = rewritten(load(proto))
    assert operators(after) == {"Add": 1} and after.values["w"].data.is_sparse
    assert_equivalent(load(proto), after)


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda d: d.name)
@pytest.mark.parametrize("held", ["initializer", "Constant"])
def test_constants_of_every_type(dtype: DataType, held: str, tmp_path: Path) -> None:
    # An odd number of elements: the last byte of a packed type is half empty.
    bits = np.random.default_rng(0).integers(0, 256, 15 * 16, dtype=np.uint8)
    size = 15 * dtype.bits
    tensor = onnx.TensorProto(name="w", data_type=int(dtype), dims=[3, 5])
    tensor.raw_data = bytes(bits[: (size + 7) // 8] & (1 if dtype is DataType.BOOL else 255))
    if size % 8:
        tensor.raw_data = tensor.raw_data[:-1] + bytes([tensor.raw_data[-1] & (1 << size % 8) - 1])
    proto = onnx.parser.parse_model(HEAD + "g (float x) => (float y) { y = com.acme.Use(x, w) }")
    if held == "initializer":
        proto.graph.initializer.append(tensor)
    else:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    save(rewritten(load(proto)), tmp_path / "after.onnx")
    after = load(tmp_path / "after.onnx")
    use = next(node for node in after.nodes() if node.op_type == "Use")
    data = use.input(1).data
    assert (data.dtype, data.shape) == (dtype, (3, 5))
    assert b"".join(bytes(p) for p in data.pieces()) == tensor.raw_data


def test_unknown_operators_are_left_alone() -> None:
    before = Graph.from_text(
        HEAD
        + """g (float[2] x) => (y, z, u) <float[2] w = {1, 2}> {
        a = com.acme.Roll(w)  b = com.acme.Roll(w)  c = com.acme.Relu(a)  d = com.acme.Identity(c)
        y = Add(x, d)  z = com.acme.Transpose(b)  u = com.acme.Cast<to = 1>(x) }"""
    )
    assert operators(rewritten(before)) == operators(before)


def test_node_names_that_are_empty_or_taken() -> None:
    text = (
        HEAD
        + "g (float[2] x) => (float[2] y) { a = Identity(x)  b = Abs(a)  c = Neg(b) y = Exp(c) }"
    )
    for names in (["", "", "", ""], ["n", "n", "n", "n"]):
        proto = onnx.parser.parse_model(text)
        for node, name in zip(proto.graph.node, names, strict=True):
            node.name = name
        before = load(proto)
        after = rewritten(before)
        assert [n.name for n in after.nodes()] == names[1:]
        # onnxruntime takes no name twice.
        if not names[0]:
            assert_equivalent(before, after)


NET = """g (float[N, 2, 5, 5] x) => (float[N, K] y) {
    c = Conv<pads = [1, 1, 1, 1]>(x, w)  n = BatchNormalization(c, v, v, v, v)  r = Relu(n)
    p = GlobalAveragePool(r)  f = Flatten(p)  m = MatMul(f, e)  i = Identity(m)  y = Add(i, v) }"""


@pytest.mark.parametrize("opset", [*range(7, 26), OPSET_26])
def test_every_opset(opset: int) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {NET}')
    generator = np.random.default_rng(0)
    for name, shape in {"w": (3, 2, 3, 3), "v": (3,), "e": (3, 3)}.items():
        array = generator.random(shape).astype(np.float32) + 0.5
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    before = load(proto)
    after = rewritten(before)
    assert after.opset == opset
    assert operators(after)["BatchNormalization"] == operators(after)["Identity"] == 0
    assert_equivalent(before, after, exact=False, dims={"N": 3})


@pytest.mark.parametrize("ir_version", range(3, 14))
def test_every_ir_version(ir_version: int) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": 8]> g (float[2] x) => (float[2] y)'
        "<float[2] w = {1, 2}> { a = Neg(w)  y = Add(x, a) }"
    )
    if ir_version < 4:
        proto.graph.input.append(helper.make_tensor_value_info("w", 1, [2]))
    before = load(proto)
    after = rewritten(before)
    assert after.model.ir_version == ir_version and operators(after) == {"Add": 1}
    assert_equivalent(before, after)


QDQ = """g (float[N, 3, 6, 6] x) => (float[A, B, C, D] y) {
    qx = QuantizeLinear(x, s, z)  dx = DequantizeLinear(qx, s, z)
    w = DequantizeLinear<axis = 0>(wq, ws, wz)  b = DequantizeLinear(bq, bs)
    c = Conv(dx, w, b)  r = Relu(c)  qr = QuantizeLinear(r, s, z)  dr = DequantizeLinear(qr, s, z)
    t = Transpose<perm = [0, 2, 3, 1]>(dr)  qt = QuantizeLinear(t, s, z)
    dt = DequantizeLinear(qt, s, z)  a = Add(dt, dt)  qa = QuantizeLinear(a, s, z)
    y = DequantizeLinear(qa, s, z) }"""

OPERATORS = """g (uint8[N, 3, 6, 6] x) => (float[A, B, C, D] y) {
    c = QLinearConv(x, s, z, wq, ws, wz, s, z)  d = DequantizeLinear(c, s, z)
    u, us, uz = DynamicQuantizeLinear(d)  i = MatMulInteger(u, m, uz)  f = Cast<to = 1>(i)
    y = Mul(f, us) }"""


def quantized(text: str) -> Graph:
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(HEAD + text)
    arrays = {
        "s": np.array(0.05, np.float32),
        "z": np.array(100, np.uint8),
        "wq": generator.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        "wz": np.zeros(4, np.int8),
        "bq": np.array([1, 2, 3, 4], np.int32),
        "bs": np.array(0.001, np.float32),
        "m": generator.integers(0, 9, (4, 2)).astype(np.int8),
    }
    for name, array in arrays.items():
        if name in {i for node in proto.graph.node for i in node.input}:
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return load(proto)


@pytest.mark.parametrize("text", [QDQ, OPERATORS], ids=["QDQ", "operators"])
def test_quantized_models_stay_quantized(text: str) -> None:
    before = quantized(text)
    after = rewritten(before)
    assert operators(after) == operators(before)
    integers = {v.name: v.data.digest() for v in before.initializers() if not v.dtype.is_float}
    assert {v.name: v.data.digest() for v in after.initializers() if not v.dtype.is_float} == (
        integers
    )
    for seed in (0, 1):
        feeds = random_feeds(before, seed, dims={"N": 2})
        assert_same_outputs(run(before, feeds), run(after, feeds))


@pytest.mark.parametrize("text", [QDQ, OPERATORS], ids=["QDQ", "operators"])
@pytest.mark.parametrize(
    "name", [n for n, k in available_passes().items() if k.numerics != "approximates"]
)
def test_every_pass_alone_keeps_quantized_models(name: str, text: str) -> None:
    before = quantized(text)
    after = before.copy()
    Pipeline((available_passes()[name](),), fixed_point=False).run(after)
    for kind in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "MatMulInteger"):
        assert operators(after)[kind] == operators(before)[kind]
    feeds = random_feeds(before, dims={"N": 2})
    assert_same_outputs(run(before, feeds), run(after, feeds))


def test_models_beyond_the_limit_of_protobuf_keep_their_weights_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph.from_text(HEAD + "g (float[600] x) => (float[600] y) { y = Neg(x) }")
    weight = graph.constant(Tensor(np.arange(600, dtype=np.float32)), "w")
    graph.add_output(graph.add("Neg", [weight], outputs=["z"]).output)
    saving = importlib.import_module("onnxq.ir.saving")
    # The limit less what names and the like may take.
    for limit, files in ((2400, {"m.onnx"}), (2399, {"m.onnx", "m.onnx.data"})):
        monkeypatch.setattr(saving, "PROTOBUF_LIMIT", limit + (1 << 26))
        folder = tmp_path / str(limit)
        folder.mkdir()
        save(graph, folder / "m.onnx")
        assert {p.name for p in folder.iterdir()} == files
        assert load(folder / "m.onnx").values["w"].numpy().tolist() == list(range(600))
