"""A quantized graph that trains: weights, biases and steps, computed as the model will.

What `insert-qdq` emits runs as it is, so that pairs stand where they stand in the model: only what
it stores as integers is rounded anew from floats in every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from onnxq.ir import DataType, Graph, Node, Tensor, Use, Value, attribute_value, remove_unused
from onnxq.passes.notes import node_name
from onnxq.tune.train.dtypes import to_numpy, to_torch
from onnxq.tune.train.executor import Executor
from onnxq.tune.train.norms import LiveNorm, lives
from onnxq.tune.train.operators.quantization import ends_of, offset_of, spread
from onnxq.tune.train.straight_through import (
    at_least,
    dequantize,
    quantize,
    round_through,
    scaled_gradient,
    signs,
)

_LEAST = 1e-3
"""A step never gets smaller than this part of what it was."""


_INSIDE = 0.5
"""Numbers that a method rounded otherwise than to the nearest begin in so large a part of a step:
at its border the first updates would undo what the method did."""

_SOFTEST, _SHARPEST = 0.1, 10.0
"""Slope of what stands in for signs at the beginning and the end of training (Qin et al., 2020)."""


@dataclass(frozen=True)
class Grid:
    """The integers that a weight may have: from ``low`` to ``high``, or these two alone."""

    low: int
    high: int
    is_binary: bool = False


Grids = Mapping[tuple[str, int], Grid]
"""Grids by the node that reads them, and by the slot of its weight."""


class Step(nn.Module):
    """A learned step (Esser et al., 2020): its gradient is multiplied by 1 / sqrt(N Qp).

    Attributes:
        highest: Qp, the steps from 0 to the largest number.
        count: N, numbers that share the step; of activations those of one sample, as they pass.
    """

    def __init__(self, initial: torch.Tensor, highest: int, count: int = 1) -> None:
        super().__init__()
        self.highest = highest
        self.count = count
        self._least: torch.Tensor
        self.register_buffer("_least", initial.detach() * _LEAST)

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        """The step that is used, positive whatever the parameter is."""
        positive = at_least(step, self._least)
        return scaled_gradient(positive, (self.count * self.highest) ** -0.5)


class _Counter(nn.Module):
    """Tells a step how many numbers of a sample share it."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._tell = lambda count: setattr(step, "count", count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._tell(max(x.numel() // max(x.shape[0], 1), 1) if x.ndim else 1)
        return x


