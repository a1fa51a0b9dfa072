"""quantize-dynamic: 8-bit integers whose scale for activations is found while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import (
    Attribute,
    Context,
    DataType,
    Graph,
    Node,
    Numerics,
    Pass,
    Shape,
    TensorType,
    Value,
)
from onnxq.ir.attribute import AttributeLike
from onnxq.passes.weights.stored_weights import Arrays, Layout, Rounding, Stored, WeightStore
from onnxq.passes.weights.weight_rewrites import (
    CONTRIB_DOMAIN,
    ConstantWeight,
    find_weight,
    gather_rows,
    plain_gemm,
    quantize_nodes,
    replace_node,
    row_layout,
    rows_reason,
    set_weight,
)
from onnxq.quant import INT8, PER_TENSOR, Granularity, QParams, Scheme, per_block, per_channel

OPSET = 13
"""Lowest opset that has all that the pass emits: DequantizeLinear with a scale per channel."""

_CONVOLUTION_LOSES = "convolutions on dynamic integers are far slower than float ones"
_TWO_ACTIVATIONS = "both of its inputs are activations, for which dynamic integers hardly pay"


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
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
        only: Names of the nodes that may be changed; empty stands for all.
        keep_float: Names of nodes that are to stay in float.
        per_channel: Give weights one scale for each output channel instead of a single one.
        reduced_range: Use 7 bits for weights: x86 processors without VNNI overflow otherwise.
        convolutions: Quantize convolutions, too.
        contrib: Use operators of onnxruntime's own where they pay; only it runs these.
    """

    name: ClassVar[str] = "quantize-dynamic"
    numerics: ClassVar[Numerics] = "approximates"
    needs_types: ClassVar[bool] = True

    only: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    per_channel: bool = True
    reduced_range: bool = False
    convolutions: bool = False
    contrib: bool = False

    @property
    def needed_opset(self) -> int:
        """Lowest opset of a graph that the pass takes."""
        return OPSET

    def run(self, graph: Graph, ctx: Context) -> int:
        """Quantize; gives the number of operators that compute with integer weights now.

        Raises:
            InputError: the graph's opset is too low.
        """
        if graph.opset < self.needed_opset:
            raise InputError(
                f"dynamic quantization needs opset {self.needed_opset} and the model has "
                f"{graph.opset}; raise the model's opset first"
            )
        return _Quantization(self, ctx).run(graph)


