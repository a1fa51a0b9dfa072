"""Word error rate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from onnxq.verify.metrics.ctc import CtcErrors


@dataclass(eq=False)
class WordErrors(CtcErrors):
    """Errors per true word of what greedy decoding reads from CTC outputs.

    Attributes:
        space: The class between two words.
    """

    name = "wer"
    space: int = 1

    def _parts(self, text: list[int]) -> list[tuple[int, ...]]:
        runs = groupby(text, lambda one: one == self.space)
        return [tuple(run) for is_space, run in runs if not is_space]
