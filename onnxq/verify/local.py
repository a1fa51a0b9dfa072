"""The error that each layer of a candidate adds by itself, whatever came before it.

The candidate is cut wherever it has a value that the float model has, too: what reads such a value
reads the float model's, as that is, not behind the pair that quantizes it. So what lies between two
cuts computes from the right inputs, and what it gives is held against the float model's value. A
pair of QuantizeLinear and DequantizeLinear is held against what goes into it. A fault shows where
it is, and nowhere behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.data import Dataset
from onnxq.ir import DataType, Graph, Node, Value
from onnxq.ir.copying import reads
from onnxq.ir.sizes import value_bytes
from onnxq.passes.notes import node_name
from onnxq.runtime import ErrorAccumulator
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import RUN_BYTES, at_a_time, give_back
from onnxq.runtime.specs import Array
from onnxq.verify.blame import doubtful
from onnxq.verify.harm import Kept, Wrong, first_harmful
from onnxq.verify.places import Place, cut_apart, places_of
from onnxq.verify.precision import operators
from onnxq.verify.result import JumpFacts

MARGIN_DB = 10.0
"""By how much more than its precision explains a layer errs where the error is said to jump."""

_MOST_CUT, _LEAST_CUT_DB = 4.0, 3.0
"""The same of a range: noise of what it cuts off, over that of rounding, and dB that this costs."""

_NEGLIGIBLE_DB = 50.0
"""A local SQNR that is nowhere called a jump."""

_GROUP = RUN_BYTES // 4
"""Bytes of one sample's values that are looked at at a time."""

Show = Callable[[Sequence[str], Dataset], Kept]

_DB_PER_BIT = 20 * math.log10(2)
_LEFT_OUT_DB = 13.0
"""What rounded weights are short of 6.02 dB a bit: 8 bits leave 35 dB at least."""


@dataclass(frozen=True)
class LocalError:
    """The error of one layer on the float model's inputs, see `LayerFacts`."""

    local_db: float
    local_cosine: float
    expected_db: float
    worst_channel: int | None
    worst_channel_db: float | None
    saturation: float | None


