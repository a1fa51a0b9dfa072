"""quantize-weights: weights in few bits, activations in float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import DataType, Node
from onnxq.passes.nodes import added
from onnxq.passes.notes import Reason
from onnxq.passes.weights import stored_weights
from onnxq.passes.weights.stored_weights import Arrays, Layout, Quantizer, Stored
from onnxq.passes.weights.weight_formats import SCHEMES, WEIGHT_FORMATS, Grouped, weight_quantizer
from onnxq.passes.weights.weight_pass import Rewrite, Rewriter, WeightPass
from onnxq.passes.weights.weight_rewrites import ConstantWeight, contrib, plain_gemm, replace_node
from onnxq.quant import Format, Granularity, QParams, per_block, per_channel
from onnxq.quant.grouped import GROUP
from onnxq.quant.search import SCALE_SEARCHES

_SEVERAL_GRAPHS = Reason(
    "runtime", "its weight is read in several graphs, and runtimes want one of the node's own"
)

CONTRIB_GATHER = "GatherBlockQuantized"
"""The operator of onnxruntime's that ``gather="contrib"`` is about."""

CONTRIB_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes that onnxruntime's kernels have; blocks of other sizes are not fused either."""

_CHANNEL_OPSET = 13
_BLOCK_OPSET = 21


