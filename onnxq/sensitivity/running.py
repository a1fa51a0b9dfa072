"""Running a model whose nodes are quantized one at a time, segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import chain
from threading import Lock

import numpy as np

from onnxq.data import Batch
from onnxq.errors import InputError
from onnxq.ir import Graph, Node
from onnxq.ir.saving import constant_bytes
from onnxq.ir.segments import Segment
from onnxq.precision import Part, Scene
from onnxq.runtime import Session
from onnxq.runtime.files import ModelFiles

KEPT_BYTES = 1 << 28
"""Constants of perturbed sessions that are kept for the next samples; others are made anew."""

STATIONS = 16
"""Cuts at which what runs as far as there is compared; more of them save less than they cost."""

_AS_WRITTEN = {"session.disable_quant_qdq": "1"}
"""Otherwise onnxruntime quantizes the float weight of an operator between integers, too, with one
scale for the whole tensor."""

Key = tuple[Node, str]
"""A node, and the part of it or, where all are perturbed at once, the precision."""

Outputs = dict[str, np.ndarray]


class Sessions:
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

    def perturbed(self, graph: Graph, key: Key, parts: Sequence[Part]) -> Session:
        """That of a graph with some parts of a node quantized, which a key stands for."""

        def changed() -> Graph:
            made = graph.copy()
            for part in parts:
                part.apply(made, key[0], self._scene)
            return made

        return self._get(key, changed, _AS_WRITTEN)

    def whole(self, graph: Graph, precision: str) -> Session:
        """That of the model with all nodes in a precision, as it would be delivered."""
        return self._get(precision, lambda: graph, {})

    def _get(self, key: Hashable, make: Callable[[], Graph], config: Mapping[str, str]) -> Session:
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            graph = make()
            session = self._session(graph, config)
            size = constant_bytes(graph)
            if size <= self._room:
                self._kept[key] = session
                self._room -= size
            return session

    def _session(self, graph: Graph, config: Mapping[str, str]) -> Session:
        try:
            return self._files.session(graph, config=config, pooled=True)
        except InputError:
            # onnxruntime 1.24 loses a value when it optimizes some graphs of many pairs.
            return self._files.session(graph, config=config, pooled=True, optimization="none")


class Runner:
    """Runs a model on batches, a node's own segment perturbed and the float ones behind it."""

    def __init__(
        self, segments: Sequence[Segment], outputs: Sequence[str], sessions: Sessions
    ) -> None:
        self._segments = segments
        self._outputs = outputs
        self._sessions = sessions
        self._float = [sessions.plain(segment.graph) for segment in segments]
        self._place = {
            node: place for place, segment in enumerate(segments) for node in segment.nodes
        }
        # Rounded up, so that there are no more stations.
        self._each = -(-len(segments) // STATIONS)
        self._held: list[Outputs] = []

    def start(self, batches: Sequence[Batch]) -> list[Outputs]:
        """Take some batches, and give their float outputs."""
        self._held = [self._through(batch) for batch in batches]
        return [_only(held, self._outputs) for held in self._held]

    def outputs(self, batch: Batch) -> Outputs:
        """The float outputs for a batch."""
        return _only(self._through(batch), self._outputs)

    def _through(self, batch: Batch) -> Outputs:
        """What segments read and give for a batch."""
        held = dict(batch.feeds)
        for segment, session in zip(self._segments, self._float, strict=True):
            held |= session.run(_only(held, segment.inputs))
        return held

    def run(self, key: Key, parts: Sequence[Part]) -> Iterator[Outputs]:
        """The outputs for each of these batches with some parts of one node quantized."""
        for _, held in self._perturbed(key, parts, len(self._segments)):
            yield _only(held, self._outputs)

    def run_to_station(self, key: Key, parts: Sequence[Part]) -> Iterator[tuple[Outputs, Outputs]]:
        """The same of all that a node changes and crosses the next station, float values first."""
        start = self.station(key) * self._each
        stop = min(start + self._each, len(self._segments))
        read = {*self._outputs, *chain(*(s.inputs for s in self._segments[stop:]))}
        made = [n for s in self._segments[start:stop] for n in s.outputs if n in read]
        for before, held in self._perturbed(key, parts, stop):
            yield _only(before, made), _only(held, made)

    def station(self, key: Key) -> int:
        """Number of the next station behind a node."""
        return self._place[key[0]] // self._each

    def _perturbed(
        self, key: Key, parts: Sequence[Part], stop: int
    ) -> Iterator[tuple[Outputs, Outputs]]:
        """For each batch the float values, and those of a run up to the segment before ``stop``."""
        place = self._place[key[0]]
        segment = self._segments[place]
        perturbed = self._sessions.perturbed(segment.graph, key, parts)
        behind = slice(place + 1, stop)
        for before in self._held:
            results = perturbed.run(_only(before, segment.inputs))
            held = before | dict(zip(segment.outputs, results.values(), strict=True))
            for later, session in zip(self._segments[behind], self._float[behind], strict=True):
                held |= session.run(_only(held, later.inputs))
            yield before, held

    def whole(self, precision: str, graph: Graph) -> Callable[[Batch], Outputs]:
        """What gives a batch's outputs of the model with all nodes in a precision."""
        session = self._sessions.whole(graph, precision)
        names = [spec.name for spec in session.inputs]
        return lambda batch: session.run(_only(batch.feeds, names))


def _only(held: Mapping[str, np.ndarray], names: Sequence[str]) -> Outputs:
    return {name: held[name] for name in names}
