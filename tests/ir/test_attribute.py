from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.ir import Attribute, Graph, Tensor

KINDS = onnx.AttributeProto


@pytest.mark.parametrize(
    "value, kind, stored, plain",
    [
        (3, KINDS.INT, 3, 3),
        (np.int64(3), KINDS.INT, 3, 3),
        (True, KINDS.INT, 1, 1),
        (0.5, KINDS.FLOAT, 0.5, 0.5),
        (np.float32(0.5), KINDS.FLOAT, 0.5, 0.5),
        ("hé", KINDS.STRING, "hé".encode(), "hé"),
        (b"\xff", KINDS.STRING, b"\xff", b"\xff"),
        ([1, 2], KINDS.INTS, (1, 2), (1, 2)),
        ((1, 0.5), KINDS.FLOATS, (1.0, 0.5), (1.0, 0.5)),
        (["a", b"\xff"], KINDS.STRINGS, (b"a", b"\xff"), ("a", b"\xff")),
    ],
)
def test_plain_values(value: Any, kind: int, stored: object, plain: object) -> None:
    attribute = Attribute.of(value)
    assert (attribute.kind, attribute.value, attribute.plain()) == (kind, stored, plain)
    assert type(attribute.value) is type(stored)
    assert Attribute.of(attribute) is attribute
    # The numbers agree with those of onnx's own helper.
    wanted = onnx.helper.make_attribute("a", value)
    assert wanted.type == kind
    found = onnx.helper.get_attribute_value(wanted)
    assert (tuple(found) if isinstance(found, list) else found) == pytest.approx(stored)


def test_tensors_and_graphs() -> None:
    array = np.arange(3)
    tensor = Attribute.of(array)
    assert tensor.kind == KINDS.TENSOR and np.array_equal(tensor.value.numpy(), array)
    assert tensor.graphs() == ()
    held = Tensor(array)
    assert Attribute.of(held).value is held
    graph = Graph("body")
    assert Attribute.of(graph).kind == KINDS.GRAPH
    assert Attribute.of(graph).graphs() == (graph,)
    assert Attribute(KINDS.GRAPHS, (graph, graph)).graphs() == (graph, graph)
    # The parameter of a function holds nothing.
    assert Attribute(KINDS.GRAPH, None, "body").graphs() == ()


@pytest.mark.parametrize("value", [[], {}, object(), [1, "a"], None])
def test_values_of_no_type(value: Any) -> None:
    with pytest.raises(TypeError, match="no attribute type for"):
        Attribute.of(value)
