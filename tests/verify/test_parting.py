"""The first node that another provider computes differently: planted faults, and what is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxq.ir import Graph, to_proto
from onnxq.runtime import Runnable, Session
from onnxq.verify.parting import first_parting, outputs_differ, parts
from tests.quantization import observed_bounds, quantized

GRAPH = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] a = {%s}, float[4, 4] b = {%s}> {
  [first] h = MatMul(x, a)
  [clip] r = Relu(h)
  [second] s = MatMul(r, b)
  [bend] y = Tanh(s)
}"""
FEEDS = {"x": np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32)}


def _float() -> Graph:
    rng = np.random.default_rng(0)
    weights = (", ".join(map(str, rng.standard_normal(16).round(3))) for _ in range(2))
    return Graph.from_text(GRAPH % tuple(weights))


@pytest.fixture
def model() -> Graph:
    graph = _float()
    return quantized(graph, observed_bounds(graph.copy(), FEEDS), target="cpu-x64-avx2")


def _here(graph: Graph) -> Runnable:
    return Session(to_proto(graph))


def _faulty(name: str, factor: float) -> Callable[[Graph], Runnable]:
    """A provider on which a node gives so many times what it should."""

    def there(graph: Graph) -> Runnable:
        wrong = graph.copy()
        for node in list(wrong.nodes()):
            if node.name == name:
                made = node.output
                users = list(made.uses)
                scale = wrong.constant(np.float32(factor), "factor")
                scaled = wrong.add("Mul", [made, scale], types=[made.type]).output
                for use in users:
                    use.node.set_input(use.slot, scaled)
                if made.is_output:
                    wrong.set_outputs([scaled if v is made else v for v in wrong.outputs])
        return _Renamed(Session(to_proto(wrong)), [v.name for v in graph.outputs])

    return there


class _Renamed:
    """Gives outputs under the names that they had."""

    runs_in_caller = True

    def __init__(self, session: Session, names: list[str]) -> None:
        self._session, self._names = session, names
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds: dict[str, np.ndarray], outputs: object = None) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(feeds).values(), strict=True))


def test_parts_lie_between_quantized_tensors(model: Graph) -> None:
    found = list(parts(model))
    computing = [[n.name for n in part.nodes if n.is_op("MatMul", "Tanh")] for part in found]
    assert computing == [[], ["first"], ["second", "bend"]]
    assert [len(part.reads) for part in found] == [1, 1, 1]
    assert found[-1].gives is model.outputs[0]


@pytest.mark.parametrize(
    ("node", "factor", "named"),
    [
        ("first", 1.5, "first"),
        ("second", 1.5, "second"),
        ("bend", 0.5, "bend"),
        ("first", 1.0001, ""),
        ("nowhere", 2.0, ""),
    ],
)
def test_the_first_node_that_is_off_is_named(
    model: Graph, node: str, factor: float, named: str
) -> None:
    assert first_parting(model, [FEEDS], _here, _faulty(node, factor)) == named


def test_a_float_model_is_one_part() -> None:
    graph = _float()
    assert first_parting(graph, [FEEDS], _here, _here) == ""
    assert first_parting(graph, [FEEDS], _here, _faulty("first", 1.1)) == "first"


def test_one_sample_that_parts_is_enough_and_no_session_is_opened_for_each() -> None:
    graph, opened = _float(), list[Graph]()
    quiet = {"x": np.zeros((16, 4), np.float32)}

    def there(part: Graph) -> Runnable:
        opened.append(part)
        return _faulty("first", 1.1)(part)

    assert first_parting(graph, [quiet, quiet, FEEDS], _here, there) == "first"
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "differ"),
    [
        ([0, 255.0], [0.9, 255], False),
        ([0, 255.0], [1.1, 255], True),
        ([3, 200], [4, 199], False),
        ([3, 200], [5, 200], True),
        ([1.0, np.nan], [1.0, np.nan], False),
        ([1.0, np.nan], [1.0, 2.0], True),
        ([1.0, np.inf], [1.0, -np.inf], True),
        ([np.nan, np.nan], [np.nan, np.nan], False),
        ([2.0, 2.0], [2.001, 2.0], False),
        ([1.0, 2.0], [1.0], True),
    ],
)
def test_what_is_a_step(ours: list[float], theirs: list[float], differ: bool) -> None:
    kind = np.float32 if any(isinstance(n, float) for n in ours) else np.uint8
    assert outputs_differ({"y": np.array(ours, kind)}, {"y": np.array(theirs, kind)}) is differ


def test_names_and_answers_are_no_numbers() -> None:
    for ours, theirs in ((["a"], ["b"]), ([True], [False])):
        assert not outputs_differ({"y": np.array(ours)}, {"y": np.array(theirs)})


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.uint64])
def test_numbers_of_64_bits_are_numbers(kind: type) -> None:
    ours, near, far = (np.array(y, kind) for y in ([3, 700], [4, 700], [9, 700]))
    assert not outputs_differ({"y": ours}, {"y": near})
    assert outputs_differ({"y": ours}, {"y": far})
