"""Sensitivity analysis: how much noise each node's quantization adds to the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxq.data import Batch, Dataset
from onnxq.data.shared import shared
from onnxq.errors import InputError
from onnxq.ir import Graph, Node, Value
from onnxq.ir.saving import constant_bytes
from onnxq.ir.sizes import value_bytes
from onnxq.passes.notes import node_name
from onnxq.precision import Part, Scene, parse_precision, require_searchable
from onnxq.progress import SILENT, Progress
from onnxq.runtime import ErrorAccumulator
from onnxq.runtime.executor import IN_PROCESS, Executor
from onnxq.runtime.pool import RUN_BYTES
from onnxq.runtime.specs import Array
from onnxq.sensitivity.asking import Asked, Asking
from onnxq.sensitivity.loss import PROXIES, Losses
from onnxq.sensitivity.perturbed import Perturbed
from onnxq.sensitivity.result import NodeSensitivity, Sensitivity
from onnxq.sensitivity.running import STATIONS, Key
from onnxq.time_budget import TimeBudget, Untried

Method = Literal["suffix", "exhaustive"]

MAX_SAMPLES = 32
"""Samples after which the analysis stops, certain or not."""

CHUNK = 2
"""Samples that run together, where the model leaves the batch open and they are not large."""

_LARGE = 2 * RUN_BYTES
"""Bytes of all that is computed of a sample from which it runs alone."""

EXACT_BYTES = 1 << 36
"""Values and constants of all perturbed runs of one sample up to which each runs to the end."""

FEWEST_EXACT = 3
"""Perturbations that run to the end for each station, however large the model."""

SEGMENT_BYTES = 8 << 20
"""Constants of a segment where most perturbations run no farther than to the next station: that is
what making a session for each takes."""

MAX_SEGMENTS = 4 * STATIONS
"""More segments save less than their calls cost."""

CERTAIN = 0.95
"""Reliability of the ranking at which no more samples are drawn."""

MAX_TOGETHER = 128
"""Samples after which all nodes are no longer quantized together, known well or not: that costs one
run a precision, and a few samples of a saturated output may have most of the noise."""

KNOWN = 0.2
"""Standard error of the loss of all nodes, relative to it, at which it is known well enough."""

_FEWEST_CHUNKS = 4
"""Chunks without which nothing is known of that error."""


def analyse(
    graph: Graph,
    data: Dataset,
    scene: Scene,
    choices: Mapping[str, Sequence[str]],
    whole: Callable[[str], Graph],
    *,
    method: Method = "suffix",
    proxy: str = "noise",
    max_samples: int | None = None,
    model_sha256: str = "",
    progress: Progress = SILENT,
    time: TimeBudget | None = None,
    executor: Executor = IN_PROCESS,
) -> Sensitivity:
    """Predict what each node's quantization costs, one node at a time.

    ``suffix`` cuts the graph into a row of segments, keeps the float values at the cuts, and for
    each node and part runs only the node's own segment with the part quantized and the float
    segments behind it: no session of the whole model per node, and half of the model on average.
    Of a large model (`EXACT_BYTES`) only a few run that far, and the losses of the others are
    estimated from how far they are off at the next of `STATIONS` cuts, see `Perturbed`.
    It draws samples until two halves of them rank the nodes alike: the Spearman correlation of
    their rankings, stepped up to the whole (Spearman 1910, Brown 1910), reaches `CERTAIN`.
    ``exhaustive`` runs the whole model with the node quantized in all parts at once, on all
    samples: the ground truth.

    Losses of parts are means over samples. Quantization noise of different origin is close to
    uncorrelated, so losses of parts and nodes add up to that of the whole, roughly: where an output
    saturates, layers feed noise to each other, or two roundings are one in the end, they do not.
    So the models that have all nodes in one precision run, too, and `Sensitivity.scales` says by
    what their loss differs from the sum.

    Args:
        graph: The float model after its rewrites.
        data: Representative samples.
        scene: Placement, target and ranges.
        choices: Precisions to find losses for, by the name of the node.
        whole: Makes the model in which all nodes that can have a precision do; a dataclass where
            other processes call it, too.
        method: See above.
        proxy: What a loss is, see `PROXIES`.
        max_samples: Most samples to use; `MAX_SAMPLES` if None, all for ``exhaustive``.
        model_sha256: Hash to note in the result.
        progress: Told of the samples done.
        time: After which no more samples are drawn; unlimited if None.
        executor: Where perturbed models run.

    Raises:
        InputError: an unknown precision or proxy, or onnxruntime cannot run the model on the data.
    """
    require_searchable(list(dict.fromkeys(p for own in choices.values() for p in own)))
    if proxy not in PROXIES:
        raise InputError(f"there is no proxy '{proxy}'; available: {', '.join(PROXIES)}")
    nodes = _parts(graph, scene, choices)
    if method == "exhaustive":
        groups = {
            (node, text): tuple(parts) for node, own in nodes.items() for text, parts in own.items()
        }
        limit, rounds = len(data) if max_samples is None else max_samples, (8, 8)
    else:
        groups = {
            (node, part.name): (part,)
            for node, own in nodes.items()
            for parts in own.values()
            for part in parts
        }
        # Of one batch nothing is known of reliability.
        limit, rounds = MAX_SAMPLES if max_samples is None else max_samples, (2, 1)
    inputs = [v for v in graph.inputs if v.data is None]
    most = max(limit, MAX_TOGETHER) if max_samples is None else limit
    rows, taken = _rows(graph, inputs, next(data.batches()))
    samples = data.take(min(most, len(data))).in_parts(rows, inputs)
    constants = constant_bytes(graph)
    affordable = EXACT_BYTES // max(1, taken + constants)
    if method == "exhaustive":
        segments, through = None, None
    elif len(groups) <= affordable:
        segments, through = STATIONS, None
    else:
        segments = max(STATIONS, min(MAX_SEGMENTS, constants // SEGMENT_BYTES))
        through = max(FEWEST_EXACT, affordable // STATIONS)
    progress.stage("analysing sensitivity", len(samples))
    found = {key: _Sample() for key in groups}
    precisions = tuple(dict.fromkeys(text for own in nodes.values() for text in own))
    together = {text: _Together(proxy) for text in precisions}
    seen, done, reliability, is_certain = 0, 0, 0.0, False
    untried: tuple[Untried, ...] = ()
    if executor.folder is not None:
        samples = shared(samples, executor.folder)
    work = Asking(graph, scene, samples, groups, precisions, whole, proxy, segments)
    with executor.open(work) as do:
        perturbed = Perturbed(through)
        asked = Asked(do, [*groups], precisions, _FEWEST_CHUNKS)
        start = stop = 0
        while groups and seen < len(samples):
            start, stop = stop, stop + rounds[bool(stop)]
            asked.turn_to(start, stop)
            for key, judged in () if is_certain else perturbed.losses([*groups], asked):
                for of_batch in judged:
                    found[key].add(of_batch)
            for text, answers in asked.together():
                for answer in answers:
                    together[text].add(*answer)
            seen += sum(asked.valid)
            progress.advance(seen)
            if not is_certain:
                done, reliability = seen, _reliability(found)
                is_ranked = method == "suffix" and reliability >= CERTAIN
                is_certain = is_ranked or done >= limit
            if is_certain and all(sample.is_known for sample in together.values()):
                break
            if time is not None and time.is_over() and seen < len(samples):
                untried = (Untried(f"sensitivity of more than {seen} samples"),)
                break
    analysed = tuple(_found(node, own, found, method) for node, own in nodes.items())
    return Sensitivity(
        *(model_sha256, proxy, method, done, reliability, analysed),
        scales=_scales(analysed, together),
        untried=untried,
    )


@dataclass
class _Sample:
    """Losses of one perturbation, over the samples seen so far."""

    chunks: list[float] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)

    def add(self, found: Losses) -> None:
        self.chunks.append(float(found.mean()))
        self.weights.append(len(found))

    def mean(self) -> float:
        return float(np.average(self.chunks, weights=self.weights))


class _Together:
    """Loss of all nodes in one precision, over the samples seen so far.

    That of the proxy ``noise`` is what verification measures: that of the worst output, with the
    powers of all samples added up.
    """

    def __init__(self, proxy: str) -> None:
        self._proxy = proxy
        self._errors = ErrorAccumulator()
        self._sample = _Sample()

    def add(self, errors: ErrorAccumulator, found: Losses) -> None:
        self._errors.merge(errors)
        self._sample.add(found)

    @property
    def is_known(self) -> bool:
        """Whether more samples would hardly change it."""
        seen = np.array(self._sample.chunks)
        if len(seen) < _FEWEST_CHUNKS:
            return False
        return bool(seen.std(ddof=1) / math.sqrt(len(seen)) <= KNOWN * seen.mean())

    def loss(self) -> float:
        worst = min(error.sqnr_db for error in self._errors.result())
        is_measured = self._proxy == "noise" and worst > -math.inf
        return 10 ** (-worst / 10) if is_measured else self._sample.mean()


_Parts = Mapping[str, Sequence[Part]]
"""A node's sources of noise, by the precision that brings them."""