class _Stored(nn.Module):
    """Floats that stand in for integers: rounded in every pass."""

    def __init__(
        self,
        numbers: torch.Tensor,
        scale: Callable[[], torch.Tensor],
        zero_point: torch.Tensor | None,
        axis: tuple[int, int],
        grid: Grid,
    ) -> None:
        super().__init__()
        self._scale, self._axis, self._grid = scale, axis, grid
        self.slope = _SOFTEST
        self._zero_point: torch.Tensor | None
        self.register_buffer("_zero_point", zero_point)
        self.numbers = nn.Parameter(numbers)
        self.compute: Callable[[], torch.Tensor] | None = None

    @property
    def floats(self) -> torch.Tensor:
        """What is rounded: the parameter, or what is computed instead."""
        return self.numbers if self.compute is None else self.compute()

    @torch.no_grad()
    def begin(self, numbers: np.ndarray) -> None:
        """Begin with other numbers where they are rounded to the same, and near them elsewhere."""
        if numbers.shape != tuple(self.numbers.shape):
            return
        before, now = self.numbers.clone(), to_torch(numbers).to(self.numbers)
        wanted = self(before)
        scale, offset = self._spread(before)
        inside = 2 - _INSIDE if self._grid.is_binary else _INSIDE
        low, high = ((wanted - offset + side * inside / 2) * scale for side in (-1, 1))
        low = low.masked_fill(wanted <= self._grid.low, -torch.inf)
        high = high.masked_fill(wanted >= self._grid.high, torch.inf)
        for wish in (torch.clamp(now, low, high), now):
            held = self.numbers.clone()
            self.numbers.copy_(wish)
            self.numbers.copy_(torch.where(self(wish) == wanted, wish, held))

    def forward(self, integers: torch.Tensor) -> torch.Tensor:
        numbers = self.floats
        scale, offset = self._spread(numbers)
        if self._grid.is_binary:
            return signs(numbers, scale, offset, self.slope)
        return quantize(numbers, scale, offset, self._grid.low, self._grid.high)

    def _spread(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        return _spread(self._scale(), self._zero_point, like, self._axis)


class _Offset(nn.Module):
    """A learned zero-point (LSQ+: Bhalgat et al., 2020), rounded in every pass.

    The paper's offset is its negative times the step, so that it is an integer in the model.
    """

    def __init__(self, initial: int, ends: tuple[int, int]) -> None:
        super().__init__()
        self.initial = initial
        self.zero = nn.Parameter(torch.tensor(float(initial)))
        self._ends = ends

    def forward(self, zero_point: torch.Tensor) -> torch.Tensor:
        return round_through(torch.clamp(self.zero, *self._ends)).reshape(zero_point.shape)


class _Function(nn.Module):
    """A function without parameters of its own."""

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._compute = compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._compute(x)


class QuantizedModule(nn.Module):
    """Trains a graph of QuantizeLinear/DequantizeLinear pairs.

    Weights and biases behind a DequantizeLinear are parameters in floats, rounded straight-through.
    The steps are parameters, too, with the gradients of LSQ; that of a bias is the product of
    those of its input and its weight. Zero-points stay, or are learned like steps. `emitted` gives
    the model, which computes what the module does in evaluation mode, in which it starts, but for
    sums that are rounded in another order.
    """

    def __init__(
        self,
        graph: Graph,
        source: Graph | None = None,
        *,
        grids: Grids | None = None,
        learn_steps: bool = True,
        learn_offsets: bool = False,
        norms: Collection[str] = (),
        trainable: Callable[[Value], bool] | None = None,
    ) -> None:
        """Take a quantized graph.

        Args:
            graph: The graph, with types inferred; it is not changed.
            source: The float graph that it was made of. Training begins with its weights where
                rounding gives the stored integers, and else with what these stand for.
            grids: Which integers weights may have; those of the type where nothing is given. What
                is stored in fewer bits behind a Cast is taken as the Cast gives it.
            learn_steps: Whether steps are trained.
            learn_offsets: Whether zero-points of activations are, too (LSQ+), where they are within
                the type: at its end, as behind a Relu, runtimes fuse what clips.
            norms: Names of convolutions and products behind which BatchNormalization lives (see
                `LiveNorm`), as far as they have a bias and a scale for each channel: see `norms`.
            trainable: Which other constants of floats are, too; none if not given.

        Raises:
            InputError: a node cannot be computed in torch.
        """
        super().__init__()
        self.graph = graph.copy()
        _widen(self.graph)
        nodes = list(self.graph.nodes())
        self._biases = [n for n in nodes if _stores(n) and _dtype_of(n) is DataType.INT32]
        for node in self._biases:
            _own_scale(node)
        pairs = [n for n in nodes if n.is_op("QuantizeLinear", "DequantizeLinear")]
        of_biases = {n.inputs[1] for n in self._biases}
        scales = dict.fromkeys(
            s for n in pairs if (s := n.inputs[1]) and s.is_constant and s not in of_biases
        )

        zeros = _own_zero_points(self.graph, scales) if learn_offsets else {}

        def trains(value: Value) -> bool:
            if value in scales:
                return learn_steps
            return value not in of_biases and trainable is not None and trainable(value)

        self.executor = Executor(self.graph, trainable=trains, folds_pairs=True)
        self._steps = {s: self._step(s) for s in scales}
        self._offsets: dict[Value, tuple[Value, _Offset]] = {}
        for scale, zero in zeros.items():
            offset = _Offset(int(zero.numpy()), ends_of(zero.dtype or DataType.UINT8))
            self._offsets[scale] = (zero, offset)
            self.executor.hook(zero, offset)
        self._stored: dict[Value, _Stored] = {}
        self._folded: dict[Value, _Function] = {}
        self._computed: dict[Value, Callable[[], torch.Tensor]] = {}
        named = {} if source is None else {n.name: n for n in source.all_nodes() if n.name}
        for node in nodes:
            if _stores(node):
                places = [(node_name(use.node), use.slot) for use in node.output.uses]
                grid = next((grids[at] for at in places if grids and at in grids), None)
                self._store(node, _likes(named, node), grid)
        self.norms = {node.name: norm for node in nodes if (norm := self._norm(node, norms))}
        self.eval()

    def forward(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs by name, as `Executor`'s."""
        return self.executor(feeds)

    def progress(self, done: float) -> None:
        """Tell what changes during training how much of it is done, from 0 to 1."""
        for norm in self.norms.values():
            norm.is_live = lives(done)
        for stored in self._stored.values():
            stored.slope = _SOFTEST * (_SHARPEST / _SOFTEST) ** done

    @property
    def steps(self) -> list[nn.Parameter]:
        """The parameters that are steps: they bear a smaller learning rate than weights."""
        held = (self.executor.constant(value) for value in self._steps)
        return [step for step in held if isinstance(step, nn.Parameter)]

    @property
    def statistics(self) -> list[torch.Tensor]:
        """What normalizations measure, which changes and is not trained."""
        return [number for norm in self.norms.values() for number in norm.statistics]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Let normalizations begin with the statistics of what is computed meanwhile."""
        for norm in self.norms.values():
            norm.begin()
        yield
        for norm in self.norms.values():
            norm.end()

    def scale(self, value: Value) -> torch.Tensor:
        """The numbers of a scale that are used."""
        if value in self._computed:
            return self._computed[value]()
        step = self._steps[value](self.executor.constant(value))
        return self._folded[value](step) if value in self._folded else step

    def offset(self, scale: Value) -> nn.Parameter | None:
        """The learned zero-point beside a scale; None if it stays."""
        return self._offsets[scale][1].zero if scale in self._offsets else None

    def moved(self, scale: Value) -> int:
        """By how much the zero-point beside a scale was changed."""
        if scale not in self._offsets:
            return 0
        zero, offset = self._offsets[scale]
        return int(offset(self.executor.constant(zero))) - offset.initial

    def numbers(self, integers: Value) -> nn.Parameter:
        """The parameter that is rounded to what the graph stores."""
        return self._stored[integers].numbers

    def floats(self, integers: Value) -> torch.Tensor:
        """What is rounded to what the graph stores; a parameter, or computed of others."""
        return self._stored[integers].floats

    def rounded(self, integers: Value) -> np.ndarray:
        """What the graph is to store, as trained."""
        with torch.no_grad():
            found = self._stored[integers](self.executor.constant(integers))
        return to_numpy(found, integers.dtype)

    def emitted(self) -> Graph:
        """The model as trained, as a graph of its own."""
        self.executor.store()
        with torch.no_grad():
            for value in (*self._steps, *self._computed):
                value.data = Tensor(to_numpy(self.scale(value), value.dtype))
            for zero, offset in self._offsets.values():
                zero.data = Tensor(to_numpy(offset(self.executor.constant(zero)), zero.dtype))
        for value in self._stored:
            value.data = Tensor(self.rounded(value))
        return self.graph.copy()

    def _step(self, scale: Value) -> Step:
        readers = [use.node for use in scale.uses]
        dtype = next(d for n in readers if (d := _dtype_of(n)) is not None)
        clips = [u.node for n in readers if n.is_op("QuantizeLinear") for u in n.output.uses]
        ends = [int(c.inputs[2].numpy()) for c in clips if c.is_op("Clip") and c.inputs[2]]
        zeros = [n.inputs[2] for n in readers if n.is_op("QuantizeLinear") and n.input(2)]
        middle = max((int(z.numpy().max()) for z in zeros if z and z.is_constant), default=0)
        highest = max(min([ends_of(dtype)[1], *ends]) - middle, 1)
        step = Step(self.executor.constant(scale), highest)
        self.executor.hook(scale, step)
        for node in readers:
            if node.is_op("QuantizeLinear"):
                source = node.inputs[0]
                assert source is not None
                self.executor.hook(source, _Counter(step), [Use(node, 0)])
        return step

    def _store(self, node: Node, likes: Sequence[np.ndarray], grid: Grid | None) -> None:
        integers, scale = node.inputs[0], node.inputs[1]
        assert integers is not None and integers.dtype is not None and scale is not None
        axis = (attribute_value(node, "axis") or 0, attribute_value(node, "block_size") or 0)
        zero = node.input(2)
        zero_point = None if zero is None else self.executor.constant(zero).detach().clone()
        of_type = Grid(*ends_of(integers.dtype))

        def step() -> torch.Tensor:
            # Of a weight without what a normalization multiplies it by.
            known = self._steps.get(scale)
            return self.scale(scale) if known is None else known(self.executor.constant(scale))

        if node in self._biases:
            grid, read = None, _read_with(node)

            def product() -> torch.Tensor:
                one, other = (self.scale(value).detach() for value in read)
                return one * other

            if all(value in self._steps for value in read):
                self._computed[scale] = product
                self.executor.hook(scale, _Function(lambda constant: product()))
        else:
            step_module = self._steps[scale]
            step_module.highest = (grid or of_type).high
            step_module.count = integers.numpy().size // max(scale.numpy().size, 1)
        # A bias is what its own scale says, though it is to be another.
        held = self.executor.constant(integers)
        own = self.executor.constant(scale).detach()
        numbers = dequantize(held, *_spread(own, zero_point, held, axis))
        stored = _Stored(numbers, step, zero_point, axis, grid or of_type)
        for like in likes:
            stored.begin(like)
        self._stored[integers] = stored
        self.executor.hook(integers, stored)

    def _norm(self, node: Node, wanted: Collection[str]) -> LiveNorm | None:
        """Let a normalization live behind a node, if that is wanted and can be."""
        weight, bias = (None if v is None else v.producer for v in (node.input(1), node.input(2)))
        if node.name not in wanted or weight is None or bias not in self._biases:
            return None
        assert bias is not None
        integers, scale, added = weight.inputs[0], weight.inputs[1], bias.inputs[0]
        if integers not in self._stored or len(weight.output.uses) > 1 or bias.output.uses[1:]:
            return None
        if scale is None or added is None or scale.uses[1:]:
            return None
        if scale.numpy().size != added.numpy().size:
            return None
        stored = self._stored[added]
        norm = LiveNorm(stored.numbers.detach())

        def addend() -> torch.Tensor:
            return torch.zeros_like(stored.numbers) if norm.normalizes else norm.bias

        def folded(step: torch.Tensor) -> torch.Tensor:
            return step if norm.normalizes else step * norm.factor

        stored.compute = addend
        self._folded[scale] = _Function(folded)
        self.executor.hook(scale, self._folded[scale])
        self.executor.hook(node.output, norm)
        return norm


def _spread(
    scale: torch.Tensor, zero_point: torch.Tensor | None, like: torch.Tensor, axis: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """A scale and a zero-point as they go with every element of a tensor."""
    return spread(scale, like, *axis), offset_of(zero_point, like, scale.dtype, *axis)


def _widen(graph: Graph) -> None:
    """Let nodes read stored integers in the type that a Cast makes of them."""
    for node in list(graph.nodes()):
        source = node.input(0)
        readers = [use.node for value in node.outputs if value for use in value.uses]
        if (
            node.is_op("Cast")
            and source is not None
            and source.is_constant
            and all(reader.is_op("DequantizeLinear") for reader in readers)
        ):
            dtype = node.output.dtype
            assert dtype is not None
            numbers = source.numpy().astype(dtype.numpy)
            graph.replace_uses(node.output, graph.constant(numbers, source.name))
            remove_unused(graph, [node])


def _stores(node: Node) -> bool:
    """Whether a node reads integers that the model holds."""
    source = node.input(0)
    return node.is_op("DequantizeLinear") and source is not None and source.is_constant


def _dtype_of(node: Node) -> DataType | None:
    """The type of a pair's integers."""
    zero_point = node.input(2)
    integers = node.inputs[0] if node.is_op("DequantizeLinear") else node.outputs[0]
    found = integers if zero_point is None else zero_point
    return None if found is None else found.dtype


def _own_scale(node: Node) -> None:
    """Give a node a scale that nothing else reads, though numbers may be equal."""
    scale = node.inputs[1]
    assert scale is not None and scale.data is not None
    if len(scale.uses) > 1:
        node.set_input(1, node.graph.constant(scale.data, scale.name))


def _own_zero_points(graph: Graph, scales: Iterable[Value]) -> dict[Value, Value]:
    """Zero-points of their own for scales of activations that can have another one, by scale."""
    found = {}
    for scale in scales:
        readers = [use.node for use in scale.uses]
        zeros = {node.input(2) for node in readers}
        zero = zeros.pop() if len(zeros) == 1 else None
        quantizes = any(node.is_op("QuantizeLinear") for node in readers)
        if zero is None or zero.dtype is None or not quantizes or not zero.is_constant:
            continue
        low, high = ends_of(zero.dtype)
        if zero.numpy().size == 1 and low >= 0 and low < int(zero.numpy()) < high:
            assert zero.data is not None
            found[scale] = graph.constant(zero.data, zero.name)
            for node in readers:
                node.set_input(2, found[scale])
    return found


def _read_with(bias: Node) -> list[Value]:
    """The scales of the input and the weight that a bias is added to the product of."""
    reader = bias.output.uses[0].node
    pairs = [v.producer for v in reader.inputs[:2] if v is not None]
    return [s for p in pairs if p is not None and (s := p.input(1)) is not None]


def _likes(named: Mapping[str, Node], node: Node) -> list[np.ndarray]:
    """What a float graph (its nodes, by name) reads where the quantized one reads a node."""
    pairs = ((named.get(reader.name), slot) for reader, slot in node.output.uses)
    found = (None if reader is None else reader.input(slot) for reader, slot in pairs)
    return [np.array(v.numpy()) for v in found if v is not None and v.is_constant]
