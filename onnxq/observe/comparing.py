"""What the quantized and the float model have in one place for the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from onnxq.errors import InputError
from onnxq.needs import Comparison, CrossGramOf, DifferenceOf, Need
from onnxq.observe.gram import CrossGram
from onnxq.observe.histogram import as_float32
from onnxq.observe.observer import Result
from onnxq.observe.statistics import ChannelStatistics
from onnxq.runtime.specs import Array


def compare(
    needs: Iterable[Comparison], values: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]]
) -> dict[Need, Result]:
    """Answers to needs; one whose tensor has no value has none.

    Args:
        needs: What to find out.
        values: What tensors are, by name, in the quantized model and in the float one, some samples
            at a time.

    Raises:
        InputError: a tensor has no such axis or windows.
    """
    wanted = list(dict.fromkeys(needs))
    grams = {need: CrossGram(need.windows) for need in wanted if isinstance(need, CrossGramOf)}
    differences: dict[Need, ChannelStatistics] = {}
    for quantized, exact in values:
        for need in wanted:
            ours, floats = quantized[need.tensor], exact[need.tensor]
            if not ours.size:
                continue
            try:
                if isinstance(need, CrossGramOf):
                    grams[need].add(ours, floats)
                elif isinstance(need, DifferenceOf):
                    seen = _difference(ours, floats, need.axis)
                    before = differences.get(need)
                    differences[need] = seen if before is None else before.merge(seen)
            except ValueError as error:
                raise InputError(f"tensor '{need.tensor}' cannot be observed {error}") from error
    sums = {need: gram.result() for need, gram in grams.items()}
    return {**differences, **{need: seen for need, seen in sums.items() if seen is not None}}


def _difference(ours: Array, exact: Array, axis: int) -> ChannelStatistics:
    with np.errstate(invalid="ignore"):
        return ChannelStatistics.of(as_float32(exact) - as_float32(ours), axis)