def _parts(graph: Graph, scene: Scene, choices: Mapping[str, Sequence[str]]) -> dict[Node, _Parts]:
    """The nodes whose quantization adds noise, and the parts of it."""
    found: dict[Node, _Parts] = {}
    for node in graph.all_nodes():
        own = {
            text: [part for part in parse_precision(text).parts() if part.fits(node, scene)]
            for text in choices.get(node_name(node), ())
        }
        if any(own.values()):
            found[node] = own
    return found


def _reliability(found: Mapping[Key, _Sample]) -> float:
    """Agreement of the rankings by every other chunk, stepped up to all chunks."""
    chunks = min((len(sample.chunks) for sample in found.values()), default=0)
    if chunks < 2 or len(found) < 2:
        return 1.0 if len(found) < 2 else 0.0
    # Logarithms, because one sample with a large loss would hide what all others agree on.
    seen = np.log(np.array([s.chunks[:chunks] for s in found.values()]) + 1e-300)
    odd, even = seen[:, 0::2].mean(axis=1), seen[:, 1::2].mean(axis=1)
    if np.ptp(odd) == 0 or np.ptp(even) == 0:
        return 1.0
    agreement = _rank_correlation(odd, even)
    return max(0.0, 2 * agreement / (1 + agreement)) if agreement > 0 else 0.0


