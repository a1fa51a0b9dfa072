"""What of a quantized module can be trained so that a plan holds it, and how it holds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from onnxq.ir import Graph, Node, Value
from onnxq.passes.static.operands import reads_weight
from onnxq.passes.static.placement import Placement, known_range
from onnxq.passes.static.value_qparams import few_bits
from onnxq.passes.tuned import BIAS, Tensors
from onnxq.quant.formats import FORMATS, Format
from onnxq.targets import Target
from onnxq.tune.train.learned import readers
from onnxq.tune.train.quantized import QuantizedModule
from onnxq.tune.train.trainer import Parameters

_LEAST_BIAS = 0.05
"""Biases that begin at zero learn as if they were so large."""

_DEAD = 0.1
"""No channel learns slower than this part of the whole weight."""

_Ends = tuple[float, float]


class Places:
    """The weights, biases and steps that a plan can hold; everything else stays as it is.

    A plan holds a weight's integers and scales, what is added to a bias, and the range of a tensor.
    Steps stay whose tensors have a range that the target fixes, or that others are computed from.

    Args:
        module: The module, from the graph that a plan makes of ``source``.
        source: The float graph.
        placed: Where integers begin and end in it.
        target: Where the model is to run.
        learn_steps: Whether steps are trained.
    """

    def __init__(
        self,
        module: QuantizedModule,
        source: Graph,
        placed: Placement,
        target: Target,
        *,
        learn_steps: bool,
    ) -> None:
        self._module = module
        self._placed = placed
        self._target = target
        self._floats = {node.name: node for node in source.nodes()}
        self._weights: dict[str, Node] = {}
        self._biases: dict[str, Node] = {}
        for name, slot, pair in readers(module):
            node = self._floats.get(name)
            if node is None:
                continue
            rule = placed.nodes.get(node)
            if rule is not None and slot == rule.weight and reads_weight(node, rule):
                self._weights[name] = pair
            elif rule is not None and slot == rule.bias:
                self._biases[name] = pair
        self._roots = self._free_roots()
        self._free(learn_steps)
        self._begin = {n: self._now(p).detach().clone() for n, p in self._biases.items()}

    def parameters(self) -> Parameters:
        """What is to be trained."""
        # Nodes may share a weight.
        weights = {id(self._numbers(pair)): pair for pair in self._weights.values()}
        biases = {id(p): p for p in map(self._numbers, self._biases.values()) if p.requires_grad}
        biases.update((id(norm.shift), norm.shift) for norm in self._module.norms.values())
        steps = {id(p): p for p in self._module.executor.parameters() if p.requires_grad}
        steps = {key: p for key, p in steps.items() if key not in weights and key not in biases}
        return Parameters(
            [(self._numbers(pair), self._size(pair)) for pair in weights.values()],
            [(p, _size(p).clamp_min(_LEAST_BIAS).expand_as(p)) for p in biases.values()],
            [(p, p.detach().clone()) for p in steps.values()],
        )

    def _size(self, pair: Node) -> torch.Tensor:
        """The size of each channel's weights; of channels that are almost dead a bit more."""
        numbers, scale, axis = self._numbers(pair).detach(), pair.inputs[1], pair.get("axis", None)
        whole = _size(numbers)
        if axis is None or scale is None or not scale.rank:
            return whole.expand_as(numbers).clone()
        others = [at for at in range(numbers.ndim) if at != axis % numbers.ndim]
        return _size(numbers, others).clamp_min(whole * _DEAD).expand_as(numbers).clone()

    def tensors(self) -> dict[str, Tensors]:
        """What nodes are to have, by name: see `onnxq.passes.tuned`."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, pair in self._weights.items():
            node = self._floats[name]
            weight = node.inputs[self._placed.nodes[node].weight or 0]
            assert weight is not None
            # Channels of zeros may have been added, to fill vectors.
            where = tuple(map(slice, weight.numpy().shape))
            found[name] = self._weight(pair, where)
        for name, pair in self._biases.items():
            shift = (self._now(pair).detach() - self._begin[name]).cpu().numpy()
            bias = self._floats[name].input(self._placed.nodes[self._floats[name]].bias or 0)
            if shift.any():
                # A tuner may have given the node its bias.
                size = 1 if bias is None else bias.numpy().size
                found.setdefault(name, {})[BIAS] = shift if size == 1 else shift[:size]
        return dict(found)

    def ranges(self) -> dict[str, _Ends]:
        """Smallest and largest value of what has trained steps, by name as in plans."""
        found: dict[str, _Ends] = {}
        for scale, (pair, roots) in self._roots.items():
            with torch.no_grad():
                step = float(self._module.scale(scale))
            moved = self._module.moved(scale)
            ends = (step * (pair.low - moved), step * (pair.high - moved))
            if pair.format.is_narrow:
                found.update((few_bits(root.name, pair.format), ends) for root in roots)
                continue
            values = [v for v, root in self._placed.roots.items() if root in roots]
            found.update((v.name, ends) for v in (*roots, *values))
        return found

    def _weight(self, pair: Node, where: tuple[slice, ...]) -> dict[str, np.ndarray]:
        integers, scale, zero = pair.inputs
        assert integers is not None and scale is not None and zero is not None
        axis = pair.get("axis", None)
        cut = () if axis is None or not scale.rank else (where[axis],)
        with torch.no_grad():
            steps = self._module.scale(scale).cpu().numpy()
        zeros, values = zero.numpy(), self._module.rounded(integers)
        return {"scale": steps[cut], "zero_point": zeros[cut], "values": values[where]}

    def _numbers(self, pair: Node) -> nn.Parameter:
        integers = pair.inputs[0]
        assert integers is not None
        return self._module.numbers(integers)

    def _now(self, pair: Node) -> torch.Tensor:
        integers = pair.inputs[0]
        assert integers is not None
        return self._module.floats(integers)

    def _free(self, learn_steps: bool) -> None:
        """Train nothing but what a plan can hold."""
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)
        norms = self._module.norms
        biases = [pair for name, pair in self._biases.items() if name not in norms]
        for pair in (*self._weights.values(), *biases):
            self._numbers(pair).requires_grad_(True)
        for norm in norms.values():
            norm.requires_grad_(True)
        scales = [*self._roots, *(pair.inputs[1] for pair in self._weights.values())]
        for scale in scales if learn_steps else ():
            assert scale is not None
            self._module.executor.constant(scale).requires_grad_(True)
        for scale, (given, _) in self._roots.items() if learn_steps else ():
            offset = self._module.offset(scale)
            if offset is not None and not self._target.scheme_of(given.format).symmetric:
                offset.requires_grad_(True)

    def _free_roots(self) -> dict[Value, tuple[_Pair, tuple[Value, ...]]]:
        """By scale, a pair that has it, and the values whose range it follows."""
        named = {value.name: value for value in self._placed.roots}
        found: dict[Value, dict[Value, None]] = {}
        pairs: dict[Value, _Pair] = {}
        fixed: set[Value] = set()
        scales: dict[tuple[Value, Format], dict[Value, None]] = {}
        for node in self._module.graph.nodes():
            scale = node.input(1)
            if not node.is_op("QuantizeLinear") or scale is None:
                continue
            pair = _pair(node, self._target)
            value = next((named[name] for name in _names(_first(node)) if name in named), None)
            if pair is None or value is None:
                fixed.add(scale)
                continue
            root = self._placed.roots[value]
            if self._is_fixed(root, pair.format):
                fixed.add(scale)
            found.setdefault(scale, {})[root] = None
            scales.setdefault((root, pair.format), {})[scale] = None
            pairs[scale] = pair
        # One range, several scales.
        fixed.update(scale for own in scales.values() if len(own) > 1 for scale in own)
        return {s: (pairs[s], tuple(roots)) for s, roots in found.items() if s not in fixed}

    def _is_fixed(self, root: Value, format: Format) -> bool:
        """Whether the range of a value is not the plan's to say."""
        placed, maker = self._placed, root.producer
        rule = placed.nodes.get(maker) if maker is not None else None
        sources = {line.source for line in placed.lines.values()}
        gates = any(
            (found := placed.nodes.get(use.node)) is not None and found.form == "clipped-line"
            for use in root.uses
        )
        return (
            root in placed.lines
            or root in sources
            or gates
            or (rule is not None and rule.form == "clipped-line")
            or known_range(root, placed, format) is not None
        )


