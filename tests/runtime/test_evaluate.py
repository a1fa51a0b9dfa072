"""Computing what depends on constants alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Graph, Node, Tensor, TensorType, Value
from onnxq.runtime import evaluate as module
from onnxq.runtime.evaluate import evaluate
from onnxq.runtime.session import Session

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def computing(text: str) -> tuple[Graph, list[Node]]:
    """A graph, and its operators without the last, which reads the graph's input."""
    graph = Graph.from_text(f"{HEAD}\n{text}")
    return graph, graph.nodes()[:-1]


def with_data(array: np.ndarray, operators: str, out: str = "float") -> tuple[Graph, list[Node]]:
    """Operators that make ``r`` from the constant ``a``."""
    graph, nodes = computing(
        f"g ({out}[N] x) => ({out}[N] y) <float[1] a = {{0}}> {{ {operators} y = Add(x, r) }}"
    )
    graph.values["a"].data = Tensor(array)
    graph.values["a"].type = TensorType(Tensor(array).dtype, array.shape)
    return graph, nodes


def result(graph: Graph, nodes: list[Node], **options: bool) -> np.ndarray:
    value = graph.values["r"]
    return evaluate(nodes, [value], **options)[value].numpy()


@pytest.fixture
def proto_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every model that was handed to onnxruntime."""
    found: list[int] = []

    def session(proto, **options):  # type: ignore[no-untyped-def]
        found.append(proto.ByteSize())
        return Session(proto, **options)

    monkeypatch.setattr(module, "Session", session)
    return found


def test_several_values_of_one_region() -> None:
    graph, nodes = computing(
        "g (float[2] x) => (float[2] y) <float[2] a = {1, -2}, float[2] b = {3, 4}> "
        "{ s = Add(a, b) r = Neg(s) y = Add(x, r) }"
    )
    wanted = [graph.values["r"], graph.values["s"]]
    found = evaluate(nodes, wanted)
    assert list(found) == wanted
    assert [tensor.numpy().tolist() for tensor in found.values()] == [[-4, -2], [4, 2]]
    assert len(graph.nodes()) == 3, "the graph is left as it is"


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.uint8, np.int64, np.bool_]
)
@pytest.mark.parametrize("elements", [10, 1 << 20])
def test_large_constants_are_no_part_of_the_model(
    proto_bytes: list[int], dtype: type, elements: int
) -> None:
    array = np.random.default_rng(0).integers(0, 2, elements).astype(dtype)
    found = result(*with_data(array, "r = Concat<axis = 0>(a, a)"))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, np.concatenate([array, array]))
    assert (proto_bytes[0] < 1000) or elements == 10


def test_packed_integers_come_back_packed() -> None:
    array = np.arange(-8, 8).astype(ml_dtypes.int4)
    graph, nodes = with_data(array, "t = Cast<to = 1>(a) r = Cast<to = 22>(t)")
    graph.values["r"].type = TensorType(Tensor(array).dtype, array.shape)
    found = result(graph, nodes)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_the_reference_steps_in_only_when_asked() -> None:
    """onnxruntime has no kernel for Mod of bfloat16."""
    array = np.array([5, -7, 3], np.float32).astype(ml_dtypes.bfloat16)
    graph, nodes = with_data(array, "r = Mod<fmod = 1>(a, a)", "bfloat16")
    with pytest.raises(InputError):
        result(graph, nodes)
    np.testing.assert_array_equal(result(graph, nodes, reference=True).astype(float), [0, -0.0, 0])


def test_results_that_are_no_tensors_are_refused() -> None:
    graph = Graph.from_text(
        f"{HEAD} g (float[1] x, int64 i) => (float[1] y) <float[1] a = {{1}}> "
        "{ s = SequenceConstruct(a) z = SequenceAt(s, i) y = Add(x, z) }"
    )
    (node, *_) = graph.nodes()
    with pytest.raises(InputError, match="no tensor"):
        evaluate([node], [graph.values["s"]])


def test_a_result_that_is_not_what_the_value_states_is_refused() -> None:
    graph, nodes = with_data(np.ones(3, np.float32), "r = Neg(a)")
    value: Value = graph.values["r"]
    value.type = TensorType(Tensor(np.ones(1, np.int64)).dtype, (3,))
    with pytest.raises(InputError):
        evaluate(nodes, [value])


def test_what_cannot_be_computed_is_refused() -> None:
    graph, nodes = computing(
        "g (float[N] x) => (float[N] y) <float[3] a = {1, 2, 3}, int64[1] s = {2}> "
        "{ r = Reshape(a, s) y = Add(x, r) }"
    )
    for reference in (False, True):
        with pytest.raises(InputError):
            result(graph, nodes, reference=reference)
