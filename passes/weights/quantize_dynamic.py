"""quantize-dynamic: 8-bit integers whose scale for activations is found while the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxq.ir import Attribute, DataType, Graph, Node, TensorType, Value
from onnxq.passes.nodes import added
from onnxq.passes.notes import Reason
from onnxq.passes.weights.stored_weights import Arrays, Layout, Rounding, Stored
from onnxq.passes.weights.weight_pass import Rewrite, Rewriter, WeightPass
from onnxq.passes.weights.weight_rewrites import ConstantWeight, contrib, plain_gemm, replace_node
from onnxq.quant import INT8, PER_TENSOR, Granularity, QParams, Scheme, per_block, per_channel

DYNAMIC_LSTM = "DynamicQuantizeLSTM"
"""The operator of onnxruntime's that ``contrib`` is about."""

OPSET = 13
"""Lowest opset that has all that the pass emits: DequantizeLinear with a scale per channel."""

_FLOAT = DataType.FLOAT
_CONVOLUTION_LOSES = Reason(
    "slow", "convolutions on dynamic integers are far slower than float ones"
)
_TWO_ACTIVATIONS = Reason(
    "slow", "both of its inputs are activations, for which dynamic integers hardly pay"
)


@dataclass(frozen=True)
class QuantizeDynamic(WeightPass):
    """Quantize products with constant weights to 8-bit integers, activations as they come.

    No data is needed: DynamicQuantizeLinear finds the range of each activation tensor when the
    model runs. Weights are stored as int8, absmax.

    Rewritten, in subgraphs too:

    - ``MatMul`` and ``Gemm`` with a constant matrix: DynamicQuantizeLinear, MatMulInteger, Cast,
      Mul and, for a bias, Add; onnxruntime makes one DynamicQuantizeMatMul of it, or, where
      several products read one activation, one DynamicQuantizeLinear and a MatMulIntegerToFloat
      each. A Gemm's factors and transposes go into weight and bias as far as they are constant.
      Measured with 768 x 768 weights on one thread: 1.9 times as fast as float with 1 row, 3.2
      with 128; three products of one activation 2.2 and more.
    - ``Gather`` along the first axis of a constant matrix (embeddings): the int8 rows are gathered
      and then multiplied with their own scales, so that the table is never restored as a whole.
      Half as fast as float, which is little beside anything else. A single scale would
      be faster (0.8), at the price of precision in rows that are smaller than the largest.
    - ``LSTM``, ``GRU``, ``RNN``: weights stored as int8 behind a DequantizeLinear with a scale per
      channel, which makes the file smaller, and the model slower: 0.4 times as fast as float for
      1 step, 0.8 for 20, 0.9 for 100. With ``contrib`` an LSTM becomes onnxruntime's
      DynamicQuantizeLSTM, which is 1.6 to 2.8 times as fast as float.
    - ``Conv`` only with ``convolutions``, to ConvInteger: 0.13 times as fast as float.

    Left in float, each with its reason in the model's metadata:

    - products of two activations: 1.1 times as fast as float at 128 rows and more, 0.3 at one;
    - weights that are not constant, are overridable, not float32, no matrix or have infinite or
      NaN values, and a MatMul whose weight is its first input;
    - Gather along another axis, or of another rank.

    A node whose weight comes from a DequantizeLinear already is left as it is.

    Attributes:
        per_channel: Give weights one scale for each output channel instead of a single one.
        reduced_range: Use 7 bits for weights: x86 processors without VNNI overflow otherwise.
        convolutions: Quantize convolutions, too.
        contrib: Use operators of onnxruntime's own where they pay; only it runs these.
    """

    name = "quantize-dynamic"

    per_channel: bool = True
    reduced_range: bool = False
    convolutions: bool = False
    contrib: bool = False

    @property
    def needed_opset(self) -> int:
        """Lowest opset of a graph that the pass takes."""
        return OPSET

    def _rewriter(self) -> Rewriter:
        return _Dynamic(self)