class _Found:
    """What was seen at one place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.errors = ErrorAccumulator()
        self.noise: Array = np.zeros(0)
        self.signal: Array = np.zeros(0)
        self.low = self.high = 0.0
        self.count = self.cut_off = 0
        self.cut_noise = 0.0
        self.at_run_time = {name: [0.0, 0.0] for name in place.at_run_time}

    def add_quantized(self, name: str, values: Array) -> None:
        """Note what rounding a value to 8 bits over its range leaves, and how large it is."""
        step = (max(0.0, float(values.max())) - min(0.0, float(values.min()))) / 255
        sums = self.at_run_time[name]
        sums[0] += float(np.square(values, dtype=np.float64).sum())
        sums[1] += values.size * step**2 / 12

    def add(self, wanted: Array, given: Array) -> None:
        # Channels that were added hold nothing.
        given = given[tuple(map(slice, wanted.shape))]
        self.errors.add({"": wanted}, {"": given})
        if given.shape != wanted.shape or not wanted.size:
            return
        self.low = min(self.low, float(wanted.min()))
        self.high = max(self.high, float(wanted.max()))
        self.count += wanted.size
        if self.place.grid is not None:
            cut = self.place.grid.cuts(wanted)
            self.cut_off += int(cut.sum())
            self.cut_noise += float(np.square(wanted[cut] - given[cut], dtype=np.float64).sum())
        if wanted.ndim > 1:
            axes = tuple(a for a in range(wanted.ndim) if a != self.place.axis % wanted.ndim)
            ours, theirs = wanted.astype(np.float64), given.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                noise, signal = np.square(ours - theirs).sum(axes), np.square(ours).sum(axes)
            if not self.noise.size:
                self.noise, self.signal = np.zeros_like(noise), np.zeros_like(signal)
            if self.noise.shape == noise.shape:
                self.noise, self.signal = self.noise + noise, self.signal + signal

    def result(self, pairs: Mapping[str, LocalError]) -> LocalError:
        (error,) = self.errors.result()
        channel = int(np.nanargmax(self.noise)) if np.isfinite(self.noise).any() else None
        by_channel = None
        if channel is not None:
            by_channel = _decibels(float(self.signal[channel]), float(self.noise[channel]))
        is_cut = self.place.grid is not None and self.count
        return LocalError(
            error.sqnr_db,
            error.cosine,
            self._expected(pairs),
            channel,
            by_channel,
            self.cut_off / self.count if is_cut else None,
        )

    def is_explained(self, error: LocalError) -> bool:
        """Whether the precision explains the error.

        Of a range that was chosen well, what is cut off makes no more noise than rounding does.
        """
        lost = error.expected_db - error.local_db
        rounding = float(self.noise.sum()) - self.cut_noise
        is_cut = self.cut_noise > _MOST_CUT * rounding and lost > _LEAST_CUT_DB
        return (lost <= MARGIN_DB and not is_cut) or error.local_db >= _NEGLIGIBLE_DB

    def _expected(self, pairs: Mapping[str, LocalError]) -> float:
        """The SQNR that the precision explains.

        Rounding to a grid of so many bits over the whole range of what was seen leaves a noise of
        step^2 / 12; in a computation its weights, and the pairs within, which have been judged.
        """
        place = self.place
        if not place.is_pair:
            within = [pairs[name].local_db for name in place.pairs if name in pairs]
            within += [_decibels(*sums) for sums in self.at_run_time.values()]
            weights = _DB_PER_BIT * place.bits - _LEFT_OUT_DB - 10 * math.log10(place.depth)
            return min([weights, *within])
        low, high = self.low, self.high
        if place.grid is not None and place.grid.is_centred:
            high = max(high, -low)
            low = -high
        step = (high - low) / (2**place.bits - 1)
        return _decibels(float(self.signal.sum()), self.count * step**2 / 12)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    if signal == 0.0 or not math.isfinite(noise):
        return -math.inf
    return 10.0 * math.log10(signal / noise)


def local_errors(
    reference: Graph,
    candidate: Graph,
    precisions: Mapping[str, str],
    shared: Collection[str],
    data: Dataset,
    show: Show,
    files: ModelFiles,
    *,
    is_whole: bool,
) -> tuple[dict[str, LocalError], JumpFacts | None]:
    """The local error of the candidate's layers by name, and the first that is at fault.

    That is one whose error its precision does not explain, and which harms the outputs: ranges may
    be chosen so that they cut off what does not matter. Layers of bodies are not cut out, nor is
    what lies between two layers measured where none of its values has the name of one of the float
    model's; what ends there is blamed on its last product.

    Args:
        reference: The float model.
        candidate: The model.
        precisions: Precision of each layer, by its name.
        shared: Names of values that both have.
        data: Samples.
        show: Runs the float model and gives what tells its values.
        files: Where to put parts of the candidate.
        is_whole: Whether the candidate may run as a whole; without it the first layer that is not
            explained is named.
    """
    split, fed = cut_apart(candidate, shared)
    places = places_of(split, shared, precisions)
    if not places:
        return {}, None
    sizes = value_bytes(candidate, least_shapes(candidate, data))
    parts = list(_parts(split, places, sizes))
    largest = max(sum(map(_bytes_of(sizes), members)) for _, members in parts)
    inputs = [v for v in candidate.inputs if v.data is None]
    some = data.in_parts(max(1, RUN_BYTES // max(1, largest)), inputs)
    ends = [v.name for v in reference.outputs if v.dtype is DataType.FLOAT]
    kept = show([*{*fed.values(), *(p.wanted for p in places if not p.is_pair), *ends}], some)

    def right(number: int, name: str) -> Array:
        return _as_wide(kept(number, name), candidate.values[name])

    found = _measured(parts, fed, some, kept, right, files)
    by_layer, suspects = _judged(places, found)
    layers = dict[str, list[tuple[Place, LocalError]]]()
    for suspect in suspects:
        layers.setdefault(suspect[0].layer, []).append(suspect)
    first: int | None = 0 if suspects else None
    if suspects and is_whole:
        wrong = [
            [Wrong(p.given, p.wanted, p.is_pair, p.step) for p, _ in layer]
            for layer in layers.values()
        ]
        first = first_harmful(candidate, wrong, ends, some, right, files)
    jump = None if first is None else _jump(*[*layers.values()][first][0])
    if jump is not None and jump.others:
        jump = _blamed(jump, {name: node for node, name in operators(split)}, reference)
    return by_layer, jump


def _measured(
    parts: Sequence[tuple[Graph, Sequence[Place]]],
    fed: Mapping[str, str],
    data: Dataset,
    kept: Kept,
    right: Kept,
    files: ModelFiles,
) -> dict[Place, _Found]:
    """What is seen at places of a candidate's parts, which are fed the float model's values."""
    found = {place: _Found(place) for _, members in parts for place in members}
    for part, members in parts:
        names = [value.name for value in part.inputs if value.data is None]
        session = files.session(part, optimization="none", pooled=True)
        for number, batch in enumerate(data.batches()):
            feeds = {n: right(number, fed[n]) if n in fed else batch.feeds[n] for n in names}
            # In a branch that is not taken nothing is computed.
            if any(array.size == 0 for array in feeds.values()):
                continue
            made = {**feeds, **batch.feeds, **session.run(feeds)}
            for place in members:
                for name in place.at_run_time:
                    found[place].add_quantized(name, made[name])
                ours = made[place.wanted] if place.is_pair else kept(number, place.wanted)
                pair = batch.trim({"wanted": ours, "given": made[place.given]})
                found[place].add(pair["wanted"], pair["given"])
        del session
        give_back()
    return found


def _blamed(jump: JumpFacts, nodes: Mapping[str, Node], reference: Graph) -> JumpFacts:
    """The same of another layer in front, if that is where stored numbers are wrong."""
    able = [nodes[name] for name in (*jump.others, jump.node)]
    node = doubtful(able, reference)
    if node is None:
        return jump
    others = tuple(node_name(other) for other in able if other is not node)
    return replace(jump, node=node_name(node), op_type=node.op_type, others=others)


def _judged(
    places: Sequence[Place], found: Mapping[Place, _Found]
) -> tuple[dict[str, LocalError], list[tuple[Place, LocalError]]]:
    """The worst error of each layer, and the places that their precision does not explain."""
    results: dict[str, LocalError] = {}
    by_layer: dict[str, LocalError] = {}
    suspects: list[tuple[Place, LocalError]] = []
    for place in places:
        if not found[place].errors.result():
            continue
        error = found[place].result(results)
        if place.is_pair:
            results[place.given] = error
        before = by_layer.get(place.layer)
        if before is None or error.local_db < before.local_db:
            by_layer[place.layer] = error
        if not found[place].is_explained(error):
            suspects.append((place, error))
    return by_layer, suspects


def _jump(place: Place, error: LocalError) -> JumpFacts:
    return JumpFacts(
        place.layer,
        place.op_type,
        place.what,
        error.local_db,
        error.expected_db,
        error.saturation,
        tuple(name for name in place.products if name != place.layer),
    )


def _parts(
    split: Graph, places: Sequence[Place], sizes: Mapping[str, int]
) -> Iterator[tuple[Graph, list[Place]]]:
    """Parts of the cut candidate with their places.

    No part has more weights or values than memory is meant to hold at a time, if possible.
    """
    at = {place.given: number for number, place in enumerate(places)}
    weights, seen, held = [0] * len(places), set[Value](), 0
    for node in split.nodes():
        for value in reads(node):
            if value.is_constant and value.data is not None and value not in seen:
                seen.add(value)
                held += value.data.nbytes
        for made in node.outputs:
            if made is not None and made.name in at:
                weights[at[made.name]] += held
                held = 0
    taken = _bytes_of(sizes)
    costs = {
        n: taken(place) + held for n, (place, held) in enumerate(zip(places, weights, strict=True))
    }
    for group in at_a_time(costs, _GROUP):
        members = [places[number] for number in group]
        outputs = dict.fromkeys(name for place in members for name in place.shown)
        ends = [split.values[n] for n in outputs if split.values[n].producer is not None]
        yield split.extract([], ends), members


def _bytes_of(sizes: Mapping[str, int]) -> Callable[[Place], int]:
    """What tells bytes of one sample's values at a place; unknown ones are as the largest."""
    largest = max(sizes.values(), default=0)
    return lambda place: sizes.get(place.given, largest) + sizes.get(place.wanted, largest)


def least_shapes(graph: Graph, data: Dataset) -> dict[str, tuple[int, ...]]:
    """Shapes of what a model is fed at least: one sample, or one batch where that is fixed."""
    first = next(data.batches())
    inputs = [v for v in graph.inputs if v.data is None]
    least = first.rows(0, 1) if first.is_divisible(inputs) else first
    return {name: array.shape for name, array in least.feeds.items()}


def _as_wide(array: Array, value: Value) -> Array:
    """The float model's value with the channels that were added to the candidate's."""
    shape = value.shape
    if shape is None or len(shape) != array.ndim:
        return array
    more = [
        (0, max(0, dim - size) if axis and isinstance(dim, int) else 0)
        for axis, (dim, size) in enumerate(zip(shape, array.shape, strict=True))
    ]
    return np.pad(array, more) if any(extra for _, extra in more) else array
