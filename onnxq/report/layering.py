"""A layered drawing of an acyclic graph: rows from top to bottom, few crossings, straight lines.

After Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system
structures" (1981): rows by the longest way, an invisible node wherever a line passes a row, an
order within the rows by the mean place of neighbours, and places that keep it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

_SWEEPS = 8
_MOST_INVISIBLE = 30_000
"""Lines that would take more invisible nodes than that run straight, the longest first."""

_NARROW = 0.3
"""Room that a line takes in a row, as a share of a node's."""


@dataclass(frozen=True)
class Layered:
    """Where nodes and lines lie, in widths of a node and in rows.

    Attributes:
        places: Middle of every node, and its row.
        bends: Of every line that passes rows, where.
        rows: Number of rows.
    """

    places: tuple[tuple[float, int], ...]
    bends: Mapping[tuple[int, int], tuple[float, ...]]
    rows: int


def layered(count: int, links: Sequence[tuple[int, int]]) -> Layered:
    """Lay out so many nodes; links lead from a node to one with a higher number."""
    row = _rows(count, links)
    rows: list[list[int]] = [[] for _ in range(max(row, default=-1) + 1)]
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    passed: dict[tuple[int, int], list[int]] = {}
    room = _MOST_INVISIBLE
    for a, b in sorted(links, key=lambda link: (row[link[1]] - row[link[0]], link)):
        room -= row[b] - row[a] - 1
        if room < 0:
            break
        before = a
        for level in range(row[a] + 1, row[b]):
            row.append(level)
            above.append([before])
            below[before].append(len(row) - 1)
            below.append([])
            before = len(row) - 1
            passed.setdefault((a, b), []).append(before)
        above[b].append(before)
        below[before].append(b)
    for node in _in_depth(len(row), above, below):
        rows[row[node]].append(node)
    _order(rows, above, below)
    x = _straightened(rows, above, below, count)
    bends = {link: tuple(x[node] for node in nodes) for link, nodes in passed.items()}
    return Layered(tuple(zip(x[:count], row[:count], strict=True)), bends, len(rows))


def _rows(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """A row for each node, below all that it reads; what reads nothing is right above a reader."""
    row = [0] * count
    for a, b in sorted(links):
        row[b] = max(row[b], row[a] + 1)
    readers: dict[int, int] = {}
    read = {b for _, b in links}
    for a, b in links:
        readers[a] = min(readers.get(a, row[b]), row[b])
    return [
        readers[node] - 1 if node not in read and node in readers else row[node]
        for node in range(count)
    ]


def _in_depth(
    count: int, above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]
) -> list[int]:
    """All nodes, a branch after the other, so that branches lie beside each other."""
    found: dict[int, None] = {}
    stack = [node for node in reversed(range(count)) if not above[node]]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            stack += [reader for reader in reversed(below[node]) if reader not in found]
    return list(found)


def _order(
    rows: list[list[int]], above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]
) -> None:
    """Sort rows by the mean place of the neighbours above, then below, and so on."""
    place = {node: at for own in rows for at, node in enumerate(own)}
    best, fewest = [list(own) for own in rows], _crossings(rows, below, place)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        near, ordered = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for own in ordered:
            wanted = {
                n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else place[n]
                for n in own
            }
            own.sort(key=lambda n, wanted=wanted: wanted[n])  # type: ignore[misc]
            place.update((node, at) for at, node in enumerate(own))
        crossings = _crossings(rows, below, place)
        if crossings < fewest:
            best, fewest = [list(own) for own in rows], crossings
    rows[:] = best


def _crossings(
    rows: Sequence[Sequence[int]], below: Sequence[Sequence[int]], place: Mapping[int, int]
) -> int:
    """How often lines cross between rows, counted with a tree of sums (Fenwick)."""
    found = 0
    for own, after in pairwise(rows):
        tree, seen = [0] * (len(after) + 1), 0
        for node in own:
            ends = sorted(place[reader] + 1 for reader in below[node])
            for end in ends:
                left, at = 0, end
                while at:
                    left += tree[at]
                    at &= at - 1
                found += seen - left
            for end in ends:
                seen += 1
                while end < len(tree):
                    tree[end] += 1
                    end += end & -end
    return found


def _straightened(
    rows: Sequence[Sequence[int]],
    above: Sequence[Sequence[int]],
    below: Sequence[Sequence[int]],
    count: int,
) -> list[float]:
    """Where nodes lie in their rows: as near to their neighbours as the order allows."""
    x = [0.0] * len(above)
    for own in rows:
        for at, node in enumerate(own):
            x[node] = at - (len(own) - 1) / 2
    for sweep in range(2 * _SWEEPS):
        is_last = sweep >= 2 * _SWEEPS - 2
        near = [above, below][sweep % 2]
        for own in rows if sweep % 2 == 0 else rows[::-1]:
            wanted, weights = [], []
            for node in own:
                beside = [*above[node], *below[node]] if is_last else near[node]
                wanted.append(sum(x[n] for n in beside) / len(beside) if beside else x[node])
                weights.append(1.0 if node < count else 4.0)
            widths = [1.0 if node < count else _NARROW for node in own]
            for node, place in zip(own, _apart(wanted, weights, widths), strict=True):
                x[node] = place
    return x


def _apart(
    wanted: Sequence[float], weights: Sequence[float], widths: Sequence[float]
) -> list[float]:
    """Places in rising order, widths apart, with the least sum of weighted squares from the wanted.

    Adjacent violators are pooled.
    """
    offsets = [0.0]
    for one, other in pairwise(widths):
        offsets.append(offsets[-1] + (one + other) / 2)
    pools: list[tuple[float, float, int]] = []
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, size = want - offset, 1
        while pools and pools[-1][0] > mean:
            other_mean, other_weight, other_size = pools.pop()
            mean = (mean * weight + other_mean * other_weight) / (weight + other_weight)
            weight, size = weight + other_weight, size + other_size
        pools.append((mean, weight, size))
    means = [mean for mean, _, size in pools for _ in range(size)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
