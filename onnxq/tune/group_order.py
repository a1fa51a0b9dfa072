"""Inputs of weights in an order in which like ones share a scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.ir import Node
from onnxq.needs import ChannelsOf, Need
from onnxq.observe import Observations
from onnxq.passes.channels.permute_channels import Bundle, PermuteChannels, bundles, nodes_of
from onnxq.passes.notes import node_name
from onnxq.passes.weights.stored_weights import Rounding
from onnxq.precision.stored import StoredWeights
from onnxq.quant import fake_quantize, per_block, weight_qparams
from onnxq.tune.transformation import Change, Subject, Transformation

_Floats = npt.NDArray[np.float32]

_OUTPUTS = 256
"""Of a product, that are looked at."""

_LEAST_DB = 0.2


@dataclass(frozen=True)
class GroupOrder(Transformation):
    """Sorts the inputs of products, so that like ones fall into one block.

    A weight stored in blocks has a scale for each output and so many inputs that follow each other,
    and the largest of them sets it. Inputs are sorted by the root mean square of their weights in
    all products that read the same channels. The order goes into the products in front, see
    `PermuteChannels`; it is kept if the error falls by 0.2 dB and more, which is that of the
    rounded weights times the mean squares of the activations that they multiply.

    It is no default. Measured on what the feed-forward parts end with: in `int4-weight` with blocks
    of 128 `models/text_lm.onnx` gains 0.3 dB, without losing fewer bits per byte, and 19 of 30 such
    products of SmolLM2-135M at least 0.2 dB, the median of all 0.3, which makes 0.547 of 0.566 bits
    per token; in `int2-weight` with blocks of 32 both 0.15 dB. Sorted by the activations,
    or by these times the weights, most lose.
    """

    name: ClassVar[str] = "group-order"
    description: ClassVar[str] = (
        "inputs of weights in blocks sorted, so that like ones share a scale"
    )

    def refusal(self, subject: Subject) -> str:
        """See `Transformation`."""
        able = next(_wanted(subject), None)
        return "" if able else "no weight in blocks reads channels that can change places"

    def needs(self, subject: Subject) -> Sequence[Need]:
        """See `Transformation`."""
        return [_channels(node) for _, own in _wanted(subject) for node in own]

    def transform(self, subject: Subject, observations: Observations) -> Sequence[Change]:
        """See `Transformation`."""
        changes = []
        for bundle, own in _wanted(subject):
            seen = [observations.get(_channels(node)) for node in own]
            power = [s.square for s in seen if s is not None and np.isfinite(s.square).all()]
            if len(power) < len(seen):
                continue
            weights = {node: _weight(node) for node in own}
            squares = [np.square(w, dtype=np.float64).mean(axis=1) for w in weights.values()]
            order = np.argsort(np.sum(squares, axis=0), kind="stable").astype(np.int32)
            parts = [
                (weights[node], squares, *how)
                for (node, how), squares in zip(own.items(), power, strict=True)
            ]
            before, after = (_noise(parts, o) for o in (np.arange(bundle.size), order))
            gain = 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0
            if gain >= _LEAST_DB:
                name, nodes = next(iter(bundle.values)).name, map(node_name, nodes_of(bundle))
                changes.append(Change(PermuteChannels.name, name, order, tuple(nodes), gain))
        return changes


def _noise(
    parts: Sequence[tuple[_Floats, npt.NDArray[np.float64], Rounding, int]], order: np.ndarray
) -> float:
    """Relative squared error of what products give, summed over them.

    Args:
        parts: Weights, mean squares of what they are multiplied with up to a factor, and how
            weights are rounded, in blocks of how many inputs.
        order: Of the inputs.
    """
    noise = 0.0
    for weight, power, quantizer, size in parts:
        rows = np.ascontiguousarray(weight[order])
        scales = weight_qparams(
            *(rows, quantizer.format, quantizer.scheme, per_block(0, size)), search=quantizer.search
        )
        error, whole = (
            float(np.square(n, dtype=np.float64).sum(axis=1) @ power[order])
            for n in (fake_quantize(rows, scales) - rows, rows)
        )
        noise += error / max(whole, 1e-30)
    return noise


def _wanted(subject: Subject) -> Iterator[tuple[Bundle, dict[Node, tuple[Rounding, int]]]]:
    """Bundles of channels, and their readers whose weights are stored in blocks, and how."""
    found = bundles(subject.graph)
    for bundle in dict.fromkeys(b for b in found.values() if not isinstance(b, str)):
        own = {node: how for node in bundle.readers if (how := _blocks(node, subject))}
        if own:
            yield bundle, own


def _blocks(node: Node, subject: Subject) -> tuple[Rounding, int] | None:
    """How the weight of a product is rounded, and in blocks of how many inputs."""
    for precision in subject.precisions.get(node_name(node), ()):
        stored = precision.quantizing() if isinstance(precision, StoredWeights) else None
        for _, layout in [] if stored is None else stored.weights(node):
            quantizer, size = layout.quantizer, layout.granularity.block_size
            if isinstance(quantizer, Rounding) and size and size < _weight(node).shape[0]:
                return quantizer, size
    return None


def _weight(node: Node) -> _Floats:
    """Weights of some outputs, a row for each input."""
    value = node.input(1)
    assert value is not None
    numbers = value.numpy()
    rows: _Floats = numbers.T if node.get("transB", 0) else numbers
    return rows[:, :: -(-rows.shape[1] // _OUTPUTS)]


def _channels(node: Node) -> ChannelsOf:
    read = node.input(0)
    assert read is not None
    return ChannelsOf(read.name, -1)
