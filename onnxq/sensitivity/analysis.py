"""Sensitivity analysis: how much noise each node's quantization adds to the model's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.stats import spearmanr

from onnxq.data import Batch, Dataset
from onnxq.errors import InputError
from onnxq.ir import Graph, Node, to_proto
from onnxq.passes.notes import node_name
from onnxq.precision import Part, Scene, parse_precision, require_searchable
from onnxq.progress import SILENT, Progress
from onnxq.runtime import Session
from onnxq.sensitivity.loss import PROXIES, Losses, losses
from onnxq.sensitivity.result import NodeSensitivity, Sensitivity
from onnxq.sensitivity.segments import Segment, cut

Method = Literal["suffix", "exhaustive"]

MAX_SAMPLES = 32
"""Samples after which the analysis stops, certain or not."""

CHUNK = 2
"""Samples that run together, where the model leaves the batch open."""

_AS_WRITTEN = {"session.disable_quant_qdq": "1"}
"""Otherwise onnxruntime quantizes the float weight of an operator between integers, too, with one
scale for the whole tensor."""

CERTAIN = 0.95
"""Reliability of the ranking at which no more samples are drawn."""


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
    threads: int = 1,
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
    uncorrelated, so losses of parts and nodes add up to that of the whole, roughly.

    Args:
        graph: The float model after its rewrites.
        data: Representative samples.
        scene: Placement, target and ranges.
        choices: Precisions to find losses for, by the name of the node.
        method: See above.
        proxy: What a loss is, see `PROXIES`.
        max_samples: Most samples to use; `MAX_SAMPLES` if None, all for ``exhaustive``.
        model_sha256: Hash to note in the result.
        threads: Threads inside one operator.
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
        runner: _Runner = _Whole(graph, scene, threads)
        limit = len(data) if max_samples is None else max_samples
    else:
        groups = {
            (node, part.name): (part,)
            for node, own in nodes.items()
            for parts in own.values()
            for part in parts
        }
        runner = _Suffix(graph, scene, list(nodes), threads)
        limit = MAX_SAMPLES if max_samples is None else max_samples
    inputs = [v for v in graph.inputs if v.data is None]
    samples = data.take(min(limit, len(data))).in_parts(CHUNK, inputs)
    progress.stage("analysing sensitivity", len(samples))
    found = {key: _Sample() for key in groups}
    done, reliability = 0, 0.0
    for batch in samples.batches():
        reference = runner.start(batch)
        for key, parts in groups.items():
            outputs = runner.run(key, parts)
            found[key].add(losses(proxy, batch.trim(reference), batch.trim(outputs), batch.valid))
        done += batch.valid
        progress.advance(done)
        reliability = _reliability(found)
        if method == "suffix" and reliability >= CERTAIN and done >= 2 * CHUNK:
            break
    return Sensitivity(
        model_sha256,
        proxy,
        method,
        done,
        reliability,
        tuple(_found(node, own, found, method) for node, own in nodes.items()),
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


class _Runner(ABC):
    """Runs the model on a batch, with and without perturbations."""

    @abstractmethod
    def start(self, batch: Batch) -> dict[str, np.ndarray]:
        """Take a batch, and give the float outputs."""

    @abstractmethod
    def run(self, key: Key, parts: Sequence[Part]) -> dict[str, np.ndarray]:
        """The outputs for the same batch with some parts of one node quantized."""


class _Whole(_Runner):
    """One session of the whole model per perturbation."""

    def __init__(self, graph: Graph, scene: Scene, threads: int) -> None:
        self._graph = graph
        self._scene = scene
        self._threads = threads
        self._names = [v.name for v in graph.outputs]
        self._float = Session(to_proto(graph), threads=threads, pooled=True)
        self._sessions: dict[Key, Session] = {}
        self._feeds: Mapping[str, np.ndarray] = {}

    def start(self, batch: Batch) -> dict[str, np.ndarray]:
        self._feeds = batch.feeds
        return self._float.run(batch.feeds)

    def run(self, key: Key, parts: Sequence[Part]) -> dict[str, np.ndarray]:
        if key not in self._sessions:
            self._sessions[key] = _perturbed(self._graph, key[0], parts, self._scene, self._threads)
        outputs = self._sessions[key].run(self._feeds)
        return dict(zip(self._names, outputs.values(), strict=True))


class _Suffix(_Runner):
    """Small sessions for the node's own segment, then the float segments behind it."""

    def __init__(self, graph: Graph, scene: Scene, nodes: Sequence[Node], threads: int) -> None:
        self._scene = scene
        self._threads = threads
        self._outputs = [v.name for v in graph.outputs]
        self._segments = cut(graph, nodes, scene.placed.integer.values())
        self._float = [segment.session(threads) for segment in self._segments]
        self._place = {
            name: place for place, segment in enumerate(self._segments) for name in segment.nodes
        }
        self._local: dict[Key, Session] = {}
        self._held: dict[str, np.ndarray] = {}

    def start(self, batch: Batch) -> dict[str, np.ndarray]:
        self._held = dict(batch.feeds)
        for segment, session in zip(self._segments, self._float, strict=True):
            self._held |= session.run(_only(self._held, segment))
        return {name: self._held[name] for name in self._outputs}

    def run(self, key: Key, parts: Sequence[Part]) -> dict[str, np.ndarray]:
        place = self._place[node_name(key[0])]
        segment = self._segments[place]
        if key not in self._local:
            self._local[key] = _perturbed(segment.graph, key[0], parts, self._scene, self._threads)
        results = self._local[key].run(_only(self._held, segment))
        held = self._held | dict(zip(segment.outputs, results.values(), strict=True))
        for later, session in zip(
            self._segments[place + 1 :], self._float[place + 1 :], strict=True
        ):
            held |= session.run(_only(held, later))
        return {name: held[name] for name in self._outputs}


def _perturbed(
    graph: Graph, node: Node, parts: Sequence[Part], scene: Scene, threads: int
) -> Session:
    changed = graph.copy()
    for part in parts:
        part.apply(changed, node, scene)
    return Session(to_proto(changed), threads=threads, config=_AS_WRITTEN, pooled=True)


def _only(held: Mapping[str, np.ndarray], segment: Segment) -> dict[str, np.ndarray]:
    return {name: held[name] for name in segment.inputs}
