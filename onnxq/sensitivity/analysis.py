"""Sensitivity analysis: how much noise each node's quantization adds to the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any, Literal

import numpy as np
from scipy.stats import spearmanr

from onnxq.data import Batch, Dataset
from onnxq.errors import InputError
from onnxq.ir import Graph, Node, Value
from onnxq.ir.saving import constant_bytes
from onnxq.ir.segments import Segment, cut, whole
from onnxq.ir.sizes import value_bytes
from onnxq.passes.notes import node_name
from onnxq.precision import Part, Scene, parse_precision, require_searchable
from onnxq.progress import SILENT, Progress
from onnxq.runtime import ErrorAccumulator, Session
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.parallel import in_order
from onnxq.runtime.pool import RUN_BYTES, processors
from onnxq.sensitivity.loss import PROXIES, Losses, losses
from onnxq.sensitivity.result import NodeSensitivity, Sensitivity

Method = Literal["suffix", "exhaustive"]

MAX_SAMPLES = 32
"""Samples after which the analysis stops, certain or not."""

CHUNK = 2
"""Samples that run together, where the model leaves the batch open and they are not large."""

_LARGE = 2 * RUN_BYTES
"""Bytes of all that is computed of a sample from which it runs alone."""

KEPT_BYTES = 1 << 28
"""Constants of perturbed sessions that are kept for the next samples; others are made anew."""

_AS_WRITTEN = {"session.disable_quant_qdq": "1"}
"""Otherwise onnxruntime quantizes the float weight of an operator between integers, too, with one
scale for the whole tensor."""

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
    *,
    method: Method = "suffix",
    proxy: str = "noise",
    max_samples: int | None = None,
    model_sha256: str = "",
    progress: Progress = SILENT,
) -> Sensitivity:
    """Predict what each node's quantization costs, one node at a time.

    ``suffix`` cuts the graph into a row of segments, keeps the float values at the cuts, and for
    each node and part runs only the node's own segment with the part quantized and the float
    segments behind it: no session of the whole model per node, and half of the model on average.
    It draws samples until two halves of them rank the nodes alike: the Spearman correlation of
    their rankings, stepped up to the whole (Spearman 1910, Brown 1910), reaches `CERTAIN`.
    ``exhaustive`` runs the whole model with the node quantized in all parts at once, on all
    samples: the ground truth.

    Losses of parts are means over samples. Quantization noise of different origin is close to
    uncorrelated, so losses of parts and nodes add up to that of the whole, roughly: where an output
    saturates or layers feed noise to each other they do not. So the model runs with all nodes in
    one precision, too, and `Sensitivity.scales` says by what that differs from the sum.

    Args:
        graph: The float model after its rewrites.
        data: Representative samples.
        scene: Placement, target and ranges.
        choices: Precisions to find losses for, by the name of the node.
        method: See above.
        proxy: What a loss is, see `PROXIES`.
        max_samples: Most samples to use; `MAX_SAMPLES` if None, all for ``exhaustive``.
        model_sha256: Hash to note in the result.
        progress: Told of the samples done.

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
        segments = [whole(graph)]
    else:
        groups = {
            (node, part.name): (part,)
            for node, own in nodes.items()
            for parts in own.values()
            for part in parts
        }
        # Of one batch nothing is known of reliability.
        limit, rounds = MAX_SAMPLES if max_samples is None else max_samples, (2, 1)
        segments = cut(graph, list(nodes), scene.placed.integer.values())
    inputs = [v for v in graph.inputs if v.data is None]
    most = max(limit, MAX_TOGETHER) if max_samples is None else limit
    rows = _rows(graph, inputs, next(data.batches()))
    samples = data.take(min(most, len(data))).in_parts(rows, inputs)
    progress.stage("analysing sensitivity", len(samples))
    found = {key: _Sample() for key in groups}
    precisions = dict.fromkeys(text for own in nodes.values() for text in own)
    all_of = {
        text: {n: own[text] for n, own in nodes.items() if text in own} for text in precisions
    }
    together = {text: _Together(proxy) for text in all_of}
    seen, done, reliability, is_certain = 0, 0, 0.0, False
    with ModelFiles.temporary() as files:
        sessions = _Sessions(files, scene)
        runner = _Runner(segments, [v.name for v in graph.outputs], sessions)
        for batches in _rounds(samples.batches(), *rounds):
            references = runner.start(batches)
            judge = partial(_judged, runner, proxy, batches, references)
            left = {} if is_certain else groups
            for (key, _), judged in in_order(judge, left.items(), processors()):
                for of_batch in judged:
                    found[key].add(of_batch)
            for (text, _), outputs in in_order(runner.run_together, all_of.items(), processors()):
                for batch, ours, theirs in zip(batches, references, outputs, strict=True):
                    together[text].add(batch.trim(ours), batch.trim(theirs), batch.valid)
            seen += sum(batch.valid for batch in batches)
            progress.advance(seen)
            if not is_certain:
                done, reliability = seen, _reliability(found)
                is_ranked = method == "suffix" and reliability >= CERTAIN
                is_certain = is_ranked or done >= limit
            if is_certain and all(sample.is_known for sample in together.values()):
                break
    analysed = tuple(_found(node, own, found, method) for node, own in nodes.items())
    return Sensitivity(
        *(model_sha256, proxy, method, done, reliability, analysed),
        scales=_scales(analysed, together),
    )


