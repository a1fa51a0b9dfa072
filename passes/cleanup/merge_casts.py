"""Merging Casts in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.ir import Context, DataType, Graph, Node, Pass, Value, remove_unused
from onnxq.passes.nodes import bypass, made_by, visit

_SIGNIFICAND = {
    DataType.FLOAT16: 11,
    DataType.BFLOAT16: 8,
    DataType.FLOAT: 24,
    DataType.DOUBLE: 53,
}
"""Bits of the significand, the leading one included: integers of so many bits are exact."""

_WIDER_FLOATS = {
    DataType.FLOAT16: (DataType.FLOAT, DataType.DOUBLE),
    DataType.BFLOAT16: (DataType.FLOAT, DataType.DOUBLE),
    DataType.FLOAT: (DataType.DOUBLE,),
}

_INTEGERS = frozenset(d for d in DataType if d.bits >= 8 and d.numpy.kind in "iu")


@dataclass(frozen=True)
class MergeCasts(Pass):
    """Let a Cast read past a Cast that loses nothing.

    Rewritten: ``Cast(Cast(x))`` when the inner Cast keeps every value that the dtype of ``x`` has
    (integers to a type that holds their whole range, float16, bfloat16 and float32 to wider
    floats, bool to any number). The outer Cast then reads ``x``, or goes away when it leads back
    to the dtype of ``x``. The inner one stays where something else reads it.

    Not rewritten:

    - An inner Cast that rounds, wraps or cuts off, as int32 to float32 or float32 to float16.
    - An outer Cast from a float to an integer, except from float16 and bfloat16 by way of
      float32, which is how runtimes cast them anyway: what numbers out of range become depends
      on the dtype they come from. An outer Cast from a float that was an integer does only where
      it holds that integer's whole range.
    - Casts to or from strings, whose text depends on the dtype, and to or from floats of 8 bits
      and fewer and packed integers, for which runtimes do not have every kernel.
    - Inputs of unknown dtype.
    """

    name = "merge-casts"
    default = True
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the Casts that read past another."""
        return visit(graph, ctx, {"Cast"}, _merge)


def _merge(outer: Node) -> str | None:
    inner = made_by(outer.input(0), "Cast")
    source = None if inner is None else inner.input(0)
    if inner is None or source is None or not _may_skip(source, inner, outer):
        return None
    outer.set_input(0, source)
    if source.dtype == outer.get("to"):
        bypass(outer, source)
    remove_unused(inner.graph, [inner])
    return f"reads '{source.name}' past a Cast that loses nothing"


def _may_skip(source: Value, inner: Node, outer: Node) -> bool:
    if source.dtype is None:
        return False
    try:
        between, to = DataType(inner.get("to", 0)), DataType(outer.get("to", 0))
    except ValueError:
        return False
    return _keeps_values(source.dtype, between) and _casts_alike(source.dtype, between, to)


def _keeps_values(a: DataType, b: DataType) -> bool:
    """Whether every number of dtype ``a`` is one of dtype ``b``."""
    if a is b:
        return True
    if a is DataType.BOOL:
        return b in _INTEGERS or b in _SIGNIFICAND
    if a in _INTEGERS:
        limits = _limits(a)
        if b in _INTEGERS:
            wider = _limits(b)
            return wider.min <= limits.min and limits.max <= wider.max
        return b in _SIGNIFICAND and limits.max.bit_length() <= _SIGNIFICAND[b]
    return b in _WIDER_FLOATS.get(a, ())


def _limits(dtype: DataType) -> np.iinfo[Any]:
    return np.iinfo(np.dtype(dtype.numpy.name))


def _casts_alike(a: DataType, b: DataType, c: DataType) -> bool:
    """Whether numbers of ``a`` become the same in ``c`` directly as by way of ``b``."""
    if c is a or c is DataType.BOOL or c in _SIGNIFICAND:
        return True
    if c not in _INTEGERS:
        return False
    if a not in _SIGNIFICAND and b in _INTEGERS:
        return True
    if a in (DataType.FLOAT16, DataType.BFLOAT16) and b is DataType.FLOAT:
        return True
    return a not in _SIGNIFICAND and _keeps_values(a, c)
