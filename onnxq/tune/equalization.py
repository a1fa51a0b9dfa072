"""Channels of layers that follow each other brought to one range."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.ir import Context, Graph, Node, infer_types
from onnxq.ir.connected import connected
from onnxq.needs import ChannelsOf, Need, RangeOf
from onnxq.observe import Observations
from onnxq.observe.statistics import ChannelStatistics, Statistics
from onnxq.passes.channels.groups import ChannelGroup, Consumer, find_groups, input_axis
from onnxq.passes.channels.labels import NO_CHANNEL
from onnxq.passes.channels.lift_clips import LiftClips, liftable
from onnxq.passes.channels.scale_channels import ScaleChannels
from onnxq.passes.notes import node_name
from onnxq.passes.static.operands import weight_granularity
from onnxq.quant import PER_TENSOR, fake_quantize, per_channel, weight_qparams
from onnxq.targets import Target
from onnxq.tune.transformation import Change, Subject, Transformation

_Floats = npt.NDArray[np.float64]
_Factors = dict[str, _Floats]
"""Of each group, by its tensor."""

_PRODUCERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_SWEEPS = 100
_CONVERGED = 1e-4
"""Largest logarithm of a step after which nothing more is worth a sweep."""

_LEAST_DB = 0.1


@dataclass(frozen=True)
class Equalization(Transformation):
    """Divides channel i between two layers by ``s_i = sqrt(r1_i r2_i) / r2_i``.

    ``r1_i`` is the largest magnitude of the weights that make the channel, ``r2_i`` that of those
    that multiply it, of all layers that do. With that both are ``sqrt(r1_i r2_i)``, so that no
    channel has the integers of one scale for itself. Along chains of layers it is repeated until
    nothing changes any more. Those are equations 8 to 11 of Nagel et al., Data-Free Quantization
    Through Weight Equalization and Bias Correction (ICCV 2019).

    It is for layers in static integers whose weights share one scale, as on targets without scales
    by channel. A Clip from 0 between them, such as ReLU6, becomes a Relu.

    A chain is kept as it is unless the error falls, by 0.1 dB and more: that of the weights, times
    the mean squares of what they multiply on the calibration data, that of rounding what lies
    between the layers to the range it has there, and what a Clip no longer cuts off, each with the
    weights of the layers up to the end of the chain. The factors come from the weights alone, so
    that none of this data was fitted to.
    """

    name: ClassVar[str] = "equalization"
    description: ClassVar[str] = "channels of weights that share a scale brought to one range"

    def refusal(self, subject: Subject) -> str:
        """See `Transformation`."""
        if any(_chains(subject, _lifted(subject.graph, None))):
            return ""
        return "no layers in static integers whose weights share one scale follow each other"

    def needs(self, subject: Subject) -> Sequence[Need]:
        """See `Transformation`."""
        chains = _chains(subject, _lifted(subject.graph, None))
        clips = [_in_front(node) for node, _ in liftable(subject.graph)]
        return [*clips, *(_channels(node) for chain in chains for node in chain.layers)]

    def transform(self, subject: Subject, observations: Observations) -> Sequence[Change]:
        """See `Transformation`."""
        clips = {
            node.output.name: _Clip(node_name(node), bound, _above(seen, bound))
            for node, bound in liftable(subject.graph)
            if (seen := observations.get(_in_front(node))) is not None and seen.is_finite
        }
        graph = _lifted(subject.graph, {name: clip.bound for name, clip in clips.items()})
        lifted, scaled = dict[str, Change](), []
        for chain in _chains(subject, graph):
            seen = {node: observations.get(_channels(node)) for node in chain.layers}
            if any(s is None or not np.isfinite(s.square).all() for s in seen.values()):
                continue
            factors, above = chain.equalized(), {name: clip.above for name, clip in clips.items()}
            before = chain.noise(chain.plain, seen, subject.target, {})
            after = chain.noise(factors, seen, subject.target, above)
            gain = 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0
            if gain < _LEAST_DB:
                continue
            for group in chain.groups:
                name = group.tensor.name
                numbers = factors[name].astype(np.float32)
                scaled.append(Change(ScaleChannels.name, name, numbers, group.nodes, gain))
                for name in clips.keys() & {value.name for value in group.changed}:
                    bound = np.array([clips[name].bound], np.float32)
                    lifted[name] = Change(LiftClips.name, name, bound, (clips[name].node,))
        return [*(lifted[name] for name in clips if name in lifted), *scaled]


@dataclass(frozen=True)
class _Clip:
    """A Clip that may be lifted.

    Attributes:
        node: Its name.
        bound: Its upper bound.
        above: Mean square of how far values are above that.
    """

    node: str
    bound: float
    above: float


@dataclass(frozen=True, eq=False)
class _Layer:
    """A product with a constant weight in static integers.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        bits: Of what it multiplies with the weight.
        by_channel: Whether every output channel has a scale of its own.
    """

    node: Node
    bits: int
    by_channel: bool

    @cached_property
    def weight(self) -> _Floats:
        """(groups, outputs of each, inputs of each, places of the kernel)."""
        value, groups = self.node.inputs[1], self.node.get("group", 1)
        assert value is not None
        numbers = value.numpy().astype(np.float64)
        if self.node.is_op("MatMul") or (self.node.is_op("Gemm") and not self.node.get("transB")):
            numbers = numbers.T
        parts = numbers.reshape(groups, len(numbers) // groups, numbers.shape[1], -1)
        return parts.swapaxes(1, 2) if self.node.is_op("ConvTranspose") else parts

    @cached_property
    def largest(self) -> _Floats:
        """Largest magnitude of all places of the kernel."""
        return np.asarray(np.abs(self.weight).max(axis=3))

    @cached_property
    def squares(self) -> _Floats:
        """Sum of the squares of all places of the kernel."""
        return np.asarray(np.square(self.weight).sum(axis=3))

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return int(self.weight.shape[0] * self.weight.shape[2])

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    def read(self, numbers: _Floats) -> _Floats:
        """Numbers for input channels in a shape that broadcasts to (groups, outputs, inputs)."""
        return numbers.reshape(len(self.weight), 1, -1)

    def given(self, numbers: _Floats) -> _Floats:
        """The same of output channels."""
        return numbers.reshape(len(self.weight), -1, 1)

    def rounding(self, factors: _Floats, target: Target) -> _Floats:
        """Squared error of the weights with their factors, without the factors, summed by place."""
        scaled = self.weight * factors[..., None]
        rows = scaled.reshape(self.outputs, -1)
        granularity = per_channel(0) if self.by_channel else PER_TENSOR
        scales = weight_qparams(rows, target.weight_format, target.weight_scheme, granularity)
        error = fake_quantize(rows, scales).reshape(scaled.shape) - scaled
        return np.asarray(np.square(error / factors[..., None]).sum(axis=3))


@dataclass(frozen=True, eq=False)
class _Chain:
    """Groups of channels that have layers in common, and all of their layers, first ones first."""

    groups: tuple[ChannelGroup, ...]
    layers: Mapping[Node, _Layer]

    @property
    def plain(self) -> _Factors:
        """Factors that change nothing."""
        return {group.tensor.name: np.ones(group.size) for group in self.groups}

    def equalized(self) -> _Factors:
        """Factors with which no step of the equations changes anything any more."""
        factors = self.plain
        for _ in range(_SWEEPS):
            furthest = 0.0
            for group in self.groups:
                assert group.producer is not None
                made = self._largest(group.producer, factors, axis=2)
                read = np.zeros(group.size)
                for consumer in group.consumers:
                    own = self._largest(consumer.node, factors, axis=1)
                    known = consumer.channels != NO_CHANNEL
                    np.maximum.at(read, consumer.channels[known], own[known])
                able = group.free & (made > 0) & (read > 0)
                step = np.sqrt(np.divide(made, read, out=np.ones(group.size), where=able))
                factors[group.tensor.name] = factors[group.tensor.name] * step
                furthest = max(furthest, float(np.abs(np.log(step)).max()))
            if furthest < _CONVERGED:
                break
        return factors

    def noise(
        self,
        factors: _Factors,
        seen: Mapping[Node, ChannelStatistics],
        target: Target,
        above: Mapping[str, float],
    ) -> float:
        """Squared error of what the chain gives, by what its parts are rounded to.

        Each part's is weighted with the squares of the weights behind it, and with the inverse
        of the power of what the last layer gives.

        Args:
            factors: What channels are divided by.
            seen: Of what each layer reads.
            target: Where the model is to run.
            above: Mean squares of what was cut off from tensors, and is no longer.
        """
        noise = 0.0
        weights: dict[str, _Floats] = {}
        for node, layer in reversed([*self.layers.items()]):
            power = layer.read(seen[node].square / seen[node].count)
            group = self._made_by(node)
            if group is None:
                each = 1 / max(float((layer.squares * power).sum()), 1e-30)
                weight = np.full(layer.outputs, each)
            else:
                weight = weights[group.tensor.name]
            behind = layer.given(weight)
            own = self._factors(node, factors)
            noise += float((layer.rounding(own, target) * power * behind).sum())
            read = (layer.squares * behind).sum(axis=1).reshape(-1)
            for group, consumer in self._read_by(node):
                known = consumer.channels != NO_CHANNEL
                total = weights.setdefault(group.tensor.name, np.zeros(group.size))
                np.add.at(total, consumer.channels[known], read[known])
            fed = self._fed(node, factors)
            width = float((seen[node].absmax / fed).max())
            # Values of both signs share the integers.
            if (seen[node].sum != seen[node].magnitude).any():
                width *= 2
            step = width / (target.activation_format_of(layer.bits).levels - 1)
            noise += float((step**2 / 12 * fed**2 * read).sum())
        for group in self.groups:
            more = sum(above.get(value.name, 0.0) for value in group.changed)
            noise += more * float(weights[group.tensor.name].sum())
        return noise

    def _largest(self, node: Node, factors: _Factors, axis: int) -> _Floats:
        """Largest magnitude of the weights of each output (axis 2) or input channel (axis 1)."""
        scaled = self.layers[node].largest * self._factors(node, factors)
        return np.asarray(scaled.max(axis=axis).reshape(-1))

    def _factors(self, node: Node, factors: _Factors) -> _Floats:
        """What the weights of a layer are multiplied with, (groups, outputs, inputs)."""
        layer, made = self.layers[node], self._made_by(node)
        divided = np.ones(layer.outputs) if made is None else factors[made.tensor.name]
        return layer.read(self._fed(node, factors)) / layer.given(divided)

    def _fed(self, node: Node, factors: _Factors) -> _Floats:
        """What the input channels of a layer are divided by."""
        fed = np.ones(self.layers[node].inputs)
        for group, consumer in self._read_by(node):
            known = consumer.channels != NO_CHANNEL
            fed[known] *= factors[group.tensor.name][consumer.channels[known]]
        return fed

    def _made_by(self, node: Node) -> ChannelGroup | None:
        return next((group for group in self.groups if group.producer is node), None)

    def _read_by(self, node: Node) -> list[tuple[ChannelGroup, Consumer]]:
        return [(g, c) for g in self.groups for c in g.consumers if c.node is node]


def _chains(subject: Subject, graph: Graph) -> Iterator[_Chain]:
    """The chains of a graph in which a scale is shared by several channels of a weight."""
    layers = {node: layer for node in graph.all_nodes() if (layer := _layer(node, subject))}
    groups: dict[Node, ChannelGroup] = {}
    links: list[tuple[Node, Node]] = []
    for group in find_groups(graph).folded.values():
        producer, readers = group.producer, [consumer.node for consumer in group.consumers]
        if producer in layers and all(node in layers for node in readers):
            groups[producer] = group
            links += [(producer, node) for node in readers]
    for nodes in connected(layers, links):
        own = {node: layers[node] for node in nodes}
        is_shared = any(not layer.by_channel and layer.outputs > 1 for layer in own.values())
        if is_shared and len(nodes) > 1:
            yield _Chain(tuple(groups[node] for node in own if node in groups), own)


def _layer(node: Node, subject: Subject) -> _Layer | None:
    """What a node is in a chain; None if it is not to be in static integers."""
    rule = subject.target.operators.get(node.op_type)
    bits = [p.activation_bits for p in subject.precisions.get(node_name(node), ()) if p.is_static]
    weight = node.input(1) if node.is_op(*_PRODUCERS) else None
    if rule is None or not bits or weight is None or not weight.is_constant:
        return None
    granularity = weight_granularity(node, rule, subject.target)
    return _Layer(node, min(bits), granularity.axis is not None)


def _channels(node: Node) -> ChannelsOf:
    read = node.input(0)
    assert read is not None
    return ChannelsOf(read.name, input_axis(node))


def _lifted(graph: Graph, bounds: Mapping[str, float] | None) -> Graph:
    """The graph with these Clips lifted, by what they give; with all of them for None."""
    if bounds is None:
        bounds = {node.output.name: bound for node, bound in liftable(graph)}
    if bounds:
        graph = graph.copy()
        LiftClips({name: np.array([b], np.float32) for name, b in bounds.items()}).run(
            graph, Context()
        )
        infer_types(graph)
    return graph


def _in_front(clip: Node) -> RangeOf:
    read = clip.input(0)
    assert read is not None
    return RangeOf(read.name, histogram=True)


def _above(seen: Statistics, bound: float) -> float:
    """Mean square of how far values are above a bound."""
    assert seen.histogram is not None
    beyond = np.maximum(np.minimum(seen.histogram.upper, seen.max) - bound, 0)
    return float((seen.histogram.counts * np.square(beyond)).sum() / max(seen.count, 1))
