"""Work on several threads: in order, never far ahead, and what it raises arrives."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from onnxq.runtime.parallel import in_order


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def slower_first(number: int) -> int:
        time.sleep(0.02 / (number + 1))
        return number * number

    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(8):
            taken.append(number)
            yield number

    for item, result in in_order(slower_first, items(), workers):
        assert result == item * item
        assert taken[-1] <= item + workers - 1 if workers > 1 else taken[-1] == item
    assert taken == list(range(8))


@pytest.mark.parametrize("workers", [1, 3])
def test_what_work_raises_arrives(workers: int) -> None:
    def refuse(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    found = []
    with pytest.raises(ValueError, match="two"):
        for item, _ in in_order(refuse, range(5), workers):
            found.append(item)
    assert found == [0, 1]
