"""The assertion for tests of a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faults
import numpy as np
import onnx
import pytest

from onnxq.errors import InputError
from onnxq.ir import Graph, infer_types, to_proto
from onnxq.runtime import Session
from onnxq.testing import assert_equivalent
from onnxq.verify import Gate
from tests.helpers import Feeds, random_feeds
from tests.networks import chain
from tests.quantization import observed_bounds, quantized


@pytest.fixture(scope="module")
def original() -> Graph:
    return chain()


@pytest.fixture(scope="module")
def feeds(original: Graph) -> Feeds:
    return random_feeds(original, other_dims=32)


@pytest.fixture(scope="module")
def candidate(original: Graph, feeds: Feeds) -> Graph:
    return quantized(original, observed_bounds(original.copy(), feeds))


def labelled(original: Graph, feeds: Feeds) -> dict[str, np.ndarray]:
    decisions = Session(to_proto(original)).run(feeds)["y"].argmax(1)
    return {**feeds, "labels": decisions.astype(np.int64)}


def test_what_holds_gives_the_report(
    original: Graph, candidate: Graph, feeds: Feeds, tmp_path: Path
) -> None:
    path = tmp_path / "candidate.onnx"
    onnx.save(to_proto(candidate), path)
    models = (to_proto(original), path), (to_proto(original).SerializeToString(), str(path))
    for ours, theirs in models:
        report = assert_equivalent(
            ours, theirs, feeds, gates=["sqnr>=20", Gate("cosine", ">=", 0.9)]
        )
        assert report.passed and [gate.expr for gate in report.gates] == ["sqnr>=20", "cosine>=0.9"]


def test_the_promises_of_optimize_are_the_default(
    original: Graph, candidate: Graph, feeds: Feeds
) -> None:
    by_labels = assert_equivalent(to_proto(original), to_proto(original), labelled(original, feeds))
    assert [gate.expr for gate in by_labels.gates] == ["drop<=0.01"]
    by_numbers = assert_equivalent(
        to_proto(original), to_proto(candidate), feeds, metric="agreement"
    )
    assert [gate.expr for gate in by_numbers.gates] == ["agreement>=0.95"]


def test_the_message_names_gates_amounts_and_the_layer(
    original: Graph, candidate: Graph, feeds: Feeds
) -> None:
    graph = candidate.copy()
    reader = next(w for w in faults._weights(graph) if faults._at(w) == {"conv1"})
    graph.set_constant(reader, 1, faults._constant(reader, 1) * np.float32(4))
    infer_types(graph)
    gates = ["sqnr>=200", "max_abs<=1e-9", "size_ratio>=0.1", "drop<=1"]
    with pytest.raises(AssertionError) as caught:
        assert_equivalent(to_proto(original), to_proto(graph), feeds, gates=gates, metric="sqnr")
    first, *missed, where = str(caught.value).splitlines()
    assert first.endswith("3 of 4 gates failed")
    report = {line.split(":")[0].strip(): line.split(": ", 1)[1] for line in missed}
    assert list(report) == ["sqnr>=200", "max_abs<=1e-09", "drop<=1"]
    measured, _, rest = report["sqnr>=200"].removeprefix("measured ").partition(", ")
    amount, how = rest.split(" ", 1)
    assert how == "too little" and float(amount) == pytest.approx(200 - float(measured), rel=1e-3)
    assert report["max_abs<=1e-09"].endswith(" too much")
    assert report["drop<=1"] == "not measured"
    assert where.startswith("The error first jumps here: conv1 (Conv) is at fault: ")


def test_without_a_jump_the_weakest_layers_are_named(
    original: Graph, candidate: Graph, feeds: Feeds
) -> None:
    with pytest.raises(AssertionError, match=r"explains; the weakest: .*int8.* dB") as caught:
        assert_equivalent(to_proto(original), to_proto(candidate), feeds, gates=["max_abs==0"])
    assert "max_abs==0: measured" in str(caught.value) and "apart" in str(caught.value)


def test_latency_is_measured_only_where_a_gate_speaks_of_it(
    original: Graph, feeds: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.comparison.compare_files", _asked)
    asked = ("latencies.*.speedup>=1", "providers.*.candidate_ms<=9", "throughput.*.speedup>=1")
    for gates, is_asked in (((), False), (["sqnr>=1"], False), *(([one], True) for one in asked)):
        with pytest.raises(_AskedError) as caught:
            assert_equivalent(to_proto(original), to_proto(original), feeds, gates=gates)
        assert caught.value.args == (is_asked,)


class _AskedError(Exception):
    pass


def _asked(*arguments: object, **_: object) -> None:
    raise _AskedError(arguments[4].latency)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": ["beauty>=1"]}, "'beauty'"),
        ({"providers": "cpu"}, r"option 'providers' is a list; write \['cpu'\]"),
        ({"metric": len}, "a metric is given by its name, as 'accuracy' or 'module:function', not"),
        ({"candidate": {}}, "a model is given as a path, its file's bytes or a ModelProto, not as"),
    ],
)
def test_what_cannot_be_used_is_no_failed_assertion(
    original: Graph, feeds: Feeds, options: dict[str, Any], message: str
) -> None:
    model = to_proto(original)
    with pytest.raises(InputError, match=message):
        assert_equivalent(model, options.pop("candidate", model), feeds, **options)


def test_a_long_name_and_infinite_errors_leave_the_message_readable(
    original: Graph, feeds: Feeds
) -> None:
    model, broken = to_proto(original), to_proto(original)
    name, weight = f"layer{'x' * 3000}", broken.graph.initializer[0]
    broken.graph.node[0].name = name
    nothing = np.full(weight.dims, np.nan, np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(nothing, weight.name))
    with pytest.raises(AssertionError) as caught:
        assert_equivalent(model, broken, feeds, gates=["sqnr>=20", "max_abs<=1"])
    said = str(caught.value)
    assert "sqnr>=20: measured -inf\n  max_abs<=1: measured inf\n" in said
    assert "layerxxx" in said and len(said) < 600
