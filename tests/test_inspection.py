"""What `inspect` finds in a model file."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import InputError
from onnxq.inspection import ParameterFacts, inspect
from onnxq.ir import Context, Graph, load, save
from onnxq.passes.static.insert_qdq import InsertQdq
from tests.quantization import same_bounds


def model(*, functions: bool = False) -> onnx.ModelProto:
    """Operators at the top, in the branches of an If and in an unknown domain."""

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        node = helper.make_node(op_type, ["a", f"{name}_c"], [f"{name}_out"])
        constant = numpy_helper.from_array(np.ones(4, np.float32), f"{name}_c")
        return helper.make_graph([node], name, [], [made], [constant])

    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"], "add"),
        helper.make_node(
            "If",
            ["flag"],
            ["b"],
            "if",
            then_branch=branch("then", "Add"),
            else_branch=branch("else", "Mul"),
        ),
        helper.make_node("Strange", ["b"], ["y"], "strange", domain="my.domain"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.ones(4, np.float32), "w"),
            numpy_helper.from_array(np.ones((3, 5), ml_dtypes.int4), "small"),
            numpy_helper.from_array(np.arange(7), "numbers"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("my.domain", 2)]
    proto = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    proto.producer_name, proto.producer_version = "maker", "1.2"
    if functions:
        body = [helper.make_node("Relu", ["p"], ["q"])]
        proto.functions.append(
            helper.make_function("my.domain", "Strange", ["p"], ["q"], body, opsets[:1])
        )
    return proto


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_the_head_of_the_file(path: Path) -> None:
    found = inspect(path)
    assert (found.path, found.bytes) == (str(path), path.stat().st_size)
    assert (found.ir_version, found.opsets) == (10, {"ai.onnx": 21, "my.domain": 2})
    assert found.producer == "maker 1.2"
    assert found.functions == 0


def test_functions_are_counted(tmp_path: Path) -> None:
    onnx.save(model(functions=True), tmp_path / "m.onnx")
    assert inspect(tmp_path / "m.onnx").functions == 1


def test_the_interface_leaves_out_what_need_not_be_fed(path: Path) -> None:
    found = inspect(path)
    assert found.inputs == {"x": "float[N, 4]", "flag": "bool[]"}
    assert list(found.outputs) == ["y"]


def test_operators_of_subgraphs_and_domains_are_counted(path: Path) -> None:
    found = inspect(path).operators
    assert list(found.items()) == [("Add", 2), ("If", 1), ("Mul", 1), ("my.domain:Strange", 1)]


def test_parameters_by_type_the_largest_first(path: Path) -> None:
    assert inspect(path).parameters == (
        ParameterFacts("int64", 1, 7, 56),
        ParameterFacts("float32", 3, 12, 48),
        ParameterFacts("int4", 1, 15, 8),
    )


def test_weights_in_constant_nodes_are_parameters(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] x) => (float[N, 2] y) {
            w = Constant<value: tensor = float[2] {1, 2}>()
            y = Add(x, w)
        }"""
    save(Graph.from_text(text), tmp_path / "m.onnx")
    assert inspect(tmp_path / "m.onnx").parameters == (ParameterFacts("float32", 1, 2, 8),)


def test_nodes_are_described_those_of_bodies_included(path: Path) -> None:
    found = inspect(path)
    assert [(n.node, n.op_type) for n in found.nodes] == [
        ("add", "Add"),
        ("if", "If"),
        ("else_out", "Mul"),
        ("then_out", "Add"),
        ("strange", "Strange"),
    ]
    assert found.nodes[0].precision == "float32"
    assert sum(found.precisions.values()) == 5


def test_a_quantized_model_tells_what_stayed_in_float_and_why(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], "matmul"),
            helper.make_node("Exp", ["m"], ["y"], "exp"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [weights],
    )
    opsets = [helper.make_opsetid("", 17)]
    quantized = load(helper.make_model(graph, ir_version=8, opset_imports=opsets))
    InsertQdq(same_bounds(quantized, "cpu-x64"), "cpu-x64").run(quantized, Context())
    save(quantized, tmp_path / "q.onnx")
    found = inspect(tmp_path / "q.onnx")
    layers = {n.node: n for n in found.nodes}
    assert list(layers) == ["matmul", "exp"], "QDQ pairs are left out"
    assert (layers["matmul"].precision, layers["matmul"].reason) == ("int8", "")
    assert layers["exp"].precision == "float32" and "Exp" in layers["exp"].reason
    assert found.precisions == {"int8": 1, "float32": 1}
    assert "int8" in {p.dtype for p in found.parameters}


def test_external_data_counts(tmp_path: Path) -> None:
    whole, apart = tmp_path / "whole.onnx", tmp_path / "apart.onnx"
    proto = model()
    onnx.save(proto, whole)
    onnx.save(proto, apart, save_as_external_data=True, location="data", size_threshold=50)
    assert inspect(apart).bytes == apart.stat().st_size + 56
    assert inspect(apart).parameters == inspect(whole).parameters


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        inspect(tmp_path / "no.onnx")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"m\.onnx"):
        inspect(tmp_path / "m.onnx")
