"""Raising the opset: the model computes the same, and everything else about it stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import InputError
from onnxq.ir import Graph, Tensor, infer_types, load, raise_opset, to_proto
from onnxq.runtime import Session
from tests.helpers import OPSET_26, assert_same_outputs, random_feeds, run


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

_IMAGE = "(float[1, 1, 5, 4] x) => (float[A, B, C, D] y)"
_SCALES = "<float[4] s = {1.0, 1.0, %s}>"

# Operators that the converter passes on, or converts, into something else.
CHANGED = {
    "Hardmax": (11, "(float[2, 3, 4] x) => (float[2, 3, 4] y)", "y = Hardmax(x)"),
    "Hardmax on axis 0": (11, "(float[2, 3, 4] x) => (float[2, 3, 4] y, float[2, 3, 4] z)",
                          "y = Hardmax<axis = 0>(x) z = Neg(y)"),
    "Hardmax in a branch": (11, "(float[2, 3, 4] x, bool c) => (float[2, 3, 4] y)",
                            """y = If(c) <then_branch = t () => (float[2, 3, 4] a)
                            { a = Hardmax<axis = 2>(x) }, else_branch = e ()
                            => (float[2, 3, 4] b) { b = Hardmax<axis = 1>(x) }>"""),
    "Resize, linear": (10, _IMAGE, 'y = Resize<mode = "linear">(x, s)', _SCALES % "2.0, 0.6"),
    "Resize, larger": (10, _IMAGE, "y = Resize(x, s)", _SCALES % "1.3, 2.7"),
    "Resize, smaller": (10, _IMAGE, "y = Resize(x, s)", _SCALES % "0.6, 0.7"),
    "Upsample, linear": (9, _IMAGE, 'y = Upsample<mode = "linear">(x, s)', _SCALES % "2.0, 2.0"),
    "Upsample": (9, _IMAGE, "y = Upsample(x, s)", _SCALES % "1.5, 2.7"),
    "Upsample by attribute": (7, _IMAGE, "y = Upsample<scales = [1.0, 1.0, 1.5, 2.7]>(x)"),
    "GroupNormalization": (18, "(float[2, 4, 3] x) => (float[2, 4, 3] y)",
                           "y = GroupNormalization<num_groups = 2>(x, w, b)",
                           "<float[2] w = {1, 2}, float[2] b = {3, 4}>"),
    "Hardmax in a function": (11, "(float[2, 3, 4] x) => (float[2, 3, 4] y)", "y = my.F(x)", "",
                              '<domain: "my", opset_import: ["": 11]> F (a) => (b)'
                              "{ b = Hardmax(a) }"),
}  # fmt: skip


@pytest.mark.parametrize("version", [11, 13, 19, 21, OPSET_26])
@pytest.mark.parametrize("name", CHANGED)
def test_outputs_of_operators_that_changed_stay(name: str, version: int) -> None:
    graph = _text(*CHANGED[name])
    raised = raise_opset(graph, version)
    feeds = random_feeds(graph)
    for flag in (True, False):
        fed = {**feeds, "c": np.array(flag)} if "c" in feeds else feeds
        assert_same_outputs(run(graph, fed), run(raised, fed), exact=False)
    assert [v.name for v in raised.outputs] == [v.name for v in graph.outputs]


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


def test_types_are_written_down_only_where_they_were() -> None:
    graph = _text(13, "(float[2] x) => (float[2] y)", "a = Abs(x) b = Neg(a) y = Exp(b)")
    declared = graph.find("b")
    assert declared is not None
    declared.declared = True
    infer_types(graph)
    raised = to_proto(raise_opset(graph, 21))
    assert [v.name for v in raised.graph.value_info] == ["b"]


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


FUNCTION = '<domain: "my", opset_import: ["": 11]> F (a) => (b) '
NESTED = (
    '<domain: "my", opset_import: ["": 11, "my": 1]> F (a) => (b) { h = my.G(a) b = Abs(h) }'
    '<domain: "my", opset_import: ["": 11]> G (a) => (b) { b = ReduceSum<axes = [1]>(a) }'
)

# Which functions stay: runtimes read their bodies in the model's version.
FUNCTIONS = {
    "same operator": (FUNCTION + "{ b = Neg(a) }", ["F"]),
    "newer form of the same": (FUNCTION + "{ b = Add(a, a) }", ["F"]),
    "other form": (FUNCTION + "{ b = ReduceSum<axes = [1]>(a) }", []),
    "parameter that is an attribute": (
        FUNCTION.replace("F (", "F <k> (") + "{ b = ReduceSum<axes = @k>(a) }",
        [],
    ),
    "one that calls another form": (NESTED, []),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    functions, staying = FUNCTIONS[name]
    call = "my.F<k = [1]>(x)" if "@k" in functions else "my.F(x)"
    graph = _text(11, "(float[1, 2] x) => (float[N, M] y)",
                  f"h = {call} i = Squeeze<axes = [0]>(h) y = Unsqueeze<axes = [0]>(i)",
                  more=functions)  # fmt: skip
    raised = raise_opset(graph, 13)
    assert [f.name for f in raised.model.functions] == staying
    for function in raised.model.functions:
        assert [e.version for e in function.opset_import if not e.domain] == [13]
    assert raised.model.opset_imports == {**graph.model.opset_imports, "": 13}
    onnx.checker.check_model(to_proto(raised))
    feeds = random_feeds(graph)
    assert_same_outputs(run(graph, feeds), run(raised, feeds))


def test_function_of_another_version_than_the_model() -> None:
    function = '<domain: "my", opset_import: ["": 11]> F (a) => (b) { b = Squeeze<axes = [0]>(a) }'
    graph = _text(12, "(float[1, 2] x) => (float[N] y)", "y = my.F(x)", more=function)
    raised = raise_opset(graph, 13)
    assert not raised.model.functions
    x = np.array([[1, -2]], np.float32)
    assert run(raised, {"x": x})["y"].tolist() == [1, -2]


@pytest.mark.parametrize(("first", "known"), [("Identity", True), ("my.Unknown", False)])
def test_types_that_the_converter_needs(first: str, known: bool) -> None:
    # Without them ONNX's inference, which the converter runs first, would end the process.
    graph = _text(20, "(string[2] x) => (bool[2] y)",
                  f'h = {first}(x) y = RegexFullMatch<pattern = "a.*">(h)')  # fmt: skip
    graph.model.opset_imports["my"] = 1
    if known:
        assert raise_opset(graph, 21).opset == 21
    else:
        with pytest.raises(InputError, match="the type of 'h', which node RegexFullMatch making"):
            raise_opset(graph, 21)


def test_large_constants_never_pass_through_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _text(11, "(float[1, 4] x) => (float[4] y)", "h = Add(x, w) y = Squeeze<axes = [0]>(h)",
                  "<float[4] w = {1, 2, 3, 4}>")  # fmt: skip
    large = Tensor(np.ones((1000, 4), np.float32))
    graph.values["w"].data = large
    seen = []
    convert = onnx.version_converter.convert_version
    monkeypatch.setattr(
        onnx.version_converter,
        "convert_version",
        lambda proto, version: seen.append(proto.ByteSize()) or convert(proto, version),
    )
    assert raise_opset(graph, 13).values["w"].data is large
    assert seen[0] < 4000


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
        (
            8,
            "y = Scan<num_scan_inputs = 1, body = b (t) => (u) { u = Abs(t) }>(, x)",
            13,
            "a batch",
        ),
        (
            10,
            "y = Resize(x, x)",
            13,
            "'y' has scales that are not constant, which no opset after 10",
        ),
        (10, "y = Resize(x, s)", 13, "'y' enlarges one axis and reduces another"),
        (13, "y, a, b, c, d = BatchNormalization(x, w, w, w, w)", 15, r"cannot be raised to 15, "),
    ],
)
def test_what_cannot_be_raised(opset: int, nodes: str, version: int, message: str) -> None:
    graph = _text(opset, "(float[1, 1] x) => (float[1, 1] y)", nodes,
                  "<float[1] w = {1}, float[2] s = {2.0, 0.5}>")  # fmt: skip
    before = to_proto(graph)
    with pytest.raises(InputError, match=message) as found:
        raise_opset(graph, version)
    text = str(found.value)
    assert "\n" not in text and "Assertion" not in text and ".cc" not in text
    assert to_proto(graph) == before
