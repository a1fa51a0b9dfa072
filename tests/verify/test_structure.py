"""How the operators of a graph hang together: links past pairs, sections, what recurs."""

from __future__ import annotations

import pytest

from onnxq.ir import Graph, infer_types
from onnxq.verify import structure as module
from onnxq.verify.precision import describe
from onnxq.verify.result import EndFacts, GraphFacts, RepeatFacts
from onnxq.verify.structure import structure
from tests.networks import branches, residual_products

QUANTIZED = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N, 4] x, float[N, 4] mask) => (float[N, 4] y)
<float s = {0.1}, uint8 z = {128}, float[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1},
 int8[4, 4] wq = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, int8 wz = {0}>
{
   m = Abs(mask)
   turned = Transpose(w)
   xq = QuantizeLinear(x, s, z)
   xd = DequantizeLinear(xq, s, z)
   wd = DequantizeLinear(wq, s, wz)
   a = MatMul(xd, wd)
   aq = QuantizeLinear(a, s, z)
   ad = DequantizeLinear(aq, s, z)
   b = Add(ad, m)
   c = MatMul(b, turned)
   d = Add(c, m)
   y = Relu(d)
}
"""


def described(graph: Graph) -> tuple[GraphFacts, dict[str, int]]:
    infer_types(graph)
    found = structure(graph)
    assert found is not None
    return found, {layer.node: place for place, layer in enumerate(describe(graph))}


def test_links_lead_past_what_quantizes() -> None:
    found, at = described(Graph.from_text(QUANTIZED))
    names = list(at)
    ops = {place: name for name, place in at.items()}
    links = {(ops[a], ops[b]) for a, b in found.links}
    assert len(names) == 7
    abs_, transpose, first, add, second, last_add, relu = names
    assert links == {
        (abs_, add),
        (first, add),
        (add, second),
        (transpose, second),
        (second, last_add),
        (abs_, last_add),
        (last_add, relu),
    }
    assert found.types[at[first]] == "float[N, 4]"
    assert found.inputs == (EndFacts("x", (at[first],)), EndFacts("mask", (at[abs_],)))
    assert found.outputs == (EndFacts("y", (at[relu],)),)


def test_masks_and_constants_are_in_no_section() -> None:
    found, at = described(Graph.from_text(QUANTIZED))
    # Every product and sum can be cut off: the mask is there on both sides.
    assert [found.sections[place] for place in at.values()] == [0, -1, 1, 2, 3, 4, 5]
    # A product and a sum, twice, are too few to fold.
    assert found.repeats == ()


def test_blocks_recur_whatever_their_weights() -> None:
    found, at = described(residual_products(4))
    assert found.repeats == (RepeatFacts(1, 1, 4),)
    assert [found.sections[at[f"sum{n}"]] for n in range(4)] == [1, 2, 3, 4]
    assert found.sections[at["head"]] == 5


def test_bodies_are_in_the_section_of_who_holds_them() -> None:
    graph = branches()
    found, at = described(graph)
    (holder,) = (layer.node for layer in describe(graph) if layer.op_type == "If")
    inner = [place for name, place in at.items() if name.startswith(("then_", "else_"))]
    assert {found.sections[place] for place in inner} == {found.sections[at[holder]]}
    assert (at["then_gemm"], at[holder]) in found.links


def test_too_many_operators_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 4)
    assert structure(residual_products(1)) is not None
    assert structure(residual_products(2)) is None