class _Dynamic(Rewriter):
    """Puts operators on integers in place of float ones."""

    def __init__(self, options: QuantizeDynamic) -> None:
        scheme = Scheme(symmetric=True, reduced_range=options.reduced_range)
        super().__init__(options, Rounding(INT8, scheme))
        self._options = options
        self._activations: dict[tuple[Graph, Value], tuple[Value, Value, Value]] = {}

    # Products

    def _product(self, node: Node) -> Rewrite | Reason:
        x, weight = node.input(0), self._find(node, 1)
        if reason := _activation_reason(x):
            return reason
        if isinstance(weight, Reason):
            second = node.input(1)
            is_product = second is not None and second.data is None
            return _TWO_ACTIVATIONS if is_product and weight.kind == "computed" else weight
        if len(weight.shape) != 2:
            return Reason("shape", f"its weight has {len(weight.shape)} dimensions, not 2")
        layout = self._product_layout(node, weight, self._granularity(1))
        return Rewrite(
            [(weight, replace(layout, zero_point=False))], partial(self._replace_product, node)
        )

    def _replace_product(self, node: Node, stored: Sequence[Stored]) -> None:
        if node.op_type == "Gemm":
            plain_gemm(node)
        self._replace("MatMulInteger", node, stored[0], {}, node.input(2))

    def _convolution(self, node: Node) -> Rewrite | Reason:
        if not self._options.convolutions:
            return _CONVOLUTION_LOSES
        weight = self._kernel(node)
        if reason := _activation_reason(node.input(0)):
            return reason
        if isinstance(weight, Reason):
            return weight
        granularity = self._granularity(0)
        layout = Layout(self._quantizer, granularity, arrange=_by_image_channel, zero_point=False)
        return Rewrite([(weight, layout)], partial(self._replace_convolution, node))

    def _replace_convolution(self, node: Node, stored: Sequence[Stored]) -> None:
        bias = node.input(2)
        if bias is not None:
            assert stored[0].values.shape is not None
            bias = _bias_by_channel(node.graph, bias, len(stored[0].values.shape) - 2)
        self._replace("ConvInteger", node, stored[0], dict(node.attributes), bias)

    def _replace(
        self,
        operator: str,
        node: Node,
        stored: Stored,
        attributes: dict[str, Attribute],
        bias: Value | None,
    ) -> None:
        """Put an operator on integers, and what restores its result, in place of a float one."""
        graph, shape, x, stem = node.graph, node.output.shape, node.input(0), node.output.name
        assert x is not None

        def add(op_type: str, end: str, inputs: list[Value], **attributes: int) -> Value:
            return added(graph, op_type, inputs, f"{stem}_{end}", _FLOAT, shape, **attributes)

        quantized, scale, zero_point = self._quantized(graph, x)
        read = [quantized, stored.values, zero_point]
        product = added(graph, operator, read, f"{stem}_i", DataType.INT32, shape, **attributes)
        numbers = add("Cast", "f", [product], to=int(_FLOAT))
        factor = graph.add("Mul", [scale, stored.scale], types=[stored.scale.type]).output
        made = add("Mul", "m", [numbers, factor])
        if bias is not None:
            made = add("Add", "b", [made, bias])
        assert product.producer is not None
        replace_node(node, [made], product.producer)

    def _quantized(self, graph: Graph, x: Value) -> tuple[Value, Value, Value]:
        """An activation as uint8 with scale and zero-point, once for all that read it."""
        if (graph, x) not in self._activations:
            names = [graph.fresh_name(f"{x.name}_{end}") for end in ("q", "scale", "zero_point")]
            shapes = ((DataType.UINT8, x.shape), (_FLOAT, ()), (DataType.UINT8, ()))
            types = [TensorType(dtype, shape) for dtype, shape in shapes]
            made = graph.add("DynamicQuantizeLinear", [x], outputs=names, types=types)
            quantized, scale, zero_point = made.outputs
            assert quantized is not None and scale is not None and zero_point is not None
            self._activations[graph, x] = (quantized, scale, zero_point)
        return self._activations[graph, x]

    def _granularity(self, axis: int) -> Granularity:
        return per_channel(axis) if self._options.per_channel else PER_TENSOR

    # Weights alone

    def _gates(self, weight: ConstantWeight) -> Granularity:
        return self._granularity(1)

    def _gated(self, node: Node, weights: Sequence[ConstantWeight]) -> Rewrite:
        if not self._options.contrib or node.op_type != "LSTM" or node.get("layout", 0):
            return super()._gated(node, weights)
        layouts = [
            (w, Layout(self._quantizer, per_block(2, w.shape[2]), arrange=_by_gate))
            for w in weights
        ]
        return Rewrite(layouts, partial(_replace_lstm, node))


def _replace_lstm(node: Node, stored: Sequence[Stored]) -> None:
    w, r = stored
    others = [node.input(slot) for slot in range(3, 8)]
    inputs = [node.input(0), w.values, r.values, *others]
    inputs += [w.scale, w.zero_point, r.scale, r.zero_point]
    kept = {name: a for name, a in node.attributes.items() if name != "layout"}
    made = contrib(node, DYNAMIC_LSTM, inputs, kept)
    replace_node(node, made.outputs, made)


def _activation_reason(x: Value | None) -> Reason | None:
    if x is None or x.dtype is not _FLOAT:
        return Reason("type", "its input 0 is not float32")
    return Reason("neighbours", "its input 0 is constant") if x.is_constant else None


def _by_image_channel(values: np.ndarray, qparams: QParams) -> Arrays:
    """A kernel whose scales broadcast to images, [channels, 1, 1] for two spatial dimensions."""
    scale = qparams.scale
    return values, scale.reshape(-1, *[1] * (values.ndim - 2)) if scale.ndim else scale, None


def _bias_by_channel(graph: Graph, bias: Value, spatial: int) -> Value:
    """A bias that broadcasts to images: a constant if it is one, else from an Unsqueeze."""
    axes = list(range(1, spatial + 1))
    if bias.is_constant:
        return graph.constant(np.expand_dims(bias.numpy(), axes), bias.name)
    shape = None if bias.shape is None else (*bias.shape, *[1] * spatial)
    return graph.add(
        "Unsqueeze",
        [bias, graph.constant(np.array(axes, np.int64), "axes")],
        types=[TensorType(_FLOAT, shape)],
    ).output


def _by_gate(values: np.ndarray, qparams: QParams) -> Arrays:
    """Weights of an LSTM as DynamicQuantizeLSTM reads them.

    Values [directions, inputs, 4 hidden], scale and zero-point [directions, 4 hidden].
    """
    return (
        np.ascontiguousarray(values.transpose(0, 2, 1)),
        qparams.scale[..., 0],
        qparams.zero_point[..., 0],
    )
