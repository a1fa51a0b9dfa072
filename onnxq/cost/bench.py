"""Where models are timed and profiled; nothing is measured twice on one machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from onnxq.cost.cache import Measurements, machine
from onnxq.ir import Graph
from onnxq.ir.saving import constant_bytes, fingerprint
from onnxq.runtime import NodeTime, load_backend
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import MODELS_BYTES, at_a_time
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

        As many models as fit into memory take turns.

        Args:
            models: The models.
            feeds: What to run them on.
            read: What a model's profile says, by the name of a node.

        Raises:
            InputError: a model cannot be run.
        """
        keys = {name: self._key("profile", feeds, [graph]) for name, graph in models.items()}
        found = {name: self.known.get(key) for name, key in keys.items()}
        missing = {n: constant_bytes(models[n]) for n, times in found.items() if times is None}
        for some in at_a_time(missing, MODELS_BYTES):
            with ModelFiles.temporary() as files:
                profiles = load_backend(self.backend).profile(
                    [files.save(models[name], f"{at}.onnx") for at, name in enumerate(some)],
                    feeds,
                    provider=self.provider,
                    threads=self.threads,
                )
            for name, profile in zip(some, profiles, strict=True):
                found[name] = times = read(name, profile)
                if times:
                    self.known.put(keys[name], times)
        return {name: times or {} for name, times in found.items()}

    def times(
        self, models: Mapping[str, Graph], feeds: Feeds, *, seconds: float
    ) -> dict[str, float]:
        """Milliseconds of whole models, run in turn, by their names.

        As many models as fit into memory take turns.

        Args:
            models: The models.
            feeds: What to run them on.
            seconds: Time to spend on each.

        Raises:
            InputError: a model cannot be run.
        """
        key = self._key("models in turn", feeds, models.values())
        found = self.known.get(key)
        if found is None:
            sizes = {name: constant_bytes(graph) for name, graph in models.items()}
            groups = at_a_time(sizes, MODELS_BYTES)
            taken = [ms for group in groups for ms in self._in_turn(models, group, feeds, seconds)]
            found = {str(at): ms for at, ms in enumerate(taken)}
            self.known.put(key, found)
        return dict(zip(models, found.values(), strict=True))

    def _in_turn(
        self, models: Mapping[str, Graph], names: Sequence[str], feeds: Feeds, seconds: float
    ) -> list[float]:
        backend = load_backend(self.backend)
        with ModelFiles.temporary() as files:
            sessions = [
                backend.session(
                    files.save(models[name], f"{at}.onnx"),
                    provider=self.provider,
                    threads=self.threads,
                )
                for at, name in enumerate(names)
            ]
            timings = backend.time(sessions, feeds, seconds=seconds * len(sessions))
        return [timing.p10_ms for timing in timings]

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

    def _key(self, kind: str, feeds: Feeds, models: Iterable[Graph]) -> str:
        shapes = json.dumps({n: a.shape for n, a in sorted(feeds.items())})
        return self._signature(kind, *map(fingerprint, models), shapes)

    def _signature(self, *what: str) -> str:
        return json.dumps([dict(self.here), *what], sort_keys=True)
