"""What errors within a candidate do to its outputs.

A range may be chosen so that it cuts off what does not matter behind it, and of several layers that
err one may err the most without being wrong. A layer is at fault where the outputs come nearer to
the float model's once its value is put right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from onnxq.data import Dataset
from onnxq.ir import DataType, Graph, TensorType, Value
from onnxq.runtime import ErrorAccumulator
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import give_back
from onnxq.runtime.specs import Array

_LEAST_DB = 1.0
"""By how much nearer the outputs come for a value that is put right."""

_NO_CHANGE_DB = 0.1
"""A smaller change is none: gains and losses of several layers rarely cancel so exactly."""

_LEAST_TOGETHER_DB = 10.0
"""The same of all of them, where no single one is enough: as if it were another model."""

_MOST = 32
"""Layers that are tried."""

_ROUND_SINCE = 11
"""The opset that brought Round."""

Kept = Callable[[int, str], Array]
"""The float model's value by the number of the batch and its name."""


@dataclass(frozen=True)
class Wrong:
    """A value of the candidate that errs, and what it should be.

    ``right`` is the float model's value, or with ``is_own`` one of the candidate: that which a pair
    quantizes, rounded to multiples of ``step`` where that is known, for rounding is no error.
    """

    value: str
    right: str
    is_own: bool
    step: float | None = None


def first_harmful(
    candidate: Graph,
    wrong: Sequence[Sequence[Wrong]],
    outputs: Sequence[str],
    data: Dataset,
    kept: Kept,
    files: ModelFiles,
) -> int | None:
    """Which of some layers is the first that harms the outputs, if any does.

    Where none does alone, but all together do, or all but those that harm when they are put right,
    it is the first of them.

    Args:
        candidate: The model.
        wrong: What errs of each layer, in the order in which it is computed.
        outputs: Names of the outputs that are numbers.
        data: Samples.
        kept: Tells the float model's values.
        files: Where to put models.
    """

    def errors(right: Iterable[Sequence[Wrong]]) -> dict[str, float]:
        found = _errors(candidate, [*chain.from_iterable(right)], outputs, data, kept, files)
        give_back()
        return found

    before, tried = errors(()), wrong[:_MOST]
    together = _gain(before, errors(tried))
    # Where nothing changes for all of them, there is no need to run the model for each.
    if len(tried) == 1 or abs(together) < _NO_CHANGE_DB:
        return 0 if together >= _LEAST_DB else None
    gains = []
    for number, layer in enumerate(tried):
        gains.append(_gain(before, errors([layer])))
        if gains[-1] >= _LEAST_DB:
            return number
    if together >= _LEAST_TOGETHER_DB:
        return 0
    # What makes up for a fault in front of it harms when it alone is put right.
    others = [number for number, gain in enumerate(gains) if gain > -_LEAST_DB]
    if not 0 < len(others) < len(tried):
        return None
    return others[0] if _gain(before, errors([tried[k] for k in others])) >= _LEAST_DB else None


def _gain(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """By how many dB the output that gains most does, or loses least; one that was exact cannot."""
    gains = (
        after[name] - sqnr
        for name, sqnr in before.items()
        # Where NaN stays NaN, both are -inf.
        if sqnr < math.inf and after[name] != sqnr
    )
    return max(gains, default=0.0)


def _rounded(graph: Graph, value: Value, step: float | None) -> Value:
    if step is None or value.dtype is not DataType.FLOAT or graph.opset < _ROUND_SINCE:
        return value
    size = graph.constant(np.array(step, np.float32), f"{value.name}_step")
    count = graph.add("Round", [graph.add("Div", [value, size]).output]).output
    return graph.add("Mul", [count, size]).output


def _errors(
    candidate: Graph,
    right: Sequence[Wrong],
    outputs: Sequence[str],
    data: Dataset,
    kept: Kept,
    files: ModelFiles,
) -> dict[str, float]:
    """SQNR in dB of outputs, with some values put right."""
    graph, given_as, fed = candidate.copy(), {name: name for name in outputs}, dict[str, str]()
    placed = dict[str, Value]()
    for one in right:
        value = graph.values[one.value]
        if one.is_own:
            # What a pair quantizes may have been put right, too.
            source = placed.get(one.right, graph.values[one.right])
            put = _rounded(graph, source, one.step)
        else:
            name = graph.fresh_name(f"{one.value}_right")
            put = graph.add_input(name, TensorType(DataType.FLOAT, None))
            fed[name] = one.right
        graph.replace_uses(value, put)
        placed[one.value] = put
        if one.value in given_as:
            given_as[one.value] = put.name
    made = dict.fromkeys(name for name in given_as.values() if name not in fed)
    graph.set_outputs([graph.values[name] for name in made])
    # What is fed for an output is exact.
    found = {name: math.inf for name, given in given_as.items() if given in fed}
    errors = ErrorAccumulator()
    session = files.session(graph, optimization="none", pooled=True) if made else None
    for number, batch in enumerate(data.batches()) if session is not None else ():
        feeds = {name: kept(number, own) for name, own in fed.items()}
        # In a branch that is not taken nothing is computed.
        if any(array.size == 0 for array in feeds.values()):
            continue
        assert session is not None
        results = session.run({**batch.feeds, **feeds})
        names = [name for name in outputs if name not in found]
        ours = batch.trim({name: kept(number, name) for name in names})
        errors.add(ours, batch.trim({name: results[given_as[name]] for name in names}))
    return {**found, **{error.name: error.sqnr_db for error in errors.result()}}
