from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest
from onnx import helper, numpy_helper

from onnxq.errors import InputError
from onnxq.ir import Graph, Tensor, load, to_proto
from onnxq.ir.opset import raise_opset
from tests.helpers import assert_equivalent


def graph_of(text: str, opset: int = 9, ir_version: int = 4, imports: str = "") -> Graph:
    return Graph.from_text(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}{imports}]> {text}'
    )


OLD = """g (float[N, 6] x) => (float[N, A] y, float[N, 6] s)
    { a = Slice<axes = [1], starts = [1], ends = [5]>(x)  c = Clip<min = -1.0, max = 1.0>(a)
      y = Dropout(c)  s = Softmax<axis = 1>(x) }"""


@pytest.mark.parametrize("version", [10, 13, 18, 21])
def test_raised_model_computes_the_same(version: int) -> None:
    before = graph_of(OLD)
    after = raise_opset(before, version)
    assert after.opset == version and before.opset == 9
    onnx.checker.check_model(to_proto(after), full_check=True)
    assert_equivalent(before, after, exact=False)
    rows = {row[2]: row[1] for row in helper.VERSION_TABLE}
    assert after.model.ir_version == max(4, rows[version])


def test_newer_models_stay_as_they_are() -> None:
    graph = graph_of(OLD)
    assert raise_opset(graph, 9) is graph and raise_opset(graph, 8) is graph


def test_what_the_converter_drops_is_kept() -> None:
    before = graph_of(
        """g (float[2] x) => (float[2] y) <float[2] a, float[2] c = {1, 2}>
        { [first] a = Add(x, c)  [if] y = Neg(a) }""",
        imports=', "com.acme": 3',
    )
    model = to_proto(before)
    model.producer_name, model.producer_version, model.domain = "maker", "1", "com.model"
    model.model_version, model.doc_string = 5, "what it is"
    model.metadata_props.add(key="k", value="v")
    graph = model.graph
    graph.doc_string = "the graph"
    graph.metadata_props.add(key="g", value="1")
    graph.node[0].doc_string = "adds"
    graph.node[0].metadata_props.add(key="n", value="1")
    graph.value_info[0].doc_string = "in between"
    annotation = graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c")
    raised = to_proto(raise_opset(load(model), 13))
    assert [e.domain for e in raised.opset_import] == ["", "com.acme"]
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(raised, name) == getattr(model, name)
    assert raised.metadata_props == model.metadata_props
    for name in ("doc_string", "metadata_props", "quantization_annotation"):
        assert getattr(raised.graph, name) == getattr(graph, name)
    assert raised.graph.node[0].doc_string == "adds"
    assert raised.graph.node[0].metadata_props == graph.node[0].metadata_props
    assert "in between" in [v.doc_string for v in raised.graph.value_info]
    assert [n.name for n in raised.graph.node] == ["first", "if"]


def test_initializers_stay_what_they_are() -> None:
    """Constants of an old model are not overridable in the new one; sparse ones stay sparse."""
    model = onnx.parser.parse_model(
        """<ir_version: 3, opset_import: ["": 9]>
        g (float[4] x, float[4] c) => (float[4] y) { a = Add(x, c)  y = Add(a, s) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "c"))
    values = numpy_helper.from_array(np.array([5], np.float32), "s")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([2])), [4])
    )
    raised = raise_opset(load(model), 13)
    assert raised.values["c"].is_constant and [v.name for v in raised.inputs] == ["x"]
    kept = raised.values["s"].data
    assert kept is not None and kept.is_sparse and np.array_equal(kept.numpy(), [0, 0, 5, 0])


def test_overridable_initializers_stay_overridable() -> None:
    before = graph_of("g (float[2] x, float[2] c) => (float[2] y) { y = Add(x, c) }")
    before.values["c"].data = Tensor(np.ones(2, np.float32))
    raised = raise_opset(before, 13)
    assert not raised.values["c"].is_constant and raised.values["c"].data is not None


@pytest.mark.parametrize(
    "text, version, message",
    [
        (OLD, 999, r"opset 999 is not known to onnx .* is its newest"),
        ("g (float[2] x) => (y) { y = NoSuch(x) }", 13, "NoSuch making 'y'.*opset 9 does not have"),
        (
            "g (float[1, 1, 2] x, float[1] s) => (y) "
            "{ y = BatchNormalization<spatial = 0>(x, s, s, s, s) }",
            13,
            "the model has opset 8 and cannot be raised to 13, .*: Attribute spatial must have",
        ),
        ("g (float[2] x) => (y) { y = Slice(x) }", 13, "cannot be raised to 13"),
    ],
)
def test_what_cannot_be_raised(text: str, version: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        raise_opset(graph_of(text, opset=8 if "spatial" in text else 9), version)
    assert "\n" not in str(caught.value)
