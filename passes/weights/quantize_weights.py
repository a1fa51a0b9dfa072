"""quantize-weights: weights in few bits, activations in float."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, Numerics, Pass
from onnxq.ir.attribute import AttributeLike
from onnxq.passes.weights import stored_weights
from onnxq.passes.weights.stored_weights import Arrays, Layout, Quantizer, Stored, WeightStore
from onnxq.passes.weights.weight_formats import SCHEMES, WEIGHT_FORMATS, Grouped, weight_quantizer
from onnxq.passes.weights.weight_rewrites import (
    CONTRIB_DOMAIN,
    ConstantWeight,
    find_weight,
    gather_rows,
    is_own,
    plain_gemm,
    quantize_nodes,
    replace_node,
    row_layout,
    rows_reason,
    set_weight,
)
from onnxq.quant import Format, Granularity, QParams, per_block, per_channel
from onnxq.quant.grouped import GROUP
from onnxq.quant.search import SCALE_SEARCHES

_SEVERAL_GRAPHS = "its weight is read in several graphs, and runtimes want one of the node's own"

CONTRIB_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes that onnxruntime's kernels have; blocks of other sizes are not fused either."""

_CHANNEL_OPSET = 13
_BLOCK_OPSET = 21


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store weights in few bits and let operators compute in float.

    No data is needed. Weights of products are stored as [inputs, outputs], whatever
    transposes the model has, and in blocks along the inputs: that is the form onnxruntime fuses to
    MatMulNBits, which computes with 8-bit activations by itself (session option
    ``session.qdq_matmulnbits_accuracy_level``: 4 by default, 0 computes in float): from 1.25 on
    integers of 2, 4 and 8 bits, in 1.24 blocks of 4 bits before a MatMul.

    Rewritten, in subgraphs too, to standard ONNX:

    - ``MatMul`` and ``Gemm`` with a constant weight: it is read through a DequantizeLinear. A
      Gemm's factors and transposes go into weight and bias as far as they are constant, because
      onnxruntime fuses none that has any (``transA`` it keeps, and then it does not fuse).
    - ``Conv`` and ``ConvTranspose``: a scale for each output channel, or with less than 8 bits
      blocks along the input channels where these fill at least one.
    - ``LSTM``, ``GRU``, ``RNN``: likewise, a scale for each row of the gates.
    - ``Gather`` along the first axis of a constant matrix: the rows are stored as int8 with a
      scale each, whatever the format, gathered as they are, and then restored. ``gather="blocks"``
      stores them in the format and in blocks, behind a DequantizeLinear: smaller with less than 8
      bits, but all of the table is restored each time, 100 to 500 times slower.

    With ``operators="contrib"`` products become MatMulNBits and gathers GatherBlockQuantized where
    format and block size allow; only onnxruntime runs these. Before 1.27 its GatherBlockQuantized
    refuses 2 bits and misreads zero-points of 4 bits.

    Measured with a 1024 x 1024 weight on one thread, times as fast as float with 1 row and with
    128 rows (standard and contrib alike, where both exist):

    | format | block | 1 row | 128 rows | bytes to float's |
    |---|---|---|---|---|
    | int8 | channel, 32 | 2.3 | 1.5 | 0.25, 0.28 |
    | int8 | 128 | 2.6 | 2.0 | 0.26 |
    | int4, uint4, q4_0 | channel, 32 | 2.1 | 1.3 | 0.13, 0.16 |
    | int4 | 128 | 2.7 | 1.8 | 0.13 |
    | int2, ternary, binary | 32 | 1.4 | **0.1** | 0.09 |
    | int2, ternary, binary | 64 | 2.1 | 1.3 | 0.08 |
    | int2, ternary, binary | 128 | 2.6 | 1.8 | 0.07 |
    | int16 | channel, 32 | 0.1, 0.4 | 0.1, 0.4 | 0.50, 0.53 |
    | float8 | channel, 32 | 0.1 | 0.1 | 0.25, 0.28 |

    Nothing fuses the last two: they make files smaller and models slower. So do convolutions (0.8
    to 1.0) and recurrent operators (0.4 for 1 step to 0.9 for 100). Between a product of matrices
    and a residual Add right behind it onnxruntime prefers another fusion, which leaves the weight
    to be restored at each run; `residual-as-sum` keeps it away.

    Left in float, each with its reason in the model's metadata: weights that are not constant, are
    overridable, not float32 or have infinite or NaN values, or are read in several graphs
    (onnxruntime fails to load what it fuses then), a MatMul whose weight is its first input, and
    products with 2-bit weights whose number of outputs is no multiple of 4: what onnxruntime
    (1.25 to 1.32) fuses there reads beyond the weights and gives other garbage each time.
    A node whose weight comes from a DequantizeLinear already is left as it is.

    A weight that several operators read in one form is stored once. onnxruntime does not fuse such
    ones from 1.27 on, nor any that share a scale: ``copies`` stores one for each operator instead.

    Large weights are quantized slice by slice and wait in a temporary file to be saved: a model of
    4 GB takes 0.5 GB of memory and 2.4 to 3.1 times the processor time of copying its file, in two
    threads (`benchmarks/weight_only_big.py`).

    Attributes:
        only: Names of the nodes that may be changed; empty stands for all.
        keep_float: Names of nodes that are to stay in float.
        format: Format of the stored weights: one of ONNX's, ``ternary``, ``binary``, ``q4_0`` or
            ``q8_0`` (see `onnxq.passes.weights.weight_formats`).
        block_size: Inputs that share a scale; 0 stands for one scale for each output channel.
            onnxruntime fuses powers of two from 16 to 256.
        scheme: ``absmax`` or ``zero-point``.
        search: How scales are found.
        operators: ``standard`` or ``contrib``.
        gather: ``rows`` or ``blocks``.
        copies: Store shared weights once for each operator.
        accuracy_level: Of the MatMulNBits operators: 4 computes with 8-bit activations, 0 in float.
    """

    name: ClassVar[str] = "quantize-weights"
    numerics: ClassVar[Numerics] = "approximates"
    needs_types: ClassVar[bool] = True

    only: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    format: str = "int4"
    block_size: int = 32
    scheme: str = "absmax"
    search: str = "plain"
    operators: str = "standard"
    gather: str = "rows"
    copies: bool = False
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        for option, known in (
            ("format", WEIGHT_FORMATS),
            ("scheme", list(SCHEMES)),
            ("search", list(SCALE_SEARCHES)),
            ("operators", ["standard", "contrib"]),
            ("gather", ["rows", "blocks"]),
        ):
            given = getattr(self, option)
            if given not in known:
                raise InputError(
                    f"{self.name} knows no {option} '{given}'; use one of {', '.join(known)}"
                )
        if self.block_size < 0:
            raise InputError(
                f"{self.name} has block_size {self.block_size}; give 1 or more, or 0 for channels"
            )
        if isinstance(self._quantizer, Grouped) and self.block_size != GROUP:
            raise InputError(
                f"{self.name} has block_size {self.block_size}; {self.format} has blocks of {GROUP}"
            )
        if self.operators == "contrib":
            if self.block_size not in CONTRIB_BLOCKS:
                raise InputError(
                    f"{self.name} with contrib operators has block_size {self.block_size}; "
                    f"use one of {', '.join(map(str, CONTRIB_BLOCKS))}"
                )
            if self.stored_format.is_float or self.stored_format.bits > 8:
                raise InputError(
                    f"there are no contrib operators for format {self.format}; use integers of 2, "
                    "4 or 8 bits or standard operators"
                )

    @property
    def _quantizer(self) -> Quantizer:
        return weight_quantizer(self.format, SCHEMES[self.scheme], SCALE_SEARCHES[self.search])

    @property
    def stored_format(self) -> Format:
        """Format in which the weights' values are stored."""
        return self._quantizer.format

    @property
    def needed_opset(self) -> int:
        """Lowest opset of a graph that the pass takes."""
        by_block = self.block_size and self.operators == "standard"
        return max(self.stored_format.opset, _BLOCK_OPSET if by_block else _CHANNEL_OPSET)

    def run(self, graph: Graph, ctx: Context) -> int:
        """Quantize; gives the number of operators whose weights are stored in few bits now.

        Raises:
            InputError: the graph's opset is too low.
        """
        if graph.opset < self.needed_opset:
            raise InputError(
                f"{self.format} weights in this form need opset {self.needed_opset} and the model "
                f"has {graph.opset}; raise the model's opset first"
            )
        return _Quantization(self, ctx).run(graph)