@dataclass(frozen=True)
class QuantizeWeights(WeightPass):
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
    - ``Gather`` along the first axis of a constant matrix: rows are gathered as they are stored,
      with their scales, and only then restored. They are stored in the format and in blocks, or as
      int8 with a scale each: with ``gather="int8"``, in floats and in less than 4 bits, and where a
      row has no whole blocks. Values of less than 8 bits are made bytes by a Cast, which
      onnxruntime folds when it loads the model, for it gathers no such. ``gather="blocks"`` puts a
      DequantizeLinear before the Gather instead, for runtimes that restore no more than is
      gathered; onnxruntime restores all of the table each time, 100 to 500 times slower. With
      ``gather="contrib"`` it is onnxruntime's GatherBlockQuantized, though products be standard.
    - A table that is multiplied with as well (a tied embedding, transposed) is stored once: the
      Gather reads what the product stores, through a Transpose that onnxruntime folds. Both are as
      fast as with tables of their own.

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

    Rows gathered from 49,152 x 576 in 4 bits with zero-points, 32 to a scale, take 96 us for 128
    tokens and 8.6 us for one as they are stored, 87 and 6.0 us by GatherBlockQuantized; from
    30,522 x 384, 128 to a scale, 24 and 27 us for 64 tokens. A DequantizeLinear in blocks behind
    the Gathers is 1.1 to 5 times slower than Cast and Mul, which take 27 and 6.7 us with int8 rows
    of 576. `benchmarks/forms.py` measures them; a target that lists GatherBlockQuantized gets it
    (onnxruntime 1.32).

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
        format: Format of the stored weights: one of ONNX's, integers of fewer bits held in these
            (``int3`` in int4, ``uint6`` in uint8), ``ternary``, ``binary``, ``q4_0`` or
            ``q8_0`` (see `onnxq.passes.weights.weight_formats`).
        block_size: Inputs that share a scale; 0 stands for one scale for each output channel.
            onnxruntime fuses powers of two from 16 to 256.
        scheme: ``absmax``, ``signed-absmax`` (see `onnxq.quant.Scheme`) or ``zero-point``.
        search: How scales are found.
        operators: ``standard`` or ``contrib``.
        gather: ``rows``, ``int8``, ``blocks`` or ``contrib``.
        copies: Store shared weights once for each operator.
        accuracy_level: Of the MatMulNBits operators: 4 computes with 8-bit activations, 0 in float.
    """

    name = "quantize-weights"

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
            ("gather", ["rows", "int8", "blocks", "contrib"]),
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

    def _rewriter(self) -> Rewriter:
        return _Stored(self, self._quantizer)


class _Stored(Rewriter):
    """Lets operators read stored weights."""

    def __init__(self, options: QuantizeWeights, quantizer: Quantizer) -> None:
        super().__init__(options, quantizer)
        self._options = options
        self._format = quantizer.format
        self._search = SCALE_SEARCHES[options.search]
        self._is_contrib = options.operators == "contrib"
        self._handlers = {**self._handlers, "ConvTranspose": self._convolution}

    def plan(self, node: Node) -> Rewrite | Reason:
        """See `Rewriter.plan`."""
        found = super().plan(node)
        if isinstance(found, Rewrite):
            for weight, layout in found.weights:
                quantizer, shape = layout.quantizer, weight.shape
                shape = shape[::-1] if layout.transposed != weight.transposed else shape
                if isinstance(quantizer, Grouped) and not quantizer.takes(
                    shape, layout.granularity
                ):
                    text = f"{quantizer.type} needs inputs that are a multiple of {GROUP}"
                    return Reason("shape", text)
        return found

    def _find(self, node: Node, slot: int) -> ConstantWeight | Reason:
        weight = super()._find(node, slot)
        if isinstance(weight, Reason):
            return weight
        is_own = all(use.node.graph is node.graph for use in weight.value.uses)
        return weight if is_own else _SEVERAL_GRAPHS

    def _stored(self, node: Node, weight: ConstantWeight, layout: Layout) -> Stored:
        owner = node if self._options.copies else None
        return self.store.get(weight.value, layout, node.graph, owner)

    def _product(self, node: Node) -> Rewrite | Reason:
        weight = self._find(node, 1)
        if isinstance(weight, Reason):
            return weight
        rank, block = len(weight.shape), self._options.block_size
        if rank < 2:
            return Reason("shape", "its weight is no matrix")
        outputs = weight.shape[-2 if node.get("transB", 0) else -1]
        if self._format.bits == 2 and outputs % 4 and not self._is_contrib:
            text = f"onnxruntime computes garbage of 2-bit weights with {outputs} outputs"
            return Reason("runtime", text)
        if block or rank > 2:
            granularity = per_block(rank - 2, block or weight.shape[-2])
        else:
            granularity = per_channel(1)
        layout = self._product_layout(node, weight, granularity)
        if self._is_contrib and rank == 2:
            weights = [(weight, replace(layout, arrange=_pack_columns))]
            inner = weight.shape[bool(node.get("transB", 0))]
            return Rewrite(weights, partial(self._replace_product, node, inner))
        if node.graph.opset < granularity.opset:
            text = f"a weight of {rank} dimensions needs blocks, and these opset {_BLOCK_OPSET}"
            return Reason("opset", text)
        return self._restored(node, 1, [(weight, layout)])

    def _convolution(self, node: Node) -> Rewrite | Reason:
        weight = self._kernel(node)
        if isinstance(weight, Reason):
            return weight
        outputs, inputs = (0, 1) if node.op_type == "Conv" else (1, 0)
        granularity = self._by_channel_or_block(weight, outputs, inputs)
        return self._restored(node, 1, [(weight, Layout(self._quantizer, granularity))])

    def _gates(self, weight: ConstantWeight) -> Granularity:
        return self._by_channel_or_block(weight, 1, 2)

    def _rows(self, node: Node, table: ConstantWeight) -> Rewrite:
        columns, gather = table.shape[1], self._options.gather
        block = self._options.block_size or columns
        layout = Layout(self._quantizer, per_block(1, block))
        if self._has_contrib_rows(columns):
            weights = [(table, replace(layout, arrange=_pack_rows))]
            return Rewrite(weights, partial(self._replace_gather, node))
        if gather == "blocks":
            return self._restored(node, 0, [(table, layout)])
        if gather == "int8" or self._format.bits < 4 or self._format.is_float or columns % block:
            return super()._rows(node, table)
        return Rewrite([(table, layout)], partial(self._gather_rows, node))

    def _has_contrib_rows(self, columns: int) -> bool:
        """Whether rows are gathered by onnxruntime's own operator."""
        bits, wanted = self._format.bits, self._is_contrib or self._options.gather == "contrib"
        able = self._options.block_size in CONTRIB_BLOCKS and not self._format.is_float
        return wanted and able and bits <= 8 and columns % (8 // bits) == 0

    def _gather_tied(self, node: Node, stored: Sequence[Stored]) -> None:
        if not self._is_contrib:
            super()._gather_tied(node, stored)
            return
        (weight,) = stored
        outputs, blocks, size = (int(d or 0) for d in weight.values.shape or ())
        name, shape = f"{weight.values.name}_rows", np.array([outputs, blocks * size], np.int64)
        rows = added(
            node.graph,
            "Reshape",
            [weight.values, node.graph.constant(shape, f"{name}_shape")],
            name,
            DataType.UINT8,
            tuple(shape.tolist()),
        )
        self._replace_gather(node, [replace(weight, values=rows)])

    def _by_channel_or_block(
        self, weight: ConstantWeight, channels: int, inputs: int
    ) -> Granularity:
        block = self._options.block_size
        small = self._format.bits < 8 or isinstance(self._quantizer, Grouped)
        if block and small and weight.shape[inputs] >= block:
            return per_block(inputs, block)
        return per_channel(channels)

    # Operators of onnxruntime

    def _replace_gather(self, node: Node, stored: Sequence[Stored]) -> None:
        (table,) = stored
        inputs = [table.values, node.input(1), table.scale, table.zero_point]
        attributes = {
            "bits": self._format.bits,
            "block_size": self._options.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        made = contrib(node, CONTRIB_GATHER, inputs, attributes)
        replace_node(node, made.outputs, made)

    def _replace_product(self, node: Node, inner: int, stored: Sequence[Stored]) -> None:
        (weight,) = stored
        columns = int(weight.qparams.scale.shape[1])
        bias = None
        if node.op_type == "Gemm":
            plain_gemm(node)
            bias = node.input(2)
        inside = bias is not None and bias.shape == (columns,)
        inputs = [node.input(0), weight.values, weight.scale, weight.zero_point, None]
        attributes = {
            "K": inner,
            "N": columns,
            "bits": self._format.bits,
            "block_size": self._options.block_size,
            "accuracy_level": self._options.accuracy_level,
        }
        product = contrib(node, "MatMulNBits", [*inputs, bias if inside else None], attributes)
        made = product.output
        if bias is not None and not inside:
            made = node.graph.add("Add", [made, bias]).output
        replace_node(node, [made], product)


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
