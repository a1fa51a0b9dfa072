"""Moving padding into the convolution or pooling after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxq.ir import Context, Graph, Node, Pass, Use, attribute_value, remove_unused
from onnxq.ir.pattern import number
from onnxq.passes.nodes import stated, visit

_FIRST_COUNT_OPSET = 7
"""From here on AveragePool can count its padding."""


_PADDED_WITH = {"Conv": 0.0, "AveragePool": 0.0, "MaxPool": -math.inf}
"""What each operator pads with."""


@dataclass(frozen=True)
class FusePad(Pass):
    """Move a Pad into the padding of the Conv, AveragePool or MaxPool that reads it.

    Rewritten: a Pad in constant mode with constant, non-negative amounts on spatial axes only
    (opset 2 and newer: amounts as an attribute or an input, with or without ``axes``), when
    everything that reads it is one of these and takes the padding over exactly. Several Pads in
    a row go in one after the other.

    - ``Conv`` with ``auto_pad`` NOTSET or VALID, if the pad value is 0.
    - ``AveragePool`` without dilation and ceil_mode, if the pad value is 0 and its own padding is
      counted (``count_include_pad`` 1) or absent; it then counts its padding.
    - ``MaxPool`` without dilation and ceil_mode, if the pad value is minus infinity and the
      indices are not used.

    Not rewritten:

    - Other modes or values, amounts known only at run time, negative amounts (cropping), padding
      of batch or channels.
    - ``auto_pad`` SAME_*: the amounts depend on the size of what is padded.
    - Pooling whose padding would reach its kernel size: onnxruntime refuses such models. With
      dilation or ceil_mode a window may lie in padding only, which pooling treats differently.
    - MaxPool after zeros: its own padding never wins, zeros may.
    - ConvTranspose, whose ``pads`` crop the output; integer convolutions, in which the padding
      stands for the zero point rather than for 0.
    - A Pad that anything else reads, or that is a graph output: it would have to stay.
    """

    name = "fuse-pad"
    numerics = "reassociates"
    default = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the Pads removed."""
        # From the end, so that a Pad behind a Pad finds the operator the last one went into.
        return visit(graph, ctx, {"Pad"}, _fuse, last_first=True)


def _fuse(pad: Node) -> str | None:
    read, made = pad.input(0), pad.output
    value = _pad_value(pad)
    if read is None or value is None or made.is_output or not made.uses:
        return None
    planned = {use: _pads_with(use, pad, value) for use in made.uses}
    if None in planned.values():
        return None
    for use, pads in planned.items():
        graph = use.node.graph
        use.node.set_input(use.slot, read)
        graph.set_attribute(use.node, "pads", pads)
        graph.set_attribute(use.node, "auto_pad", None)
        if use.node.is_op("AveragePool"):
            graph.set_attribute(use.node, "count_include_pad", 1)
    remove_unused(pad.graph, [pad])
    return "into the padding of the operator after it"


def _pad_value(pad: Node) -> float | None:
    """The constant it pads with, None if there is none or it is not known."""
    if attribute_value(pad, "mode") != "constant":
        return None
    if pad.input(2) is not None:
        return number(pad.input(2))
    # Newer opsets have no such attribute, and their default is the same.
    return float(attribute_value(pad, "value") or 0.0)


def _pads_with(use: Use, pad: Node, value: float) -> list[int] | None:
    """The reader's ``pads`` once it does the padding itself, None if it cannot."""
    node = use.node
    wanted = _PADDED_WITH.get(node.op_type) if not node.domain and use.slot == 0 else None
    if value != wanted or not (node.is_op("Conv") or _pools_exactly(node)):
        return None
    weight, auto = node.input(1), node.get("auto_pad", "NOTSET")
    sizes = None if weight is None or weight.shape is None else weight.shape[2:]
    kernel = node.get("kernel_shape", sizes)
    if kernel is None or auto not in ("NOTSET", "VALID"):
        return None
    none = [0] * (2 * len(kernel))
    own = none if auto == "VALID" else list(node.get("pads", none))
    added = _spatial_amounts(pad, len(kernel))
    if added is None or len(own) != len(added):
        return None
    if node.is_op("AveragePool") and any(own) and not node.get("count_include_pad", 0):
        return None
    total = [a + b for a, b in zip(own, added, strict=True)]
    if node.is_op("Conv"):
        return total
    fits = all(amount < size for amount, size in zip(total, (*kernel, *kernel), strict=True))
    return total if fits else None


def _pools_exactly(pool: Node) -> bool:
    """Whether each window holds something else than padding and no output tells of positions."""
    return (
        pool.graph.opset >= _FIRST_COUNT_OPSET
        and not pool.get("ceil_mode", 0)
        and all(d == 1 for d in pool.get("dilations", ()))
        and not any(v is not None and v.is_used for v in pool.outputs[1:])
    )


def _spatial_amounts(pad: Node, rank: int) -> list[int] | None:
    """What is padded before each spatial axis, then after each; None if that is not all."""
    amounts = stated(pad, "pads", 1)
    axes = stated(pad, "axes", 3, list(range(rank + 2)))
    if amounts is None or axes is None or len(amounts) != 2 * len(axes):
        return None
    if min(amounts, default=0) < 0 or any(not -rank - 2 <= axis < rank + 2 for axis in axes):
        return None
    found = np.zeros((rank + 2, 2), int)
    # Axes may count from the last here as well.
    np.add.at(found, axes, np.reshape(amounts, (2, -1)).T)
    return None if found[:2].any() else [int(n) for n in found[2:].T.reshape(-1)]
