"""Helpers that the tests of several areas share: comparing graphs and their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxq.ir import Attribute, DataType, Graph, Node, Tensor, TensorType, Value, to_proto
from onnxq.runtime import Session

Feeds = Mapping[str, np.ndarray]

RUNTIME = tuple(int(number) for number in onnxruntime.__version__.split(".")[:2])
"""Version of onnxruntime, for tests that state what it does with a model."""

OPSET_26 = pytest.param(
    26, marks=pytest.mark.skipif(RUNTIME < (1, 25), reason="onnxruntime 1.24 ends at opset 25")
)


def run(graph: Graph, feeds: Feeds) -> dict[str, Any]:
    """Outputs of a graph by name, from onnxruntime with its own optimizations switched off."""
    return dict(_session(graph).run(dict(feeds)))


def _session(graph: Graph) -> Session:
    return Session(to_proto(graph), optimization="none")


def random_feeds(
    graph: Graph,
    seed: int = 0,
    *,
    dims: Mapping[str, int] | None = None,
    other_dims: int = 2,
    high: int = 10,
) -> dict[str, np.ndarray]:
    """Random arrays for every input that has to be fed.

    ``dims`` sets the sizes of symbolic dimensions by name, ``other_dims`` that of every other
    one that is not known. Floats are normally distributed, integers lie in [0, ``high``).
    """
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in graph.inputs:
        if value.data is not None:
            continue
        assert isinstance(value.type, TensorType), f"input {value.name} is no tensor"
        assert value.shape is not None, f"input {value.name} has no shape"
        shape = [
            d if isinstance(d, int) else (dims or {}).get(d or "", other_dims) for d in value.shape
        ]
        feeds[value.name] = _random(generator, value.type.dtype, shape, high)
    return feeds


def assert_equivalent(
    before: Graph,
    after: Graph,
    *,
    exact: bool = True,
    rtol: float = 1e-5,
    feeds: Feeds | None = None,
    seeds: tuple[int, ...] = (0, 1),
    dims: Mapping[str, int] | None = None,
) -> None:
    """Both graphs are valid, have the same interface and give the same outputs.

    ``exact`` compares every bit; otherwise the largest difference may be ``rtol`` times the
    largest magnitude of the output. ``feeds`` replaces the random ones.
    """
    after.check()
    _assert_same_interface(before, after)
    sessions = [_session(graph) for graph in (before, after)]
    for fed in (
        [feeds] if feeds is not None else [random_feeds(before, s, dims=dims) for s in seeds]
    ):
        wanted, found = (dict(session.run(dict(fed))) for session in sessions)
        assert_same_outputs(wanted, found, exact=exact, rtol=rtol)


def assert_same_outputs(
    wanted: Mapping[str, Any], found: Mapping[str, Any], *, exact: bool = True, rtol: float = 1e-5
) -> None:
    """Both runs gave the same outputs: bit by bit, or within ``rtol`` of the largest magnitude."""
    assert list(wanted) == list(found)
    for name, one in wanted.items():
        _assert_same_output(name, one, found[name], exact, rtol)


def assert_same_graph(found: Graph, wanted: Graph, *, rtol: float = 0.0) -> None:
    """Both graphs are equal up to the names of intermediates and constants; see `difference`."""
    reason = difference(found, wanted, rtol=rtol)
    assert not reason, f"{reason}\n--- found\n{found}\n--- wanted\n{wanted}"


def same_graph(a: Graph, b: Graph, *, rtol: float = 0.0) -> bool:
    """Whether two graphs are equal up to the names of intermediates and constants."""
    return not difference(a, b, rtol=rtol)


def difference(a: Graph, b: Graph, *, rtol: float = 0.0) -> str:
    """The first difference between two graphs in words, empty when there is none.

    Walks from the outputs to the inputs. Graph inputs and outputs must agree in name and order,
    operators in type, attributes and inputs, constants in dtype, shape and numbers (``rtol``
    relative to the largest magnitude); the types of values, the names of nodes and intermediates
    and the order of nodes do not count. Operators without users count by number.
    """
    try:
        _Walk(rtol).graphs(a, b)
    except _DifferenceError as found:
        return str(found)
    return ""


class _DifferenceError(Exception):
    """Two graphs are not the same."""


class _Walk:
    """Pairs up the values and nodes of two graphs, going from outputs to inputs."""

    def __init__(self, rtol: float) -> None:
        self._rtol = rtol
        self._values: dict[Value, Value] = {}
        self._nodes: dict[Node, Node] = {}
        self._reverse: dict[Node, Node] = {}
        self._pending: list[tuple[Value, Value]] = []

    def graphs(self, a: Graph, b: Graph) -> None:
        _demand([v.name for v in a.inputs], [v.name for v in b.inputs], "inputs")
        _demand([v.name for v in a.outputs], [v.name for v in b.outputs], "outputs")
        self._bodies(a, b)
        while self._pending:
            self._value(*self._pending.pop())

    def _bodies(self, a: Graph, b: Graph) -> None:
        _demand(len(a.inputs), len(b.inputs), f"number of inputs of '{a.name}'")
        _demand(len(a.outputs), len(b.outputs), f"number of outputs of '{a.name}'")
        _demand(_operators(a), _operators(b), f"operators of '{a.name}'")
        for one, other in zip(a.inputs, b.inputs, strict=True):
            self._values[one] = other
            self._data(one, other)
        self._pending += zip(a.outputs, b.outputs, strict=True)

    def _value(self, a: Value, b: Value) -> None:
        if a in self._values:
            if self._values[a] is not b and not (a.is_constant and b.is_constant):
                raise _DifferenceError(
                    f"'{a.name}' stands for '{self._values[a].name}' and '{b.name}'"
                )
            if self._values[a] is b:
                return
        self._values[a] = b
        self._data(a, b)
        _demand(a.is_input, b.is_input, f"whether '{a.name}' is an input")
        if (a.producer is None) != (b.producer is None):
            raise _DifferenceError(f"only one of '{a.name}' and '{b.name}' is made by a node")
        if a.producer is not None and b.producer is not None:
            _demand(a.slot, b.slot, f"slot of '{a.name}'")
            self._node(a.producer, b.producer)

    def _data(self, a: Value, b: Value) -> None:
        if (a.data is None) != (b.data is None):
            raise _DifferenceError(f"only one of '{a.name}' and '{b.name}' has data")
        if a.data is not None and b.data is not None:
            self._tensors(a.data, b.data, a.name)

    def _tensors(self, a: Tensor, b: Tensor, name: str) -> None:
        _demand((a.dtype, a.shape), (b.dtype, b.shape), f"dtype and shape of '{name}'")
        if a.digest() == b.digest():
            return
        one, other = a.numpy(), b.numpy()
        if self._rtol and a.dtype.is_float and _deviation(one, other) <= self._rtol:
            return
        raise _DifferenceError(
            f"numbers of '{name}': {one.reshape(-1)[:8]} and {other.reshape(-1)[:8]}"
        )

    def _node(self, a: Node, b: Node) -> None:
        if a in self._nodes or b in self._reverse:
            if self._nodes.get(a) is not b:
                raise _DifferenceError(f"{a.label} and {b.label} are shared differently")
            return
        self._nodes[a], self._reverse[b] = b, a
        _demand((a.domain, a.op_type), (b.domain, b.op_type), "operator")
        _demand(
            [v is None for v in a.inputs], [v is None for v in b.inputs], f"inputs of {a.label}"
        )
        for one, other in zip(a.inputs, b.inputs, strict=True):
            if one is not None and other is not None:
                self._pending.append((one, other))
        _demand(sorted(a.attributes), sorted(b.attributes), f"attributes of {a.label}")
        for name in a.attributes:
            self._attribute(a.attributes[name], b.attributes[name], f"{name} of {a.label}")

    def _attribute(self, a: Attribute, b: Attribute, what: str) -> None:
        _demand((a.kind, a.reference), (b.kind, b.reference), f"type of {what}")
        if isinstance(a.value, Tensor):
            self._tensors(a.value, b.value, what)
        elif a.graphs():
            for one, other in zip(a.graphs(), b.graphs(), strict=True):
                self._bodies(one, other)
        else:
            _demand(a.value, b.value, what)


def _demand(a: object, b: object, what: str) -> None:
    if a != b:
        raise _DifferenceError(f"{what}: {a} and {b}")


def _operators(graph: Graph) -> dict[str, int]:
    counted: dict[str, int] = {}
    for node in graph.nodes():
        counted[node.op_type] = counted.get(node.op_type, 0) + 1
    return dict(sorted(counted.items()))


def _assert_same_interface(before: Graph, after: Graph) -> None:
    """Names and order agree, and so do the dtypes as far as the first graph states them."""
    for one, other in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        assert [v.name for v in one] == [v.name for v in other]
        for value, kept in zip(one, other, strict=True):
            assert value.dtype in (None, kept.dtype), value.name


def _random(
    generator: np.random.Generator, dtype: DataType, shape: list[int], high: int
) -> np.ndarray:
    if dtype is DataType.STRING:
        return generator.choice(np.array(["a", "b", "c"], dtype=object), size=shape)
    if dtype.is_float:
        return np.asarray(generator.standard_normal(shape)).astype(dtype.numpy)
    top = 2 if dtype is DataType.BOOL else high
    return np.asarray(generator.integers(0, top, size=shape)).astype(dtype.numpy)


def _assert_same_output(name: str, one: Any, other: Any, exact: bool, rtol: float) -> None:
    if isinstance(one, list):
        assert isinstance(other, list) and len(one) == len(other), name
        for at, pair in enumerate(zip(one, other, strict=True)):
            _assert_same_output(f"{name}[{at}]", *pair, exact, rtol)
        return
    assert one.dtype == other.dtype, f"{name}: {one.dtype} became {other.dtype}"
    assert one.shape == other.shape, f"{name}: {one.shape} became {other.shape}"
    if one.dtype == object or one.dtype.kind in "US":
        assert (one == other).all(), name
    elif exact or one.dtype.kind in "iub":
        assert np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes(), (
            f"{name} differs by up to {_deviation(one, other)} of its largest magnitude"
        )
    else:
        deviation = _deviation(one, other)
        assert deviation <= rtol, f"{name} deviates by {deviation} of its largest magnitude"


def _deviation(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference over the largest magnitude; infinite where only one is not finite."""
    a, b = one.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    finite = np.isfinite(a)
    if (finite != np.isfinite(b)).any() or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return float("inf")
    a, b = a[finite], b[finite]
    if a.size == 0:
        return 0.0
    return float(np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(np.float64).tiny))
