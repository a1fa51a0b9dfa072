"""A node's weight as the matrices that its inputs are multiplied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.ir import Node, Value
from onnxq.ir.operators import attribute_value
from onnxq.needs import CrossGramOf, GramOf, Windows
from onnxq.observe import Observations
from onnxq.passes.weights.stored_weights import Layout, Rounding
from onnxq.passes.weights.weight_rewrites import ConstantWeight
from onnxq.quant import Granularity
from onnxq.tune.layer import Layer

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

_MOST_PARTS, _FEWEST_OUTPUTS, _INPUTS_PER_OUTPUT = 8, 64, 8
"""Of a weight whose outputs are tuned some at a time: each part makes use of the whole Gram matrix
anew, which has to be little beside what it does for its outputs."""

_MATRICES = 6
"""Of the size of a Gram matrix that are in memory at once while one is found and made use of."""


@dataclass(frozen=True)
class WeightMatrix:
    """A constant weight that is rounded to integers, as matrices that rows are multiplied with.

    Their axes are groups (of a convolution; there is one elsewhere), inputs and outputs, with the
    inputs in the order of the columns of the Gram matrix of what the node reads.

    Attributes:
        node: The node.
        weight: Its weight.
        layout: How it is stored.
        rounding: What it is rounded to.
        outputs: The outputs that count; all if None.
    """

    node: Node
    weight: ConstantWeight
    layout: Layout
    rounding: Rounding
    outputs: slice | None = None

    @property
    def gram(self) -> GramOf:
        """What it is multiplied with."""
        return GramOf(*self._read)

    @property
    def cross_gram(self) -> CrossGramOf:
        """The same in the quantized model and in the float model."""
        return CrossGramOf(*self._read)

    def numbers(self) -> npt.NDArray[np.float32]:
        """The weight, times the factor with which it is stored, as the constant lies in memory."""
        numbers, factor = self.weight.value.numpy(), self.layout.factor
        if self.outputs is not None:
            numbers = np.take(numbers, range(numbers.shape[self._axis])[self.outputs], self._axis)
        return numbers if factor == 1.0 else numbers * np.float32(factor)

    def matrices(self, array: Array) -> Array:
        """An array of the constant's shape as matrices; a view of it."""
        if not self.node.is_op("Conv"):
            return (array.T if self._is_turned else array)[np.newaxis]
        groups = attribute_value(self.node, "group")
        return array.reshape(groups, len(array) // groups, -1).transpose(0, 2, 1)

    def by_input(self, numbers: Array) -> Array:
        """A number for each input of each group, [groups, inputs], to go with the constant."""
        if not self.node.is_op("Conv"):
            return numbers if self._is_turned else numbers.T
        outputs, *others = self._shape
        return numbers.repeat(outputs // len(numbers), axis=0).reshape(outputs, *others)

    def spread(self, array: Array) -> Array:
        """What there is one of for each scale for each number, as matrices."""
        granularity, shape = self.layout.own_granularity, self._shape
        if granularity.axis is not None:
            axis, size = granularity.axis % len(shape), granularity.block_size
            if size is None:
                array = np.expand_dims(array, [a for a in range(len(shape)) if a != axis])
            else:
                # The last block may be longer than what is left for it.
                array = array.repeat(size, axis)[tuple(map(slice, shape))]
        return self.matrices(np.broadcast_to(array, shape))

    def parts(self) -> list[WeightMatrix]:
        """Outputs that have scales of their own, some at a time, so that others may do them.

        They depend on the shape alone, as numbers do on what is multiplied together. Where all
        share a scale, or groups have outputs of their own, there is one part.
        """
        groups, inputs, outputs = self.matrices(self.weight.value.numpy()).shape
        count = min(_MOST_PARTS, outputs // max(_FEWEST_OUTPUTS, inputs // _INPUTS_PER_OUTPUT))
        own, dims = self.layout.own_granularity, len(self._shape)
        if groups > 1 or count < 2 or own.axis is None:
            return [self]
        if (own.axis % dims == self._axis) == (own.block_size is not None):
            return [self]
        each = -(-outputs // count)
        return [
            replace(self, outputs=slice(at, min(at + each, outputs)))
            for at in range(0, outputs, each)
        ]

    def joined(self, tensors: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """What was found for `parts`, together."""
        if len(tensors) == 1:
            return dict(tensors[0])
        axes = {name: self._axis if a.ndim > 1 else 0 for name, a in tensors[0].items()}
        return {n: np.concatenate([own[n] for own in tensors], axis) for n, axis in axes.items()}

    @property
    def _axis(self) -> int:
        """The axis of the outputs, as the constant lies in memory."""
        return 0 if self._is_turned or self.node.is_op("Conv") else 1

    @property
    def _shape(self) -> tuple[int, ...]:
        """The shape of `numbers`."""
        shape = [*self.weight.value.numpy().shape]
        if self.outputs is not None:
            shape[self._axis] = len(range(shape[self._axis])[self.outputs])
        return tuple(shape)

    @property
    def granularity(self) -> Granularity:
        """Which numbers of a product's matrix, [inputs, outputs], share a scale."""
        own = self.layout.own_granularity
        if own.axis is None or not self._is_turned:
            return own
        return replace(own, axis=1 - own.axis % 2)

    @property
    def _is_turned(self) -> bool:
        return self.weight.transposed != bool(self.node.get("transB", 0))

    @property
    def _read(self) -> tuple[str, Windows | None]:
        x = self.node.input(0)
        assert x is not None
        return x.name, _windows(self.node, self.weight) if self.node.is_op("Conv") else None


def weight_matrix(layer: Layer) -> WeightMatrix | str:
    """A layer's weight as matrices, or why it is none."""
    node, weights = layer.node, layer.weights
    if len(weights) != 1 or not node.is_op("MatMul", "Gemm", "Conv"):
        return "it is for weights of products and convolutions"
    ((weight, layout),) = weights
    if not isinstance(layout.quantizer, Rounding) or layout.quantizer.format.is_float:
        return "it is for weights that are rounded to integers"
    if len(weight.shape) != 2 and not node.is_op("Conv"):
        return "it is for matrices"
    if node.get("transA", 0):
        return "it is not for products that transpose what they read"
    if node.graph.outer is not None:
        return "it is for nodes outside of bodies"
    if _readers(weight.value) != [node]:
        return "its weight is read by several nodes"
    if node.is_op("Conv") and _windows(node, weight) is None:
        return "how far it pads is not known"
    found = WeightMatrix(node, weight, layout, layout.quantizer)
    groups, inputs, _ = found.matrices(weight.value.numpy()).shape
    if layer.memory_limit is not None and _MATRICES * 8 * groups * inputs**2 > layer.memory_limit:
        return "its Gram matrix does not fit the memory limit"
    return found


def matrix_of(layer: Layer) -> WeightMatrix:
    """The weight of a layer for which there is no reason against it."""
    found = weight_matrix(layer)
    assert isinstance(found, WeightMatrix), found
    return found


def gram_of(matrix: WeightMatrix, observations: Observations) -> Float64Array:
    """Gram matrices of what was seen; those of independent inputs where that is of no use."""
    seen = observations.get(matrix.gram)
    if seen is not None and np.isfinite(seen.matrix).all():
        return np.asarray(seen.matrix)
    groups, inputs, _ = matrix.matrices(matrix.weight.value.numpy()).shape
    return np.broadcast_to(np.eye(inputs), (groups, inputs, inputs))


def cross_gram_of(matrix: WeightMatrix, observations: Observations) -> Float64Array | None:
    """Products of what was seen in both models; None where `gram_of` makes no use of any either."""
    both = [observations.get(need) for need in (matrix.gram, matrix.cross_gram)]
    found = [seen.matrix for seen in both if seen is not None and np.isfinite(seen.matrix).all()]
    return np.asarray(found[1]) if len(found) == 2 else None


def _readers(value: Value) -> list[Node]:
    """The nodes that compute with a constant, directly or transposed; not those that gather."""
    found: list[Node] = []
    for use in value.uses:
        if use.node.is_op("Transpose"):
            found += _readers(use.node.output)
        elif not use.node.is_op("Gather"):
            found.append(use.node)
    return found


def _windows(node: Node, weight: ConstantWeight) -> Windows | None:
    """What a convolution multiplies; None where it pads by a size that is not known."""
    kernel = weight.shape[2:]
    none = (1,) * len(kernel)
    strides, dilations = (tuple(node.get(n, none)) for n in ("strides", "dilations"))
    pads, auto = tuple(node.get("pads", ())), node.get("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        x = node.input(0)
        sizes = (None,) if x is None or x.shape is None else x.shape[2:]
        totals = []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=False):
            if not isinstance(size, int):
                return None
            totals.append(max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size))
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = (*less, *more) if auto == "SAME_UPPER" else (*more, *less)
    elif auto == "VALID":
        pads = ()
    return Windows(kernel, strides, pads, dilations, node.get("group", 1))
