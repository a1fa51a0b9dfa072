"""Raising the opset: the model computes the same, and everything else about it stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import InputError
from onnxq.ir import Graph, load, raise_opset, to_proto
from onnxq.runtime import Session
from tests.helpers import assert_same_outputs, random_feeds, run


def _text(opset: int, interface: str, nodes: str, constants: str = "", more: str = "") -> Graph:
    head = f'<ir_version: 7, opset_import: ["": {opset}, "com.microsoft": 1, "my": 1]>'
    graph = Graph.from_text(f"{head} g {interface} {constants} {{ {nodes} }} {more}")
    if not more:
        del graph.model.opset_imports["my"]
    return graph


MODELS = {
    "squeeze": (11, "(float[1, 3] x) => (float[3] y)", "y = Squeeze<axes = [0]>(x)"),
    "sum": (11, "(float[2, 3] x) => (float[N, M] y)", "y = ReduceSum<axes = [1]>(x)"),
    "pad": (9, "(float[2, 3] x) => (float[N, M] y)", "y = Pad<pads = [0, 1, 1, 0]>(x)"),
    "slice": (9, "(float[2, 3] x) => (float[N, M] y)", "y = Slice<starts = [1], ends = [9]>(x)"),
    "clip": (9, "(float[2, 3] x) => (float[2, 3] y)", "y = Clip<min = -0.5, max = 0.5>(x)"),
    "topk": (9, "(float[2, 3] x) => (float[N, M] y, int64[N, M] i)",
             "y, i = TopK<k = 2>(x)"),
    "dropout": (9, "(float[2, 3] x) => (float[2, 3] y)", "y = Dropout<ratio = 0.5>(x)"),
    "softmax": (12, "(float[2, 3] x) => (float[2, 3] y)", "y = Softmax<axis = 1>(x)"),
    "contrib": (11, "(float[2, 3] x) => (float[2, 3] y)", "h = com.microsoft.Gelu(x) y = Abs(h)"),
    "branch": (11, "(float[1, 3] x, bool c) => (float[3] y)",
               """y = If(c) <then_branch = t () => (float[3] a) { a = Squeeze<axes = [0]>(x) },
               else_branch = e () => (float[3] b) { n = Neg(x) b = Squeeze<axes = [0]>(n) }>"""),
}  # fmt: skip


@pytest.mark.parametrize("version", [13, 17, 21])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay(name: str, version: int) -> None:
    graph = _text(*MODELS[name])
    raised = raise_opset(graph, version)
    assert raised.opset == version and graph.opset == MODELS[name][0]
    onnx.checker.check_model(to_proto(raised))
    feeds = random_feeds(graph)
    for flag in (True, False):
        fed = {**feeds, "c": np.array(flag)} if "c" in feeds else feeds
        assert_same_outputs(run(graph, fed), run(raised, fed))
    assert [v.name for v in raised.inputs] == [v.name for v in graph.inputs]


def test_a_model_that_is_new_enough_is_given_back() -> None:
    graph = _text(13, "(float[2] x) => (float[2] y)", "y = Abs(x)")
    assert raise_opset(graph, 13) is graph
    assert raise_opset(graph, 10) is graph


def test_the_ir_version_rises_as_far_as_the_opset_needs() -> None:
    graph = _text(11, "(float[2] x) => (float[2] y)", "y = Abs(x)")
    assert raise_opset(graph, 13).model.ir_version == 7
    assert raise_opset(graph, 21).model.ir_version == 10
    graph.model.ir_version = 12
    assert raise_opset(graph, 13).model.ir_version == 12


def test_initializers_of_old_models_do_not_become_inputs() -> None:
    proto = to_proto(_text(8, "(float[2] x) => (float[2] y)", "y = Add(x, w)",
                           "<float[2] w = {1, 2}>"))  # fmt: skip
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    raised = raise_opset(load(proto), 13)
    assert [v.name for v in raised.inputs] == ["x"]
    assert raised.values["w"].is_constant and raised.model.ir_version >= 4


def test_an_overridable_initializer_stays_one() -> None:
    graph = _text(11, "(float[2] x, float[2] w = {1, 2}) => (float[2] y)", "y = Add(x, w)")
    raised = raise_opset(graph, 13)
    assert [v.name for v in raised.inputs] == ["x", "w"]
    assert not raised.values["w"].is_constant
    assert raised.values["w"].data.numpy().tolist() == [1, 2]


def test_what_the_file_says_beside_its_graph_stays() -> None:
    graph = _text(11, "(float[1, 2] x) => (float[2] y)", "h = Abs(x) y = Squeeze<axes = [0]>(h)")
    proto = to_proto(graph)
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "what it is"
    proto.metadata_props.add(key="licence", value="free")
    proto.graph.doc_string = "what the graph is"
    proto.graph.metadata_props.add(key="of", value="graph")
    proto.graph.node[0].name, proto.graph.node[0].doc_string = "first", "what the node is"
    proto.graph.node[0].metadata_props.add(key="of", value="node")
    for info, name in ((proto.graph.input[0], "input"), (proto.graph.output[0], "output")):
        info.doc_string = f"what the {name} is"
        info.metadata_props.add(key="of", value=name)
    annotation = proto.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x")
    source = load(proto)
    found = to_proto(raise_opset(source, 13))
    wanted = to_proto(source)
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(found, name) == getattr(wanted, name)
    for name in ("metadata_props", "functions", "training_info", "configuration"):
        assert getattr(found, name) == getattr(wanted, name)
    for name in ("doc_string", "metadata_props", "input", "output", "quantization_annotation"):
        assert getattr(found.graph, name) == getattr(wanted.graph, name)
    assert found.graph.node[0] == wanted.graph.node[0]


def test_functions_and_their_domain_stay() -> None:
    function = '<domain: "my", opset_import: ["": 11]> F (a) => (b) { b = Neg(a) }'
    graph = _text(11, "(float[1, 2] x) => (float[2] y)", "h = my.F(x) y = Squeeze<axes = [0]>(h)",
                  more=function)  # fmt: skip
    raised = raise_opset(graph, 13)
    assert raised.model.functions == graph.model.functions
    assert raised.model.opset_imports == {**graph.model.opset_imports, "": 13}
    feeds = random_feeds(graph)
    assert_same_outputs(run(graph, feeds), run(raised, feeds))


def test_imports_of_domains_that_no_node_uses_stay() -> None:
    graph = _text(11, "(float[2] x) => (float[2] y)", "y = Abs(x)")
    graph.model.opset_imports["unused.domain"] = 3
    assert raise_opset(graph, 13).model.opset_imports["unused.domain"] == 3


def test_sparse_initializers_stay_sparse() -> None:
    sparse = onnx.SparseTensorProto(dims=[3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 2])))
    graph = _text(11, "(float[1, 3] x, float[3] w) => (float[3] y)",
                  "h = Squeeze<axes = [0]>(x) y = Add(h, w)")  # fmt: skip
    proto = to_proto(graph)
    del proto.graph.input[1]
    proto.graph.sparse_initializer.append(sparse)
    source = load(proto)
    raised = raise_opset(source, 13)
    assert raised.values["w"].data.is_sparse and source.values["w"].data.is_sparse
    feeds = {"x": np.array([[1, 2, 3]], np.float32)}
    assert Session(to_proto(raised)).run(feeds)["y"].tolist() == [2, 2, 5]


@pytest.mark.parametrize(
    ("opset", "nodes", "version", "message"),
    [
        (9, "y = NoSuchOperator(x)", 13, r"NoSuchOperator making 'y' .* opset 9 does not have"),
        (9, "y = Abs(x)", 999, r"opset 999 is not known to onnx .*; \d+ is its newest"),
        (9, "h, i = TopK(x) y = Abs(h)", 13, "cannot be raised to 13, .*required .* attribute 'k'"),
    ],
)
def test_what_cannot_be_raised(opset: int, nodes: str, version: int, message: str) -> None:
    graph = _text(opset, "(float[1, 1] x) => (float[1, 1] y)", nodes, "<float[1] w = {1}>")
    before = to_proto(graph)
    with pytest.raises(InputError, match=message) as found:
        raise_opset(graph, version)
    text = str(found.value)
    assert "\n" not in text and "Assertion" not in text and ".cc" not in text
    assert to_proto(graph) == before
