"""Fake quantization of one node against the pass that really quantizes it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Context, Graph, Node, infer_types, raise_opset
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.precision import Given, Part, Scene, parse_precision, searchable
from tests.helpers import run
from tests.networks import chain, dataset, inputs, recurrent, scene


def outputs(graph: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    graph.check()
    # A value given as integers stands behind a pair, under another name.
    (output,) = run(graph, feeds).values()
    return np.asarray(output, dtype=np.float64)


def newest() -> Graph:
    """A network of an opset that has every format."""
    graph = raise_opset(chain(), 25)
    infer_types(graph)
    return graph


def named(graph: Graph, name: str) -> Node:
    (node,) = (n for n in graph.nodes() if n.name == name)
    return node


def part_of(precision: str, kind: str) -> Part:
    (part,) = (p for p in parse_precision(precision).parts() if p.name.startswith(kind))
    return part


def perturbed(graph: Graph, node: Node, part: Part, found: Scene) -> Graph:
    changed = graph.copy()
    part.apply(changed, node, found)
    return changed


@pytest.mark.parametrize("name", ["conv0", "conv1", "conv3", "head"])
@pytest.mark.parametrize("target", ["cpu-x64", "generic"])
@pytest.mark.parametrize(("precision", "format"), [("int8", ""), ("int16-act", "uint16")])
def test_all_parts_together_are_what_the_pass_does(
    name: str, target: str, precision: str, format: str
) -> None:
    graph = newest()
    feeds = inputs(graph)
    found = scene(graph, dataset(graph, feeds), target)
    faked, real = graph.copy(), graph.copy()
    node = named(graph, name)
    for part in parse_precision(precision).parts():
        assert part.fits(node, found)
        part.apply(faked, node, found)
    step = InsertQdq(found.bounds, target, only=(name,), activations=format)
    assert step.run(real, Context())
    exact, ours, theirs = (outputs(g, feeds) for g in (graph, faked, real))
    noise = np.square(theirs - exact).sum()
    assert noise > 0
    # What is left is rounding: of ties, and of biases to int32.
    assert np.square(ours - theirs).sum() <= 1e-3 * noise


PARTS = {part.name: part for text in searchable() for part in parse_precision(text).parts()}
"""All parts that there are, by name."""


def test_parts_touch_nothing_but_their_node() -> None:
    graph = newest()
    found = scene(graph, dataset(graph, inputs(graph)))
    tested = set()
    for node in graph.nodes():
        for name, part in PARTS.items():
            if not part.fits(node, found):
                continue
            tested.add(name)
            changed = perturbed(graph, node, part, found)
            changed.check()
            weights = {v.name for v in graph.initializers()}
            replaced = weights - {v.name for v in changed.initializers() if v.uses}
            assert len(replaced) <= (1 if name.startswith("weights") else 0)
            assert [n.op_type for n in changed.nodes() if n.op_type == "Conv"] == ["Conv"] * 4
    # The matrix has too few inputs for the blocks of these two.
    assert tested == set(PARTS) - {"weights:q4_0", "weights:q8_0", "recurrence:int8-dynamic"}


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
@pytest.mark.parametrize("target", ["cpu-x64-avx2", "generic"])
def test_recurrence_is_what_the_pass_makes_of_it(op_type: str, target: str) -> None:
    graph, feeds = recurrent(op_type)
    found = scene(graph, dataset(graph, feeds), target)
    node = named(graph, "cell")
    parts = [part for part in parse_precision("int8-dynamic").parts() if part.fits(node, found)]
    (part,) = parts
    changed = perturbed(graph, node, part, found)
    is_integer = target != "generic" and op_type == "LSTM"
    made = {n.op_type for n in changed.nodes()}
    assert made == ({"DynamicQuantizeLSTM"} if is_integer else {"DequantizeLinear", op_type})
    exact = outputs(graph, feeds)
    noise = np.square(outputs(changed, feeds) - exact).sum()
    assert 1e-6 < noise / np.square(exact).sum() < 1e-3


def test_nodes_without_a_part() -> None:
    graph = newest()
    found = scene(graph, dataset(graph, inputs(graph)))
    made = {
        (node.name, kind, text): part_of(text, kind).fits(node, found)
        for node in graph.nodes()
        for kind, text in (
            ("weights", "int8"),
            ("weights", "int4-weight"),
            ("activations", "int8-dynamic"),
            ("activations", "int8"),
        )
    }
    assert made["conv1", "weights", "int8"] and made["conv1", "activations", "int8"]
    assert not made["conv1", "activations", "int8-dynamic"], "no fast kernel for convolutions"
    assert made["head", "activations", "int8-dynamic"] and made["head", "weights", "int4-weight"]
    assert not made["residual", "weights", "int8"]
    assert not made["residual", "weights", "int4-weight"]
    assert not part_of("q8_0", "weights").fits(named(graph, "head"), found), "8 inputs are no block"
    assert made["residual", "activations", "int8"]


def test_more_bits_lose_less() -> None:
    graph = newest()
    feeds = inputs(graph)
    found = scene(graph, dataset(graph, feeds))
    exact = outputs(graph, feeds)
    losses = []
    for text in (*(f"int{bits}-weight{{scheme=absmax}}" for bits in (2, 3, 4)), "int8"):
        changed = perturbed(graph, named(graph, "head"), part_of(text, "weights"), found)
        losses.append(np.square(outputs(changed, feeds) - exact).sum())
    assert losses[0] > 2 * losses[1] > 4 * losses[2] > 16 * losses[3] > 0


def test_a_weight_is_faked_as_the_pass_of_its_precision_stores_it() -> None:
    graph = newest()
    feeds = inputs(graph)
    found = scene(graph, dataset(graph, feeds))
    head = named(graph, "head")
    for text in ("int4-weight", "int4-weight{block_size=4}", "int3-weight", "ternary"):
        changed, real = perturbed(graph, head, part_of(text, "weights"), found), graph.copy()
        precision = parse_precision(text)
        for step in precision.passes(real, {"head": precision}, Given(found.target)):
            assert step.run(real, Context())
        np.testing.assert_array_equal(outputs(changed, feeds), outputs(real, feeds))


def test_activations_of_sixteen_bits_lose_less_than_of_eight() -> None:
    graph = newest()
    feeds = inputs(graph)
    found = scene(graph, dataset(graph, feeds))
    exact = outputs(graph, feeds)
    # What only moves values about adds no noise of its own.
    compared = [n for n in found.placed.nodes if PARTS["activations:int8"].fits(n, found)]
    assert {node.name for node in compared} >= {"conv0", "conv3", "residual", "head"}
    for node in compared:
        narrow, wide = (
            np.square(
                outputs(perturbed(graph, node, PARTS[f"activations:int{bits}"], found), feeds)
                - exact
            ).sum()
            for bits in (8, 16)
        )
        # Noise is less by the square of 257, where it is not that of float32 itself.
        assert 0 < wide < narrow / 10_000, node.name


def test_parts_have_the_width_they_name_whatever_the_target_prefers() -> None:
    graph = newest()
    for target in ("cpu-x64", "qnn-a16"):
        found = scene(graph, dataset(graph, inputs(graph)), target)
        for node in found.placed.nodes:
            for bits in (8, 16):
                part = PARTS[f"activations:int{bits}"]
                if not part.fits(node, found):
                    continue
                changed = perturbed(graph, node, part, found)
                zeros = [n.input(2) for n in changed.nodes() if n.op_type == "QuantizeLinear"]
                assert zeros
                assert all(z is not None and z.numpy().dtype.itemsize == bits // 8 for z in zeros)
