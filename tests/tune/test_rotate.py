from __future__ import annotations

import numpy as np

from onnxq.ir import Context, Graph, infer_types
from onnxq.observe import Observations
from onnxq.passes.channels.rotate_residual import RotateResidual
from onnxq.precision import parse_precision
from onnxq.targets import load_target
from onnxq.tune import Subject
from onnxq.tune.rotate import Rotate
from tests.helpers import assert_equivalent
from tests.passes.channels.test_rotate_residual import SIZE, model


def subject(text: str) -> Subject:
    graph = Graph.from_text(text)
    infer_types(graph)
    precision = parse_precision("int4-weight{block_size=0}")
    return Subject(graph, load_target("cpu-x64"), {"d": [precision]})


def test_the_changes_make_an_equal_graph() -> None:
    given = subject(model())
    (change,) = Rotate().transform(given, Observations())
    assert (change.kind, change.tensor) == (RotateResidual.name, "x")
    assert set(change.numbers.tolist()) == {-1.0, 1.0} and len(change.numbers) == SIZE
    after = given.graph.copy()
    assert RotateResidual({change.tensor: change.numbers}).run(after, Context()) == 1
    assert_equivalent(given.graph, after, exact=False, seeds=(0, 1))
    (again,) = Rotate().transform(given, Observations())
    np.testing.assert_array_equal(again.numbers, change.numbers)
    (other,) = Rotate(seed=1).transform(given, Observations())
    assert (other.numbers != change.numbers).any()


def test_a_model_without_a_stream_is_refused() -> None:
    text = model().replace("two)", "half)")
    assert Rotate().refusal(subject(text)) == "it has no residual stream to rotate"
    assert not Rotate().refusal(subject(model()))