class _Quantization:
    """Changes a graph and keeps account of what was stored."""

    def __init__(self, options: QuantizeDynamic, ctx: Context) -> None:
        self._options = options
        self._ctx = ctx
        self._store = WeightStore()
        self._rounding = Rounding(INT8, Scheme(symmetric=True, reduced_range=options.reduced_range))
        self._activations: dict[tuple[Graph, Value], tuple[Value, Value, Value]] = {}
        self._handlers: dict[str, Callable[[Node], str]] = {
            "MatMul": self._product,
            "Gemm": self._product,
            "Conv": self._convolution,
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

    # Products

    def _product(self, node: Node) -> str:
        x, weight = node.input(0), find_weight(node, 1)
        if reason := _activation_reason(x):
            return reason
        assert x is not None
        if isinstance(weight, str):
            second = node.input(1)
            is_product = second is not None and second.data is None
            return _TWO_ACTIVATIONS if is_product and weight.endswith("not constant") else weight
        if len(weight.shape) != 2:
            return f"its weight has {len(weight.shape)} dimensions, not 2"
        layout = Layout(
            self._rounding,
            self._granularity(1),
            transposed=weight.transposed != bool(node.get("transB", 0)),
            factor=float(node.get("alpha", 1.0)),
        )
        stored = self._store.get(weight.value, layout, weight.value.graph)
        bias = None
        if node.op_type == "Gemm":
            plain_gemm(node)
            x, bias = node.input(0), node.input(2)
            assert x is not None
        self._replace("MatMulInteger", node, x, stored, {}, bias)
        return ""

    def _convolution(self, node: Node) -> str:
        if not self._options.convolutions:
            return _CONVOLUTION_LOSES
        x, weight = node.input(0), find_weight(node, 1)
        if reason := _activation_reason(x):
            return reason
        if isinstance(weight, str):
            return weight
        assert x is not None
        shape = weight.shape
        if weight.transposed or len(shape) < 3:
            return "its weight is no constant kernel"
        layout = Layout(self._rounding, self._granularity(0), arrange=_by_image_channel)
        stored = self._store.get(weight.value, layout, weight.value.graph)
        bias = node.input(2)
        if bias is not None:
            bias = _bias_by_channel(node.graph, bias, len(shape) - 2)
        self._replace("ConvInteger", node, x, stored, dict(node.attributes), bias)
        return ""

    def _replace(
        self,
        operator: str,
        node: Node,
        x: Value,
        stored: Stored,
        attributes: dict[str, Attribute],
        bias: Value | None,
    ) -> None:
        """Put an operator on integers, and what restores its result, in place of a float one."""
        graph, shape = node.graph, node.output.shape
        add = _Adder(graph, node.output.name, shape)
        quantized, scale, zero_point = self._quantized(graph, x)
        product = graph.add(
            operator,
            [quantized, stored.values, zero_point],
            attributes,
            outputs=[graph.fresh_name(f"{node.output.name}_i")],
            types=[TensorType(DataType.INT32, shape)],
        )
        numbers = add("Cast", "f", [product.output], {"to": int(DataType.FLOAT)})
        factor = graph.add("Mul", [scale, stored.scale], types=[stored.scale.type]).output
        made = add("Mul", "m", [numbers, factor])
        if bias is not None:
            made = add("Add", "b", [made, bias])
        replace_node(node, [made], product)

    def _quantized(self, graph: Graph, x: Value) -> tuple[Value, Value, Value]:
        """An activation as uint8 with scale and zero-point, once for all that read it."""
        if (graph, x) not in self._activations:
            names = [graph.fresh_name(f"{x.name}_{end}") for end in ("q", "scale", "zero_point")]
            made = graph.add(
                "DynamicQuantizeLinear",
                [x],
                outputs=names,
                types=[
                    TensorType(DataType.UINT8, x.shape),
                    TensorType(DataType.FLOAT, ()),
                    TensorType(DataType.UINT8, ()),
                ],
            )
            quantized, scale, zero_point = made.outputs
            assert quantized is not None and scale is not None and zero_point is not None
            self._activations[graph, x] = (quantized, scale, zero_point)
        return self._activations[graph, x]

    def _granularity(self, axis: int) -> Granularity:
        return per_channel(axis) if self._options.per_channel else PER_TENSOR

    # Weights alone

    def _gather(self, node: Node) -> str:
        weight = find_weight(node, 0)
        if isinstance(weight, str):
            return weight
        if reason := rows_reason(node, weight):
            return reason
        graph = weight.value.graph
        gather_rows(node, self._store.get(weight.value, row_layout(weight), graph))
        return ""

    def _recurrent(self, node: Node) -> str:
        weights = {slot: find_weight(node, slot) for slot in (1, 2)}
        for weight in weights.values():
            if isinstance(weight, str):
                return weight
            if len(weight.shape) != 3:
                return f"its weight has {len(weight.shape)} dimensions, not 3"
        found = [w for w in weights.values() if not isinstance(w, str)]
        if self._options.contrib and node.op_type == "LSTM" and not node.get("layout", 0):
            self._contrib_lstm(node, found)
            return ""
        layout = Layout(self._rounding, self._granularity(1))
        stored = [self._store.get(w.value, layout, w.value.graph) for w in found]
        for slot, constants in zip(weights, stored, strict=True):
            graph = constants.values.graph
            set_weight(node, slot, self._store.dequantized(constants, graph))
        return ""

    def _contrib_lstm(self, node: Node, weights: list[ConstantWeight]) -> None:
        graph = node.graph
        layouts = [
            Layout(self._rounding, per_block(2, w.shape[2]), arrange=_by_gate) for w in weights
        ]
        w, r = (
            self._store.get(weight.value, layout, weight.value.graph)
            for weight, layout in zip(weights, layouts, strict=True)
        )
        others = [node.input(slot) for slot in range(3, 8)]
        attributes = {name: a for name, a in node.attributes.items() if name != "layout"}
        made = graph.add(
            "DynamicQuantizeLSTM",
            [
                node.input(0),
                w.values,
                r.values,
                *others,
                w.scale,
                w.zero_point,
                r.scale,
                r.zero_point,
            ],
            attributes,
            domain=CONTRIB_DOMAIN,
            outputs=[None if v is None else "" for v in node.outputs],
            types=[None if v is None else v.type for v in node.outputs],
        )
        graph.model.opset_imports.setdefault(CONTRIB_DOMAIN, 1)
        replace_node(node, made.outputs, made)


class _Adder:
    """Adds operators whose outputs are floats of one shape and have names of one stem."""

    def __init__(self, graph: Graph, stem: str, shape: Shape | None) -> None:
        self._graph, self._stem = graph, stem
        self._type = TensorType(DataType.FLOAT, shape)

    def __call__(
        self,
        op_type: str,
        ending: str,
        inputs: list[Value | None],
        attributes: dict[str, AttributeLike] | None = None,
    ) -> Value:
        name = self._graph.fresh_name(f"{self._stem}_{ending}")
        return self._graph.add(
            op_type, inputs, attributes, outputs=[name], types=[self._type]
        ).output


def _activation_reason(x: Value | None) -> str:
    if x is None or x.dtype is not DataType.FLOAT:
        return "its input 0 is not float32"
    return "its input 0 is constant" if x.is_constant else ""


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
        types=[TensorType(DataType.FLOAT, shape)],
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
