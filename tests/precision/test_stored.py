"""Weights in few bits: what a target's table says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxq.ir import Context, infer_types
from onnxq.precision import Given, parse_precision
from onnxq.targets import load_target
from tests.passes.weights.stored import NEWEST, normal, with_constants


@pytest.mark.parametrize(
    ("contrib", "precision", "wanted"),
    [
        ((), "int4-weight", False),
        (("GatherBlockQuantized",), "int4-weight", True),
        (("GatherBlockQuantized",), "int4-weight{gather=int8}", False),
    ],
)
def test_rows_are_gathered_as_the_target_says(
    contrib: tuple[str, ...], precision: str, wanted: bool
) -> None:
    graph = with_constants(
        "(int64[N] i) => (float[N, 64] y)", {"t": normal(50, 64)}, "y = Gather(t, i)", NEWEST
    )
    infer_types(graph)
    given = Given(replace(load_target("cpu-x64"), contrib=contrib))
    chosen = parse_precision(precision)
    for step in chosen.passes(graph, {"y": chosen}, given):
        step.run(graph, Context())
    assert ("GatherBlockQuantized" in [node.op_type for node in graph.nodes()]) == wanted
