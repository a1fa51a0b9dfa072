"""What a model holds is there again after loading and saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.ir import DataType, Graph, TensorType, load, save, to_proto
from tests.helpers import assert_same_outputs, random_feeds, run
from tests.ir.loading import full_model, in_order, parsed


def assert_round_trip(proto: onnx.ModelProto, folder: Path) -> Graph:
    """Load, save, load, save: the two files are equal byte for byte."""
    first, second = folder / "first.onnx", folder / "second.onnx"
    graph = load(proto)
    save(graph, first)
    again = load(first)
    save(again, second)
    assert first.read_bytes() == second.read_bytes()
    return again


def test_everything_is_kept(tmp_path: Path) -> None:
    model = full_model()
    found = to_proto(assert_round_trip(model, tmp_path))
    # Nodes come in topological order: Constant "typed" before "clip", which reads it.
    names = [n.name for n in found.graph.node]
    assert names == ["add", "call", "if", "sequence", "typed", "clip", "acme"]
    by_name = {n.name: n for n in model.graph.node}
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    del wanted.graph.node[:]
    wanted.graph.node.extend(by_name[n] for n in names)
    _normalize(wanted.graph)
    # Fields are compared one by one, so that a difference shows where it is.
    for field in onnx.GraphProto.DESCRIPTOR.fields:
        assert _items(getattr(found.graph, field.name)) == _items(
            getattr(wanted.graph, field.name)
        ), field.name
    assert in_order(found) == in_order(wanted)


def _normalize(graph: onnx.GraphProto) -> None:
    """Clear what says nothing: empty domains, and the names of tensors in attributes."""
    for node in graph.node:
        if not node.domain:
            node.ClearField("domain")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
            for tensor in attribute.tensors:
                tensor.ClearField("name")
            if attribute.HasField("g"):
                _normalize(attribute.g)


def _items(value: object) -> object:
    return list(value) if hasattr(value, "extend") else value  # type: ignore[call-overload]


def test_outputs_are_the_same(tmp_path: Path) -> None:
    model = full_model()
    del model.graph.node[-1]
    del model.graph.sparse_initializer[:]
    del model.training_info[:]
    del model.configuration[:]
    model.graph.node[0].ClearField("device_configurations")
    graph = load(model)
    again = assert_round_trip(model, tmp_path)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for q in (True, False):
        feeds = {"q": np.array(q), "x": x, "unread": [np.ones(2, np.float32)]}
        reference = onnx.reference.ReferenceEvaluator(to_proto(graph))
        assert_same_outputs(run(graph, feeds), run(again, feeds))
        wanted = reference.run(None, feeds)
        for one, other in zip(wanted, run(again, feeds).values(), strict=True):
            assert np.array_equal(one, other)


def test_overridable_initializers_stay_overridable(tmp_path: Path) -> None:
    model = parsed("g (float[2] x, float[2] o) => (float[2] y) { y = Add(x, o) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "o"))
    graph = assert_round_trip(model, tmp_path)
    assert not graph.values["o"].is_constant
    x = np.array([1, 2], np.float32)
    assert np.array_equal(run(graph, {"x": x})["y"], [2, 3])
    assert np.array_equal(run(graph, {"x": x, "o": x})["y"], [2, 4])


def test_old_files_list_every_initializer_as_an_input(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 3, opset_import: ["": 7]>
        g (float[2] x, float[2] o) => (float[2] y) { y = Add(x, o) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "o"))
    graph = assert_round_trip(model, tmp_path)
    assert graph.values["o"].is_constant and [v.name for v in graph.inputs] == ["x"]
    written = onnx.load(tmp_path / "second.onnx")
    assert [v.name for v in written.graph.input] == ["x", "o"]
    onnx.checker.check_model(written, full_check=True)


def test_optional_inputs_and_outputs_that_are_left_out(tmp_path: Path) -> None:
    model = parsed(
        """g (float[1, 1, 4] x) => (float[1, D, 1, 2] h)
        <float[1, 8, 4] w = {0}, float[1, 8, 2] r = {0}, float[1, 2] state = {0}>
        { , h = LSTM<hidden_size = 2>(x, w, r, , , state, ) }"""
    )
    for tensor, size in zip(model.graph.initializer, (32, 16, 2), strict=True):
        tensor.ClearField("float_data")
        tensor.raw_data = np.linspace(-1, 1, size, dtype=np.float32).tobytes()
    model.graph.initializer[2].dims[:] = [1, 1, 2]
    assert list(model.graph.node[0].input) == ["x", "w", "r", "", "", "state"]
    model.graph.node[0].input.append("")
    graph = assert_round_trip(model, tmp_path)
    (node,) = to_proto(graph).graph.node
    assert list(node.input) == ["x", "w", "r", "", "", "state", ""]
    assert list(node.output) == ["", "h"]
    feeds = random_feeds(graph)
    assert_same_outputs(run(load(model), feeds), run(graph, feeds))


def test_no_nodes_and_no_names(tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])],
            "",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
                helper.make_tensor_value_info("z", TensorProto.FLOAT, [2]),
            ],
        )
    )
    graph = assert_round_trip(model, tmp_path)
    assert [n.name for n in graph.nodes()] == ["", ""] and graph.name == ""
    assert graph.outputs[0] is graph.inputs[0]


def test_nodes_of_one_name(tmp_path: Path) -> None:
    model = parsed("g (float[2] x) => (float[2] y) { [n] a = Neg(x)  [n] y = Neg(a) }")
    assert [n.name for n in assert_round_trip(model, tmp_path).nodes()] == ["n", "n"]


def test_default_domain_by_its_long_name(tmp_path: Path) -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[0].domain = "ai.onnx"
    graph = assert_round_trip(model, tmp_path)
    assert graph.opset == 21 and next(iter(graph.nodes())).is_op("Neg")


def test_sizes_below_zero_are_unknown() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert load(model).inputs[0].type == TensorType(DataType.FLOAT, (None,))


def test_file_bytes_and_message_give_the_same(tmp_path: Path) -> None:
    model = full_model()
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    wanted = in_order(to_proto(load(model)))
    for source in (path, str(path), path.read_bytes()):
        assert in_order(to_proto(load(source))) == wanted
    assert load(path).model.path == path and load(model).model.path is None


def test_loading_leaves_the_message_alone() -> None:
    model = full_model()
    before = in_order(model)
    graph = load(model)
    graph.rename(graph.values["c"], "renamed")
    graph.model.metadata["new"] = "1"
    to_proto(graph).graph.initializer[0].raw_data = b""
    assert in_order(model) == before


# Names used anew in subgraphs


SHADOWED = """g (bool q, float[2] x) => (float[2] y) <float[2] c = {1, 2}>
    {
        a = Add(x, c)
        y = If(q) <
            then_branch = then () => (float[2] y) <float[2] c = {10, 20}> {
                a = Mul(x, c)
                a_1 = Neg(a)
                y = Add(a_1, a)
            },
            else_branch = other () => (float[2] b) {
                b = If(q) <
                    then_branch = deep () => (float[2] a) { a = Neg(x) },
                    else_branch = flat () => (float[2] a_1) { x = Relu(a)  a_1 = Sub(x, c) }>
            }>
    }"""


@pytest.mark.parametrize("q", [True, False])
def test_names_that_subgraphs_use_anew(tmp_path: Path, q: bool) -> None:
    model = parsed(SHADOWED)
    graph = assert_round_trip(model, tmp_path)
    names = [v for nested in graph.all_graphs() for v in nested.values]
    assert {"q", "x", "c", "a", "y"} == set(graph.values)
    then, other = next(n for n in graph.nodes() if n.op_type == "If").subgraphs()
    assert set(then.values).isdisjoint(graph.values)
    assert set(then.values) == {"c_1", "a_1", "a_1_1", "y_1"}
    assert len(names) == len(set(names)) + len(set(then.values) & _inside(other))
    # Computed here by hand: onnx.reference mixes the scopes up.
    x = np.array([3, -4], np.float32)
    c = np.array([1, 2], np.float32)
    wanted = np.zeros(2) if q else np.maximum(x + c, 0) - c
    feeds = {"q": np.array(q), "x": x}
    assert np.array_equal(run(graph, feeds)["y"], wanted)
    assert [v.name for v in graph.inputs + graph.outputs] == ["q", "x", "y"]


def _inside(graph: Graph) -> set[str]:
    return {name for nested in graph.all_graphs() for name in nested.values}


def test_loop_whose_body_uses_outer_names_anew(tmp_path: Path) -> None:
    model = parsed(
        """g (int64 n, float[2] x) => (float[2] y, float[K, 2] all) <bool yes = {1}>
        { y, all = Loop(n, yes, x) <body = step (int64 n, bool yes, float[2] x)
            => (bool go, float[2] y, float[2] all)
            { go = Identity(yes)  y = Add(x, x)  all = Neg(y) }> }"""
    )
    graph = assert_round_trip(model, tmp_path)
    assert [v.name for v in graph.outputs] == ["y", "all"]
    found = run(graph, {"n": np.array(3), "x": np.array([1, 2], np.float32)})
    assert np.array_equal(found["y"], [8, 16])
    assert np.array_equal(found["all"], [[-2, -4], [-4, -8], [-8, -16]])


def test_annotations_follow_values_that_got_another_name() -> None:
    model = parsed(SHADOWED)
    then = model.graph.node[1].attribute[0].g
    annotation = then.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c")
    annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="nowhere")
    body = next(g for g in load(model).all_graphs() if g.name == "then")
    (annotated,) = (v for v in body.values.values() if v.annotation)
    assert annotated.name == "a_1"
    assert annotated.annotation == {"SCALE_TENSOR": "c_1", "ZERO_POINT_TENSOR": "nowhere"}


# The corpus


@pytest.mark.slow
def test_corpus_round_trip(corpus: Path, tmp_path: Path) -> None:
    files = sorted((corpus / "zoo").glob("*.onnx"))
    assert files, f"no models in {corpus / 'zoo'}"
    for path in files:
        graph = assert_round_trip(onnx.load(path), tmp_path)
        original = onnx.load(path)
        written = to_proto(graph)
        assert _interface(written) == _interface(original), path
        assert sorted(n.name for n in written.graph.node) == sorted(
            n.name for n in original.graph.node
        ), path
        assert written.functions == original.functions, path
        assert str(graph).startswith(graph.name or "graph")


def _interface(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs and outputs, sizes below zero as unknown ones.

    Old files list initializers among the inputs, where nobody can feed them: they are left out.
    """
    constants = {t.name for t in model.graph.initializer} if model.ir_version < 4 else set()
    found = [v for v in model.graph.input if v.name not in constants] + list(model.graph.output)
    for value in found:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")
    return found
