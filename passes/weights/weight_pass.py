"""What the passes that store weights in few bits have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, Pass
from onnxq.passes.notes import BY_REQUEST, UNRELATED, Reason, node_name, note_left_in_float
from onnxq.passes.tuned import RECURRENCE, Tuned, tuned_weight
from onnxq.passes.weights.stored_weights import (
    CannotStoreError,
    Layout,
    Quantizer,
    Rounding,
    Stored,
    WeightStore,
    tuned_tensors,
)
from onnxq.passes.weights.weight_rewrites import (
    ConstantWeight,
    drop_unused,
    find_weight,
    gather_rows,
    has_float_weight,
    plain_gemm,
    products,
    rows_reason,
)
from onnxq.quant import INT8, Granularity, per_block
from onnxq.quant.search import PLAIN, ScaleSearch

RECURRENT = ("LSTM", "GRU", "RNN")

Weights = Sequence[tuple[ConstantWeight, Layout]]


@dataclass(frozen=True)
class Rewrite:
    """A node's constant weights, each with how it is stored, and what lets the node read them.

    Attributes:
        weights: The weights.
        change: Lets the node read them.
        owner: The node whose weights these are, where another than the rewritten one reads them as
            well; None if they are its own.
    """

    weights: Weights
    change: Callable[[Sequence[Stored]], None]
    owner: Node | None = None


@dataclass(frozen=True)
class WeightPass(Pass):
    """A pass that stores constant weights in few bits.

    Attributes:
        only: Names of the nodes that may be changed; empty stands for all.
        keep_float: Names of nodes that are to stay in float.
        tuned: Scales, and maybe values, that were computed elsewhere, by the name of the node
            that is to have these (see `onnxq.passes.tuned`).
    """

    numerics = "approximates"
    needs_types = True

    only: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    tuned: Tuned = field(default_factory=dict, repr=False, compare=False)

    @property
    @abstractmethod
    def needed_opset(self) -> int:
        """Lowest opset of a graph that the pass takes."""

    @abstractmethod
    def _rewriter(self) -> Rewriter:
        """What rewrites one graph."""

    def takes(self, node: Node) -> bool:
        """Whether the pass is for a node: stores its weight, or notes why it stays in float."""
        return self._rewriter().takes(node)

    def reason(self, node: Node) -> Reason | None:
        """Why a node's weight cannot be stored, None if it can; reads none of its numbers."""
        found = self._rewriter().plan(node)
        return found if isinstance(found, Reason) else None

    def weights(self, node: Node) -> Weights:
        """A node's constant weights, each with how it would be stored; none if it cannot be.

        `Layout.own_granularity` is that of `tuned` tensors.
        """
        found = self._rewriter().plan(node)
        return () if isinstance(found, Reason) else found.weights

    def tune(self, node: Node) -> dict[str, np.ndarray]:
        """The tensors that the pass itself finds for a node, as `tuned` takes them.

        Empty if the node's weight cannot be stored.
        """
        return tensors_of(self.weights(node))

    def run(self, graph: Graph, ctx: Context) -> int:
        """Quantize, in subgraphs too, and note what stays in float and why.

        Gives the number of operators whose weights are stored in few bits now.

        Raises:
            InputError: the graph's opset is too low, or tuned tensors do not fit their node.
        """
        if graph.opset < self.needed_opset:
            form = replace(self, only=(), keep_float=())
            raise InputError(
                f"{form} needs opset {self.needed_opset} and the model has {graph.opset}; "
                "raise the model's opset first"
            )
        rewriter = self._rewriter()
        reasons, quantized = dict[Node, Reason](), list[str]()
        for nested in list(graph.all_graphs()):
            # First what looks for a product of the same table, which then is as it was.
            for node in sorted(nested.nodes(), key=lambda node: not node.is_op("Gather")):
                if not rewriter.takes(node):
                    continue
                name, label = node_name(node), node.label
                if (reason := rewriter.quantize(node)) is not None:
                    reasons[node] = reason
                else:
                    quantized.append(name)
                    ctx.rewrote(f"{label}: weight quantized")
        rewriter.store.drop_unused()
        note_left_in_float(graph, reasons, quantized)
        return len(quantized)


def tensors_of(weights: Weights) -> dict[str, np.ndarray]:
    """What weights are stored as, see `onnxq.passes.tuned.Tensors`; empty if they cannot be."""
    found: dict[str, np.ndarray] = {}
    for prefix, (weight, layout) in zip(("", RECURRENCE), weights, strict=False):
        assert weight.value.data is not None
        try:
            made = tuned_tensors(weight.value.data, layout, weight.value.name)
        except CannotStoreError:
            return {}
        found.update({f"{prefix}{name}": array for name, array in made.items()})
    return found


def searched_tensors(weights: Weights, search: ScaleSearch) -> dict[str, np.ndarray]:
    """The same with the scales that a search finds; all weights are such as are rounded."""
    found = []
    for weight, layout in weights:
        assert isinstance(layout.quantizer, Rounding)
        found.append((weight, replace(layout, quantizer=replace(layout.quantizer, search=search))))
    return tensors_of(found)


