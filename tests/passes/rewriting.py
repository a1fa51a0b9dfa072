"""What the tests of fusions share: rewriting a model given as text and comparing."""

from __future__ import annotations

from onnxq.ir import Context, Graph, Pass, infer_types, to_proto
from onnxq.ir.loading import from_proto
from tests.helpers import assert_equivalent, assert_same_graph


def rewritten(step: Pass, before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    infer_types(before)
    after = before.copy()
    made = step.run(after, Context())
    after.check()
    assert step.run(after, Context()) == 0
    # As a file holds it: numbers in attributes are single precision there.
    return from_proto(to_proto(after)), made


def check_pair(step: Pass, text: str, wanted: str, *, made: int = 1, exact: bool = False) -> None:
    """A pass makes of a text what is wanted, in so many rewrites, and the outputs stay."""
    before = Graph.from_text(text)
    after, found = rewritten(step, before)
    assert_same_graph(after, Graph.from_text(wanted), rtol=1e-6)
    assert found == made
    assert_equivalent(before, after, exact=exact, seeds=(0, 1, 2))


def check_kept(step: Pass, text: str) -> None:
    """A pass leaves a text alone."""
    before = Graph.from_text(text)
    after, found = rewritten(step, before)
    assert found == 0
    assert_same_graph(after, before)


def operators(graph: Graph) -> list[str]:
    """The operators in order, those of subgraphs after the one that holds them."""
    return [node.op_type for node in graph.all_nodes()]
