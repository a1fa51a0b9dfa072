from __future__ import annotations

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from onnxq.ir.connected import connected

ITEMS = st.permutations(range(12))
LINKS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14)


@given(ITEMS, LINKS)
def test_groups_are_the_components_of_the_links(
    items: list[int], links: list[tuple[int, int]]
) -> None:
    graph = nx.Graph(links)
    graph.add_nodes_from(items)
    found = connected(items, links)
    assert {frozenset(group) for group in found} == set(
        map(frozenset, nx.connected_components(graph))
    )
    assert sorted(item for group in found for item in group) == sorted(items)


@given(ITEMS, LINKS)
def test_groups_and_their_members_are_in_the_order_of_the_items(
    items: list[int], links: list[tuple[int, int]]
) -> None:
    found = connected(items, links)
    assert all(group == sorted(group, key=items.index) for group in found)
    firsts = [group[0] for group in found]
    assert firsts == sorted(firsts, key=items.index)


def test_nothing_is_in_no_group() -> None:
    assert connected([], []) == []