Key = tuple[Node, str]
"""A node, and the part or precision."""


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

    def add(self, exact: Mapping[str, Any], ours: Mapping[str, Any], valid: int) -> None:
        self._errors.add(exact, ours)
        self._sample.add(losses(self._proxy, exact, ours, valid))

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
    agreement = float(spearmanr(odd, even).statistic)
    return max(0.0, 2 * agreement / (1 + agreement)) if agreement > 0 else 0.0


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


def _judged(
    runner: _Runner,
    proxy: str,
    batches: Sequence[Batch],
    references: Sequence[Mapping[str, np.ndarray]],
    perturbation: tuple[Key, Sequence[Part]],
) -> list[Losses]:
    """The losses of each of some batches with a node perturbed."""
    outputs = runner.run(*perturbation)
    return [
        losses(proxy, batch.trim(ours), batch.trim(theirs), batch.valid)
        for batch, ours, theirs in zip(batches, references, outputs, strict=True)
    ]


def _rows(graph: Graph, inputs: Sequence[Value], batch: Batch) -> int:
    """Samples that run together."""
    if not batch.is_divisible(inputs):
        return CHUNK
    shapes = {name: array.shape for name, array in batch.rows(0, 1).feeds.items()}
    return CHUNK if sum(value_bytes(graph, shapes).values()) <= _LARGE else 1


def _rounds(batches: Iterator[Batch], first: int, later: int) -> Iterator[list[Batch]]:
    """Some batches first, then others, so many at a time."""
    size = first
    while some := list(islice(batches, size)):
        yield some
        size = later


class _Sessions:
    """Loads graphs, with and without perturbations; keeps as many of these as memory allows."""

    def __init__(self, files: ModelFiles, scene: Scene) -> None:
        self._files = files
        self._scene = scene
        self._lock = Lock()
        self._kept: dict[Hashable, Session] = {}
        self._room = KEPT_BYTES

    def plain(self, graph: Graph) -> Session:
        """A float graph's."""
        self._files.share(graph)
        return self._files.session(graph, pooled=True)

    def perturbed(
        self, graph: Graph, key: Hashable, parts: Mapping[Node, Sequence[Part]]
    ) -> Session:
        """That of a graph with some parts of nodes quantized, which a key stands for."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            changed = graph.copy()
            for node, own in parts.items():
                for part in own:
                    part.apply(changed, node, self._scene)
            session = self._session(changed)
            size = constant_bytes(changed)
            if size <= self._room:
                self._kept[key] = session
                self._room -= size
            return session

    def _session(self, graph: Graph) -> Session:
        try:
            return self._files.session(graph, config=_AS_WRITTEN, pooled=True)
        except InputError:
            # onnxruntime 1.24 loses a value when it optimizes some graphs of many pairs.
            return self._files.session(graph, config=_AS_WRITTEN, pooled=True, optimization="none")


class _Runner:
    """Runs a model on batches, a node's own segment perturbed and the float ones behind it."""

    def __init__(
        self, segments: Sequence[Segment], outputs: Sequence[str], sessions: _Sessions
    ) -> None:
        self._segments = segments
        self._outputs = outputs
        self._sessions = sessions
        self._float = [sessions.plain(segment.graph) for segment in segments]
        self._place = {
            node: place for place, segment in enumerate(segments) for node in segment.nodes
        }
        self._held: list[dict[str, np.ndarray]] = []

    def start(self, batches: Sequence[Batch]) -> list[dict[str, np.ndarray]]:
        """Take some batches, and give their float outputs."""
        self._held = [dict(batch.feeds) for batch in batches]
        for segment, session in zip(self._segments, self._float, strict=True):
            for held in self._held:
                held |= session.run(_only(held, segment.inputs))
        return [_only(held, self._outputs) for held in self._held]

    def run(self, key: Key, parts: Sequence[Part]) -> Iterator[dict[str, np.ndarray]]:
        """The outputs for each of these batches with some parts of one node quantized."""
        place = self._place[key[0]]
        segment = self._segments[place]
        perturbed = self._sessions.perturbed(segment.graph, key, {key[0]: parts})
        for before in self._held:
            results = perturbed.run(_only(before, segment.inputs))
            held = before | dict(zip(segment.outputs, results.values(), strict=True))
            behind = slice(place + 1, None)
            for later, session in zip(self._segments[behind], self._float[behind], strict=True):
                held |= session.run(_only(held, later.inputs))
            yield _only(held, self._outputs)

    def run_together(
        self, precision: tuple[str, Mapping[Node, Sequence[Part]]]
    ) -> list[dict[str, np.ndarray]]:
        """The outputs for each of these batches with the parts of a precision in all nodes."""
        text, parts = precision
        all_held = [dict(before) for before in self._held]
        for place, segment in enumerate(self._segments):
            own = {n: some for n, some in parts.items() if self._place[n] == place}
            session = self._float[place]
            if own:
                session = self._sessions.perturbed(segment.graph, (text, place), own)
            for held in all_held:
                results = session.run(_only(held, segment.inputs))
                held |= dict(zip(segment.outputs, results.values(), strict=True))
        return [_only(held, self._outputs) for held in all_held]


def _only(held: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: held[name] for name in names}
