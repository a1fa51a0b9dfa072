"""permute-channels: channels change places, in all weights that make, scale or read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, Value
from onnxq.ir.passes import Numerics
from onnxq.passes.channels.equivalent import Equivalent
from onnxq.passes.fusion.weighted import is_shared
from onnxq.passes.layout.relayout import ELEMENTWISE, UNARY


@dataclass(frozen=True)
class PermuteChannels(Equivalent):
    """Put channels in another order: those of products, up to the products that read them.

    Weights that share a scale in blocks of inputs may then have others beside them. The numbers of
    a tensor, any of those that change, are the channels in their new order.

    Rewritten: tensors whose channels lie on the last axis, made by MatMul or Gemm with a constant
    weight, and read by such products, with operators between them that work on each element, such
    as activations, gates, and sums and products with constants, or leave the last axis as it is.

    Not rewritten, but refused with the reason: tensors that are outputs, or that anything else
    makes or reads, as a Reshape to heads or a residual stream with its normalizations.
    """

    name: ClassVar[str] = "permute-channels"
    numerics: ClassVar[Numerics] = "reassociates"
    needs_types: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass`.

        Raises:
            InputError: the channels of a tensor cannot change places, or there are others.
        """
        found = bundles(graph) if self.numbers else {}
        chosen: list[tuple[Bundle, npt.NDArray[np.integer]]] = []
        for tensor, order in self.numbers.items():
            bundle = found.get(tensor, "no product with a constant weight reads it")
            if isinstance(bundle, str):
                raise InputError(f"the channels of '{tensor}' cannot change places: {bundle}")
            if not np.array_equal(np.sort(order), np.arange(bundle.size)):
                raise InputError(
                    f"the new order of '{tensor}' has to name each of its {bundle.size} channels "
                    "once"
                )
            if any(bundle is other for other, _ in chosen):
                raise InputError(f"the channels of '{tensor}' change places twice")
            chosen.append((bundle, order))
        for bundle, order in chosen:
            _permute(bundle, order)
            ctx.rewrote(f"{len(bundle.values)} tensors of {bundle.size} channels in another order")
        return len(chosen)


@dataclass(eq=False)
class Bundle:
    """Tensors whose channels, on their last axes, can change places only together.

    Attributes:
        size: Number of channels.
        values: The tensors, in the order in which they were found.
        writers: Products that make one.
        readers: Products that read one.
        vectors: Where constants with a number for each channel are read.
    """

    size: int
    values: dict[Value, None] = field(default_factory=dict)
    writers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    vectors: dict[tuple[Node, int], None] = field(default_factory=dict)


def bundles(graph: Graph) -> dict[str, Bundle | str]:
    """The bundle of each tensor that a product reads, or why its channels keep their places.

    All tensors of a bundle have the same one, in the order of the graph.
    """
    found: dict[str, Bundle | str] = {}
    for node in graph.all_nodes():
        read = node.input(0)
        if not _is_product(node) or read is None or read.name in found:
            continue
        bundle = _collected(read)
        names = [read.name] if isinstance(bundle, str) else [v.name for v in bundle.values]
        found |= dict.fromkeys(names, bundle)
    return found


def _is_product(node: Node) -> bool:
    weight = node.input(1) if node.is_op("MatMul", "Gemm") else None
    return (
        weight is not None
        and weight.is_constant
        and weight.rank == 2
        and node.inputs.count(weight) == 1
        and not is_shared(weight)
        and not node.get("transA", 0)
    )


def _collected(start: Value) -> Bundle | str:
    """What has to change together with a tensor."""
    if not start.shape or not isinstance(start.shape[-1], int):
        return "its number of channels is not known"
    bundle = Bundle(start.shape[-1])
    waiting = [start]
    while waiting:
        value = waiting.pop()
        if value in bundle.values:
            continue
        bundle.values[value] = None
        if value.producer is None or value.is_output:
            return f"'{value.name}' is an input or output of its graph"
        if _is_product(value.producer):
            bundle.writers.append(value.producer)
            bias = value.producer.input(2)
            if bias is not None and not _take(bundle, value.producer, 2, bias):
                return f"the bias of '{value.producer.name}' is computed"
        elif (others := _beside(bundle, value.producer)) is not None:
            waiting += others
        else:
            return f"{value.producer.op_type} '{value.producer.name}' makes '{value.name}'"
        for use in value.uses:
            if use.node.graph is value.graph and use.slot == 0 and _is_product(use.node):
                bundle.readers.append(use.node)
            elif use.node.graph is value.graph and (others := _beside(bundle, use.node)):
                waiting += others
            else:
                return f"{use.node.op_type} '{use.node.name}' reads '{value.name}'"
    return bundle


def _beside(bundle: Bundle, node: Node) -> list[Value] | None:
    """What an operator on each element reads and makes of a bundle; None if it is another one."""
    if node.is_op("Reshape") and node.inputs[0] is not None:
        both = [node.inputs[0], node.output]
        return both if all(v.shape and v.shape[-1] == bundle.size for v in both) else None
    if node.domain or node.op_type not in (*UNARY, *ELEMENTWISE):
        return None
    values = []
    for slot, value in enumerate(node.inputs):
        if value is None or _take(bundle, node, slot, value):
            continue
        if value.is_constant or value.shape is None or value.shape[-1] != bundle.size:
            return None
        values.append(value)
    made = node.output
    return [*values, made] if made.shape and made.shape[-1] == bundle.size else None


def _take(bundle: Bundle, node: Node, slot: int, value: Value) -> bool:
    """Whether a value is the same for all channels, or a constant that changes with them."""
    if value.shape is not None and value.shape[-1:] in ((), (1,)) and bundle.size > 1:
        return True
    if not value.is_constant or value.shape is None or value.shape[-1] != bundle.size:
        return False
    bundle.vectors[node, slot] = None
    return True


def _permute(bundle: Bundle, order: npt.NDArray[np.integer]) -> None:
    for node in bundle.writers:
        _reorder(node, 1, order, 0 if node.get("transB", 0) else 1)
    for node in bundle.readers:
        _reorder(node, 1, order, 1 if node.get("transB", 0) else 0)
    for node, slot in bundle.vectors:
        _reorder(node, slot, order, -1)
    for value in bundle.values:
        value.graph.rename(value, value.graph.fresh_name(f"{value.name}_permuted"))


def _reorder(node: Node, slot: int, order: npt.NDArray[np.integer], axis: int) -> None:
    read = node.inputs[slot]
    assert read is not None
    node.graph.set_constant(node, slot, read.numpy().take(order, axis))


def nodes_of(bundle: Bundle) -> Iterable[Node]:
    """The nodes whose constants change."""
    return dict.fromkeys((*bundle.writers, *bundle.readers, *(node for node, _ in bundle.vectors)))
