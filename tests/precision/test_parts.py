"""Fake quantization of one node against the pass that really quantizes it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, Graph, infer_types, raise_opset
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.sensitivity import PARTS
from tests.helpers import run
from tests.networks import chain, dataset, inputs, quantizable


def outputs(graph: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    graph.check()
    # A value given as integers stands behind a pair, under another name.
    (output,) = run(graph, feeds).values()
    return np.asarray(output, dtype=np.float64)


@pytest.mark.parametrize("name", ["conv0", "conv1", "conv3", "head"])
@pytest.mark.parametrize("target", ["cpu-x64", "generic"])
@pytest.mark.parametrize(("precision", "format"), [("int8", ""), ("int16-act", "uint16")])
def test_all_parts_together_are_what_the_pass_does(
    name: str, target: str, precision: str, format: str
) -> None:
    graph = raise_opset(chain(), 21)
    infer_types(graph)
    feeds = inputs(graph)
    found = quantizable(graph, dataset(graph, feeds), target)
    faked, real = graph.copy(), graph.copy()
    for node, rule in found.nodes():
        if node.name == name:
            for part in PARTS[precision]:
                made = found.perturbation(node, rule, part)
                assert made is not None
                made.apply(faked)
    step = InsertQdq(found.ranges, target, only=(name,), activations=format)
    assert step.run(real, Context())
    exact, ours, theirs = (outputs(g, feeds) for g in (graph, faked, real))
    noise = np.square(theirs - exact).sum()
    assert noise > 0
    # What is left is rounding: of ties, and of biases to int32.
    assert np.square(ours - theirs).sum() <= 1e-3 * noise


def test_parts_touch_nothing_but_their_node() -> None:
    graph = chain()
    found = quantizable(graph, dataset(graph, inputs(graph)))
    for node, rule in found.nodes():
        for part in dict.fromkeys(p for parts in PARTS.values() for p in parts):
            made = found.perturbation(node, rule, part)
            if made is None:
                continue
            changed = graph.copy()
            made.apply(changed)
            changed.check()
            weights = {v.name for v in graph.initializers()}
            replaced = weights - {v.name for v in changed.initializers() if v.uses}
            assert len(replaced) <= (1 if part.startswith("weights") else 0)
            assert [n.op_type for n in changed.nodes() if n.op_type == "Conv"] == ["Conv"] * 4


def test_nodes_without_a_part() -> None:
    graph = chain()
    found = quantizable(graph, dataset(graph, inputs(graph)))
    made = {
        (node.name, part): found.perturbation(node, rule, part) is not None
        for node, rule in found.nodes()
        for part in ("weights:int8", "weights:int4", "activations:dynamic", "activations:int8")
    }
    assert made["conv1", "weights:int8"] and made["conv1", "activations:int8"]
    assert not made["conv1", "activations:dynamic"], "no fast kernel for convolutions"
    assert not made["conv1", "weights:int4"], "blocks are for matrices"
    assert made["head", "activations:dynamic"] and made["head", "weights:int4"]
    assert not made["residual", "weights:int8"] and made["residual", "activations:int8"]


def test_more_bits_lose_less() -> None:
    graph = chain()
    feeds = inputs(graph)
    found = quantizable(graph, dataset(graph, feeds))
    exact = outputs(graph, feeds)
    (head,) = ((n, r) for n, r in found.nodes() if n.name == "head")
    losses = []
    for part in ("weights:int2", "weights:int4", "weights:int8"):
        changed = graph.copy()
        made = found.perturbation(*head, part)
        assert made is not None
        made.apply(changed)
        losses.append(np.square(outputs(changed, feeds) - exact).sum())
    assert losses[0] > 4 * losses[1] > 16 * losses[2] > 0


def test_activations_of_sixteen_bits_lose_less_than_of_eight() -> None:
    graph = raise_opset(chain(), 21)
    infer_types(graph)
    feeds = inputs(graph)
    found = quantizable(graph, dataset(graph, feeds))
    exact = outputs(graph, feeds)
    for node, rule in found.nodes():
        losses = []
        for part in ("activations:int8", "activations:int16"):
            made = found.perturbation(node, rule, part)
            if made is None or not (made.inputs or made.outputs):
                continue
            changed = graph.copy()
            made.apply(changed)
            losses.append(np.square(outputs(changed, feeds) - exact).sum())
        narrow, wide = losses
        # Noise is less by the square of 257, where it is not that of float32 itself.
        assert 0 < wide < narrow / 10_000, node.name


def test_parts_have_the_width_they_name_whatever_the_target_prefers() -> None:
    graph = chain()
    for target in ("cpu-x64", "qnn-a16"):
        found = quantizable(graph, dataset(graph, inputs(graph)), target)
        for node, rule in found.nodes():
            for part, bits in (("activations:int8", 8), ("activations:int16", 16)):
                made = found.perturbation(node, rule, part)
                assert made is not None
                params = [p for _, p in (*made.inputs, *made.outputs)]
                assert params and all(p is not None and p.format.bits == bits for p in params)