class _Quantization:
    """Changes a graph and keeps account of what was stored."""

    def __init__(self, options: QuantizeWeights, ctx: Context) -> None:
        self._options = options
        self._ctx = ctx
        self._store = WeightStore()
        self._quantizer = weight_quantizer(
            options.format, SCHEMES[options.scheme], SCALE_SEARCHES[options.search]
        )
        self._format = self._quantizer.format
        self._search = SCALE_SEARCHES[options.search]
        self._is_contrib = options.operators == "contrib"
        self._handlers: dict[str, Callable[[Node], str]] = {
            "MatMul": self._product,
            "Gemm": self._product,
            "Conv": self._convolution,
            "ConvTranspose": self._convolution,
            "Gather": self._gather,
            "LSTM": self._recurrent,
            "GRU": self._recurrent,
            "RNN": self._recurrent,
        }

    def run(self, graph: Graph) -> int:
        return quantize_nodes(
            graph,
            self._handlers,
            self._store,
            self._ctx,
            only=self._options.only,
            keep_float=self._options.keep_float,
        )

    def _product(self, node: Node) -> str:
        weight = _find(node, 1)
        if isinstance(weight, str):
            return weight
        rank, block = len(weight.shape), self._options.block_size
        if rank < 2:
            return "its weight is no matrix"
        outputs = weight.shape[-2 if node.get("transB", 0) else -1]
        if self._format.bits == 2 and outputs % 4 and not self._is_contrib:
            return f"onnxruntime computes garbage of 2-bit weights with {outputs} outputs"
        if block or rank > 2:
            granularity = per_block(rank - 2, block or weight.shape[-2])
        else:
            granularity = per_channel(1)
        layout = replace(
            self._layout(granularity),
            transposed=weight.transposed != bool(node.get("transB", 0)),
            factor=float(node.get("alpha", 1.0)),
        )
        if self._is_contrib and rank == 2:
            self._product_of_blocks(node, weight, layout)
            return ""
        if node.graph.opset < granularity.opset:
            return f"a weight of {rank} dimensions needs blocks, and these opset {_BLOCK_OPSET}"
        stored = self._stored(node, weight, layout)
        if node.op_type == "Gemm":
            plain_gemm(node)
        set_weight(node, 1, self._store.dequantized(stored, node.graph))
        return ""

    def _convolution(self, node: Node) -> str:
        weight = _find(node, 1)
        if isinstance(weight, str):
            return weight
        if len(weight.shape) < 3 or weight.transposed:
            return "its weight is no constant kernel"
        outputs, inputs = (0, 1) if node.op_type == "Conv" else (1, 0)
        self._restore(node, 1, weight, self._by_channel_or_block(weight, outputs, inputs))
        return ""

    def _recurrent(self, node: Node) -> str:
        weights = {slot: _find(node, slot) for slot in (1, 2)}
        for weight in weights.values():
            if isinstance(weight, str):
                return weight
            if len(weight.shape) != 3:
                return f"its weight has {len(weight.shape)} dimensions, not 3"
        found = {slot: w for slot, w in weights.items() if not isinstance(w, str)}
        granularity = {slot: self._by_channel_or_block(w, 1, 2) for slot, w in found.items()}
        # Both are quantized before the first changes: the second may be refused.
        stored = {
            slot: self._stored(node, w, self._layout(granularity[slot]))
            for slot, w in found.items()
        }
        for slot, constants in stored.items():
            set_weight(node, slot, self._store.dequantized(constants, node.graph))
        return ""

    def _gather(self, node: Node) -> str:
        table = _find(node, 0)
        if isinstance(table, str):
            return table
        if reason := rows_reason(node, table):
            return reason
        block, columns = self._options.block_size, table.shape[1]
        if self._is_contrib and columns % (8 // self._format.bits) == 0:
            self._gather_blocks(node, table)
        elif self._options.gather == "blocks":
            granularity = per_block(1, block) if block else per_channel(0)
            self._restore(node, 0, table, granularity)
        else:
            gather_rows(node, self._stored(node, table, row_layout(table, self._search)))
        return ""

    # Standard operators

    def _restore(
        self, node: Node, slot: int, weight: ConstantWeight, granularity: Granularity
    ) -> None:
        """Let a node read its weight through a DequantizeLinear."""
        stored = self._stored(node, weight, self._layout(granularity))
        set_weight(node, slot, self._store.dequantized(stored, node.graph))

    def _by_channel_or_block(
        self, weight: ConstantWeight, channels: int, inputs: int
    ) -> Granularity:
        block = self._options.block_size
        small = self._format.bits < 8 or isinstance(self._quantizer, Grouped)
        if block and small and weight.shape[inputs] >= block:
            return per_block(inputs, block)
        return per_channel(channels)

    def _layout(self, granularity: Granularity) -> Layout:
        return Layout(self._quantizer, granularity)

    def _stored(self, node: Node, weight: ConstantWeight, layout: Layout) -> Stored:
        owner = node if self._options.copies else None
        return self._store.get(weight.value, layout, node.graph, owner)

    # Operators of onnxruntime

    def _gather_blocks(self, node: Node, table: ConstantWeight) -> None:
        graph, block = node.graph, self._options.block_size
        layout = replace(self._layout(per_block(1, block)), arrange=_pack_rows)
        stored = self._stored(node, table, layout)
        inputs = [stored.values, node.input(1), stored.scale, stored.zero_point]
        attributes: dict[str, AttributeLike] = {
            "bits": self._format.bits,
            "block_size": block,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        made = graph.add(
            "GatherBlockQuantized",
            inputs if stored.zero_point is not None else inputs[:3],
            attributes,
            domain=CONTRIB_DOMAIN,
        )
        graph.model.opset_imports.setdefault(CONTRIB_DOMAIN, 1)
        replace_node(node, made.outputs, made)

    def _product_of_blocks(self, node: Node, weight: ConstantWeight, layout: Layout) -> None:
        graph = node.graph
        stored = self._stored(node, weight, replace(layout, arrange=_pack_columns))
        columns = int(stored.qparams.scale.shape[1])
        bias = None
        if node.op_type == "Gemm":
            plain_gemm(node)
            bias = node.input(2)
        inside = bias is not None and bias.shape == (columns,)
        inputs = [node.input(0), stored.values, stored.scale, stored.zero_point, None]
        inputs.append(bias if inside else None)
        while inputs[-1] is None:
            inputs.pop()
        product = graph.add(
            "MatMulNBits",
            inputs,
            {
                "K": weight.shape[int(layout.transposed != weight.transposed)],
                "N": columns,
                "bits": self._format.bits,
                "block_size": self._options.block_size,
                "accuracy_level": self._options.accuracy_level,
            },
            domain=CONTRIB_DOMAIN,
            types=[node.output.type],
        )
        graph.model.opset_imports.setdefault(CONTRIB_DOMAIN, 1)
        made = product.output
        if bias is not None and not inside:
            made = graph.add("Add", [made, bias]).output
        replace_node(node, [made], product)


def _find(node: Node, slot: int) -> ConstantWeight | str:
    weight = find_weight(node, slot)
    if isinstance(weight, str) or is_own(node, weight.value):
        return weight
    return _SEVERAL_GRAPHS


def _pack_rows(values: np.ndarray, qparams: QParams) -> Arrays:
    """Rows as GatherBlockQuantized reads them.

    Values are uint8 [rows, columns * bits / 8], the first of a byte in its lowest bits.
    """
    rows, columns = values.shape
    packed = np.empty((rows, columns * qparams.format.bits // 8), np.uint8)
    for part in _parts(rows, columns):
        packed[part] = _packed(_unsigned(values[part], qparams.format), qparams.format.bits)
    return packed, qparams.scale, _packed_zero_point(qparams.zero_point, qparams.format)


def _pack_columns(values: np.ndarray, qparams: QParams) -> Arrays:
    """A matrix [inputs, outputs] as MatMulNBits reads it.

    Values are uint8 [outputs, blocks, block size * bits / 8], scales [outputs, blocks]; the last
    block is filled up.
    """
    bits, block = qparams.format.bits, qparams.block_size
    assert block is not None
    inputs, outputs = values.shape
    blocks = -(-inputs // block)
    packed = np.empty((outputs, blocks, block * bits // 8), np.uint8)
    for part in _parts(outputs, inputs):
        codes = np.zeros((len(packed[part]), blocks * block), np.uint8)
        codes[:, :inputs] = _unsigned(values[:, part], qparams.format).T
        packed[part] = _packed(codes, bits).reshape(-1, *packed.shape[1:])
    zero_point = _packed_zero_point(qparams.zero_point.T, qparams.format)
    return packed, np.ascontiguousarray(qparams.scale.T), zero_point


def _parts(count: int, size: int) -> Iterator[slice]:
    """Cuts of so many rows of a size, so that what is computed from each takes little memory."""
    rows = max(1, stored_weights.SLICE // size)
    return (slice(at, min(at + rows, count)) for at in range(0, count, rows))


def _packed_zero_point(zero_point: np.ndarray, format: Format) -> np.ndarray | None:
    """None for half of the range, which these operators take for granted."""
    codes = _unsigned(zero_point, format)
    return None if (codes == 1 << (format.bits - 1)).all() else _packed(codes, format.bits)


def _unsigned(values: np.ndarray, format: Format) -> np.ndarray:
    """Values of a signed format moved up by half of its range; these operators know no others."""
    if not format.signed:
        return values.astype(np.uint8)
    return (values.astype(np.int8).view(np.uint8) + np.uint8(1 << (format.bits - 1))) & np.uint8(
        (1 << format.bits) - 1
    )


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Neighbours on the last axis in one byte, the first in the lowest bits."""
    each = 8 // bits
    packed = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // each)), np.uint8)
    for place in range(each):
        part = codes[..., place::each]
        packed[..., : part.shape[-1]] |= part << np.uint8(bits * place)
    return packed
