"""Where models are timed and profiled; nothing is measured twice on one machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from onnxq.cost.cache import Measurements, machine
from onnxq.ir import Graph, to_proto
from onnxq.runtime import NodeTime, load_backend
from onnxq.runtime.session import serialized
from onnxq.runtime.specs import Array

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Bench:
    """A backend that measures, and what was measured before.

    Attributes:
        backend: What runs models.
        provider: What the backend is to run them on.
        threads: Threads inside one operator.
        known: What was measured before.
    """

    backend: str = "onnxruntime"
    provider: str = "cpu"
    threads: int = 1
    known: Measurements = field(default_factory=Measurements)

    @cached_property
    def here(self) -> Mapping[str, str]:
        """All about this machine that a latency depends on."""
        return machine(self.provider, self.threads, self.backend)

    def profiles(
        self,
        models: Mapping[str, Graph],
        feeds: Feeds,
        read: Callable[[str, Sequence[NodeTime]], Mapping[str, float]],
    ) -> dict[str, Mapping[str, float]]:
        """Milliseconds of the operators of whole models, run in turn, by the models' names.

        Args:
            models: The models.
            feeds: What to run them on.
            read: What a model's profile says, by the name of a node.

        Raises:
            InputError: a model cannot be run.
        """
        protos = {name: serialized(to_proto(graph)) for name, graph in models.items()}
        keys = {name: self._key("profile", feeds, [data]) for name, data in protos.items()}
        found = {name: self.known.get(key) for name, key in keys.items()}
        missing = [name for name, times in found.items() if times is None]
        if missing:
            profiles = load_backend(self.backend).profile(
                [protos[name] for name in missing],
                feeds,
                provider=self.provider,
                threads=self.threads,
            )
            for name, profile in zip(missing, profiles, strict=True):
                found[name] = times = read(name, profile)
                if times:
                    self.known.put(keys[name], times)
        return {name: times or {} for name, times in found.items()}

    def times(
        self, models: Mapping[str, Graph], feeds: Feeds, *, seconds: float
    ) -> dict[str, float]:
        """Milliseconds of whole models, run in turn, by their names.

        Args:
            models: The models.
            feeds: What to run them on.
            seconds: Time to spend on each.

        Raises:
            InputError: a model cannot be run.
        """
        protos = {name: serialized(to_proto(graph)) for name, graph in models.items()}
        key = self._key("models in turn", feeds, protos.values())
        found = self.known.get(key)
        if found is None:
            backend = load_backend(self.backend)
            sessions = [
                backend.session(data, provider=self.provider, threads=self.threads)
                for data in protos.values()
            ]
            timings = backend.time(sessions, feeds, seconds=seconds * len(sessions))
            found = {str(at): timing.p10_ms for at, timing in enumerate(timings)}
            self.known.put(key, found)
        return dict(zip(models, found.values(), strict=True))

    def operators(
        self, kind: str, models: Mapping[str, Callable[[], tuple[bytes, Feeds]]]
    ) -> dict[str, dict[str, float]]:
        """Milliseconds of every operator of some small models, by the models' signatures."""
        keys = {name: self._signature(kind, name) for name in models}
        found = {name: self.known.get(key) for name, key in keys.items()}
        missing = [name for name, times in found.items() if times is None]
        if missing:
            made = [models[name]() for name in missing]
            profiles = load_backend(self.backend).profile(
                [model for model, _ in made],
                [feeds for _, feeds in made],
                provider=self.provider,
                threads=self.threads,
            )
            for name, profile in zip(missing, profiles, strict=True):
                spent: dict[str, float] = {}
                for time in profile:
                    spent[time.name] = spent.get(time.name, 0.0) + time.ms
                self.known.put(keys[name], spent)
                found[name] = spent
        return {name: dict(times or {}) for name, times in found.items()}

    def _key(self, kind: str, feeds: Feeds, models: Iterable[bytes]) -> str:
        shapes = json.dumps({n: a.shape for n, a in sorted(feeds.items())})
        hashes = (hashlib.sha256(data).hexdigest() for data in models)
        return self._signature(kind, *hashes, shapes)

    def _signature(self, *what: str) -> str:
        return json.dumps([dict(self.here), *what], sort_keys=True)