class Rewriter(ABC):
    """Rewrites the nodes of a graph, and keeps account of what was stored for them."""

    def __init__(self, options: WeightPass, quantizer: Quantizer) -> None:
        self._only, self._keep_float = frozenset(options.only), frozenset(options.keep_float)
        self._name, self._tuned, self._quantizer = options.name, options.tuned, quantizer
        self._search: ScaleSearch = PLAIN
        self.store = WeightStore()
        self._handlers: Mapping[str, Callable[[Node], Rewrite | Reason]] = {
            "MatMul": self._product,
            "Gemm": self._product,
            "Conv": self._convolution,
            "Gather": self._gather,
            **dict.fromkeys(RECURRENT, self._recurrent),
        }

    def takes(self, node: Node) -> bool:
        """See `WeightPass.takes`."""
        return (
            node.op_type in self._handlers
            and not node.domain
            and has_float_weight(node)
            and (not self._only or node_name(node) in self._only)
        )

    def plan(self, node: Node) -> Rewrite | Reason:
        """How a node is rewritten, or why it is not; changes nothing."""
        if not self.takes(node):
            return Reason(UNRELATED, f"{self._name} is not for it")
        if node_name(node) in self._keep_float:
            return BY_REQUEST
        return self._handlers[node.op_type](node)

    def quantize(self, node: Node) -> Reason | None:
        """Rewrite a node; gives the reason if it cannot be."""
        found = self.plan(node)
        if isinstance(found, Reason):
            return found
        owner = found.owner or node
        tensors, name = self._tuned.get(node_name(owner)), node_name(owner)
        stored = []
        for prefix, (weight, layout) in zip(("", RECURRENCE), found.weights, strict=False):
            if tensors:
                assert weight.value.data is not None
                tuned = tuned_weight(
                    tensors,
                    name,
                    layout.quantizer.format,
                    layout.own_granularity,
                    weight.value.data.shape,
                    bounds=layout.quantizer.bounds,
                    zero_point=layout.zero_point,
                    prefix=prefix,
                )
                layout = replace(layout, tuned=tuned)
            try:
                stored.append(self._stored(owner, weight, layout))
            except CannotStoreError as error:
                return error.reason
        found.change(stored)
        return None

    @abstractmethod
    def _product(self, node: Node) -> Rewrite | Reason: ...

    @abstractmethod
    def _convolution(self, node: Node) -> Rewrite | Reason: ...

    @abstractmethod
    def _gates(self, weight: ConstantWeight) -> Granularity:
        """Granularity of a weight [directions, gates, inputs] behind a DequantizeLinear."""

    def _find(self, node: Node, slot: int) -> ConstantWeight | Reason:
        return find_weight(node, slot)

    def _stored(self, node: Node, weight: ConstantWeight, layout: Layout) -> Stored:
        return self.store.get(weight.value, layout, weight.value.graph)

    def _product_layout(
        self, node: Node, weight: ConstantWeight, granularity: Granularity
    ) -> Layout:
        """A weight as [..., inputs, outputs], with a Gemm's factor and transpose in it."""
        transposed = weight.transposed != bool(node.get("transB", 0))
        factor = float(node.get("alpha", 1.0))
        return Layout(self._quantizer, granularity, transposed, factor)

    def _kernel(self, node: Node) -> ConstantWeight | Reason:
        weight = self._find(node, 1)
        if isinstance(weight, Reason) or (len(weight.shape) > 2 and not weight.transposed):
            return weight
        return Reason("shape", "its weight is no constant kernel")

    def _gather(self, node: Node) -> Rewrite | Reason:
        table = self._find(node, 0)
        if isinstance(table, Reason):
            return table
        return rows_reason(node, table) or self._tied(node, table) or self._rows(node, table)

    def _tied(self, node: Node, table: ConstantWeight) -> Rewrite | None:
        """Rows of what a product stores of the same table, so that it is stored once."""
        for product in products(table.value):
            found = self.plan(product) if product.graph is node.graph else None
            if not isinstance(found, Rewrite):
                continue
            ((weight, layout),) = found.weights
            block = layout.granularity.block_size or table.shape[1]
            # The rows are the product's outputs, which have scales of their own.
            whole = layout.transposed and table.shape[1] % block == 0
            if weight.value is table.value and whole and layout.granularity.axis is not None:
                change = partial(self._gather_tied, node)
                return Rewrite(found.weights, change, owner=product) if layout.factor == 1 else None
        return None

    def _gather_tied(self, node: Node, stored: Sequence[Stored]) -> None:
        gather_rows(node, self.store.rows(stored[0], transposed=True))

    def _rows(self, node: Node, table: ConstantWeight) -> Rewrite:
        """Rows in int8, each with a scale of its own."""
        rounding, granularity = Rounding(INT8, search=self._search), per_block(1, table.shape[1])
        layout = Layout(rounding, granularity, zero_point=False)
        return Rewrite([(table, layout)], partial(self._gather_rows, node))

    def _gather_rows(self, node: Node, stored: Sequence[Stored]) -> None:
        gather_rows(node, self.store.rows(stored[0], transposed=False))

    def _recurrent(self, node: Node) -> Rewrite | Reason:
        found = []
        for slot in (1, 2):
            weight = self._find(node, slot)
            if isinstance(weight, Reason):
                return weight
            if len(weight.shape) != 3:
                return Reason("shape", f"its weight has {len(weight.shape)} dimensions, not 3")
            found.append(weight)
        return self._gated(node, found)

    def _gated(self, node: Node, weights: Sequence[ConstantWeight]) -> Rewrite:
        layouts = [(w, Layout(self._quantizer, self._gates(w))) for w in weights]
        return self._restored(node, 1, layouts)

    def _restored(self, node: Node, slot: int, weights: Weights) -> Rewrite:
        """Let a node read its weights, from a slot on, through DequantizeLinears."""
        return Rewrite(weights, partial(self._restore, node, slot))

    def _restore(self, node: Node, first: int, stored: Sequence[Stored]) -> None:
        if node.is_op("Gemm"):
            plain_gemm(node)
        for slot, constants in enumerate(stored, first):
            old = node.input(slot)
            node.set_input(slot, self.store.dequantized(constants))
            drop_unused([old])