def _size(numbers: torch.Tensor, axes: list[int] | None = None) -> torch.Tensor:
    """The root of the mean square."""
    return numbers.detach().square().mean(axes, keepdim=axes is not None).sqrt()


@dataclass(frozen=True)
class _Pair:
    """The format of a QuantizeLinear, and the ends of its range in steps."""

    format: Format
    low: float
    high: float


def _pair(node: Node, target: Target) -> _Pair | None:
    """What a QuantizeLinear gives; None where it has no range of a tensor's own."""
    scale, zero = node.inputs[1], node.input(2)
    if zero is None or zero.dtype is None or zero.dtype.label not in FORMATS:
        return None
    if scale is None or not scale.is_constant or scale.numpy().size != 1:
        return None
    format, zero_point = FORMATS[zero.dtype.label], float(zero.numpy())
    ends = [format.qmin, format.qmax]
    for reader, _ in node.output.uses:
        # Integers of fewer bits than their type has are clipped behind it.
        for at, bound in enumerate(reader.inputs[1:3] if reader.is_op("Clip") else ()):
            ends[at] = ends[at] if bound is None else float(bound.numpy())
    low, high = ends
    bits = int(high - low).bit_length()
    if bits < format.bits:
        format = target.activation_format_of(bits)
    if target.scheme_of(format).symmetric:
        low = 2 * zero_point - high
    return _Pair(format, low - zero_point, high - zero_point)


def _first(node: Node) -> Node:
    """The QuantizeLinear of the pair that one stands behind, itself if it does not."""
    maker = node.inputs[0].producer if node.inputs[0] is not None else None
    while maker is not None and maker.is_op("DequantizeLinear", "Clip", "QuantizeLinear"):
        source = maker.inputs[0]
        node = maker if maker.is_op("QuantizeLinear") else node
        maker = None if source is None or maker is node else source.producer
    return node


def _names(node: Node) -> Iterator[str]:
    """What the value that a QuantizeLinear reads may be called: a graph's output is another one."""
    assert node.inputs[0] is not None
    yield node.inputs[0].name
    for reader, _ in node.output.uses:
        yield reader.output.name
        yield from (behind.output.name for behind, _ in reader.output.uses)
