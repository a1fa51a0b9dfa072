from __future__ import annotations

from functools import reduce
from itertools import permutations

import numpy as np
import pytest

from onnxq.adaptive.forgetting import Forgotten
from onnxq.plain import read, to_plain

UNITS = 1 << 20


def seen(count: int, seed: int, half_life: int = 4) -> Forgotten:
    rng, own = np.random.default_rng(seed), Forgotten(half_life, np.zeros((2, 5), np.int64))
    for _ in range(count):
        own.add(rng.integers(0, 1000, (2, 5)))
    return own


def test_each_halving_counts_what_was_before_for_half() -> None:
    own = Forgotten(3, np.zeros(1, np.int64))
    for count in range(1, 8):
        own.add(np.array([count]))
    # Two halvings, before the fourth and before the seventh.
    assert (own.parts / UNITS).tolist() == [(1 + 2 + 3) / 4 + (4 + 5 + 6) / 2 + 7]
    assert own.samples / UNITS == 3 / 4 + 3 / 2 + 1


def test_merging_is_exact_in_any_order() -> None:
    parts = [seen(count, seed) for seed, count in enumerate((3, 17, 64, 5))]
    merged = [reduce(Forgotten.merge, order) for order in permutations(parts)]
    merged.append(parts[0].merge(parts[1]).merge(parts[2].merge(parts[3])))
    for other in merged:
        assert np.array_equal(other.parts, merged[0].parts)
        assert (other.samples, other.since) == (merged[0].samples, merged[0].since)
    assert np.array_equal(merged[0].parts, sum(part.parts for part in parts))


def test_what_is_faded_is_gone_at_last() -> None:
    own = Forgotten(1, np.zeros(1, np.int64))
    own.add(np.array([1]))
    for _ in range(30):
        own.add(np.array([0]))
    assert own.parts.tolist() == [0]


def test_it_round_trips_and_refuses_other_tensors() -> None:
    own = seen(11, 0)
    again = read(Forgotten, to_plain(own), "the state")
    assert again.merge(own).parts.tolist() == (2 * own.parts).tolist()
    with pytest.raises(ValueError, match="different things"):
        own.merge(Forgotten(4, np.zeros((3, 5), np.int64)))
    with pytest.raises(ValueError, match="different things"):
        own.merge(seen(11, 0, half_life=5))
