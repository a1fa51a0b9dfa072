from __future__ import annotations

import itertools
import threading

import pytest

from onnxq.adaptive.sampling import Sampling
from onnxq.errors import InputError


def picked(sampling: Sampling, requests: int) -> list[int]:
    return [number for number, pick in (sampling.next() for _ in range(requests)) if pick]


def test_a_share_of_all_requests_is_picked_at_random_distances() -> None:
    numbers = picked(Sampling(0.02), 100_000)
    assert 0.018 < len(numbers) / 100_000 < 0.022
    distances = {b - a for a, b in itertools.pairwise(numbers)}
    assert len(distances) > 50 and max(distances) < 100


def test_every_place_of_a_stream_that_repeats_itself_is_picked_alike() -> None:
    places = [number % 50 for number in picked(Sampling(0.02), 500_000)]
    counts = [places.count(place) for place in range(50)]
    assert min(counts) > 130 and max(counts) < 270


def test_one_thread_gets_the_same_picks_for_the_same_seed() -> None:
    assert picked(Sampling(0.1, 3), 1000) == picked(Sampling(0.1, 3), 1000)
    assert picked(Sampling(0.1, 3), 1000) != picked(Sampling(0.1, 4), 1000)


def test_all_or_none_are_picked() -> None:
    assert picked(Sampling(1.0), 100) == list(range(1, 101))
    assert picked(Sampling(0.0), 1000) == []


def test_more_are_picked_at_once_and_for_a_while() -> None:
    sampling = Sampling(0.001)
    picked(sampling, 10)
    sampling.denser(0.5, 100)
    numbers = picked(sampling, 400)
    assert numbers[0] == 11 and 100 <= len(numbers) < 105
    assert numbers[99] < 300
    assert sampling.share == 0.001


def test_what_is_picked_by_default_is_the_least() -> None:
    sampling = Sampling(0.9)
    sampling.denser(0.5, 100)
    assert sampling.share == 0.9
    sampling.usual()
    never = Sampling(0.0)
    never.denser(0.5, 100)
    assert picked(never, 100) == []


def test_a_rest_is_only_from_what_is_usual() -> None:
    now = [0.0]
    sampling = Sampling(1.0, clock=lambda: now[0])
    sampling.rest(5.0)
    sampling.rest(5.0)
    assert picked(sampling, 10) == []
    sampling.denser(1.0, 2)
    assert picked(sampling, 10) == [11, 12]
    now[0] = 10.0
    assert picked(sampling, 2) == [21, 22]


def test_threads_get_numbers_of_their_own_and_no_pick_is_lost() -> None:
    sampling = Sampling(0.02)
    found: list[tuple[int, bool]] = []

    def ask() -> None:
        for _ in range(5000):
            found.append(sampling.next())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in found) == list(range(1, 20_001))
    assert 300 < sum(pick for _, pick in found) < 500


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="not from 0 to 1"):
        Sampling(share)
