"""Objects through files: the graph, its nodes and values are one another's again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from onnxq.ir import Graph, Node, Value, to_proto
from onnxq.runtime import sharing
from onnxq.runtime.sharing import Sharing, loads
from tests.networks import branches, chain


@dataclass(frozen=True)
class Held:
    node: Node
    value: Value
    named: MappingProxyType[str, Node]
    progress: object = field(default=None, compare=False)


def _held(graph: Graph) -> Held:
    inner = [*graph.all_nodes()][2]
    return Held(inner, inner.output, MappingProxyType({n.name: n for n in graph.nodes()}))


@pytest.mark.parametrize("make", [chain, branches])
def test_references_are_kept(make: object, tmp_path: Path) -> None:
    graph = make()  # type: ignore[operator]
    held = _held(graph)
    found, again = loads(Sharing(tmp_path).dump((held, graph)))
    assert isinstance(found, Held) and found.node is not held.node
    assert found.node.name == held.node.name and found.value is found.node.output
    assert (found.value.type, found.value.graph) == (held.value.type, found.node.graph)
    assert [*found.named.values()] == [*again.nodes()]
    whole = [to_proto(g).SerializeToString(deterministic=True) for g in (graph, again)]
    assert whole[0] == whole[1]
    for before, after in zip(graph.all_graphs(), again.all_graphs(), strict=True):
        types = [{name: v.type for name, v in g.values.items()} for g in (before, after)]
        assert types[0] == types[1]


def test_weights_lie_in_one_file_for_all_that_refer_to_them(tmp_path: Path) -> None:
    graph, sharing = chain(), Sharing(tmp_path)
    weight = max(v.data.nbytes for v in graph.initializers() if v.data is not None)
    assert len(sharing.dump(_held(graph))) < 16 * weight
    assert Sharing(tmp_path).model(chain()) == sharing.model(graph)
    assert len([*(tmp_path / "models").iterdir()]) == 1


def test_nodes_are_looked_for_once_for_all_that_refer_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumped = Sharing(tmp_path).dump([*chain().nodes()])
    listed: list[Graph] = []
    nodes = sharing._nodes
    monkeypatch.setattr(sharing, "_nodes", lambda main: [listed.append(main), *nodes(main)][1:])
    found, again = loads(dumped), loads(dumped)
    assert len(found) > 5 and found == again and len(listed) == 1


def test_fingerprints_tell_contents_apart(tmp_path: Path) -> None:
    sharing = Sharing(tmp_path)
    graph = chain()
    same = [sharing.fingerprint(of) for of in (_held(graph), _held(graph), _held(chain()))]
    assert len({*same}) == 1
    assert sharing.fingerprint(replace(_held(graph), progress=1)) == same[0]
    different = (
        *(_held(graph), _held(chain(seed=1)), replace(_held(graph), node=graph.nodes()[0])),
        *(1, 1.0, "1", b"1", None, True, (1, 1), {1: 1}, {1}, np.array([1]), np.array([1.0])),
    )
    assert len({*map(sharing.fingerprint, different)}) == len(different)
    with pytest.raises(TypeError, match="object has no fingerprint"):
        sharing.fingerprint(object())
