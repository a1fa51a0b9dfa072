"""Grouping what hangs together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

from networkx.utils import UnionFind

T = TypeVar("T", bound=Hashable)


def connected(items: Iterable[T], links: Iterable[tuple[T, T]]) -> list[list[T]]:
    """The items in groups that links connect, in order of the items.

    Args:
        items: Each once.
        links: Pairs of items, in either direction.
    """
    ordered = list(items)
    groups: UnionFind[T] = UnionFind(ordered)
    for one, other in links:
        groups.union(one, other)
    found: dict[T, list[T]] = {}
    for item in ordered:
        found.setdefault(groups[item], []).append(item)
    return list(found.values())