def _rank_correlation(first: Array, second: Array) -> float:
    """Spearman's, NaN where a number is; loading scipy.stats takes longer than small analyses."""
    if np.isnan([first, second]).any():
        return math.nan
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Array) -> Array:
    """Places in order, equal values with the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


def _found(
    node: Node, own: _Parts, found: Mapping[Key, _Sample], method: Method
) -> NodeSensitivity:
    losses = {part: sample.mean() for (at, part), sample in found.items() if at is node}
    precisions = {
        text: (text,) if method == "exhaustive" else tuple(part.name for part in parts)
        for text, parts in own.items()
    }
    return NodeSensitivity(node_name(node), node.op_type, losses, precisions)


def _scales(
    nodes: Sequence[NodeSensitivity], together: Mapping[str, _Together]
) -> dict[str, float]:
    """Loss of all nodes together over the sum of their losses, where both can be told."""
    sums = {text: sum(node.loss(text) or 0.0 for node in nodes) for text in together}
    whole = {text: sample.loss() for text, sample in together.items()}
    return {t: whole[t] / sums[t] for t in together if sums[t] > 0 and math.isfinite(whole[t])}


def _rows(graph: Graph, inputs: Sequence[Value], batch: Batch) -> tuple[int, int]:
    """Samples that run together, and the bytes of all values of one, or of a fixed batch."""
    is_open = batch.is_divisible(inputs)
    feeds = (batch.rows(0, 1) if is_open else batch).feeds
    taken = sum(value_bytes(graph, {name: a.shape for name, a in feeds.items()}).values())
    return 1 if is_open and taken > _LARGE else CHUNK, taken
