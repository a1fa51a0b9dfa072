"""Layered drawings: rows, order and places."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from onnxq.report.layering import layered


def test_a_chain_is_a_straight_line() -> None:
    found = layered(4, [(0, 1), (1, 2), (2, 3)])
    assert found.places == ((0.0, 0), (0.0, 1), (0.0, 2), (0.0, 3))
    assert (found.rows, found.bends) == (4, {})


def test_a_line_that_passes_rows_bends_around_what_is_there() -> None:
    found = layered(4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    (bends,) = found.bends.values()
    assert len(bends) == 2
    for bend, (x, _) in zip(bends, found.places[1:3], strict=True):
        assert abs(bend - x) >= 0.64, "half a node's width and half a line's"


def test_what_nobody_makes_is_right_above_who_reads_it() -> None:
    found = layered(4, [(0, 1), (1, 3), (2, 3)])
    assert [row for _, row in found.places] == [0, 1, 1, 2]


def test_branches_do_not_cross() -> None:
    # Two chains from one node to another, given in turn.
    links = [(0, 1), (0, 2), (1, 4), (2, 3), (3, 5), (4, 6), (5, 7), (6, 7)]
    x = [place for place, _ in layered(8, links).places]
    assert (x[1] < x[2]) == (x[4] < x[3]) == (x[6] < x[5])


def test_nodes_of_a_row_never_touch() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        count = int(rng.integers(2, 40))
        pairs = {tuple(sorted(rng.choice(count, 2, replace=False))) for _ in range(2 * count)}
        links = sorted((int(a), int(b)) for a, b in pairs)
        found = layered(count, links)
        assert layered(count, links) == found
        for a, b in links:
            assert found.places[a][1] < found.places[b][1], "links lead down"
        for row in range(found.rows):
            own = sorted(x for x, at in found.places if at == row)
            assert all(b - a >= 1 - 1e-9 for a, b in pairwise(own))


def test_nothing_to_draw() -> None:
    assert layered(0, []).places == ()
